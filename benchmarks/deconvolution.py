"""Deconvolution beside Richardson-Lucy with total variation and Wiener, on simulated fields and a real nucleus.

    python benchmarks/deconvolution.py [DATA] [--cases 2D 3D nucleus] [--steps 4000] [--draws 8] [--out FOLDER]

`2D`, `3D`: a prior is trained on noisy but sharp fields (ambient, then below the noise); other fields are blurred,
photons are counted, and each method restores them. Richardson-Lucy (Dey et al. 2006: with total variation) is stopped
at the iteration, and Wiener's filter given the regularisation, that is *best against the truth*: they get more than
they could know. Ours gets nothing. `nucleus` (DATA: the folder with `neubias/`): a nucleus in widefield, with the
confocal stack of the same as reference and a prior learned from the widefield stack alone. PSNR with the truth's
largest value as peak; FRC: the spatial frequency, in cycles per pixel, at which the Fourier ring correlation with the
truth falls below 1/2.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from scipy import ndimage, signal
from skimage.registration import phase_cross_correlation

from napari_ambient import NoiseModel, Prior, TrainConfig, Volume, fit_noise, restore, train
from napari_ambient.opening import widen
from napari_ambient.operators import Blur, Operator
from napari_ambient.point_spread import microscope_psf
from napari_ambient.simulate import born_wolf_psf, filaments, gaussian_psf, mitochondria, through_microscope

Image = NDArray[np.float64]
STEP = (0.1, 0.1)
INFLATED = 5.0  # by how much the noise of the nucleus is taken for larger than it is


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
    """Convolve with reflecting borders, as `Blur` does; 2D or 3D."""
    ends = [(n // 2, n // 2) for n in psf.shape]
    return np.asarray(signal.fftconvolve(np.pad(image, ends, mode="reflect"), psf, mode="valid"))


Score = Callable[[Image, Image], float]


def richardson_lucy(
    counts: Image, operator: Operator, truth: Image, *, iterations: int = 120, score: Score | None = None
) -> tuple[float, Image]:
    """Give the best of all iterations and of three strengths of total variation; 15 in vain are the end."""
    score = score or psnr
    best: tuple[float, Image] = (-np.inf, counts)
    for strength in (0.0, 0.002, 0.01):
        peak, since = -np.inf, 0
        for estimate in islice(iterate(counts, operator, strength), iterations):
            reached = score(estimate, truth)
            best = max(best, (reached, estimate), key=lambda pair: pair[0])
            peak, since = (reached, 0) if reached > peak else (peak, since + 1)
            if since == 15:
                break
    return best


def iterate(counts: Image, operator: Operator, strength: float) -> Iterator[Image]:
    """Give Richardson and Lucy's iterations with total variation of a strength, without end."""
    axes = "ZYX"[-counts.ndim :]
    wide = widen(Volume.from_array(counts.astype(np.float32), axes), operator)
    measured = torch.from_numpy(np.asarray(wide.volume.data))[None, None]
    bright = wide.operator.forward(torch.ones_like(measured))
    seen = bright > 0
    share = wide.operator.adjoint(seen.to(measured)).clamp_min(0.1)
    estimate = np.full(measured.shape[2:], counts.mean(), dtype=np.float32)
    while True:
        expected = wide.operator.forward(torch.from_numpy(estimate)[None, None]).clamp_min(1e-3)
        ratio = torch.where(seen, measured / expected, torch.zeros_like(measured))
        update = (wide.operator.adjoint(ratio) / share)[0, 0].numpy()
        slopes = np.gradient(estimate)
        size = np.sqrt(sum(slope**2 for slope in slopes)) + 1e-3
        curvature = sum(np.gradient(slope / size, axis=axis) for axis, slope in enumerate(slopes))
        estimate = np.maximum(estimate * update / np.maximum(1 - strength * curvature, 0.5), 1e-4).astype(np.float32)
        yield np.asarray(wide.inner(Volume.from_array(estimate, axes)).data, dtype=np.float64)


def wiener(counts: Image, psf: Image, truth: Image, *, score: Score | None = None) -> tuple[float, Image]:
    """Give the best over the regularisation, on the image mirrored into a torus."""
    score = score or psnr
    torus = np.pad(counts, [(0, n) for n in counts.shape], mode="symmetric")
    padded = np.zeros(torus.shape)
    fitting = tuple(
        slice(max(0, (n - m) // 2), max(0, (n - m) // 2) + min(n, m))
        for n, m in zip(psf.shape, torus.shape, strict=True)
    )
    cut = psf[fitting]
    padded[tuple(slice(0, n) for n in cut.shape)] = cut
    transfer = np.fft.fftn(np.roll(padded, tuple(-(n // 2) for n in cut.shape), axis=range(psf.ndim)))
    best: tuple[float, Image] = (-np.inf, counts)
    for weight in np.geomspace(1e-4, 1, 30):
        full = np.fft.ifftn(np.fft.fftn(torus) * np.conj(transfer) / (np.abs(transfer) ** 2 + weight)).real
        estimate = full[tuple(slice(0, n) for n in counts.shape)]
        best = max(best, (score(estimate, truth), estimate), key=lambda pair: pair[0])
    return best


def psnr(image: Image, truth: Image) -> float:
    """PSNR in dB with the truth's largest value as peak."""
    return float(10 * np.log10(truth.max() ** 2 / np.mean((image - truth) ** 2)))


def after_fit(image: Image, truth: Image) -> float:
    """PSNR after the best scale and offset, for a reference from another microscope."""
    slope, constant = np.polyfit(image.ravel(), truth.ravel(), 1)
    return psnr(slope * image + constant, truth)


def resolution(image: Image, truth: Image) -> float:
    """Frequency, cycles per pixel, at which the Fourier ring (shell) correlation with the truth falls below 1/2.

    In a stack the rings are those of its planes' spectra, over all frequencies along Z.
    """
    window = np.ones(())
    for n in image.shape:
        window = np.multiply.outer(window, np.hanning(n))
    one, two = (np.fft.fftn((i - i.mean()) * window) for i in (image, truth))
    radius = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in image.shape[-2:]), indexing="ij"))
    ring = np.broadcast_to(np.rint(radius * image.shape[-1]).astype(int), image.shape)
    count = image.shape[-1] // 2

    def total(values: NDArray[np.floating]) -> Image:
        return np.asarray(ndimage.sum_labels(values, ring, np.arange(count)))

    correlation = total((one * two.conj()).real) / np.sqrt(total(abs(one) ** 2) * total(abs(two) ** 2))
    below = np.flatnonzero((correlation < 0.5) & (np.arange(count) > 1))
    return float(below[0] if len(below) else count) / image.shape[-1]


def simulated(
    level: float, widths: tuple[float, ...], steps: int, below_steps: int, draws: int
) -> Iterator[dict[str, float | str]]:
    """Restore two fields behind each blur, with a prior of noisy sharp fields."""
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
            row: dict[str, float | str] = {"case": "2D", "photons": level, "blur": width, "field": seed}
            yield row | compare(counts, Blur(psf), truth, prior, draws)


def solid(steps: int, below_steps: int, draws: int, *, level: float = 5.0) -> Iterator[dict[str, float | str]]:
    """Restore a stack of tubes behind a widefield PSF, with a 3D prior of noisy confocal-like stacks."""
    step = (0.2, 0.1, 0.1)

    def tubes(seed: int) -> Image:
        psf = gaussian_psf((0.3, 0.1, 0.1))
        light = through_microscope(
            mitochondria((24, 96, 96), seed, voxel_size=step, density=0.5), psf, peak=14.0, background=0.3
        )
        return np.asarray(light * (level / light.mean()), dtype=np.float64)

    rng = np.random.default_rng(9)
    counter = NoiseModel(gain=1.0, intercept=0.0, photons=level)
    stacks = [
        Volume.from_array(rng.poisson(tubes(seed)).astype(np.float32), "ZYX", name=f"{seed}") for seed in range(6)
    ]
    config = TrainConfig(steps=steps, batch=2, dims="3D", below="auto", below_steps=below_steps)
    prior = train(stacks, counter, config=config)
    psf = np.asarray(born_wolf_psf((15, 21, 21), step), dtype=np.float64)
    psf /= psf.sum()
    truth = tubes(101)
    counts = rng.poisson(blurred(truth, psf).clip(0)).astype(np.float64)
    row: dict[str, float | str] = {"case": "3D tubes", "photons": level, "blur": "widefield", "field": 101}
    yield row | compare(counts, Blur(psf), truth, prior, draws)


@dataclass
class Nucleus:
    """A nucleus in widefield, and the same in a confocal microscope as its truth; (Z, Y, X)."""

    wide: Volume
    noise: NoiseModel
    operator: Blur
    counts: Image
    confocal: Image


def read_nucleus(data: Path) -> Nucleus:
    """Read the stacks, compute the PSF, and register the confocal stack to what it is to be compared with.

    A widefield PSF has no end in Z: it reaches through the whole stack, and what lies around the nucleus is dark, not
    its mirror image, so the border is open. Aperture and step along Z are not known: of some it is that PSF with which
    Richardson-Lucy comes closest to the confocal stack (NA 1.2, the focus moving 0.7 times as far as the stage;
    `psf_fit.py` finds 1.1 and 0.62). The PSF is not quite known, so the noise is taken for `INFLATED` times what it is,
    and for white. Out-of-focus light is not the same above and below, which would draw the registration to the
    widefield stack 1.4 planes away; the confocal stack is registered to 30 iterations of Richardson-Lucy.
    """
    stack = tifffile.imread(data / "neubias/xyzc_16bit__dna_conf_wf.tif").astype(np.float64)
    confocal, wide = stack[:, 0], stack[:, 1]
    volume = Volume.from_array(wide.astype(np.float32), "ZYX", name="nucleus")
    fitted = fit_noise(volume)
    psf = np.asarray(
        microscope_psf(
            "widefield",
            na=1.2,
            wavelength_nm=461,
            refractive_index=1.33,
            voxel_size_um=(0.499, 0.256, 0.256),
            shape=(89, 57, 57),
            axial_scale=0.7,
        ),
        dtype=np.float64,
    )
    operator = Blur(psf / psf.sum(), border="open")
    gain = INFLATED * float(np.median(fitted.gain))
    zero = float(np.percentile(wide, 1))
    counts = np.maximum((wide - zero) / gain, 0)
    sharper = next(islice(iterate(counts, operator, 0.0), 29, None))
    shift = phase_cross_correlation(sharper, confocal, upsample_factor=10, normalization=None)[0]
    confocal = np.maximum(ndimage.shift(confocal, shift, order=3), 0)
    print(f"the confocal stack is moved by {shift} voxels (Z, Y, X)", flush=True)
    noise = NoiseModel(gain=gain, intercept=-gain * zero, photons=float((wide.mean() - zero) / gain))
    return Nucleus(volume, noise, operator, counts, confocal)


def nucleus_config(steps: int) -> TrainConfig:
    """Give how to learn from the one stack of the nucleus: in 3D, whole in Z."""
    return TrainConfig(steps=steps, batch=1, dims="3D", patch=(64, 128, 128), held_out=0.0)


def nucleus(data: Path, steps: int, draws: int) -> Iterator[dict[str, float | str]]:
    """Restore the widefield stack of a real nucleus with a prior learned from itself, against its confocal stack.

    The two are some voxels apart, and each has its own brightness: the confocal stack is registered to the widefield
    one, and scores are after the best scale and offset. Richardson-Lucy and Wiener are stopped at their best against
    the confocal stack, ours is not.
    """
    one = read_nucleus(data)
    prior = train(one.wide, one.noise, objective="em", operator=one.operator, config=nucleus_config(steps))
    row: dict[str, float | str] = {"case": "nucleus", "blur": "widefield", "field": "real"}
    row["photons"] = one.noise.photons
    yield row | compare(one.counts, one.operator, one.confocal, prior, draws, stages=24, score=after_fit)


def compare(
    counts: Image, operator: Blur, truth: Image, prior: Prior, draws: int, *, stages: int = 12, score: Score = psnr
) -> dict[str, float]:
    """Restore by all methods and score them; Wiener's filter knows no open border, and has a mirror."""
    volume = Volume.from_array(counts.astype(np.float32), "ZYX" if counts.ndim == 3 else "YX")
    noise = NoiseModel(gain=1.0, intercept=0.0, photons=float(counts.mean()))
    result = restore(
        volume,
        prior,
        noise=noise,
        operator=operator,
        method="samples",
        draws=draws,
        steps=stages,
        outputs=["mean", "std"],
    )
    values = np.moveaxis(np.asarray(result.data.compute(), dtype=np.float64), result.axes.index("C"), 0)
    ours, bar = (image.reshape(truth.shape) for image in values)
    row: dict[str, float] = {}
    for name, image in (
        ("blurred", counts),
        ("wiener", wiener(counts, np.asarray(operator.psf), truth, score=score)[1]),
        ("richardson-lucy tv", richardson_lucy(counts, operator, truth, score=score)[1]),
        ("ours", ours),
    ):
        row[f"{name} dB"] = score(image, truth)
        row[f"{name} frc"] = resolution(image, truth)
    if score is psnr:
        row["coverage 90"] = float((np.abs(ours - truth) < 1.645 * bar).mean())
    return row


def main(
    data: Path | None = None,
    *,
    steps: int = 4000,
    below_steps: int = 1500,
    draws: int = 8,
    widths: tuple[float, ...] = (1.5, 3.0),
    photons: tuple[float, ...] = (5.0, 40.0),
    cases: tuple[str, ...] = ("2D", "3D", "nucleus"),
    out: Path = Path("benchmarks/results"),
) -> list[dict[str, float | str]]:
    """Run every case that there is data for, and write `deconvolution.csv`."""
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, float | str]] = []
    runs: list[Iterator[dict[str, float | str]]] = []
    if "2D" in cases:
        runs += [simulated(level, widths, steps, below_steps, draws) for level in photons]
    if "3D" in cases:
        runs.append(solid(steps // 5, below_steps // 3, draws))
    if "nucleus" in cases and data is not None:
        runs.append(nucleus(data, steps // 4, draws))
    for run in runs:
        for row in run:
            rows.append(row)
            print({k: (round(v, 3) if isinstance(v, float) else v) for k, v in row.items()}, flush=True)
            with (out / "deconvolution.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(dict.fromkeys(k for r in rows for k in r)))
                writer.writeheader()
                writer.writerows(rows)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--below-steps", type=int, default=1500)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--photons", type=float, nargs="*", default=[5.0, 40.0])
    parser.add_argument("--cases", nargs="*", default=["2D", "3D", "nucleus"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    main(
        given.data,
        steps=given.steps,
        below_steps=given.below_steps,
        draws=given.draws,
        photons=tuple(given.photons),
        cases=tuple(given.cases),
        out=given.out,
    )
