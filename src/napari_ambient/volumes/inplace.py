"""Values that lie in one piece in a file: NumPy's .npy format, and the voxels of an uncompressed TIFF.

In C order, voxel (i, j, k) of an array of shape (I, J, K) lies at ``offset + item * ((i J + j) K + k)``. So
any box can be read or written without the rest: reading maps the file for the length of one call, writing
puts each run of voxels in its place. (Writing through a map would end the program, not raise, on a full
disk.)

An .npy file has no room for metadata. NumPy lets several arrays follow one another in a file, and its readers
take the first: so ours are followed by a second one, which holds `Volume.record` as JSON bytes.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from numpy.typing import NDArray

from napari_ambient.volumes.errors import ReadError
from napari_ambient.volumes.stored import Stored, parse_record
from napari_ambient.volumes.volume import Volume, file_stem

_LARGEST_CHUNK = 2**24


def stamp(path: str) -> tuple[int, int]:
    """Return what changes when a file does: its size in bytes and its time of modification in ns."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def check_unchanged(path: str, before: tuple[int, int]) -> None:
    """Raise if a file is not the one that was opened.

    Parameters
    ----------
    path : str
        The file.
    before : tuple of int
        Its `stamp` when it was opened.

    Raises
    ------
    ReadError
        If it was changed or removed.
    """
    try:
        now = stamp(path)
    except OSError as error:
        raise ReadError(f"{path} was there when it was opened, but cannot be read now: {error}") from error
    if now != before:
        raise ReadError(f"{path} was changed after it was opened; open it again")


@dataclass(frozen=True)
class InPlace:
    """An array whose values lie in one piece in a file, in C order; reading opens and closes it."""

    path: str
    stamp: tuple[int, int]
    offset: int
    shape: tuple[int, ...]
    stored: np.dtype[Any]
    """Type in the file, with its byte order."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values read."""
        return self.stored.newbyteorder("=")

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Read a part."""
        check_unchanged(self.path, self.stamp)
        return read_box(self.path, self.offset, self.shape, self.stored, index)


def read_box(path: str | Path, offset: int, shape: tuple[int, ...], stored: np.dtype[Any], index: Any) -> NDArray[Any]:
    """Read a part of an array that lies in one piece.

    Parameters
    ----------
    path : str or Path
        The file.
    offset : int
        Byte at which the array begins.
    shape : tuple of int
        Its shape.
    stored : dtype
        Its type in the file.
    index : int, slice, or tuple of these
        The part.

    Returns
    -------
    ndarray
        A copy, in the machine's byte order.
    """
    # Pages of the file count as our memory only while the map lives: in this call.
    view = np.memmap(path, stored, "r", offset, shape)
    return np.array(view[index], dtype=stored.newbyteorder("="), order="C")


def write_box(file: io.FileIO, offset: int, shape: Sequence[int], start: Sequence[int], values: NDArray[Any]) -> None:
    """Write a box of an array that lies in one piece.

    Parameters
    ----------
    file : FileIO
        Open for writing, without a buffer, so that a full disk is noticed here.
    offset : int
        Byte at which the array begins.
    shape : sequence of int
        The whole array's shape.
    start : sequence of int
        First voxel of the box.
    values : ndarray
        The box, C-contiguous, in the file's type and byte order.
    """
    run = values.ndim - 1
    while run > 0 and values.shape[run] == shape[run]:
        run -= 1
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    for position in np.ndindex(*values.shape[:run]):
        voxel = sum((start[axis] + (position[axis] if axis < run else 0)) * strides[axis] for axis in range(len(shape)))
        file.seek(offset + voxel * values.dtype.itemsize)
        left = values[position].reshape(-1).view(np.uint8).data
        while left:
            left = left[file.write(left) :]


def read_npy(path: str) -> Stored:
    """Open an .npy file lazily.

    Parameters
    ----------
    path : str
        The file.

    Returns
    -------
    Stored

    Raises
    ------
    ReadError
        If it is damaged, cut short, or holds objects.
    """
    mark = stamp(path)
    with open(path, "rb") as file:
        shape, fortran, stored = _header(path, file)
        offset = file.tell()
        end = offset + math.prod(shape) * stored.itemsize
        if mark[0] < end:
            raise ReadError(f"{path} is cut short: its array needs {end} bytes, the file has {mark[0]}")
        record = None
        if mark[0] > end:
            file.seek(end)
            if file.read(6) == np.lib.format.MAGIC_PREFIX:
                file.seek(end)
                try:
                    _header(path, file)
                except ReadError:
                    # The image is whole; parse_record says that what follows it is not.
                    file.seek(end)
                record = parse_record(file.read().decode("utf-8", "replace"), path)
    if len(shape) < 2 or 0 in shape:
        raise ReadError(f"{path} has shape {shape}; an image has at least Y and X, of size 1 or more")
    array = InPlace(path, mark, offset, shape[::-1] if fortran else shape, stored)
    chunks: list[int] = [1] * array.ndim
    left = max(_LARGEST_CHUNK // stored.itemsize, 1)
    for axis in reversed(range(array.ndim)):
        chunks[axis] = min(array.shape[axis], max(left, 1))
        left //= chunks[axis]
    data = da.from_array(
        array,
        chunks=tuple(chunks),
        name=f"npy-{tokenize(path, mark)}",
        asarray=False,
        meta=np.empty((0,) * array.ndim, array.dtype),
    )
    record = record or {}
    recorded = record.get("axes")
    ours = isinstance(recorded, str) and len(recorded) == len(shape)
    return Stored(
        data=data.T if fortran else data,
        axes=str(recorded) if ours else "?" * (len(shape) - 2) + "YX",
        scale={axis: float(step) for axis, step in record.get("scale", {}).items()},
        units=dict(record.get("units", {})),
        channel_names=tuple(record.get("channel_names", ())),
        name=str(record.get("name") or file_stem(path)),
        record=record or None,
    )


def _header(path: str, file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, stored = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, stored = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"version {version} of the format has named fields")
    except Exception as error:
        # NumPy evaluates the header; a damaged one can make the parser raise anything.
        raise ReadError(f"{path} is not a readable .npy file: {error}; save it again with numpy.save") from error
    if stored.hasobject or stored.names is not None:
        raise ReadError(f"{path} holds values of type {stored}, not numbers; save a plain array")
    return tuple(int(n) for n in shape), bool(fortran), stored


class NpyTarget:
    """An .npy file being filled, block by block, in any order.

    Parameters
    ----------
    path : Path
        The (temporary) file to make.
    volume : Volume
        What will be written; its values are not computed here.
    """

    def __init__(self, path: Path, volume: Volume) -> None:
        self.path = path
        self.shapes = [volume.shape]
        self.dtype = volume.dtype
        header = {
            "descr": np.lib.format.dtype_to_descr(volume.dtype),
            "fortran_order": False,
            "shape": volume.shape,
        }
        tail = io.BytesIO()
        np.save(tail, np.frombuffer(json.dumps(volume.record()).encode(), np.uint8))
        # No buffer, see write_box.
        self.file = open(path, "x+b", buffering=0)
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, header)
        self.offset = len(head.getvalue())
        try:
            for position, text in ((0, head.getvalue()), (self.offset + volume.nbytes, tail.getvalue())):
                write_box(self.file, position, (len(text),), (0,), np.frombuffer(text, np.uint8))
        except BaseException:
            self.file.close()
            raise

    def write(self, level: int, start: Sequence[int], block: NDArray[Any]) -> None:
        """Write a block where it belongs; there is one level, 0."""
        write_box(self.file, self.offset, self.shapes[level], start, np.ascontiguousarray(block))

    def read(self, level: int, start: Sequence[int], stop: Sequence[int]) -> NDArray[Any]:
        """Read back a box that was written."""
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        return read_box(self.path, self.offset, self.shapes[0], self.dtype, box)

    def step(self, level: int) -> tuple[int, ...]:
        """Return the shape of the boxes in which a level is best written."""
        return self.shapes[level]

    def finish(self, ranges: Sequence[tuple[float, float]]) -> None:
        """Make sure that everything is on the disk."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file, finished or not."""
        self.file.close()
