"""How well `fit_noise` finds a known camera: relative errors of gain and read noise.

    python benchmarks/noise.py [--seeds 5] [--data FOLDER]

Every case simulates eight frames of 256 x 256 of one field (filaments, mitochondria, nuclei in turn) and fits
the eight frames, and the first frame alone: without help, with the offset, and with 20 dark frames. "Photons"
is the mean signal above the background, in photo-electrons per voxel; the background is 2 % of the brightest
structure, and a border of 24 pixels on one side is dark. The true gain is the slope (EMCCD: gain times the
excess factor 2); the true read noise includes the rounding to whole counts, sqrt(read_noise^2 + 1/12), as the
counts without light have it.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_ambient.noise import NoiseModel
from napari_ambient.noise_fit import NoiseFitError, NoiseFitWarning, fit_noise
from napari_ambient.simulate import Camera, filaments, gaussian_psf, mitochondria, nuclei, through_microscope

PHOTONS = (0.5, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
SPECIMENS = (filaments, mitochondria, nuclei)
VOXEL = (0.1, 0.1)
REAL = (
    *((f"fmd/Confocal_{name}_raw4.tif", "TYX") for name in ("FISH", "MICE", "BPAE_B", "BPAE_G", "BPAE_R")),
    ("ncs_eb3/eb3_scmos_20frames.tif", "TYX"),
    ("photon_counting/tcspc_cells_counts_256bins.tif", "TYX"),
    ("photon_counting/paramecium_lsm_30spectral.tif", "TYX"),
    ("convallaria/convallaria_frame0.tif", "YX"),
    ("convallaria/field_diaphragm_calib_frame0.tif", "YX"),
    ("camera/hamamatsu_scmos_storm_11frames.tif", "TYX"),
    ("w2s/mito_test_fov081-090_avg1.tif", "TYX"),
    ("gigadb/actin-60x-noise1_lowsnr.tif", "YX"),
    ("cellfinder3d/crop_planes_ch0.tif", "ZYX"),
    ("dapi3d/dapi_001.tif", "ZYX"),
)


def scmos(peak: float) -> Camera:
    """Scientific CMOS, 16 bits."""
    return Camera.scmos()


def emccd(peak: float) -> Camera:
    """EMCCD, multiplication turned down so that the peak does not saturate."""
    return Camera.emccd(gain=min(25.0, 50000 / peak))


def pmt(peak: float) -> Camera:
    """Confocal photomultiplier, 8 bits, voltage turned down so that the peak does not saturate."""
    return Camera.pmt(gain=min(4.0, 200 / peak))


def counting(peak: float) -> Camera:
    """Photon counting."""
    return Camera.photon_counter()


CAMERAS: dict[str, Callable[[float], Camera]] = {
    "sCMOS": scmos,
    "EMCCD": emccd,
    "PMT 8 bit": pmt,
    "counting": counting,
}


Counts = NDArray[np.uint8 | np.uint16]


@dataclass(frozen=True)
class Result:
    """Relative errors of one fit; None where the fit says "unknown"."""

    camera: str
    photons: float
    method: str
    gain: float
    read_offset: float | None
    read_dark: float | None


def expected_light(photons: float, seed: int) -> NDArray[np.float32]:
    """Make expected photo-electrons, (256, 256), of mean signal `photons`, with a dark border."""
    specimen = SPECIMENS[seed % len(SPECIMENS)]((256, 256), seed, voxel_size=VOXEL)
    light = through_microscope(specimen, gaussian_psf(VOXEL), peak=1.0, haze=0.2)
    scale = photons / float(light.mean())
    light = scale * (light + 0.02)
    light[:, :24] = 0
    return light


def simulate(camera_name: str, photons: float, seed: int) -> tuple[Camera, Counts, Counts]:
    """Make a camera, eight frames of one field, and twenty dark frames."""
    light = expected_light(photons, seed)
    camera = CAMERAS[camera_name](float(light.max()))
    rng = np.random.default_rng([seed, int(100 * photons)])
    frames = np.stack([camera.expose(light, rng) for _ in range(8)])
    dark = np.stack([camera.expose(np.zeros(light.shape), rng) for _ in range(20)])
    return camera, frames, dark


def true_read_noise(camera: Camera) -> float:
    """Give the standard deviation of the rounded counts without light, ADU."""
    read = float(np.mean(camera.read_noise))
    return float(np.sqrt(read**2 + 1 / 12)) if read > 0 else 0.0


def measure(camera_name: str, photons: float, seed: int) -> Iterator[Result]:
    """Simulate one case and fit it in both ways."""
    camera, frames, dark = simulate(camera_name, photons, seed)
    true_read = true_read_noise(camera)

    def read_error(model: NoiseModel) -> float | None:
        if model.read_noise is None or true_read == 0:
            return None
        return float(model.read_noise) / true_read - 1

    for method, images, axes in (("8 frames", frames, "TYX"), ("1 frame", frames[0], "YX")):
        try:
            plain = fit_noise(images, axes=axes)
            known = fit_noise(images, axes=axes, offset=float(np.mean(camera.offset)))
            shown = fit_noise(images, axes=axes, dark=dark)
        except NoiseFitError:
            yield Result(camera_name, photons, method, float("nan"), None, None)
            continue
        gain = float(plain.gain) / float(np.mean(camera.slope)) - 1
        yield Result(camera_name, photons, method, gain, read_error(known), read_error(shown))


def summary(errors: Sequence[float | None]) -> str:
    """Median and worst absolute error in per cent, and how often the fit gave a number."""
    known = [abs(e) for e in errors if e is not None and np.isfinite(e)]
    if not known:
        return "unknown"
    text = f"{100 * np.median(known):.1f} / {100 * max(known):.1f}"
    return text if len(known) == len(errors) else f"{text} ({len(known)} of {len(errors)})"


def main(
    seeds: int = 5,
    photons: Sequence[float] = PHOTONS,
    cameras: Sequence[str] = tuple(CAMERAS),
) -> list[Result]:
    """Run all cases and print the table.

    Parameters
    ----------
    seeds : int
        Fields and noise draws per case.
    photons : sequence of float
        Mean signal levels.
    cameras : sequence of str
        Keys of `CAMERAS`.

    Returns
    -------
    list of Result
        One per camera, light, seed and method.
    """
    print("Errors in per cent: median / worst over the seeds (how many gave a number).\n")
    print("| camera | photons | method | gain | read noise, offset given | read noise, dark frames |")
    print("|---|---|---|---|---|---|")
    results: list[Result] = []
    for camera in cameras:
        for light in photons:
            rows = [result for seed in range(seeds) for result in measure(camera, light, seed)]
            results += rows
            for method in ("8 frames", "1 frame"):
                those = [row for row in rows if row.method == method]
                columns = [
                    summary([getattr(row, key) for row in those]) for key in ("gain", "read_offset", "read_dark")
                ]
                print(f"| {camera} | {light:g} | {method} | " + " | ".join(columns) + " |", flush=True)
    return results


def real(folder: Path) -> None:
    """Fit the real acquisitions in a folder and print what comes out.

    Parameters
    ----------
    folder : Path
        With the files named in `REAL`; those that are not there are left out.
    """
    print("\n| file | method | slope (ADU) | zero (ADU) | hot pixels | photo-electrons | noise |")
    print("|---|---|---|---|---|---|---|")
    for name, axes in REAL:
        if not (folder / name).exists():
            continue
        stack = tifffile.imread(folder / name)
        cases = [(name, stack, axes)]
        if axes == "TYX":
            cases.append((f"{name}, middle frame", stack[len(stack) // 2], "YX"))
        for label, image, letters in cases:
            with warnings.catch_warnings():
                # What the warning says shows in the slopes of the single images.
                warnings.simplefilter("ignore", NoiseFitWarning)
                model = fit_noise(image, axes=letters)
            hot = 0.0 if model.hot_pixels is None else 100 * float(model.hot_pixels.mean())
            numbers = f"{float(model.gain):.3g} | {float(model.zero):.4g} | {hot:.2f} % | {model.photons:.3g}"
            colour = "white" if model.correlation is None else "correlated"
            print(f"| {label} | {model.method} | {numbers} | {colour} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="fields and noise draws per case; 0 for none")
    parser.add_argument("--data", type=Path, help="folder of real acquisitions")
    options = parser.parse_args()
    if options.seeds:
        main(options.seeds)
    if options.data:
        real(options.data)
