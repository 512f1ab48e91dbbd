"""Training objectives: one paper a file, the same trainer and the same prior at the end."""

from .ambient import Ambient
from .ambient_flow import AmbientFlow
from .ambient_mask import AmbientMask
from .base import Batch, Objective
from .blind_spot import BlindSpot
from .consistency import Consistency
from .em import ExpectationMaximisation
from .flow_diff import FlowDiff
from .noise2noise import Noise2Noise
from .operator_em import OperatorEM
from .supervised import Supervised
from .sure_score import SureScore
from .virtual_exposures import VirtualExposures

OBJECTIVES: dict[str, type[Objective]] = {
    "ambient": Ambient,
    "ambient_mask": AmbientMask,
    "flow_diff": FlowDiff,
    "ambient_flow": AmbientFlow,
    "sure_score": SureScore,
    "em": OperatorEM,
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
    "AmbientFlow",
    "AmbientMask",
    "Batch",
    "BlindSpot",
    "Consistency",
    "ExpectationMaximisation",
    "FlowDiff",
    "Noise2Noise",
    "Objective",
    "OperatorEM",
    "Supervised",
    "SureScore",
    "VirtualExposures",
]
