"""Fit the noise of a camera from images: frames, one image or stack, dark frames, or calibration maps.

    Var(y) = gain * E[y] + intercept          (photon-transfer line; `photon_transfer` measures its points)
    read_noise^2 = gain * offset + intercept  (once the offset is known: images alone give only the line)

Differences of successive frames show noise only, where the frames show the same field; a single image shows
noise only in spatial contrasts beyond the reach of the optics. `kind="auto"` tries the first and falls back
on the second when the frames do not agree, and says so. What is not identifiable is None ("unknown"), never a
guess: the offset without dark frames or the user's word, the read noise when the line reaches the offset with
too wide an error.

In the flow: before training; the NoiseModel it returns says how to corrupt further and travels in the prior.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, stats

from .noise import LONGEST_LAG, NoiseModel, choose_form
from .noise_planes import DarkLevel, Frames, NoiseFitError, evenly, read_frames, saturation_level
from .noise_text import describe, plot_transfer
from .photon_transfer import (
    BETWEEN,
    REPEATED,
    WITHIN,
    Line,
    Plane,
    autocorrelation,
    best_line,
    brightness_bins,
    fit_line,
    negative_correlation,
    transfer_points,
)

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Kind = Literal["auto", "repeats", "frames", "single"]
Way = Literal["repeats", "frames", "single"]
Bins = Sequence[NDArray[np.int16]]

__all__ = ["NoiseFitError", "NoiseFitWarning", "describe", "fit_noise", "plot_transfer"]

_LADDERS: dict[Way, tuple[str, ...]] = {"single": WITHIN, "frames": BETWEEN, "repeats": REPEATED}
_FIRST_LOOK = 600_000
# A lag is of neighbours along X and of nothing else. Below the least nothing was gained by splitting through it: the
# five confocal stacks of the benchmark have 0.05, and mean squared errors from 0.5 % less to 2.8 % more.
_LEAST_LAG = 0.07
_NOT_LAG = 0.05
# Below these the noise counts as white: thinning bears a little correlation, and in a single image what is
# left of the structure looks like some.
_CORRELATED = {"single": 0.2, "frames": 0.1, "repeats": 0.1}


class NoiseFitWarning(UserWarning):
    """The images can be fitted, but something about them speaks against one noise model."""


def fit_noise(
    volume: Any,
    *,
    kind: Kind = "auto",
    dark: Any = None,
    offset: float | None = None,
    maps: Mapping[str, ArrayLike] | ArrayLike | None = None,
    axes: str | None = None,
    budget: int = 6_000_000,
) -> NoiseModel:
    """Fit the noise model of one channel.

    Parameters
    ----------
    volume : Volume or array
        One channel. Anything with `data` and `axes`, or a numpy or dask array; only what the fit needs is
        read.
    kind : {"auto", "repeats", "frames", "single"}
        "repeats": the T axis shows one unmoving field. "frames": successive frames show nearly the same field
        (motion, bleaching). "single": every plane on its own, pooled under one camera. "auto": frames where
        there is a T axis and successive frames agree, else single.
    dark : Volume or array, optional
        Frames without light, shape (Y, X) or (T, Y, X), counts (ADU): they give offset and read noise.
    offset : float, optional
        Counts without light (ADU), where known without dark frames.
    maps : mapping or array_like, optional
        Calibration of every pixel: {"offset": ADU, "variance": ADU^2, "gain": ADU per photo-electron}, each
        (Y, X), or the three stacked in this order, shape (3, Y, X). Nothing is fitted then but the light and
        the points of the plot.
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
        Not finite, constant, saturated or too small images, more than one channel, or a variance that does
        not rise with the mean.

    Notes
    -----
    The gain is the slope: for an EMCCD it contains the excess factor. The read noise contains the rounding to
    whole counts (1/12 ADU^2). It is told from dark frames, or from `offset` when the line reaches the offset
    with an error below a quarter of the read variance: part of the field must be so dark that photon noise
    does not hide the electronics. A single image needs optics that blur over the pixels (standard deviation
    of the PSF of 0.8 pixels or more): structure at the scale of one pixel reads as noise, more so the
    brighter it is.
    """
    if kind not in ("auto", "repeats", "frames", "single"):
        raise NoiseFitError(f"kind {kind!r} is not known: take 'auto', 'repeats', 'frames' or 'single'.")
    if dark is not None and offset is not None:
        raise NoiseFitError("dark frames and an offset were both given; give one of them.")
    frames = read_frames(volume, axes, kind, budget)
    saturation = saturation_level(frames)
    if maps is not None:
        return _from_maps(maps, frames, saturation)
    dark_level = None if dark is None else DarkLevel.measure(dark)
    notes = list(frames.notes)
    if kind != "auto":
        fit = _Fit.run(frames, kind, saturation, dark_level)
    else:
        fit = _Fit.run(frames, "single", saturation, dark_level)
        if frames.pairs:
            fit, note = _frames_or_single(frames, _Fit.run(frames, "frames", saturation, dark_level), fit)
            notes.append(note)
    if fit.way == "single":
        _check_one_camera(frames, fit, saturation)
    return _model(fit, frames, saturation, dark_level, offset, notes)


# --------------------------------------------------------------------------------------------- fitting


@dataclass(frozen=True)
class _Fit:
    """One way of fitting: line, noise correlation, whether that is the camera's own, hot pixels."""

    way: Way
    line: Line
    correlation: Array
    uniform: bool
    hot: Mask | None

    @classmethod
    def run(cls, frames: Frames, way: Way, saturation: float | None, dark: DarkLevel | None) -> _Fit:
        pinned = None if dark is None else (dark.offset, dark.variance, dark.error)
        bad = np.zeros(frames.images[0].shape, dtype=bool)
        if frames.whole and dark is not None and dark.hot.shape == bad.shape:
            bad = dark.hot
        # A first look at a part of the planes finds the hot pixels and what is impossible; then all planes.
        planes = _planes(frames, way, bad, saturation)
        some = evenly(planes, max(1, _FIRST_LOOK // bad.size))
        bins = brightness_bins(some)
        correlation, uniform = _correlation(some, bins, way)
        line = _line(some, bins, way, correlation, pinned, None)
        if frames.whole:
            bad = bad | _hot_pixels(frames, planes, line, way)
            planes = [replace(plane, bad=bad) for plane in planes]
            correlation, uniform = _correlation(evenly(planes, len(some)), bins, way)
        line = _line(planes, brightness_bins(planes), way, correlation, pinned, line)
        return cls(way, line, correlation, uniform, bad if frames.whole else None)


def fit_channels(volume: Any) -> list[NoiseModel]:
    """Fit the noise of each channel of a volume.

    Parameters
    ----------
    volume : Volume
        With or without a C axis.

    Returns
    -------
    list of NoiseModel
        One per channel, fitted as `fit_noise` does by default.

    Raises
    ------
    NoiseFitError
        As `fit_noise`.
    """
    if "C" not in volume.axes:
        return [fit_noise(volume)]
    return [fit_noise(volume.channel(c)) for c in range(volume.sizes["C"])]


def _lag(correlation: Array) -> float:
    """Give the correlation of neighbours along X, if there is none besides; else 0."""
    middle = tuple(n // 2 for n in correlation.shape)
    lag = float(correlation[(*middle[:-1], middle[-1] + 1)])
    others = correlation.copy()
    others[(*middle[:-1], slice(middle[-1] - 1, middle[-1] + 2))] = 0
    return round(lag, 3) if _LEAST_LAG <= lag <= LONGEST_LAG and np.abs(others).max() < _NOT_LAG else 0.0


def _correlation(planes: Sequence[Plane], bins: Bins, way: Way) -> tuple[Array, bool]:
    correlation, uniform = autocorrelation(planes, bins)
    if way == "single" and not uniform:
        return negative_correlation(planes, bins), False
    return correlation, uniform


def _line(
    planes: Sequence[Plane],
    bins: Bins,
    way: Way,
    correlation: Array,
    pinned: tuple[float, float, float] | None,
    before: Line | None,
) -> Line:
    try:
        return best_line(planes, bins, _LADDERS[way], correlation=correlation, pinned=pinned, before=before)
    except ValueError as error:
        raise NoiseFitError(str(error)) from error


def _planes(frames: Frames, way: Way, bad: Mask, saturation: float | None) -> list[Plane]:
    """Give the images themselves, or the differences of successive ones."""
    top = np.inf if saturation is None else saturation
    if way == "single":
        return [Plane(image, image, bad, image >= top) for image in frames.images]
    planes = []
    # Differences of a chain of frames share frames, and so a quarter of their squares' noise.
    shared = 1.5 if len({k for pair in frames.pairs for k in pair}) < 2 * len(frames.pairs) else 1.0
    for i, j in frames.pairs:
        first, second = frames.images[i], frames.images[j]
        scale = 1.0 if way == "repeats" else _brightening(second, first)
        norm = 1 + scale**2
        noise = (first - scale * second) / np.sqrt(norm)
        level = (first + scale**2 * second) / norm
        planes.append(Plane(noise, level, bad, (first >= top) | (second >= top), shared))
    return planes


def _block_means(image: Array, block: int) -> Array:
    height, width = (n // block * block for n in image.shape)
    blocks = image[:height, :width].reshape(height // block, block, width // block, block)
    return np.asarray(blocks.mean(axis=(1, 3)).ravel())


def _brightening(image: Array, other: Array, block: int = 16) -> float:
    """Find the factor from the contrast of one frame to the next (bleaching); 1 when noise hides it."""
    a, b = _block_means(image, block), _block_means(other, block)
    if a.std() == 0 or b.std() == 0 or np.corrcoef(a, b)[0, 1] < 0.9:
        return 1.0
    return float(b.std() / a.std())


def _hot_pixels(frames: Frames, planes: Sequence[Plane], line: Line, way: Way) -> Mask:
    """Find lone pixels whose level or whose variance in time no light explains."""
    # Level: averaged over all planes, against the surroundings; a point of light would raise its neighbours
    # too.
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
    # Where fine structure makes all pixels differ from their surroundings, only those that stand out are hot.
    order = np.argsort(surroundings, axis=None)
    for part in np.array_split(order, 12):
        usual = 1.4826 * float(np.median(np.abs(excess.flat[part])))
        sigma.flat[part] = np.maximum(sigma.flat[part], usual)
    hot = (np.abs(excess) > 6 * sigma + 5 * line.gain / images) & (np.abs(neighbours) < 0.3 * np.abs(excess))
    if way != "single" and len(planes) >= 3:
        # Variance: gamma-distributed with the kurtosis of photon noise; successive differences share frames.
        ratio = np.mean([np.square(plane.noise - plane.noise.mean()) for plane in planes], axis=0)
        variance = np.maximum(line.at(level), floor)
        ratio = ratio / variance
        kurtosis = line.gain**2 / np.maximum(variance, 1e-12)
        shape = len(planes) / planes[0].shared / (2 + kurtosis)
        middle = ndimage.median_filter(ratio, footprint=np.ones((3, 3)))
        lone = (middle < 2) & ~np.any([plane.clipped for plane in planes], axis=0)
        chance = stats.gamma.sf(ratio * shape, shape)
        # With few frames a noisy pixel is hard to tell from chance. Calling a good pixel hot costs little (its
        # neighbours stand in for it), keeping a noisy one costs much: so half of the calls may be wrong.
        for level_ in (1e-2, 1e-3, 1e-4, 1e-5) if len(planes) < 6 else (1e-3, 1e-4, 1e-5):
            called = lone & (chance < level_)
            if level_ <= 1e-5 or called.mean() > 2 * level_:
                hot |= called
                break
    return np.asarray(hot)


def _same_field(frames: Frames, line: Line, block: int = 8) -> float:
    """Correlate block means of successive frames, corrected for noise: near 1 for one field."""
    correlations = []
    for i, j in frames.pairs:
        a, b = (_block_means(frames.images[k], block) for k in (i, j))
        noise = max(float(line.at(float(a.mean()))), 0.0) / block**2
        structure = np.sqrt(max(a.var() - noise, 0.0) * max(b.var() - noise, 0.0))
        # Where the blocks show no more than noise the frames cannot disagree either.
        if structure > 0.2 * noise:
            correlations.append(float(np.mean((a - a.mean()) * (b - b.mean())) / structure))
    return float(np.median(correlations)) if correlations else 1.0


def _frames_or_single(frames: Frames, apart: _Fit, within: _Fit) -> tuple[_Fit, str]:
    """Take frames, unless they show different fields or differ by more than the noise within images."""
    same = _same_field(frames, within.line)
    if same < 0.8:
        why = f"successive frames show different fields (correlation {same:.2f})"
        return within, f"{why}: noise from single frames"
    points = apart.line.points
    bright = points.mean >= np.median(points.mean)
    expected = np.maximum(within.line.at(points.mean[bright]), 1e-12)
    ratio = float(np.median(points.variance[bright] / expected))
    if ratio > 1.15:
        why = f"successive frames differ by {ratio:.2f} times the noise within them"
        return within, f"{why}: noise from single frames"
    return apart, f"successive frames agree (correlation {same:.2f}): noise from their differences"


def _check_one_camera(frames: Frames, fit: _Fit, saturation: float | None) -> None:
    """Warn when planes that were pooled have slopes of their own (images stretched one by one)."""
    if len(frames.images) < 2:
        return
    gains, errors = [], []
    for image in evenly(frames.images, 8):
        bad = fit.hot if fit.hot is not None else np.zeros(image.shape, dtype=bool)
        top = np.inf if saturation is None else saturation
        plane = [Plane(image, image, bad, image >= top)]
        points = transfer_points(plane, brightness_bins(plane), "second difference", before=fit.line)
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
            f"the planes do not share one camera gain: slopes from {gain.min():.3g} to {gain.max():.3g} ADU "
            "per photo-electron. If each image was stretched on its own, fit and train with its own noise.",
            NoiseFitWarning,
            stacklevel=3,
        )


# ------------------------------------------------------------------------------------------------ model


def _model(
    fit: _Fit,
    frames: Frames,
    saturation: float | None,
    dark: DarkLevel | None,
    offset: float | None,
    notes: list[str],
) -> NoiseModel:
    line = fit.line
    error = float(np.sqrt(line.covariance[0, 0]))
    if line.gain <= 2 * error:
        raise NoiseFitError(
            f"the variance does not rise with the mean: slope {line.gain:.3g} +- {error:.2g} ADU "
            "per photo-electron, which must be above 0. The image is too uniform, or was filtered, or read "
            "noise rules it; give frames taken without light (--dark, in Python dark=), or gain and zero level "
            "from the camera's data sheet (--gain and --zero of train, in Python NoiseModel.from_camera) or its maps "
            "(in Python maps=)."
        )
    read_noise: float | None = None
    if dark is not None:
        offset, read_noise = dark.offset, float(np.sqrt(dark.variance))
    elif offset is not None:
        at_offset, uncertain = float(line.at(offset)), line.error_at(offset)
        if at_offset > 4 * uncertain:
            read_noise = float(np.sqrt(at_offset))
        else:
            notes.append(f"the line meets the offset at {at_offset:.3g} +- {uncertain:.2g} ADU^2: read noise unclear")
    zero = -line.intercept / line.gain
    mean = float(np.mean([image.mean() for image in frames.images]))
    photons = max((mean - (zero if offset is None else offset)) / line.gain, 0.0)
    off_centre = np.where(fit.correlation < 1, np.abs(fit.correlation), 0.0)
    strongest = float(off_centre.max())
    lag = _lag(fit.correlation) if fit.uniform else 0.0
    correlation = fit.correlation if fit.uniform and not lag and strongest > _CORRELATED[fit.way] else None
    notes.append(f"strongest noise correlation between neighbours {strongest:.2f}")
    if lag:
        notes.append(f"a scanning detector's lag: neighbours along X alone are correlated, by {lag:.3f}")
    notes.append(f"variance from the {line.contrast} contrast")
    read_variance = None if read_noise is None else (read_noise / line.gain) ** 2
    form, reason = choose_form(photons, read_variance, correlation)
    points = line.points
    return NoiseModel(
        gain=line.gain,
        intercept=line.intercept,
        offset=offset,
        read_noise=read_noise,
        saturation=saturation,
        hot_pixels=fit.hot if fit.hot is not None and fit.hot.any() else None,
        photons=photons,
        correlation=correlation,
        form=form,
        reason=reason,
        transfer=(points.mean, points.variance, points.count),
        method=fit.way,
        notes=tuple(notes),
        lag=lag,
    )


def _from_maps(maps: Mapping[str, ArrayLike] | ArrayLike, frames: Frames, saturation: float | None) -> NoiseModel:
    """Take a known camera: nothing is fitted but the light; the points of the plot come from the frames."""
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
            f"the maps are {offset.shape}, {variance.shape} and {gain.shape} but the planes {shape}: cut the "
            "maps to the region of the chip that the images show."
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
                f"the frames show {ratio:.2f} of the variance that the maps predict at their level: "
                "the maps may belong to another region of the chip, another gain setting or another offset. "
                "Compare with a fit without maps.",
                NoiseFitWarning,
                stacklevel=3,
            )
    return NoiseModel(
        gain=gain,
        intercept=variance - gain * offset,
        offset=offset,
        read_noise=np.sqrt(variance),
        saturation=saturation,
        hot_pixels=None if good.all() else ~good,
        photons=photons,
        form=form,
        reason=reason,
        transfer=points,
        method="maps",
        notes=tuple(notes),
    )


def _map_points(
    frames: Frames, offset: Array, variance: Array, gain: Array, good: Mask
) -> tuple[tuple[Array, Array, Array], float | None]:
    """Give the points of the plot for the average pixel, and the variance of the frames over the maps'."""
    if not frames.pairs:
        empty = np.zeros(0)
        return (empty, empty, empty), None
    mean_gain, mean_offset = float(gain[good].mean()), float(offset[good].mean())
    flat = [tuple((frames.images[k] - offset) / gain * mean_gain + mean_offset for k in pair) for pair in frames.pairs]
    none = np.zeros(good.shape, dtype=bool)
    planes = [Plane((a - b) / np.sqrt(2), (a + b) / 2, ~good, none, 1.5) for a, b in flat]
    points = best_line(planes, brightness_bins(planes), BETWEEN).points
    read = float(np.mean(variance[good] / np.square(gain[good]))) * mean_gain**2
    predicted = np.maximum(mean_gain * (points.mean - mean_offset), 0.0) + read
    ratio = float(np.average(points.variance / predicted, weights=points.count))
    return (points.mean, points.variance, points.count), ratio
