"""Where is each form of corruption safe? Thinning and Gaussian, over light and read noise, on simulated fields.

    python benchmarks/forms.py [--steps 500] [--out FOLDER]

Trains the same network for the same steps with either form and scores the restored fields against the truth: PSNR with
the truth's largest value as peak, in photo-electrons, half-way and at the end (does it fall as it trains?). "chosen" is
the form that the noise fit asks for.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_ambient import TrainConfig, Volume, fit_noise, iter_train, restore
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


def main(
    *,
    steps: int = 500,
    photons: tuple[float, ...] = (1.0, 5.0, 30.0),
    reads: tuple[float, ...] = (0.0, 2.0, 6.0),
    out: Path = Path("benchmarks/results"),
) -> list[dict[str, float | str]]:
    """Run every cell and write `forms.csv`."""
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, float | str]] = []
    for light_level in photons:
        light = fields(light_level)
        for read in reads:
            gain = 2.2
            camera = Camera.scmos(gain=gain, read_noise=gain * read)
            noisy = np.stack([camera.expose(f, np.random.default_rng([s, 1])) for s, f in enumerate(light)])
            volume = Volume.from_array(noisy, "TYX")
            noise = fit_noise(volume, kind="single")
            row: dict[str, float | str] = {
                "photons": light_level,
                "read noise": read,
                "chosen": noise.form,
                "noisy": psnr((noisy - 100.0) / gain, light),
            }
            for form in FORMS:
                config = TrainConfig(steps=steps, form=form)
                for step in iter_train(volume, noise, config=config):
                    if step.index in (steps // 2, steps):
                        clean = np.asarray(restore(volume, step.prior()).data.compute(), dtype=np.float64)
                        when = "half" if step.index < steps else "end"
                        row[f"{form} {when}"] = psnr((clean - 100.0) / gain, light)
            rows.append(row)
            print({k: (round(v, 2) if isinstance(v, float) else v) for k, v in row.items()}, flush=True)
            with (out / "forms.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    return rows


def psnr(image: NDArray[np.floating], truth: NDArray[np.float32]) -> float:
    """PSNR in dB with the truth's largest value as peak."""
    return float(10 * np.log10(float(truth.max()) ** 2 / np.mean((image - truth) ** 2)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    main(steps=given.steps, out=given.out)
