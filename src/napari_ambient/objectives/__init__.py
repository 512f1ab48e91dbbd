"""Training objectives: one paper a file, the same trainer and the same prior at the end."""

from .ambient import Ambient
from .base import Batch, Objective
from .blind_spot import BlindSpot
from .noise2noise import Noise2Noise
from .supervised import Supervised

OBJECTIVES: dict[str, type[Objective]] = {
    "ambient": Ambient,
    "blind_spot": BlindSpot,
    "noise2noise": Noise2Noise,
    "supervised": Supervised,
}

__all__ = ["OBJECTIVES", "Ambient", "Batch", "BlindSpot", "Noise2Noise", "Objective", "Supervised"]
