"""OME-TIFF and ImageJ TIFF, written in pieces.

tifffile lays the file out: header, metadata, the pages and their sub-resolutions, and room for the voxels of
each level in one piece. Each block is then written where its rows belong, in any order, so memory stays at
one block. What the format has no place for (axes of size 1, the history) goes into an OME annotation, or
ImageJ's Info, as JSON.
"""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_ambient.volumes.errors import WriteError
from napari_ambient.volumes.inplace import read_box, write_box
from napari_ambient.volumes.tiff import INFO, NAMESPACE
from napari_ambient.volumes.units import OME_SYMBOLS, SECONDS
from napari_ambient.volumes.volume import Volume

_LARGEST_BOX = 2**24

_OME_TYPES = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "float32", "float64")
_IMAGEJ_TYPES = ("uint8", "uint16", "float32")


class TiffTarget:
    """A TIFF file being filled: laid out at once, then written block by block where each row belongs.

    Parameters
    ----------
    path : Path
        The (temporary) file to make.
    volume : Volume
        What will be written: its shape, type and metadata are used here, its values are not computed.
    shapes : sequence of tuple of int
        Shape of each level of the pyramid, full resolution first.
    kind : {"ome", "imagej"}
        ImageJ's own format has one level, and takes uint8, uint16 and float32.

    Raises
    ------
    WriteError
        If the format cannot store the volume's type or units.
    """

    def __init__(
        self, path: Path, volume: Volume, shapes: Sequence[tuple[int, ...]], kind: Literal["ome", "imagej"]
    ) -> None:
        self.path = path
        self.axes = volume.axes
        self.shapes = list(shapes)
        allowed = _OME_TYPES if kind == "ome" else _IMAGEJ_TYPES
        if volume.dtype.name not in allowed:
            raise WriteError(
                f"{'OME-TIFF' if kind == 'ome' else 'ImageJ TIFF'} cannot store {volume.dtype}; it stores "
                f"{', '.join(allowed)}. Save as .zarr or .npy, or convert the values first"
            )
        # ImageJ's order of planes is T, Z, C; OME takes ours.
        self.order = [self.axes.index(axis) for axis in ("TCZYX" if kind == "ome" else "TZCYX") if axis in self.axes]
        self.dtype = volume.dtype.newbyteorder("<" if kind == "ome" else ">")
        # A page's own description takes less than a kilobyte.
        total = sum(math.prod(shape) * self.dtype.itemsize + math.prod(shape[:-2]) * 2**10 for shape in shapes)
        big = total > 2**32 - 2**25
        keyword = "kind" in inspect.signature(tifffile.TiffWriter.__init__).parameters
        options: dict[str, Any] = {"kind": kind} if keyword else {kind: True}
        options |= {
            "bigtiff": big and kind == "ome",
            "byteorder": self.dtype.str[0] if self.dtype.itemsize > 1 else "<",
        }
        self.offsets: list[int] = []
        with tifffile.TiffWriter(path, **options) as writer:
            for level, shape in enumerate(shapes):
                found = writer.write(
                    None,
                    # tifffile takes a last axis of size 1 for ImageJ's samples, unless those are there too.
                    shape=self._stored(shape, squeeze=True) + ((1,) if kind == "imagej" else ()),
                    dtype=volume.dtype,
                    photometric="minisblack",
                    returnoffset=True,
                    **(
                        self._options(volume, kind, len(shapes), big)
                        if level == 0
                        else {"subfiletype": 1, "metadata": None}
                    ),
                )
                if found is None:
                    raise WriteError(f"tifffile did not say where the voxels of {path} lie")
                self.offsets.append(int(found[0]))
        self.file = open(path, "r+b", buffering=0)

    def _stored(self, shape: Sequence[int], *, squeeze: bool = False) -> tuple[int, ...]:
        """Return a shape in the file's order; tifffile gets it without the axes of size 1."""
        ordered = tuple(shape[i] for i in self.order)
        return tuple(n for n in ordered[:-2] if n > 1 or not squeeze) + ordered[-2:]

    def _options(self, volume: Volume, kind: str, levels: int, big: bool) -> dict[str, Any]:
        letters = [self.axes[i] for i in self.order]
        metadata: dict[str, Any] = {"axes": "".join(a for a in letters if a in "YX" or volume.sizes[a] > 1)}
        record = json.dumps(volume.record())
        if kind == "imagej":
            extra, options = _imagej_scale(volume)
            metadata["axes"] += "S"
            return {"metadata": metadata | extra | {"Info": INFO + record}, "truncate": big} | options
        for axis, step in volume.scale.items():
            key = "TimeIncrement" if axis == "T" else f"PhysicalSize{axis}"
            metadata[key], metadata[f"{key}Unit"] = step, _ome_unit(volume, axis)
        if volume.name:
            metadata["Name"] = volume.name
        if volume.channel_names:
            metadata["Channel"] = {"Name": list(volume.channel_names)}
        metadata["MapAnnotation"] = {"Namespace": NAMESPACE, "record": record}
        options = {"metadata": metadata, "subifds": levels - 1 if levels > 1 else None}
        across, down = volume.voxel_size["X"], volume.voxel_size["Y"]
        if across and down and 1e-3 < min(across, down) and max(across, down) < 1e4:
            # For software that reads TIFF but not OME: pixels per centimetre.
            options |= {"resolution": (1e4 / across, 1e4 / down), "resolutionunit": "CENTIMETER"}
        return options

    def write(self, level: int, start: Sequence[int], block: NDArray[Any]) -> None:
        """Write a block where it belongs.

        Parameters
        ----------
        level : int
            Level of the pyramid.
        start : sequence of int
            First voxel of the block.
        block : ndarray
            Values, in the volume's order of axes.
        """
        shape = self._stored(self.shapes[level])
        first = [start[i] for i in self.order]
        values = np.ascontiguousarray(block.transpose(self.order), dtype=self.dtype)
        write_box(self.file, self.offsets[level], shape, first, values)

    def read(self, level: int, start: Sequence[int], stop: Sequence[int]) -> NDArray[Any]:
        """Read back a box that was written.

        Parameters
        ----------
        level : int
            Level of the pyramid.
        start, stop : sequence of int
            First voxel and one past the last.

        Returns
        -------
        ndarray
            In the volume's order of axes.
        """
        box = tuple(slice(start[i], stop[i]) for i in self.order)
        values = read_box(self.path, self.offsets[level], self._stored(self.shapes[level]), self.dtype, box)
        return values.transpose(np.argsort(self.order))

    def step(self, level: int) -> tuple[int, ...]:
        """Return the shape of the boxes in which a level is best written: rows of one plane, at most 16 MiB.

        Parameters
        ----------
        level : int
            Level of the pyramid.

        Returns
        -------
        tuple of int
        """
        *lead, height, width = self.shapes[level]
        rows = max(_LARGEST_BOX // (width * self.dtype.itemsize), 1)
        return (*(1 for _ in lead), min(rows, height), width)

    def finish(self, ranges: Sequence[tuple[float, float]]) -> None:
        """Make sure that everything is on the disk.

        Parameters
        ----------
        ranges : sequence of tuple of float
            Lowest and highest value of each channel, for which TIFF has no place.
        """
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file, finished or not."""
        self.file.close()


def _ome_unit(volume: Volume, axis: str) -> str:
    unit = volume.units[axis]
    if unit not in OME_SYMBOLS:
        raise WriteError(
            f"OME-TIFF has no symbol for the unit {unit!r} of axis {axis}; save as .zarr, or give the step "
            "in another unit"
        )
    return OME_SYMBOLS[unit]


def _imagej_scale(volume: Volume) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return metadata and resolution for ImageJ, which takes a missing step for 1 of its one unit."""
    steps = volume.voxel_size
    known = {axis: step for axis, step in steps.items() if step is not None}
    if known and len(known) < len(steps):
        raise WriteError(
            f"ImageJ TIFF cannot say that only the steps along {', '.join(known)} are known; save as "
            ".ome.tif or .zarr, or give the others"
        )
    metadata: dict[str, Any] = {}
    options: dict[str, Any] = {}
    if known:
        metadata["unit"] = "micron"
        options["resolution"] = (_density(known["X"]), _density(known["Y"]))
    if "Z" in known:
        metadata["spacing"] = known["Z"]
    if "T" in volume.scale:
        metadata["finterval"] = volume.scale["T"] * SECONDS[volume.units["T"]]
    return metadata, options


def _density(step: float) -> tuple[int, int]:
    """Return pixels per µm as a fraction of 32-bit numbers."""
    fraction = Fraction(step).limit_denominator(10**6)
    if float(fraction) != step:
        fraction = Fraction(step).limit_denominator(max(int(2**31 / max(step, 1.0)), 1))
    return fraction.denominator, fraction.numerator
