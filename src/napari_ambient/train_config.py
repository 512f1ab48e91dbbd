"""How to train: the settings and their presets, apart from the loop so that they can be shown without loading torch.

In the flow: before training. Menus, notebooks and the command line make a `TrainConfig` with `preset`, which
`training.py` follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, get_args

from .choices import Below, Dims, Form, Precision, PresetName, Size

CHECKPOINT = "checkpoint.safetensors"
"""The file, in the bundle to be, from which a training goes on."""


class TrainingError(ValueError):
    """Training cannot start or go on."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Parameters
    ----------
    steps : int
        Optimiser steps.
    batch : int, optional
        Crops per step, over all processes. If left out, 16 of images that are only noisy, whose labels are as noisy
        (measured on simulated fields, 3000 steps: 43.4 dB with 16, 43.2 with 8), and 8 of volumes and behind an
        operator.
    patch : tuple of int, optional
        Crop size in voxels, (Y, X) or (Z, Y, X), multiples of the network's stride; chosen to fit if left out.
    size : {"small", "medium", "large"}
        Network size; `small` is for a CPU.
    dims : {"auto", "2D", "2.5D", "3D"}
        Planes alone, planes with their neighbours, or volumes. `auto`: 3D from 8 slices on, 2.5D from 3.
    slices : int
        Neighbouring slices seen together in 2.5D; odd.
    form : {"auto", "thinning", "gaussian"}
        Form of recorruption; `auto` follows the fitted noise.
    learning_rate : float
        Peak learning rate of the small network; larger ones take a smaller one, in proportion to width and depth.
    warm_up : int
        Steps until the peak.
    average : float
        Decay of the moving average of the weights.
    clip : float
        Largest norm of the gradient.
    held_out : float
        Share of the data kept for validation, 0 to 0.5.
    validations : int
        How often to validate during the training.
    checkpoint_every : int
        Steps between checkpoints.
    precision : {"auto", "float32", "bfloat16"}
        Arithmetic of the convolutions in training; restoring is always float32.
    memory : int
        Megabytes of image blocks held in memory.
    seed : int
        Seed of everything random.
    below : {"none", "auto", "virtual_exposures", "em", "consistency"}
        Stage after the ambient one that teaches what lies below the measurement's own noise level: needed for draws,
        error bars and new images. `auto`: virtual exposures for the thinning form, consistency for the
        Gaussian one, as `benchmarks/below_sigma.py` found them best.
    below_steps : int
        Optimiser steps of that stage.
    low_rank : int
        Fine-tuning only: 0 trains all weights, r > 0 only changes of rank r of the convolutions' kernels (8 is a good
        start).
    still : bool
        The time points of each volume are exposures of the same field, which neither moves nor bleaches much: what one
        shows is learned by the others too (objectives ambient and ambient_mask), which is sharper than from each alone.
    """

    steps: int = 3000
    batch: int | None = None
    patch: tuple[int, ...] | None = None
    size: Size = "small"
    dims: Dims = "auto"
    slices: int = 5
    form: Form = "auto"
    learning_rate: float = 2e-3
    warm_up: int = 50
    average: float = 0.998
    clip: float = 1.0
    held_out: float = 0.1
    validations: int = 20
    checkpoint_every: int = 500
    precision: Precision = "auto"
    memory: int = 512
    seed: int = 0
    below: Below = "none"
    below_steps: int = 1000
    low_rank: int = 0
    still: bool = False

    @property
    def total(self) -> int:
        """Steps of all stages."""
        return self.steps + (0 if self.below == "none" else self.below_steps)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "checkpoint_every", "memory", "below_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainingError(f"{name} is {value}; it must be at least 1")
        if self.slices % 2 == 0 or self.slices < 1:
            raise TrainingError(f"slices is {self.slices}; it must be odd (the slice in the middle is restored)")
        if not 0 <= self.held_out <= 0.5:
            raise TrainingError(f"held_out is {self.held_out}; it must be between 0 and 0.5")
        if self.low_rank < 0:
            raise TrainingError(f"low_rank is {self.low_rank}; it must be 0 (train all weights) or a rank, at least 1")
        if not self.learning_rate > 0:
            raise TrainingError(f"learning_rate is {self.learning_rate}; it must be positive")
        if self.below not in get_args(Below):
            raise TrainingError(f"below is {self.below!r}; choose one of {', '.join(get_args(Below))}")
        if self.dims not in ("auto", "2D", "2.5D", "3D"):
            raise TrainingError(f"dims is {self.dims!r}; choose auto, 2D, 2.5D or 3D")


@dataclass(frozen=True)
class Preset:
    """A choice of settings.

    Parameters
    ----------
    summary : str
        What it is for, in a few words.
    settings : mapping
        Fields of `TrainConfig` that differ from its defaults.
    """

    summary: str
    settings: Mapping[str, Any]


PRESETS: Mapping[PresetName, Preset] = MappingProxyType(
    {
        "quick": Preset(
            "a first look: 600 steps of the small network", {"steps": 600, "below_steps": 300, "validations": 12}
        ),
        "balanced": Preset("the usual choice: 3000 steps of the small network", {}),
        "best": Preset(
            "8000 steps of the medium network; with a GPU, or over night",
            {"steps": 8000, "below_steps": 2500, "size": "medium", "validations": 40},
        ),
    }
)
"""The presets, the quickest first."""


def preset(name: PresetName, **changes: Any) -> TrainConfig:
    """Give the settings of a preset.

    Parameters
    ----------
    name : {"quick", "balanced", "best"}
        Which; `PRESETS` says what they are for. "balanced" is ``TrainConfig()``.
    **changes
        Fields of `TrainConfig` that are to be otherwise.

    Returns
    -------
    TrainConfig

    Raises
    ------
    TrainingError
        If there is no such preset or no such field.
    """
    if name not in PRESETS:
        raise TrainingError(f"preset is {name!r}; choose one of {', '.join(PRESETS)}")
    known = [field.name for field in fields(TrainConfig)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise TrainingError(f"no setting is called {', '.join(unknown)}; there are {', '.join(known)}")
    return TrainConfig(**{**PRESETS[name].settings, **changes})
