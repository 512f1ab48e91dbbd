"""TIFF files of every make read as tifffile reads them, lazily; what we write, tifffile reads."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import pickle
import re
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import dask.array as da
import numpy as np
import pytest
import tifffile

from napari_ambient.volumes import (
    AxesError,
    ReadError,
    Volume,
    VolumeError,
    WriteError,
    open_volume,
    save_volume,
)

SHAPE = (6, 50, 70)


def kind(name: str) -> dict[str, Any]:
    """Say which flavour tifffile is to write; the argument changed in 2026.5."""
    return {"kind": name} if "kind" in inspect.signature(tifffile.imwrite).parameters else {name: True}


def values(shape: tuple[int, ...] = SHAPE, dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(5).integers(0, 250, shape).astype(dtype)


def read(volume: Volume) -> np.ndarray:
    return volume.data.compute(scheduler="synchronous")


# ------------------------------------------------------------------------------------- layouts

LAYOUTS: dict[str, dict[str, Any]] = {
    "one piece": {},
    "big endian": {"byteorder": ">"},
    "bigtiff": {"bigtiff": True},
    "zlib": {"compression": "zlib"},
    "lzw, predictor": {"compression": "lzw", "predictor": True},
    "zstd, strips of 7 rows": {"compression": "zstd", "rowsperstrip": 7},
    "zlib, big endian": {"compression": "zlib", "byteorder": ">", "rowsperstrip": 11},
    "strips of 7 rows": {"rowsperstrip": 7},
    "tiles": {"tile": (32, 16)},
    "tiles, zlib, bigtiff": {"tile": (16, 32), "compression": "zlib", "bigtiff": True},
    "volume tiles": {"tile": (16, 16, 16), "volumetric": True},
    "ome": kind("ome"),
    "ome, zlib": {"compression": "zlib", **kind("ome")},
    "imagej": kind("imagej"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_as_tifffile_reads_it(tmp_path: Path, layout: str, rng: np.random.Generator) -> None:
    path, array = tmp_path / "a.tif", values()
    tifffile.imwrite(path, array, photometric="minisblack", metadata={"axes": "ZYX"}, **LAYOUTS[layout])
    volume = open_volume(path)
    assert (volume.axes, volume.dtype, volume.shape) == ("ZYX", array.dtype, array.shape)
    np.testing.assert_array_equal(read(volume), array)
    for _ in range(8):
        # Crops, steps and single planes, as dask asks for them.
        low = [int(rng.integers(n)) for n in SHAPE]
        high = [int(rng.integers(a, n)) + 1 for a, n in zip(low, SHAPE, strict=True)]
        crop = tuple(slice(a, b, int(rng.integers(1, 4))) for a, b in zip(low, high, strict=True))
        np.testing.assert_array_equal(volume.data[crop].compute(scheduler="synchronous"), array[crop])
    np.testing.assert_array_equal(volume.data[3, ::-1, 5].compute(scheduler="synchronous"), array[3, ::-1, 5])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_every_type_reads_as_it_is(tmp_path: Path, dtype: str, compression: str | None) -> None:
    path, array = tmp_path / "a.tif", values((40, 50), dtype)
    tifffile.imwrite(path, array, compression=compression)
    volume = open_volume(path)
    assert volume.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read(volume), array)


def test_lossy_jpeg_tiles_decode_as_tifffile_decodes_them(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    smooth = np.add.outer(np.arange(100), np.arange(120)).astype(np.uint8)
    tifffile.imwrite(path, smooth, tile=(32, 32), compression="jpeg")
    np.testing.assert_array_equal(read(open_volume(path)), tifffile.imread(path))


def test_two_valued_images_become_zero_and_one(tmp_path: Path) -> None:
    path, mask = tmp_path / "a.tif", values((40, 50)) > 100
    tifffile.imwrite(path, mask)
    volume = open_volume(path)
    assert volume.dtype == np.uint8
    np.testing.assert_array_equal(read(volume), mask)


def test_complex_values_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values((4, 5)).astype("complex64"))
    with pytest.raises(VolumeError, match=r"a\.tif.*complex64.*magnitude"):
        open_volume(tmp_path / "a.tif")


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_colours_become_channels(tmp_path: Path, planar: bool, compression: str | None) -> None:
    path, array = tmp_path / "a.tif", values((3, 40, 50), "uint8")
    stored = array if planar else np.moveaxis(array, 0, -1)
    config = "separate" if planar else "contig"
    tifffile.imwrite(path, stored, photometric="rgb", planarconfig=config, compression=compression)
    volume = open_volume(path)
    assert (volume.axes, volume.channel_names) == ("CYX", ("red", "green", "blue"))
    np.testing.assert_array_equal(read(volume), array)
    np.testing.assert_array_equal(read(open_volume(path, channel="green")), array[1])


def test_colours_beside_channels_are_refused(tmp_path: Path) -> None:
    array = values((2, 40, 50, 3), "uint8")
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", metadata={"axes": "CYXS"})
    with pytest.raises(ReadError, match="channels and colours"):
        open_volume(tmp_path / "a.tif")


# ---------------------------------------------------------------------------------------- lazy


@pytest.mark.parametrize("layout", ["one piece", "zlib", "tiles, zlib, bigtiff"])
def test_no_file_stays_open(tmp_path: Path, layout: str) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("open files can only be listed on Linux")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values(), metadata={"axes": "ZYX"}, **LAYOUTS[layout])

    def open_files() -> list[str]:
        links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
        return [os.readlink(link) for link in links if os.path.lexists(link)]

    volume = open_volume(path)
    assert str(path) not in open_files()
    read(volume)
    assert str(path) not in open_files()
    with open("/proc/self/maps") as maps:
        assert str(path) not in maps.read()
    with open(path, "rb"):
        # The check sees a file that is open.
        assert str(path) in open_files()


@pytest.mark.parametrize("tiled", [False, True])
def test_only_the_segments_needed_are_read(tmp_path: Path, tiled: bool) -> None:
    path, array = tmp_path / "a.tif", values((6, 64, 64))
    options = {"tile": (32, 32)} if tiled else {"rowsperstrip": 32}
    tifffile.imwrite(path, array, metadata={"axes": "ZYX"}, compression="zlib", **options)
    with tifffile.TiffFile(path) as tif:
        keep = tif.pages[4].dataoffsets[0]
        spoil = [offset for page in tif.pages for offset in page.dataoffsets if offset != keep]
    with open(path, "r+b") as file:
        for offset in spoil:
            file.seek(offset)
            file.write(b"\xff" * 16)
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.data[4, 3:30, 5:20].compute(scheduler="sync"), array[4, 3:30, 5:20])
    for elsewhere in ((4, slice(30, 40), slice(5, 20)), (3, slice(3, 30), slice(5, 20))):
        with pytest.raises(ReadError, match=r"plane \d of .*a\.tif cannot be decoded"):
            volume.data[elsewhere].compute(scheduler="synchronous")


def test_blocks_are_planes_of_a_useful_size() -> None:
    from napari_ambient.volumes.inplace import InPlace
    from napari_ambient.volumes.tiff import _chunks

    def blocks(shape: tuple[int, ...], axes: str) -> tuple[int, ...]:
        return _chunks(InPlace("a", (0, 0), 0, shape, np.dtype(np.uint16)), axes)

    assert blocks((3, 40, 1024, 1024), "TZYX") == (1, 1, 1024, 1024)
    # Small planes are read several at a time, but never several channels.
    assert blocks((3, 40, 256, 256), "TZYX") == (1, 8, 256, 256)
    assert blocks((40, 3, 256, 256), "ZCYX") == (1, 1, 256, 256)
    assert blocks((40, 20000, 20000), "ZYX") == (1, 419, 20000)


def test_a_volume_is_read_in_another_process(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values(), metadata={"axes": "ZYX"}, compression="zlib")
    copy = pickle.loads(pickle.dumps(open_volume(path)))
    np.testing.assert_array_equal(read(copy), values())


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_file_that_changed_after_opening_is_not_misread(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values(), metadata={"axes": "ZYX"}, compression=compression)
    volume = open_volume(path)
    tifffile.imwrite(path, values((9, 50, 70)), metadata={"axes": "ZYX"}, compression=compression)
    with pytest.raises(ReadError, match="changed after it was opened"):
        read(volume)
    path.unlink()
    with pytest.raises(ReadError, match="cannot be read now"):
        read(volume)


# ---------------------------------------------------------------------------------------- axes


@pytest.mark.parametrize("axes", ["TZCYX", "ZTYX", "CZYX", "TCZYX", "XYZ"])
def test_stored_order_is_brought_into_ours(tmp_path: Path, axes: str) -> None:
    shape = tuple({"T": 2, "C": 3, "Z": 4, "Y": 20, "X": 30}[axis] for axis in axes)
    array = values(shape)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", metadata={"axes": axes})
    volume = open_volume(tmp_path / "a.tif")
    assert volume.axes == "".join(axis for axis in "TCZYX" if axis in axes)
    np.testing.assert_array_equal(read(volume), np.transpose(array, [axes.index(axis) for axis in volume.axes]))


@pytest.mark.parametrize(
    ("shape", "metadata", "possible"),
    [
        ((7, 20, 30), None, "TYX, CYX, ZYX"),
        ((7, 20, 30), {"axes": "IYX"}, "TYX, CYX, ZYX"),
        ((7, 20, 30), {"axes": "QRS"}, "TYX, CYX, ZYX"),
        ((2, 7, 20, 30), {"axes": "TIYX"}, "TCYX, TZYX"),
        ((2, 7, 20, 30), {}, "TCYX, TZYX, CZYX, or another order"),
    ],
)
def test_axes_that_a_file_does_not_name_must_be_given(
    tmp_path: Path, shape: tuple[int, ...], metadata: dict[str, str] | None, possible: str
) -> None:
    path, array = tmp_path / "a.tif", values(shape)
    tifffile.imwrite(path, array, photometric="minisblack", metadata=metadata)
    with pytest.raises(AxesError, match=possible) as caught:
        open_volume(path)
    assert str(shape) in str(caught.value)
    named = "ZTYX" if len(shape) == 4 else "CYX"
    volume = open_volume(path, axes=named)
    assert volume.sizes == dict(sorted(zip(named, shape, strict=True), key=lambda item: "TCZYX".index(item[0])))


def test_more_dimensions_than_can_be_named(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values((2, 2, 2, 2, 20, 30)), photometric="minisblack")
    with pytest.raises(AxesError, match="more dimensions than"):
        open_volume(tmp_path / "a.tif")


@pytest.mark.parametrize("axes", ["ZYX", "TCZYX", "YXZT", "TTYX", "QZYX", ""])
def test_given_axes_must_fit(tmp_path: Path, axes: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values((2, 7, 20, 30)), photometric="minisblack")
    with pytest.raises(AxesError):
        open_volume(tmp_path / "a.tif", axes=axes)


def test_given_axes_go_before_the_file(tmp_path: Path) -> None:
    metadata = {"axes": "ZYX", "spacing": 0.5, "unit": "um"}
    tifffile.imwrite(tmp_path / "a.tif", values(), metadata=metadata, **kind("imagej"))
    assert open_volume(tmp_path / "a.tif").voxel_size["Z"] == 0.5
    volume = open_volume(tmp_path / "a.tif", axes="TYX")
    assert volume.sizes == {"T": 6, "Y": 50, "X": 70}
    # A step along Z says nothing of time.
    assert volume.scale == {}


def test_an_axis_of_size_one_may_be_named(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", values((20, 30)), metadata={"axes": "YX"})
    assert open_volume(tmp_path / "a.ome.tif").axes == "YX"
    assert open_volume(tmp_path / "a.ome.tif", axes="TZYX").sizes == {"T": 1, "Z": 1, "Y": 20, "X": 30}


# --------------------------------------------------------------------------------------- steps


def imagej(path: Path, resolution: tuple[Any, Any] | None = None, **metadata: Any) -> Volume:
    tifffile.imwrite(
        path,
        values((2, 3, 20, 30)),
        resolution=resolution,
        metadata={"axes": "TZYX", **metadata},
        **kind("imagej"),
    )
    return open_volume(path)


@pytest.mark.parametrize("unit", ["micron", "um", "\\u00B5m"])
def test_imagej_steps(tmp_path: Path, unit: str) -> None:
    volume = imagej(tmp_path / "a.tif", (10.0, 5.0), unit=unit, spacing=0.7, finterval=2.5)
    assert volume.axes == "TZYX"
    assert volume.voxel_size == {"Z": 0.7, "Y": 0.2, "X": 0.1}
    assert (volume.scale["T"], volume.units["T"]) == (2.5, "second")


def test_imagej_keeps_its_unit(tmp_path: Path) -> None:
    volume = imagej(tmp_path / "a.tif", (0.01, 0.01), unit="nm", spacing=300)
    assert volume.scale == pytest.approx({"Z": 300, "Y": 100, "X": 100})
    assert set(volume.units.values()) == {"nanometer"}


@pytest.mark.parametrize("unit", [None, "pixel", ""])
def test_imagej_without_a_physical_unit_is_unknown(tmp_path: Path, unit: str | None) -> None:
    metadata = {} if unit is None else {"unit": unit}
    volume = imagej(tmp_path / "a.tif", (10.0, 10.0), spacing=0.7, **metadata)
    assert volume.scale == {}


def test_imagej_default_resolution_is_unknown_and_one_micrometer_is_not(tmp_path: Path) -> None:
    # 1/1 is what is written where nobody set it; ImageJ itself writes 1000000/1000000 for one pixel per µm.
    assert imagej(tmp_path / "a.tif", unit="um", spacing=0.7).voxel_size == {"Z": 0.7, "Y": None, "X": None}
    imagej(tmp_path / "b.tif", unit="um")
    with tifffile.TiffFile(tmp_path / "b.tif", mode="r+") as tif:
        for tag in ("XResolution", "YResolution"):
            tif.pages[0].tags[tag].overwrite((10**6, 10**6))
    assert open_volume(tmp_path / "b.tif").voxel_size == {"Z": None, "Y": 1.0, "X": 1.0}


def test_imagej_negative_spacing_is_a_spacing(tmp_path: Path) -> None:
    assert imagej(tmp_path / "a.tif", unit="um", spacing=-0.7).voxel_size["Z"] == 0.7


@pytest.mark.parametrize(
    ("resolution", "unit", "expected"),
    [
        ((1e4 / 0.16, 1e4 / 0.08), "CENTIMETER", {"Y": 0.08, "X": 0.16}),
        ((254000.0, 254000.0), "INCH", {"Y": 0.1, "X": 0.1}),
        ((300.0, 300.0), "INCH", {"Y": None, "X": None}),
        ((28.35, 28.35), "CENTIMETER", {"Y": None, "X": None}),
        ((10.0, 10.0), "NONE", {"Y": None, "X": None}),
        (None, None, {"Y": None, "X": None}),
    ],
)
def test_bare_resolution_tags_count_where_they_can_only_be_physical(
    tmp_path: Path, resolution: Any, unit: str | None, expected: dict[str, float | None]
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values((20, 30)), resolution=resolution, resolutionunit=unit, metadata=None)
    found = open_volume(path).voxel_size
    assert found == {axis: step if step is None else pytest.approx(step) for axis, step in expected.items()}


def test_ome_steps_units_and_names(tmp_path: Path) -> None:
    metadata = {
        "axes": "TCYX",
        "PhysicalSizeX": 65.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.065,
        "TimeIncrement": 250.0,
        "TimeIncrementUnit": "ms",
        "Channel": {"Name": ["GFP", "mCherry é"]},
        "Name": "field 3",
    }
    tifffile.imwrite(tmp_path / "a.ome.tif", values((3, 2, 20, 30)), photometric="minisblack", metadata=metadata)
    volume = open_volume(tmp_path / "a.ome.tif")
    assert volume.scale == {"T": 250, "Y": 0.065, "X": 65}
    assert volume.units == {"T": "millisecond", "Y": "micrometer", "X": "nanometer"}
    assert volume.voxel_size == pytest.approx({"Y": 0.065, "X": 0.065})
    assert volume.channel_names == ("GFP", "mCherry é")
    assert volume.name == "field 3"
    assert open_volume(tmp_path / "a.ome.tif", channel="mCherry é").channel_names == ("mCherry é",)


def test_ome_without_steps_is_unknown(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", values(), metadata={"axes": "ZYX", "PhysicalSizeZ": -1.0})
    volume = open_volume(tmp_path / "a.ome.tif")
    assert (volume.scale, volume.units, volume.channel_names, volume.name) == ({}, {}, (), "a")
    pixels = {"axes": "ZYX", "PhysicalSizeX": 1.0, "PhysicalSizeXUnit": "pixel"}
    tifffile.imwrite(tmp_path / "b.ome.tif", values(), metadata=pixels)
    assert open_volume(tmp_path / "b.ome.tif").scale == {}


def test_given_voxel_size_goes_before_the_file(tmp_path: Path) -> None:
    metadata = {"axes": "ZYX", "PhysicalSizeX": 65.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.065}
    tifffile.imwrite(tmp_path / "a.ome.tif", values(), metadata=metadata)
    volume = open_volume(tmp_path / "a.ome.tif", voxel_size=(0.3, None, 0.07))
    assert volume.voxel_size == {"Z": 0.3, "Y": 0.065, "X": 0.07}


# ------------------------------------------------------------------------- several images, levels


def write_pyramid(path: Path, array: np.ndarray, **options: Any) -> None:
    with tifffile.TiffWriter(path, **kind("ome")) as writer:
        metadata = {"axes": "ZYX", "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.2, "PhysicalSizeZ": 0.5}
        writer.write(array, subifds=2, metadata=metadata, **options)
        for level in (1, 2):
            writer.write(array[:, :: 2**level, :: 2**level], subfiletype=1, metadata=None, **options)


@pytest.mark.parametrize("options", [{}, {"tile": (32, 32), "compression": "zlib"}])
def test_levels_of_a_pyramid(tmp_path: Path, options: dict[str, Any]) -> None:
    array = values((3, 101, 150))
    write_pyramid(tmp_path / "a.ome.tif", array, **options)
    for level in range(3):
        volume = open_volume(tmp_path / "a.ome.tif", level=level)
        np.testing.assert_array_equal(read(volume), array[:, :: 2**level, :: 2**level])
        assert volume.voxel_size == {"Z": 0.5, "Y": 0.2 * 2**level, "X": 0.1 * 2**level}
    with pytest.raises(ReadError, match=r"no level 3; its levels are 0 \(3, 101, 150\), 1 \(3, 51, 75\)"):
        open_volume(tmp_path / "a.ome.tif", level=3)


def test_several_images_must_be_chosen_from(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, **kind("ome")) as writer:
        writer.write(values(), metadata={"axes": "ZYX", "PhysicalSizeX": 0.1, "Name": "first"})
        writer.write(values((4, 60, 40)), metadata={"axes": "TYX", "PhysicalSizeX": 0.2, "Name": "second"})
    with pytest.raises(ReadError, match=r"holds 2 images: 0 \(6, 50, 70\), 1 \(4, 60, 40\); say which"):
        open_volume(path)
    second = open_volume(path, series=1)
    assert (second.axes, second.name, second.scale) == ("TYX", "second", {"X": 0.2})
    np.testing.assert_array_equal(read(second), values((4, 60, 40)))
    with pytest.raises(ReadError, match="no series 2"):
        open_volume(path, series=2)


def test_a_thumbnail_is_not_in_the_way(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", **kind("ome")) as writer:
        writer.write(values(), metadata={"axes": "ZYX"})
        writer.write(values((12, 17)), metadata={"axes": "YX", "Name": "thumbnail"})
    assert open_volume(tmp_path / "a.ome.tif").shape == SHAPE


def write_two_files(folder: Path, array: np.ndarray) -> list[Path]:
    """Write an OME-TIFF whose two planes lie in two files."""
    paths = [folder / f"t{i}.ome.tif" for i in range(2)]
    planes = "".join(
        f'<TiffData FirstT="{i}" IFD="0" PlaneCount="1"><UUID FileName="{path.name}">urn:uuid:{i}</UUID></TiffData>'
        for i, path in enumerate(paths)
    )
    sizes = f'SizeX="{array.shape[2]}" SizeY="{array.shape[1]}" SizeZ="1" SizeC="1" SizeT="2"'
    for i, path in enumerate(paths):
        xml = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{i}">'
            f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" {sizes}>'
            f'<Channel ID="Channel:0:0"/>{planes}</Pixels></Image></OME>'
        )
        tifffile.imwrite(path, array[i], description=xml, metadata=None, compression="zlib")
    return paths


def test_planes_in_several_files(tmp_path: Path) -> None:
    array = values((2, 40, 50))
    first, second = write_two_files(tmp_path, array)
    volume = open_volume(first)
    assert volume.axes == "TYX"
    np.testing.assert_array_equal(read(volume), array)
    second.unlink()
    # tifffile would fill the gap with zeros.
    with pytest.raises(ReadError, match=r"1 of the 2 planes .* missing, first plane 1"):
        open_volume(first)


def test_a_file_without_its_description_is_refused(tmp_path: Path) -> None:
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<BinaryOnly MetadataFile="all.companion.ome" UUID="urn:uuid:1"/></OME>'
    )
    tifffile.imwrite(tmp_path / "a.ome.tif", values((20, 30)), description=xml, metadata=None)
    with pytest.raises(ReadError, match="one file of a larger data set"):
        open_volume(tmp_path / "a.ome.tif")


# ------------------------------------------------------------------------------------- bad files

FLAVOURS: dict[str, dict[str, Any]] = {
    "shaped": {},
    "shaped, zlib": {"compression": "zlib"},
    "plain": {"metadata": None},
    "plain, tiles": {"metadata": None, "tile": (16, 16)},
    "imagej": kind("imagej"),
    "ome": kind("ome"),
    "ome, zlib": {"compression": "zlib", **kind("ome")},
}


@pytest.mark.parametrize("flavour", [*FLAVOURS, "ours", "ours, imagej"])
def test_a_file_cut_anywhere_is_refused_or_whole(tmp_path: Path, flavour: str) -> None:
    whole, cut, array = tmp_path / "whole.tif", tmp_path / "cut.tif", values((4, 20, 30))
    if flavour.startswith("ours"):
        volume = Volume.from_array(array, "ZYX", voxel_size=(3, 2, 1))
        save_volume(whole, volume, format="imagej" if "imagej" in flavour else None)
    else:
        options = {"metadata": {"axes": "ZYX"}, "photometric": "minisblack"} | FLAVOURS[flavour]
        tifffile.imwrite(whole, array, **options)
    content = whole.read_bytes()
    refused = 0
    for length in itertools.chain(range(0, len(content), 97), range(len(content) - 8, len(content))):
        cut.write_bytes(content[:length])
        try:
            with warnings.catch_warnings():
                # A last tag may be lost without harm; that is said, and not this test's matter.
                warnings.simplefilter("ignore")
                values_read = read(open_volume(cut, axes="ZYX"))
        except ReadError as error:
            refused += 1
            assert "cut.tif" in str(error)
        else:
            np.testing.assert_array_equal(values_read, array)
    assert refused > len(content) / 97 * 0.8
    np.testing.assert_array_equal(read(open_volume(whole, axes="ZYX")), array)


def test_a_zero_size_image_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((0, 20, 30), np.uint8))
    with pytest.raises(ReadError, match=r"a\.tif"):
        open_volume(tmp_path / "a.tif")


@pytest.mark.parametrize("content", [b"II*\0", b"MM\0*" + b"\xff" * 40, b"II*\0\x08\0\0\0" + b"\xff" * 90])
def test_a_damaged_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ReadError, match=r"a\.tif"):
        open_volume(tmp_path / "a.tif")


# --------------------------------------------------------------------------------------- writing


def stack(dtype: str = "uint16") -> Volume:
    array = np.random.default_rng(8).integers(0, 250, (2, 3, 4, 50, 70)).astype(dtype)
    return Volume(
        data=da.from_array(array, chunks=(1, 2, 3, 20, 30)),
        axes="TCZYX",
        scale={"T": 2.5, "Z": 300.0, "Y": 0.13, "X": 0.065},
        units={"T": "minute", "Z": "nanometer", "Y": "micrometer", "X": "micrometer"},
        channel_names=("GFP <1>", 'a "b" & é', "DAPI"),
        name="field é",
        history=({"action": "restore", "prior": "ab12", "seed": 3, "noise": {"gain": 2.17}},),
    )


def test_tifffile_reads_our_ome_tiff(tmp_path: Path) -> None:
    volume = stack()
    save_volume(tmp_path / "a.ome.tif", volume)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tif:
        series = tif.series[0]
        assert (series.kind, series.axes, series.shape) == ("ome", "TCZYX", volume.shape)
        np.testing.assert_array_equal(series.asarray(), read(volume))
        assert series.dataoffset is not None, "plain software reads voxels that lie in one piece"
        across = tif.pages[0].tags["XResolution"].value
        assert across[0] / across[1] == pytest.approx(1e4 / 0.065)
        assert int(tif.pages[0].tags["ResolutionUnit"].value) == 3, "centimetre"
        xml = tif.ome_metadata
    root = ElementTree.fromstring(xml)
    space = {"o": root.tag.partition("}")[0].strip("{")}
    pixels = root.find("o:Image/o:Pixels", space)
    assert root.find("o:Image", space).get("Name") == "field é"
    found = {
        key: pixels.get(key) for key in ("PhysicalSizeX", "PhysicalSizeZ", "PhysicalSizeZUnit", "TimeIncrementUnit")
    }
    assert found == {
        "PhysicalSizeX": "0.065",
        "PhysicalSizeZ": "300.0",
        "PhysicalSizeZUnit": "nm",
        "TimeIncrementUnit": "min",
    }
    assert tuple(c.get("Name") for c in pixels.findall("o:Channel", space)) == volume.channel_names
    entry = root.find("o:StructuredAnnotations/o:MapAnnotation[@Namespace='napari-ambient']/o:Value/o:M", space)
    assert json.loads(entry.text)["history"] == list(volume.history)


def test_tifffile_reads_our_pyramid(tmp_path: Path) -> None:
    array = values((2, 1100, 2101))
    save_volume(tmp_path / "a.ome.tif", Volume.from_array(da.from_array(array, chunks=(1, 500, 700)), "ZYX"))
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tif:
        levels = [level.asarray() for level in tif.series[0].levels]
    assert [level.shape for level in levels] == [(2, 1100, 2101), (2, 550, 1051), (2, 275, 526)]
    np.testing.assert_array_equal(levels[0], array)
    even = array[:, :, :2100].reshape(2, 550, 2, 1050, 2)
    np.testing.assert_array_equal(levels[1][:, :, :1050], np.rint(even.mean((2, 4))))
    # At the odd border there are two voxels to average, not four.
    np.testing.assert_array_equal(levels[1][:, :, 1050], np.rint(array[:, :, 2100].reshape(2, 550, 2).mean(2)))


def test_a_pyramid_is_left_out_on_request(tmp_path: Path) -> None:
    save_volume(tmp_path / "a.tif", Volume.from_array(values((8, 1500))), pyramid=False)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert len(tif.series[0].levels) == 1


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tifffile_reads_our_imagej_tiff(tmp_path: Path, dtype: str) -> None:
    volume = stack(dtype)
    save_volume(tmp_path / "a.tif", volume, format="imagej")
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        series, meta = tif.series[0], tif.imagej_metadata
        assert (series.kind, series.axes) == ("imagej", "TZCYX")
        np.testing.assert_array_equal(series.asarray(), read(volume).swapaxes(1, 2))
        across, down = (tif.pages[0].tags[tag].value for tag in ("XResolution", "YResolution"))
    assert (meta["unit"], meta["spacing"], meta["finterval"]) == ("micron", 0.3, 150.0)
    assert across[1] / across[0] == 0.065
    assert down[1] / down[0] == 0.13
    again = open_volume(tmp_path / "a.tif")
    assert again.record() | {"scale": 0, "units": 0} == volume.record() | {"scale": 0, "units": 0}
    assert again.voxel_size == volume.voxel_size


@pytest.mark.parametrize("step", [1.0, 0.1, 1 / 3, 7e-4, 123.456, 54321.98765])
def test_imagej_keeps_any_step(tmp_path: Path, step: float) -> None:
    save_volume(tmp_path / "a.tif", Volume.from_array(values((4, 5)), voxel_size=(step, step)), format="imagej")
    # A fraction of two 32-bit numbers.
    assert open_volume(tmp_path / "a.tif").voxel_size == pytest.approx({"Y": step, "X": step}, rel=1e-8)


def test_imagej_cannot_say_that_one_step_is_unknown(tmp_path: Path) -> None:
    volume = Volume.from_array(values(), "ZYX", voxel_size=(None, 0.1, 0.1))
    with pytest.raises(WriteError, match="only the steps along Y, X are known"):
        save_volume(tmp_path / "a.tif", volume, format="imagej")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("dtype", "format"), [("int64", None), ("float16", None), ("float64", "imagej")])
def test_types_that_tiff_cannot_store(tmp_path: Path, dtype: str, format: Any) -> None:
    with pytest.raises(WriteError, match=f"cannot store {dtype}; it stores .*uint8"):
        save_volume(tmp_path / "a.tif", Volume.from_array(values((4, 5), dtype)), format=format)
    assert list(tmp_path.iterdir()) == []


def test_a_unit_that_ome_cannot_spell(tmp_path: Path) -> None:
    volume = Volume(da.zeros((4, 5)), "YX", scale={"X": 1.0}, units={"X": "zettameter"})
    with pytest.raises(WriteError, match="no symbol for the unit 'zettameter'"):
        save_volume(tmp_path / "a.tif", volume)
    assert list(tmp_path.iterdir()) == []


def test_more_than_four_gigabytes_make_a_bigtiff(tmp_path: Path) -> None:
    from napari_ambient.volumes.tiff_write import TiffTarget

    # Laid out only: the voxels are a hole in the file.
    volume = Volume.from_array(da.zeros((9, 16384, 16384), chunks=(1, 1024, 16384), dtype=np.uint16), "ZYX")
    target = TiffTarget(tmp_path / "a.tif", volume, [volume.shape], "ome")
    corner = values((1, 2, 3))
    target.write(0, (8, 16382, 16381), corner)
    target.close()
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.is_bigtiff
        assert tif.series[0].shape == volume.shape
    again = open_volume(tmp_path / "a.tif")
    np.testing.assert_array_equal(again.data[8:, 16382:, 16381:].compute(scheduler="synchronous"), corner)


def test_a_damaged_record_does_not_hide_the_voxels(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    save_volume(path, stack())
    content = path.read_bytes()
    assert content.count(b"&quot;format&quot;: 1") == 1
    path.write_bytes(content.replace(b"&quot;format&quot;: 1", b"&quot;format&quot;: 9"))
    with pytest.warns(UserWarning, match=re.escape("format is 9 and this version reads format 1")):
        volume = open_volume(path)
    assert volume.history == ()
    assert volume.channel_names == stack().channel_names
    np.testing.assert_array_equal(read(volume), read(stack()))


def test_another_program_may_have_cropped_the_file(tmp_path: Path) -> None:
    one = stack().replace(data=stack().data[:1], history=({"action": "x"},))
    save_volume(tmp_path / "a.ome.tif", one)
    assert open_volume(tmp_path / "a.ome.tif").axes == "TCZYX"
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tif:
        xml, plane = tif.ome_metadata, tif.pages[0].asarray()
    xml = (
        xml.replace('SizeZ="4"', 'SizeZ="1"')
        .replace('SizeC="3"', 'SizeC="1"')
        .replace('PlaneCount="12"', 'PlaneCount="1"')
    )
    tifffile.imwrite(tmp_path / "b.ome.tif", plane, description=xml.encode(), metadata=None)
    cropped = open_volume(tmp_path / "b.ome.tif")
    assert cropped.shape == (1, 1, 1, 50, 70)
    assert cropped.history == one.history
    np.testing.assert_array_equal(read(cropped)[0, 0, 0], plane)
