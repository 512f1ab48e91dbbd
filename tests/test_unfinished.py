"""Unfinished trainings are found again, refused when they are not these data, and do not pile up."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from napari_ambient import TrainConfig, Volume, iter_train, unfinished
from napari_ambient.noise import NoiseModel
from napari_ambient.train_config import CHECKPOINT, TrainingError

NOISE = NoiseModel(gain=2.0, intercept=-200.0, photons=4.0)
TINY = TrainConfig(steps=6, batch=2, patch=(16, 16), validations=2, checkpoint_every=2, precision="float32", seed=3)


def noisy(seed: int = 0, name: str = "waves") -> Volume:
    rng = np.random.default_rng(seed)
    return Volume.from_array((100 + 2 * rng.poisson(4.0, (2, 48, 48))).astype(np.uint16), "TYX", name=name)


def test_what_was_begun_is_found_with_its_settings(tmp_path: Path) -> None:
    region = (slice(8, 40), slice(0, 48))
    begun = unfinished.begin(tmp_path, "waves", [noisy()], region=region, given_noise=True)
    assert begun.progress() is None  # nothing to resume yet
    for step in iter_train(noisy(), NOISE, config=TINY, folder=begun.bundle):
        if step.index == 5:
            break
    (found,) = unfinished.known(tmp_path)
    assert found == begun
    assert (found.region, found.given_noise) == (region, True)
    progress = found.progress()
    assert progress is not None
    assert progress.step == 4
    # how often checkpoints are written does not change the result, and is not remembered
    assert replace(progress.config, checkpoint_every=2) == TINY
    *_, last = iter_train(noisy(), NOISE, config=progress.config, folder=found.bundle, resume=True)
    assert last.index == 6


def test_only_the_same_images_fit(tmp_path: Path) -> None:
    begun = unfinished.begin(tmp_path, "waves", [noisy()])
    assert begun.fits([noisy()])
    assert not begun.fits([noisy(name="others")])
    assert not begun.fits([noisy(), noisy()])
    begun.check_unchanged([noisy()])
    with pytest.raises(TrainingError, match="waves changed"):
        begun.check_unchanged([noisy(seed=1)])


def test_nobody_goes_on_with_what_runs(tmp_path: Path) -> None:
    begun = unfinished.begin(tmp_path, "waves", [noisy()])
    with begun.at_work():
        assert begun.running
        with pytest.raises(TrainingError, match="is being trained already"), begun.at_work():
            pass
        # the one at work still is
        assert begun.running
    assert not begun.running
    # a program that was killed leaves its note behind, and its number may be another program's by now
    (begun.entry / "running.json").write_text(json.dumps({"process": os.getpid(), "since": 1.0}))
    assert not begun.running


def test_only_the_newest_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "KEPT", 2)
    begun = []
    for number in range(4):
        begun.append(unfinished.begin(tmp_path, f"a/{number}", [noisy()]))
        os.utime(begun[-1].entry / "origin.json", (number, number))
    assert unfinished.known(tmp_path) == [begun[3], begun[2]]
    assert [b.entry.exists() for b in begun] == [False, False, True, True]
    assert begun[3].bundle.name == "a_3.prior"  # a layer's name need not be a file's


def test_others_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "cut short").mkdir()
    (tmp_path / "cut short" / "origin.json").write_text('{"bundle": "a')
    assert unfinished.known(tmp_path) == []
    assert unfinished.known(tmp_path / "not there") == []


def test_a_damaged_checkpoint_says_so(tmp_path: Path) -> None:
    begun = unfinished.begin(tmp_path, "waves", [noisy()])
    begun.bundle.mkdir()
    (begun.bundle / CHECKPOINT).write_bytes(b"\x00" * 20)
    with pytest.raises(TrainingError, match="is damaged"):
        begun.progress()
