"""What every training objective is: a loss of the denoiser on a batch of noisy crops.

An objective draws its own corruption from a generator, so that a step is repeatable, and never sees files, devices or
optimisers (`training.py` has those).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from napari_ambient.amortised import AmortisedPosterior, evidence
from napari_ambient.choices import Size
from napari_ambient.denoiser import Scale
from napari_ambient.networks.unet import UNetArguments
from napari_ambient.operators import Identity, Operator
from napari_ambient.recorruption import Recorruption, Thinning, stabilise

from .views import Views

Denoise = Callable[..., Tensor]
"""A `denoiser.Denoiser`, or anything called like one."""


class ObjectiveError(ValueError):
    """An objective cannot learn from such data; the message says why and which can."""


@dataclass(frozen=True)
class Setting:
    """What an objective is told before the training begins.

    Parameters
    ----------
    operator : Operator
        What the microscope did to the light before it was counted.
    network : UNetArguments
        The denoiser's network.
    scales : tuple of Scale
        Mean and spread of the clean scaled intensity of every channel.
    size : {"small", "medium", "large"}
        Size asked for; objectives with networks of their own follow it.
    anisotropy : float
        Voxel size along Z over voxel size along X.
    started : bool
        Whether the denoiser was trained before (fine-tuning).
    """

    operator: Operator
    network: UNetArguments
    scales: tuple[Scale, ...]
    size: Size = "small"
    anisotropy: float = 1.0
    started: bool = False


@dataclass(frozen=True)
class Batch:
    """Crops of one training step.

    Parameters
    ----------
    counts : Tensor, shape (B, C, [Z,] Y, X)
        Photo-electrons above zero (variance equals mean).
    valid : Tensor of bool, same shape
        False at hot pixels: neither looked at nor learned from.
    learn : Tensor of bool, same shape
        False also where the camera was saturated: looked at, not learned from.
    channel : Tensor of int, shape (B,)
        Image channel of each crop.
    partner : Tensor or None
        A second exposure, or the clean target, in photo-electrons.
    progress : float
        0 at the start of training, 1 at its end.
    views : Views or None
        How each crop was measured; None where the crops are only noisy.
    upright : Tensor of bool, shape (B,), or None
        False where a quarter turn has laid the camera's X along the last axis but one; None: nowhere.
    """

    counts: Tensor
    valid: Tensor
    learn: Tensor
    channel: Tensor
    partner: Tensor | None = None
    progress: float = 1.0
    views: Views | None = None
    upright: Tensor | None = None

    def part(self, which: slice) -> Batch:
        """Give some of the crops."""
        partner = None if self.partner is None else self.partner[which]
        views = None if self.views is None else self.views.part(which)
        upright = None if self.upright is None else self.upright[which]
        return Batch(
            self.counts[which],
            self.valid[which],
            self.learn[which],
            self.channel[which],
            partner,
            self.progress,
            views,
            upright,
        )

    def expected(self, light: Tensor) -> Tensor:
        """Compute what the camera expects to count of clean crops (photo-electrons per clean voxel)."""
        return light if self.views is None else self.views.expected(light)

    def evidence(self) -> tuple[Tensor, Tensor]:
        """Say what the measurement shows on the voxels of the clean crops: light, and where it is known."""
        if self.views is None:
            return evidence(self.counts, self.valid, torch.ones_like(self.counts), (1, 1, 1))
        with torch.no_grad():
            bright = self.views.expected(self.views.refined(torch.ones_like(self.counts)))
        return evidence(self.counts, self.valid, bright, self.views.stride)


class Objective(ABC):
    """A training objective.

    Parameters
    ----------
    recorruption : Recorruption
        The form of noise: how a measurement is shown to the denoiser, and how its answer is read.
    """

    name: ClassVar[str]
    partner: ClassVar[Literal["none", "time", "target"]] = "none"
    """What must come with each crop: nothing, a repeated exposure, or the clean target."""
    repeats: ClassVar[bool] = False
    """Whether it learns from other exposures of the same field where there are such."""
    one_call: ClassVar[bool] = True
    """Whether the answer is expected photo-electrons in the photon form, whatever the noise's form."""
    through: ClassVar[tuple[str, ...]] = ("identity",)
    """Operators that it can learn through, by the names of `Operator.to_dict`; "any" stands for all."""
    shows_holes: ClassVar[bool] = False
    """Whether the denoiser is shown which voxels were measured, also where the operator has no mask."""
    below_itself: ClassVar[bool] = False
    """Whether it teaches D below the measurement's own noise too, so that no stage after it is needed."""
    planes_alone: ClassVar[bool] = False
    """Whether it cannot see planes together with their neighbours (2.5D)."""
    companion: nn.Module | None = None
    """Networks trained beside the denoiser."""
    scales: tuple[Scale, ...] = ()
    """Mean and spread of every channel's clean scaled intensity, once the training has told."""

    def __init__(self, recorruption: Recorruption) -> None:
        self.recorruption: Recorruption = Thinning() if self.one_call else recorruption

    def prepare(self, setting: Setting) -> None:
        """Take note of the training to come, and make the companion.

        Parameters
        ----------
        setting : Setting
            Operator, network and scales.

        Raises
        ------
        ObjectiveError
            If the objective cannot learn through the operator.
        """
        self.scales = setting.scales
        names = operator_names(setting.operator)
        if "any" not in self.through and not names <= {*self.through, "identity"}:
            raise ObjectiveError(
                f"the objective {self.name} cannot learn through this operator ({setting.operator.describe()}): it "
                f"knows {', '.join(self.through)}; choose flow_diff, ambient_flow, sure_score or em, which know all, "
                "or ambient_mask for masks"
            )

    def amortised(self, companion: nn.Module) -> AmortisedPosterior | None:
        """Give the part of the companion (or of its moving average) that draws from posteriors, if any."""
        return None

    @abstractmethod
    def losses(
        self, denoiser: Denoise, average: Denoise, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Give the terms of the loss, whose sum is minimised.

        Parameters
        ----------
        denoiser : callable
            The denoiser in training.
        average : callable
            Its exponential moving average, never differentiated.
        batch : Batch
            The crops.
        generator : torch.Generator
            Source of every draw.

        Returns
        -------
        dict of str to Tensor
            Scalars.
        """

    def validation(self, denoiser: Denoise, batch: Batch, generator: torch.Generator) -> Tensor:
        """Give the held-out loss (a scalar); less is better, and comparable between steps of one training."""
        return sum(self.losses(denoiser, denoiser, batch, generator).values(), start=torch.zeros(()))

    def state(self) -> dict[str, Tensor]:
        """Give the tensors that a checkpoint must keep, besides the networks; most objectives have none."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` gave."""
        if state:
            raise ValueError(f"{self.name} keeps no state, the checkpoint has {sorted(state)}")

    def answer(self, denoiser: Denoise, seen: Tensor, batch: Batch, known: Tensor | None = None) -> Tensor:
        """Ask the denoiser once about `seen` as a measurement, not `known` everywhere; gives scaled intensity."""
        form = self.recorruption
        sigma = torch.full((len(seen),), form.sigma_y, device=seen.device)
        return denoiser(seen, sigma, corruption=form.corruption, measured=True, channel=batch.channel, known=known)

    def reconstruct(self, denoiser: Denoise, batch: Batch) -> Tensor:
        """Ask the denoiser once for the clean crops behind the measurements; gives scaled intensity."""
        light, known = batch.evidence()
        return self.answer(denoiser, stabilise(light, 1.0), batch, known)


def operator_names(operator: Operator) -> set[str]:
    """Give the names of all operators that one is made of; none for the identity."""
    if isinstance(operator, Identity):
        return set()
    record = operator.to_dict()
    return {str(part["operator"]) for part in record.get("applied", [record])}


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Average `values` where `mask` holds; zero when it holds nowhere."""
    return (values * mask).sum() / mask.sum().clamp_min(1)
