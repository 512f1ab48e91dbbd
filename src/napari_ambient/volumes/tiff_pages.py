"""The voxels of a TIFF file that is tiled, compressed, or in scattered pieces.

A TIFF page (one plane, as a rule) is cut into strips or tiles, each perhaps compressed by itself. Where each
lies in which file is noted once, as plain numbers, when the file is opened (`tiff.py`). A block of the lazy
array then opens the file, reads and decodes the segments that it touches, and closes it again: no handle
stays open, blocks can be read in any thread or process, and a crop costs a crop.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_ambient.volumes.errors import ReadError
from napari_ambient.volumes.inplace import check_unchanged

JPEG = (6, 7, 33007, 34892)
"""Compressions whose segments are decoded with tables kept beside them."""


@dataclass(frozen=True)
class Paged:
    """An array whose values lie in strips or tiles of pages, perhaps compressed, or in several files."""

    files: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    page_axes: str
    """Axes within a page: the last dimensions of `shape`."""
    frame: tuple[int, ...]
    """A page as (separate samples, depth, length, width, samples together)."""
    segment: tuple[int, ...]
    """A segment, likewise."""
    keyframe: tuple[int, int]
    """File number and offset of the page that says how segments are encoded."""
    file_of_page: NDArray[np.int32]
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    """Where the segments lie, shape (pages, segments)."""
    tables: tuple[bytes | None, ...]
    """JPEG tables of each page; empty for other compressions."""

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Read a part: integers and slices, as dask asks for them."""
        index = index if isinstance(index, tuple) else (index,)
        index += (slice(None),) * (self.ndim - len(index))
        # What is wanted along each axis, in order; an integer drops its axis at the end.
        wanted = [
            range(n)[i] if isinstance(i, slice) else range(n)[i : i + 1 or None]
            for i, n in zip(index, self.shape, strict=True)
        ]
        drop = tuple(0 if not isinstance(i, slice) else slice(None) for i in index)
        out = np.empty([len(part) for part in wanted], self.dtype)
        if out.size == 0:
            return out[drop]
        lead = self.ndim - len(self.page_axes)
        window = [(0, n) for n in self.frame]
        inner: list[Any] = [0] * 5
        for axis, part in zip(self.page_axes, wanted[lead:], strict=True):
            slot = self._slot(axis)
            low = min(part[0], part[-1])
            window[slot] = (low, max(part[0], part[-1]) + 1)
            last = part[-1] - low + (1 if part.step > 0 else -1)
            inner[slot] = slice(part[0] - low, last if last >= 0 else None, part.step)
        for position in itertools.product(*(range(len(part)) for part in wanted[:lead])):
            plane = tuple(part[i] for part, i in zip(wanted, position, strict=False))
            page = int(np.ravel_multi_index(plane, self.shape[:lead])) if lead else 0
            out[position] = self._read(page, window)[tuple(inner)]
        return out[drop]

    def _slot(self, axis: str) -> int:
        """Say where an axis of a page lies in `frame`; separate samples come first, interleaved ones last."""
        return {"S": 0 if self.page_axes[0] == "S" else 4, "Z": 1, "Y": 2, "X": 3}[axis]

    def _read(self, page: int, window: list[tuple[int, int]]) -> NDArray[Any]:
        """Read a part of a page, segment by segment."""
        path = self.files[self.file_of_page[page]]
        check_unchanged(path, self.stamps[self.file_of_page[page]])
        key = self.files[self.keyframe[0]]
        # A sparse file leaves out segments that are all zero.
        out = np.zeros([stop - start for start, stop in window], self.dtype)
        grid = [-(-n // c) for n, c in zip(self.frame, self.segment, strict=True)]
        touched = [range(a // c, -(-b // c)) for (a, b), c in zip(window, self.segment, strict=True)]
        try:
            decode, is_jpeg = _decoder(key, self.stamps[self.keyframe[0]], self.keyframe[1])
            with open(path, "rb") as file:
                for cell in itertools.product(*touched):
                    number = int(np.ravel_multi_index(cell, grid))
                    count = int(self.counts[page, number])
                    if count == 0:
                        continue
                    file.seek(int(self.offsets[page, number]))
                    extra = {"jpegtables": self.tables[page]} if is_jpeg else {}
                    values, at, _ = decode(file.read(count), number, **extra)
                    if values is not None:
                        _paste(out, window, values, at)
        except ReadError:
            raise
        except Exception as error:
            # A damaged segment can make a codec raise anything.
            raise ReadError(
                f"plane {page} of {path} cannot be decoded ({type(error).__name__}: {error}); the file is "
                "probably damaged, so copy or export it again"
            ) from error
        return out


def _paste(
    out: NDArray[Any], window: list[tuple[int, int]], values: NDArray[Any], at: tuple[int, int, int, int, int]
) -> None:
    """Copy the part of a decoded segment that lies in the window."""
    values = values[np.newaxis]
    source, target = [], []
    for (start, stop), first, n in zip(window, at, values.shape, strict=True):
        low, high = max(start, first), min(stop, first + n)
        source.append(slice(low - first, high - first))
        target.append(slice(low - start, high - start))
    out[tuple(target)] = values[tuple(source)]


@lru_cache(maxsize=64)
def _decoder(path: str, stamp: tuple[int, int], offset: int) -> tuple[Callable[..., Any], bool]:
    """Return the function that decodes the segments of the page at an offset, and whether they are JPEG."""
    with tifffile.TiffFile(path) as tif:
        tif.filehandle.seek(offset)
        page = tifffile.TiffPage(tif, 0)
        return page.decode, int(page.compression) in JPEG
