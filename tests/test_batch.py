"""Many files: found, named, skipped when finished, and one bad file does not stop the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_ambient.batch import find_files, iter_batch, output_path
from napari_ambient.volumes import Volume, VolumeError, open_volume, save_volume


def write(path: Path, value: int) -> Path:
    tifffile.imwrite(path, np.full((8, 8), value, np.uint16))
    return path


def twice(volume: Volume, target: Path) -> Volume:
    return volume.replace(data=volume.data * 2)


def test_files_folders_and_globs(tmp_path: Path) -> None:
    """Each image once, sorted; OME-Zarr folders are images; nothing found is an error."""
    for name in ("b.tif", "a.tiff", "c.npy", "notes.txt", ".hidden.tif"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "z.ome.zarr").mkdir()
    names = [p.name for p in find_files([tmp_path])]
    assert names == ["a.tiff", "b.tif", "c.npy", "z.ome.zarr"]
    assert [p.name for p in find_files([str(tmp_path / "*.tif*"), tmp_path / "b.tif"])] == ["a.tiff", "b.tif"]
    assert find_files([tmp_path / "z.ome.zarr"]) == [tmp_path / "z.ome.zarr"]
    with pytest.raises(VolumeError, match="no image found"):
        find_files([str(tmp_path / "*.czi")])


@pytest.mark.parametrize(
    ("source", "format_", "expected"),
    [
        ("cells.tif", "same", "cells_r.ome.tif"),
        ("cells.ome.tiff", "ome-zarr", "cells_r.ome.zarr"),
        ("cells.v2.npy", "tiff", "cells.v2_r.ome.tif"),
    ],
)
def test_output_names(source: str, format_: str, expected: str) -> None:
    """The name without its ending, the suffix, and the format's ending."""
    assert output_path(Path("in") / source, Path("out"), "_r", format_) == Path("out") / expected  # type: ignore[arg-type]


def test_goes_on_and_skips(tmp_path: Path) -> None:
    """A bad file is reported, the others are done; what is finished is skipped, or redone on request."""
    out = tmp_path / "out"
    good, other = write(tmp_path / "a.tif", 1), write(tmp_path / "c.tif", 3)
    bad = tmp_path / "b.tif"
    bad.write_bytes(other.read_bytes()[:60])
    jobs = [(p, output_path(p, out, "", "same")) for p in (good, bad, other)]

    def outcome(**options: bool) -> dict[str, str]:
        return {r.source.name: r.state for r in iter_batch(jobs, twice, **options)}  # type: ignore[arg-type]

    assert outcome() == {"a.tif": "finished", "b.tif": "failed", "c.tif": "finished"}
    assert outcome() == {"a.tif": "skipped", "b.tif": "failed", "c.tif": "skipped"}
    assert int(open_volume(out / "c.ome.tif").data[0, 0].compute()) == 6
    write(good, 5)
    assert outcome(overwrite=True)["a.tif"] == "finished"
    assert int(open_volume(out / "a.ome.tif").data[0, 0].compute()) == 10
    assert sorted(p.name for p in out.iterdir()) == ["a.ome.tif", "c.ome.tif"]


def test_an_interrupted_file_is_done_again(tmp_path: Path) -> None:
    """Leaving in the middle of a file leaves no output under its name."""
    volume = Volume.from_array(np.zeros((6, 32, 32), np.uint16), "TYX")
    source = save_volume(tmp_path / "a.ome.tif", volume.replace(data=volume.data.rechunk((1, 32, 32))))
    target = tmp_path / "out" / "a.ome.tif"

    def chunked(opened: Volume, target: Path) -> Volume:
        return opened.replace(data=opened.data.rechunk((1, 32, 32)))

    reports = iter_batch([(source, target)], chunked)
    for report in reports:
        if report.state == "working":
            break
    reports.close()  # type: ignore[attr-defined]
    assert not target.exists()
    assert [r.state for r in iter_batch([(source, target)], chunked)][-1] == "finished"


def test_two_files_with_one_output(tmp_path: Path) -> None:
    """The second of two files with the same output fails and says which was first."""
    (tmp_path / "x").mkdir()
    first, second = write(tmp_path / "a.tif", 1), write(tmp_path / "x" / "a.tif", 2)
    jobs = [(p, output_path(p, tmp_path / "out", "", "same")) for p in (first, second)]
    reports = list(iter_batch(jobs, twice))
    assert reports[-1].state == "failed"
    assert "has the same output" in reports[-1].message


def test_programming_errors_are_not_swallowed(tmp_path: Path) -> None:
    """Only bad data, files and memory fail a file; a mistake of ours is raised."""

    def broken(_: Volume, target: Path) -> Volume:
        raise AttributeError("ours")

    with pytest.raises(AttributeError, match="ours"):
        list(iter_batch([(write(tmp_path / "a.tif", 1), tmp_path / "o.ome.tif")], broken))
