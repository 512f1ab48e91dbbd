"""Diffusion posterior sampling: follow the gradient of the misfit of D. Known and widely used; for comparison.

Chung, Kim, McCann, Klasky & Ye 2023 (arXiv 2209.14687), algorithms 1 and 2. After every ancestral step the image moves
down the misfit of the step's own estimate, by a step whose length is set by hand:

    x ← x - zeta (1 + sigma²/s²) s ∇ₓ ‖V^{-½} (k - A λ(D(x, sigma)))‖

It takes the clean image given x_t for a point, and its length has no meaning in the model: the draws are not from the
posterior, and their spread is no error bar. (The factor (1 + sigma²/s²) s carries the published rule, which is for
images of unit spread that shrink as noise is added, to images of spread s to which noise is added.)
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from napari_ambient.samplers import Denoise, Noise, ladder

from .mmps import attach
from .problem import Problem, dot, numbered


def dps(
    denoise: Denoise,
    problem: Problem,
    *,
    steps: int,
    noise: Noise,
    high: float = 80.0,
    lowest: float = 0.05,
    zeta: float = 1.0,
    spread: float = 1.0,
    start: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Restore by diffusion posterior sampling; for Gaussian and (weighted by 1/V, as published) Poisson likelihoods.

    Parameters
    ----------
    denoise : Denoise
        The prior, D(z, sigma), differentiable by autograd.
    problem : Problem
        The measurement.
    steps : int
        Steps; the paper takes 1000.
    noise : Noise
        Source of all that is random; called with the running number of the draw.
    high, lowest : float
        First and last noise level, in scaled intensity.
    zeta : float
        Length of the steps; published values lie between 0.3 and 1.
    spread : float
        s, standard deviation of the clean images in scaled intensity.
    start : Tensor, optional
        First estimate of z; by default `Problem.guess`.

    Yields
    ------
    stage : int
        Number of the step, from 0.
    z : Tensor, shape (B, C, [Z,] Y, X)
        Image at the level reached; the last is the answer.
    """
    draw = numbered(noise)
    first = problem.guess() if start is None else start
    x = first + high * draw(first)
    for stage, (s, t) in enumerate(pairwise(ladder(high, lowest, steps))):
        variable, clean = attach(denoise, x, s, "dps")
        with torch.enable_grad():
            expected = problem.operator.forward(problem.link.light(clean))
            misfit = (problem.counts - expected) / problem.likelihood.at(expected.detach()).sqrt()
            length = dot(misfit, misfit).sqrt().sum()
        (slope,) = torch.autograd.grad(length, variable)
        kept = (t / s) ** 2
        x = kept * x + (1 - kept) * clean.detach()
        if t > 0:
            x = x + t * (1 - kept) ** 0.5 * draw(x)
        x = x - zeta * (1 + (s / spread) ** 2) * spread * slope
        yield stage, x
