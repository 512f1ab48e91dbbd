"""Are the error bars right? Coverage of posterior intervals on real repeats, against the mean of many frames.

    python benchmarks/calibration.py DATA [--steps 1500] [--below-steps 1000] [--draws 12] [--out FOLDER]

Trains on four noisy frames, draws from the posterior of the first, and compares with the mean of the other frames (50
in FMD, 16 in EB3), whose own shot noise is added to the draws' variance, and the little that the mean of the draws has
of its own. "recalibrated": the draws widened by what photons held out of the
first frame say; "by repeats": by what the other three frames that were trained on say. For comparison: plain DPS
with the same prior, and an ensemble of networks trained by blind spots (`--ensemble 5`), whose differences many take
for an error bar.

Coverage should be 50 and 90 %; "ratio" is the rms error over the rms standard deviation claimed, and "diagonal" the
same in ten bins of the claimed standard deviation, least and largest. Front: the brightest 30 % of the reference.
"""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_ambient import NoiseModel, Prior, TrainConfig, Volume, fit_noise, restore, train
from napari_ambient.moments import Moments, Spread
from napari_ambient.operators import Mask
from napari_ambient.recalibration import measure_spread

Image = NDArray[np.float64]
CROP = slice(128, 384)


@dataclass
class Case:
    """Noisy frames, and the mean of `count` others."""

    name: str
    frames: NDArray[np.generic]
    reference: Image
    count: int


def load_cases(data: Path, wanted: list[str]) -> list[Case]:
    """Read the cases that are asked for."""
    cases = []
    for name in wanted:
        if name == "EB3":
            stack = tifffile.imread(data / "ncs_eb3/eb3_scmos_20frames.tif")
            cases.append(Case(name, stack[:4], stack[4:].mean(axis=0), 16))
        else:
            frames = tifffile.imread(data / f"fmd/Confocal_{name}_raw4.tif")
            reference = tifffile.imread(data / f"fmd/Confocal_{name}_gt_avg50.tif").astype(float)
            cases.append(Case(name, frames, reference, 50))
    return cases


def score(
    case: Case, noise: NoiseModel, draws: Image, *, mates: bool = True, spread: Spread | None = None
) -> dict[str, float]:
    """Compare draws (K, Y, X), in counts, with the reference; the first two are mates, or all are independent."""
    reference = case.reference[CROP, CROP]
    good = np.ones(reference.shape, bool) if noise.hot_pixels is None else ~noise.hot_pixels[CROP, CROP]
    moments = Moments(mates=mates)
    for one in draws:
        moments.add(one)
    mean = moments.mean()
    # by our mean: bins chosen by the reference's own noise would be of pixels that happen to be low in it
    own = np.maximum(noise.variance(mean), 0) / case.count
    std = moments.std()
    if spread is not None:
        std = std * spread.of(std / float(np.median(noise.gain)))
    claimed = np.sqrt(std**2 * (1 + moments.share) + own)
    error = np.abs(mean - reference)
    front = good & (reference >= np.quantile(reference, 0.7))
    bins = np.array_split(np.argsort(claimed[good]), 10)
    diagonal = [float(np.sqrt(np.mean(error[good][b] ** 2) / np.mean(claimed[good][b] ** 2))) for b in bins]
    return {
        "psnr": float(10 * np.log10(255**2 / np.mean(error[good] ** 2))),
        "c90 front": float((error < 1.645 * claimed)[front].mean()),
        "c50 front": float((error < 0.6745 * claimed)[front].mean()),
        "c90": float((error < 1.645 * claimed)[good].mean()),
        "c50": float((error < 0.6745 * claimed)[good].mean()),
        "ratio": float(np.sqrt(np.mean(error[good] ** 2) / np.mean(claimed[good] ** 2))),
        "diagonal low": min(diagonal),
        "diagonal high": max(diagonal),
    }


def draw(case: Case, noise: NoiseModel, prior: Prior, draws: int, steps: int, method: str) -> Image:
    """Draws of the first frame's crop, in counts."""
    from dataclasses import replace

    cut = noise if noise.hot_pixels is None else replace(noise, hot_pixels=noise.hot_pixels[CROP, CROP])
    volume = Volume.from_array(case.frames[0][CROP, CROP], "YX", name=case.name)
    operator = Mask(np.ones((256, 256), np.float32)) if method == "dps" else None
    result = restore(
        volume,
        prior,
        noise=cut,
        method="samples",
        posterior="dps",
        operator=operator,
        draws=draws,
        steps=steps,
        outputs=["draws"],
    )
    return np.asarray(result.data.compute(), dtype=np.float64)


def main(
    data: Path,
    *,
    steps: int = 1500,
    below_steps: int = 1000,
    draws: int = 12,
    ensemble: int = 0,
    dps: int = 0,
    out: Path = Path("benchmarks/results"),
    wanted: list[str] | None = None,
) -> list[dict[str, float | str]]:
    """Run the benchmark; give and write a row per case and method."""
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, float | str]] = []
    for case in load_cases(data, wanted or ["MICE", "FISH", "EB3"]):
        volume = Volume.from_array(case.frames, "TYX", name=case.name)
        noise = fit_noise(volume)
        begin = time.perf_counter()
        prior = train(volume, noise, config=TrainConfig(steps=steps, below="auto", below_steps=below_steps))
        seconds = time.perf_counter() - begin
        first = Volume.from_array(case.frames[:1], "TYX")
        tick = time.process_time()
        one = np.asarray(restore(first, prior, noise=noise).data.compute(), dtype=np.float64)[0]
        call = (time.process_time() - tick) / one.size
        good = np.ones(one.shape, bool) if noise.hot_pixels is None else ~noise.hot_pixels
        mse = np.mean((one - case.reference)[CROP, CROP][good[CROP, CROP]] ** 2)
        rows.append({"data": case.name, "method": "one call", "psnr": float(10 * np.log10(255**2 / mse))})
        tick = time.process_time()
        drawn = draw(case, noise, prior, draws, 18, "draws")
        result = score(case, noise, drawn)
        cost = (time.process_time() - tick) / draws / 256**2 / call
        rows.append({"data": case.name, "method": "draws", **result, "cost": cost, "seconds": seconds})
        found = measure_spread(first, prior, noise=noise)
        repeated = measure_spread(volume, prior, noise=noise, repeats=range(1, 4))
        for name, spread in (("recalibrated", found), ("by repeats", repeated)):
            scores = score(case, noise, drawn, spread=spread)
            row = {"data": case.name, "method": name, **scores, "factor": spread.factor, "power": spread.power}
            rows.append(row)
        if dps:
            guided = draw(case, noise, prior, draws, dps, "dps")
            rows.append({"data": case.name, "method": "dps", **score(case, noise, guided)})
        if ensemble:
            members = []
            for seed in range(ensemble):
                config = TrainConfig(steps=steps, seed=seed)
                member = train(volume, noise, objective="blind_spot", config=config)
                restored = restore(first, member, noise=noise).data.compute()[0]
                members.append(np.asarray(restored, dtype=np.float64)[CROP, CROP])
            scores = score(case, noise, np.stack(members), mates=False)
            rows.append({"data": case.name, "method": "blind-spot ensemble", **scores})
        for row in rows:
            if row["data"] == case.name:
                print({k: (round(v, 3) if isinstance(v, float) else v) for k, v in row.items()}, flush=True)
        columns = list(dict.fromkeys(k for row in rows for k in row))
        with (out / "calibration.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--below-steps", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--ensemble", type=int, default=0, help="networks of a blind-spot ensemble to compare with")
    parser.add_argument("--dps", type=int, default=0, help="steps of plain DPS to compare with")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--data-sets", nargs="*")
    given = parser.parse_args()
    main(
        given.data,
        steps=given.steps,
        below_steps=given.below_steps,
        draws=given.draws,
        ensemble=given.ensemble,
        dps=given.dps,
        out=given.out,
        wanted=given.data_sets,
    )
