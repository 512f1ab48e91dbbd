"""RED-diff: regularisation by denoising at every noise level. A point estimate without uncertainty.

Mardani, Song, Kautz & Vahdat 2024 (arXiv 2305.04391). Fits a Gaussian of vanishing width to the posterior: its mean mu
goes down, level by level and by Adam, the gradient

    -∇ log p(k | mu) + weight (mu - D(mu + sigma ε, sigma))

which is the paper's λ sigma (ε̂ - ε) written with D. Runs from different noise end in nearly the same image: their
spread says nothing of what is known.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from napari_ambient.samplers import Denoise, Noise, ladder

from .problem import Gaussian, Problem, numbered


def red_diff(
    denoise: Denoise,
    problem: Problem,
    *,
    steps: int,
    noise: Noise,
    high: float = 80.0,
    lowest: float = 0.05,
    weight: float = 0.25,
    rate: float = 0.1,
    start: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Restore by RED-diff; for Gaussian and Poisson-Gaussian likelihoods. A point estimate: it has no uncertainty.

    Parameters
    ----------
    denoise : Denoise
        The prior, D(z, sigma).
    problem : Problem
        The measurement.
    steps : int
        Steps of Adam and calls of the denoiser; the paper takes 100 to 1000.
    noise : Noise
        Source of all that is random; called with the running number of the draw.
    high, lowest : float
        First and last noise level, in scaled intensity.
    weight : float
        Of the prior; the paper's λ.
    rate : float
        Adam's learning rate, in scaled intensity.
    start : Tensor, optional
        First mu; by default `Problem.guess`.

    Yields
    ------
    stage : int
        Number of the step, from 0.
    z : Tensor, shape (B, C, [Z,] Y, X)
        mu; the last is the answer.
    """
    draw = numbered(noise)
    mu = (problem.guess() if start is None else start).detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([mu], lr=rate, betas=(0.9, 0.99))
    for stage, sigma in enumerate(ladder(high, lowest, steps, end=False)):
        fixed = mu.detach()
        with torch.no_grad():
            prior = weight * (fixed - denoise(fixed + sigma * draw(fixed), sigma))
        with torch.enable_grad():
            (misfit,) = torch.autograd.grad(_surprise(problem, mu), mu)
        mu.grad = prior + misfit
        optimiser.step()
        yield stage, mu.detach().clone()


def _surprise(problem: Problem, z: Tensor) -> Tensor:
    """Give -log p(k | z), but for a constant."""
    expected = problem.operator.forward(problem.link.light(z))
    variance = problem.likelihood.at(expected)
    misfit = (problem.counts - expected).square() / variance
    if isinstance(problem.likelihood, Gaussian):
        return misfit.sum() / 2
    return (misfit + variance.log()).sum() / 2
