"""Which stage teaches best what lies below the measurement's own noise? Two modes, a simulated stack, real frames.

    python -m benchmarks.below_sigma DATA [--steps 1000] [--below-steps 700] [--draws 10] [--out FOLDER]

`two modes`: the toy of `two_modes.py`; the spread of posterior draws within a mode (true: 0.20), and the error of D at
the measurement's level, before and after each stage.

`simulated`: fields of filaments and mitochondria on an sCMOS camera, four of them trained on and others drawn from,
against their truth. `FMD MICE`: four frames trained on, the first drawn from, against the mean of 50 (DATA is the
folder with `fmd/`). Thinning with and without virtual exposures; the Gaussian form with and without expectation
maximisation and consistency. Without a stage the network is asked below the noise all the same, which it was never
taught. Coverage and "ratio" (rms error over rms standard deviation claimed) as in `calibration.py`; front: the
brightest 30 %. "moved": rms change of the one-call answer in the stage, in units of the noise.
"""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile
import torch
from benchmarks import two_modes as toy
from numpy.typing import NDArray

from napari_ambient import NoiseModel, Prior, TrainConfig, Volume, fit_noise, restore, train
from napari_ambient.choices import Below, Form
from napari_ambient.moments import Moments
from napari_ambient.objectives import BELOW, Ambient
from napari_ambient.simulate import Camera, filaments, gaussian_psf, mitochondria, through_microscope

Image = NDArray[np.float64]
Row = dict[str, float | str]
WAYS: tuple[tuple[Form, Below], ...] = (
    ("thinning", "none"),
    ("thinning", "virtual_exposures"),
    ("gaussian", "none"),
    ("gaussian", "em"),
    ("gaussian", "consistency"),
)


def two_modes(*, ambient_steps: int = 2000, rounds: int = 12) -> list[Row]:
    """Compare the stages on the toy."""
    start = toy.Scalar()
    toy.fit(start, Ambient(toy.Plain(), boundary=0.0, far=0.02), ambient_steps, 1, None, 2e-3)
    rows: list[Row] = [_toy_row("none", start)]
    for below in ("em", "consistency"):
        model, teacher = toy.Scalar(), toy.Scalar()
        for m in (model, teacher):
            m.load_state_dict(start.state_dict())
        teacher.requires_grad_(False)
        stage = BELOW[below](toy.Plain(), **({"capacity": 4096} if below == "em" else {}))
        for number in range(rounds):
            toy.fit(model, stage, 100, 10 + number, teacher, 1e-3)
            teacher.load_state_dict(model.state_dict())
        rows.append(_toy_row(below, model))
    return rows


def _toy_row(below: str, model: toy.Scalar) -> Row:
    return {"data": "two modes", "stage": below, "spread": toy.drawn_spread(model), "D error": toy.at_boundary(model)}


def simulated() -> tuple[NDArray[np.generic], list[tuple[NDArray[np.generic], Image]]]:
    """Make four frames to train on, and two others with their truth (both 128², in camera counts)."""
    step, psf, camera = (0.065, 0.065), gaussian_psf((0.065, 0.065)), Camera.scmos()

    def field(seed: int) -> NDArray[np.float32]:
        lines = filaments((256, 256), seed, voxel_size=step, density=0.18)
        tubes = mitochondria((256, 256), seed, voxel_size=step, density=0.2)
        light = through_microscope(lines, psf, peak=13.0, background=0.4, haze=0.3)
        return light + through_microscope(tubes, psf, peak=15.0, haze=0.2)

    frames = np.stack([camera.expose(field(seed), np.random.default_rng([seed, 1])) for seed in range(4)])
    tests = []
    for seed in (1000, 1001):
        light = field(seed)[64:192, 64:192]
        tests.append((camera.expose(light, np.random.default_rng([seed, 1])), camera.mean(light).astype(float)))
    return frames, tests


def real(data: Path) -> tuple[NDArray[np.generic], list[tuple[NDArray[np.generic], Image]]]:
    """Read four frames to train on; the middle of the first, with the mean of 50."""
    frames = tifffile.imread(data / "fmd/Confocal_MICE_raw4.tif")
    reference = tifffile.imread(data / "fmd/Confocal_MICE_gt_avg50.tif").astype(float)
    middle = (slice(192, 320), slice(192, 320))
    return frames, [(frames[0][middle], reference[middle])]


def compare(
    name: str,
    frames: NDArray[np.generic],
    tests: list[tuple[NDArray[np.generic], Image]],
    *,
    averaged: int,
    config: TrainConfig,
    draws: int,
) -> list[Row]:
    """Train each way on `frames` and draw from the test images; `averaged`: frames in the reference, 0 for a truth."""
    volume = Volume.from_array(frames, "TYX", name=name)
    noise = fit_noise(volume)
    rows: list[Row] = []
    for form, below in WAYS:
        begin = time.process_time()
        prior = train(volume, noise, config=replace(config, form=form, below=below))
        seconds = time.process_time() - begin
        scores = [_score(prior, noise, image, truth, averaged, draws) for image, truth in tests]
        moved = prior.record.history[-1].get("moved", float("nan")) if prior.record.history else float("nan")
        row: Row = {"data": name, "form": form, "stage": below, "seconds": seconds, "moved": moved}
        row |= {key: float(np.mean([s[key] for s in scores])) for key in scores[0]}
        rows.append(row)
        print({k: (round(v, 3) if isinstance(v, float) else v) for k, v in row.items()}, flush=True)
    return rows


def _score(
    prior: Prior, noise: NoiseModel, image: NDArray[np.generic], truth: Image, averaged: int, draws: int
) -> dict[str, float]:
    volume = Volume.from_array(image, "YX")
    if noise.hot_pixels is not None:
        noise = replace(noise, hot_pixels=None)
    one = np.asarray(restore(volume, prior, noise=noise).data.compute(), dtype=np.float64)
    if not prior.knows_below:  # as if it did: what an untaught network says there
        config = {**prior.record.config, "below": "auto", "steps": 1, "below_steps": 1}
        prior = replace(prior, record=replace(prior.record, config=config))
    drawn = restore(volume, prior, noise=noise, method="samples", draws=draws, outputs=["draws"])
    values = np.asarray(drawn.data.compute(), dtype=np.float64).reshape(draws, *truth.shape)
    moments = Moments()
    for one_draw in values:
        moments.add(one_draw)
    mean = moments.mean()
    own = np.maximum(noise.variance(truth), 0) / averaged if averaged else np.zeros_like(truth)
    claimed = np.sqrt(moments.std() ** 2 * (1 + moments.share) + own)
    error, front = np.abs(mean - truth), truth >= np.quantile(truth, 0.7)
    peak = 255.0 if averaged else float(truth.max())

    def decibels(result: Image) -> float:
        return float(10 * np.log10(peak**2 / np.mean((result - truth) ** 2)))

    return {
        "one call dB": decibels(one),
        "mean of draws dB": decibels(mean),
        "c90 front": float((error < 1.645 * claimed)[front].mean()),
        "c50 front": float((error < 0.6745 * claimed)[front].mean()),
        "ratio": float(np.sqrt(np.mean(error**2) / np.mean(claimed**2))),
    }


def main(
    data: Path | None,
    *,
    steps: int = 1000,
    below_steps: int = 700,
    draws: int = 10,
    out: Path = Path("benchmarks/results"),
) -> list[Row]:
    """Run all that there is data for, and write `below_sigma.csv`."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows = two_modes(ambient_steps=max(20, 2 * steps), rounds=max(1, below_steps // 60))
    for row in rows:
        print(row, flush=True)
    config = TrainConfig(steps=steps, below_steps=below_steps)
    cases = [("simulated", *simulated(), 0)]
    if data is not None:
        cases.append(("FMD MICE", *real(data), 50))
    for name, frames, tests, averaged in cases:
        rows += compare(name, frames, tests, averaged=averaged, config=config, draws=draws)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with (out / "below_sigma.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--below-steps", type=int, default=700)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    main(given.data, steps=given.steps, below_steps=given.below_steps, draws=given.draws, out=given.out)
