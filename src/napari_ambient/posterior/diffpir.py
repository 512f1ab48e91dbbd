"""DiffPIR: denoise, pull to the measurement, add noise again. A fast point estimate.

Zhu et al. 2023 (arXiv 2305.08995). Half-quadratic splitting with the denoiser as
one half; the other pulls its answer to the measurement, and the image returns to the next lower level t:

    ẑ = argmin ‖V^{-½} (k - A λ(z))‖² + (weight/sigma²) ‖z - D(x, sigma)‖²
    x ← ẑ + t (√(1-zeta) (x - ẑ)/sigma + √zeta ε)

The noise helps it out of poor minima and is no draw from the posterior: its spread is no error bar.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from napari_ambient.samplers import Denoise, Noise, ladder

from .problem import Gaussian, PosteriorError, Problem, conjugate_gradients, numbered


def diffpir(
    denoise: Denoise,
    problem: Problem,
    *,
    steps: int,
    noise: Noise,
    high: float = 80.0,
    lowest: float = 0.05,
    weight: float = 1.0,
    zeta: float = 0.3,
    iterations: int = 20,
    start: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Restore by DiffPIR; for Gaussian likelihoods only.

    Parameters
    ----------
    denoise : Denoise
        The prior, D(z, sigma).
    problem : Problem
        The measurement, with a `Gaussian` likelihood.
    steps : int
        Calls of the denoiser; the paper takes 20 to 100.
    noise : Noise
        Source of all that is random; called with the running number of the draw.
    high, lowest : float
        First and last noise level, in scaled intensity.
    weight : float
        Trust in the denoiser; the paper's λ.
    zeta : float
        Share of fresh noise, in [0, 1].
    iterations : int
        Conjugate gradients for ẑ.
    start : Tensor, optional
        First estimate of z; by default `Problem.guess`.

    Yields
    ------
    stage : int
        Number of the step, from 0.
    z : Tensor, shape (B, C, [Z,] Y, X)
        Image at the level reached; the last is the answer.

    Raises
    ------
    PosteriorError
        If the likelihood is not Gaussian.
    """
    if not isinstance(problem.likelihood, Gaussian):
        raise PosteriorError(
            f"DiffPIR minimises a squared misfit of fixed variance; the likelihood is {problem.likelihood}. Give "
            "Gaussian(variance), for instance of the counts' own smoothed variance, or choose split_gibbs or mmps"
        )
    if not 0 <= zeta <= 1 or not weight > 0:
        raise PosteriorError(f"zeta is {zeta}, weight {weight}; give 0 ≤ zeta ≤ 1 and a weight above 0")
    draw = numbered(noise)
    first = problem.guess() if start is None else start
    x = first + high * draw(first)
    for stage, (s, t) in enumerate(pairwise(ladder(high, lowest, steps))):
        pulled = _pull(problem, denoise(x, s), weight / s**2, iterations)
        x = pulled + t * math.sqrt(1 - zeta) * (x - pulled) / s
        if t > 0 and zeta > 0:
            x = x + t * math.sqrt(zeta) * draw(x)
        yield stage, x


def _pull(problem: Problem, clean: Tensor, trust: float, iterations: int) -> Tensor:
    near = problem.linearise(clean)
    return clean + conjugate_gradients(
        lambda v: near.adjoint(near.forward(v)) + trust * v, near.adjoint(near.residual), iterations=iterations
    )
