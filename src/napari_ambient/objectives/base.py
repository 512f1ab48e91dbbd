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
from torch import Tensor

from napari_ambient.recorruption import Recorruption, Thinning

Denoise = Callable[..., Tensor]
"""A `denoiser.Denoiser`, or anything called like one."""


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
    """

    counts: Tensor
    valid: Tensor
    learn: Tensor
    channel: Tensor
    partner: Tensor | None = None
    progress: float = 1.0

    def part(self, which: slice) -> Batch:
        """Give some of the crops."""
        partner = None if self.partner is None else self.partner[which]
        return Batch(
            self.counts[which], self.valid[which], self.learn[which], self.channel[which], partner, self.progress
        )


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
    one_call: ClassVar[bool] = True
    """Whether the answer is expected photo-electrons in the photon form, whatever the noise's form."""

    def __init__(self, recorruption: Recorruption) -> None:
        self.recorruption: Recorruption = Thinning() if self.one_call else recorruption

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

    def answer(self, denoiser: Denoise, seen: Tensor, batch: Batch) -> Tensor:
        """Ask the denoiser once about `seen` as a measurement; gives scaled intensity."""
        form = self.recorruption
        sigma = torch.full((len(seen),), form.sigma_y, device=seen.device)
        return denoiser(seen, sigma, corruption=form.corruption, measured=True, channel=batch.channel)


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Average `values` where `mask` holds; zero when it holds nowhere."""
    return (values * mask).sum() / mask.sum().clamp_min(1)
