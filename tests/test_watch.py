"""Watching a restoration: every network call is told, also inside one image; what the watcher raises stops it whole."""

from __future__ import annotations

import itertools
import pickle
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_ambient import iter_save_volume, restore
from napari_ambient.moments import Moments
from napari_ambient.networks.unet import UNetArguments
from napari_ambient.operators import Blur, Mask
from napari_ambient.restoration import restore_part, take_draws, take_output
from napari_ambient.restorer import RestorationError
from napari_ambient.sampling import CallCount
from napari_ambient.uncertainty import work_folder
from napari_ambient.volumes import Volume
from test_uncertainty import FLAT, SOLID, counts, make_prior


class Stop(Exception):
    """What a user's cancel raises."""


class Heard:
    """Remembers the calls, and stops at one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.told: list[tuple[int, int]] = []
        self.stop_at = stop_at

    def __call__(self, done: int, total: int) -> None:
        self.told.append((done, total))
        if self.stop_at is not None and done >= self.stop_at:
            raise Stop

    @property
    def calls(self) -> list[int]:
        """Numbers of the network calls; a look between two calls repeats the number."""
        return [done for done, _ in itertools.groupby(done for done, _ in self.told) if done]


@pytest.mark.parametrize(
    ("arguments", "tile", "expected"),
    [(FLAT, (1, 32, 32), 2 * 3 * 4), (FLAT, (9, 64, 64), 2 * 3), (SOLID, (8, 32, 64), 2 * 2)],
    ids=["2D tiles", "2D whole", "3D"],
)
def test_every_call_of_the_mean_is_told(arguments: UNetArguments, tile: tuple[int, int, int], expected: int) -> None:
    """Counted against the network itself, by a hook on it."""
    prior, heard = make_prior(arguments), Heard()
    seen = []
    prior.denoiser.network.register_forward_hook(lambda *_: seen.append(1))
    volume = Volume.from_array(counts((2, 3, 64, 64)), "TZYX")
    restore(volume, prior, tile=tile, watch=heard).data.compute(scheduler="synchronous")
    assert heard.calls == list(range(1, expected + 1))
    assert len(seen) == expected
    assert {total for _, total in heard.told} == {expected}


def test_every_call_of_draws_is_told_also_within_one_image(tmp_path: Path) -> None:
    """Draws, steps and tiles: all of them; finished draws count as done."""
    prior, heard = make_prior(FLAT), Heard()
    volume = Volume.from_array(counts((2, 64, 64)), "TYX")
    settings: dict[str, Any] = {"method": "samples", "draws": 2, "steps": 3, "tile": (1, 32, 64), "work": tmp_path}
    restore(volume, prior, watch=heard, **settings).data.compute(scheduler="synchronous")
    assert heard.calls == list(range(1, 2 * 2 * 3 * 2 + 1))
    assert {total for _, total in heard.told} == {24}
    again = Heard()
    restore(volume, prior, watch=again, **settings).data.compute(scheduler="synchronous")
    assert again.told[-1] == (24, 24)
    assert len(again.told) == 4  # once for each draw that was there


def test_the_total_is_corrected_when_it_was_foreseen_wrongly() -> None:
    """An image with holes goes another way, which nobody can know before it is read."""
    prior, heard = make_prior(FLAT), Heard()
    values = counts((48, 48)).astype(np.float32)
    values[10:20, 10:20] = np.nan
    volume = Volume.from_array(values, "YX")
    restore(volume, prior, method="samples", draws=3, steps=3, watch=heard).data.compute(scheduler="synchronous")
    assert heard.calls[-1] == heard.told[-1][1]  # it ends at the end
    assert all(done <= total for done, total in heard.told)


@pytest.mark.parametrize("method", ["mean", "samples"])
def test_stopping_leaves_nothing_behind(method: str, tmp_path: Path) -> None:
    """At the third call, within the first image: no file, no half of one; finished draws stay for the next time."""
    prior = make_prior(FLAT)
    volume = Volume.from_array(counts((2, 64, 64)), "TYX")
    target, work = tmp_path / "out.ome.zarr", work_folder(tmp_path / "out.ome.zarr")
    settings: dict[str, Any] = {"method": method, "tile": (1, 32, 32)}
    if method == "samples":
        settings |= {"draws": 2, "steps": 2, "work": work}
    stop_at = 3 if method == "mean" else 11  # eight calls make the first draw
    with pytest.raises(Stop):
        for _ in iter_save_volume(target, restore(volume, prior, watch=Heard(stop_at), **settings)):
            pass
    assert [path for path in tmp_path.iterdir() if path != work] == []
    assert len(list(work.glob("*.npy"))) == (1 if method == "samples" else 0)


def test_the_watcher_looks_in_while_a_call_lasts() -> None:
    """Slow layers: the work stops inside the first network call, long before its end."""
    prior = make_prior(FLAT)
    reached = []

    def slow(*_: object) -> None:
        reached.append(1)
        time.sleep(0.03)

    layers = [m for m in prior.denoiser.network.modules() if isinstance(m, torch.nn.Conv2d)]
    for layer in layers:
        layer.register_forward_hook(slow)

    def stop(done: int, total: int) -> None:
        raise Stop

    volume = Volume.from_array(counts((64, 64)), "YX")
    with pytest.raises(Stop):
        restore(volume, prior, watch=stop).data.compute(scheduler="synchronous")
    assert len(reached) <= 4 < len(layers)


def test_on_a_cluster_nobody_watches() -> None:
    count = pickle.loads(pickle.dumps(CallCount(lambda done, total: None, 2, 3)))
    count.called()
    assert isinstance(count.watched().__enter__(), type(None))


def test_the_command_line_shows_draws_and_says_what_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its bar counts network calls within one image, and the other gain is named."""
    from napari_ambient.cli import main

    make_prior(FLAT).save(tmp_path / "a.prior")
    bright = (100 + 8 * np.random.default_rng(0).poisson(np.linspace(1, 9, 64), (64, 64))).astype(np.uint16)
    np.save(tmp_path / "image.npy", bright)
    options = ["--method", "samples", "--draws", "2", "--steps", "3", "--device", "cpu"]
    with pytest.raises(SystemExit) as left:
        main(["restore", str(tmp_path / "a.prior"), str(tmp_path / "image.npy"), "-o", str(tmp_path / "out"), *options])
    assert left.value.code == 0
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "image: note: Noise: its variance" in shown
    assert "--noise fit" in shown


# --- parts and outputs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (FLAT, {"T": slice(1, 2), "Y": slice(13, 41), "X": slice(7, 30)}),
        (SOLID, {"T": slice(0, 1), "Z": slice(3, 5), "X": slice(70, 96)}),
    ],
    ids=["2D", "3D"],
)
def test_a_part_is_what_the_whole_gives(arguments: UNetArguments, part: dict[str, slice]) -> None:
    prior = make_prior(arguments)
    volume = Volume.from_array(counts((2, 8, 96, 96)), "TZYX")
    whole = restore(volume, prior).data.compute(scheduler="synchronous")
    cut = restore_part(volume, prior, part)
    box = tuple(part.get(axis, slice(None)) for axis in "TZYX")
    np.testing.assert_allclose(cut.data.compute(scheduler="synchronous"), whole[box], rtol=1e-5)
    # negative control: the part alone lacks what lies around it
    alone = restore(volume.replace(data=volume.data[box]), prior).data.compute(scheduler="synchronous")
    assert np.abs(alone - whole[box]).max() > 1e-3
    assert cut.history[-1]["part"]["X"] == [part["X"].start, part["X"].stop]


def test_a_part_takes_its_own_part_of_the_camera() -> None:
    """Hot pixels are cut with the image; a gain map too."""
    prior = make_prior(FLAT)
    hot = np.zeros((48, 48), dtype=bool)
    hot[20, 30] = True
    gain = np.full((48, 48), 2.0)
    gain[:, 24:] = 4.0
    noise = replace(prior.noise[0], hot_pixels=hot, gain=gain, intercept=-100 * gain)
    volume = Volume.from_array(counts((48, 48)), "YX")
    whole = restore(volume, prior, noise=noise).data.compute(scheduler="synchronous")
    part = restore_part(volume, prior, {"Y": slice(16, 30), "X": slice(18, 40)}, noise=noise)
    np.testing.assert_allclose(part.data.compute(scheduler="synchronous"), whole[16:30, 18:40], rtol=1e-5)


def test_a_part_through_an_operator_and_what_cannot_be_cut() -> None:
    prior = make_prior(FLAT)
    volume = Volume.from_array(counts((3, 48, 48)), "ZYX")
    mask = np.ones((3, 48, 48), dtype=bool)
    mask[1, 20:24] = False
    psf = np.ones((3, 3)) / 9
    part = restore_part(
        volume,
        prior,
        {"Z": slice(1, 2), "Y": slice(10, 30)},
        operator=Mask(mask) @ Blur(psf),
        method="samples",
        draws=2,
        steps=2,
    )
    assert part.data.compute(scheduler="synchronous").shape == (2, 1, 20, 48)
    with pytest.raises(RestorationError, match="at least one voxel"):
        restore_part(volume, prior, {"Y": slice(50, 60)})
    with pytest.raises(RestorationError, match="names C"):
        restore_part(volume, prior, {"C": slice(0, 1)})


@pytest.mark.parametrize("axes", ["YX", "CYX", "TCZYX"])
def test_outputs_are_taken_apart(axes: str) -> None:
    """Each output has the axes of the source; the draws lie along an axis of their own."""
    sizes = {"T": 2, "C": 2, "Z": 2, "Y": 24, "X": 32}
    volume = Volume.from_array(
        counts(tuple(sizes[axis] for axis in axes)), axes, channel_names=["dna", "actin"] if "C" in axes else []
    )
    restored = restore(volume, make_prior(FLAT), method="samples", draws=3, steps=2, outputs=["mean", "std", "draws"])
    mean, std, draws = take_output(restored, "mean"), take_output(restored, "std"), take_draws(restored)
    assert mean.axes == std.axes == axes
    assert mean.shape == volume.shape
    assert draws.shape == (3, *volume.shape)
    assert mean.channel_names == volume.channel_names
    values = draws.compute(scheduler="synchronous")
    averages, spreads = (v.data.compute(scheduler="synchronous") for v in (mean, std))
    for plane in np.ndindex(*averages.shape[:-2]):  # each plane is an image of its own
        moments = Moments()
        for draw in values:
            moments.add(draw[plane])
        np.testing.assert_allclose(averages[plane], moments.mean(), rtol=1e-4)
        np.testing.assert_allclose(spreads[plane], moments.std(), rtol=1e-3, atol=1e-4)
    with pytest.raises(RestorationError, match="q05"):
        take_output(restored, "q05")
    with pytest.raises(RestorationError, match="holds no draws"):
        take_output(volume, "mean")


def test_a_mask_of_a_stack_with_a_prior_of_planes() -> None:
    """Each plane gets its own plane of the mask."""
    mask = np.ones((3, 32, 32), dtype=bool)
    mask[2, 8:24, 8:24] = False
    volume = Volume.from_array(counts((3, 32, 32)), "ZYX")
    settings: dict[str, Any] = {"method": "samples", "draws": 2, "steps": 3, "outputs": ["mean", "std"]}
    masked, full = (
        restore(volume, make_prior(FLAT), operator=Mask(m), **settings).data.compute(scheduler="synchronous")
        for m in (mask, np.ones_like(mask))
    )
    np.testing.assert_array_equal(masked[:, :2], full[:, :2])
    assert np.abs(masked[0, 2, 12:20, 12:20] - full[0, 2, 12:20, 12:20]).mean() > 0.5
