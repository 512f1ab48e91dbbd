"""A measurement through an operator, and what it says of an image: the likelihood that the posterior methods share.

    k = A λ(z) + noise,   Var noise = V

k are photo-electrons above zero, A the operator, λ expected photo-electrons, z the scaled intensity in which the
denoiser lives; the link λ(z) = z²/4 - offset joins the two (for closed forms: λ = z). The noise has a given variance,
or it is the camera's, V = max(A λ, floor) + read variance (Poisson-Gaussian, Foi et al. 2008), taken at the current
estimate. Near an estimate z₀ the problem is linear, in units of the noise:

    V^{-½} (k - A λ(z)) ≈ residual - J (z - z₀),   J = V^{-½} A diag(dλ/dz)

and J, its adjoint and the residual are all that the methods need (`Problem.linearise`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

import torch
from torch import Tensor

from napari_ambient.samplers import Noise

ANSCOMBE = 3 / 8
FLAT = 0.25  # least slope of the square link: in the dark z²/4 is flat, and a linear problem would know nothing of z


class PosteriorError(ValueError):
    """A measurement, a likelihood and a method do not fit together."""


class Operator(Protocol):
    """A linear operator whose answer to light of 0 or more is light of 0 or more (`operators.py` has them)."""

    def forward(self, x: Tensor, /) -> Tensor:
        """Give A x."""

    def adjoint(self, v: Tensor, /) -> Tensor:
        """Give Aᵀ v."""


class Link(Protocol):
    """How scaled intensity stands for light."""

    def light(self, z: Tensor) -> Tensor:
        """Give expected photo-electrons λ(z)."""

    def slope(self, z: Tensor) -> Tensor:
        """Give dλ/dz, above 0."""

    def scaled(self, light: Tensor) -> Tensor:
        """Give the z that stands for expected photo-electrons."""


@dataclass(frozen=True)
class LinearLink:
    """λ = z: the prior already lives in linear intensity."""

    def light(self, z: Tensor) -> Tensor:
        """See `Link.light`."""
        return z

    def slope(self, z: Tensor) -> Tensor:
        """See `Link.slope`."""
        return torch.ones_like(z)

    def scaled(self, light: Tensor) -> Tensor:
        """See `Link.scaled`."""
        return light


@dataclass(frozen=True)
class SquareLink:
    """λ = z²/4 - offset, 0 where that is negative.

    Parameters
    ----------
    offset : float
        Photo-electrons: 3/8 where z is the stabilised count itself, 0 for a denoiser whose answers read λ = z²/4.
    """

    offset: float = ANSCOMBE

    def light(self, z: Tensor) -> Tensor:
        """See `Link.light`."""
        return (z.clamp_min(0).square() / 4 - self.offset).clamp_min(0)

    def slope(self, z: Tensor) -> Tensor:
        """See `Link.slope`; at least `FLAT`."""
        return (z / 2).clamp_min(FLAT)

    def scaled(self, light: Tensor) -> Tensor:
        """See `Link.scaled`."""
        return 2 * (light + self.offset).clamp_min(0).sqrt()


@dataclass(frozen=True)
class Gaussian:
    """Noise of known variance.

    Parameters
    ----------
    variance : float or Tensor broadcastable to the counts
        Photo-electrons², above 0.
    """

    variance: float | Tensor

    def __post_init__(self) -> None:
        if not bool((torch.as_tensor(self.variance) > 0).all()):
            raise PosteriorError(f"variance is {self.variance}; it must be above 0 everywhere, in photo-electrons²")

    def at(self, expected: Tensor) -> Tensor:
        """Give the variance of every count whose expectation is given."""
        return torch.as_tensor(self.variance, dtype=expected.dtype, device=expected.device).expand_as(expected)


@dataclass(frozen=True)
class PoissonGaussian:
    """Photon noise and read noise.

    Parameters
    ----------
    read_variance : float or Tensor broadcastable to the counts
        Photo-electrons², 0 or more.
    floor : float
        Photo-electrons, above 0: light below it is taken for as noisy as it.
    """

    read_variance: float | Tensor = 0.0
    floor: float = 0.1

    def __post_init__(self) -> None:
        if not bool((torch.as_tensor(self.read_variance) >= 0).all()) or not self.floor > 0:
            raise PosteriorError(
                f"read_variance is {self.read_variance}, floor {self.floor}; the first must be 0 or more, the second "
                "above 0, in photo-electrons"
            )

    def at(self, expected: Tensor) -> Tensor:
        """Give the variance of every count whose expectation is given."""
        read = torch.as_tensor(self.read_variance, dtype=expected.dtype, device=expected.device)
        return expected.clamp_min(self.floor) + read


Likelihood = Gaussian | PoissonGaussian


@dataclass(frozen=True)
class Problem:
    """What was measured, and how.

    Parameters
    ----------
    counts : Tensor, shape (B, C, [Z,] Y, X)
        Photo-electrons above zero; finite (put 0 where nothing was measured, and a mask into the operator).
    operator : Operator
        A, on linear intensity.
    likelihood : Gaussian or PoissonGaussian
        The noise of the counts.
    link : Link
        How the prior's scaled intensity stands for linear intensity.
    """

    counts: Tensor
    operator: Operator
    likelihood: Likelihood
    link: Link = field(default_factory=SquareLink)

    def __post_init__(self) -> None:
        if not bool(torch.isfinite(self.counts).all()):
            raise PosteriorError(
                "the counts hold NaN or infinite values; put 0 there and a mask of the finite voxels into the operator"
            )

    def guess(self) -> Tensor:
        """Give a first estimate of z: λ = Aᵀk / AᵀA1, and where A sees nothing the mean of what it sees."""
        back = self.operator.adjoint(self.counts)
        seen = self.operator.adjoint(self.operator.forward(torch.ones_like(back)))
        bright = seen > 1e-3 * seen.amax()
        light = torch.where(bright, back / seen.where(bright, torch.ones_like(seen)), torch.zeros_like(back))
        dims = tuple(range(1, back.ndim))
        mean = light.sum(dims, keepdim=True) / bright.sum(dims, keepdim=True).clamp_min(1)
        return self.link.scaled(torch.where(bright, light, mean))

    def linearise(self, z: Tensor) -> Linearised:
        """Linearise about an estimate."""
        expected = self.operator.forward(self.link.light(z))
        root = self.likelihood.at(expected).sqrt()
        return Linearised(self.operator, self.link.slope(z), root, (self.counts - expected) / root)


@dataclass(frozen=True)
class Linearised:
    """The problem near an estimate, in units of the noise.

    Parameters
    ----------
    operator : Operator
        A.
    slope : Tensor, shape of z
        dλ/dz.
    root : Tensor, shape of the counts
        V^½, photo-electrons.
    residual : Tensor, shape of the counts
        V^{-½} (k - A λ).
    """

    operator: Operator
    slope: Tensor
    root: Tensor
    residual: Tensor

    def forward(self, v: Tensor) -> Tensor:
        """Give J v."""
        return self.operator.forward(self.slope * v) / self.root

    def adjoint(self, w: Tensor) -> Tensor:
        """Give Jᵀ w."""
        return self.slope * self.operator.adjoint(w / self.root)

    def bound(self) -> Tensor:
        """Bound the largest eigenvalue of JᵀJ, for each sample; shape (B,).

        For a matrix M of entries 0 or more and any v > 0 it is at most max (M v)/v (Collatz); v = dλ/dz serves, as
        then M v / v = Aᵀ V⁻¹ A (dλ/dz)², about 1 for photon noise: a photon counted tells of one photon at most.
        """
        known = self.operator.adjoint(self.operator.forward(self.slope.square()) / self.root.square())
        return known.flatten(1).amax(1).clamp_min(1e-12)


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor], right: Tensor, *, iterations: int, tolerance: float = 1e-6
) -> Tensor:
    """Solve M x = right for a symmetric positive M, each sample of the batch for itself (Hestenes & Stiefel 1952).

    Parameters
    ----------
    apply : callable
        v -> M v.
    right : Tensor, shape (B, ...)
        Right-hand side.
    iterations : int
        Applications of M at most.
    tolerance : float
        A sample rests once its residual has fallen to this share of its right-hand side.

    Returns
    -------
    Tensor
    """
    x, residual, direction = torch.zeros_like(right), right, right
    square = dot(residual, residual)
    enough = tolerance**2 * square
    for _ in range(iterations):
        going = square > enough
        if not bool(going.any()):
            break
        image = apply(direction)
        curvature = dot(direction, image)
        step = torch.where(going & (curvature > 0), square / curvature, torch.zeros_like(square))
        x = x + step * direction
        residual = residual - step * image
        before, square = square, dot(residual, residual)
        direction = residual + torch.where(before > 0, square / before, torch.zeros_like(square)) * direction
    return x


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Give the inner product of every sample, with its dimensions kept."""
    return (a * b).sum(tuple(range(1, a.ndim)), keepdim=True)


def numbered(noise: Noise) -> Callable[[Tensor], Tensor]:
    """Give a source of normals that counts its draws: the n-th is noise(n, like)."""
    number = count()
    return lambda like: noise(next(number), like)


def geometric(high: float, low: float, steps: int) -> tuple[float, ...]:
    """Give `steps` levels of equal ratios from `high` to `low`."""
    if not 0 < low <= high < math.inf or steps < 1:
        raise PosteriorError(f"levels from {high} to {low} in {steps} steps; give high ≥ low > 0 and a step or more")
    return tuple(high * (low / high) ** (i / max(steps - 1, 1)) for i in range(steps))
