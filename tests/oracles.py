"""Denoisers whose best answer is known in closed form."""

from __future__ import annotations

import math
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
        half = self.ring[:, : self.ring.shape[1] // 2 + 1]
        filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * gain[half], s=self.ring.shape)
        return filtered

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


class GaussianField:
    """Periodic Gaussian fields of known spectrum and mean: D, and the posteriors of denoising and deblurring."""

    def __init__(self, spectrum: Tensor, mean: float = 0.0) -> None:
        self.spectrum, self.mean = spectrum, mean

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Give D(x, sigma) of images (B, C, Y, X): Wiener's filter."""
        return self.mean + filtered(x - self.mean, self.spectrum / (self.spectrum + sigma**2))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw fields; (count, 1, Y, X), float64."""
        return self.mean + gaussian_field(self.spectrum, count, generator)

    def posterior(self, y: Tensor, variance: float, transfer: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Give the posterior's mean (B, C, Y, X) and its variance per frequency (Y, X).

        Of y = h * x + noise, at a frequency of transfer h: mean h̄ S y/(|h|² S + σ²), variance S σ²/(|h|² S + σ²).
        """
        h = torch.as_tensor(transfer)
        total = h.abs().square() * self.spectrum + variance
        centred = y - filtered(torch.full_like(y, self.mean), h)
        return self.mean + filtered(centred, h.conj() * self.spectrum / total), self.spectrum * variance / total


class TwoModes:
    """Voxels that are each drawn from one of two Gaussians, at ±distance: D, and the posterior of denoising."""

    def __init__(self, distance: float = 1.0, spread: float = 0.2) -> None:
        self.distance, self.spread = distance, spread

    def weight(self, x: Tensor, sigma: float) -> Tensor:
        """Give the probability of the upper mode, of x at level sigma."""
        return torch.sigmoid(2 * self.distance * x / (self.spread**2 + sigma**2))

    def within(self, x: Tensor, sigma: float, sign: int) -> tuple[Tensor, float]:
        """Give the posterior mean and variance inside one mode."""
        gain = self.spread**2 / (self.spread**2 + sigma**2)
        centre = sign * self.distance
        return centre + gain * (x - centre), gain * sigma**2

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Give D(x, sigma)."""
        upper = self.weight(x, sigma)
        return upper * self.within(x, sigma, 1)[0] + (1 - upper) * self.within(x, sigma, -1)[0]


class GammaLight:
    """Voxels whose light is a mixture of Gamma laws of shapes a and rates b: the posterior mean rate of counts."""

    def __init__(self, *parts: tuple[float, float, float]) -> None:
        self.parts = parts  # (weight, a, b)

    def weights(self, counts: Tensor, exposure: float) -> Tensor:
        """Give the probability of each part, along a new first axis."""
        logs = [
            math.log(w) + a * math.log(b) - math.lgamma(a) + torch.lgamma(counts + a)
            - (counts + a) * math.log(exposure + b)
            for w, a, b in self.parts
        ]  # fmt: skip
        return torch.softmax(torch.stack(logs), 0)

    def __call__(self, counts: Tensor, exposure: float) -> Tensor:
        """Give E[light | counts at that exposure]: (k + a)/(p + b), averaged over the parts."""
        means = torch.stack([(counts + a) / (exposure + b) for _, a, b in self.parts])
        return (self.weights(counts, exposure) * means).sum(0)

    def future(self, counts: float, exposure: float, longer: float) -> tuple[float, float]:
        """Give mean and variance of the photons still to come until a longer exposure."""
        k = torch.tensor(float(counts), dtype=torch.float64)
        weights = self.weights(k, exposure)
        a, b = (torch.tensor([part[i] for part in self.parts], dtype=torch.float64) for i in (1, 2))
        mean = (k + a) / (exposure + b)
        second = (weights * (mean.square() + mean / (exposure + b))).sum()
        light = float((weights * mean).sum())
        more = longer - exposure
        return more * light, more * light + more**2 * (float(second) - light**2)


def filtered(x: Tensor, gain: Tensor | float) -> Tensor:
    """Multiply the spectrum of images (B, C, Y, X) by a gain."""
    return torch.fft.ifft2(torch.fft.fft2(x) * gain).real
