"""Priors learned from corrupted images alone: FlowDiff beside AmbientFlow, SURE-Score, Ambient Diffusion and EM.

    python -m benchmarks.corrupted_priors [DATA] [--steps 1000] [--cases noisy blurred masked MICE] [--out FOLDER]

The comparison of Wang et al. 2024 (arXiv 2407.11162) on microscopy. Every objective trains the same denoising network
for as many steps on the same corrupted fields of simulated filaments and mitochondria (`noisy`: 5 photo-electrons per
voxel; `blurred`: behind a PSF of 1.5 pixels too; `masked`: 40 % of the voxels measured), or on the four noisy frames of
FMD MICE (DATA is the folder with `fmd/`). Four things are scored, on fields that were not trained on:

    one call    the objective's own reconstruction of such a measurement: the mean of 8 draws of its flow, or its
                denoiser's answer; PSNR and SSIM
    Fréchet     distance of the features of images drawn from the prior to those of clean images: means and standard
                deviations of fixed random convolutions, and the power spectrum in rings, in units of the clean
                images' own spread. "clean" is the distance of other clean images, the best that can be
    tasks       the prior in split Gibbs (4 draws of 12 stages): denoise, deblur (1.5 pixels, in 20 times the light),
                inpaint (half of the voxels, noisy), denoise + deblur (1.5 pixels, noisy), PSNR of their mean
    seconds     of one core, for the training

`ambient` is this program's own way for images that are only noisy: thinning and virtual exposures; `ambient_mask + em`
follows Ambient Diffusion by EM, since masks alone teach nothing below the noise.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import tifffile
import torch
from benchmarks.deconvolution import blurred, kernel, sharp
from numpy.typing import NDArray
from scipy import linalg
from skimage.metrics import structural_similarity
from torch.nn import functional

from napari_ambient import NoiseModel, Prior, TrainConfig, Volume, fit_noise, restore, train
from napari_ambient.choices import ObjectiveName
from napari_ambient.operators import Blur, Identity, Mask, Operator

Image = NDArray[np.float64]
LEVEL, WIDTH, SHARE = 5.0, 1.5, 0.4
AMPLE = 20.0
FIELDS, SIZE = 12, 192
PATCH = 64
COLUMNS = (
    "case", "objective", "seconds", "one call dB", "one call SSIM", "Frechet", "denoise dB", "deblur dB", "inpaint dB",
    "denoise + deblur dB",
)  # fmt: skip


@dataclass
class Case:
    """Corrupted stacks, and clean images of the kind."""

    name: str
    stack: NDArray[np.generic]
    noise: NoiseModel
    operator: Operator
    truth: list[Image]
    measured: list[NDArray[np.generic]]
    clean: list[Image]
    ways: tuple[str, ...]


def simulated(name: str) -> Case:
    """Make one of the simulated cases."""
    rng = np.random.default_rng(7)
    psf = kernel(WIDTH)
    mask = rng.random((SIZE, SIZE)) < SHARE
    corrupt: Callable[[Image], Image]
    operator: Operator
    if name == "blurred":
        operator, corrupt = Blur(psf), lambda light: blurred(light, psf).clip(0)
    elif name == "masked":
        operator, corrupt = Mask(mask), lambda light: light * mask
    else:
        operator, corrupt = Identity(), lambda light: light
    stack = np.stack([rng.poisson(corrupt(sharp(seed, LEVEL))) for seed in range(FIELDS)]).astype(np.float32)
    truth = [sharp(seed, LEVEL) for seed in (101, 102)]
    measured = [rng.poisson(corrupt(light)).astype(np.float32) for light in truth]
    clean = [sharp(seed, LEVEL) for seed in range(200, 216)]
    first = {"noisy": "ambient", "masked": "ambient_mask + em"}.get(name)
    ways = (*((first,) if first else ()), "flow_diff", "em", "sure_score", "ambient_flow")
    return Case(name, stack, NoiseModel(gain=1.0, intercept=0.0, photons=LEVEL), operator, truth, measured, clean, ways)


def mice(data: Path) -> Case:
    """Read FMD MICE: four frames to train on; its clean images are quarters of the mean of 50."""
    frames = tifffile.imread(data / "fmd/Confocal_MICE_raw4.tif")
    reference = tifffile.imread(data / "fmd/Confocal_MICE_gt_avg50.tif").astype(float)
    noise = fit_noise(Volume.from_array(frames, "TYX"))
    middle = (slice(160, 352), slice(160, 352))
    clean = [reference[y : y + 256, x : x + 256] for y in (0, 256) for x in (0, 256)]
    ways = ("ambient", "flow_diff", "em", "sure_score", "ambient_flow")
    return Case("MICE", frames, noise, Identity(), [reference[middle]], [frames[0][middle]], clean, ways)


def learn(case: Case, way: str, steps: int) -> Prior:
    """Train a prior by one way."""
    volume = Volume.from_array(case.stack, "TYX", name=case.name)
    config = TrainConfig(steps=steps, patch=(PATCH, PATCH))
    if way == "ambient":
        return train(volume, case.noise, config=replace(config, steps=steps // 2, below="auto", below_steps=steps // 2))
    if way == "ambient_mask + em":
        half = replace(config, steps=steps // 2)
        first = train(volume, case.noise, objective="ambient_mask", operator=case.operator, config=half)
        return train(volume, case.noise, objective="em", operator=case.operator, start=first, config=half)
    return train(volume, case.noise, objective=cast(ObjectiveName, way), operator=case.operator, config=config)


def score(case: Case, prior: Prior, seed: int = 3) -> dict[str, float]:
    """Score a prior as the module says."""
    row: dict[str, float] = {}
    pairs = []
    for counts in case.measured:
        volume = Volume.from_array(counts, "YX")
        if prior.posterior is None and isinstance(case.operator, Identity):
            result = restore(volume, prior, noise=case.noise)
        else:
            result = restore(
                volume, prior, noise=case.noise, operator=case.operator, method="amortised", outputs=["mean"]
            )
        pairs.append(np.asarray(result.data.compute(), dtype=np.float64).reshape(counts.shape))
    row["one call dB"] = float(np.mean([psnr(a, b) for a, b in zip(pairs, case.truth, strict=True)]))
    row["one call SSIM"] = float(
        np.mean([structural_similarity(a, b, data_range=b.max()) for a, b in zip(pairs, case.truth, strict=True)])
    )
    drawn = [np.asarray(image, dtype=np.float64) for image in prior.sample((128, 128), count=8, steps=32, seed=seed)]
    row["Frechet"] = frechet(features(drawn), features(case.clean))
    gain, zero = float(np.median(case.noise.gain)), float(np.median(case.noise.zero))
    rng = np.random.default_rng(11)
    crop = (slice(32, 160), slice(32, 160))
    light = np.maximum((case.truth[0][crop] - zero) / gain, 0)
    psf, mask = kernel(WIDTH), rng.random(light.shape) < 0.5
    tasks: dict[str, tuple[Operator, Image]] = {
        "denoise": (Mask(np.ones(light.shape, bool)), light),
        "deblur": (Mask(np.full(light.shape, AMPLE)) @ Blur(psf), AMPLE * blurred(light, psf).clip(0)),
        "inpaint": (Mask(mask), light * mask),
        "denoise + deblur": (Blur(psf), blurred(light, psf).clip(0)),
    }
    plain = NoiseModel(gain=1.0, intercept=0.0, photons=LEVEL)
    for name, (operator, expected) in tasks.items():
        counts = Volume.from_array(rng.poisson(expected).astype(np.float32), "YX")
        result = restore(
            counts, prior, noise=plain, operator=operator, method="samples", draws=4, steps=12, outputs=["mean"]
        )
        row[f"{name} dB"] = psnr(np.asarray(result.data.compute(), dtype=np.float64).reshape(light.shape), light)
    return row


def features(images: list[Image]) -> Image:
    """Describe 64² patches: (patches, features).

    Two layers of 16 fixed random 5 × 5 convolutions, rectified, the second after pooling by 2: mean and standard
    deviation of the first 8 of each; and the logarithm of the power in 8 rings of frequency.
    """
    patches = np.stack(
        [
            image[y : y + PATCH, x : x + PATCH]
            for image in images
            for y in range(0, image.shape[0] - PATCH + 1, PATCH // 2)
            for x in range(0, image.shape[1] - PATCH + 1, PATCH // 2)
        ]
    )
    g = torch.Generator().manual_seed(0)
    x = torch.from_numpy(2 * np.sqrt(np.maximum(patches, 0) + 0.375)).float()[:, None]
    one = functional.relu(functional.conv2d(x, torch.randn((16, 1, 5, 5), generator=g) / 5))
    second = torch.randn((16, 16, 5, 5), generator=g) / 20
    two = functional.relu(functional.conv2d(functional.avg_pool2d(one, 2), second))
    parts = [f(layer[:, :8]) for layer in (one, two) for f in (lambda h: h.mean((2, 3)), lambda h: h.std((2, 3)))]
    window = np.outer(np.hanning(PATCH), np.hanning(PATCH))
    power = np.abs(np.fft.fft2((patches - patches.mean((1, 2), keepdims=True)) * window)) ** 2
    ring = np.hypot(*np.meshgrid(np.fft.fftfreq(PATCH), np.fft.fftfreq(PATCH))) * 16
    rings = np.stack([power[:, (ring >= r) & (ring < r + 1)].mean(1) for r in range(8)], axis=1)
    return np.concatenate([torch.cat(parts, 1).double().numpy(), np.log(rings + 1e-6)], axis=1)


def frechet(drawn: Image, clean: Image) -> float:
    """Fréchet distance of two sets of features as Gaussians, each feature in units of the clean ones' spread."""
    centre, spread = clean.mean(0), clean.std(0)
    spread = np.maximum(spread, 0.1 * np.median(spread))  # some convolutions are never positive
    one, two = (drawn - centre) / spread, (clean - centre) / spread
    a, b = (np.cov(v.T) + 1e-4 * np.eye(v.shape[1]) for v in (one, two))
    root = linalg.sqrtm(a @ b).real
    return float(np.sum((one.mean(0) - two.mean(0)) ** 2) + np.trace(a + b - 2 * root))


def psnr(image: Image, truth: Image) -> float:
    """PSNR in dB with the truth's largest value as peak."""
    return float(10 * np.log10(truth.max() ** 2 / np.mean((image - truth) ** 2)))


def main(
    data: Path | None, *, steps: int = 1000, cases: list[str] | None = None, out: Path = Path("benchmarks/results")
) -> None:
    """Run every case and objective that the table does not have yet."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    table = out / "corrupted_priors.csv"
    done: set[tuple[str, str]] = set()
    if table.exists():
        with table.open(encoding="utf-8", newline="") as file:
            done = {(r["case"], r["objective"]) for r in csv.DictReader(file)}
    for name in cases or ["blurred", "masked", "noisy", *(["MICE"] if data else [])]:
        if name == "MICE" and data is None:
            raise ValueError("the case MICE needs the folder with fmd/")
        case = mice(cast(Path, data)) if name == "MICE" else simulated(name)
        if (name, "clean") not in done:
            half = len(case.clean) // 2
            floor = frechet(features(case.clean[:half]), features(case.clean[half:]))
            kind = "measured counts"
            counts = [np.asarray(f, dtype=np.float64) for f in case.stack[:8]]
            write(table, {"case": name, "objective": "clean", "Frechet": floor})
            write(table, {"case": name, "objective": kind, "Frechet": frechet(features(counts), features(case.clean))})
        for way in case.ways:
            if (name, way) in done:
                continue
            begin = time.process_time()
            prior = learn(case, way, steps)
            seconds = time.process_time() - begin
            row: dict[str, float | str] = {"case": name, "objective": way, "seconds": seconds, **score(case, prior)}
            write(table, row)
            print({k: (round(v, 3) if isinstance(v, float) else v) for k, v in row.items()}, flush=True)


def write(table: Path, row: dict[str, float | str]) -> None:
    """Append one row."""
    new = not table.exists()
    with table.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow({k: (f"{v:.4g}" if isinstance(v, float) else v) for k, v in row.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--cases", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    main(given.data, steps=given.steps, cases=given.cases, out=given.out)
