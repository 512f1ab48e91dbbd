"""The noise of a camera: the photon-transfer line, its likelihood and its stabilising transform.

    Var(y) = gain * (E[y] - zero),   zero = -intercept / gain = offset - read_noise^2 / gain
    z = (2 / gain) * sqrt(gain * y + 3/8 gain^2 + intercept),   clamped at 0

The line is all that images alone can tell (Janesick, Photon Transfer, 2007). In units u = (y - zero) / gain
the counts behave like Poisson counts of mean and variance u ("shifted Poisson": Snyder et al., JOSA A 12,
1995), whatever the share of read noise. z is the generalised Anscombe transform; its exact unbiased inverse
(Makitalo & Foi, IEEE TIP 22, 2013) is a look-up table here, because the closed form explodes below E[z | no
light].

In the flow: `fit_noise` makes a NoiseModel, training and restoration use it, a prior carries it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, special

FloatArray = NDArray[np.float64]
Form = Literal["thinning", "gaussian"]

__all__ = ["NoiseModel", "choose_form", "stabilising_table"]

LONGEST_LAG = 0.3  # of the noise of neighbours along X: beyond it the noise is correlated, and cannot be thinned
_SQRT_STEP = 0.025
_LARGEST_TABULATED = 400.0
_CLASS_RATIO = 1.05


@dataclass(frozen=True, eq=False)
class NoiseModel:
    """Noise of one channel of one camera.

    Parameters
    ----------
    gain : float or ndarray, shape (Y, X)
        Slope of the photon-transfer line, camera counts (ADU) per photo-electron; the excess noise of an
        EMCCD is in it.
    intercept : float or ndarray, shape (Y, X)
        Variance that the line has at mean 0, ADU^2; usually negative, because the camera adds an offset.
    offset : float or ndarray or None
        Counts without light, ADU; None when it is not known.
    read_noise : float or ndarray or None
        Standard deviation of the counts without light, ADU; None when it is not known.
    saturation : float or None
        Largest count the camera gives, ADU; None when no voxel reached it.
    hot_pixels : ndarray of bool, shape (Y, X), or None
        Pixels that do not follow the line.
    photons : float
        Mean signal, photo-electrons per voxel: above the offset, or above `zero` where that is unknown (read
        noise then counts as light, read_noise^2 / gain^2 of it).
    correlation : ndarray or None
        Autocorrelation of the noise, odd-sized, centre 1; None for white noise.
    lag : float
        Correlation of the noise of neighbours along X alone, by a scanning detector's electronics; 0 where
        `correlation` says it, or there is none.
    form : {"thinning", "gaussian"}
        Which corruption to train with.
    reason : str
        Why that form, one sentence.
    transfer : tuple of three ndarray
        Mean (ADU), variance (ADU^2) and number of voxels of the points of the photon-transfer plot.
    method : str
        "repeats", "frames", "single", "maps" or "given".
    notes : tuple of str
        What the fit did and what it left out.
    """

    gain: float | FloatArray
    intercept: float | FloatArray
    offset: float | FloatArray | None = None
    read_noise: float | FloatArray | None = None
    saturation: float | None = None
    hot_pixels: NDArray[np.bool_] | None = None
    photons: float = float("nan")
    correlation: FloatArray | None = None
    form: Form = "thinning"
    reason: str = "given"
    transfer: tuple[FloatArray, FloatArray, FloatArray] = (np.zeros(0), np.zeros(0), np.zeros(0))
    method: str = "given"
    notes: tuple[str, ...] = ()
    lag: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be a noise model."""
        if not np.all(np.isfinite(self.gain)) or np.min(self.gain) <= 0:
            raise ValueError(f"gain is {np.min(self.gain):g} ADU per photo-electron: it must be finite and above 0.")
        if not np.all(np.isfinite(self.intercept)):
            raise ValueError("intercept must be finite.")
        if self.offset is None and self.read_noise is not None:
            raise ValueError("a read noise without an offset does not fit the line: give the offset too, or neither.")
        if self.read_noise is not None and np.min(self.read_noise) < 0:
            raise ValueError(f"read_noise is {np.min(self.read_noise):g} ADU: it must be 0 or more.")
        lag_kernel(self.lag)  # refuses what no lag can be
        if self.form not in ("thinning", "gaussian"):
            raise ValueError(f"form {self.form!r} is not known: take 'thinning' or 'gaussian'.")
        if self.correlation is not None and any(n % 2 == 0 for n in self.correlation.shape):
            raise ValueError(
                f"correlation has shape {self.correlation.shape}: every size must be odd, the centre is 1."
            )

    @classmethod
    def from_camera(
        cls,
        gain: float | FloatArray,
        offset: float | FloatArray,
        read_noise: float | FloatArray = 0.0,
        **others: Any,
    ) -> NoiseModel:
        """Noise of a camera whose numbers are known.

        Parameters
        ----------
        gain, offset, read_noise : float or ndarray, shape (Y, X)
            ADU per photo-electron, ADU, ADU.
        **others
            Any other field of the model.

        Returns
        -------
        NoiseModel
            With intercept = read_noise^2 - gain * offset.
        """
        if "form" not in others:
            read2 = float(np.mean(np.square(np.divide(read_noise, gain))))
            form, reason = choose_form(others.get("photons", float("nan")), read2, others.get("correlation"))
            others = {"form": form, "reason": reason, **others}
        intercept = np.square(read_noise) - np.multiply(gain, offset)
        return cls(gain, intercept if np.ndim(intercept) else float(intercept), offset, read_noise, **others)

    def with_line(self, gain: float, zero: float, offset: float | None = None) -> NoiseModel:
        """Give the same camera with another photon-transfer line: what the user knows better than the fit.

        Parameters
        ----------
        gain : float
            ADU per photo-electron.
        zero : float
            Level at which the line crosses zero, ADU.
        offset : float, optional
            Counts without light, ADU; at `zero` or above it, because read_noise^2 = gain * (offset - zero).

        Returns
        -------
        NoiseModel
            Of method "given", with the photons that the line makes of the same mean counts, and the form that suits
            them.

        Raises
        ------
        ValueError
            If the gain is not above 0, or the offset lies below `zero`.
        """
        if offset is not None and offset < zero:
            raise ValueError(
                f"the offset is {offset:g} ADU, below the zero of the line, {zero:g} ADU: the read noise squared, "
                "gain * (offset - zero), cannot be negative. Raise the offset, or lower the zero."
            )
        dark = self.zero if self.offset is None else self.offset
        counts = float(np.mean(dark)) + float(np.mean(self.gain)) * self.photons
        line = replace(self, gain=gain, intercept=-gain * zero, offset=None, read_noise=None, method="given")
        photons = (counts - (zero if offset is None else offset)) / gain
        read_variance = None if offset is None else (offset - zero) / gain
        form, reason = choose_form(photons, read_variance, self.correlation)
        read_noise = None if offset is None else float(np.sqrt(gain * (offset - zero)))
        return replace(line, offset=offset, read_noise=read_noise, photons=photons, form=form, reason=reason)

    def crop(self, rows: slice, columns: slice) -> NoiseModel:
        """Give the noise of a part of the frame: maps of the pixels are cut to it.

        Parameters
        ----------
        rows, columns : slice
            The part, in pixels.

        Returns
        -------
        NoiseModel
        """
        maps = ("gain", "intercept", "offset", "read_noise", "hot_pixels")
        known = {name: getattr(self, name) for name in maps}
        return replace(self, **{k: v[..., rows, columns] for k, v in known.items() if np.ndim(v)})

    @property
    def zero(self) -> float | FloatArray:
        """Level at which the variance line crosses zero, ADU."""
        zero = -np.divide(self.intercept, self.gain)
        return zero if np.ndim(zero) else float(zero)

    def with_maps(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> NoiseModel:
        """Change the per-pixel maps, as for a part of the frame, and leave what is one number for all.

        Parameters
        ----------
        change : callable
            Map (Y, X) -> map.

        Returns
        -------
        NoiseModel
        """
        names = ("gain", "intercept", "offset", "read_noise", "hot_pixels")
        maps: dict[str, Any] = {name: getattr(self, name) for name in names if np.ndim(getattr(self, name)) == 2}
        changed: dict[str, Any] = {name: change(values) for name, values in maps.items()}
        return replace(self, **changed)

    def variance(self, mean: ArrayLike) -> FloatArray:
        """Variance of a voxel (ADU^2) of expected value `mean` (ADU); never below 0."""
        return np.maximum(self.gain * (np.asarray(mean, dtype=np.float64) - self.zero), 0.0)

    def sample(self, mean: ArrayLike, rng: np.random.Generator) -> FloatArray:
        """Draw a measurement, not rounded to whole counts.

        Parameters
        ----------
        mean : array_like, shape (..., Y, X)
            Expected counts, ADU.
        rng : numpy.random.Generator
            Source of the noise.

        Returns
        -------
        ndarray of float64, same shape
            Counts with the mean and the variance of the model, clipped at saturation. With `correlation` the
            noise is Gaussian; else photon noise (shifted Poisson when offset or read noise is unknown).
        """
        mean = np.asarray(mean, dtype=np.float64)
        if self.correlation is not None:
            noise = _correlated_noise(mean.shape, self.correlation, rng)
            y = mean + np.sqrt(self.variance(mean)) * noise
        else:
            dark = self.zero if self.offset is None or self.read_noise is None else self.offset
            share, variance = lag_kernel(self.lag)
            electrons = np.maximum((mean - dark) / self.gain, 0.0) * variance
            shot = np.asarray(rng.poisson(electrons) - electrons, dtype=np.float64) / variance
            if share:
                shot = ndimage.correlate1d(shot, (share, 1 - 2 * share, share), mode="nearest")
            y = mean + self.gain * shot
            if self.read_noise is not None:
                y = y + self.read_noise * rng.standard_normal(mean.shape)
        return y if self.saturation is None else np.minimum(y, self.saturation)

    def log_likelihood(self, y: ArrayLike, mean: ArrayLike) -> FloatArray:
        """Log-density of every measured count, per voxel.

        Parameters
        ----------
        y : array_like
            Measured counts, ADU.
        mean : array_like
            Expected counts, ADU; broadcast against `y`.

        Returns
        -------
        ndarray of float64
            Thinning form: u log(nu) - nu - log Gamma(u + 1) - log(gain) with u, nu = (y, mean - zero) / gain,
            u >= 0; Gaussian form: the normal density with the variance at `mean`. Neighbours are taken as
            independent.
        """
        y = np.asarray(y, dtype=np.float64)
        mean = np.asarray(mean, dtype=np.float64)
        if self.form == "gaussian":
            # A voxel cannot know its level better than a hundredth of a photo-electron: keeps the density
            # finite.
            variance = np.maximum(self.variance(mean), 1e-2 * np.square(self.gain))
            return np.asarray(-0.5 * (np.square(y - mean) / variance + np.log(2 * np.pi * variance)))
        u = np.maximum((y - self.zero) / self.gain, 0.0)
        nu = np.maximum((mean - self.zero) / self.gain, 1e-9)
        return np.asarray(special.xlogy(u, nu) - nu - special.gammaln(u + 1) - np.log(self.gain))

    def stabilise(self, y: ArrayLike) -> FloatArray:
        """Transform counts (ADU) so that their noise has about unit variance above 3 photo-electrons."""
        y = np.asarray(y, dtype=np.float64)
        return 2.0 * np.sqrt(np.maximum((y - self.zero) / self.gain + 0.375, 0.0))

    def expected_stabilised(self, mean: ArrayLike) -> FloatArray:
        """E[stabilise(y)] for y of expected value `mean` (ADU), from the table; not stabilise(mean)."""
        return self._look_up(mean, "mean")

    def stabilised_variance(self, mean: ArrayLike) -> FloatArray:
        """Var[stabilise(y)] for y of expected value `mean` (ADU): 1 in bright light, less below 3 photons."""
        return self._look_up(mean, "variance")

    def unstabilise(self, z: ArrayLike) -> FloatArray:
        """Exact unbiased inverse: the mean (ADU) whose E[stabilise(y)] is `z`.

        Parameters
        ----------
        z : array_like, shape (..., Y, X)
            Denoised stabilised intensities, that is estimates of E[stabilise(y)].

        Returns
        -------
        ndarray of float64, same shape
            Expected counts, ADU; never below the level without light (`zero`, when offset or read noise is
            unknown).
        """
        return self._look_up(z, "inverse")

    def _look_up(self, values: ArrayLike, what: Literal["mean", "variance", "inverse"]) -> FloatArray:
        values = np.asarray(values, dtype=np.float64)
        read = np.divide(0.0 if self.read_noise is None else self.read_noise, self.gain)
        if read.ndim == 0:
            return self._from_table(values, float(read), self.gain, self.zero, read, what)
        shape = np.broadcast_shapes(values.shape, read.shape)
        values = np.broadcast_to(values, shape)
        gain = np.broadcast_to(self.gain, read.shape)
        zero = np.broadcast_to(self.zero, read.shape)
        # At equal mean u the table depends on the read noise only through the skewness: classes of 5 % do.
        index = np.floor(np.log(np.maximum(read, 1e-3) / 1e-3) / np.log(_CLASS_RATIO)).astype(np.int64)
        result = np.empty(shape)
        for k in np.unique(index):
            here = index == k
            level = 0.0 if k == 0 else 1e-3 * _CLASS_RATIO ** int(k)
            result[..., here] = self._from_table(values[..., here], level, gain[here], zero[here], read[here], what)
        return result

    @staticmethod
    def _from_table(
        values: FloatArray,
        read_class: float,
        gain: float | FloatArray,
        zero: float | FloatArray,
        read: FloatArray,
        what: Literal["mean", "variance", "inverse"],
    ) -> FloatArray:
        nu, expected, variance = stabilising_table(read_class)
        if what == "inverse":
            u = np.interp(values, expected, nu)
            # Above the table: E[z] = 2 sqrt(u + 3/8) - 1 / (4 sqrt(u)) to 1e-5, inverted by one step.
            root = 0.5 * np.maximum(values, 1.0)
            bright = np.square(root + 0.125 / root) - 0.375
            u = np.where(values > expected[-1], bright, u)
            return np.asarray(zero + gain * np.maximum(u, np.square(read)))
        u = np.maximum((values - zero) / gain, np.square(read))
        root = np.sqrt(np.maximum(u, 1.0))
        if what == "mean":
            return np.where(u > nu[-1], 2 * np.sqrt(u + 0.375) - 0.25 / root, np.interp(u, nu, expected))
        return np.where(u > nu[-1], 1.0, np.interp(u, nu, variance))

    def to_dict(self) -> dict[str, Any]:
        """Give everything as values that are either JSON-able or arrays (a bundle keeps those apart)."""
        record = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "transfer"}
        # JSON knows no NaN.
        record["photons"] = None if np.isnan(self.photons) else self.photons
        record["notes"] = list(self.notes)
        for name, values in zip(("mean", "variance", "count"), self.transfer, strict=True):
            record[f"transfer_{name}"] = np.asarray(values, dtype=np.float64)
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> NoiseModel:
        """Rebuild the model that `to_dict` described.

        Parameters
        ----------
        record : mapping
            As `to_dict` gave it; arrays may also come as nested lists.

        Returns
        -------
        NoiseModel
            The same model.
        """
        record = {"lag": 0.0, **record}  # which the first bundles did not say
        names = {field.name for field in fields(cls)} - {"transfer"}
        points = [f"transfer_{name}" for name in ("mean", "variance", "count")]
        unknown = sorted(set(record) - names - set(points))
        missing = sorted((names | set(points)) - set(record))
        if unknown or missing:
            raise ValueError(f"not the record of a NoiseModel: missing {missing}, not known {unknown}.")
        values = {name: record[name] for name in names}
        for name in ("gain", "intercept", "offset", "read_noise", "correlation"):
            if values[name] is not None and np.ndim(values[name]):
                values[name] = np.asarray(values[name], dtype=np.float64)
        if values["hot_pixels"] is not None:
            values["hot_pixels"] = np.asarray(values["hot_pixels"], dtype=bool)
        values["notes"] = tuple(values["notes"])
        values["photons"] = float("nan") if values["photons"] is None else float(values["photons"])
        mean, variance, count = (np.asarray(record[point], dtype=np.float64) for point in points)
        return cls(**values, transfer=(mean, variance, count))


def lag_kernel(correlation: float) -> tuple[float, float]:
    """Give the smear along X that correlates the noise of neighbours, and what it leaves of the variance.

    Parameters
    ----------
    correlation : float
        0 to 0.3.

    Returns
    -------
    share : float
        b of (b, 1 - 2b, b): 2 b (1 - 2b) = correlation v.
    variance : float
        v = (1 - 2b)² + 2b².
    """
    if not 0 <= correlation <= LONGEST_LAG:
        raise ValueError(f"the noise of neighbours along X has correlation {correlation:g}; lag is 0 to {LONGEST_LAG}.")
    c = correlation
    share = ((4 * c + 2) - np.sqrt((4 * c + 2) ** 2 - 4 * c * (6 * c + 4))) / (2 * (6 * c + 4))
    return float(share), float((1 - 2 * share) ** 2 + 2 * share**2)


def choose_form(photons: float, read_variance: float | None, correlation: FloatArray | None) -> tuple[Form, str]:
    """Choose the corruption: thinning for white noise, the Gaussian form for correlated noise, which cannot be thinned.

    Read noise is split along with the photons (`splitting.py`), so that thinning is right under read noise too: at 1
    photo-electron and 2 or 6 electrons of known read noise it restores 2.2 and 0.3 dB better than the Gaussian form, at
    5 photo-electrons they are equal (`benchmarks/forms.py`).

    Parameters
    ----------
    photons : float
        Typical signal, photo-electrons per voxel.
    read_variance : float or None
        Read variance, photo-electrons^2; None when unknown.
    correlation : ndarray or None
        Autocorrelation of the noise; None for white noise.

    Returns
    -------
    form : {"thinning", "gaussian"}
        The choice.
    reason : str
        One sentence.
    """
    if correlation is not None:
        neighbour = float(np.max(np.abs(np.where(correlation < 1, correlation, 0.0))))
        return "gaussian", f"the noise is correlated (up to {neighbour:.2f}) and thinning assumes white noise"
    if read_variance is None:
        return (
            "thinning",
            f"{photons:.3g} photo-electrons per voxel; the read noise is not known, so taken as photon noise",
        )
    return (
        "thinning",
        f"{photons:.3g} photo-electrons per voxel and read noise ({read_variance:.3g} e^2), white: split together",
    )


@lru_cache(maxsize=256)
def stabilising_table(read: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean and variance of z = 2 sqrt(max(u + 3/8, 0)), u = Poisson(lam) + N(read^2, read^2).

    Parameters
    ----------
    read : float
        Read noise, photo-electrons.

    Returns
    -------
    nu : ndarray
        E[u] = lam + read^2, increasing from read^2 to read^2 + 400.
    mean, variance : ndarray
        Of z at those points; the mean is strictly increasing.
    """
    lam = np.square(np.arange(0.0, np.sqrt(_LARGEST_TABULATED) + _SQRT_STEP, _SQRT_STEP))
    n = np.arange(int(_LARGEST_TABULATED + 10 * np.sqrt(_LARGEST_TABULATED)))
    centre = n + read**2 + 0.375
    if read == 0:
        first, second = 2 * np.sqrt(centre), 4 * centre
    else:
        # With w = sqrt(u + 3/8) as the variable the integrand has no kink at the clamp.
        low = np.sqrt(np.maximum(centre - 8 * read, 0.0))
        high = np.sqrt(centre + 8 * read)
        nodes, weights = np.polynomial.legendre.leggauss(64)
        half = 0.5 * (high - low)[:, None]
        w = low[:, None] + half * (nodes + 1)
        density = np.exp(-0.5 * np.square((np.square(w) - centre[:, None]) / read)) / (read * np.sqrt(2 * np.pi))
        mass = half * weights * density * 2 * w
        first = (2 * w * mass).sum(axis=1)
        second = (4 * np.square(w) * mass).sum(axis=1)
    log_pmf = special.xlogy(n, lam[:, None]) - lam[:, None] - special.gammaln(n + 1)
    pmf = np.exp(log_pmf)
    mean = pmf @ first
    variance = np.maximum(pmf @ second - np.square(mean), 0.0)
    for values in (table := (lam + read**2, mean, variance)):
        values.setflags(write=False)
    return table


def _correlated_noise(shape: tuple[int, ...], correlation: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Draw unit-variance Gaussian noise with the given autocorrelation over the last axes (periodic)."""
    axes = tuple(range(-correlation.ndim, 0))
    grid = np.zeros([max(shape[a], correlation.shape[a]) for a in axes])
    for index, value in np.ndenumerate(correlation):
        grid[tuple((i - n // 2) % m for i, n, m in zip(index, correlation.shape, grid.shape, strict=True))] += value
    # A truncated autocorrelation may have a slightly negative spectrum; what is cut is put back as overall
    # scale.
    spectrum = np.maximum(np.fft.fftn(grid).real, 0.0)
    spectrum /= spectrum.mean()
    white = rng.standard_normal(shape[: len(shape) - correlation.ndim] + grid.shape)
    noise = np.fft.ifftn(np.fft.fftn(white, axes=axes) * np.sqrt(spectrum), axes=axes).real
    lead = tuple(slice(None) for _ in shape[: len(shape) - correlation.ndim])
    return np.asarray(noise[lead + tuple(slice(0, shape[a]) for a in axes)])
