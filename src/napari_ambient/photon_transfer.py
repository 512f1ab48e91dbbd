"""The photon-transfer line of images: contrasts blind to structure, grouped by brightness, and a robust line.

    E[e^2] = gain * E[m] + intercept,    e = sum_i h_i y_i,    m = sum_i h_i^2 y_i,    sum_i h_i = 0,    sum_i h_i^2 = 1

A contrast h that the specimen cannot excite (the diagonal corner of the spectrum, beyond the cut-off of the optics; or the
difference of two frames) has only noise in it, and its square has the variance of the voxels under it weighted by h^2: exactly,
for white noise of any distribution, because variance is linear in the mean. Voxels are grouped by the brightness of a
*ring around* the contrast: noise in the ring is independent of noise in the contrast, so the grouping biases neither mean
nor variance (an instrumental variable; grouping by the voxel's own value flattens the line). The roughness of
the neighbourhood selects flat places in the same way. Which contrast, and which places: the most precise whose line agrees
with those of all more cautious ones (Lepski's rule). Background: Foi et al., IEEE TIP 17 (2008); Janesick, Photon
Transfer (2007).

In the flow: `noise_fit.fit_noise` feeds planes in and makes a NoiseModel of the line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

Array = NDArray[np.float64]
Float32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

__all__ = ["CONTRASTS", "Line", "Plane", "Points", "autocorrelation", "best_line", "brightness_bins", "fit_line", "negative_correlation", "transfer_points"]


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
    "third difference": _product([1, -3, 3, -1], [1, -3, 3, -1]),
    "second difference": _product([1, -2, 1], [1, -2, 1]),
    "laplacian": np.array([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]) / np.sqrt(20),
    "pixel": _pixel_minus_ring(),
    "third difference along Y": _product([1, -3, 3, -1], [1]),
    "third difference along X": _product([1], [1, -3, 3, -1]),
}
_LESS_CAUTIOUS = ("second difference", "laplacian", "pixel")
_MARGIN = 9  # half of the roughness ring (6) plus half of the widest contrast (3)
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
    """Points of the photon-transfer plot: mean (ADU), variance (ADU^2), its standard error, number of voxels."""

    mean: Array
    variance: Array
    error: Array
    count: Array


@dataclass(frozen=True)
class Line:
    """variance = gain * mean + intercept, with the covariance of (gain, intercept).

    `centre` is the mean brightness (ADU) that the line was fitted around, `contrast` and `flattest` say on what.
    """

    gain: float
    intercept: float
    covariance: Array
    points: Points
    centre: float
    contrast: str = ""
    flattest: float = 1.0

    def at(self, mean: float | Array) -> float | Array:
        """Variance (ADU^2) at a mean (ADU)."""
        return self.gain * mean + self.intercept

    def error_at(self, mean: float) -> float:
        """Standard error of the variance at a mean (ADU)."""
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
    low = min(float(np.quantile(level, 0.001)) for level in levels)
    high = max(float(level.max()) for level in levels)
    width = max(high - low, np.finfo(np.float32).tiny)
    return [
        np.minimum(np.sqrt(np.clip((level - low) / width, 0, 1)) * count, count - 1).astype(np.int16)
        for level in levels
    ]


def _squares(plane: Plane, name: str, rough: bool = True) -> tuple[Float32, Float32, Float32, Mask]:
    """Mean m, square e^2, roughness around (on request) and usable, per voxel inside the margin, flattened."""
    kernel = CONTRASTS[name]
    e = ndimage.correlate(_filled(plane, plane.noise), kernel)
    level = _filled(plane, plane.level)
    if name == "pixel":
        e2, m = np.square(e), (40 * level + _ring_mean(level, 7, 3)) / 41
        bad = plane.bad
    else:
        e2, m = np.square(e), ndimage.correlate(level, np.square(kernel))
        touched = ndimage.correlate(plane.bad.astype(np.float64), (kernel != 0).astype(np.float64))
        bad = touched > 0
    roughness = _inside(_ring_mean(e2, 13, 7)) if rough else np.zeros(0)
    return (
        _inside(m).astype(np.float32).ravel(),
        _inside(e2).astype(np.float32).ravel(),
        roughness.astype(np.float32).ravel(),
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
    flattest: tuple[float, ...] = (1.0,),
    *,
    correlation: Array | None = None,
    before: Line | None = None,
) -> list[Points]:
    """Mean and variance of every brightness group, from one contrast.

    Parameters
    ----------
    planes : sequence of Plane
        All of one channel.
    bins : sequence of ndarray
        From `brightness_bins`.
    name : str
        Key of `CONTRASTS`.
    flattest : tuple of float
        Shares of each group to keep, the flattest neighbourhoods first; one set of points for each.
    correlation : ndarray, optional
        Autocorrelation of the noise.
    before : Line, optional
        Earlier fit: squares that it finds impossible (beyond 7 sigma and 6 photo-electrons) are left out. Without it, the
        largest hundredth of each group is.

    Returns
    -------
    list of Points
        One for each of `flattest`; groups with saturated voxels or fewer than 150 voxels are left out or merged.
    """
    parts = [_squares(plane, name, flattest != (1.0,)) for plane in planes]
    usable = np.concatenate([part[3] for part in parts])
    mean, square = (np.concatenate([part[i] for part in parts])[usable] for i in range(2))
    group = np.concatenate(list(bins))[usable]
    clipped = np.concatenate([_inside(plane.clipped).ravel() for plane in planes])[usable]
    square /= np.float32(response(name, correlation))
    overlap = _overlap(name) * planes[0].shared
    groups = int(group.max(initial=0)) + 1
    if before is None:
        # The rest of a normal distribution has 0.925 of its variance: near enough for a first look.
        possible = square <= _quantiles(square, group, groups, (0.99,))[0][group]
        square /= np.float32(0.925)
    else:
        typical = np.bincount(group, mean, groups) / np.maximum(np.bincount(group, minlength=groups), 1)
        limit = 49 * np.maximum(before.at(typical), 0.0) + np.square(6 * before.gain)
        possible = square <= limit[group]
    thresholds: list[Array] = []
    if flattest != (1.0,):
        roughness = np.concatenate([part[2] for part in parts])[usable]
        thresholds = _quantiles(roughness, group, groups, flattest)
    result = []
    for i, share in enumerate(flattest):
        keep = possible if share == 1.0 else possible & (roughness <= thresholds[i][group])
        here, e2 = group[keep], square[keep].astype(np.float64)
        sums = np.stack([np.bincount(here, w, groups) for w in (None, mean[keep], e2, np.square(e2), clipped[keep])])
        result.append(_merged(sums, overlap))
    return result


def _quantiles(
    values: NDArray[np.float32], group: NDArray[np.int16], groups: int, shares: Sequence[float]
) -> list[Array]:
    """Quantiles of the values of every group, one array over the groups per share."""
    order = np.argsort(group, kind="stable")
    parts = np.split(values[order], np.searchsorted(group[order], np.arange(1, groups)))
    table = np.array([np.quantile(part, shares) if part.size else np.zeros(len(shares)) for part in parts])
    return [np.asarray(column, dtype=np.float64) for column in table.T]


def _merged(sums: Array, overlap: float) -> Points:
    """Points from the per-group sums (count, m, e^2, e^4, clipped); small groups join the next brighter one."""
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

    Weights come from the standard errors, from `systematic` (a share of the variance that no point is trusted beyond) and from a
    Cauchy loss at 3 standard errors, which lets a few groups (structure, a clipped floor) miss the line.

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
    """
    mean, variance, error = points.mean, points.variance, points.error
    if pinned is not None:
        mean, variance, error = (np.append(a, b) for a, b in zip((mean, variance, error), pinned, strict=True))
    centre = float(np.average(mean, weights=1 / np.maximum(variance, 0.01 * variance.max())))
    spread = max(float(mean.std()), np.finfo(np.float64).tiny)
    design = np.stack([(mean - centre) / spread, np.ones_like(mean)], axis=1)
    model = np.maximum(variance, 0.0)
    loss = np.ones_like(mean)
    # Errors relative to the fitted variance, not to the measured: a point that came out low must not weigh more for it.
    relative = np.maximum(error / np.maximum(variance, np.finfo(np.float64).tiny), _SMALLEST_ERROR)
    floor = 1e-3 * float(np.median(variance)) + np.finfo(np.float64).tiny
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
    """Whether a precise line lies nowhere above a cautious one by more than 1.5 errors of their difference and 1 %.

    Structure only adds variance, so the test is one-sided; the error of the difference is Hausman's (the two share
    their voxels).
    """
    for level in np.quantile(cautious.points.mean, (0.1, 0.5, 0.9)):
        expected = float(cautious.at(level))
        error = np.sqrt(max(cautious.error_at(level) ** 2 - line.error_at(level) ** 2, 0.0))
        if float(line.at(level)) - expected > 1.5 * error + 0.01 * abs(expected):
            return False
    return True


def best_line(
    planes: Sequence[Plane],
    bins: Sequence[NDArray[np.int16]],
    *,
    correlation: Array | None = None,
    pinned: tuple[float, float, float] | None = None,
    before: Line | None = None,
    structure_free: bool = False,
) -> Line:
    """Fit the line with the most precise contrast and the largest share of places that agrees with all more cautious ones.

    Parameters
    ----------
    planes, bins, correlation, pinned, before
        As in `transfer_points` and `fit_line`.
    structure_free : bool
        The planes are differences of frames that show the same field: take the voxels themselves.

    Returns
    -------
    Line
        With the contrast and the share it was fitted on.
    """
    if structure_free:
        ladder: list[tuple[str, tuple[float, ...]]] = [("pixel", (1.0,))]
    else:
        ladder = [("third difference", (0.5, 1.0)), *((name, (1.0,)) for name in _LESS_CAUTIOUS)]
    accepted: list[Line] = []
    for line in _ladder_lines(planes, bins, ladder, correlation, pinned, before):
        if not all(_agree(line, cautious) for cautious in accepted):
            break
        accepted.append(line)
    if not accepted:
        raise ValueError("no group of voxels is free of saturation and large enough to measure a variance on.")
    return accepted[-1]


def _ladder_lines(
    planes: Sequence[Plane],
    bins: Sequence[NDArray[np.int16]],
    ladder: list[tuple[str, tuple[float, ...]]],
    correlation: Array | None,
    pinned: tuple[float, float, float] | None,
    before: Line | None,
) -> Iterator[Line]:
    for name, shares in ladder:
        sets = transfer_points(planes, bins, name, shares, correlation=correlation, before=before)
        for share, points in zip(shares, sets, strict=True):
            if points.mean.size + (pinned is not None) >= 2:
                yield replace(fit_line(points, pinned=pinned), contrast=name, flattest=share)


# ------------------------------------------------------------------------------------ autocorrelation


def autocorrelation(planes: Sequence[Plane], bins: Sequence[NDArray[np.int16]]) -> tuple[Array, bool]:
    """Autocorrelation of the noise, from the places where it is smallest.

    Structure only adds correlation, and more of it in bright and rough places; the camera adds the same everywhere. So the
    places are classed by brightness and roughness, and the classes with the least correlation are believed.

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
    roughness = np.concatenate([_squares(plane, "pixel")[2] for plane in planes])
    edges = np.unique(np.quantile(group, np.linspace(0, 1, 6)))[1:-1]
    bright = np.searchsorted(edges, group, side="right")
    kind = 2 * bright
    for k in np.unique(bright):
        kind[bright == k] += roughness[bright == k] > np.median(roughness[bright == k])
    classes = 10
    # Products and the number of good pairs, per class and lag; the lag 0 first.
    sums, pairs = np.zeros((2, classes, len(lags) + 1))
    position = 0
    for plane in planes:
        e = ndimage.correlate(_filled(plane, plane.noise), CONTRASTS["pixel"])
        good = (~plane.bad).astype(np.float64)
        e *= good
        here = kind[position : position + _inside(e).size]
        position += here.size
        for column, (dy, dx) in enumerate([(0, 0), *lags]):
            for table, image in ((sums, e), (pairs, good)):
                shifted = image[_MARGIN + dy : image.shape[0] - _MARGIN + dy, _MARGIN + dx : image.shape[1] - _MARGIN + dx]
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

    Third differences along one axis only see every frequency of the other, structure with it, and structure only adds
    variance. So where they show *less* variance than the third difference along both, the axis that they lack must
    have raised the latter: by 1 - 1.5 rho, rho the correlation of neighbours along that axis.

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
        fit_line(transfer_points(planes, bins, name)[0])
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
