"""Moment matching: a denoiser that has seen the measurement.

Rozet, Andry, Lanusse & Louppe 2024 (arXiv 2405.13712). Taking the clean image given x_t for Gaussian, with Tweedie's
mean D and covariance C = sigma² ∂D/∂x_t, and A linear with noise covariance V, gives the mean given x_t *and* k:

    D_y(x_t, sigma) = D + C Jᵀ (I + J C Jᵀ)⁻¹ residual

with J and the residual in units of the noise (`problem.py`), linearised about D. It is exact for Gaussian priors, and
any sampler works with D_y in place of D. C is never built: its products come from automatic differentiation, its
inverse from a few conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from napari_ambient.samplers import Denoise, Noise, Sampler, dpm_sde, ladder

from .problem import PosteriorError, Problem, conjugate_gradients, numbered


def mmps_denoiser(denoise: Denoise, problem: Problem, *, iterations: int = 5) -> Denoise:
    """Give D_y; for Gaussian and Poisson-Gaussian likelihoods (the variance taken at D).

    Parameters
    ----------
    denoise : Denoise
        D, differentiable by autograd.
    problem : Problem
        The measurement.
    iterations : int
        Conjugate gradients, each a backward pass of the network. A few suffice for networks, whose Jacobian is
        symmetric only nearly; more for closed forms.

    Returns
    -------
    Denoise

    Raises
    ------
    PosteriorError
        On a call, if D gives no gradients.
    """

    def seen(x_t: Tensor, sigma: float) -> Tensor:
        variable, clean = attach(denoise, x_t, sigma, "mmps")
        near = problem.linearise(clean.detach())

        def covariance(v: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(clean, variable, v, retain_graph=True)
            return sigma**2 * product

        weights = conjugate_gradients(
            lambda w: w + near.forward(covariance(near.adjoint(w))), near.residual, iterations=iterations
        )
        return clean.detach() + covariance(near.adjoint(weights))

    return seen


def attach(denoise: Denoise, x_t: Tensor, sigma: float, method: str) -> tuple[Tensor, Tensor]:
    """Call D so that its answer can be differentiated; give x_t and D."""
    with torch.enable_grad():
        variable = x_t.detach().clone().requires_grad_()
        clean = denoise(variable, sigma)
    if not clean.requires_grad:
        raise PosteriorError(
            f"{method} needs the denoiser's derivative, and this one gives none; do not wrap it in torch.no_grad or "
            "torch.inference_mode, or choose split_gibbs, which needs no derivatives"
        )
    return variable, clean


def mmps(
    denoise: Denoise,
    problem: Problem,
    *,
    steps: int,
    noise: Noise,
    high: float = 80.0,
    lowest: float = 0.05,
    iterations: int = 5,
    sampler: Sampler = dpm_sde,
    start: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Draw from the posterior by moment matching.

    Parameters
    ----------
    denoise : Denoise
        The prior, D(z, sigma), differentiable by autograd.
    problem : Problem
        The measurement.
    steps : int
        Calls of D_y.
    noise : Noise
        Source of all that is random; called with the running number of the draw.
    high, lowest : float
        First and last noise level, in scaled intensity; `high` well above the contrast of the images.
    iterations : int
        See `mmps_denoiser`.
    sampler : Sampler
        Any of `samplers.py`.
    start : Tensor, optional
        First estimate of z; by default `Problem.guess`.

    Yields
    ------
    stage : int
        Number of the step, from 0.
    z : Tensor, shape (B, C, [Z,] Y, X)
        Image at the level reached; the last is the draw.
    """
    draw = numbered(noise)
    seen = mmps_denoiser(denoise, problem, iterations=iterations)
    first = seen(problem.guess() if start is None else start, high)
    x = first + high * draw(first)
    steps_of = sampler(seen, x, ladder(high, lowest, steps), lambda _, like: draw(like))
    for stage, (_, z) in enumerate(steps_of):
        yield stage, z
