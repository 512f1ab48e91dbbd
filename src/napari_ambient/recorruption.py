"""Corrupt further what is already noisy: the two exact forms behind ambient training.

Camera counts y become photo-electrons ``k = (y - zero) / gain``, where ``zero`` is where the photon-transfer line
crosses zero, so that Var(k | x) = E[k | x]. The scaled intensity, the network's domain, is the generalised Anscombe
transform ``z = 2 √(k + 3/8)``: there photon noise has standard deviation one, the measurement's level sigma_y.

*Thinning* (the Poisson twin of Daras et al. 2024). k₁ ~ Binomial(k, p) and k₂ = k - k₁ are independent given x, so
E[k₂ | k₁] = (1 - p) E[x | k₁]. The network sees z = 2 √((k₁ + 3/8)/p), at level sigma = 1/√p, and learns k₂ with the
Poisson likelihood. Real k are not whole numbers; `splitting.py` says how they are split.

*Gaussian* (Daras, Dimakis & Daskalakis 2024, arXiv 2404.10177, for any known covariance S of z). Add
e ~ N(0, sigma² I - S) to z and predict z from x_t by D + (S/sigma²)(x_t - D), for sigma² at least S's largest
eigenvalue. With S = V^½ C V^½, V the stabilised variance of each voxel (it is not 1 below about 3 photons) and C the
noise's autocorrelation with largest eigenvalue c:  e = √(sigma² - c V) e₁ + V^½ (c I - C)^½ e₂.

Both draw (x_t, what to predict) at a level sigma and give the loss of a prediction; `objectives/ambient.py` trains
with them and knows nothing of which is which.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .choices import Form
from .noise import NoiseModel, stabilising_table
from .splitting import Lag, pulse_shape_of, randn_like, split

ANSCOMBE = 3 / 8
CLUSTERED = 0.25  # of the fractions of k, above which whole photo-electrons show
READ_SHOWS = 0.05  # photo-electrons²: less does not hide whole photo-electrons
DIM = 1.5  # photo-electrons per voxel, below which the levels are drawn nearer to the boundary
DARKEST = 0.1  # photo-electrons: the least variance of a Gaussian likelihood
FLOOR = 1e-3  # photo-electrons: keeps the Poisson likelihood finite where nothing was counted


@dataclass(frozen=True)
class Further:
    """A measurement, corrupted further.

    Parameters
    ----------
    x_t : Tensor, shape (B, C, [Z,] Y, X)
        What the denoiser sees, in scaled intensity.
    sigma : Tensor, shape (B,)
        Its noise level, in scaled intensity.
    remainder : Tensor
        What the measurement still tells that x_t does not: k₂ for thinning (photo-electrons), z itself for the
        Gaussian form.
    variance : Tensor or None
        Stabilised variance V of each voxel (Gaussian form).
    """

    x_t: Tensor
    sigma: Tensor
    remainder: Tensor
    variance: Tensor | None = None


@dataclass(frozen=True)
class Quanta:
    """How a detector counts.

    Parameters
    ----------
    read_variance : float
        Variance of the read noise, photo-electrons².
    pulse_shape : float or None
        Shape of the Gamma distribution of its pulse heights; None where every photo-electron counts the same.
    photons : float or None
        Typical photo-electrons per voxel.
    lag : float
        Correlation of the noise of neighbours along X.
    """

    read_variance: float = 0.0
    pulse_shape: float | None = None
    photons: float | None = None
    lag: float = 0.0


class Recorruption(ABC):
    """One way to corrupt further. All tensors are (B, C, [Z,] Y, X); `valid` is False at voxels not to be trusted."""

    corruption: Literal["photon", "gaussian"]
    sigma_y: float
    """The measurement's own noise level, in scaled intensity: the lowest that data alone can teach."""
    near: tuple[float, float] = (1.118, 1.414)
    """Levels that teach the boundary best, in units of sigma_y."""

    @abstractmethod
    def measure(self, counts: Tensor, valid: Tensor | None = None) -> Tensor:
        """Show the measurement itself to the denoiser: photo-electrons to scaled intensity."""

    @abstractmethod
    def recorrupt(
        self,
        counts: Tensor,
        valid: Tensor | None,
        sigma: Tensor,
        generator: torch.Generator | None,
        upright: Tensor | None = None,
    ) -> Further:
        """Corrupt photo-electrons further, to the levels `sigma` (B,), each above `sigma_y`.

        Where `upright` (B,) is False the camera's X lies along the last axis but one; None: nowhere.
        """

    @abstractmethod
    def loss(self, prediction: Tensor, further: Further) -> Tensor:
        """Give the loss per voxel of the denoiser's prediction; its expectation is least at E[clean | x_t]."""

    @abstractmethod
    def agreement(self, prediction: Tensor, taught: Tensor) -> Tensor:
        """Give the distance per voxel of a prediction from another's answers; least at the mean of those answers."""

    @abstractmethod
    def photons(self, prediction: Tensor) -> Tensor:
        """Turn a prediction (scaled intensity) into expected photo-electrons."""

    @abstractmethod
    def scaled(self, photons: Tensor) -> Tensor:
        """Turn expected photo-electrons into the prediction that stands for them (undoes `photons`)."""

    @abstractmethod
    def fresh(self, prediction: Tensor, counts: Tensor) -> Tensor:
        """Give the loss per voxel of a prediction that has not seen the counts; least at E[clean | what it saw]."""

    @abstractmethod
    def surprise(self, counts: Tensor, expected: Tensor) -> Tensor:
        """Give the negative log-likelihood of photo-electrons per voxel, in nats, up to what depends on them alone."""


class Thinning(Recorruption):
    """Thinning of photo-electrons into two parts, independent given the light (`splitting.py`).

    Parameters
    ----------
    read_variance : float
        Variance of the read noise, photo-electrons².
    pulse_shape : float
        Shape of the Gamma distribution of the detector's pulse heights; infinite where all are alike.
    photons : float
        Typical photo-electrons per voxel. In very dim images what can be told changes quickly with the exposure, so
        D is taught nearer to the boundary, at p in [0.6, 0.9] (measured after 1500 to 3000 steps: MSE 35.0 instead
        of 36.1 at 0.7 photo-electrons, the same at 2.9); where there is more light the labels' noise, which grows as
        1/(1 - p), decides, and [0.5, 0.8] is better (5.6 photo-electrons: +0.4 dB).
    lag : float
        Correlation of the noise of neighbours along X, by a scanning detector's electronics.
    pilot : float
        Standard deviation, in voxels, of the Gaussian that blurs the measurement into the pilot estimate.
    """

    corruption = "photon"
    sigma_y = 1.0

    def __init__(
        self,
        read_variance: float = 0.0,
        pulse_shape: float = math.inf,
        *,
        photons: float = math.inf,
        lag: float = 0.0,
        pilot: float = 2.0,
    ) -> None:
        if not read_variance >= 0:
            raise ValueError(f"read_variance is {read_variance}; it must be 0 or more, in photo-electrons²")
        if not pulse_shape >= 1:
            raise ValueError(f"pulse_shape is {pulse_shape}; it must be 1 or more (infinite: all pulses alike)")
        self.read_variance, self.pulse_shape, self._pilot = read_variance, pulse_shape, pilot
        self._lag = Lag(lag) if lag else None
        if photons < DIM:
            self.near = (1.054, 1.29)

    def measure(self, counts: Tensor, valid: Tensor | None = None) -> Tensor:
        """See `Recorruption.measure`."""
        return stabilise(fill(counts, valid), 1.0)

    def recorrupt(
        self,
        counts: Tensor,
        valid: Tensor | None,
        sigma: Tensor,
        generator: torch.Generator | None,
        upright: Tensor | None = None,
    ) -> Further:
        """See `Recorruption.recorrupt`; sigma = 1/√p."""
        exposure = _per_sample(sigma.square().reciprocal(), counts)
        first = self.part(counts, fill(counts, valid), exposure, generator, upright)
        return Further(stabilise(fill(first, valid), exposure), sigma, counts - first)

    def part(
        self,
        counts: Tensor,
        filled: Tensor,
        exposure: Tensor,
        generator: torch.Generator | None,
        upright: Tensor | None = None,
    ) -> Tensor:
        """Draw k₁ of photo-electrons, independent of what it leaves.

        Parameters
        ----------
        counts : Tensor, shape (B, C, [Z,] Y, X)
            Photo-electrons k.
        filled : Tensor, same shape
            The same, without hot pixels: blurred, it is the pilot.
        exposure : Tensor, broadcastable
            p, in (0, 1).
        generator : torch.Generator, optional
            Source of the draws.
        upright : Tensor of bool, shape (B,), optional
            See `Recorruption.recorrupt`.

        Returns
        -------
        Tensor
        """

        def parted(k: Tensor, seen: Tensor) -> Tensor:
            return split(
                k,
                blur(seen, self._pilot),
                exposure,
                read_variance=self.read_variance,
                pulse_shape=self.pulse_shape,
                generator=generator,
            )

        if self._lag is None:
            return parted(counts, filled)
        lies = None if upright is None or bool(upright.all()) else ~_per_sample(upright, counts).bool()

        def along(change: Callable[[Tensor], Tensor], k: Tensor) -> Tensor:
            changed = change(k)
            return changed if lies is None else torch.where(lies, change(k.mT).mT, changed)

        # the holes stay what they are: a hot pixel must not smear into its neighbours
        white = along(self._lag.undone, filled)
        first = along(self._lag.applied, parted(white, white))
        return torch.where(counts == filled, first, exposure * counts)

    def loss(self, prediction: Tensor, further: Further) -> Tensor:
        """Poisson deviance of k₂ given the rate (1 - p) λ, per voxel."""
        exposure = _per_sample(further.sigma.square().reciprocal(), prediction)
        rate = self.photons(prediction)
        return (1 - exposure) * rate - further.remainder * rate.log()

    def agreement(self, prediction: Tensor, taught: Tensor) -> Tensor:
        """Poisson deviance of the prediction's rate from the taught rate (zero where they agree)."""
        rate, goal = self.photons(prediction), self.photons(taught)
        return rate - goal - goal * (rate / goal).log()

    def photons(self, prediction: Tensor) -> Tensor:
        """λ = z²/4: the Poisson likelihood is equally curved everywhere in this parametrisation."""
        return prediction.square() / 4 + FLOOR

    def scaled(self, photons: Tensor) -> Tensor:
        """Z = 2 √λ."""
        return 2 * (photons - FLOOR).clamp_min(0).sqrt()

    def fresh(self, prediction: Tensor, counts: Tensor) -> Tensor:
        """Poisson deviance of all of k."""
        return self.surprise(counts, self.photons(prediction))

    def surprise(self, counts: Tensor, expected: Tensor) -> Tensor:
        """Poisson, with what read noise adds counted as light: the variance of k is its mean."""
        rate = expected.clamp_min(0) + FLOOR
        return rate - counts * rate.log()


class Gaussian(Recorruption):
    """Gaussian recorruption after the stabilising transform, with measured variance and known correlation.

    Parameters
    ----------
    read : float
        Read noise, photo-electrons: chooses the stabilising transform's table.
    correlation : ndarray or None
        Noise autocorrelation, odd-sized, centre 1; over (Y, X) or (Z, Y, X).
    pilot : float
        Standard deviation, in voxels, of the Gaussian that blurs the measurement into the pilot estimate from which
        the stabilised variance of each voxel is looked up.
    """

    corruption = "gaussian"

    def __init__(
        self, read: float = 0.0, correlation: NDArray[np.float64] | None = None, *, pilot: float = 2.0
    ) -> None:
        levels, means, variances = stabilising_table(read)
        grid = np.linspace(means[0], means[-1], 4096)
        self._inverse = torch.tensor(np.interp(grid, means, levels), dtype=torch.float32)
        self._low, self._high = float(means[0]), float(means[-1])
        root = np.linspace(0.0, math.sqrt(levels[-1]), 4096)
        self._variance = torch.tensor(np.interp(root**2, levels, variances), dtype=torch.float32)
        self._root_high = float(root[-1])
        self._pilot = pilot
        self.correlation = correlation
        self._radius = 0 if correlation is None else max(correlation.shape) // 2
        self._peak = 1.0 if correlation is None else float(spectrum(correlation, (64,) * correlation.ndim).max())
        self.sigma_y = math.sqrt(self._peak * float(variances.max()))

    def measure(self, counts: Tensor, valid: Tensor | None = None) -> Tensor:
        """See `Recorruption.measure`."""
        return stabilise(fill(counts, valid), 1.0)

    def variance(self, counts: Tensor) -> Tensor:
        """Stabilised variance V of each voxel, from a blurred pilot of the photo-electrons."""
        return self.variance_at(blur(counts, self._pilot))

    def variance_at(self, photons: Tensor) -> Tensor:
        """Variance of the scaled intensity at known expected photo-electrons, by the table."""
        return _look_up(self._variance, photons.clamp_min(0).sqrt() / self._root_high)

    def recorrupt(
        self,
        counts: Tensor,
        valid: Tensor | None,
        sigma: Tensor,
        generator: torch.Generator | None,
        upright: Tensor | None = None,
    ) -> Further:
        """See `Recorruption.recorrupt`; the correlation, taken for the same along Y and X, needs no `upright`."""
        filled = fill(counts, valid)
        return self.recorrupt_scaled(stabilise(filled, 1.0), self.variance(filled), sigma, generator)

    def recorrupt_scaled(
        self, z: Tensor, variance: Tensor, sigma: Tensor, generator: torch.Generator | None = None
    ) -> Further:
        """Corrupt scaled intensity further: add e of covariance sigma² I - S, with S = V^½ C V^½.

        Parameters
        ----------
        z : Tensor, shape (B, C, [Z,] Y, X)
            Scaled intensity with noise of covariance S.
        variance : Tensor, shape of `z`
            V, the variance of each voxel.
        sigma : Tensor, shape (B,)
            Level wanted; sigma² at least the largest eigenvalue of S.
        generator : torch.Generator, optional
            Source of e.

        Returns
        -------
        Further
        """
        extra = _per_sample(sigma.square(), z) - self._peak * variance
        noise = extra.clamp_min(0).sqrt() * randn_like(z, generator)
        if self.correlation is not None:
            noise = noise + variance.sqrt() * self._filtered(z, generator)
        return Further(z + noise, sigma, z, variance)

    def loss(self, prediction: Tensor, further: Further) -> Tensor:
        """‖D + (S/sigma²)(x_t - D) - z‖² / max(α, .05), α = 1 - V/sigma²: the weight that α² alone would starve."""
        assert further.variance is not None
        level = _per_sample(further.sigma.square(), prediction)
        alpha = 1 - further.variance / level
        residual = prediction + self.apply_covariance(further.x_t - prediction, further.variance) / level
        return (residual - further.remainder).square() / alpha.clamp_min(0.05)

    def apply_covariance(self, x: Tensor, variance: Tensor) -> Tensor:
        """Give S x = V^½ C V^½ x."""
        if self.correlation is None:
            return variance * x
        root = variance.sqrt()
        return root * _correlate(root * x, self.correlation)

    def agreement(self, prediction: Tensor, taught: Tensor) -> Tensor:
        """Squared difference."""
        return (prediction - taught).square()

    def photons(self, prediction: Tensor) -> Tensor:
        """Exact unbiased inverse of the transform, by table; above it λ = z²/4 - 1/8."""
        inside = _look_up(self._inverse, (prediction - self._low) / (self._high - self._low))
        return torch.where(prediction > self._high, prediction.square() / 4 - 0.125, inside)

    def scaled(self, photons: Tensor) -> Tensor:
        """E[z | λ] to second order."""
        return 2 * (photons + 0.125).clamp_min(0).sqrt()

    def fresh(self, prediction: Tensor, counts: Tensor) -> Tensor:
        """Squared distance from z, whose mean is what a prediction stands for."""
        return (prediction - stabilise(counts, 1.0)).square()

    def surprise(self, counts: Tensor, expected: Tensor) -> Tensor:
        """Gaussian, of the variance that a blurred pilot of the counts gives."""
        return (counts - expected).square() / (2 * blur(counts, self._pilot).clamp_min(DARKEST))

    def _filtered(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Noise of covariance c I - C, made on a larger torus so that opposite edges are not tied together."""
        assert self.correlation is not None
        dims = self.correlation.ndim
        sizes = [n + 2 * self._radius for n in like.shape[-dims:]]
        transfer = np.sqrt(np.maximum(self._peak - spectrum(self.correlation, tuple(sizes)), 0.0))
        white = randn_like(like.new_empty((*like.shape[:-dims], *sizes)), generator)
        axes = tuple(range(-dims, 0))
        gain = torch.as_tensor(transfer, dtype=like.dtype, device=like.device)
        noise: Tensor = torch.fft.ifftn(torch.fft.fftn(white, dim=axes) * gain, dim=axes).real
        for axis, size in zip(axes, like.shape[-dims:], strict=True):
            noise = noise.narrow(axis, 0, size)
        return noise


def choose_form(noises: Sequence[NoiseModel], form: Form = "auto") -> Literal["thinning", "gaussian"]:
    """Settle on one form for all noise models of a training: thinning only if every fit allows it."""
    if form not in ("auto", "thinning", "gaussian"):
        raise ValueError(f"form is {form!r}; choose auto, thinning or gaussian")
    if form != "auto":
        return form
    return "thinning" if all(noise.form == "thinning" for noise in noises) else "gaussian"


def choose_recorruption(
    noises: Sequence[NoiseModel], form: Form = "auto", *, quanta: Quanta | None = None
) -> Recorruption:
    """Give the recorruption that the fitted noise models of a training ask for.

    Parameters
    ----------
    noises : sequence of NoiseModel
        The fits, one per channel and stack.
    form : {"auto", "thinning", "gaussian"}
        Overrule the fits.
    quanta : Quanta, optional
        How the detector counts, for thinning (`look_at_quanta`); by default with the read noise of the fits, and
        pulses all alike.

    Returns
    -------
    Recorruption
        Its read noise and correlation are the medians over the fits.
    """
    if choose_form(noises, form) == "thinning":
        quanta = quanta or Quanta(read_variance_of(noises) or 0.0)
        shape, photons = (math.inf if v is None else v for v in (quanta.pulse_shape, quanta.photons))
        return Thinning(quanta.read_variance, shape, photons=photons, lag=quanta.lag)
    correlated = [n.correlation for n in noises if n.correlation is not None]
    same = [c for c in correlated if c.shape == correlated[0].shape]
    # few distinct tables: the transform hardly depends on the third digit of the read noise
    read = math.sqrt(read_variance_of(noises) or (quanta.read_variance if quanta else 0.0))
    return Gaussian(float(f"{read:.2g}"), np.median(same, axis=0) if same else None)


def read_variance_of(noises: Sequence[NoiseModel]) -> float | None:
    """Median read variance of some fits, photo-electrons²; None where none knows it."""
    known = [float(np.median(np.divide(n.read_noise, n.gain))) for n in noises if n.read_noise is not None]
    return float(np.median(known)) ** 2 if known else None


def lag_of(noises: Sequence[NoiseModel]) -> float:
    """Median lag of some fits: correlation of the noise of neighbours along X."""
    return float(f"{np.median([noise.lag for noise in noises]):.2g}")


def look_at_quanta(photons: Tensor, read_variance: float | None = None, lag: float = 0.0) -> Quanta:
    """See from some counts how the detector counts: whole photo-electrons, with read noise, or uneven pulses.

    Where whole photo-electrons show, the fractions of k cluster: |E exp(2πi k)| is 1 for perfect counting and
    exp(-2π² r²) with read noise r.

    Parameters
    ----------
    photons : Tensor, shape (N, Y, X)
        Photo-electrons of some crops, without hot pixels.
    read_variance : float, optional
        Photo-electrons², where the fit knows it; else it is estimated from the counts below zero.
    lag : float
        Correlation of the noise of neighbours along X.

    Returns
    -------
    Quanta
    """
    if lag:
        photons = Lag(lag).undone(photons)
    read = read_variance_below_zero(photons) if read_variance is None else read_variance
    few = photons[(photons > 0.5) & (photons < 4)]
    light = float(photons.mean()) - read
    clustered = len(few) > 100 and float(torch.exp(2j * math.pi * (few - read)).mean().abs()) > CLUSTERED
    if clustered or read >= READ_SHOWS:
        return Quanta(read if read > 1e-3 else 0.0, None, light, lag)
    return Quanta(0.0, pulse_shape_of(photons, blur(photons, 3.0), read), light, lag)


def read_variance_below_zero(photons: Tensor) -> float:
    """Estimate the read variance from the counts below zero, which photons alone cannot make.

    Where it is dark, k = Poisson(m - r²) + r² + N(0, r²) of known mean m goes below zero by an amount that grows with
    r² from nothing (all of m is light) to that of N(m, m) (none is). No count weighs more than 4 √m, so that a few
    noisy pixels hardly change it.

    Parameters
    ----------
    photons : Tensor, shape (N, Y, X)
        Photo-electrons of some crops, without hot pixels.

    Returns
    -------
    float
        r², photo-electrons², between 0 and the mean of the darkest tenth of the voxels.
    """
    pilot = blur(photons, 3.0)
    dark = photons[pilot <= torch.quantile(pilot.flatten()[:: max(1, pilot.numel() // 10**6)], 0.1)]
    mean = float(dark.mean())
    if mean <= 0:
        return 0.0
    deepest = 4 * math.sqrt(mean)

    def amount(counts: Tensor) -> float:
        return float(counts.clamp(-deepest, 0).abs().mean())

    below = amount(dark)
    if below <= 0:
        return 0.0
    normal = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    low, high = 0.0, mean
    for _ in range(12):
        guess = (low + high) / 2
        light = torch.poisson(torch.full_like(normal, mean - guess), generator=torch.Generator().manual_seed(1))
        made = amount(light + guess + math.sqrt(guess) * normal)
        low, high = (guess, high) if made < below else (low, guess)
    return (low + high) / 2


def to_photons(values: NDArray[np.float32], noise: NoiseModel, rows: slice, columns: slice) -> NDArray[np.float32]:
    """Turn camera counts into photo-electrons above zero: ``(y - zero) / gain``.

    Parameters
    ----------
    values : ndarray, shape (..., Y, X)
        Camera counts of the region `rows` × `columns` of the camera.
    noise : NoiseModel
        The camera; per-pixel maps are cut to the region.
    rows, columns : slice
        Where the region lies on the camera.

    Returns
    -------
    ndarray of float32
        Mean and variance of each voxel are equal, but for hot pixels.
    """
    zero, gain = at(noise.zero, rows, columns), at(noise.gain, rows, columns)
    return np.asarray((values - zero) / gain, dtype=np.float32)


def from_photons(photons: NDArray[np.float32], noise: NoiseModel, rows: slice, columns: slice) -> NDArray[np.float32]:
    """Undo `to_photons`."""
    zero, gain = at(noise.zero, rows, columns), at(noise.gain, rows, columns)
    return np.asarray(zero + gain * photons, dtype=np.float32)


def at(map_: float | NDArray[np.float64], rows: slice, columns: slice) -> NDArray[np.float64]:
    """Cut a per-pixel map to a region; a single number stays as it is."""
    whole = np.asarray(map_)
    return whole[rows, columns] if whole.ndim == 2 else whole


def trusted(values: NDArray[np.float32], noise: NoiseModel, rows: slice, columns: slice) -> NDArray[np.bool_]:
    """Say which voxels to learn from and to look at: not hot, finite."""
    good = np.isfinite(values)
    if noise.hot_pixels is not None:
        good &= ~noise.hot_pixels[rows, columns]
    return good


def stabilise(counts: Tensor, exposure: Tensor | float) -> Tensor:
    """Scaled intensity z = 2 √((k + 3/8)/p) of photo-electrons counted at exposure p; noise level 1/√p."""
    return 2 * ((counts + ANSCOMBE) / exposure).clamp_min(0).sqrt()


def fill(counts: Tensor, valid: Tensor | None) -> Tensor:
    """Replace voxels not to be trusted by the mean of their trusted neighbours in the plane.

    The window grows (3, 5, 9, 17 voxels) until every hole has a neighbour; what is left becomes zero.
    """
    if valid is None or bool(valid.all()):
        return counts
    flat = counts.reshape(-1, 1, *counts.shape[-2:])
    good = valid.expand_as(counts).reshape(flat.shape)
    mask = good.to(flat.dtype)
    clean = torch.where(good, flat, torch.zeros_like(flat))
    result, missing = clean, ~good
    for radius in (1, 2, 4, 8):
        total, weight = (functional.avg_pool2d(v, 2 * radius + 1, stride=1, padding=radius) for v in (clean, mask))
        found = missing & (weight > 1e-6)
        result = torch.where(found, total / weight.clamp_min(1e-6), result)
        missing = missing & ~found
        if not bool(missing.any()):
            break
    return result.reshape(counts.shape)


def blur(x: Tensor, width: float) -> Tensor:
    """Blur the plane with a Gaussian of standard deviation `width` voxels, reflecting at the borders."""
    radius = min(math.ceil(3 * width), x.shape[-1] - 1, x.shape[-2] - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / width).square())
    kernel = kernel / kernel.sum()
    flat = functional.pad(x.reshape(-1, 1, *x.shape[-2:]), (radius,) * 4, mode="reflect")
    flat = functional.conv2d(functional.conv2d(flat, kernel.reshape(1, 1, -1, 1)), kernel.reshape(1, 1, 1, -1))
    return flat.reshape(x.shape)


def spectrum(correlation: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Power spectrum of noise with the given autocorrelation, on a periodic grid; never negative."""
    grid = np.zeros(shape)
    for index, value in np.ndenumerate(correlation):
        shifted = tuple((i - n // 2) % m for i, n, m in zip(index, correlation.shape, shape, strict=True))
        grid[shifted] += value
    return np.maximum(np.fft.fftn(grid).real, 0.0)


def _correlate(x: Tensor, correlation: NDArray[np.float64]) -> Tensor:
    """Convolve with a (symmetric) autocorrelation; zero outside."""
    kernel = torch.as_tensor(correlation, dtype=x.dtype, device=x.device)[None, None]
    padding = [n // 2 for n in correlation.shape]
    if correlation.ndim == 3:
        return functional.conv3d(x, kernel, padding=padding)
    return functional.conv2d(x.reshape(-1, 1, *x.shape[-2:]), kernel, padding=padding).reshape(x.shape)


def _look_up(table: Tensor, position: Tensor) -> Tensor:
    """Interpolate a table over [0, 1] linearly, clamped at its ends."""
    table = table.to(device=position.device, dtype=position.dtype)
    place = position.clamp(0, 1) * (len(table) - 1)
    low = place.floor().clamp_max(len(table) - 2)
    index = low.long()
    return torch.lerp(table[index], table[index + 1], place - low)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).reshape(-1, *(1,) * (like.ndim - 1))
