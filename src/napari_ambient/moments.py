"""Mean and standard deviation of draws, of which the first two are mates: the same noise with opposite signs.

A draw is nearly linear in its own noise, so that two mates lie on opposite sides of the posterior mean and their
average almost is that mean (antithetic variates, Hammersley & Morton 1956). Measured in split Gibbs, 5 photo-electrons
per voxel behind a blur of 1.5 and 3 pixels: correlation ρ of mates -0.98 and -0.96; the mean of two mates 27.78 and
24.42 dB, of eight independent draws 27.66 and 24.34. Each mate is a fair draw by itself.

More pairs would say little more of the mean and half as much of the spread, so the others are independent. With ρ
estimated over the whole image, the mean weighs the pair and the n - 2 others by their variances,

    m = (w (x₁ + x₂)/2 + Σ xᵢ) / (w + n - 2),    w = 2/(1 + ρ),    Var m = σ² r,  r = 1/(w + n - 2)

and since m is the best linear estimate, Cov(xᵢ, m) = Var m for each of them, the spread of the n - 1 independent ones
(x₁, x₃, …, xₙ) about it is

    σ² = Σ (xᵢ - m)² / ((n - 1)(1 - r))

`uncertainty.py` uses it for mean and standard deviation. `Spread` corrects the latter by a power law and a bend,

    s' = f s (s / s₀)^(b - 1) c(s)

which makes the spread that is claimed larger or smaller (f), grow faster or slower with itself (b), and, where the data
say more, neither (c, given at some s and straight in log s between them).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

USUAL = -0.9  # correlation of mates where two draws cannot tell
CLOSEST = -0.999


@dataclass(frozen=True)
class Spread:
    """A correction of error bars, and what the data said of them.

    Parameters
    ----------
    factor : float
        By how much the claimed standard deviation is to be multiplied where it is `claimed`; 1 where it is right.
    power : float
        How the right standard deviation grows with the claimed one: 1 in proportion; above 1 small ones are too large
        beside large ones, below 1 too small.
    error : float
        Root mean square error of the mean of draws, photo-electrons, as the data measure it.
    claimed : float
        Root mean square of the claimed standard deviation, photo-electrons.
    uncertainty, power_uncertainty : float
        Standard errors of the factor and of the power.
    source : str
        What it was measured by, in words.
    bend : tuple of (float, float)
        Claimed standard deviations, photo-electrons, rising, and what the right ones are there in units of the power
        law's; none where that is all that the data tell.
    """

    factor: float
    power: float = 1.0
    error: float = 0.0
    claimed: float = 1.0
    uncertainty: float = 0.0
    power_uncertainty: float = 0.0
    source: str = "given"
    bend: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if not (0 < self.factor < 100 and 0 < self.power < 10 and 0 < self.claimed < np.inf):
            raise ValueError(
                f"spread has factor {self.factor}, power {self.power} and claimed {self.claimed}; factors of the "
                "standard deviation are above 0 and below 100 (1: none), powers above 0 and below 10 (1: none)"
            )
        at = [each for each, _ in self.bend]
        if at != sorted(set(at)) or any(not (0 < each < np.inf and 0 < by < 100) for each, by in self.bend):
            raise ValueError(
                f"spread has the bend {self.bend}; give pairs of a standard deviation, rising from one to the next, "
                "and a factor, above 0"
            )

    def of(self, std: NDArray[np.floating]) -> Array:
        """Give the factor for each claimed standard deviation, photo-electrons; within 1/30 and 30 of `factor`."""
        ratio = np.maximum(np.asarray(std, dtype=np.float64), 1e-12) / self.claimed
        factors: Array = self.factor * np.clip(ratio ** (self.power - 1), 1 / 30, 30)
        if self.bend:
            at, by = np.array(self.bend).T
            factors *= np.interp(np.log(ratio), np.log(at / self.claimed), by)
        return factors

    def to_dict(self) -> dict[str, Any]:
        """Give what a record needs."""
        return asdict(self)

    def describe(self) -> str:
        """Say it in words."""
        said = f"error bars multiplied by {self.factor:.3f} ± {self.uncertainty:.3f}"
        if self.power != 1 or self.bend:
            low, high = (float(self.of(np.array([self.claimed * side]))[0]) for side in (0.5, 2.0))
            said += f" ({low:.3f} where they were half as large as usual, {high:.3f} where twice)"
        return f"{said}, by {self.source}"


class Moments:
    """Running mean and standard deviation of the draws of one image, in their order.

    Parameters
    ----------
    mates : bool
        Whether the second draw is the mate of the first; otherwise all are independent.
    """

    def __init__(self, *, mates: bool = True) -> None:
        self.mates = mates
        self.count = 0
        self._first: Array = np.zeros(0)
        self._second: Array | None = None
        self._mean: Array = np.zeros(0)  # of the independent ones, with Welford's sum of squares about it
        self._squares: Array = np.zeros(0)

    def add(self, draw: NDArray[np.floating]) -> None:
        """Take in the next draw.

        Parameters
        ----------
        draw : ndarray
            Of the same shape each time.
        """
        self.count += 1
        if self.count == 1:
            self._first = np.asarray(draw, dtype=np.float64)
            self._mean, self._squares = self._first.copy(), np.zeros_like(self._first)
        elif self.count == 2 and self.mates:
            self._second = np.asarray(draw, dtype=np.float64)
        else:
            difference = draw - self._mean
            self._mean += difference / self.independent
            self._squares += difference * (draw - self._mean)

    @property
    def independent(self) -> int:
        """How many of the draws are independent of each other."""
        return self.count - (self._second is not None)

    @property
    def correlation(self) -> float:
        """ρ of the mates, over the whole image: -0.999 to 0."""
        if self._second is None:
            return 0.0
        if self.independent < 2:
            return USUAL
        apart = float(np.mean(np.square(self._first - self._second)))
        variance = float(np.mean(self._squares)) / (self.independent - 1)
        return float(np.clip(1 - apart / max(2 * variance, 1e-30), CLOSEST, 0.0))

    @property
    def share(self) -> float:
        """Variance of the mean, in units of a draw's: r."""
        return self._estimate()[1]

    def mean(self) -> Array:
        """Give the estimate of the posterior mean."""
        return self._estimate()[0]

    def std(self) -> Array:
        """Give the estimate of the posterior standard deviation; of two draws or more."""
        if self.count < 2:
            raise ValueError(f"{self.count} draws have no standard deviation; take two or more")
        mean, share = self._estimate()
        n = self.independent
        result: Array = np.sqrt((self._squares + n * np.square(self._mean - mean)) / (n * (1 - share)))
        return result

    def _estimate(self) -> tuple[Array, float]:
        """Give the mean and its variance, in units of a draw's."""
        n = self.independent
        if self._second is None:
            return self._mean, 1 / max(n, 1)
        weight = 2 / (1 + self.correlation)
        pair = (self._first + self._second) / 2
        others = n * self._mean - self._first
        total = weight + n - 1
        return (weight * pair + others) / total, 1 / total
