"""OME-Zarr 0.4 and 0.5, and bare zarr arrays: read lazily, written block by block.

An OME-Zarr image is a folder with one chunked array per level of a pyramid, and metadata that give each axis
a name, a type and a unit, and each level a scale. The format demands a scale for every axis; where the step
is not known it is 1.0 without a unit, so here a scale *without a unit* is a relative one, and the step is
unknown.

zarr reads and writes the blocks; yaozarrs' models check the metadata, both ways. What the format has no place
for (the history, which steps are known) lies beside it, under the attribute "napari_ambient". One writer
fills the arrays in order, so no two ever meet in one chunk.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dask.array as da
import numpy as np
import zarr
from dask.base import tokenize
from numpy.typing import NDArray
from pydantic import ValidationError
from yaozarrs import v04, v05
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore

from napari_ambient.volumes.errors import ReadError
from napari_ambient.volumes.stored import Stored, parse_record
from napari_ambient.volumes.units import unit_name
from napari_ambient.volumes.volume import AXES, Volume, file_stem

ATTRIBUTE = "napari_ambient"
"""Under which `Volume.record` lies."""
MARKS = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
"""A folder that has one of these is zarr."""

_TYPES: dict[str, Literal["time", "channel", "space"]] = {"T": "time", "C": "channel"}
_COLOURS = ("00FFFF", "FF00FF", "FFFF00", "00FF00", "FF0000", "0000FF")
_FINEST_CHUNK = 2**20
_CHUNK_YX = 512
_CHUNK_BYTES = 2**22


# --------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class ZarrBlocks:
    """A zarr array whose faults name the file."""

    array: zarr.Array[Any]
    path: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each dimension."""
        return tuple(int(n) for n in self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        dtype: np.dtype[Any] = np.dtype(self.array.dtype)
        return dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Read a part."""
        try:
            return np.asarray(self.array[index])
        except Exception as error:
            # A damaged chunk can make a codec raise anything.
            raise ReadError(
                f"a chunk of {self.path} cannot be read ({type(error).__name__}: {error}); the folder is "
                "probably damaged, so copy or export it again"
            ) from error


def read_zarr(path: str, *, level: int = 0, series: int | None = None) -> Stored:
    """Open a zarr array or an OME-Zarr image lazily.

    Parameters
    ----------
    path : str
        The folder of the image, or of an array.
    level : int
        Level of the pyramid, 0 for full resolution.
    series : int, optional
        Which image, in a folder that holds several.

    Returns
    -------
    Stored

    Raises
    ------
    ReadError
        If it is damaged, not an image, or holds several and `series` does not say which.
    """
    node = _open(path)
    if isinstance(node, zarr.Array):
        return _read_array(path, node, level)
    attributes = node.attrs.asdict()
    ome = attributes.get("ome")
    ome = ome if isinstance(ome, Mapping) else attributes
    if "multiscales" in ome:
        return _read_image(path, node, ome, attributes.get(ATTRIBUTE), level, series)
    if "plate" in ome or "well" in ome:
        raise ReadError(f"{path} is a plate; open one of its images, such as {os.path.join(path, 'A/1/0')}")
    members = sorted(name for name, _ in node.members())
    if "bioformats2raw.layout" in ome:
        images = [name for name in members if name.isdecimal()]
        number = 0 if series is None and len(images) == 1 else series
        if number is None or str(number) not in images:
            raise ReadError(f"{path} holds the images {', '.join(images)}; say which with series=0, 1, …")
        return read_zarr(os.path.join(path, str(number)), level=level)
    raise ReadError(
        f"{path} is a zarr group without OME metadata; it holds {', '.join(members) or 'nothing'}. Open one "
        f"of its arrays, such as {os.path.join(path, members[0] if members else '0')}"
    )


def _open(path: str) -> zarr.Array[Any] | zarr.Group:
    if not any(os.path.exists(os.path.join(path, mark)) for mark in MARKS):
        raise ReadError(f"{path} has none of {', '.join(MARKS)}, so it is no zarr array or group, or not a whole one")
    try:
        store = LocalStore(path, read_only=True)
        node: zarr.Array[Any] | zarr.Group = zarr.open(store, mode="r")
        return node
    except Exception as error:
        # zarr raises whatever its parser meets: KeyError, ValueError, its own, JSONDecodeError.
        raise ReadError(
            f"{path} cannot be opened as zarr ({type(error).__name__}: {error}); its metadata are damaged or incomplete"
        ) from error


def _lazy(path: str, array: zarr.Array[Any], *key: Any) -> da.Array:
    """Make the lazy array; its blocks are one zarr chunk, or a few along X, Y, … where these are small."""
    blocks = ZarrBlocks(array, path)
    if blocks.ndim < 2 or 0 in blocks.shape:
        raise ReadError(f"{path} has shape {blocks.shape}; an image has at least Y and X, of size 1 or more")
    if blocks.dtype.kind not in "biufc":
        raise ReadError(f"{path} holds values of type {blocks.dtype}, not intensities")
    chunks = [min(int(c), n) for c, n in zip(array.chunks, blocks.shape, strict=True)]
    for axis in reversed(range(blocks.ndim)):
        left = _FINEST_CHUNK // (blocks.dtype.itemsize * math.prod(chunks))
        if left > 1:
            chunks[axis] = min(chunks[axis] * left, blocks.shape[axis])
    data: da.Array = da.from_array(
        blocks,
        chunks=tuple(chunks),
        name=f"zarr-{tokenize(path, blocks.shape, blocks.dtype, *key)}",
        asarray=False,
        meta=np.empty((0,) * blocks.ndim, blocks.dtype),
    )
    return data


def _read_array(path: str, array: zarr.Array[Any], level: int) -> Stored:
    if level != 0:
        raise ReadError(f"{path} is one array without levels; leave level at 0")
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    data = _lazy(path, array, _age(path))
    axes = "?" * (data.ndim - 2) + "YX"
    if isinstance(names, list | tuple) and len(names) == data.ndim:
        named = "".join(_letter(str(name), None) for name in names)
        # Names are kept only where they say all: unknown ones mean nothing beside an assumed Y and X.
        if {"Y", "X"} <= set(named) and len(set(named) - {"?"}) + named.count("?") == data.ndim:
            axes = named
    found = array.attrs.get(ATTRIBUTE)
    record = parse_record(found, path) if isinstance(found, Mapping) else None
    return Stored(data=data, axes=axes, scale={}, units={}, channel_names=(), name=file_stem(path), record=record)


def _age(path: str) -> list[int]:
    """Return what changes when the folder is replaced by another of the same name."""
    marks = [os.path.join(path, mark) for mark in MARKS]
    return [os.stat(mark).st_mtime_ns for mark in marks if os.path.exists(mark)]


def _letter(name: str, kind: str | None) -> str:
    """Return the axis that a name and a type mean, or "?"."""
    if kind in ("time", "channel"):
        return {"time": "T", "channel": "C"}[kind]
    letter = {"TIME": "T", "CHANNEL": "C"}.get(name.upper(), name.upper())
    return letter if len(letter) == 1 and letter in AXES else "?"


def _read_image(
    path: str, group: zarr.Group, ome: Mapping[str, Any], found: Any, level: int, series: int | None
) -> Stored:
    images = ome["multiscales"]
    count = len(images) if isinstance(images, list) else 0
    if series is None and count > 1:
        raise ReadError(f"{path} holds {count} images; say which with series=0, 1, …")
    number = series or 0
    if not 0 <= number < count:
        raise ReadError(f"{path} has no series {number}; it holds {count} images")
    image = _checked(path, ome, images[number])
    if not 0 <= level < len(image.datasets):
        names = ", ".join(f"{i} ({entry.path})" for i, entry in enumerate(image.datasets))
        raise ReadError(f"{path} has no level {level}; its levels are {names}")
    dataset = image.datasets[level]
    where = os.path.join(path, dataset.path)
    array = _open(where)
    if not isinstance(array, zarr.Array) or array.ndim != len(image.axes):
        raise ReadError(
            f"{where} should be an array with the axes {', '.join(axis.name for axis in image.axes)}; the "
            "metadata and the data do not belong together"
        )
    letters = [_letter(axis.name, axis.type) for axis in image.axes]
    axes = "".join("?" if letters.count(letter) > 1 else letter for letter in letters)
    steps = [1.0] * len(axes)
    for transform in (*dataset.coordinateTransformations, *(image.coordinateTransformations or ())):
        if transform.type == "scale":
            steps = [a * b for a, b in zip(steps, transform.scale, strict=True)]
    scale: dict[str, float] = {}
    units: dict[str, str] = {}
    unclear = []
    for letter, axis, step in zip(axes, image.axes, steps, strict=True):
        unit = unit_name(axis.unit, letter)
        if letter in "TZYX" and unit and step > 0:
            scale[letter], units[letter] = float(step), unit
        elif letter in "TZYX" and level == 0 and step != 1:
            unclear.append(f"{axis.name} ({step} {axis.unit or 'without a unit'})")
    if unclear:
        warnings.warn(
            f"{path} gives steps without a unit of length or time, which are taken as unknown: "
            f"{', '.join(unclear)}; say the voxel size if you know it",
            UserWarning,
            stacklevel=5,
        )
    record = parse_record(found, path) if isinstance(found, Mapping) else None
    return Stored(
        data=_lazy(where, array, _age(path), level),
        axes=axes,
        scale=scale,
        units=units,
        channel_names=_channel_names(ome.get("omero"), record),
        name=str((record or {}).get("name") or image.name or file_stem(path)),
        record=record,
    )


def _checked(path: str, ome: Mapping[str, Any], image: Any) -> Any:
    """Check the metadata of one image against its version's model, a Multiscale of yaozarrs."""
    version = ome.get("version") or (image.get("version") if isinstance(image, Mapping) else None) or "0.4"
    models: dict[Any, Any] = {"0.4": v04.Multiscale, "0.5": v05.Multiscale}
    if version not in models:
        raise ReadError(f"{path} is OME-Zarr {version}; 0.4 and 0.5 can be read. Convert it, or open one of its arrays")
    try:
        with warnings.catch_warnings():
            # An unusual unit makes the step unknown, and is reported there.
            warnings.simplefilter("ignore")
            return models[version].model_validate(image)
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise ReadError(
            f"{path} has damaged OME-Zarr {version} metadata ({reasons}). Correct them, or open one of the "
            f"arrays and name its axes, such as {os.path.join(path, '0')}"
        ) from error


def _channel_names(omero: Any, record: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Read the labels of a section that many programs write incompletely; nothing else of it is used."""
    channels = omero.get("channels") if isinstance(omero, Mapping) else None
    if not isinstance(channels, list):
        return tuple((record or {}).get("channel_names", ()))
    names = tuple(str(entry.get("label") or "") if isinstance(entry, Mapping) else "" for entry in channels)
    return names if all(names) else ()


# --------------------------------------------------------------------------------------------- writing


class ZarrTarget:
    """An OME-Zarr image being filled, block by block, by one writer.

    Parameters
    ----------
    path : Path
        The (temporary) folder to make.
    volume : Volume
        What will be written: its shape, type, blocks and metadata are used here, its values are not computed.
    shapes : sequence of tuple of int
        Shape of each level of the pyramid, full resolution first.
    version : {"0.4", "0.5"}
        Of OME-Zarr; 0.4 is stored as zarr 2, 0.5 as zarr 3.
    """

    def __init__(
        self, path: Path, volume: Volume, shapes: Sequence[tuple[int, ...]], version: Literal["0.4", "0.5"]
    ) -> None:
        self.volume = volume
        self.version = version
        self.shapes = list(shapes)
        blocks = tuple(max(chunks) for chunks in volume.data.chunks)
        self.group = zarr.create_group(LocalStore(path), zarr_format=2 if version == "0.4" else 3)
        self.arrays = [self._create(level, shape, blocks) for level, shape in enumerate(shapes)]

    def _create(self, level: int, shape: tuple[int, ...], blocks: tuple[int, ...]) -> zarr.Array[Any]:
        chunks = zarr_chunks(shape, blocks, self.volume.dtype.itemsize)
        if self.version == "0.4":
            from numcodecs import Blosc

            return self.group.create_array(
                str(level),
                shape=shape,
                chunks=chunks,
                dtype=self.volume.dtype,
                fill_value=0,
                compressors=Blosc("zstd", clevel=3, shuffle=Blosc.SHUFFLE),
                chunk_key_encoding={"name": "v2", "separator": "/"},
            )
        return self.group.create_array(
            str(level),
            shape=shape,
            chunks=chunks,
            dtype=self.volume.dtype,
            fill_value=0,
            compressors=BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),
            dimension_names=[axis.lower() for axis in self.volume.axes],
        )

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
        box = tuple(slice(a, a + n) for a, n in zip(start, block.shape, strict=True))
        self.arrays[level][box] = block

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
        """
        return np.asarray(self.arrays[level][tuple(slice(a, b) for a, b in zip(start, stop, strict=True))])

    def step(self, level: int) -> tuple[int, ...]:
        """Return the shape of the boxes in which a level is best written: its chunks.

        Parameters
        ----------
        level : int
            Level of the pyramid.

        Returns
        -------
        tuple of int
        """
        return tuple(int(n) for n in self.arrays[level].chunks)

    def finish(self, ranges: Sequence[tuple[float, float]]) -> None:
        """Write the metadata, which make an image of the arrays.

        Parameters
        ----------
        ranges : sequence of tuple of float
            Lowest and highest value of each channel, for viewers.
        """
        volume = self.volume
        axes = []
        for axis in volume.axes:
            entry = {"name": axis.lower(), "type": _TYPES.get(axis, "space")}
            if axis in volume.units:
                entry["unit"] = volume.units[axis]
            axes.append(entry)
        image: dict[str, Any] = {
            "axes": axes,
            "datasets": [self._dataset(i) for i in range(len(self.shapes))],
        }
        if volume.name:
            image["name"] = volume.name
        if len(self.shapes) > 1:
            image |= {"type": "mean", "metadata": {"description": "mean of 2 x 2 voxels in Y and X"}}
        sections = {"multiscales": [image], "omero": {"channels": _omero(volume, ranges)}}
        if self.version == "0.5":
            model: v04.Image | v05.Image = v05.Image.model_validate(sections)
            attributes = {"ome": model.model_dump(mode="json", exclude_none=True)}
        else:
            model = v04.Image.model_validate(sections)
            attributes = model.model_dump(mode="json", exclude_none=True, exclude={"uri"})
        self.group.update_attributes(attributes | {ATTRIBUTE: volume.record()})

    def _dataset(self, level: int) -> dict[str, Any]:
        """Say how a level lies in space: its voxels cover 2^k of the full image, so their centres move."""
        steps, moves = [], []
        for axis in self.volume.axes:
            step = self.volume.scale.get(axis, 1.0)
            factor = 2**level if axis in "YX" else 1
            steps.append(step * factor)
            moves.append(step * (factor - 1) / 2)
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": steps}]
        if level:
            transforms.append({"type": "translation", "translation": moves})
        return {"path": str(level), "coordinateTransformations": transforms}

    def close(self) -> None:
        """Do nothing: zarr keeps no file open."""


def _omero(volume: Volume, ranges: Sequence[tuple[float, float]]) -> list[dict[str, Any]]:
    """Say how a viewer may show the channels at first: each over its whole range."""
    channels = []
    for i, (low, high) in enumerate(ranges):
        channel: dict[str, Any] = {
            "color": "FFFFFF" if len(ranges) == 1 else _COLOURS[i % len(_COLOURS)],
            "window": {"min": low, "start": low, "end": high, "max": high},
            "active": True,
        }
        if volume.channel_names:
            channel["label"] = volume.channel_names[i]
        channels.append(channel)
    return channels


def zarr_chunks(shape: Sequence[int], blocks: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Choose the chunks of an array written in blocks: up to 4 MiB, each within one block where possible.

    Parameters
    ----------
    shape : sequence of int
        The array's shape.
    blocks : sequence of int
        Shape of the blocks in which it is written.
    itemsize : int
        Bytes per voxel.

    Returns
    -------
    tuple of int
    """
    chunks = [1] * len(shape)
    left = _CHUNK_BYTES // itemsize
    for axis in reversed(range(len(shape))):
        limit = min(shape[axis], max(left, 1), _CHUNK_YX if axis >= len(shape) - 2 else 2**30)
        chunks[axis] = _divisor(min(blocks[axis], shape[axis]), limit)
        left //= chunks[axis]
    return tuple(chunks)


def _divisor(block: int, limit: int) -> int:
    """Return the largest divisor of the block's size up to a limit, unless that is wastefully small."""
    best = max(n for n in range(1, limit + 1) if block % n == 0) if limit < block else block
    return best if 4 * best >= min(limit, block) else limit
