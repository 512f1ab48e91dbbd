"""Plain denoising of clean images at every Gaussian level: what makes any objective's outcome a diffusion prior.

    E ‖D(x + sigma e, sigma) - x‖² / c_out(sigma)²,    sigma log-uniform in [low, high]

with Karras et al.'s weight (2022, arXiv 2206.00364, table 1), which makes the loss of each level of order one. The
"clean" images are draws from the posterior (`virtual_exposures.py`, `em.py`) or the truth.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import Denoise, mean_where

LOW, HIGH = 0.05, 40.0
"""Levels that are trained, in scaled intensity: from a twentieth of the photon noise to far above any structure."""


def denoising(
    denoiser: Denoise,
    clean: Tensor,
    valid: Tensor,
    channel: Tensor,
    generator: torch.Generator,
    *,
    low: float = LOW,
    high: float = HIGH,
    spread: float = 2.0,
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
    spread : float
        Standard deviation of clean images that the weight assumes.
    """
    device = generator.device
    draw = torch.rand(len(clean), generator=generator, device=device).to(clean.device)
    sigma = torch.exp(math.log(low) + math.log(high / low) * draw)
    noise = torch.randn(clean.shape, generator=generator, device=device).to(clean.device)
    view = (-1,) + (1,) * (clean.ndim - 1)
    level = sigma.reshape(view)
    prediction = denoiser(clean + level * noise, sigma, corruption="gaussian", channel=channel)
    weight = (level.square() + spread**2) / (level * spread).square()
    return mean_where(weight * (prediction - clean).square(), valid)
