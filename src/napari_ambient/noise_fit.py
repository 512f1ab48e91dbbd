"""Fit the noise of a camera from images: frames, one image or stack, dark frames, or calibration maps.

    Var(y) = gain * E[y] + intercept          (photon-transfer line; `photon_transfer` measures its points)
    read_noise^2 = gain * offset + intercept  (only once the offset is known: images alone give the line, not its split)

Differences of successive frames show noise only, where the frames show the same field; a single image shows noise only in
spatial contrasts beyond the reach of the optics. `kind="auto"` tries the first and falls back on the second when the frames do
not agree, and says so. What is not identifiable is None ("unknown"), never a guess: the offset without dark frames or
the user's word, the read noise when the line reaches the offset with too wide an error.

In the flow: before training; the NoiseModel it returns says how to corrupt further and travels in the prior.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, stats

from .noise import NoiseModel, choose_form
from .photon_transfer import (
    Line,
    Plane,
    autocorrelation,
    best_line,
    brightness_bins,
    fit_line,
    negative_correlation,
    transfer_points,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Kind = Literal["auto", "repeats", "frames", "single"]

__all__ = ["NoiseFitError", "NoiseFitWarning", "describe", "fit_noise", "plot_transfer"]

_SMALLEST = 32
_LARGEST_PLANE = 3200 * 3200
_FIRST_LOOK = 600_000
_CORRELATED_FRAMES = 0.1
_CORRELATED_SINGLE = 0.2


class NoiseFitError(ValueError):
    """The images do not determine their noise; the message says why and what to do."""


class NoiseFitWarning(UserWarning):
    """The images can be fitted, but something about them speaks against one noise model."""


def fit_noise(
    volume: Any,
    *,
    kind: Kind = "auto",
    dark: ArrayLike | None = None,
    offset: float | None = None,
    maps: Mapping[str, ArrayLike] | ArrayLike | None = None,
    axes: str | None = None,
    budget: int = 3_000_000,
) -> NoiseModel:
    """Fit the noise model of one channel.

    Parameters
    ----------
    volume : Volume or array
        One channel. Anything with `data` and `axes`, or a numpy or dask array; only what the fit needs is read.
    kind : {"auto", "repeats", "frames", "single"}
        "repeats": the T axis shows one unmoving field. "frames": successive frames show nearly the same field (motion,
        bleaching). "single": every plane on its own, pooled under one camera. "auto": frames where there is a T axis and
        successive frames agree, else single.
    dark : array_like, optional
        Frames without light, shape (Y, X) or (T, Y, X), counts (ADU): they give offset and read noise.
    offset : float, optional
        Counts without light (ADU), where known without dark frames.
    maps : mapping or array_like, optional
        Calibration of every pixel: {"offset": ADU, "variance": ADU^2, "gain": ADU per photo-electron}, each (Y, X), or the
        three stacked in this order, shape (3, Y, X). Nothing is fitted then but the light and the points of the plot.
    axes : str, optional
        Axes of a bare array with more than two dimensions, like "TYX" or "ZYX".
    budget : int
        Voxels to look at, at most; planes are taken evenly over the volume.

    Returns
    -------
    NoiseModel
        What could not be told is None.

    Raises
    ------
    NoiseFitError
        Not finite, constant, saturated or too small images, more than one channel, or a variance that does not
        rise with the mean.
    """
    data, axes = _data_and_axes(volume, axes)
    if kind not in ("auto", "repeats", "frames", "single"):
        raise NoiseFitError(f"kind {kind!r} is not known: take 'auto', 'repeats', 'frames' or 'single'.")
    if dark is not None and offset is not None:
        raise NoiseFitError("dark frames and an offset were both given; give one of them.")
    frames = _read(data, axes, kind, budget)
    saturation = _saturation(frames.images, data.dtype)
    if maps is not None:
        return _from_maps(maps, frames, saturation)
    dark_level = None if dark is None else _DarkLevel.measure(np.asarray(dark, dtype=np.float64))
    kinds: tuple[Kind, ...] = (kind,)
    if kind == "auto":
        kinds = ("frames", "single") if frames.has_pairs else ("single",)
    fits = [_Fit.run(frames, k, saturation, dark_level) for k in kinds]
    fit, notes = fits[0], list(frames.notes)
    if len(fits) == 2:
        fit, note = _frames_or_single(frames, *fits)
        notes.append(note)
    if fit.kind == "single":
        _check_one_camera(frames, fit, saturation)
    return _model(fit, frames, saturation, dark_level, offset, notes)


# ---------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Frames:
    """What is looked at: planes, and which of them follow each other in time."""

    images: list[Array]
    pairs: list[tuple[int, int]]
    whole: bool
    integer: bool
    notes: tuple[str, ...]

    @property
    def has_pairs(self) -> bool:
        return bool(self.pairs)


def _data_and_axes(volume: Any, axes: str | None) -> tuple[Any, str]:
    if hasattr(volume, "axes") and hasattr(volume, "data") and not isinstance(volume, np.ndarray):
        data, axes = volume.data, str(volume.axes)
    else:
        data = volume if hasattr(volume, "dtype") and hasattr(volume, "shape") else np.asarray(volume)
        if axes is None:
            if data.ndim != 2:
                raise NoiseFitError(
                    f"an array of shape {tuple(data.shape)} does not say which axis is time: give axes='TYX' or 'ZYX'."
                )
            axes = "YX"
    if len(axes) != data.ndim or not axes.endswith("YX") or len(set(axes)) != len(axes) or set(axes) - set("TCZYX"):
        raise NoiseFitError(
            f"axes {axes!r} do not fit an array of shape {tuple(data.shape)}: "
            "give one letter of TCZYX per dimension, YX last."
        )
    if "C" in axes:
        if data.shape[axes.index("C")] != 1:
            raise NoiseFitError(
                f"the volume has {data.shape[axes.index('C')]} channels, and each has its own noise: choose one "
                "(volume.channel(...))."
            )
        data = data[tuple(0 if a == "C" else slice(None) for a in axes)]
        axes = axes.replace("C", "")
    if min(data.shape) == 0:
        raise NoiseFitError(f"the volume is empty: shape {tuple(data.shape)}.")
    if min(data.shape[-2:]) < _SMALLEST:
        raise NoiseFitError(
            f"an image of {data.shape[-2]} x {data.shape[-1]} pixels is too small to measure noise on: "
            f"at least {_SMALLEST} x {_SMALLEST} are needed."
        )
    return data, axes


def _read(data: Any, axes: str, kind: Kind, budget: int) -> _Frames:
    """Read planes evenly over the volume; with a T axis also the next frame of each."""
    height, width = data.shape[-2:]
    notes = []
    whole = height * width <= _LARGEST_PLANE
    if whole:
        windows = [(slice(None), slice(None))]
    else:
        side = max(256, int(np.sqrt(budget / 9)))
        rows = np.linspace(0, height - min(side, height), 3).astype(int)
        columns = np.linspace(0, width - min(side, width), 3).astype(int)
        windows = [(slice(r, r + side), slice(c, c + side)) for r, c in product(rows, columns)]
        notes.append(f"planes of {height} x {width} are large: nine regions of {side} x {side} looked at, no hot-pixel mask")
    area = sum(len(range(*w[0].indices(height))) * len(range(*w[1].indices(width))) for w in windows)
    others = [range(n) for a, n in zip(axes[:-2], data.shape[:-2], strict=True) if a != "T"]
    places = list(product(*others))
    count = max(1, budget // area)
    times = data.shape[axes.index("T")] if "T" in axes else 1
    paired = times > 1 and kind != "single"
    if kind in ("repeats", "frames") and times < 2:
        raise NoiseFitError(
            f"kind={kind!r} needs at least two frames along T, but the axes are {axes} with shape {tuple(data.shape)}: "
            "take kind='single', or name the axes."
        )
    if paired:
        # A few places, and at each of them as many pairs of successive frames as the budget allows.
        chosen = _evenly(places, max(1, min(len(places), count // 8)))
        starts = _evenly(list(range(times - 1)), max(1, min(times - 1, count // len(chosen) - 1)))
        wanted = [(place, t) for place in chosen for t in sorted({*starts, *(s + 1 for s in starts)})]
    else:
        both = list(product(places, range(times)))
        chosen, starts = places, []
        wanted = _evenly(both, min(len(both), count))
    images: list[Array] = []
    pairs: list[tuple[int, int]] = []
    position: dict[tuple[Any, int, int], int] = {}
    for place, t in wanted:
        for number, window in enumerate(windows):
            remaining = iter(place)
            index = tuple(t if a == "T" else next(remaining) for a in axes[:-2])
            position[place, t, number] = len(images)
            images.append(_finite(_computed(data[(*index, *window)]), index))
    if paired:
        pairs = [
            (position[place, t, number], position[place, t + 1, number])
            for place, t, number in product(chosen, starts, range(len(windows)))
        ]
    total = int(np.prod(data.shape[:-2]))
    if len(wanted) < total:
        notes.append(f"{len(wanted)} of {total} planes looked at")
    return _Frames(images, pairs, whole, np.issubdtype(data.dtype, np.integer), tuple(notes))


def _evenly(items: Sequence[Any], count: int) -> list[Any]:
    index = np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))
    return [items[i] for i in index]


def _computed(block: Any) -> Array:
    # Synchronous: one plane at a time is what bounds the memory.
    values = block.compute(scheduler="synchronous") if hasattr(block, "compute") else block
    return np.asarray(values, dtype=np.float64)


def _finite(image: Array, index: tuple[int, ...]) -> Array:
    broken = int((~np.isfinite(image)).sum())
    if broken:
        raise NoiseFitError(
            f"plane {index} has {broken} voxels that are NaN or infinite; crop them away or replace them first."
        )
    return image


def _saturation(images: Sequence[Array], dtype: np.dtype[Any]) -> float | None:
    """Largest count, when it is a limit: the end of the dtype, or a pile of voxels above thinly filled levels."""
    top = max(float(image.max()) for image in images)
    if top == min(float(image.min()) for image in images):
        raise NoiseFitError(f"the image is constant ({top:g}): it has no noise to measure.")
    total = sum(image.size for image in images)
    at_top = sum(int((image == top).sum()) for image in images)
    if at_top > 0.5 * total:
        raise NoiseFitError(
            f"{100 * at_top / total:.0f} % of the voxels are at the largest count {top:g}: the image is saturated. "
            "Record with less light or gain."
        )
    if np.issubdtype(dtype, np.integer) and top == np.iinfo(dtype).max:
        return top
    below = sum(int(((image >= top - 0.01 * abs(top)) & (image < top)).sum()) for image in images)
    return top if at_top >= 10 and at_top > max(3 * below, 1e-5 * total) else None


# --------------------------------------------------------------------------------------------- fitting


@dataclass(frozen=True)
class _DarkLevel:
    """Offset, variance without light and its standard error, and the pixels that are hot in the dark."""

    offset: float
    variance: float
    error: float
    hot: Mask

    @classmethod
    def measure(cls, dark: Array) -> _DarkLevel:
        if dark.ndim not in (2, 3) or min(dark.shape) == 0 or not np.isfinite(dark).all():
            raise NoiseFitError(f"dark frames of shape {dark.shape} must be finite, (Y, X) or (T, Y, X).")
        frames = dark[None] if dark.ndim == 2 else dark
        count = len(frames)
        level = frames.mean(axis=0)
        typical = float(np.median(level))
        pattern = float(stats.median_abs_deviation(level, axis=None, scale="normal"))
        temporal = float(np.median(frames.var(axis=0, ddof=1))) / count if count > 1 else 0.0
        # 1/12: without any noise rounding alone moves a level by less than half a count.
        hot = np.abs(level - typical) > 6 * np.sqrt(pattern**2 + temporal + 1 / 12)
        if count > 1:
            variance = frames.var(axis=0, ddof=1)
            good = variance[~hot]
            limit = float(np.median(good)) * stats.chi2.isf(1e-5, count - 1) / stats.chi2.median(count - 1)
            hot |= variance > max(limit, 1.0)
            read = float(variance[~hot].mean())
            error = read * np.sqrt(2 / ((count - 1) * max(int((~hot).sum()), 1)))
        else:
            # One dark frame: its spread over the pixels contains the fixed pattern of the offset too.
            read = float(level[~hot].var())
            error = 0.1 * read
        return cls(float(level[~hot].mean()), read, max(error, 0.01 * read, 1e-12), hot)


@dataclass(frozen=True)
class _Fit:
    """One way of fitting: its line, the noise's correlation, and the hot pixels."""

    kind: Kind
    line: Line
    correlation: Array
    uniform: bool
    hot: Mask | None

    @classmethod
    def run(cls, frames: _Frames, kind: Kind, saturation: float | None, dark: _DarkLevel | None) -> _Fit:
        pinned = None if dark is None else (dark.offset, dark.variance, dark.error)
        shape = frames.images[0].shape
        bad = np.zeros(shape, dtype=bool)
        same_shape = all(image.shape == shape for image in frames.images)
        if dark is not None and dark.hot.shape == shape:
            bad |= dark.hot
        # A first look at a part of the planes finds the hot pixels and what is impossible; then all planes.
        mask = bad if same_shape else None
        planes = _planes(frames, kind, mask, saturation)
        some = _evenly(planes, max(1, min(len(planes), _FIRST_LOOK // planes[0].level.size)))
        bins = brightness_bins(some)
        correlation, uniform = _correlation(some, bins, kind)
        line = _line(some, bins, correlation, pinned, None, kind)
        if frames.whole and same_shape:
            mask = bad | _hot_pixels(frames, planes, line, kind)
            planes = [replace(plane, bad=mask) for plane in planes]
            some = _evenly(planes, len(some))
            correlation, uniform = _correlation(some, bins, kind)
        line = _line(planes, brightness_bins(planes), correlation, pinned, line, kind)
        return cls(kind, line, correlation, uniform, mask if frames.whole else None)


def _correlation(planes: Sequence[Plane], bins: Sequence[NDArray[np.int16]], kind: Kind) -> tuple[Array, bool]:
    correlation, uniform = autocorrelation(planes, bins)
    if kind == "single" and not uniform:
        return negative_correlation(planes, bins), False
    return correlation, uniform


def _line(
    planes: Sequence[Plane],
    bins: Sequence[NDArray[np.int16]],
    correlation: Array,
    pinned: tuple[float, float, float] | None,
    before: Line | None,
    kind: Kind,
) -> Line:
    try:
        return best_line(
            planes,
            bins,
            correlation=correlation,
            pinned=pinned,
            before=before,
            structure_free=kind == "repeats",
        )
    except ValueError as error:
        raise NoiseFitError(str(error)) from error


def _planes(frames: _Frames, kind: Kind, bad: Mask | None, saturation: float | None) -> list[Plane]:
    top = np.inf if saturation is None else saturation

    def mask(image: Array) -> Mask:
        return np.zeros(image.shape, dtype=bool) if bad is None else bad

    if kind == "single":
        return [Plane(image, image, mask(image), image >= top) for image in frames.images]
    planes = []
    for i, j in frames.pairs:
        first, second = frames.images[i], frames.images[j]
        scale = 1.0 if kind == "repeats" else _brightening(second, first)
        norm = 1 + scale**2
        planes.append(
            Plane(
                (first - scale * second) / np.sqrt(norm),
                (first + scale**2 * second) / norm,
                mask(first),
                (first >= top) | (second >= top),
                1.5,
            )
        )
    return planes


def _block_means(image: Array, block: int) -> Array:
    height, width = (n // block * block for n in image.shape)
    blocks = image[:height, :width].reshape(height // block, block, width // block, block)
    return np.asarray(blocks.mean(axis=(1, 3)).ravel())


def _brightening(image: Array, other: Array, block: int = 16) -> float:
    """Factor that takes the contrast of one frame to that of the next (bleaching); 1 when noise hides it."""
    a, b = _block_means(image, block), _block_means(other, block)
    if a.std() == 0 or b.std() == 0 or np.corrcoef(a, b)[0, 1] < 0.9:
        return 1.0
    return float(b.std() / a.std())


def _hot_pixels(frames: _Frames, planes: Sequence[Plane], line: Line, kind: Kind) -> Mask:
    """Lone pixels whose level or whose variance in time no light explains."""
    # Level: averaged over all planes, against the surroundings; a point of light would raise its four neighbours too.
    level = np.mean([plane.level for plane in planes], axis=0)
    images = len(frames.images)
    around = np.ones((5, 5), dtype=bool)
    around[1:4, 1:4] = False
    surroundings = ndimage.median_filter(level, footprint=around)
    cross = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]) / 4
    neighbours = ndimage.correlate(level, cross) - surroundings
    excess = level - surroundings
    floor = max(float(np.median(line.points.variance)) * 0.01, 0.0)
    sigma = np.sqrt(np.maximum(line.at(surroundings), floor) / images)
    # Where fine structure makes all pixels differ from their surroundings, only those that stand out of it are hot.
    order = np.argsort(surroundings, axis=None)
    for part in np.array_split(order, 12):
        usual = 1.4826 * float(np.median(np.abs(excess.flat[part])))
        sigma.flat[part] = np.maximum(sigma.flat[part], usual)
    hot = (np.abs(excess) > 6 * sigma + 5 * line.gain / images) & (np.abs(neighbours) < 0.3 * np.abs(excess))
    if kind != "single" and len(planes) >= 6:
        # Variance: gamma-distributed with the kurtosis of photon noise; successive differences share frames.
        ratio = np.mean([np.square(plane.noise - plane.noise.mean()) for plane in planes], axis=0)
        variance = np.maximum(line.at(level), floor)
        ratio = ratio / variance
        kurtosis = line.gain**2 / np.maximum(variance, 1e-12)
        shape = len(planes) / planes[0].shared / (2 + kurtosis)
        limit = stats.gamma.isf(1e-5, shape) / shape
        middle = ndimage.median_filter(ratio, footprint=np.ones((3, 3)))
        clipped = np.any([plane.clipped for plane in planes], axis=0)
        hot |= (ratio > limit) & (middle < 2) & ~clipped
    return np.asarray(hot)


def _same_field(frames: _Frames, line: Line, block: int = 8) -> float:
    """Correlation between block means of successive frames, corrected for noise: near 1 for one field."""
    correlations = []
    for i, j in frames.pairs:
        a, b = (_block_means(frames.images[k], block) for k in (i, j))
        noise = max(float(line.at(float(a.mean()))), 0.0) / block**2
        structure = np.sqrt(max(a.var() - noise, 0.0) * max(b.var() - noise, 0.0))
        # Where the blocks show no more than noise the frames cannot disagree either.
        if structure > 0.2 * noise:
            correlations.append(float(np.mean((a - a.mean()) * (b - b.mean())) / structure))
    return float(np.median(correlations)) if correlations else 1.0


def _frames_or_single(frames: _Frames, apart: _Fit, within: _Fit) -> tuple[_Fit, str]:
    """Frames, unless they show different fields, or differ by more than the noise within single images."""
    same = _same_field(frames, within.line)
    if same < 0.8:
        return within, f"successive frames show different fields (correlation {same:.2f}): noise from single frames"
    points = apart.line.points
    bright = points.mean >= np.median(points.mean)
    expected = np.maximum(within.line.at(points.mean[bright]), 1e-12)
    ratio = float(np.median(points.variance[bright] / expected))
    if ratio > 1.15:
        return within, f"successive frames differ by {ratio:.2f} times the noise within them: noise from single frames"
    return apart, f"successive frames agree (correlation {same:.2f}): noise from their differences"


def _check_one_camera(frames: _Frames, fit: _Fit, saturation: float | None) -> None:
    """Warn when planes that were pooled have slopes of their own (images stretched one by one)."""
    if len(frames.images) < 2:
        return
    gains, errors = [], []
    for image in _evenly(frames.images, 8):
        bad = fit.hot if fit.hot is not None else np.zeros(image.shape, dtype=bool)
        top = np.inf if saturation is None else saturation
        plane = [Plane(image, image, bad, image >= top)]
        points = transfer_points(plane, brightness_bins(plane), "second difference", before=fit.line)[0]
        if points.mean.size >= 3:
            line = fit_line(points)
            gains.append(line.gain)
            errors.append(np.sqrt(line.covariance[0, 0]))
    gain, error = np.array(gains), np.array(errors)
    sure = error < 0.15 * np.abs(gain)
    if sure.sum() < 2:
        return
    gain, error = gain[sure], error[sure]
    middle = float(np.median(gain))
    if np.mean(np.abs(gain - middle) > 4 * np.hypot(error, 0.05 * middle)) >= 0.25:
        warnings.warn(
            f"the planes do not share one camera gain: slopes from {gain.min():.3g} to {gain.max():.3g} ADU per "
            "photo-electron. If each image was stretched on its own, fit and train with each image's own noise.",
            NoiseFitWarning,
            stacklevel=4,
        )


# ------------------------------------------------------------------------------------------------ model


def _model(
    fit: _Fit,
    frames: _Frames,
    saturation: float | None,
    dark: _DarkLevel | None,
    offset: float | None,
    notes: list[str],
) -> NoiseModel:
    line = fit.line
    error = float(np.sqrt(line.covariance[0, 0]))
    if line.gain <= 2 * error:
        raise NoiseFitError(
            f"the variance does not rise with the mean: slope {line.gain:.3g} +- {error:.2g} ADU per photo-electron, which "
            "must be above 0. The image is too uniform, or was filtered, or read noise rules it; give dark frames (dark=) or "
            "camera maps (maps=), or build NoiseModel.from_camera from the data sheet."
        )
    read_noise: float | None = None
    if dark is not None:
        offset, read_noise = dark.offset, float(np.sqrt(dark.variance))
    elif offset is not None:
        at_offset, uncertain = float(line.at(offset)), line.error_at(offset)
        if at_offset > 4 * uncertain:
            read_noise = float(np.sqrt(at_offset))
        else:
            notes.append(
                f"the line meets the offset at {at_offset:.3g} +- {uncertain:.2g} ADU^2: too uncertain for a read noise"
            )
    zero = -line.intercept / line.gain
    mean = float(np.mean([image.mean() for image in frames.images]))
    photons = max((mean - (zero if offset is None else offset)) / line.gain, 0.0)
    limit = _CORRELATED_SINGLE if fit.kind == "single" else _CORRELATED_FRAMES
    off_centre = np.where(fit.correlation < 1, np.abs(fit.correlation), 0.0)
    strongest = float(off_centre.max())
    correlation = fit.correlation if fit.uniform and strongest > limit else None
    notes.append(f"strongest noise correlation between neighbours {strongest:.2f}")
    notes.append(f"variance from the {line.contrast} contrast, flattest {100 * line.flattest:.0f} % of the places")
    read_variance = None if read_noise is None else (read_noise / line.gain) ** 2
    form, reason = choose_form(photons, read_variance, correlation)
    points = line.points
    return NoiseModel(
        gain=line.gain,
        intercept=line.intercept,
        offset=offset,
        read_noise=read_noise,
        saturation=saturation,
        hot_pixels=fit.hot,
        photons=photons,
        correlation=correlation,
        form=form,
        reason=reason,
        transfer=(points.mean, points.variance, points.count),
        method="frames" if fit.kind == "auto" else fit.kind,
        notes=tuple(notes),
    )


def _from_maps(
    maps: Mapping[str, ArrayLike] | ArrayLike, frames: _Frames, saturation: float | None
) -> NoiseModel:
    """Known camera: nothing to fit but the light; the points of the plot come from the frames."""
    if isinstance(maps, Mapping):
        if set(maps) != {"offset", "variance", "gain"}:
            raise NoiseFitError(f"maps has the keys {sorted(maps)}: it needs 'offset', 'variance' and 'gain'.")
        offset, variance, gain = (np.asarray(maps[key], dtype=np.float64) for key in ("offset", "variance", "gain"))
    else:
        stacked = np.asarray(maps, dtype=np.float64)
        if stacked.ndim != 3 or len(stacked) != 3:
            raise NoiseFitError(f"maps has shape {stacked.shape}: it must be (3, Y, X): offset, variance, gain.")
        offset, variance, gain = stacked
    shape = frames.images[0].shape
    if not frames.whole or any(m.shape != shape for m in (offset, variance, gain)):
        raise NoiseFitError(
            f"the maps are {offset.shape}, {variance.shape} and {gain.shape} but the planes {shape}: cut the maps to the "
            "region of the chip that the images show."
        )
    if not all(np.isfinite(m).all() for m in (offset, variance, gain)) or (variance < 0).any() or (gain <= 0).any():
        raise NoiseFitError("the maps must be finite, with variance >= 0 and gain > 0 everywhere.")
    electrons = np.mean([(image - offset) / gain for image in frames.images], axis=0)
    read = np.sqrt(variance) / gain
    good = read <= 6 * np.median(read)
    photons = max(float(electrons[good].mean()), 0.0)
    read_variance = float(np.mean(np.square(read[good])))
    form, reason = choose_form(photons, read_variance, None)
    points, ratio = _map_points(frames, offset, variance, gain, good)
    notes = [*frames.notes, f"{int((~good).sum())} pixels have more than 6 times the median read noise"]
    if ratio is not None:
        notes.append(f"the frames show {ratio:.2f} of the variance that the maps predict")
        if not 0.8 < ratio < 1.25:
            warnings.warn(
                f"the frames show {ratio:.2f} of the variance that the maps predict at their level: the maps may belong to "
                "another region of the chip, another gain setting, or another offset. Compare with a fit without maps.",
                NoiseFitWarning,
                stacklevel=3,
            )
    return NoiseModel(
        gain=gain,
        intercept=variance - gain * offset,
        offset=offset,
        read_noise=np.sqrt(variance),
        saturation=saturation,
        hot_pixels=~good,
        photons=photons,
        form=form,
        reason=reason,
        transfer=points,
        method="maps",
        notes=tuple(notes),
    )


def _map_points(
    frames: _Frames, offset: Array, variance: Array, gain: Array, good: Mask
) -> tuple[tuple[Array, Array, Array], float | None]:
    """Points of the plot in units of the average pixel, and the variance that the frames show over what the maps predict."""
    if not frames.pairs:
        empty = np.zeros(0)
        return (empty, empty, empty), None
    mean_gain, mean_offset = float(gain[good].mean()), float(offset[good].mean())
    flat = [tuple((frames.images[k] - offset) / gain * mean_gain + mean_offset for k in pair) for pair in frames.pairs]
    none = np.zeros(good.shape, dtype=bool)
    planes = [Plane((a - b) / np.sqrt(2), (a + b) / 2, ~good, none, 1.5) for a, b in flat]
    points = best_line(planes, brightness_bins(planes)).points
    read = float(np.mean(variance[good] / np.square(gain[good]))) * mean_gain**2
    predicted = np.maximum(mean_gain * (points.mean - mean_offset), 0.0) + read
    ratio = float(np.average(points.variance / predicted, weights=points.count))
    return (points.mean, points.variance, points.count), ratio


# --------------------------------------------------------------------------------------------- telling


def describe(model: NoiseModel) -> str:
    """Put a noise model into words, several lines.

    Parameters
    ----------
    model : NoiseModel
        What to tell.

    Returns
    -------
    str
        One quantity with its unit per line.
    """

    def number(value: float | Array | None, unit: str, unknown: str = "unknown") -> str:
        if value is None:
            return unknown
        if np.ndim(value):
            return f"{np.median(value):.4g} {unit} (median of a map of {np.shape(value)[0]} x {np.shape(value)[1]} pixels)"
        return f"{value:.4g} {unit}"

    ask = "unknown (give dark frames or --offset)"
    need = ask if model.offset is None else "unknown (too little dark in the image: give dark frames)"
    hot = "not looked for" if model.hot_pixels is None else (
        f"{int(model.hot_pixels.sum())} pixels ({100 * model.hot_pixels.mean():.2g} %)"
    )
    if model.correlation is None:
        colour = "white"
    else:
        middle = tuple(n // 2 for n in model.correlation.shape)
        colour = (
            f"correlated: {model.correlation[middle[0], middle[1] + 1]:.2f} to the next voxel along X, "
            f"{model.correlation[middle[0] + 1, middle[1]]:.2f} along Y"
        )
    rows = [
        ("gain (slope)", number(model.gain, "ADU per photo-electron")),
        ("zero of the line", number(model.zero, "ADU")),
        ("offset", number(model.offset, "ADU", ask)),
        ("read noise", number(model.read_noise, "ADU", need)),
        ("saturation", number(model.saturation, "ADU", "not reached")),
        ("hot pixels", hot),
        ("light", f"{model.photons:.3g} photo-electrons per voxel"),
        ("noise", colour),
        ("training form", f"{model.form}: {model.reason}"),
        ("method", model.method),
        *(("", note) for note in model.notes),
    ]
    return "\n".join(f"{name:<18}{text}" for name, text in rows)


def plot_transfer(model: NoiseModel, target: str | Path | Axes) -> None:
    """Draw the photon-transfer plot: the points, the line and where it crosses zero.

    Parameters
    ----------
    model : NoiseModel
        With points in `transfer`.
    target : path or matplotlib Axes
        A picture to write (.png, .svg, .pdf), or axes to draw on.
    """
    mean, variance, count = model.transfer
    if mean.size == 0:
        raise ValueError("this noise model has no photon-transfer points to plot: it was given, not fitted.")
    if not isinstance(target, (str, Path)):
        _draw(model, target)
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    _draw(model, figure.add_subplot())
    figure.savefig(target, dpi=150)


def _draw(model: NoiseModel, axes: Axes) -> None:
    mean, variance, count = model.transfer
    gain = float(np.median(model.gain))
    zero = float(np.median(model.zero))
    size = 10 + 40 * count / count.max()
    axes.scatter(mean, variance, s=size, alpha=0.6, label="measured")
    ends = np.array([zero, mean.max()])
    axes.plot(ends, gain * (ends - zero), color="C1", label=f"{gain:.3g} ADU x (mean - {zero:.4g} ADU)")
    if model.offset is not None:
        axes.axvline(float(np.median(model.offset)), color="0.6", linestyle=":", label="offset")
    axes.set_xlabel("mean (ADU)")
    axes.set_ylabel("variance (ADU$^2$)")
    axes.legend()
