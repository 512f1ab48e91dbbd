"""Split Gibbs: draw from the posterior by turns from the prior and from the likelihood.

Plug-and-play split Gibbs (Vono et al. 2019, arXiv 1804.05809; with diffusion priors PnP-DM, Wu et al. 2024, arXiv
2405.18782) puts an image u at distance ρ beside z, and alternates

    prior step        z ~ p(z | u = z + ρ noise)        the reverse SDE from level ρ
    likelihood step   u ~ N(u; z, ρ² I) q(k | u)        Gaussian, about z

so that z alone follows p(z) ∫ N(u; z, ρ²) q(k | u) du. With q the true likelihood (PnP-DM) the noise of that marginal
is V + ρ² A Aᵀ, not V: the answer is wrong for every ρ > 0 and hardly moves for a small one. Here the distance is paid
for out of the measurement's own noise, wherever that suffices ("noise splitting"; by frequencies as in DDRM, Kawar et
al. 2022, arXiv 2201.11793). In units of the noise, with J the linearised operator (`problem.py`) and B = ρ² J Jᵀ,

    k | z has noise  c(B),   c(b) = max(1, b)        and so        q has noise  c(B) - B

b < 1: the answer is exact, whatever ρ. b > 1: the measurement is better than ρ, u becomes the measurement brought to
level ρ, and waits for ρ to fall. In one rule, with ε₁ and ε₂ standard normals,

    u = z + ρ ε₁ + ρ² Jᵀ c(B)⁻¹ (residual - ρ J ε₁ - √(c(B) - B) ε₂)

Functions of B are polynomials (Chebyshev, fitted by least squares), so that the step needs A and Aᵀ and no solver, for
blurs, masks, coarser grids and all that is made of them. For photon noise B is about ρ² A Aᵀ at most, so with light
kept (PSF of sum 1) ρ up to the measurement's own level is exact, and the prior is never asked for more than it learned
there. ρ falls geometrically: large, it moves what the measurement does not see; then it stays at `lowest`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from torch import Tensor

from napari_ambient.samplers import Denoise, Noise, dpm_sde, ladder

from .problem import Linearised, PosteriorError, Problem, geometric, numbered

DEGREE = 2.5  # of the polynomials, per √(largest b); more changes nothing: later stages mend what an early one blurs
LEAST_DEGREE = 8
ENOUGH = 4  # calls of a prior step for the matched rule, which with fewer extrapolates too far
SHALLOW = 0.1  # last level of a prior step before 0, over its first

Array = NDArray[np.float64]


def split_gibbs(
    denoise: Denoise,
    problem: Problem,
    *,
    steps: int,
    noise: Noise,
    high: float = 10.0,
    lowest: float = 0.3,
    hold: int | None = None,
    calls: int = 6,
    average: bool = False,
    likelihood_noise: Literal["matched", "added"] = "matched",
    start: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Draw from the posterior by split Gibbs; for Gaussian and Poisson-Gaussian likelihoods.

    For Gaussian priors and likelihoods the law of the draws is the posterior's, up to the number of stages and calls;
    for the camera's noise it is linearised about the current draw.

    Parameters
    ----------
    denoise : Denoise
        The prior, D(z, sigma) for sigma from `high` to a tenth of `lowest`, in scaled intensity.
    problem : Problem
        The measurement.
    steps : int
        Stages in all, each a likelihood step and a prior step.
    noise : Noise
        Source of all that is random; called with the running number of the draw.
    high : float
        First ρ, in scaled intensity: as large as what the operator hides. 10 for blurs; for holes the contrast of the
        structure in them.
    lowest : float
        Last ρ, in scaled intensity, where the photon noise of one exposure is 1: not below what the prior knows, and
        not above the measurement's own level. The linearisation is the better the smaller it is.
    hold : int or None
        How many of the stages stay at `lowest`; a third by default. These are draws from the posterior, each close to
        the one before.
    calls : int
        Calls of the denoiser in each prior step; with six the draws' variance is right within some percent, with
        four it is high by 5 to 14 %, with three low by 40 %.
    average : bool
        Yield, from the first stage at `lowest` on, the mean of the draws so far: the posterior mean.
    likelihood_noise : {"matched", "added"}
        "matched": c(b) = max(1, b). "added": c(b) = 1 + b, plain PnP-DM, for comparison.
    start : Tensor, optional
        First z; by default `Problem.guess`.

    Yields
    ------
    stage : int
        Number of the stage, from 0.
    z : Tensor, shape (B, C, [Z,] Y, X)
        The draw, in scaled intensity; the last is the one to use.

    Raises
    ------
    PosteriorError
        If the stages or levels make no sense.
    """
    hold = steps // 3 if hold is None else hold
    if not 0 <= hold < steps or calls < 1:
        raise PosteriorError(f"steps {steps}, hold {hold}, calls {calls}; give 0 ≤ hold < steps and a call or more")
    if likelihood_noise not in ("matched", "added"):
        raise PosteriorError(f"likelihood_noise is {likelihood_noise!r}; choose matched or added")
    draw = numbered(noise)
    rule: Literal["midpoint", "matched"] = "matched" if calls >= ENOUGH else "midpoint"
    levels = geometric(high, lowest, steps - hold) + (lowest,) * hold
    z = problem.guess() if start is None else start
    total, number = torch.zeros_like(z), 0
    for stage, rho in enumerate(levels):
        u = likelihood_step(problem.linearise(z), z, rho, draw, likelihood_noise)
        for _, z in dpm_sde(  # noqa: B007
            denoise, u, ladder(rho, SHALLOW * rho, calls), lambda _, like: draw(like), rule=rule
        ):
            pass
        if average and stage >= steps - hold - 1:
            total, number = total + z, number + 1
            yield stage, total / number
        else:
            yield stage, z


def likelihood_step(
    near: Linearised,
    z: Tensor,
    rho: float,
    draw: Callable[[Tensor], Tensor],
    likelihood_noise: Literal["matched", "added"] = "matched",
) -> Tensor:
    """Draw u given z and the counts.

    Parameters
    ----------
    near : Linearised
        The problem about z.
    z : Tensor, shape (B, C, [Z,] Y, X)
        Draw of the clean image, in scaled intensity.
    rho : float
        Distance of u from z, in scaled intensity.
    draw : callable
        like -> standard normals.
    likelihood_noise : {"matched", "added"}
        See `split_gibbs`.

    Returns
    -------
    Tensor, shape of `z`
    """
    one, two = draw(z), draw(near.residual)
    # a little coarse, so that few polynomials are fitted and a neighbour's light does not change them
    bounds = [2 ** (math.ceil(4 * math.log2(rho**2 * b)) / 4) for b in near.bound().tolist()]

    def apply(w: Tensor) -> Tensor:
        return rho**2 * near.forward(near.adjoint(w))

    if likelihood_noise == "added":
        rest = two
        weight = _inverse_of_sum
    else:
        rest = polynomial(apply, two, bounds, _root_of_rest, 0)
        weight = _inverse_of_larger
    surprise = near.residual - rho * near.forward(one) - rest
    if likelihood_noise == "added" or max(bounds) > 1:
        surprise = polynomial(apply, surprise, bounds, weight, 1)
    return z + rho * one + rho**2 * near.adjoint(surprise)


def polynomial(
    apply: Callable[[Tensor], Tensor],
    v: Tensor,
    bounds: list[float],
    function: Callable[[Array], Array],
    emphasis: int,
) -> Tensor:
    """Give f(B) v by Chebyshev's recurrence, for each sample over its own range of eigenvalues [0, bound]."""
    fits = [fit(function, bound, emphasis) for bound in bounds]
    degree = max(len(f) for f in fits)
    view = (-1,) + (1,) * (v.ndim - 1)
    table = torch.tensor([[*f, *[0.0] * (degree - len(f))] for f in fits], dtype=v.dtype, device=v.device)
    scale = torch.tensor([2 / b for b in bounds], dtype=v.dtype, device=v.device).reshape(view)
    before, now = v, scale * apply(v) - v
    result = table[:, 0].reshape(view) * before + table[:, 1].reshape(view) * now
    for n in range(2, degree):
        before, now = now, 2 * (scale * apply(now) - now) - before
        result = result + table[:, n].reshape(view) * now
    return result


@functools.lru_cache(maxsize=256)
def fit(function: Callable[[Array], Array], bound: float, emphasis: int) -> tuple[float, ...]:
    """Fit Chebyshev coefficients on [0, bound], with weights max(1, b)^emphasis.

    c(B)⁻¹ needs the emphasis: in the end it is multiplied by B.
    """
    degree = max(LEAST_DEGREE, math.ceil(DEGREE * math.sqrt(bound)))
    nodes = np.cos((np.arange(8 * degree) + 0.5) * np.pi / (8 * degree))
    b = (nodes + 1) * bound / 2
    weight = np.maximum(1, b) ** emphasis
    basis = chebyshev.chebvander(nodes, degree) * weight[:, None]
    return tuple(np.linalg.lstsq(basis, function(b) * weight, rcond=None)[0].tolist())


def _root_of_rest(b: Array) -> Array:
    return np.sqrt(np.maximum(1 - b, 0))


def _inverse_of_larger(b: Array) -> Array:
    return 1 / np.maximum(1, b)


def _inverse_of_sum(b: Array) -> Array:
    return 1 / (1 + b)
