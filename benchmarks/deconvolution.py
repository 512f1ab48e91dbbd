"""Deconvolution beside Richardson-Lucy with total variation and Wiener, on simulated filaments with truth.

    python benchmarks/deconvolution.py [--steps 1500] [--below-steps 1000] [--draws 8] [--out FOLDER]

A prior is trained on noisy but sharp fields (ambient, then below the noise); other fields are blurred, photons are
counted, and each method restores them. Richardson-Lucy (Dey et al. 2006: with total variation) is stopped at the
iteration, and Wiener's filter given the regularisation, that is *best against the truth*: they get more than they
could know. Ours gets nothing. PSNR with the truth's largest value as peak; FRC: the spatial frequency, in cycles per
pixel, at which the Fourier ring correlation with the truth falls below 1/2.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from napari_ambient import NoiseModel, TrainConfig, Volume, restore, train
from napari_ambient.operators import Blur
from napari_ambient.simulate import filaments, gaussian_psf, mitochondria, through_microscope

Image = NDArray[np.float64]
STEP = (0.1, 0.1)


def sharp(seed: int, photons: float, shape: tuple[int, int] = (192, 192)) -> Image:
    """Make the light of one field at the resolution of a confocal microscope."""
    psf = gaussian_psf(STEP)
    light = through_microscope(filaments(shape, seed, voxel_size=STEP, density=0.15), psf, peak=13.0, background=0.4)
    light = light + through_microscope(mitochondria(shape, seed, voxel_size=STEP, density=0.15), psf, peak=15.0)
    return np.asarray(light * (photons / light.mean()), dtype=np.float64)


def kernel(width: float) -> Image:
    """Make a Gaussian PSF with a wide halo, as out-of-focus light gives."""
    radius = int(np.ceil(5 * width))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    psf = np.exp(-(x**2 + y**2) / (2 * width**2)) + 0.02 * np.exp(-(x**2 + y**2) / (2 * (2.5 * width) ** 2))
    return np.asarray(psf / psf.sum(), dtype=np.float64)


def blurred(image: Image, psf: Image) -> Image:
    """Convolve with reflecting borders, as `Blur` does."""
    radius = psf.shape[0] // 2
    return np.asarray(signal.fftconvolve(np.pad(image, radius, mode="reflect"), psf, mode="valid"))


def richardson_lucy(counts: Image, psf: Image, truth: Image, *, iterations: int = 120) -> tuple[float, Image]:
    """Give the best of all iterations and of three strengths of total variation."""
    best: tuple[float, Image] = (-np.inf, counts)
    for strength in (0.0, 0.002, 0.01):
        estimate = np.full_like(counts, counts.mean())
        for _ in range(iterations):
            ratio = counts / np.maximum(blurred(estimate, psf), 1e-3)
            update = blurred(ratio, psf[::-1, ::-1])
            gy, gx = np.gradient(estimate)
            size = np.sqrt(gy**2 + gx**2) + 1e-3
            curvature = np.gradient(gy / size, axis=0) + np.gradient(gx / size, axis=1)
            estimate = np.maximum(estimate * update / np.maximum(1 - strength * curvature, 0.5), 1e-4)
            best = max(best, (psnr(estimate, truth), estimate), key=lambda pair: pair[0])
    return best


def wiener(counts: Image, psf: Image, truth: Image) -> tuple[float, Image]:
    """Give the best over the regularisation, on the image mirrored into a torus."""
    torus = np.block([[counts, counts[:, ::-1]], [counts[::-1], counts[::-1, ::-1]]])
    padded = np.zeros(torus.shape)
    padded[: psf.shape[0], : psf.shape[1]] = psf
    transfer = np.fft.fft2(np.roll(padded, tuple(-(n // 2) for n in psf.shape), axis=(0, 1)))
    best: tuple[float, Image] = (-np.inf, counts)
    for weight in np.geomspace(1e-4, 1, 30):
        full = np.fft.ifft2(np.fft.fft2(torus) * np.conj(transfer) / (np.abs(transfer) ** 2 + weight)).real
        estimate = full[: counts.shape[0], : counts.shape[1]]
        best = max(best, (psnr(estimate, truth), estimate), key=lambda pair: pair[0])
    return best


def psnr(image: Image, truth: Image) -> float:
    """PSNR in dB with the truth's largest value as peak."""
    return float(10 * np.log10(truth.max() ** 2 / np.mean((image - truth) ** 2)))


def resolution(image: Image, truth: Image) -> float:
    """Frequency, cycles per pixel, at which the Fourier ring correlation with the truth falls below 1/2."""
    window = np.outer(*(np.hanning(n) for n in image.shape))
    one, two = (np.fft.fft2((i - i.mean()) * window) for i in (image, truth))
    radius = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in image.shape), indexing="ij"))
    ring = np.rint(radius * image.shape[0]).astype(int)
    count = image.shape[0] // 2

    def total(values: NDArray[np.floating]) -> Image:
        return np.asarray(ndimage.sum_labels(values, ring, np.arange(count)))

    correlation = total((one * two.conj()).real) / np.sqrt(total(abs(one) ** 2) * total(abs(two) ** 2))
    below = np.flatnonzero((correlation < 0.5) & (np.arange(count) > 1))
    return float(below[0] if len(below) else count) / image.shape[0]


def main(
    *,
    steps: int = 1500,
    below_steps: int = 1000,
    draws: int = 8,
    widths: tuple[float, ...] = (1.5, 3.0),
    photons: tuple[float, ...] = (5.0, 40.0),
    out: Path = Path("benchmarks/results"),
) -> list[dict[str, float | str]]:
    """Run every case and write `deconvolution.csv`."""
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, float | str]] = []
    for level in photons:
        counter = NoiseModel(gain=1.0, intercept=0.0, photons=level)
        rng = np.random.default_rng(7)
        stack = np.stack([rng.poisson(sharp(seed, level)) for seed in range(12)]).astype(np.float32)
        config = TrainConfig(steps=steps, below="auto", below_steps=below_steps)
        prior = train(Volume.from_array(stack, "TYX"), counter, config=config)
        for width in widths:
            psf = kernel(width)
            for seed in (101, 102):
                truth = sharp(seed, level)
                counts = rng.poisson(blurred(truth, psf).clip(0)).astype(np.float64)
                volume = Volume.from_array(counts.astype(np.float32), "YX")
                result = restore(
                    volume, prior, operator=Blur(psf), method="samples", draws=draws, steps=12, outputs=["mean", "std"]
                ).data.compute()
                ours, bar = (np.asarray(r, dtype=np.float64) for r in result)
                lucy, filtered = richardson_lucy(counts, psf, truth), wiener(counts, psf, truth)
                row: dict[str, float | str] = {"photons": level, "blur": width, "field": seed}
                for name, image in (
                    ("blurred", counts),
                    ("wiener", filtered[1]),
                    ("richardson-lucy tv", lucy[1]),
                    ("ours", ours),
                ):
                    row[f"{name} dB"] = psnr(image, truth)
                    row[f"{name} frc"] = resolution(image, truth)
                error = np.abs(ours - truth)
                row["coverage 90"] = float((error < 1.645 * bar * np.sqrt(1 + 1 / draws)).mean())
                rows.append(row)
                print({k: (round(v, 3) if isinstance(v, float) else v) for k, v in row.items()}, flush=True)
                with (out / "deconvolution.csv").open("w", encoding="utf-8", newline="") as file:
                    writer = csv.DictWriter(file, list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--below-steps", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    main(steps=given.steps, below_steps=given.below_steps, draws=given.draws, out=given.out)
