"""The denoiser D(x_t, sigma), an estimate of E[clean | x_t].

With mean mu and standard deviation s of the clean scaled intensity, the network F is preconditioned so that its
input and its target have unit variance at every noise level (Karras et al. 2022, arXiv 2206.00364, table 1):

    D(x_t, sigma) = mu + c_skip (x_t - mu) + c_out F(c_in (x_t - mu), condition)
    c_in = 1/√(sigma² + s²)     c_skip = s²/(sigma² + s²)     c_out = sigma s/√(sigma² + s²)

D is in scaled intensity z (`recorruption.py`), where photon noise has standard deviation one at the measurement's
own level. The condition is (log sigma / 4, is the corruption photon counting?, is x_t the measurement itself?).
The last flag of the condition matters: a real y is discrete and its noise is never exactly what further corruption
makes of it, so the network is told when it sees one (and is trained there, `objectives/ambient.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .networks.unet import UNet, UNetArguments

Corruption = Literal["photon", "gaussian"]


class Scale(NamedTuple):
    """Mean and standard deviation of the clean scaled intensity of one channel."""

    centre: float
    spread: float


class Denoiser(nn.Module):
    """The preconditioned network.

    Parameters
    ----------
    network : UNet
        The network F.
    scales : sequence of Scale
        One per image channel, fixed by the training data; never recomputed per tile or image.
    """

    def __init__(self, network: UNet, scales: Sequence[Scale]) -> None:
        super().__init__()
        if not scales or any(not math.isfinite(s.centre) or not s.spread > 0 for s in scales):
            raise ValueError(f"scales are {list(scales)}; each needs a finite centre and a positive spread")
        self.network = network
        first = network.embed[0]
        assert isinstance(first, nn.Linear)
        with torch.no_grad():
            first.weight[:, 2] = 0  # until it is taught there, a measurement is taken for what its level says
        self.register_buffer("scales", torch.tensor([list(s) for s in scales], dtype=torch.float32))

    @property
    def arguments(self) -> UNetArguments:
        """The network's arguments."""
        return self.network.arguments

    def forward(
        self,
        x_t: Tensor,
        sigma: Tensor,
        *,
        corruption: Corruption = "gaussian",
        measured: Tensor | bool = False,
        channel: Tensor | int = 0,
        known: Tensor | None = None,
    ) -> Tensor:
        """Estimate the clean image.

        Parameters
        ----------
        x_t : Tensor, shape (B, C, [Z,] Y, X)
            Image at noise level `sigma`, in scaled intensity. Z, Y, X multiples of the network's stride.
        sigma : Tensor, shape (B,)
            Standard deviation of the noise in `x_t`, in scaled intensity, > 0.
        corruption : {"photon", "gaussian"}
            Whether the noise comes from photon counting or is Gaussian.
        measured : Tensor of shape (B,) or bool
            True where `x_t` is a measurement as it came, not further corrupted.
        channel : Tensor of shape (B,) or int
            Image channel of each sample (chooses its scale).
        known : Tensor of bool, shape of `x_t`, or None
            False where `x_t` was not measured but filled in; all is known if left out. Networks without an input for
            it (`arguments.extra`) are not told.

        Returns
        -------
        Tensor
            The estimate, in scaled intensity; shape of `x_t`, float32.
        """
        size = len(x_t)
        scales: Tensor = self.scales  # type: ignore[assignment]
        index = torch.as_tensor(channel, device=scales.device).expand(size)
        view = (size,) + (1,) * (x_t.ndim - 1)
        centre, spread = (scales[index, i].reshape(view) for i in (0, 1))
        level = sigma.to(torch.float32).reshape(view)
        total = level.square() + spread.square()
        c_in = total.rsqrt()
        condition = torch.stack(
            [
                sigma.to(torch.float32).log() / 4,
                torch.full((size,), float(corruption == "photon"), device=x_t.device),
                torch.as_tensor(measured, device=x_t.device).expand(size).to(torch.float32),
            ],
            dim=1,
        )
        centred = x_t - centre
        seen = c_in * centred
        if self.arguments.extra:
            holes = torch.zeros_like(seen) if known is None else (~known).to(seen.dtype)
            seen = torch.cat([seen, holes], dim=1)
        features: Tensor = self.network(seen, condition).to(torch.float32)
        return centre + spread.square() / total * centred + level * spread * c_in * features
