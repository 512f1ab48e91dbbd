"""Where is each form of corruption safe? Thinning and Gaussian, over light and read noise, on simulated fields.

    python benchmarks/forms.py [DATA] [--steps 500] [--photons 1 5 30] [--reads 0 2 6] [--out FOLDER]

Trains the same network for the same steps with either form and scores the restored fields against the truth: PSNR with
the truth's largest value as peak, in photo-electrons, half-way and at the end (does it fall as it trains?). "chosen" is
the form that the noise fit asks for. With DATA, a folder with `fmd/`, also on a real confocal stack (MICE) against the
mean of 50 frames, for four times as many steps, peak 255. `forms.csv` is added to; what it has is not run again.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_ambient import NoiseModel, TrainConfig, Volume, fit_noise, iter_train, restore
from napari_ambient.choices import Form
from napari_ambient.simulate import Camera, filaments, gaussian_psf, through_microscope

FORMS: tuple[Form, ...] = ("thinning", "gaussian")


def fields(photons: float, count: int = 6) -> NDArray[np.float32]:
    """Make the light of some fields whose mean is `photons` photo-electrons per voxel."""
    step = (0.1, 0.1)
    psf = gaussian_psf(step)
    shape = (256, 256)
    density = [filaments(shape, seed, voxel_size=step, density=0.18) for seed in range(count)]
    stack = np.stack([through_microscope(d, psf, peak=13.0, background=0.4, haze=0.3) for d in density])
    return np.asarray(stack * (photons / stack.mean()), dtype=np.float32)


def train_both(
    volume: Volume, noise: NoiseModel, steps: int, score: Callable[[NDArray[np.float64]], float]
) -> dict[str, float | str]:
    """Train with either form, and score the restored volume half-way and at the end."""
    row: dict[str, float | str] = {"chosen": noise.form}
    for form in FORMS:
        for step in iter_train(volume, noise, config=TrainConfig(steps=steps, form=form)):
            if step.index in (steps // 2, steps):
                clean = np.asarray(restore(volume, step.prior()).data.compute(), dtype=np.float64)
                row[f"{form} {'half' if step.index < steps else 'end'}"] = score(clean)
    return row


def main(
    data: Path | None = None,
    *,
    steps: int = 500,
    photons: Sequence[float] = (1.0, 5.0, 30.0),
    reads: Sequence[float] = (0.0, 2.0, 6.0),
    out: Path = Path("benchmarks/results"),
) -> list[dict[str, float | str]]:
    """Run every cell and write `forms.csv`."""
    out.mkdir(parents=True, exist_ok=True)
    table = out / "forms.csv"
    rows: list[dict[str, float | str]] = []
    if table.exists():
        with table.open(encoding="utf-8", newline="") as file:
            rows += csv.DictReader(file)
    done = {(str(row["photons"]), str(row["read noise"])) for row in rows}

    def add(light: str, read: str, row: dict[str, float | str]) -> None:
        rows.append({"photons": light, "read noise": read, **row})
        print({k: (round(v, 2) if isinstance(v, float) else v) for k, v in rows[-1].items()}, flush=True)
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    gain = 2.2
    for level in photons:
        light = fields(level)
        for read in reads:
            if (str(level), str(read)) in done:
                continue
            camera = Camera.scmos(gain=gain, read_noise=gain * read)
            noisy = np.stack([camera.expose(f, np.random.default_rng([s, 1])) for s, f in enumerate(light)])
            volume = Volume.from_array(noisy, "TYX")
            noise = fit_noise(volume, kind="single")

            def score(clean: NDArray[np.float64], light: NDArray[np.float32] = light) -> float:
                return psnr((clean - 100.0) / gain, light)

            add(str(level), str(read), {"noisy": score(noisy), **train_both(volume, noise, steps, score)})
    if data is not None and ("FMD MICE", "") not in done:
        frames = tifffile.imread(data / "fmd/Confocal_MICE_raw4.tif")
        reference = tifffile.imread(data / "fmd/Confocal_MICE_gt_avg50.tif").astype(np.float64)

        def score_real(clean: NDArray[np.float64]) -> float:
            return float(10 * np.log10(255**2 / np.mean((clean[0] - reference) ** 2)))

        volume = Volume.from_array(frames, "TYX")
        row = train_both(volume, fit_noise(volume), 4 * steps, score_real)
        add("FMD MICE", "", {"noisy": score_real(frames.astype(np.float64)), **row})
    return rows


def psnr(image: NDArray[np.floating], truth: NDArray[np.float32]) -> float:
    """PSNR in dB with the truth's largest value as peak."""
    return float(10 * np.log10(float(truth.max()) ** 2 / np.mean((image - truth) ** 2)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--photons", type=float, nargs="+", default=(1.0, 5.0, 30.0))
    parser.add_argument("--reads", type=float, nargs="+", default=(0.0, 2.0, 6.0))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    main(given.data, steps=given.steps, photons=given.photons, reads=given.reads, out=given.out)
