"""What is saved comes back the same, whatever the format; what cannot be saved leaves nothing behind."""

from __future__ import annotations

import errno
import itertools
import os
import tracemalloc
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import tifffile

from napari_ambient.volumes import (
    AxesError,
    BlockWritten,
    Format,
    ReadError,
    Volume,
    VolumeError,
    WriteError,
    iter_save_volume,
    open_volume,
    save_volume,
)
from napari_ambient.volumes import files as files_module
from napari_ambient.volumes.inplace import NpyTarget
from napari_ambient.volumes.ome_zarr import ZarrTarget
from napari_ambient.volumes.tiff_write import TiffTarget

FORMATS: dict[Format, str] = {
    "ome-tiff": "a.ome.tif",
    "imagej": "a.tif",
    "ome-zarr-0.5": "a.ome.zarr",
    "ome-zarr-0.4": "b.zarr",
    "npy": "a.npy",
}


def values(shape: tuple[int, ...], dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(5).integers(0, 250, shape).astype(dtype)


def read(volume: Volume) -> np.ndarray:
    return volume.data.compute(scheduler="synchronous")


def make(axes: str = "TCZYX", ones: str = "", known: str = "TZYX", dtype: str = "uint16") -> Volume:
    sizes = {"T": 2, "C": 3, "Z": 5, "Y": 21, "X": 34} | dict.fromkeys(ones, 1)
    shape = tuple(sizes[axis] for axis in axes)
    steps = {"T": 2.5, "Z": 0.5, "Y": 0.25, "X": 0.125}
    return Volume(
        data=da.from_array(values(shape, dtype), chunks=tuple(-(-n // 2) for n in shape)),
        axes=axes,
        scale={axis: steps[axis] for axis in known if axis in axes},
        units={axis: "second" if axis == "T" else "micrometer" for axis in known if axis in axes},
        channel_names=tuple(f"channel {i} é" for i in range(sizes["C"])) if "C" in axes else (),
        name="cells",
        history=({"action": "restore", "prior": "ab12", "seed": 3, "noise": {"gain": 2.17}},),
    )


def left_over(folder: Path, *expected: str) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in expected)


# --------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("axes", "ones", "known"),
    [
        ("YX", "", "YX"),
        ("ZYX", "", ""),
        ("TYX", "T", "TYX"),
        ("CYX", "C", "YX"),
        ("TCZYX", "", "TZYX"),
        ("TCZYX", "TCZ", "TZYX"),
        ("CZYX", "", ""),
        ("TZYX", "Z", "T"),
        ("CYX", "YX", "YX"),
    ],
)
def test_round_trips_keep_everything(tmp_path: Path, format: Format, axes: str, ones: str, known: str) -> None:
    volume = make(axes, ones, known)
    path = save_volume(tmp_path / FORMATS[format], volume, format=format)
    again = open_volume(path)
    # Axes, steps, units, channel names, name and history: all at once.
    assert again.record() == volume.record()
    assert (again.dtype, again.shape, again.source) == (volume.dtype, volume.shape, str(path))
    np.testing.assert_array_equal(read(again), read(volume))
    assert left_over(tmp_path) == [path.name]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("format", FORMATS)
def test_round_trips_keep_the_type_or_refuse_it(tmp_path: Path, format: Format, dtype: str) -> None:
    volume = make("ZYX", dtype=dtype)
    if dtype[0] == "f":
        special = np.array([np.nan, np.inf, -np.inf, -0.0], dtype)
        volume = volume.replace(data=da.concatenate([volume.data, da.broadcast_to(special[0], (1, 21, 34))]))
    try:
        again = open_volume(save_volume(tmp_path / FORMATS[format], volume, format=format))
    except WriteError as error:
        assert f"cannot store {dtype}" in str(error)
        assert format in ("ome-tiff", "imagej")
        assert left_over(tmp_path) == []
        return
    assert again.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read(again), read(volume))


@pytest.mark.parametrize("chain", list(itertools.permutations(["ome-tiff", "ome-zarr-0.5", "npy"])))
def test_nothing_is_lost_from_format_to_format(tmp_path: Path, chain: tuple[Format, ...]) -> None:
    volume = make()
    for format in chain:
        volume = open_volume(save_volume(tmp_path / FORMATS[format], volume, format=format))
    assert volume.record() == make().record()
    np.testing.assert_array_equal(read(volume), read(make()))


@pytest.mark.parametrize("chunks", [(5, 21, 34), (1, 21, 34), (1, 1, 1), ((2, 3), (1, 13, 7), (30, 4)), (4, 16, 16)])
@pytest.mark.parametrize("format", FORMATS)
def test_any_blocks_give_the_same_file(tmp_path: Path, format: Format, chunks: Any) -> None:
    volume = make("ZYX", dtype="float32")
    volume = volume.replace(data=volume.data.rechunk(chunks if chunks != (1, 1, 1) else (1, 7, 34)))
    again = open_volume(save_volume(tmp_path / FORMATS[format], volume, format=format))
    np.testing.assert_array_equal(read(again), read(volume))


@pytest.mark.parametrize("format", ["ome-tiff", "ome-zarr-0.5"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float16", "float32", "float64"])
def test_coarser_levels_are_means(tmp_path: Path, format: Format, dtype: str) -> None:
    if format == "ome-tiff" and dtype == "float16":
        pytest.skip("OME-TIFF has no float16")
    array = values((2, 3, 2100), dtype)
    volume = Volume.from_array(da.from_array(array, chunks=(1, 2, 600)), "ZYX", voxel_size=(1, 2, 3))
    path = save_volume(tmp_path / FORMATS[format], volume, format=format)
    levels = [open_volume(path, level=level) for level in range(3)]
    assert [level.shape for level in levels] == [(2, 3, 2100), (2, 2, 1050), (2, 1, 525)]
    assert levels[2].voxel_size == {"Z": 1, "Y": 8, "X": 12}
    exact = array[:, :2].astype("float64").reshape(2, 1, 2, 1050, 2).mean((2, 4))
    half = np.finfo(dtype).eps * 250 if dtype[0] == "f" else 0.5
    np.testing.assert_allclose(read(levels[1])[:, :1], exact, atol=half)
    # The last row had no neighbour.
    lone = array[:, 2:].astype("float64").reshape(2, 1, 1050, 2).mean(3)
    np.testing.assert_allclose(read(levels[1])[:, 1:], lone, atol=half)


def test_a_saved_file_replaces_the_one_it_was_read_from(tmp_path: Path) -> None:
    for format in ("ome-tiff", "ome-zarr-0.5"):
        path = save_volume(tmp_path / FORMATS[format], make())
        volume = open_volume(path)
        save_volume(path, volume.replace(data=volume.data + np.uint16(1)), overwrite=True)
        np.testing.assert_array_equal(read(open_volume(path)), read(make()) + 1)
    assert left_over(tmp_path) == ["a.ome.tif", "a.ome.zarr"]


# ------------------------------------------------------------------------------------------ npy


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["uint16", ">u2", "float32", "bool"])
def test_plain_npy_files(tmp_path: Path, order: Any, dtype: str) -> None:
    array = np.asarray(values((3, 20, 30)) % 2, dtype=dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(AxesError, match=r"\(3, 20, 30\).*TYX, CYX, ZYX"):
        open_volume(tmp_path / "a.npy")
    volume = open_volume(tmp_path / "a.npy", axes="CYX", channel=1)
    np.testing.assert_array_equal(read(volume), array[1])
    np.save(tmp_path / "b.npy", array[0])
    assert open_volume(tmp_path / "b.npy").axes == "YX"


def test_numpy_reads_our_npy(tmp_path: Path) -> None:
    path = save_volume(tmp_path / "a.npy", make())
    np.testing.assert_array_equal(np.load(path), read(make()))
    np.testing.assert_array_equal(np.load(path, mmap_mode="r"), read(make()))


def test_bad_npy_files(tmp_path: Path) -> None:
    path = save_volume(tmp_path / "a.npy", make("ZYX"))
    content = path.read_bytes()
    for length in (7, 60, 127, 1000):
        path.write_bytes(content[:length])
        with pytest.raises(ReadError, match=r"a\.npy is (cut short|not a readable)"):
            open_volume(path)
    path.write_bytes(content[:-5])
    with pytest.warns(UserWarning, match=r"history in .*a\.npy cannot be used"):
        np.testing.assert_array_equal(read(open_volume(path, axes="ZYX")), read(make("ZYX")))
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ReadError, match="holds values of type object"):
        open_volume(path)
    np.save(path, np.zeros((3, 0, 4)))
    with pytest.raises(ReadError, match=r"shape \(3, 0, 4\)"):
        open_volume(path)
    np.save(path, np.zeros(3))
    with pytest.raises(ReadError, match="at least Y and X"):
        open_volume(path)
    np.save(path, np.zeros((3, 4)))
    with pytest.raises(ReadError, match="without levels"):
        open_volume(path, level=1)


# -------------------------------------------------------------------------------- opening stacks


def write_stack(folder: Path, array: np.ndarray, **options: Any) -> None:
    folder.mkdir(exist_ok=True)
    for i, plane in enumerate(array):
        tifffile.imwrite(folder / f"t{i}.tif", plane, photometric="minisblack", **options)


def test_a_folder_of_planes(tmp_path: Path) -> None:
    array = values((12, 20, 30))
    write_stack(tmp_path / "run", array, compression="zlib")
    (tmp_path / "run" / "notes.txt").write_text("not an image")
    (tmp_path / "run" / ".hidden.tif").write_text("nor this")
    with pytest.raises(AxesError, match=r"12 files\) has shape \(12, 20, 30\).*TYX, CYX, ZYX"):
        open_volume(tmp_path / "run")
    volume = open_volume(tmp_path / "run", axes="ZYX", voxel_size=(0.3, 0.1, 0.1))
    assert (volume.axes, volume.name) == ("ZYX", "run")
    assert volume.voxel_size == {"Z": 0.3, "Y": 0.1, "X": 0.1}
    # t2 before t10.
    np.testing.assert_array_equal(read(volume), array)
    with pytest.raises(AxesError, match="stack; name the axis"):
        open_volume(tmp_path / "run", axes="YX")


def test_a_pattern_of_stacks(tmp_path: Path) -> None:
    array = values((3, 4, 20, 30))
    write_stack(tmp_path, array, metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "other.tif", values((5, 5)))
    with pytest.raises(AxesError, match="TZYX, CZYX"):
        open_volume(tmp_path / "t*.tif")
    volume = open_volume(str(tmp_path / "t[0-9].tif"), axes="CZYX")
    assert volume.channel_names == ("t0", "t1", "t2")
    np.testing.assert_array_equal(read(volume.channel("t1")), array[1])
    # The files' own order of axes is Z; the stack's is T, then Z.
    np.testing.assert_array_equal(read(open_volume(tmp_path / "t*.tif", axes="TZYX")), array)
    assert open_volume(tmp_path / "oth*.tif").shape == (5, 5)


def test_files_of_a_stack_must_be_alike(tmp_path: Path) -> None:
    write_stack(tmp_path, values((3, 20, 30)))
    tifffile.imwrite(tmp_path / "t3.tif", values((20, 31)))
    with pytest.raises(ReadError, match=r"different shapes.*\(20, 30\): 3 files.*\(20, 31\): 1 files \(t3\.tif\)"):
        open_volume(tmp_path, axes="TYX")
    tifffile.imwrite(tmp_path / "t3.tif", values((20, 30), "uint8"))
    with pytest.raises(ReadError, match=r"different types.*uint16: 3 files.*uint8: 1 files"):
        open_volume(tmp_path, axes="TYX")
    dense = {"resolution": (1e5, 1e5), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "t3.tif", values((20, 30)), **dense)
    with pytest.raises(ReadError, match=r"different steps along Y: None, 0\.1"):
        open_volume(tmp_path, axes="TYX")
    assert open_volume(tmp_path, axes="TYX", voxel_size=(0.1, 0.1)).voxel_size == {"Y": 0.1, "X": 0.1}


def test_the_histories_of_a_stack_are_kept(tmp_path: Path) -> None:
    for i in range(3):
        save_volume(tmp_path / f"a{i}.tif", make("YX"))
    assert open_volume(tmp_path, axes="TYX").history == make().history
    save_volume(tmp_path / "a3.tif", make("YX").with_history({"action": "more"}))
    (entry,) = open_volume(tmp_path, axes="TYX").history
    assert entry["histories"]["a3.tif"][1] == {"action": "more"}


# ------------------------------------------------------------------------------ what is no image


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"no file or folder .*nothing\.tif \(from the folder"):
        open_volume(tmp_path / "nothing.tif")
    with pytest.raises(ReadError, match=r"no file matches .*\*\.tif"):
        open_volume(tmp_path / "*.tif")
    with pytest.raises(ReadError, match=r"holds no TIFF files .*it holds nothing"):
        open_volume(tmp_path)
    (tmp_path / "a.tif").write_bytes(b"")
    with pytest.raises(ReadError, match=r"a\.tif is empty"):
        open_volume(tmp_path / "a.tif")
    (tmp_path / "a.tif").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ReadError, match=r"a\.tif is no image that can be read: TIFF, OME-TIFF"):
        open_volume(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.tif", "a.npy", "a.zarr", "folder"])
def test_what_may_not_be_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "folder":
        write_stack(tmp_path / name, values((2, 4, 5)))
    else:
        save_volume(tmp_path / name, make("YX"))

    def forbidden(path: Any, *rest: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    # The superuser may read everything, so the refusal is played.
    monkeypatch.setattr(os, "listdir", forbidden)
    monkeypatch.setattr("builtins.open", forbidden)
    with pytest.raises(ReadError, match="Permission denied") as caught:
        open_volume(tmp_path / name)
    assert name in str(caught.value)


def test_a_missing_channel_lists_those_that_exist(tmp_path: Path) -> None:
    path = save_volume(tmp_path / "a.zarr", make())
    assert open_volume(path, channel="channel 1 é").axes == "TZYX"
    with pytest.raises(VolumeError, match=r"no channel 'DAPI': the channels are 0 \('channel 0 é'\), 1"):
        open_volume(path, channel="DAPI")


# ---------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize("format", FORMATS)
def test_progress_counts_every_block(tmp_path: Path, format: Format) -> None:
    volume = make("ZYX")
    target = tmp_path / FORMATS[format]
    steps = []
    for step in iter_save_volume(target, volume, format=format):
        steps.append(step)
        assert not target.exists(), "nothing may look whole before it is"
    assert target.exists()
    assert [step.index for step in steps] == list(range(1, 9))
    assert {step.total for step in steps} == {8}
    assert sum(step.voxels for step in steps) == np.prod(volume.shape)
    assert all(isinstance(step, BlockWritten) and step.level == 0 for step in steps)


def test_progress_counts_the_pyramid(tmp_path: Path) -> None:
    for name in ("a.tif", "a.zarr"):
        steps = list(iter_save_volume(tmp_path / name, Volume.from_array(da.zeros((10, 2100), chunks=(5, 1000)))))
        assert [step.index for step in steps] == list(range(1, steps[0].total + 1))
        assert [step.level for step in steps[:6]] == [0] * 6
        assert sum(step.voxels for step in steps if step.level == 1) == 5 * 1050


@pytest.mark.parametrize("format", FORMATS)
def test_one_block_at_a_time_is_computed_in_order(tmp_path: Path, format: Format) -> None:
    seen: list[int] = []

    def mark(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        seen.append(block_info[0]["chunk-location"][0])
        return block

    data = da.zeros((5, 30, 40), chunks=(1, 30, 40), dtype="uint8").map_blocks(mark, dtype="uint8")
    seen.clear()
    for step in iter_save_volume(tmp_path / FORMATS[format], Volume.from_array(data, "ZYX"), format=format):
        assert seen == list(range(step.index))


@pytest.mark.parametrize("format", FORMATS)
def test_memory_does_not_grow_with_the_volume(tmp_path: Path, format: Format) -> None:
    block, count = 256 * 256 * 4, 96
    volume = Volume.from_array(da.ones((count, 256, 256), chunks=(1, 256, 256), dtype="float32"), "ZYX")
    save_volume(tmp_path / FORMATS[format], make("ZYX", dtype="float32"), format=format)
    tracemalloc.start()
    try:
        save_volume(tmp_path / FORMATS[format], volume, format=format, overwrite=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The volume is 96 blocks (25 MB); a zarr chunk may hold several blocks, so a few are in hand at once.
    assert peak < 20 * block


@pytest.mark.parametrize("format", FORMATS)
def test_what_a_killed_program_left_is_removed(tmp_path: Path, format: Format) -> None:
    """After an hour without a write; what another program writes just now stays."""
    target = tmp_path / FORMATS[format]
    old, new, other = (tmp_path / f".{name}.{token}.partial" for name, token in zip(
        (target.name, target.name, "another.tif"), ("0123abcd", "89abcdef", "0123abcd"), strict=True
    ))  # fmt: skip
    old.mkdir()
    (old / "zarr.json").write_text("{}")
    new.write_text("half")
    other.write_text("half")
    for path in (old / "zarr.json", old, other):
        os.utime(path, (0, 0))
    save_volume(target, make("ZYX"), format=format)
    assert not old.exists()
    assert new.exists() and other.exists() and target.exists()


@pytest.mark.parametrize("format", FORMATS)
def test_a_stopped_save_leaves_nothing(tmp_path: Path, format: Format) -> None:
    saving = iter_save_volume(tmp_path / FORMATS[format], make("ZYX"), format=format)
    next(saving)
    assert len(left_over(tmp_path)) == 1
    assert left_over(tmp_path)[0].endswith(".partial")
    saving.close()
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("fault", [RuntimeError("no memory on the device"), KeyboardInterrupt()])
def test_a_failed_computation_leaves_what_was_there(tmp_path: Path, format: Format, fault: BaseException) -> None:
    path = save_volume(tmp_path / FORMATS[format], make("ZYX"), format=format)

    def fail(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info[0]["chunk-location"] == (1, 0, 1):
            raise fault
        return block + 1

    broken = make("ZYX")
    meta = np.empty((0, 0, 0), np.uint16)
    broken = broken.replace(data=broken.data.map_blocks(fail, dtype=np.uint16, meta=meta))
    with pytest.raises(type(fault)):
        save_volume(path, broken, format=format, overwrite=True)
    assert left_over(tmp_path) == [path.name]
    np.testing.assert_array_equal(read(open_volume(path)), read(make("ZYX")))


def test_an_existing_file_is_replaced_on_request_only(tmp_path: Path) -> None:
    for format, name in FORMATS.items():
        save_volume(tmp_path / name, make("ZYX"), format=format)
        with pytest.raises(WriteError, match=r"exists; choose another name, or overwrite=True"):
            iter_save_volume(tmp_path / name, make("YX"), format=format)
        save_volume(tmp_path / name, make("YX"), format=format, overwrite=True)
        assert open_volume(tmp_path / name).axes == "YX"
    assert left_over(tmp_path, *FORMATS.values()) == []


def test_a_folder_that_is_no_image_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "thesis.txt").write_text("precious")
    (tmp_path / "a.tif").mkdir()
    with pytest.raises(WriteError, match="is no zarr image, so it is not replaced"):
        save_volume(tmp_path / "a.zarr", make(), overwrite=True)
    with pytest.raises(WriteError, match=r"a\.tif is a folder"):
        save_volume(tmp_path / "a.tif", make(), overwrite=True)
    assert (tmp_path / "a.zarr" / "thesis.txt").read_text() == "precious"


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    for format, name in FORMATS.items():
        saving = iter_save_volume(tmp_path / name, make("ZYX"), format=format)
        next(saving)
        (tmp_path / name).write_text("theirs")
        with pytest.raises(WriteError, match="exists"):
            list(saving)
        assert (tmp_path / name).read_text() == "theirs"
    assert left_over(tmp_path, *FORMATS.values()) == []


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"suffix '\.png', which is no format that can be written: \.tif"):
        save_volume(tmp_path / "a.png", make())
    with pytest.raises(WriteError, match="does not exist; make it first"):
        save_volume(tmp_path / "nowhere" / "a.tif", make())
    with pytest.raises(WriteError, match=r"cannot be ome-zarr-0\.4: that takes the suffix \.zarr"):
        save_volume(tmp_path / "a.tif", make(), format="ome-zarr-0.4")
    with pytest.raises(WriteError, match="unknown format 'bmp'; allowed are ome-tiff, imagej"):
        save_volume(tmp_path / "a.tif", make(), format="bmp")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [lambda b: b[:1], lambda b: b.astype("float32")])
def test_a_computation_that_breaks_its_promise_is_not_saved(tmp_path: Path, wrong: Any) -> None:
    volume = make("ZYX")
    broken = volume.replace(data=volume.data.map_blocks(wrong, dtype=np.uint16, meta=np.empty((0, 0, 0), np.uint16)))
    with pytest.raises(
        WriteError, match=r"block \(0, 0, 0\) came out as .* but the volume promised uint16 \(3, 11, 17\)"
    ):
        save_volume(tmp_path / "a.tif", broken)
    assert left_over(tmp_path) == []


# ------------------------------------------------------------------------------------- full disk


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up(tmp_path: Path, format: Format, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    target_type = {"npy": NpyTarget, "ome-tiff": TiffTarget, "imagej": TiffTarget}.get(format, ZarrTarget)
    write = target_type.write
    count = itertools.count()

    def full(self: Any, level: int, start: Any, block: Any) -> None:
        if next(count) == 5:
            raise OSError(code, os.strerror(code))
        write(self, level, start, block)

    monkeypatch.setattr(target_type, "write", full)
    with pytest.raises(WriteError, match=r"does not fit: it takes up to 7\.14e-06 GB, and .* GB are free") as caught:
        save_volume(tmp_path / FORMATS[format], make("ZYX"), format=format)
    assert os.strerror(code) in str(caught.value)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_may_grow_no_further(tmp_path: Path, format: Format) -> None:
    """The operating system's own refusal, not a played one."""
    resource = pytest.importorskip("resource", reason="limits on file size are a Unix matter")
    noise = np.random.default_rng(0).integers(0, 2**16, (4, 400, 500), dtype=np.uint16)
    volume = Volume.from_array(da.from_array(noise, chunks=(1, 400, 500)), "ZYX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        with pytest.raises(WriteError, match=r"does not fit: it takes up to 0\.0016 GB"):
            save_volume(tmp_path / FORMATS[format], volume, format=format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert left_over(tmp_path) == []


def test_a_volume_larger_than_the_disk_is_refused_at_once(tmp_path: Path) -> None:
    huge = Volume.from_array(da.zeros((10**6, 10**4, 10**4), chunks=(10**4,) * 3, dtype="uint8"), "ZYX")
    for name in ("a.tif", "a.npy"):
        with pytest.raises(WriteError, match=r"does not fit: it takes up to 1e\+05 GB|does not fit: .* GB"):
            iter_save_volume(tmp_path / name, huge)
    # What zarr takes depends on how well the values compress, so it may try.
    iter_save_volume(tmp_path / "a.zarr", huge)
    assert left_over(tmp_path) == []


def test_another_write_fault_keeps_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, *rest: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(TiffTarget, "write", fail)
    with pytest.raises(WriteError, match=r"a\.tif cannot be written: Input/output error"):
        save_volume(tmp_path / "a.tif", make("YX"))
    assert left_over(tmp_path) == []


def test_a_remnant_that_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    saving = iter_save_volume(tmp_path / "a.tif", make("ZYX"))
    next(saving)
    monkeypatch.setattr(Path, "unlink", stuck)
    with pytest.raises(RuntimeError, match="stop") as caught:
        saving.throw(RuntimeError("stop"))
    assert any(".partial could not be removed: " in note for note in caught.value.__notes__)


def test_a_folder_that_cannot_be_put_in_place_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_volume(tmp_path / "a.zarr", make("ZYX"))
    rename = os.rename

    def fail(source: Any, target: Any) -> None:
        if str(source).endswith(".partial"):
            raise OSError(errno.EBUSY, "Device or resource busy")
        rename(source, target)

    monkeypatch.setattr(files_module.os, "rename", fail)
    with pytest.raises(WriteError, match="busy"):
        save_volume(path, make("YX"), overwrite=True)
    assert left_over(tmp_path) == ["a.zarr"]
    np.testing.assert_array_equal(read(open_volume(path)), read(make("ZYX")))


def test_a_cluster_that_the_user_started_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def get(tasks: Any, key: Any, **options: Any) -> Any:
        asked.append(key)
        return dask.get(tasks, key)

    monkeypatch.setattr(files_module, "get_scheduler", lambda: get)
    save_volume(tmp_path / "a.tif", make("ZYX"))
    assert asked == []
    with dask.config.set(scheduler="dask.distributed"):
        save_volume(tmp_path / "b.tif", make("ZYX"))
    assert len(asked) == 8
    np.testing.assert_array_equal(read(open_volume(tmp_path / "b.tif")), read(make("ZYX")))
