"""Plain denoising of clean images at every Gaussian level: what makes any objective's outcome a diffusion prior.

    E ‖D(x + sigma e, sigma) - x‖² / c_out(sigma)²,    sigma log-uniform in [low, high]

with Karras et al.'s weight (2022, arXiv 2206.00364, table 1), which makes the loss of each level of order one as long
as it knows how wide the clean images spread: with too small a spread the highest levels of bright images rule all. The
"clean" images are draws from the posterior (`virtual_exposures.py`, `em.py`) or the truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from napari_ambient.denoiser import Scale

from .base import Denoise, mean_where

LOW, HIGH = 0.05, 40.0
"""Levels that are trained, in scaled intensity: from a twentieth of the photon noise to far above any structure."""
NARROW = 2.0
"""Least spread of clean images that the weight assumes: that of some photo-electrons per voxel."""


def denoising(
    denoiser: Denoise,
    clean: Tensor,
    valid: Tensor,
    channel: Tensor,
    generator: torch.Generator,
    *,
    low: float = LOW,
    high: float = HIGH,
    scales: Sequence[Scale] = (),
) -> Tensor:
    """Give the weighted denoising loss, a scalar.

    Parameters
    ----------
    denoiser : callable
        D.
    clean : Tensor, shape (B, C, [Z,] Y, X)
        Clean images, scaled intensity.
    valid : Tensor of bool, same shape
        Voxels to learn from.
    channel : Tensor of int, shape (B,)
        Image channel of each.
    generator : torch.Generator
        Source of levels and noise.
    low, high : float
        Range of sigma, scaled intensity.
    scales : sequence of Scale
        Of every channel: the spread of its clean images that the weight assumes, at least `NARROW`, and that where
        none are given.
    """
    device = generator.device
    draw = torch.rand(len(clean), generator=generator, device=device).to(clean.device)
    sigma = torch.exp(math.log(low) + math.log(high / low) * draw)
    noise = torch.randn(clean.shape, generator=generator, device=device).to(clean.device)
    view = (-1,) + (1,) * (clean.ndim - 1)
    level = sigma.reshape(view)
    prediction = denoiser(clean + level * noise, sigma, corruption="gaussian", channel=channel)
    spreads = torch.tensor([max(s.spread, NARROW) for s in scales] or [NARROW], dtype=clean.dtype, device=clean.device)
    wide = spreads[channel.clamp_max(len(spreads) - 1)].reshape(view)
    weight = (level.square() + wide.square()) / (level * wide).square()
    return mean_where(weight * (prediction - clean).square(), valid)
