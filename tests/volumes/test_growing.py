"""A file that grows can be looked at, and a partial file is never taken for a whole one."""

from __future__ import annotations

from pathlib import Path

import dask.array as da
import numpy as np
import pytest

from napari_ambient.volumes import ReadError, Volume, iter_save_volume, open_volume
from napari_ambient.volumes.growing import GrowingArray


@pytest.fixture
def volume() -> Volume:
    values = np.arange(4 * 32 * 48, dtype=np.uint16).reshape(4, 32, 48) + 1
    return Volume.from_array(da.from_array(values, chunks=(1, 32, 48)), "TYX", name="rising")


def test_what_is_written_is_there_and_the_rest_is_0(volume: Volume, tmp_path: Path) -> None:
    values = volume.data.compute()
    steps = iter_save_volume(tmp_path / "a.ome.zarr", volume)
    growing = GrowingArray(next(steps))
    assert (growing.shape, growing.dtype, growing.ndim, len(growing)) == ((4, 32, 48), np.uint16, 3, 4)
    np.testing.assert_array_equal(growing[0], values[0])
    assert not growing[1:].any()
    next(steps)
    np.testing.assert_array_equal(growing[:2, 5, ::3], values[:2, 5, ::3])  # seen without opening it anew
    assert not growing.complete
    for _ in steps:
        pass
    assert growing.complete
    np.testing.assert_array_equal(np.asarray(growing), values)  # at its own name now


def test_a_partial_file_is_not_found_and_not_opened(volume: Volume, tmp_path: Path) -> None:
    target = tmp_path / "a.ome.zarr"
    steps = iter_save_volume(target, volume)
    written = next(steps)
    assert not target.exists()
    assert written.target == target
    assert written.path.name.startswith(".")
    with pytest.raises(ReadError, match="without OME metadata"):
        open_volume(written.path)
    with pytest.raises(ReadError, match="no file or folder"):
        open_volume(target)
    steps.close()


@pytest.mark.parametrize("replacing", [False, True])
def test_what_is_given_up_says_so(volume: Volume, tmp_path: Path, replacing: bool) -> None:
    """Also when it was to replace a file, which is still there then."""
    if replacing:
        for _ in iter_save_volume(tmp_path / "a.ome.zarr", volume):
            pass
    steps = iter_save_volume(tmp_path / "a.ome.zarr", volume, overwrite=True)
    growing = GrowingArray(next(steps))
    steps.close()
    with pytest.raises(ReadError, match="given up"):
        growing[0]
    assert not growing.complete


def test_an_older_file_is_not_taken_for_it(volume: Volume, tmp_path: Path) -> None:
    """While it replaces a file of the same name, the new voxels are seen, not the old."""
    target = tmp_path / "a.ome.zarr"
    old = volume.replace(data=volume.data * 0 + 7)
    for _ in iter_save_volume(target, old):
        pass
    steps = iter_save_volume(target, volume, overwrite=True)
    growing = GrowingArray(next(steps))
    assert not growing.complete
    assert not growing[3].any()
    for _ in steps:
        pass
    np.testing.assert_array_equal(growing[3], volume.data[3].compute())


def test_formats_that_cannot_be_read_while_they_grow(volume: Volume, tmp_path: Path) -> None:
    steps = iter_save_volume(tmp_path / "a.ome.tif", volume)
    with pytest.raises(ReadError, match=r"save as \.ome\.zarr"):
        GrowingArray(next(steps))
    steps.close()
