"""Opening and saving volumes: one function each way, whatever the format.

Opening is cheap and lazy: headers are read, voxels when they are asked for. Saving computes the volume's own
blocks one at a time, in C order, and writes each at once, so memory stays at about one block; the coarser
levels of the pyramid are then made from what was written. All of it goes to a temporary name beside the
target, which gets the target's name when it is complete: a file of that name is always a whole one.

    open_volume → … → save_volume, or iter_save_volume for a progress bar
"""

from __future__ import annotations

import errno
import glob
import itertools
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import dask
import dask.array as da
import numpy as np
from dask.base import get_scheduler, optimize
from dask.local import get_sync
from dask.optimization import cull
from dask.utils import ensure_dict
from numpy.typing import NDArray

from napari_ambient.volumes.errors import AxesError, ReadError, WriteError
from napari_ambient.volumes.inplace import NpyTarget, read_npy
from napari_ambient.volumes.ome_zarr import MARKS, ZarrTarget, read_zarr
from napari_ambient.volumes.stored import Stored
from napari_ambient.volumes.tiff import read_tiff
from napari_ambient.volumes.tiff_write import TiffTarget
from napari_ambient.volumes.volume import (
    Volume,
    canonical,
    check_axes,
    file_stem,
    unnamed_axes_message,
    voxel_size_scale,
)

Format = Literal["ome-tiff", "imagej", "ome-zarr-0.5", "ome-zarr-0.4", "npy"]
"""What can be written. By suffix: .tif and .tiff are "ome-tiff", .zarr is "ome-zarr-0.5", .npy is "npy"."""

ABANDONED = 3600.0  # seconds without a write, after which a partial file is taken for what a killed program left
TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf2", ".tf8")
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SUFFIXES: dict[Format, tuple[str, ...]] = {
    "ome-tiff": (".tif", ".tiff", ".btf"),
    "imagej": (".tif", ".tiff"),
    "ome-zarr-0.5": (".zarr",),
    "ome-zarr-0.4": (".zarr",),
    "npy": (".npy",),
}
_COARSEST_LEVEL = 1024

VoxelSize = Mapping[str, float | None] | Sequence[float | None]


# --------------------------------------------------------------------------------------------- opening


def open_volume(
    path: str | os.PathLike[str],
    *,
    channel: int | str | None = None,
    level: int = 0,
    axes: str | None = None,
    voxel_size: VoxelSize | None = None,
    series: int | None = None,
) -> Volume:
    """Open an image lazily.

    Parameters
    ----------
    path : str or path-like
        A TIFF, ImageJ TIFF or OME-TIFF file, a NumPy .npy file, a zarr array or OME-Zarr image (0.4, 0.5), or
        a folder or pattern ("run/*.tif") of TIFF files of one shape, which are stacked in natural order of
        name.
    channel : int or str, optional
        Only this channel, by index or name; the result has no C axis.
    level : int
        Level of the pyramid, 0 for full resolution.
    axes : str, optional
        The file's dimensions in *its* order, ending with YX, such as "ZYX" or "ZCYX"; needed where the file
        does not name them, and goes before what it says. For a stack of files the first letter is the axis
        along which they are stacked.
    voxel_size : mapping or sequence of float, optional
        In µm, {"Z": 0.3, "Y": 0.1, "X": 0.1} or (0.3, 0.1, 0.1); goes before what the file says.
    series : int, optional
        Which image, in a file that holds several.

    Returns
    -------
    Volume
        Axes in the order T, C, Z, Y, X. A step that the file does not give in a physical unit is unknown.
        Colours become channels, bool becomes uint8.

    Raises
    ------
    ReadError
        If there is no such file, or it cannot be read.
    AxesError
        If the file does not name its axes, and `axes` does not either, or does not fit.
    VolumeError
        If there is no such channel, or the values are not intensities.
    """
    where = os.path.expanduser(os.fspath(path))
    try:
        paths = _stack_of(where)
        if paths is None:
            volume = _read(where, level, series).settle(where, axes, voxel_size)
        else:
            volume = _open_stack(where, paths, level, axes, voxel_size, series)
    except OSError as error:
        raise ReadError(f"{where} cannot be read: {error.strerror or error}") from error
    return volume if channel is None else volume.channel(channel)


def _stack_of(path: str) -> list[str] | None:
    """Return the files of a folder or pattern, or None for a single image."""
    if os.path.isfile(path):
        return None
    if os.path.isdir(path):
        names = sorted(os.listdir(path))
        if path.rstrip("/\\").lower().endswith(".zarr") or any(mark in names for mark in MARKS):
            return None
        found = [os.path.join(path, name) for name in names if name.lower().endswith(TIFF_SUFFIXES)]
        found = [name for name in found if not os.path.basename(name).startswith(".") and os.path.isfile(name)]
        if not found:
            some = ", ".join(names[:5]) or "nothing"
            raise ReadError(f"the folder {path} holds no TIFF files and is no zarr image; it holds {some}")
    elif glob.has_magic(path):
        found = [name for name in glob.glob(path, recursive=True) if os.path.isfile(name)]
        if not found:
            raise ReadError(f"no file matches {path} (from the folder {os.getcwd()})")
    else:
        raise ReadError(f"there is no file or folder {path} (from the folder {os.getcwd()})")
    return sorted(found, key=_natural)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort "t2" before "t10"."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _read(path: str, level: int, series: int | None) -> Stored:
    """Read one image by what it is, not by what its name says."""
    if os.path.isdir(path):
        return read_zarr(path, level=level, series=series)
    with open(path, "rb") as file:
        start = file.read(8)
    if start[:4] in _TIFF_STARTS:
        return read_tiff(path, level=level, series=series)
    if start[:6] == b"\x93NUMPY":
        if level or series:
            raise ReadError(f"{path} is one array without levels or series; leave both out")
        return read_npy(path)
    if not start:
        raise ReadError(f"{path} is empty")
    raise ReadError(
        f"{path} is no image that can be read: TIFF, OME-TIFF, OME-Zarr, zarr and .npy can. Convert it "
        "first, for example with Fiji or bioformats2raw"
    )


def _open_stack(
    where: str,
    paths: Sequence[str],
    level: int,
    axes: str | None,
    voxel_size: VoxelSize | None,
    series: int | None,
) -> Volume:
    """Stack files of one shape along a new axis."""
    first = _read(paths[0], level, series)
    if len(paths) == 1:
        return first.settle(paths[0], axes, voxel_size)
    what = f"{where} ({len(paths)} files)"
    if axes is None:
        raise AxesError(unnamed_axes_message(what, f"?{first.axes}", (len(paths), *first.data.shape)))
    check_axes(axes)
    if axes == "YX":
        raise AxesError(f"{what} is a stack; name the axis along which its files lie first: axes='TYX', 'ZYX' or 'CYX'")
    stored = [first, *(_read(name, level, series) for name in paths[1:])]
    volumes = [one.settle(name, axes[1:], None) for one, name in zip(stored, paths, strict=True)]
    ordered = canonical(axes)
    given = voxel_size_scale(voxel_size, ordered)
    _check_alike(where, volumes, set(given))
    names = volumes[0].channel_names
    if axes[0] == "C":
        names = tuple(file_stem(name) for name in paths)
    elif any(one.channel_names != names for one in volumes):
        names = ()
    history = volumes[0].history
    if any(one.history != history for one in volumes):
        each = {os.path.basename(name): list(one.history) for name, one in zip(paths, volumes, strict=True)}
        history = ({"action": "stack", "histories": each},)
    return volumes[0].replace(
        data=da.stack([one.data for one in volumes], axis=ordered.index(axes[0])),
        axes=ordered,
        scale={**volumes[0].scale, **given},
        units={**volumes[0].units, **dict.fromkeys(given, "micrometer")},
        channel_names=names,
        name=file_stem(os.path.dirname(where) if glob.has_magic(where) else where),
        history=history,
        source=where,
    )


def _check_alike(where: str, volumes: Sequence[Volume], given: set[str]) -> None:
    """Raise unless all files of a stack have one shape, one type, and one step along each axis not given."""

    def kinds(value: Callable[[Volume], Any]) -> str:
        groups: dict[Any, list[str]] = {}
        for volume in volumes:
            groups.setdefault(value(volume), []).append(os.path.basename(volume.source or ""))
        return "; ".join(
            f"{key}: {len(names)} files ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for key, names in itertools.islice(groups.items(), 4)
        )

    first = volumes[0]
    if any(one.shape != first.shape for one in volumes):
        raise ReadError(
            f"the files of {where} have different shapes and cannot be stacked: {kinds(lambda v: v.shape)}. "
            "Stack those of one shape with a pattern, or open them one by one"
        )
    if any(one.dtype != first.dtype for one in volumes):
        raise ReadError(f"the files of {where} have different types and do not stack: {kinds(lambda v: v.dtype.name)}")
    scales = [one.voxel_size | {"T": one.scale.get("T")} for one in volumes]
    for axis in (axis for axis in scales[0] if axis not in given):
        steps = [scale[axis] for scale in scales]
        known = [step for step in steps if step is not None]
        if known and (len(known) < len(steps) or max(known) > min(known) * (1 + 1e-6)):
            found = ", ".join(str(step) for step in dict.fromkeys(steps))
            raise ReadError(
                f"the files of {where} have different steps along {axis}: {found}. Say which is right with "
                "voxel_size, or correct the files"
            )


# ---------------------------------------------------------------------------------------------- saving


class Target(Protocol):
    """A file being filled block by block; made and used here only."""

    def write(self, level: int, start: Sequence[int], block: NDArray[Any]) -> None:
        """Write a block where it belongs."""

    def read(self, level: int, start: Sequence[int], stop: Sequence[int]) -> NDArray[Any]:
        """Read back a box that was written."""

    def step(self, level: int) -> tuple[int, ...]:
        """Return the shape of the boxes in which a level is best written."""

    def finish(self, ranges: Sequence[tuple[float, float]]) -> None:
        """Make it complete, given the lowest and highest value of each channel."""

    def close(self) -> None:
        """Let go of the file, complete or not."""


@dataclass(frozen=True)
class BlockWritten:
    """One step of saving."""

    index: int
    """Blocks written so far, from 1."""
    total: int
    """Blocks in all, those of the pyramid's coarser levels included."""
    voxels: int
    """Voxels in this block."""
    level: int
    """Level of the pyramid it belongs to; 0 is the volume itself, the others take little time."""
    path: Path
    """Where the file lies while it is written, under a temporary name; `growing.GrowingArray` reads it there."""
    target: Path
    """Where it will lie when it is complete."""


def save_volume(
    path: str | os.PathLike[str],
    volume: Volume,
    *,
    overwrite: bool = False,
    format: Format | None = None,
    pyramid: bool = True,
) -> Path:
    """Compute a volume and save it, block by block.

    Parameters
    ----------
    path : str or path-like
        Where to; its suffix says the format (.tif, .tiff, .ome.tif, .zarr, .ome.zarr, .npy).
    volume : Volume
        What to save.
    overwrite : bool
        Replace what is there, once the new file is complete.
    format : {"ome-tiff", "imagej", "ome-zarr-0.5", "ome-zarr-0.4", "npy"}, optional
        Another format with the same suffix: "imagej" for ImageJ's own TIFF, "ome-zarr-0.4" for older readers.
    pyramid : bool
        Add coarser levels, each the mean of 2 x 2 voxels in Y and X, until none is wider than 1024. ImageJ
        TIFF and .npy have none.

    Returns
    -------
    Path
        Where it was saved.

    Raises
    ------
    WriteError
        If it cannot be written; then nothing is left behind, and what was there before is still there.
    """
    for _ in iter_save_volume(path, volume, overwrite=overwrite, format=format, pyramid=pyramid):
        pass
    return Path(os.path.expanduser(path))


def iter_save_volume(
    path: str | os.PathLike[str],
    volume: Volume,
    *,
    overwrite: bool = False,
    format: Format | None = None,
    pyramid: bool = True,
) -> Generator[BlockWritten, None, None]:
    """Save a volume block by block, and say after each how far it is.

    Parameters
    ----------
    path, volume, overwrite, format, pyramid
        As for `save_volume`.

    Returns
    -------
    iterator of BlockWritten
        Saving goes on as it is iterated, and is complete when it ends. Closing it before removes what was
        written.

    Raises
    ------
    WriteError
        At once, if the target cannot be; while iterating, if writing fails.
    """
    target = Path(os.path.expanduser(path))
    chosen = _format(target, format)
    folder = target.parent
    if not folder.is_dir():
        raise WriteError(f"the folder {folder} for {target.name} does not exist; make it first")
    _check_free(target, chosen, overwrite)
    shapes = [volume.shape]
    while pyramid and chosen not in ("imagej", "npy") and max(shapes[-1][-2:]) > _COARSEST_LEVEL:
        shapes.append((*shapes[-1][:-2], *(-(-n // 2) for n in shapes[-1][-2:])))
    need = sum(math.prod(shape) for shape in shapes) * volume.dtype.itemsize
    room = shutil.disk_usage(folder).free
    if need > room and not chosen.startswith("ome-zarr"):
        raise WriteError(_no_room(target, need))
    return _save(target, volume, chosen, shapes, need, overwrite)


def _format(target: Path, format: Format | None) -> Format:
    """Return the format that the suffix or the user says, if they agree."""
    suffix = target.suffix.lower()
    if format is not None and format not in get_args(Format):
        raise WriteError(f"unknown format {format!r}; allowed are {', '.join(get_args(Format))}")
    fitting = [kind for kind, suffixes in _SUFFIXES.items() if suffix in suffixes]
    if not fitting:
        raise WriteError(
            f"{target.name} has the suffix {suffix!r}, which is no format that can be written: .tif, .tiff, "
            ".ome.tif, .zarr, .ome.zarr, .npy are"
        )
    if format is None:
        return fitting[0]
    if format not in fitting:
        raise WriteError(f"{target.name} cannot be {format}: that takes the suffix {' or '.join(_SUFFIXES[format])}")
    return format


def _check_free(target: Path, format: Format, overwrite: bool) -> None:
    """Raise if something is there that must not be replaced."""
    if not target.exists():
        return
    if not overwrite:
        raise WriteError(f"{target} exists; choose another name, or overwrite=True to replace it")
    is_zarr = target.is_dir() and any((target / mark).exists() for mark in MARKS)
    if format.startswith("ome-zarr") and not is_zarr:
        raise WriteError(f"{target} exists and is no zarr image, so it is not replaced; choose another name")
    if not format.startswith("ome-zarr") and target.is_dir():
        raise WriteError(f"{target} is a folder; choose another name")


def _create(path: Path, volume: Volume, format: Format, shapes: Sequence[tuple[int, ...]]) -> Target:
    if format == "npy":
        return NpyTarget(path, volume)
    if format == "ome-tiff" or format == "imagej":
        return TiffTarget(path, volume, shapes, "ome" if format == "ome-tiff" else "imagej")
    return ZarrTarget(path, volume, shapes, "0.5" if format == "ome-zarr-0.5" else "0.4")


def _save(
    target: Path,
    volume: Volume,
    format: Format,
    shapes: Sequence[tuple[int, ...]],
    need: int,
    overwrite: bool,
) -> Generator[BlockWritten, None, None]:
    _remove_abandoned(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    out: Target | None = None
    try:
        with _write_faults(target, need):
            out = _create(temporary, volume, format, shapes)
        boxes = [_boxes(shape, out.step(i)) for i, shape in enumerate(shapes) if i]
        total = math.prod(volume.data.numblocks) + sum(len(level) for level in boxes)
        index = 0
        ranges = _Ranges(volume) if format.startswith("ome-zarr") else None
        for start, block in _blocks(volume):
            if ranges is not None:
                ranges.add(start, block)
            with _write_faults(target, need):
                out.write(0, start, block)
            index += 1
            yield BlockWritten(index, total, block.size, 0, temporary, target)
        for level, part in enumerate(boxes, 1):
            for start, stop in part:
                with _write_faults(target, need):
                    block = _halve(out, level, start, stop, shapes[level - 1])
                    out.write(level, start, block)
                index += 1
                yield BlockWritten(index, total, block.size, level, temporary, target)
        with _write_faults(target, need):
            out.finish(ranges.found() if ranges is not None else ())
            out.close()
            _put(temporary, target, format, overwrite)
    except BaseException as error:
        _discard(temporary, out, error)
        raise


def _remove_abandoned(target: Path) -> None:
    """Remove what a killed program left of the same target, once nothing has been written to it for an hour."""
    name = glob.escape(f".{target.name}.")
    for left in target.parent.glob(f"{name}{'[0-9a-f]' * 8}.partial"):
        try:
            latest = max((p.stat().st_mtime for p in (left, *left.rglob("*"))), default=math.inf)
            if time.time() - latest > ABANDONED:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        except FileNotFoundError:  # another program has just finished it, or removed it
            continue


def _blocks(volume: Volume) -> Iterator[tuple[tuple[int, ...], NDArray[Any]]]:
    """Compute the volume's blocks one by one, in C order, with the first voxel of each."""
    chunks = volume.data.chunks
    starts = [np.cumsum([0, *sizes[:-1]]).tolist() for sizes in chunks]
    # A dask.distributed Client that the user started announces itself here.
    cluster = dask.config.get("scheduler", None) in ("dask.distributed", "distributed")
    compute = get_scheduler() if cluster else get_sync
    # Optimised once; then each block takes its own few tasks, at the same cost however many blocks there are.
    (lazy,) = optimize(volume.data)
    graph = ensure_dict(lazy.__dask_graph__())
    for number in itertools.product(*(range(n) for n in lazy.numblocks)):
        key = (lazy.name, *number)
        tasks, _ = cull(graph, [key])
        block = np.asarray(compute(tasks, key))
        shape = tuple(sizes[i] for sizes, i in zip(chunks, number, strict=True))
        if block.shape != shape or block.dtype != volume.dtype:
            raise WriteError(
                f"block {number} came out as {block.dtype} {block.shape}, but the volume promised "
                f"{volume.dtype} {shape}; correct the computation's meta or chunks"
            )
        yield tuple(start[i] for start, i in zip(starts, number, strict=True)), block


def _boxes(shape: Sequence[int], step: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut a shape into boxes, as first voxels and one past the last, in C order."""
    starts = itertools.product(*(range(0, n, size) for n, size in zip(shape, step, strict=True)))
    return [(start, tuple(min(a + size, n) for a, size, n in zip(start, step, shape, strict=True))) for start in starts]


def _halve(out: Target, level: int, start: Sequence[int], stop: Sequence[int], finer: Sequence[int]) -> NDArray[Any]:
    """Return the mean of 2 x 2 voxels of the finer level; at an odd border, of those that exist."""
    low = (*start[:-2], *(2 * n for n in start[-2:]))
    high = (*stop[:-2], *(min(2 * n, size) for n, size in zip(stop[-2:], finer[-2:], strict=True)))
    fine = out.read(level - 1, low, high)
    odd = [n % 2 for n in fine.shape[-2:]]
    padded = np.pad(fine, [(0, 0)] * (fine.ndim - 2) + [(0, n) for n in odd], mode="edge")
    exact = np.float32 if fine.dtype.itemsize <= 2 or fine.dtype == np.float32 else np.float64
    corners = [padded[..., y::2, x::2] for y in (0, 1) for x in (0, 1)]
    mean = np.zeros(corners[0].shape, exact)
    for corner in corners:
        mean += corner * exact(0.25)
    return np.asarray(np.rint(mean) if fine.dtype.kind in "iu" else mean, fine.dtype)


class _Ranges:
    """The lowest and highest finite value of each channel, as blocks go by."""

    def __init__(self, volume: Volume) -> None:
        self.axis = volume.axes.find("C")
        self.low = [math.inf] * volume.sizes.get("C", 1)
        self.high = [-math.inf] * volume.sizes.get("C", 1)

    def add(self, start: Sequence[int], block: NDArray[Any]) -> None:
        for i in range(block.shape[self.axis] if self.axis >= 0 else 1):
            values = block.take(i, self.axis) if self.axis >= 0 else block
            if values.dtype.kind == "f":
                values = values[np.isfinite(values)]
            if values.size:
                channel = start[self.axis] + i if self.axis >= 0 else 0
                self.low[channel] = min(self.low[channel], float(values.min()))
                self.high[channel] = max(self.high[channel], float(values.max()))

    def found(self) -> list[tuple[float, float]]:
        return [(a, max(b, a + 1)) if a <= b else (0.0, 1.0) for a, b in zip(self.low, self.high, strict=True)]


def _no_room(target: Path, need: int) -> str:
    room = shutil.disk_usage(target.parent).free
    return (
        f"{target} does not fit: it takes up to {need / 1e9:.3g} GB, and {room / 1e9:.3g} GB are free in "
        f"{target.parent}. Free some space, or save elsewhere"
    )


@contextmanager
def _write_faults(target: Path, need: int) -> Iterator[None]:
    """Say what a failed write means."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise WriteError(f"{_no_room(target, need)} ({error.strerror})") from error
        raise WriteError(f"{target} cannot be written: {error.strerror or error}") from error


def _put(temporary: Path, target: Path, format: Format, overwrite: bool) -> None:
    """Give the complete file the target's name."""
    _check_free(target, format, overwrite)
    if not temporary.is_dir() or not target.exists():
        os.replace(temporary, target)
        return
    # A folder cannot be replaced in one step: the old one steps aside, and comes back if that fails.
    aside = temporary.with_suffix(".old")
    os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except OSError:
        os.rename(aside, target)
        raise
    shutil.rmtree(aside)


def _discard(temporary: Path, out: Target | None, error: BaseException) -> None:
    """Remove what was written so far; if even that fails, say so beside the first error."""
    try:
        if out is not None:
            out.close()
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
    except OSError as second:
        error.add_note(f"the unfinished {temporary} could not be removed: {second}")
