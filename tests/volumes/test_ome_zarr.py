"""OME-Zarr goes out and comes back whole; ome-zarr-py, an independent reader, agrees."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any, Literal

import dask.array as da
import numpy as np
import pytest
import yaozarrs
import zarr

from napari_ambient.volumes import AxesError, ReadError, Volume, open_volume, save_volume
from napari_ambient.volumes.ome_zarr import zarr_chunks

Version = Literal["ome-zarr-0.5", "ome-zarr-0.4"]
VERSIONS: tuple[Version, ...] = ("ome-zarr-0.5", "ome-zarr-0.4")


def values(shape: tuple[int, ...], dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(5).integers(0, 250, shape).astype(dtype)


def read(volume: Volume) -> np.ndarray:
    return volume.data.compute(scheduler="synchronous")


def stack() -> Volume:
    return Volume(
        data=da.from_array(values((2, 3, 4, 20, 1100)), chunks=(1, 2, 3, 20, 550)),
        axes="TCZYX",
        scale={"T": 2.5, "Z": 300.0, "Y": 0.13, "X": 0.065},
        units={"T": "minute", "Z": "nanometer", "Y": "micrometer", "X": "micrometer"},
        channel_names=("GFP", "mCherry é", "DAPI"),
        name="field é",
        history=({"action": "restore", "prior": "ab12", "seed": 3},),
    )


def attributes(path: Path) -> dict[str, Any]:
    """Return the metadata of an image as they lie on the disk."""
    if (path / "zarr.json").exists():
        return json.loads((path / "zarr.json").read_text())["attributes"]
    return json.loads((path / ".zattrs").read_text())


def change(path: Path, edit: Any) -> None:
    """Edit the metadata of an image on the disk."""
    file = path / ("zarr.json" if (path / "zarr.json").exists() else ".zattrs")
    content = json.loads(file.read_text())
    edit(content["attributes"]["ome"] if file.name == "zarr.json" else content)
    file.write_text(json.dumps(content))


# ------------------------------------------------------------------------ independent readers


@pytest.mark.parametrize("version", VERSIONS)
def test_ome_zarr_py_reads_ours(tmp_path: Path, version: Version) -> None:
    with warnings.catch_warnings():
        # Its dependencies' own deprecations.
        warnings.simplefilter("ignore")
        from ome_zarr.io import parse_url
        from ome_zarr.reader import Reader

    volume = stack()
    path = save_volume(tmp_path / "a.ome.zarr", volume, format=version)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        location = parse_url(str(path))
        assert location.version == version.removeprefix("ome-zarr-")
        (node,) = list(Reader(location)())
        levels = [np.asarray(level) for level in node.data]
    assert [level.shape for level in levels] == [(2, 3, 4, 20, 1100), (2, 3, 4, 10, 550)]
    np.testing.assert_array_equal(levels[0], read(volume))
    means = read(volume).reshape(2, 3, 4, 10, 2, 550, 2).mean((4, 6))
    np.testing.assert_array_equal(levels[1], np.rint(means))
    assert [axis["name"] for axis in node.metadata["axes"]] == ["t", "c", "z", "y", "x"]
    units = [axis.get("unit") for axis in node.metadata["axes"]]
    assert units == ["minute", None, "nanometer", "micrometer", "micrometer"]
    full, half = node.metadata["coordinateTransformations"]
    assert full == [{"type": "scale", "scale": [2.5, 1.0, 300.0, 0.13, 0.065]}]
    assert half[0] == {"type": "scale", "scale": [2.5, 1.0, 300.0, 0.26, 0.13]}
    # The middle of the first 2 x 2 voxels.
    assert half[1] == {"type": "translation", "translation": [0.0, 0.0, 0.0, 0.065, 0.0325]}
    assert node.metadata["channel_names"] == list(volume.channel_names)
    limits = [[float(channel.min()), float(channel.max())] for channel in read(volume).swapaxes(0, 1)]
    assert node.metadata["contrast_limits"] == limits


@pytest.mark.parametrize("version", VERSIONS)
def test_the_whole_store_is_valid(tmp_path: Path, version: Version) -> None:
    path = save_volume(tmp_path / "a.zarr", stack(), format=version)
    yaozarrs.validate_zarr_store(str(path))
    plain = Volume.from_array(values((4, 5)), voxel_size=(None, 0.1))
    yaozarrs.validate_zarr_store(str(save_volume(tmp_path / "b.zarr", plain, format=version)))


def test_unknown_steps_are_one_without_a_unit(tmp_path: Path) -> None:
    volume = Volume.from_array(values((3, 4, 5)), "ZYX", voxel_size=(None, 1.0, 0.1))
    found = attributes(save_volume(tmp_path / "a.zarr", volume))
    image = found["ome"]["multiscales"][0]
    assert [axis.get("unit") for axis in image["axes"]] == [None, "micrometer", "micrometer"]
    assert image["datasets"][0]["coordinateTransformations"][0]["scale"] == [1.0, 1.0, 0.1]
    assert found["napari_ambient"]["scale"] == {"Y": 1.0, "X": 0.1}
    assert open_volume(tmp_path / "a.zarr").voxel_size == {"Z": None, "Y": 1.0, "X": 0.1}


def test_the_history_lies_in_the_attributes(tmp_path: Path) -> None:
    for version in VERSIONS:
        found = attributes(save_volume(tmp_path / f"{version}.zarr", stack(), format=version))
        assert found["napari_ambient"]["history"] == list(stack().history)


def test_windows_span_the_finite_values(tmp_path: Path) -> None:
    array = values((2, 6, 7), "float32")
    array[0, 0, 0], array[1] = np.nan, 7
    path = save_volume(tmp_path / "a.zarr", Volume.from_array(array, "CYX"))
    windows = [channel["window"] for channel in attributes(path)["ome"]["omero"]["channels"]]
    low, high = float(np.nanmin(array[0])), float(np.nanmax(array[0]))
    assert windows[0] == {"min": low, "start": low, "end": high, "max": high}
    assert windows[1]["start"] < windows[1]["end"]


# ------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("version", VERSIONS)
def test_levels(tmp_path: Path, version: Version) -> None:
    path = save_volume(tmp_path / "a.zarr", stack(), format=version)
    half = open_volume(path, level=1)
    assert half.shape == (2, 3, 4, 10, 550)
    assert half.scale == stack().scale | {"Y": 0.26, "X": 0.13}
    with pytest.raises(ReadError, match=r"no level 2; its levels are 0 \(0\), 1 \(1\)"):
        open_volume(path, level=2)


@pytest.mark.parametrize("format", [2, 3])
def test_bare_arrays(tmp_path: Path, format: Literal[2, 3]) -> None:
    array = values((3, 20, 30))
    zarr.create_array(str(tmp_path / "a.zarr"), data=array, chunks=(2, 8, 16), zarr_format=format)
    with pytest.raises(AxesError, match=r"\(3, 20, 30\).*TYX, CYX, ZYX"):
        open_volume(tmp_path / "a.zarr")
    volume = open_volume(tmp_path / "a.zarr", axes="TYX", voxel_size=(0.1, 0.1))
    assert volume.sizes == {"T": 3, "Y": 20, "X": 30}
    np.testing.assert_array_equal(read(volume), array)
    zarr.create_array(str(tmp_path / "b.zarr"), data=array[0], zarr_format=format)
    assert open_volume(tmp_path / "b.zarr").axes == "YX"


def test_bare_arrays_with_named_dimensions(tmp_path: Path) -> None:
    array = values((4, 3, 20, 30))
    names = ["z", "channel", "y", "x"]
    zarr.create_array(str(tmp_path / "a.zarr"), data=array, dimension_names=names)
    volume = open_volume(tmp_path / "a.zarr")
    assert volume.axes == "CZYX"
    np.testing.assert_array_equal(read(volume), array.swapaxes(0, 1))
    old = zarr.create_array(str(tmp_path / "b.zarr"), data=array, zarr_format=2)
    old.attrs["_ARRAY_DIMENSIONS"] = names
    assert open_volume(tmp_path / "b.zarr").axes == "CZYX"
    zarr.create_array(str(tmp_path / "c.zarr"), data=array, dimension_names=["i", "j", "y", "x"])
    with pytest.raises(AxesError, match="TCYX, TZYX, CZYX"):
        open_volume(tmp_path / "c.zarr")


def test_a_level_is_an_array_too(tmp_path: Path) -> None:
    path = save_volume(tmp_path / "a.zarr", stack())
    level = open_volume(path / "1")
    assert (level.axes, level.scale) == ("TCZYX", {})
    np.testing.assert_array_equal(read(level), read(open_volume(path, level=1)))


def test_sharded_arrays_read_as_others(tmp_path: Path) -> None:
    array = values((8, 64, 64))
    zarr.create_array(str(tmp_path / "a.zarr"), data=array, chunks=(2, 16, 16), shards=(4, 32, 32))
    np.testing.assert_array_equal(read(open_volume(tmp_path / "a.zarr", axes="ZYX")), array)


def foreign(path: Path, array: np.ndarray, axes: list[dict[str, str]], scale: list[float], **extra: Any) -> Path:
    """Write an OME-Zarr 0.5 image as another program would."""
    group = zarr.create_group(str(path))
    group.create_array("full", shape=array.shape, dtype=array.dtype)[...] = array
    transforms = [{"type": "scale", "scale": scale}]
    image = {"axes": axes, "datasets": [{"path": "full", "coordinateTransformations": transforms}], **extra}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    return path


def space(*names: str, unit: str | None = "micrometer") -> list[dict[str, str]]:
    return [{"name": name, "type": "space"} | ({"unit": unit} if unit else {}) for name in names]


def test_stored_order_is_brought_into_ours(tmp_path: Path) -> None:
    array = values((30, 20, 4))
    volume = open_volume(foreign(tmp_path / "a.zarr", array, space("x", "y", "z"), [0.1, 0.2, 0.5]))
    assert volume.axes == "ZYX"
    assert volume.voxel_size == {"Z": 0.5, "Y": 0.2, "X": 0.1}
    np.testing.assert_array_equal(read(volume), array.T)


def test_scales_of_the_level_and_of_the_image_multiply(tmp_path: Path) -> None:
    whole = [{"type": "scale", "scale": [0.5, 0.1]}]
    path = foreign(tmp_path / "a.zarr", values((20, 30)), space("y", "x"), [2, 2], coordinateTransformations=whole)
    assert open_volume(path).voxel_size == {"Y": 1.0, "X": 0.2}


def test_a_scale_without_a_unit_is_unknown_and_said_so(tmp_path: Path) -> None:
    path = foreign(tmp_path / "a.zarr", values((20, 30)), space("y", "x", unit=None), [1.0, 0.2])
    with pytest.warns(UserWarning, match=r"taken as unknown: x \(0.2 without a unit\)"):
        volume = open_volume(path)
    assert volume.voxel_size == {"Y": None, "X": None}


def test_an_unusual_spelling_of_a_unit_is_understood(tmp_path: Path) -> None:
    path = foreign(tmp_path / "a.zarr", values((20, 30)), space("y", "x", unit="µm"), [0.1, 0.2])
    assert open_volume(path).voxel_size == {"Y": 0.1, "X": 0.2}


def test_an_axis_of_another_kind_must_be_named(tmp_path: Path) -> None:
    axes = [{"name": "angle", "type": "custom"}, *space("y", "x")]
    path = foreign(tmp_path / "a.zarr", values((3, 20, 30)), axes, [1, 0.1, 0.1])
    with pytest.raises(AxesError, match="TYX, CYX, ZYX"):
        open_volume(path)
    volume = open_volume(path, axes="TYX")
    assert (volume.axes, volume.voxel_size) == ("TYX", {"Y": 0.1, "X": 0.1})


def test_incomplete_display_settings_are_no_fault(tmp_path: Path) -> None:
    path = save_volume(tmp_path / "a.zarr", stack())
    change(path, lambda ome: ome.update(omero={"channels": [{"label": "a"}, {}, {"label": "c"}]}))
    assert open_volume(path).channel_names == ()
    change(path, lambda ome: ome.update(omero={"channels": [{"label": "a"}, {"label": "b"}, {"label": "c"}]}))
    assert open_volume(path).channel_names == ("a", "b", "c")


def test_a_converted_series_opens_from_its_root(tmp_path: Path) -> None:
    root = zarr.create_group(str(tmp_path / "a.zarr"))
    root.attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
    save_volume(tmp_path / "a.zarr" / "0.zarr", Volume.from_array(values((20, 30))))
    (tmp_path / "a.zarr" / "0.zarr").rename(tmp_path / "a.zarr" / "0")
    assert open_volume(tmp_path / "a.zarr").shape == (20, 30)
    shutil.copytree(tmp_path / "a.zarr" / "0", tmp_path / "a.zarr" / "1")
    with pytest.raises(ReadError, match="images 0, 1; say which with series"):
        open_volume(tmp_path / "a.zarr")
    assert open_volume(tmp_path / "a.zarr", series=1).shape == (20, 30)


# ----------------------------------------------------------------------------------- bad folders


def test_folders_that_are_no_image_say_what_they_are(tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path / "group.zarr"))
    group.create_array("raw", shape=(4, 5), dtype="uint8")
    with pytest.raises(ReadError, match=r"without OME metadata; it holds raw.*group\.zarr.raw"):
        open_volume(tmp_path / "group.zarr")
    group.attrs["ome"] = {"version": "0.5", "plate": {}}
    with pytest.raises(ReadError, match="is a plate; open one of its images"):
        open_volume(tmp_path / "group.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(ReadError, match=r"empty\.zarr has none of zarr\.json"):
        open_volume(tmp_path / "empty.zarr")


@pytest.mark.parametrize("version", VERSIONS)
def test_metadata_cut_anywhere_are_refused_or_whole(tmp_path: Path, version: Version) -> None:
    path = save_volume(tmp_path / "a.zarr", stack(), format=version)
    names = ["zarr.json", "0/zarr.json"] if version == "ome-zarr-0.5" else [".zgroup", ".zattrs", "0/.zarray"]
    for name in names:
        content = (path / name).read_bytes()
        for length in range(0, len(content) - 2, max(len(content) // 12, 1)):
            (path / name).write_bytes(content[:length])
            with pytest.raises(ReadError, match=r"a\.zarr"):
                open_volume(path)
        (path / name).write_bytes(content)
    np.testing.assert_array_equal(read(open_volume(path)), read(stack()))


@pytest.mark.parametrize("version", VERSIONS)
def test_damaged_metadata_name_the_fault(tmp_path: Path, version: Version) -> None:
    path = save_volume(tmp_path / "a.zarr", stack(), format=version)

    def refused(edit: Any, match: str) -> None:
        shutil.rmtree(tmp_path / "b.zarr", ignore_errors=True)
        shutil.copytree(path, tmp_path / "b.zarr")
        change(tmp_path / "b.zarr", edit)
        with pytest.raises(ReadError, match=match):
            open_volume(tmp_path / "b.zarr")

    refused(lambda ome: ome["multiscales"][0].pop("axes"), "axes: Field required")
    refused(lambda ome: ome["multiscales"][0]["axes"].pop(), "does not match the number of axes")
    refused(lambda ome: ome["multiscales"][0]["datasets"][0].update(path="nowhere"), "nowhere has none of")
    refused(lambda ome: ome["multiscales"][0].update(axes=space("z", "y", "x")), "does not match")
    refused(lambda ome: ome.update(multiscales=[]), "holds 0 images")
    refused(lambda ome: ome.update(multiscales=3), "holds 0 images")
    refused(lambda ome: (ome.update(version="0.9"), ome["multiscales"][0].update(version="0.9")), "OME-Zarr 0.9")
    refused(lambda ome: ome["multiscales"].append(ome["multiscales"][0]), "holds 2 images; say which")


def test_axes_that_do_not_belong_to_the_array(tmp_path: Path) -> None:
    path = foreign(tmp_path / "a.zarr", values((20, 30)), space("z", "y", "x"), [1, 1, 1])
    with pytest.raises(ReadError, match=r"full should be an array with the axes z, y, x"):
        open_volume(path)


def test_a_damaged_chunk_names_the_folder(tmp_path: Path) -> None:
    path = save_volume(tmp_path / "a.zarr", stack())
    for chunk in (path / "0" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(chunk.read_bytes()[:20])
    volume = open_volume(path)
    with pytest.raises(ReadError, match=r"a chunk of .*a\.zarr.*cannot be read"):
        read(volume)


@pytest.mark.parametrize("dtype", ["complex64", "bool"])
def test_types(tmp_path: Path, dtype: str) -> None:
    array = values((4, 5)).astype(dtype)
    zarr.create_array(str(tmp_path / "a.zarr"), data=array)
    if dtype == "bool":
        assert open_volume(tmp_path / "a.zarr").dtype == np.uint8
    else:
        with pytest.raises(ValueError, match=r"a\.zarr.*complex64"):
            open_volume(tmp_path / "a.zarr")


# ------------------------------------------------------------------------------------------ chunks


@pytest.mark.parametrize(
    ("shape", "blocks", "itemsize"),
    [
        ((81, 2048, 2048), (64, 512, 512), 4),
        ((34, 81, 2048, 2048), (1, 1, 1024, 1024), 2),
        ((1, 16, 512, 512), (1, 16, 512, 512), 4),
        ((700, 700), (700, 700), 4),
        ((30, 1000, 1000), (7, 360, 360), 1),
        ((1, 1), (1, 1), 8),
    ],
)
def test_chunks_lie_within_blocks_and_are_small(shape: tuple[int, ...], blocks: tuple[int, ...], itemsize: int) -> None:
    chunks = zarr_chunks(shape, blocks, itemsize)
    assert np.prod(chunks) * itemsize <= 2**22
    for chunk, block, size in zip(chunks, blocks, shape, strict=True):
        assert block % chunk == 0 or block >= size
        assert 1 <= chunk <= size


def test_a_block_of_prime_size_does_not_make_chunks_of_one() -> None:
    assert zarr_chunks((2003, 2003), (1009, 1009), 4) == (512, 512)


def test_chunks_of_files_are_grouped_into_useful_blocks(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(8, 512, 512), chunks=(1, 64, 64), dtype="uint8")
    assert open_volume(tmp_path / "a.zarr", axes="ZYX").data.chunksize == (4, 512, 512)
    zarr.create_array(str(tmp_path / "b.zarr"), shape=(8, 2048, 2048), chunks=(1, 2048, 2048), dtype="uint8")
    assert open_volume(tmp_path / "b.zarr", axes="ZYX").data.chunksize == (1, 2048, 2048)
