"""Read what a noise fit needs: planes spread evenly over a volume, pairs of successive frames, dark frames.

Memory is bounded by a budget of voxels, whatever the size of the volume: planes are read one at a time, and
planes larger than a camera chip only in nine regions. Everything that no noise fit could use is refused here,
with the reason.

In the flow: `noise_fit.fit_noise` starts here; `photon_transfer` measures on what this file read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

__all__ = ["DarkLevel", "Frames", "NoiseFitError", "evenly", "read_frames", "saturation_level"]

_SMALLEST = 32
_LARGEST_PLANE = 3200 * 3200
_MOST_DARK_FRAMES = 50


class NoiseFitError(ValueError):
    """The images do not determine their noise; the message says why and what to do."""


@dataclass(frozen=True)
class Frames:
    """What is looked at.

    Parameters
    ----------
    images : list of ndarray, shape (Y, X)
        Planes, or regions of planes, ADU.
    pairs : list of (int, int)
        Which of them follow each other in time; empty without a T axis.
    whole : bool
        Whether they are whole planes.
    dtype : numpy.dtype
        As stored.
    notes : tuple of str
        What was left out.
    """

    images: list[Array]
    pairs: list[tuple[int, int]]
    whole: bool
    dtype: np.dtype[Any]
    notes: tuple[str, ...]


def _data_and_axes(volume: Any, axes: str | None) -> tuple[Any, str]:
    if hasattr(volume, "axes") and hasattr(volume, "data") and not isinstance(volume, np.ndarray):
        data, axes = volume.data, str(volume.axes)
    else:
        data = volume if hasattr(volume, "dtype") and hasattr(volume, "shape") else np.asarray(volume)
        if axes is None:
            if data.ndim != 2:
                raise NoiseFitError(
                    f"an array of shape {tuple(data.shape)} does not say which axis is time: name its axes, "
                    "such as TYX or ZYX (--axes, in Python axes='TYX')."
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
                f"the volume has {data.shape[axes.index('C')]} channels, each with its own noise: choose one "
                "(--channel, in Python volume.channel(...))."
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


def read_frames(volume: Any, axes: str | None, kind: str, budget: int) -> Frames:
    """Read planes evenly over a volume; with a T axis, pairs of successive frames.

    Parameters
    ----------
    volume : Volume or array
        One channel.
    axes : str or None
        Of a bare array.
    kind : {"auto", "repeats", "frames", "single"}
        Pairs are read unless "single".
    budget : int
        Voxels to read, about.

    Returns
    -------
    Frames
        Finite, of one size.
    """
    data, axes = _data_and_axes(volume, axes)
    times = data.shape[axes.index("T")] if "T" in axes else 1
    if kind in ("repeats", "frames") and times < 2:
        raise NoiseFitError(
            f"the kind {kind!r} needs two frames or more along T, but the axes are {axes} with shape "
            f"{tuple(data.shape)}: take the kind 'single', or name the axes (--axes)."
        )
    notes = []
    windows = _windows(data.shape[-2:], budget)
    whole = len(windows) == 1
    if not whole:
        notes.append(f"planes of {data.shape[-2]} x {data.shape[-1]}: nine regions looked at, no hot-pixel mask")
    places = list(product(*(range(n) for a, n in zip(axes[:-2], data.shape[:-2], strict=True) if a != "T")))
    area = sum(len(range(*y.indices(data.shape[-2]))) * len(range(*x.indices(data.shape[-1]))) for y, x in windows)
    count = max(1, budget // area)
    starts: list[int] = []
    if times > 1 and kind != "single":
        # A few places, and at each of them all frames, or as many separate pairs as the budget allows.
        places = evenly(places, max(1, count // 8))
        each = count // len(places)
        starts = evenly(range(times - 1), times - 1 if each >= times else max(1, each // 2))
        wanted = [(place, t) for place in places for t in sorted({*starts, *(s + 1 for s in starts)})]
    else:
        wanted = evenly(list(product(places, range(times))), count)
    images: list[Array] = []
    position: dict[tuple[tuple[int, ...], int, int], int] = {}
    for place, t in wanted:
        remaining = iter(place)
        index = tuple(t if a == "T" else next(remaining) for a in axes[:-2])
        for number, window in enumerate(windows):
            position[place, t, number] = len(images)
            images.append(_finite(_computed(data[(*index, *window)]), index))
    numbers = range(len(windows))
    pairs = [(position[p, t, n], position[p, t + 1, n]) for p, t, n in product(places, starts, numbers)]
    total = int(np.prod(data.shape[:-2]))
    if len(wanted) < total:
        notes.append(f"{len(wanted)} of {total} planes looked at")
    return Frames(images, pairs, whole, np.dtype(data.dtype), tuple(notes))


def _windows(shape: tuple[int, int], budget: int) -> list[tuple[slice, slice]]:
    """Give the whole plane, or nine regions of a very large one."""
    if shape[0] * shape[1] <= _LARGEST_PLANE:
        return [(slice(None), slice(None))]
    side = max(256, int(np.sqrt(budget / 9)))
    rows, columns = (np.linspace(0, max(n - side, 0), 3).astype(int) for n in shape)
    return [(slice(int(r), int(r) + side), slice(int(c), int(c) + side)) for r, c in product(rows, columns)]


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """Take at most `count` of the items, evenly, the first and the last among them."""
    index = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
    return [items[i] for i in index]


def _computed(block: Any) -> Array:
    # Synchronous: one plane at a time is what bounds the memory.
    values = block.compute(scheduler="synchronous") if hasattr(block, "compute") else block
    return np.asarray(values, dtype=np.float64)


def _finite(image: Array, index: tuple[int, ...]) -> Array:
    broken = int((~np.isfinite(image)).sum())
    if broken:
        which = f"plane {index}" if index else "the image"
        raise NoiseFitError(
            f"{which} has {broken} voxels that are NaN or infinite, and noise is measured on whole planes: crop or "
            "replace them first."
        )
    return image


def saturation_level(frames: Frames) -> float | None:
    """Find the largest count, when it is a limit.

    Parameters
    ----------
    frames : Frames
        From `read_frames`.

    Returns
    -------
    float or None
        The end of the dtype, or a count that far more voxels have than the counts just below; None when
        neither was reached.
    """
    images = frames.images
    top = max(float(image.max()) for image in images)
    if top == min(float(image.min()) for image in images):
        raise NoiseFitError(f"the image is constant ({top:g}): it has no noise to measure.")
    total = sum(image.size for image in images)
    at_top = sum(int((image == top).sum()) for image in images)
    if at_top > 0.5 * total:
        raise NoiseFitError(
            f"{100 * at_top / total:.0f} % of the voxels are at the largest count {top:g}: the image is "
            "saturated. Record with less light or gain."
        )
    if np.issubdtype(frames.dtype, np.integer) and top == np.iinfo(frames.dtype).max:
        return top
    below = sum(int(((image >= top - 0.01 * abs(top)) & (image < top)).sum()) for image in images)
    return top if at_top >= 10 and at_top > max(3 * below, 1e-5 * total) else None


@dataclass(frozen=True)
class DarkLevel:
    """What dark frames tell.

    Parameters
    ----------
    offset : float
        Mean count without light, ADU.
    variance : float
        Of the counts without light, in time, ADU^2.
    error : float
        Standard error of `variance`.
    hot : ndarray of bool, shape (Y, X)
        Pixels whose level or variance stands out.
    """

    offset: float
    variance: float
    error: float
    hot: Mask

    @classmethod
    def measure(cls, dark: Any) -> DarkLevel:
        """Measure frames without light.

        Parameters
        ----------
        dark : Volume or array, shape (..., Y, X)
            All leading axes are repeats; at most 50 frames are read.

        Returns
        -------
        DarkLevel
            Hot pixels are left out of its numbers.
        """
        frames = _dark_frames(dark)
        count = len(frames)
        level = frames.mean(axis=0)
        typical = float(np.median(level))
        pattern = float(stats.median_abs_deviation(level, axis=None, scale="normal"))
        variance = frames.var(axis=0, ddof=1) if count > 1 else np.zeros(level.shape)
        # 1/12: where there is no noise, rounding alone moves a level by less than half a count.
        hot = np.abs(level - typical) > 6 * np.sqrt(pattern**2 + float(np.median(variance)) / count + 1 / 12)
        if count > 1:
            usual = float(np.median(variance[~hot])) / stats.chi2.median(count - 1)
            # At least twice the usual noise: chips differ a little from pixel to pixel without being hot.
            hot |= variance > max(usual * stats.chi2.isf(1e-5, count - 1), 4 * float(np.median(variance)), 1.0)
            read = float(variance[~hot].mean())
            error = read * np.sqrt(2 / ((count - 1) * int((~hot).sum())))
        else:
            # The spread over the pixels of one frame contains the fixed pattern of the offset too.
            read = float(level[~hot].var())
            error = 0.1 * read
        return cls(float(level[~hot].mean()), read, max(error, 0.01 * read, 1e-12), np.asarray(hot))


def _dark_frames(dark: Any) -> Array:
    data = dark.data if hasattr(dark, "axes") and not isinstance(dark, np.ndarray) else dark
    data = data if hasattr(data, "shape") else np.asarray(data)
    if data.ndim < 2 or min(data.shape) == 0:
        raise NoiseFitError(f"dark frames have shape {tuple(data.shape)}: give (Y, X) or (T, Y, X).")
    indices = evenly(list(np.ndindex(*data.shape[:-2])), _MOST_DARK_FRAMES)
    return np.stack([_finite(_computed(data[index]), index) for index in indices])
