"""Training objectives: one paper a file, the same trainer and the same prior at the end."""

from .ambient import Ambient
from .base import Batch, Objective
from .blind_spot import BlindSpot
from .consistency import Consistency
from .em import ExpectationMaximisation
from .noise2noise import Noise2Noise
from .supervised import Supervised
from .virtual_exposures import VirtualExposures

OBJECTIVES: dict[str, type[Objective]] = {
    "ambient": Ambient,
    "blind_spot": BlindSpot,
    "noise2noise": Noise2Noise,
    "supervised": Supervised,
}
BELOW: dict[str, type[Objective]] = {
    "virtual_exposures": VirtualExposures,
    "em": ExpectationMaximisation,
    "consistency": Consistency,
}
"""Stages after the ambient one, which teach D below the measurement's own noise level."""

__all__ = [
    "BELOW",
    "OBJECTIVES",
    "Ambient",
    "Batch",
    "BlindSpot",
    "Consistency",
    "ExpectationMaximisation",
    "Noise2Noise",
    "Objective",
    "Supervised",
    "VirtualExposures",
]
