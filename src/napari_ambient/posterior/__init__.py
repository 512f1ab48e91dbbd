"""Draw images from the posterior of a measurement through an operator, or find one that fits; one method per file.

    split_gibbs   draws; no derivatives; photon and read noise; the default
    mmps          draws; a denoiser that has seen the measurement; needs the network's derivative
    diffpir       a point estimate, fast; Gaussian noise
    dps           for comparison; its spread is no error bar
    red_diff      a point estimate, for comparison; no uncertainty at all

`problem.py` holds what they share: counts, operator, likelihood, and the link from scaled to linear intensity. They
know a denoiser D(x, sigma) and nothing of networks, tiles or files; restoring through an operator calls
`sample_posterior`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from napari_ambient.choices import PosteriorName
from napari_ambient.samplers import Denoise, Noise

from .diffpir import diffpir
from .dps import dps
from .mmps import mmps, mmps_denoiser
from .problem import (
    Gaussian,
    Likelihood,
    LinearLink,
    Link,
    Operator,
    PoissonGaussian,
    PosteriorError,
    Problem,
    SquareLink,
)
from .red_diff import red_diff
from .split_gibbs import split_gibbs

__all__ = [
    "DRAWS",
    "METHODS",
    "Gaussian",
    "Likelihood",
    "LinearLink",
    "Link",
    "Method",
    "MethodName",
    "Operator",
    "PoissonGaussian",
    "PosteriorError",
    "Problem",
    "SquareLink",
    "diffpir",
    "dps",
    "mmps",
    "mmps_denoiser",
    "red_diff",
    "sample_posterior",
    "split_gibbs",
]

MethodName = PosteriorName


Method = Callable[..., Iterator[tuple[int, Tensor]]]
"""method(denoise, problem, *, steps, noise, **options) -> (stage, z); the last z is the answer."""

METHODS: dict[MethodName, Method] = {
    "split_gibbs": split_gibbs,
    "mmps": mmps,
    "diffpir": diffpir,
    "dps": dps,
    "red_diff": red_diff,
}
DRAWS: frozenset[MethodName] = frozenset({"split_gibbs", "mmps"})
"""Methods whose answers are draws from the posterior, so that their spread is an error bar."""


def sample_posterior(
    method: MethodName, denoise: Denoise, problem: Problem, *, steps: int, noise: Noise, **options: Any
) -> Iterator[tuple[int, Tensor]]:
    """Restore by a named method.

    Parameters
    ----------
    method : {"split_gibbs", "mmps", "diffpir", "dps", "red_diff"}
        See above; only the first two draw from the posterior.
    denoise : Denoise
        The prior, D(z, sigma), in scaled intensity.
    problem : Problem
        The measurement.
    steps : int
        Stages of split Gibbs (12 to 24; each several calls of the denoiser), noise levels of the others.
    noise : Noise
        Source of all that is random; called with the running number of the draw, whose order is fixed.
    **options
        Passed to the method: `high` and `lowest` noise levels, `start`, and what its own docstring names.

    Returns
    -------
    iterator of (int, Tensor)
        Number of the stage and image (B, C, [Z,] Y, X), in scaled intensity; the last is the answer.

    Raises
    ------
    PosteriorError
        If there is no such method, or it cannot work with this likelihood or denoiser.
    """
    if method not in METHODS:
        raise PosteriorError(f"there is no method {method!r}; choose one of {', '.join(METHODS)}")
    return METHODS[method](denoise, problem, steps=steps, noise=noise, **options)
