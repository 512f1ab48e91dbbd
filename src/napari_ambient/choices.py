"""The choices that users are given, in one place for menus, command line and documentation. Loads nothing."""

from __future__ import annotations

from typing import Literal

PresetName = Literal["quick", "balanced", "best"]
Size = Literal["small", "medium", "large"]
Dims = Literal["auto", "2D", "2.5D", "3D"]
Form = Literal["auto", "thinning", "gaussian"]
Precision = Literal["auto", "float32", "bfloat16"]
ObjectiveName = Literal[
    "auto",
    "ambient",
    "ambient_mask",
    "flow_diff",
    "ambient_flow",
    "sure_score",
    "em",
    "blind_spot",
    "noise2noise",
    "supervised",
]
RestoreMethod = Literal["mean", "samples", "amortised"]
Below = Literal["none", "auto", "virtual_exposures", "em", "consistency"]
OutputType = Literal["float32", "input"]
PosteriorName = Literal["split_gibbs", "mmps", "diffpir", "dps", "red_diff"]
Microscope = Literal["widefield", "confocal", "light-sheet"]
Border = Literal["reflect", "open"]
