"""The choices that users are given, in one place for menus, command line and documentation. Loads nothing."""

from __future__ import annotations

from typing import Literal

PresetName = Literal["quick", "balanced", "best"]
Size = Literal["small", "medium", "large"]
Dims = Literal["auto", "2D", "2.5D", "3D"]
Form = Literal["auto", "thinning", "gaussian"]
Precision = Literal["auto", "float32", "bfloat16"]
ObjectiveName = Literal["ambient", "blind_spot", "noise2noise", "supervised"]
Below = Literal["none", "auto", "virtual_exposures", "em", "consistency"]
OutputType = Literal["float32", "input"]
PosteriorName = Literal["split_gibbs", "mmps", "diffpir", "dps", "red_diff"]
Microscope = Literal["widefield", "confocal", "light-sheet"]
