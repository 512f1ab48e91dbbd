"""The photon-transfer line of images: contrasts blind to structure, grouped by brightness, and a robust line.

    E[e^2] = gain * E[m] + intercept
    e = sum_i h_i y_i,   m = sum_i h_i^2 y_i,   sum_i h_i = 0,   sum_i h_i^2 = 1

A contrast h that the specimen cannot excite (the diagonal corner of the spectrum, beyond the cut-off of the
optics; or the difference of two frames) has only noise in it, and its square has the variance of the voxels
under it weighted by h^2: exactly, for white noise of any distribution, because variance is linear in the
mean. Voxels are grouped by the brightness of a *ring around* the contrast: noise in the ring is independent
of noise in the contrast, so the grouping biases neither mean nor variance (an instrumental variable; grouping
by the voxel's own value flattens the line). Which contrast: the most precise one whose line does not rise
above that of any more cautious one (Lepski's rule). Background: Foi et al., IEEE TIP 17 (2008); Janesick,
Photon Transfer (2007).

In the flow: `noise_fit.fit_noise` feeds planes in and makes a NoiseModel of the line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

Array = NDArray[np.float64]
Float32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

__all__ = [
    "BETWEEN",
    "CONTRASTS",
    "REPEATED",
    "WITHIN",
    "Line",
    "Plane",
    "Points",
    "autocorrelation",
    "best_line",
    "brightness_bins",
    "fit_line",
    "negative_correlation",
    "transfer_points",
]


def _product(along_y: Sequence[float], along_x: Sequence[float]) -> Array:
    kernel = np.outer(along_y, along_x)
    return np.asarray(kernel / np.sqrt(np.square(kernel).sum()))


def _ring(outer: int, inner: int) -> Array:
    kernel = np.ones((outer, outer))
    edge = (outer - inner) // 2
    kernel[edge : edge + inner, edge : edge + inner] = 0
    return np.asarray(kernel / kernel.sum())


def _pixel_minus_ring() -> Array:
    kernel = -_ring(7, 3)
    kernel[3, 3] = 1
    return np.asarray(kernel / np.sqrt(np.square(kernel).sum()))


# The most cautious first; a wider band gives more independent squares and lets more structure through.
CONTRASTS: dict[str, Array] = {
    "fourth difference": _product([1, -4, 6, -4, 1], [1, -4, 6, -4, 1]),
    "third difference": _product([1, -3, 3, -1], [1, -3, 3, -1]),
    "second difference": _product([1, -2, 1], [1, -2, 1]),
    "laplacian": np.array([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]) / np.sqrt(20),
    "pixel": _pixel_minus_ring(),
    "third difference along Y": _product([1, -3, 3, -1], [1]),
    "third difference along X": _product([1], [1, -3, 3, -1]),
}
# What to try, in order: within one image, between frames that may differ, between frames of one unmoving
# field.
WITHIN = ("fourth difference", "third difference", "second difference", "laplacian")
BETWEEN = (*WITHIN, "pixel")
REPEATED = ("pixel",)
_MARGIN = 9  # half of the widest ring (6) plus half of the widest contrast (3)
_LAGS = 2
_SMALLEST_ERROR = 1e-3


@dataclass(frozen=True)
class Plane:
    """One image of noise.

    Parameters
    ----------
    noise : ndarray, shape (Y, X)
        Image whose contrasts are taken: a frame, or the scaled difference of two, ADU.
    level : ndarray, shape (Y, X)
        How bright: the frame, or the mean of the two, ADU.
    bad : ndarray of bool, shape (Y, X)
        Voxels to leave out.
    clipped : ndarray of bool, shape (Y, X)
        Saturated voxels.
    shared : float
        1; for differences of successive frames, which share a frame with the next difference, 1.5.
    """

    noise: Array
    level: Array
    bad: Mask
    clipped: Mask
    shared: float = 1.0


@dataclass(frozen=True)
class Points:
    """Photon-transfer points: mean (ADU), variance (ADU^2), its standard error, number of voxels."""

    mean: Array
    variance: Array
    error: Array
    count: Array


@dataclass(frozen=True)
class Line:
    """variance = gain * mean + intercept, with the covariance of (gain, intercept).

    `centre` is the mean brightness (ADU) that the line was fitted around, `contrast` says on what.
    """

    gain: float
    intercept: float
    covariance: Array
    points: Points
    centre: float
    contrast: str = ""

    def at(self, mean: float | Array) -> float | Array:
        """Variance (ADU^2) at a mean (ADU)."""
        return self.gain * mean + self.intercept

    def error_at(self, mean: float) -> float:
        """Give the standard error of the variance at a mean (ADU)."""
        row = np.array([mean, 1.0])
        return float(np.sqrt(row @ self.covariance @ row))


# ------------------------------------------------------------------------------------------ measuring


def _filled(plane: Plane, image: Array) -> Array:
    """Bad voxels replaced by the median of the good ones around them, so that rings stay usable."""
    if not plane.bad.any():
        return image
    holes = np.where(plane.bad, np.nan, image)
    result = image.copy()
    rows, columns = np.nonzero(plane.bad)
    padded = np.pad(holes, 2, constant_values=np.nan)
    windows = np.stack([padded[rows + i, columns + j] for i in range(5) for j in range(5)])
    empty = np.isnan(windows).all(axis=0)
    windows[:, empty] = np.nanmedian(holes)
    result[rows, columns] = np.nanmedian(windows, axis=0)
    return result


def _inside(image: NDArray[Any]) -> NDArray[Any]:
    return image[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]


def _ring_mean(image: Array, outer: int, inner: int) -> Array:
    total = outer**2 * ndimage.uniform_filter(image, outer) - inner**2 * ndimage.uniform_filter(image, inner)
    return np.asarray(total / (outer**2 - inner**2))


def _brightness(plane: Plane) -> Float32:
    ring = _ring_mean(_filled(plane, plane.level), 9, 5)
    return _inside(ring).astype(np.float32).ravel()


def brightness_bins(planes: Sequence[Plane], count: int = 48) -> list[NDArray[np.int16]]:
    """Group the voxels inside the margin by the brightness of the ring around them, even in square root.

    Parameters
    ----------
    planes : sequence of Plane
        All of one channel.
    count : int
        Number of groups.

    Returns
    -------
    list of ndarray of int16
        Group of every voxel inside the margin, per plane, flattened.
    """
    levels = [_brightness(plane) for plane in planes]
    low = min([float(np.quantile(level, 0.001)) for level in levels])
    high = max([float(level.max()) for level in levels])
    width = max(high - low, float(np.finfo(np.float32).tiny))
    return [
        np.minimum(np.sqrt(np.clip((level - low) / width, 0, 1)) * count, count - 1).astype(np.int16)
        for level in levels
    ]


def _squares(plane: Plane, name: str) -> tuple[Float32, Float32, Mask]:
    """Mean m, square e^2 and usable, per voxel inside the margin, flattened."""
    kernel = CONTRASTS[name]
    e = ndimage.correlate(_filled(plane, plane.noise), kernel)
    level = _filled(plane, plane.level)
    if name == "pixel":
        m = (40 * level + _ring_mean(level, 7, 3)) / 41
        bad = plane.bad
    else:
        m = ndimage.correlate(level, np.square(kernel))
        bad = ndimage.correlate(plane.bad.astype(np.float64), (kernel != 0).astype(np.float64)) > 0
    return (
        _inside(m).astype(np.float32).ravel(),
        _inside(np.square(e)).astype(np.float32).ravel(),
        _inside(~bad).ravel(),
    )


def _overlap(name: str) -> float:
    """How many neighbouring squares count as one: the sum of their squared correlations."""
    return float(np.square(_kernel_autocorrelation(name)).sum())


def _kernel_autocorrelation(name: str) -> Array:
    return np.asarray(signal.correlate2d(CONTRASTS[name], CONTRASTS[name]))


def response(name: str, correlation: Array | None) -> float:
    """E[e^2] / variance of a voxel, for noise of this autocorrelation: 1 for white noise."""
    if correlation is None:
        return 1.0
    own = _kernel_autocorrelation(name)
    lags = correlation.shape[0] // 2
    centre = own.shape[0] // 2
    padded = np.pad(own, max(0, lags - centre))
    middle = padded.shape[0] // 2
    window = padded[middle - lags : middle + lags + 1, middle - lags : middle + lags + 1]
    return max(float((window * correlation).sum()), 0.05)


def transfer_points(
    planes: Sequence[Plane],
    bins: Sequence[NDArray[np.int16]],
    name: str,
    *,
    correlation: Array | None = None,
    before: Line | None = None,
) -> Points:
    """Mean and variance of every brightness group, from one contrast.

    Parameters
    ----------
    planes : sequence of Plane
        All of one channel.
    bins : sequence of ndarray
        From `brightness_bins`.
    name : str
        Key of `CONTRASTS`.
    correlation : ndarray, optional
        Autocorrelation of the noise.
    before : Line, optional
        Earlier fit: squares that it finds impossible (beyond 7 sigma and 6 photo-electrons) are left out.
        Without it, the largest hundredth of each group is.

    Returns
    -------
    Points
        Groups with saturated voxels are left out, groups of fewer than 150 voxels merged.
    """
    parts = [_squares(plane, name) for plane in planes]
    usable = np.concatenate([part[2] for part in parts])
    mean, square = (np.concatenate([part[i] for part in parts])[usable] for i in range(2))
    group = np.concatenate(list(bins))[usable]
    clipped = np.concatenate([_inside(plane.clipped).ravel() for plane in planes])[usable]
    square /= np.float32(response(name, correlation))
    groups = int(group.max(initial=0)) + 1
    if before is None:
        order = np.argsort(group, kind="stable")
        parts_of = np.split(square[order], np.searchsorted(group[order], np.arange(1, groups)))
        limit = np.array([np.quantile(part, 0.99) if part.size else 0.0 for part in parts_of])
    else:
        typical = np.bincount(group, mean, groups) / np.maximum(np.bincount(group, minlength=groups), 1)
        limit = 49 * np.maximum(before.at(typical), 0.0) + np.square(6 * before.gain)
    keep = square <= limit[group]
    if before is None:
        # The rest of a normal distribution has 0.925 of its variance: near enough for a first look.
        square /= np.float32(0.925)
    here, e2 = group[keep], square[keep].astype(np.float64)
    weights = (np.ones(here.size), mean[keep], e2, np.square(e2), clipped[keep])
    sums = np.array([np.bincount(here, weight, groups) for weight in weights])
    return _merged(sums, _overlap(name) * planes[0].shared)


def _merged(sums: Array, overlap: float) -> Points:
    """Make points of per-group sums (count, m, e^2, e^4, clipped); small groups join the next brighter."""
    rows = []
    waiting = np.zeros(5)
    for column in sums.T:
        waiting = waiting + column
        if waiting[0] < 150:
            continue
        count, mean, square, fourth, clipped = waiting
        waiting = np.zeros(5)
        if clipped > 0.003 * count:
            continue
        variance = square / count
        error = np.sqrt(max(fourth / count - variance**2, 0.0) * overlap / count)
        rows.append((mean / count, variance, error, count))
    return Points(*np.array(rows, dtype=np.float64).reshape(-1, 4).T)


# ----------------------------------------------------------------------------------------------- line


def fit_line(points: Points, *, pinned: tuple[float, float, float] | None = None, systematic: float = 0.02) -> Line:
    """Straight line through the points by iteratively reweighted least squares.

    Weights come from the standard errors, from `systematic` (a share of the variance that no point is trusted
    beyond) and from a Cauchy loss at 3 standard errors, which lets a few groups (structure, a clipped floor)
    miss the line.

    Parameters
    ----------
    points : Points
        At least two.
    pinned : (mean, variance, error), optional
        A point known from elsewhere (dark frames).
    systematic : float
        Relative.

    Returns
    -------
    Line
        Its gain may come out negative: the caller judges.

    Raises
    ------
    ValueError
        If there is no noise at all.
    """
    mean, variance, error = points.mean, points.variance, points.error
    if not (variance > 0).any():
        raise ValueError(
            "the images show no noise at all: every frame is the same, or smooth to the last digit; give raw images as "
            "the camera recorded them, not copies, averages or simulations without noise"
        )
    if pinned is not None:
        mean, variance, error = (np.append(a, b) for a, b in zip((mean, variance, error), pinned, strict=True))
    centre = float(np.average(mean, weights=1 / np.maximum(variance, 0.01 * variance.max())))
    spread = max(float(mean.std()), np.finfo(np.float64).tiny)
    design = np.stack([(mean - centre) / spread, np.ones_like(mean)], axis=1)
    model = np.maximum(variance, 0.0)
    loss = np.ones_like(mean)
    # Errors relative to the fitted variance, not to the measured: a point that came out low must not weigh
    # more for it.
    floor = 1e-3 * float(np.median(variance)) + np.finfo(np.float64).tiny
    relative = np.maximum(error / np.maximum(variance, floor), _SMALLEST_ERROR)
    for _ in range(50):
        sigma = np.sqrt(np.square(relative * model) + np.square(systematic * model) + floor**2)
        weight = np.sqrt(loss) / sigma
        solution, *_ = np.linalg.lstsq(design * weight[:, None], variance * weight, rcond=None)
        fitted = design @ solution
        residual = (variance - fitted) / sigma
        loss = 1 / (1 + np.square(residual / 3))
        model = np.maximum(fitted, 0.1 * variance)
    normal = np.linalg.pinv((design * weight[:, None]).T @ (design * weight[:, None]))
    excess = max(1.0, float((loss * np.square(residual)).sum() / max(len(mean) - 2, 1)))
    # Back from the centred, scaled coordinate to (gain, intercept).
    back = np.array([[1 / spread, 0.0], [-centre / spread, 1.0]])
    gain, intercept = back @ solution
    covariance = back @ (normal * excess) @ back.T
    return Line(float(gain), float(intercept), covariance, points, centre)


def _agree(line: Line, cautious: Line) -> bool:
    """Whether a precise line lies nowhere above a cautious one by more than 2 errors and 1 %.

    Structure only adds variance, so the test is one-sided; the error of the difference is Hausman's (the two
    share their voxels).
    """
    for level in np.quantile(cautious.points.mean, (0.1, 0.5, 0.9)):
        expected = float(cautious.at(level))
        error = np.sqrt(max(cautious.error_at(level) ** 2 - line.error_at(level) ** 2, 0.0))
        if float(line.at(level)) - expected > 2 * error + 0.01 * abs(expected):
            return False
    return True


def best_line(
    planes: Sequence[Plane],
    bins: Sequence[NDArray[np.int16]],
    ladder: Sequence[str],
    *,
    correlation: Array | None = None,
    pinned: tuple[float, float, float] | None = None,
    before: Line | None = None,
) -> Line:
    """Fit the line with the most precise contrast that agrees with all more cautious ones.

    Parameters
    ----------
    planes, bins, correlation, pinned, before
        As in `transfer_points` and `fit_line`.
    ladder : sequence of str
        Contrasts to try, the most cautious first: `WITHIN`, `BETWEEN` or `REPEATED`.

    Returns
    -------
    Line
        With the contrast it was fitted on.
    """
    accepted: list[Line] = []
    for name in ladder:
        points = transfer_points(planes, bins, name, correlation=correlation, before=before)
        if points.mean.size + (pinned is not None) < 2:
            continue
        line = replace(fit_line(points, pinned=pinned), contrast=name)
        if not all(_agree(line, cautious) for cautious in accepted):
            break
        accepted.append(line)
    if not accepted:
        raise ValueError(
            "no two groups of voxels of different brightness are large enough and free of saturation: "
            "give a larger or less saturated image, or dark frames."
        )
    return accepted[-1]


# ------------------------------------------------------------------------------------ autocorrelation


def autocorrelation(planes: Sequence[Plane], bins: Sequence[NDArray[np.int16]]) -> tuple[Array, bool]:
    """Autocorrelation of the noise, from the places where it is smallest.

    Structure only adds correlation, and more of it in bright and rough places; the camera adds the same
    everywhere. So the places are classed by brightness and roughness, and the classes with the least
    correlation are believed.

    Parameters
    ----------
    planes : sequence of Plane
        All of one channel.
    bins : sequence of ndarray
        From `brightness_bins`.

    Returns
    -------
    correlation : ndarray, shape (5, 5)
        Centre 1.
    uniform : bool
        Whether the three classes with the least agree: then it is the camera's, not the specimen's.
    """
    lags = [(dy, dx) for dy in range(_LAGS + 1) for dx in range(-_LAGS, _LAGS + 1) if (dy, dx) > (0, 0)]
    group = np.concatenate(list(bins))
    residuals = [ndimage.correlate(_filled(plane, plane.noise), CONTRASTS["pixel"]) for plane in planes]
    roughness = np.concatenate([_inside(_ring_mean(np.square(e), 13, 7)).ravel() for e in residuals])
    edges = np.unique(np.quantile(group, np.linspace(0, 1, 6)))[1:-1]
    bright = np.searchsorted(edges, group, side="right")
    kind = 2 * bright
    for k in np.unique(bright):
        kind[bright == k] += roughness[bright == k] > np.median(roughness[bright == k])
    classes = 10
    # Products and the number of good pairs, per class and lag; the lag 0 first.
    sums, pairs = np.zeros((2, classes, len(lags) + 1))
    position = 0
    for plane, e in zip(planes, residuals, strict=True):
        good = (~plane.bad).astype(np.float64)
        residual = e * good
        here = kind[position : position + _inside(e).size]
        position += here.size
        for column, (dy, dx) in enumerate([(0, 0), *lags]):
            for table, image in ((sums, residual), (pairs, good)):
                shifted = image[
                    _MARGIN + dy : image.shape[0] - _MARGIN + dy, _MARGIN + dx : image.shape[1] - _MARGIN + dx
                ]
                table[:, column] += np.bincount(here, (_inside(image) * shifted).ravel(), classes)
    own = _kernel_autocorrelation("pixel")
    middle = own.shape[0] // 2
    valid = (pairs.min(axis=1) >= 2500) & (sums[:, 0] > 0)
    if not valid.any():
        return _white(), False
    moments = sums[valid] / pairs[valid]
    rho = moments[:, 1:] / moments[:, :1] - [own[middle + dy, middle + dx] for dy, dx in lags]
    weight = pairs[valid, 0]
    nearest = rho[:, lags.index((0, 1))] + rho[:, lags.index((1, 0))]
    lowest = int(np.argmin(nearest))
    alike = nearest - nearest[lowest] < 0.03 + 2 * np.sqrt(2 / weight + 2 / weight[lowest])
    result = _white()
    for (dy, dx), value in zip(lags, np.average(rho[alike], axis=0, weights=weight[alike]), strict=True):
        result[_LAGS + dy, _LAGS + dx] = result[_LAGS - dy, _LAGS - dx] = value
    return result, bool(alike.sum() >= 3)


def negative_correlation(planes: Sequence[Plane], bins: Sequence[NDArray[np.int16]]) -> Array:
    """Negative correlation between neighbours along X or Y, proven where structure hides the autocorrelation.

    Third differences along one axis only see every frequency of the other, structure with it, and structure
    only adds variance. So where they show *less* variance than the third difference along both, the axis that
    they lack must have raised the latter: by 1 - 1.5 rho, rho the correlation of neighbours along that axis.

    Parameters
    ----------
    planes, bins
        As in `autocorrelation`.

    Returns
    -------
    ndarray, shape (5, 5)
        Autocorrelation, 1 at the centre, 0 where nothing is proven.
    """
    both, along_y, along_x = (
        fit_line(transfer_points(planes, bins, name))
        for name in ("third difference", "third difference along Y", "third difference along X")
    )
    level = float(np.quantile(both.points.mean, 0.75))
    result = _white()
    for line, lag in ((along_y, (0, 1)), (along_x, (1, 0))):
        ratio = float(both.at(level) / line.at(level))
        error = ratio * float(np.hypot(both.error_at(level) / both.at(level), line.error_at(level) / line.at(level)))
        if ratio > 1 + 2 * error:
            rho = (1 - ratio) / 1.5
            result[_LAGS + lag[0], _LAGS + lag[1]] = result[_LAGS - lag[0], _LAGS - lag[1]] = rho
    return result


def _white() -> Array:
    correlation = np.zeros((2 * _LAGS + 1, 2 * _LAGS + 1))
    correlation[_LAGS, _LAGS] = 1.0
    return correlation
