"""TIFF, ImageJ TIFF and OME-TIFF: what the file says, and where its voxels lie.

A TIFF file is a chain of pages; tifffile finds out which page is which plane of the image, whoever wrote it.
Its answer is kept as plain numbers: an offset, where the voxels lie in one piece (`inplace.py`), else a table
of segments (`tiff_pages.py`). Opening reads the headers and no voxel.

Steps are believed where they are physical: from OME-XML with a physical unit, from ImageJ with a unit other
than "pixel", from bare resolution tags only up to 5 µm (coarser ones are printing resolutions: 300 dpi is 85
µm). The tags' default, 1/1, means nothing.
"""

from __future__ import annotations

import logging
import math
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import dask.array as da
import numpy as np
import tifffile
from dask.base import tokenize

from napari_ambient.volumes.errors import ReadError
from napari_ambient.volumes.inplace import InPlace, stamp
from napari_ambient.volumes.stored import Stored, parse_record
from napari_ambient.volumes.tiff_pages import JPEG, Paged
from napari_ambient.volumes.units import MICROMETERS, unit_name
from napari_ambient.volumes.volume import AXES, file_stem

NAMESPACE = "napari-ambient"
"""Of the OME annotation that holds `Volume.record`."""
INFO = f"{NAMESPACE}: "
"""How ImageJ's Info begins where it holds `Volume.record`."""

_FINEST_CHUNK = 2**20
_LARGEST_CHUNK = 2**24
_COARSEST_PIXEL = 5.0  # µm, 5080 dpi: finer than screens and printers


def read_tiff(path: str, *, level: int = 0, series: int | None = None) -> Stored:
    """Open a TIFF file lazily.

    Parameters
    ----------
    path : str
        The file.
    level : int
        Level of the pyramid, 0 for full resolution.
    series : int, optional
        Which image, in a file that holds several.

    Returns
    -------
    Stored

    Raises
    ------
    ReadError
        If it is damaged, not an image, or holds several images and `series` does not say which.
    """
    try:
        with _faults(path) as faults, tifffile.TiffFile(path) as tif:
            every = list(tif.series)
            if faults:
                raise ReadError(f"{path} is damaged or cut short: {faults[0]}")
            number, chosen = _choose_series(path, every, series)
            if not 0 <= level < len(chosen.levels):
                shapes = ", ".join(f"{i} {tuple(one.shape)}" for i, one in enumerate(chosen.levels))
                raise ReadError(f"{path} has no level {level}; its levels are {shapes}")
            image = chosen.levels[level]
            axes, names = _letters(path, image)
            array = _lay(path, image, len(axes), tif.byteorder)
            scale, units, title, labels, record = _metadata(path, tif, number, every)
            if faults:
                raise ReadError(f"{path} is damaged or cut short: {faults[0]}")
    except ReadError:
        raise
    except PermissionError as error:
        raise ReadError(f"{path} may not be read: {error.strerror}") from error
    except Exception as error:
        # tifffile parses what it is given; a damaged file can make it raise anything.
        raise ReadError(
            f"{path} cannot be read as TIFF ({type(error).__name__}: {error}); it is probably damaged"
        ) from error
    for axis in scale.keys() & {"Y", "X"}:
        scale[axis] *= _shrinkage(chosen, image)[axis]
    data = da.from_array(
        array,
        chunks=_chunks(array, axes),
        name=f"tiff-{tokenize(path, stamp(path), level, number)}",
        asarray=False,
        meta=np.empty((0,) * array.ndim, array.dtype),
    )
    return Stored(
        data=data,
        axes=axes,
        scale=scale,
        units=units,
        channel_names=labels or names,
        name=title or file_stem(path),
        record=record,
        expandable=True,
    )


def _shrinkage(full: Any, level: Any) -> dict[str, float]:
    """Return by how much a level of the pyramid is coarser along Y and X.

    Sizes are rounded, factors as a rule are whole and the same for both: the longer axis tells.
    """
    sizes = {axis: tuple(one.shape[one.axes.index(axis)] for one in (full, level)) for axis in "YX"}
    factor = max(round(max(sizes.values())[0] / max(sizes.values())[1]), 1)
    return {axis: factor if abs(n / factor - m) < 1 else n / m for axis, (n, m) in sizes.items()}


@contextmanager
def _faults(path: str) -> Iterator[list[str]]:
    """Collect what tifffile only logs: it goes on without the pages that it cannot find, and we must not."""
    found: list[str] = []
    notes: list[str] = []
    thread = threading.get_ident()

    class Listener(logging.Handler):
        def emit(self, entry: logging.LogRecord) -> None:
            if entry.thread == thread:
                text = entry.getMessage()
                # A tag that nobody needs (270 is the description), or a count that tifffile corrects.
                harmless = any(part in text for part in ("TiffTag", "incorrect Strip", "missing ByteCounts"))
                harmless = harmless and "TiffTag 270 " not in text
                (notes if harmless or entry.levelno < logging.ERROR else found).append(text)

    listener = Listener(logging.WARNING)
    logger = logging.getLogger("tifffile")
    logger.addHandler(listener)
    try:
        yield found
    finally:
        logger.removeHandler(listener)
    for note in notes:
        warnings.warn(f"{path}: {note}", UserWarning, stacklevel=4)


def _choose_series(path: str, every: Sequence[Any], series: int | None) -> tuple[int, Any]:
    """Pick the image: the only one, the one asked for, or the first where the others are thumbnails."""
    if not every:
        raise ReadError(f"{path} holds no image")
    listed = ", ".join(f"{i} {tuple(one.shape)}" for i, one in enumerate(every))
    if series is not None:
        if not 0 <= series < len(every):
            raise ReadError(f"{path} has no series {series}; its images are {listed}")
        return series, every[series]
    plane = [math.prod(one.keyframe.shape) for one in every]
    if len(every) > 1 and max(plane[1:]) * 4 > plane[0]:
        raise ReadError(f"{path} holds {len(every)} images: {listed}; say which with series=0, 1, …")
    return 0, every[0]


def _letters(path: str, image: Any) -> tuple[str, tuple[str, ...]]:
    """Return the axes in the file's order, "?" for one without a meaning, and colours as channel names.

    Samples of a pixel (red, green, blue) become the channel axis: in fluorescence each is a channel.
    """
    axes = str(image.axes)
    names: tuple[str, ...] = ()
    if axes.endswith("S") and image.shape[-1] == 1:
        axes = axes[:-1]
    if "S" in axes:
        if "C" in axes:
            raise ReadError(
                f"{path} has channels and colours ({axes}, shape {tuple(image.shape)}); save the channels as "
                "grey levels"
            )
        count = image.shape[axes.index("S")]
        axes = axes.replace("S", "C")
        if int(image.keyframe.photometric) in (2, 6) and count in (3, 4):
            names = ("red", "green", "blue", "alpha")[:count]
    letters = "".join(letter if letter in AXES and axes.count(letter) == 1 else "?" for letter in axes)
    if not {"Y", "X"} <= set(letters):
        # Free text in a tifffile description; the pages themselves end with Y and X.
        letters = "?" * (len(axes) - 2) + "YX"
    return letters, names


def _lay(path: str, image: Any, ndim: int, byteorder: str) -> InPlace | Paged:
    """Note where the voxels of a series lie, and check that the file is long enough to hold them."""
    shape = tuple(int(n) for n in image.shape[:ndim])
    if 0 in shape or not shape:
        raise ReadError(f"{path} holds no voxels: its shape is {shape}")
    if image.dtype is None or getattr(image, "transform", None) is not None:
        raise ReadError(f"{path} stores its values in a way that is not supported; export it as OME-TIFF")
    if image.dataoffset is None or image.is_multifile:
        return _lay_pages(path, image, shape)
    stored = np.dtype(image.dtype).newbyteorder("<" if byteorder == "<" else ">")
    mark = stamp(path)
    need = int(image.dataoffset) + math.prod(shape) * stored.itemsize
    if mark[0] < need:
        raise ReadError(f"{path} is cut short: its image needs {need} bytes, the file has {mark[0]}")
    return InPlace(path, mark, int(image.dataoffset), shape, stored)


def _lay_pages(path: str, image: Any, shape: tuple[int, ...]) -> Paged:
    key, pages = image.keyframe, list(image.pages)
    missing = [i for i, page in enumerate(pages) if page is None]
    if missing:
        raise ReadError(
            f"{len(missing)} of the {len(pages)} planes of {path} are missing, first plane {missing[0]}: the "
            "recording was stopped early, or a file that belongs to it is not beside it"
        )
    page_shape = tuple(int(n) for n in key.shape)
    lead = len(shape) - len(page_shape)
    if shape[lead:] != page_shape or math.prod(shape[:lead]) != len(pages):
        raise ReadError(
            f"{path} has shape {shape} in {len(pages)} pages of {page_shape}, an arrangement that is not "
            "supported; export it as OME-TIFF"
        )
    frame = [int(n) for n in key.shaped]
    segment = [1, 1, min(max(int(key.rowsperstrip), 1), frame[2]), frame[3], frame[4]]
    if key.is_tiled:
        segment[1:4] = max(int(key.tiledepth), 1), int(key.tilelength), int(key.tilewidth)
    segments = math.prod(-(-n // c) for n, c in zip(frame, segment, strict=True))
    offsets = np.zeros((len(pages), segments), np.int64)
    counts = np.zeros((len(pages), segments), np.int64)
    files: dict[str, int] = {}
    file_of_page = np.zeros(len(pages), np.int32)
    for i, page in enumerate(pages):
        file_of_page[i] = files.setdefault(str(page.parent.filehandle.path), len(files))
        if min(len(page.dataoffsets), len(page.databytecounts)) < segments:
            raise ReadError(f"{path} is damaged: only {len(page.dataoffsets)} of {segments} parts of plane {i} exist")
        offsets[i] = page.dataoffsets[:segments]
        counts[i] = page.databytecounts[:segments]
    counts[offsets == 0] = 0
    stamps = tuple(stamp(file) for file in files)
    ends = (offsets + counts).max(axis=1)
    for file, number in files.items():
        end = int(ends[file_of_page == number].max())
        if end > stamps[number][0]:
            raise ReadError(f"{file} is cut short: its planes end at byte {end}, the file at {stamps[number][0]}")
    return Paged(
        files=tuple(files),
        stamps=stamps,
        shape=shape,
        dtype=np.dtype(image.dtype).newbyteorder("="),
        page_axes=str(key.axes),
        frame=tuple(frame),
        segment=tuple(segment),
        keyframe=(files[str(key.parent.filehandle.path)], int(key.offset)),
        file_of_page=file_of_page,
        offsets=offsets,
        counts=counts,
        tables=tuple(page.jpegtables for page in pages) if int(key.compression) in JPEG else (),
    )


def _chunks(array: InPlace | Paged, axes: str) -> tuple[int, ...]:
    """Choose the blocks: a plane, several where they are below 1 MiB, whole segments where above 16."""
    y, x = axes.index("Y"), axes.index("X")
    first = min(y, x, *(i for i, letter in enumerate(axes) if letter == "C" and i > y))
    chunks = [1] * first + list(array.shape[first:])
    samples = array.dtype.itemsize * math.prod(chunks) // (array.shape[y] * array.shape[x])
    height, width = (array.segment[2], array.segment[3]) if isinstance(array, Paged) else (1, array.shape[x])
    if samples * array.shape[x] * height > _LARGEST_CHUNK:
        chunks[x] = min(max(_LARGEST_CHUNK // (samples * height * width), 1) * width, array.shape[x])
    if samples * chunks[x] * array.shape[y] > _LARGEST_CHUNK:
        chunks[y] = min(max(_LARGEST_CHUNK // (samples * chunks[x] * height), 1) * height, array.shape[y])
    if first > 0 and axes[first - 1] != "C":
        plane = array.dtype.itemsize * math.prod(chunks)
        chunks[first - 1] = min(max(_FINEST_CHUNK // plane, 1), array.shape[first - 1])
    return tuple(chunks)


Facts = tuple[dict[str, float], dict[str, str], str, tuple[str, ...], Mapping[str, Any] | None]


def _metadata(path: str, tif: Any, number: int, every: Sequence[Any]) -> Facts:
    """Return steps, their units, the name, the channels' names and our record, from what the file has."""
    if tif.ome_metadata:
        return _from_ome(path, tif.ome_metadata, number, every)
    page = tif.pages.first
    imagej = tif.imagej_metadata
    shaped = tif.shaped_metadata
    meta = imagej if imagej is not None else (shaped[0] if shaped else {})
    text = str(meta.get("Info", ""))
    record = parse_record(text.removeprefix(INFO), path) if text.startswith(INFO) else None
    scale, units = _from_imagej(meta, page, set((record or {}).get("scale", ())))
    if not scale and imagej is None:
        scale, units = _from_tags(page)
    names = tuple((record or {}).get("channel_names", ()))
    return scale, units, str((record or {}).get("name", "")), names, record


def _from_ome(path: str, xml: str, number: int, every: Sequence[Any]) -> Facts:
    root = ElementTree.fromstring(xml)
    if any(_tag(element) == "BinaryOnly" for element in root):
        raise ReadError(
            f"{path} is one file of a larger data set whose description is in another file; open that one, "
            "or convert the data set to OME-Zarr"
        )
    images = [(image, part) for image in root if _tag(image) == "Image" for part in image if _tag(part) == "Pixels"]
    if len(images) != len(every):
        # tifffile leaves out images without voxels: take the first of the right size.
        key = every[number].keyframe
        size = (str(key.imagewidth), str(key.imagelength))
        images = [(image, part) for image, part in images if (part.get("SizeX"), part.get("SizeY")) == size]
        number = 0
    record = None
    for element in root.iter():
        if _tag(element) == "MapAnnotation" and element.get("Namespace") == NAMESPACE:
            text = next((entry.text for entry in element.iter() if entry.get("K") == "record"), None)
            record = parse_record(text or "", path)
    if number >= len(images):
        return {}, {}, "", (), record
    image, part = images[number]
    scale: dict[str, float] = {}
    units: dict[str, str] = {}
    for axis in "TZYX":
        key, default = ("TimeIncrement", "s") if axis == "T" else (f"PhysicalSize{axis}", "µm")
        step = _positive(part.get(key))
        unit = unit_name(part.get(f"{key}Unit", default), axis)
        if step and unit:
            scale[axis], units[axis] = step, unit
    names = tuple(" ".join(entry.get("Name", "").split()) for entry in part if _tag(entry) == "Channel")
    title = image.get("Name", "")
    # What tifffile writes where there is no name.
    return scale, units, "" if title == "Image0" else title, names if all(names) else (), record


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _positive(text: Any) -> float | None:
    """Return a positive number, or None: files write 0 or -1 for what they do not know."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def _pixels_per_unit(page: Any, axis: str, meant: bool = False) -> float | None:
    """Return a resolution tag, or None where it is absent or 1/1, unless that is known to be meant."""
    tag = f"{axis}Resolution"
    value = page.tags[tag].value if tag in page.tags else None
    if not isinstance(value, tuple) or len(value) != 2 or not value[1]:
        return None
    # ImageJ writes one pixel per unit as 1000000/1000000; 1/1 is what stands there when nobody set it.
    if tuple(value) == (1, 1) and not meant:
        return None
    return _positive(value[0] / value[1])


def _from_imagej(meta: Mapping[str, Any], page: Any, known: set[str]) -> tuple[dict[str, float], dict[str, str]]:
    """Return an ImageJ file's steps; without a physical unit they count pixels, so they are unknown.

    `known` are the axes whose step we wrote.
    """
    scale: dict[str, float] = {}
    units: dict[str, str] = {}
    for axis, key in (("Z", "zunit"), ("Y", "yunit"), ("X", "unit")):
        unit = unit_name(meta.get(key) or meta.get("unit"), axis)
        if axis == "Z":
            # ImageJ writes a negative spacing for a stack recorded downwards.
            step = _positive(str(meta.get("spacing", "")).lstrip("-"))
        else:
            density = _pixels_per_unit(page, axis, axis in known)
            step = 1 / density if density else None
        if unit and step:
            scale[axis], units[axis] = step, unit
    interval, unit = _positive(meta.get("finterval")), unit_name(meta.get("tunit", "s"), "T")
    if interval and unit:
        scale["T"], units["T"] = interval, unit
    return scale, units


def _from_tags(page: Any) -> tuple[dict[str, float], dict[str, str]]:
    """Return the steps of a bare TIFF, where they can only be meant physically."""
    unit = int(page.tags["ResolutionUnit"].value) if "ResolutionUnit" in page.tags else 1
    length = {2: MICROMETERS["inch"], 3: MICROMETERS["centimeter"]}.get(unit)
    scale: dict[str, float] = {}
    for axis in "YX":
        density = _pixels_per_unit(page, axis)
        if length and density and length / density <= _COARSEST_PIXEL:
            scale[axis] = length / density
    return scale, dict.fromkeys(scale, "micrometer")
