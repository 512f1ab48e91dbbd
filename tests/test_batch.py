"""Many files: found, named, skipped when finished, and one bad file does not stop the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from napari_ambient import restore
from napari_ambient.batch import find_files, iter_batch, output_path, restore_files
from napari_ambient.denoiser import Denoiser, Scale
from napari_ambient.measurement import with_holes
from napari_ambient.networks.unet import UNet, UNetArguments
from napari_ambient.noise import NoiseModel
from napari_ambient.operators import Downsample, Mask
from napari_ambient.prior import Prior, Record
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


# ------------------------------------------------------------------------------------------- with a prior


def make_prior() -> Prior:
    torch.manual_seed(0)
    network = UNet(UNetArguments(widths=(8, 8, 8)))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    denoiser = Denoiser(network, [Scale(3.5, 1.2)])
    denoiser.requires_grad_(False)
    config = {"steps": 3, "below": "virtual_exposures", "below_steps": 3}
    record = Record("ambient", "thinning", "TYX", {}, config=config, step=6)
    return Prior(denoiser, (NoiseModel(gain=2.0, intercept=-200.0, photons=4.0),), record)


def make_stack(path: Path, seed: int = 0) -> Path:
    counts = (100 + 2 * np.random.default_rng(seed).poisson(4, (3, 24, 24))).astype(np.uint16)
    tifffile.imwrite(path, counts, metadata={"axes": "TYX"}, imagej=True)
    return path


@pytest.mark.parametrize("method", ["mean", "samples"])
def test_files_are_restored_as_by_restore(tmp_path: Path, method: str) -> None:
    """Batch gives what `restore` gives, leaves no work folder, and tells of every network call."""
    source, target = make_stack(tmp_path / "a.tif"), tmp_path / "out" / "a.ome.zarr"
    options: dict[str, Any] = {"method": method, "draws": 2, "steps": 3}
    told: list[tuple[int, int]] = []
    reports = list(restore_files([(source, target)], make_prior(), watch=lambda *seen: told.append(seen), **options))
    assert [r.state for r in reports if r.state != "working"] == ["started", "finished"]
    expected = restore(open_volume(source), make_prior(), **options).data.compute()
    np.testing.assert_allclose(open_volume(target).data.compute(), expected, rtol=1e-6)
    assert [p.name for p in target.parent.iterdir()] == ["a.ome.zarr"]
    # before and while a slow call lasts the same is told again
    assert told[-1][0] == told[-1][1] == len({done for done, _ in told} - {0}) == (3 if method == "mean" else 3 * 2 * 3)


def states(jobs: list[tuple[Path, Path]], prior: Prior, **options: Any) -> tuple[str, str]:
    (*_, last) = restore_files(jobs, prior, **options)
    return last.state, last.message


DRAWN: dict[str, Any] = {"method": "samples", "draws": 2, "steps": 3}


@pytest.mark.parametrize(
    ("first", "then", "words"),
    [
        ({}, {**DRAWN}, "method mean instead of samples"),
        ({}, {"dtype": "input"}, "type float32 instead of uint16"),
        ({}, {"noise": "fit"}, "noise the prior's instead of fitted to the file"),
        (DRAWN, {**DRAWN, "draws": 3}, "draws 2 instead of 3"),
        (DRAWN, {**DRAWN, "steps": 4}, "steps 3 instead of 4"),
        (DRAWN, {**DRAWN, "seed": 3}, "seed 0 instead of 3"),
        (DRAWN, {**DRAWN, "outputs": ["mean", "q05"]}, "outputs mean std instead of mean q05"),
        (DRAWN, {**DRAWN, "recalibrate": True}, "error bars not recalibrated"),
        (DRAWN, {**DRAWN, "operator": lambda _: Downsample(2)}, "none instead of downsample"),
        (
            {**DRAWN, "operator": lambda _: Mask(np.eye(24) == 0)},
            {**DRAWN, "operator": lambda _: Mask(np.eye(24) > 0)},
            "another PSF, mask or pixel size",
        ),
        (
            {**DRAWN, "operator": lambda _: Downsample(2)},
            {**DRAWN, "operator": lambda _: Downsample(2), "posterior": "mmps"},
            "posterior method split_gibbs instead of mmps",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_result_made_with_other_settings_is_not_skipped(
    tmp_path: Path, first: dict[str, Any], then: dict[str, Any], words: str
) -> None:
    """It fails, says what differs and is left alone; with the same settings it is skipped, nothing is drawn."""
    job = (make_stack(tmp_path / "a.tif"), tmp_path / "out.ome.tif")
    assert states([job], make_prior(), **first) == ("finished", "")
    made = job[1].read_bytes()
    told: list[object] = []
    assert states([job], make_prior(), watch=lambda *seen: told.append(seen), **first)[0] == "skipped"
    state, message = states([job], make_prior(), watch=lambda *seen: told.append(seen), **then)
    assert state == "failed"
    assert words in message
    assert "(--overwrite; in napari without" in message
    assert message.count(" instead of ") <= 1  # what follows from one difference is not told beside it
    assert not told
    assert job[1].read_bytes() == made


def test_another_prior_image_or_mask_is_seen(tmp_path: Path) -> None:
    """Not only the options: prior, the image's size and voxel size, and holes that were cut in; overwriting helps."""
    job = (make_stack(tmp_path / "a.tif"), tmp_path / "out.ome.zarr")
    prior = make_prior()
    assert states([job], prior)[0] == "finished"
    other = make_prior()
    with torch.no_grad():
        next(other.denoiser.parameters()).mul_(1.01)
    assert states([job], other) == ("failed", states([job], other)[1])
    assert "another prior" in states([job], other)[1]
    assert "gain" not in states([job], other)[1]
    finer = {"open_": lambda path: open_volume(path, voxel_size=(0.2, 0.2))}
    assert "voxel size unknown × unknown instead of 0.2 × 0.2 µm" in states([job], prior, **finer)[1]

    def hole(volume: Volume) -> Volume:
        return with_holes(volume, Volume.from_array(np.ones((3, 24, 24), np.uint8), "TYX"))

    assert "before (such as another mask)" in states([job], prior, prepare=hole)[1]
    tifffile.imwrite(job[0], np.full((2, 24, 24), 108, np.uint16), metadata={"axes": "TYX"}, imagej=True)
    assert "3 × 24 × 24 voxels instead of 2 × 24 × 24" in states([job], prior)[1]
    assert states([job], prior, overwrite=True)[0] == "finished"
    assert states([job], prior)[0] == "skipped"
    # what somebody else put there
    save_volume(job[1], Volume.from_array(np.zeros((2, 24, 24), np.uint16), "TYX"), overwrite=True)
    assert "does not say that it was restored" in states([job], prior)[1]


def test_channels_without_names_are_told_apart(tmp_path: Path) -> None:
    """The first channel of a file is not taken for the second one."""
    counts = (100 + 2 * np.random.default_rng(1).poisson(4, (2, 24, 24))).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", counts, metadata={"axes": "CYX"}, imagej=True)
    job = (tmp_path / "a.tif", tmp_path / "out.ome.tif")
    first, second = ({"open_": lambda path, c=c: open_volume(path, channel=c)} for c in (0, 1))
    assert states([job], make_prior(), **first)[0] == "finished"
    assert states([job], make_prior(), **first)[0] == "skipped"
    assert "channels 0 instead of 1" in states([job], make_prior(), **second)[1]


def test_measured_in_each_file_and_not_again(tmp_path: Path) -> None:
    """A result whose noise was fitted to it is skipped when the noise is to be fitted; fitting it is not repeated."""
    big = (100 + 2 * np.random.default_rng(0).poisson(np.linspace(1, 30, 64), (4, 64, 64))).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", big, metadata={"axes": "TYX"}, imagej=True)
    job = (tmp_path / "a.tif", tmp_path / "out.ome.tif")
    seen: list[object] = []
    options: dict[str, Any] = {"noise": "fit", "look": lambda volume, models: seen.append(models)}
    assert states([job], make_prior(), **options)[0] == "finished"
    assert len(seen) == 1
    assert seen[0] is not None
    assert states([job], make_prior(), **options)[0] == "skipped"
    assert len(seen) == 1
    assert "noise fitted to the file instead of the prior's" in states([job], make_prior())[1]


def test_a_watcher_that_raises_ends_the_batch(tmp_path: Path) -> None:
    """Within a file: nothing is left under its name, the error is not taken for the file's, and the rest waits."""
    jobs = [(make_stack(tmp_path / f"{name}.tif"), tmp_path / "out" / f"{name}.ome.tif") for name in "ab"]

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise RuntimeError("enough")

    reports = []
    with pytest.raises(RuntimeError, match="enough"):
        reports.extend(restore_files(jobs, make_prior(), watch=stop))
    assert list((tmp_path / "out").iterdir()) == []
    assert [r.state for r in restore_files(jobs, make_prior()) if r.state == "finished"] == ["finished"] * 2


def test_a_finished_file_says_what_to_know_of_it(tmp_path: Path) -> None:
    """Voxels that did not fit into the input's type are told of."""
    dark = np.full((24, 24), 2, np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", dark)
    prior = replace(make_prior(), noise=(NoiseModel(gain=200.0, intercept=-2e4, photons=4.0),))
    job = (tmp_path / "a.tif", tmp_path / "out.ome.tif")
    (finished,) = [r for r in restore_files([job], prior, dtype="input") if r.state == "finished"]
    assert "voxels clipped" in finished.message


def test_what_has_no_error_bars_is_not_recalibrated(tmp_path: Path) -> None:
    job = (make_stack(tmp_path / "a.tif"), tmp_path / "out.ome.tif")
    with pytest.raises(ValueError, match="leave one of the two out"):
        next(restore_files([job], make_prior(), recalibrate=True))
