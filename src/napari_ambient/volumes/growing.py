"""Looking at an OME-Zarr image while it is written: an array that reads what is there so far.

`iter_save_volume` writes under a temporary name that it tells with every block, and gives the file its own name when it
is complete; so a file of that name is always whole, and who wants to look earlier has to ask for this array. Voxels
not written yet are 0. It follows the file to its final name, and says so when the file was given up.

    BlockWritten → GrowingArray → a viewer, which reads the planes that it shows, again and again
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

from napari_ambient.volumes.errors import ReadError
from napari_ambient.volumes.files import BlockWritten

LEVEL = "0"  # full resolution
ATTEMPTS = 5  # at a chunk that is being written


class GrowingArray:
    """Full resolution of an OME-Zarr image that is being written. Nothing is kept in memory.

    Parameters
    ----------
    written : BlockWritten
        The first, or any, block of it.

    Attributes
    ----------
    shape : tuple of int
        In the saved volume's order of axes.
    dtype : numpy.dtype
        Type of the values.

    Raises
    ------
    ReadError
        If the format can only be read when it is complete (TIFF, .npy).
    """

    def __init__(self, written: BlockWritten) -> None:
        self._places = (written.path, written.target)
        if not written.path.is_dir():
            raise ReadError(
                f"{written.target.name} can be read once it is complete; save as .ome.zarr to look at it before"
            )
        # which folder it is, whatever its name: a file that it was to replace may lie at the target
        self._folder = written.path.stat().st_ino
        self._array = _open(written.path)
        self.shape = tuple(int(n) for n in self._array.shape)
        self.dtype: np.dtype[Any] = np.dtype(self._array.dtype)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def complete(self) -> bool:
        """Whether the file has its own name now; `open_volume` opens it then."""
        target = self._places[1]
        return target.exists() and target.stat().st_ino == self._folder

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Read a part as it is now; 0 where nothing is written yet.

        Raises
        ------
        ReadError
            If the writing was given up, so that there is no file any more.
        """
        temporary, target = self._places
        for attempt in itertools.count(1):
            if not temporary.exists():
                break
            try:
                values = np.asarray(self._array[index])
            except Exception as error:
                # Some versions of zarr write chunks in place, and half a chunk makes a codec raise anything.
                if attempt < ATTEMPTS and temporary.exists():
                    time.sleep(0.02)
                    continue
                if temporary.exists():
                    raise ReadError(f"{temporary} cannot be read ({type(error).__name__}: {error})") from error
                break
            # A chunk that is not there reads as 0, also when the folder got its own name meanwhile.
            if temporary.exists():
                return values
        if not self.complete:
            raise ReadError(f"{target} was given up before it was complete; what was written is gone")
        self._array = _open(target)
        self._places = (target, target)
        return np.asarray(self._array[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read everything."""
        return np.asarray(self[...], dtype=dtype)

    def __len__(self) -> int:
        """Size of the first dimension."""
        return self.shape[0]


def _open(folder: Path) -> zarr.Array[Any]:
    return zarr.open_array(LocalStore(folder / LEVEL, read_only=True), mode="r")
