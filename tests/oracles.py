"""Denoisers whose best answer is known in closed form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


class SpectralGain:
    """A linear denoiser: one gain per ring of spatial frequencies.

    For a Gaussian random field of spectrum S(f) under white noise of variance σ² the best one is Wiener's
    S/(S + σ²).
    """

    def __init__(self, size: int, rings: int) -> None:
        f = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
        self.ring = torch.from_numpy(np.minimum((f / 0.5 * rings).astype(int), rings - 1))
        self.frequency = torch.from_numpy(f)
        self.rings = rings

    def __call__(self, x: Tensor, gain: Tensor) -> Tensor:
        """Filter images (B, 1, Y, X)."""
        return torch.fft.ifft2(torch.fft.fft2(x) * gain[self.ring]).real

    def ring_mean(self, values: Tensor) -> Tensor:
        """Average a map over frequencies in each ring."""
        total = torch.zeros(self.rings, dtype=torch.float64).index_add_(
            0, self.ring.flatten(), values.flatten().double()
        )
        return total / torch.bincount(self.ring.flatten(), minlength=self.rings)

    def train(self, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Give the gains that minimise a loss which is quadratic and separable in them, by one Newton step."""
        gradients = []
        for start in (0.0, 1.0):
            gain = torch.full((self.rings,), start, dtype=torch.float64, requires_grad=True)
            gradients.append(torch.autograd.grad(loss(gain), gain)[0])
        return -gradients[0] / (gradients[1] - gradients[0])


def gaussian_field(spectrum: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` periodic Gaussian fields with the given power spectrum; (count, 1, Y, X), float64."""
    white = torch.randn(count, 1, *spectrum.shape, generator=generator, dtype=torch.float64)
    return torch.fft.ifft2(torch.fft.fft2(white) * spectrum.sqrt()).real
