"""Synthetic specimens, the microscope and the camera; and the sample data made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from napari_ambient.simulate import (
    Camera,
    blur,
    born_wolf_psf,
    filaments,
    gaussian_psf,
    mitochondria,
    nuclei,
    through_microscope,
)

Specimen = Callable[..., NDArray[np.float32]]
SAMPLE_DATA = Path(__file__).parents[1] / "sample_data"


@pytest.mark.parametrize("specimen", [filaments, mitochondria, nuclei])
@pytest.mark.parametrize(("shape", "step"), [((96, 128), (0.1, 0.1)), ((16, 64, 80), (0.3, 0.1, 0.1))])
def test_specimens_are_reproducible_and_leave_dark_parts(
    specimen: Specimen, shape: tuple[int, ...], step: tuple[float, ...]
) -> None:
    image = specimen(shape, 4, voxel_size=step)
    assert image.shape == shape
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() == 1
    np.testing.assert_array_equal(image, specimen(shape, 4, voxel_size=step))
    assert not np.array_equal(image, specimen(shape, 5, voxel_size=step))
    assert 0.1 < (image < 0.02).mean() < 0.999


@pytest.mark.parametrize(("shape", "step"), [((4, 64), 0.1), ((64,), 0.1), ((64, 64), 0.0)])
def test_impossible_specimens_are_refused(shape: tuple[int, ...], step: float) -> None:
    with pytest.raises(ValueError, match=r"specimen|positive"):
        filaments(shape, voxel_size=step)


@pytest.mark.parametrize(
    "psf",
    [
        gaussian_psf((0.1, 0.1)),
        gaussian_psf((0.3, 0.1, 0.1)),
        born_wolf_psf((31, 31), (0.05, 0.05)),
        born_wolf_psf((15, 31, 31), (0.2, 0.05, 0.05)),
    ],
)
def test_psf_is_odd_centred_symmetric_and_sums_to_one(psf: NDArray[np.float32]) -> None:
    assert all(n % 2 for n in psf.shape)
    assert psf.sum() == pytest.approx(1, abs=1e-5)
    assert np.unravel_index(psf.argmax(), psf.shape) == tuple(n // 2 for n in psf.shape)
    np.testing.assert_allclose(psf, psf[(slice(None, None, -1),) * psf.ndim], atol=1e-7)


def test_born_wolf_is_the_airy_disc_in_focus() -> None:
    """First dark ring at 0.61 wavelength / NA, and the Gaussian approximation has its width."""
    step = 0.01
    psf = born_wolf_psf((121, 121), (step, step), wavelength=0.6, numerical_aperture=1.4)
    row = psf[60, 60:]
    dark = int(np.argmax(np.diff(row) > 0))
    assert dark * step == pytest.approx(0.61 * 0.6 / 1.4, abs=step)
    gaussian = gaussian_psf((step, step), wavelength=0.6, numerical_aperture=1.4)
    middle = gaussian[gaussian.shape[0] // 2, gaussian.shape[1] // 2 :]
    half = [int(np.argmax(profile < profile[0] / 2)) * step for profile in (row, middle)]
    assert half[0] == pytest.approx(half[1], rel=0.1)


def test_blur_keeps_a_flat_field_and_the_light() -> None:
    psf = gaussian_psf((0.1, 0.1))
    np.testing.assert_allclose(blur(np.full((32, 40), 3.0, dtype=np.float32), psf), 3.0, rtol=1e-5)
    point = np.zeros((33, 33), dtype=np.float32)
    point[16, 16] = 1
    assert blur(point, psf).sum() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="axes"):
        blur(np.zeros((8, 32, 32), dtype=np.float32), psf)


def test_light_has_the_asked_background_and_peak() -> None:
    light = through_microscope(filaments((128, 128), 1), gaussian_psf((0.1, 0.1)), peak=20, background=2, haze=0.3)
    assert light.min() >= 2
    assert np.quantile(light, 0.999) == pytest.approx(22, rel=1e-4)


CAMERAS = {
    "sCMOS": Camera.scmos(),
    "EMCCD": Camera.emccd(),
    "PMT": Camera.pmt(gain=1.5, bits=12),
    "counting": Camera.photon_counter(),
}


@pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS)
@pytest.mark.parametrize("photons", [0.0, 0.5, 30.0])
def test_exposures_have_the_mean_and_variance_of_the_camera(
    camera: Camera, photons: float, rng: np.random.Generator
) -> None:
    counts = camera.expose(np.full((400, 500), photons), rng).astype(float)
    # Rounding to whole counts adds 1/12 where there is noise to dither it, and nothing to photon counting.
    rounding = 1 / 12 if np.max(camera.read_noise) > 0 else 0.0
    expected = float(camera.variance(np.array(photons))) + rounding
    error = np.sqrt(expected / counts.size)
    mean = float(camera.mean(np.array(photons)))
    assert counts.mean() == pytest.approx(mean, abs=5 * error + 1e-9)
    # Kurtosis of an EMCCD at half a photo-electron is about 12: 1.5 % is five standard errors.
    assert counts.var() == pytest.approx(expected, rel=0.03, abs=1e-9)


def test_emccd_register_doubles_the_shot_noise(rng: np.random.Generator) -> None:
    camera = Camera("emccd", gain=10.0, excess=2.0)
    counts = camera.expose(np.full(200_000, 20.0), rng).astype(float)
    assert counts.var() / counts.mean() == pytest.approx(2 * 10, rel=0.03)
    assert camera.slope == 20


def test_converter_clips_and_sets_the_dtype(rng: np.random.Generator) -> None:
    dim = Camera.pmt().expose(np.full((8, 8), 1000.0), rng)
    assert dim.dtype == np.uint8
    assert (dim == 255).all()
    assert Camera.scmos(bits=12).expose(np.full((8, 8), 1e6), rng).max() == 4095


def test_chip_has_maps_and_hot_pixels(rng: np.random.Generator) -> None:
    camera = Camera.scmos().with_maps((128, 128), 1, hot=0.02)
    dark = np.stack([camera.expose(np.zeros((128, 128)), rng) for _ in range(50)]).astype(float)
    assert ((dark.std(axis=0) > 4 * np.median(dark.std(axis=0))).mean()) == pytest.approx(0.02, abs=0.008)
    np.testing.assert_array_equal(camera.gain, Camera.scmos().with_maps((128, 128), 1, hot=0.02).gain)


def test_impossible_cameras_and_light_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="no such camera"):
        Camera("scmos", gain=-1.0)
    with pytest.raises(ValueError, match="no such camera"):
        Camera("emccd", gain=1.0, excess=0.5)
    for photons in (-1.0, np.nan):
        with pytest.raises(ValueError, match="finite and >= 0"):
            Camera.scmos().expose(np.full((4, 4), photons), rng)


# --------------------------------------------------------------------------------------------- sample data


def test_sample_data_is_what_its_script_makes() -> None:
    from tools import make_sample_data

    light = make_sample_data.field_light(5)
    counts = Camera.scmos().expose(light, np.random.default_rng([5, 1]))
    stored = tifffile.imread(SAMPLE_DATA / "filaments_2d.tif", key=5)
    # Another machine's last bits may move single draws of the generator, not more.
    assert (counts == stored).mean() > 0.999
    truth = tifffile.imread(SAMPLE_DATA / "filaments_2d_truth.tif", key=5)
    np.testing.assert_allclose(truth, 100 + 2.2 * light, atol=1 / 16)


def test_sample_data_is_small_and_says_its_axes_and_voxel_size() -> None:
    files = sorted(SAMPLE_DATA.glob("*.tif"))
    assert len(files) == 7
    assert sum(file.stat().st_size for file in files) < 5e6
    expected = {
        "filaments_2d.tif": ("TYX", (16, 256, 256), 0.065, None),
        "mitochondria_3d.tif": ("ZYX", (32, 128, 128), 0.1, 0.2),
        "mitochondria_3d_blurred.tif": ("ZYX", (32, 128, 128), 0.1, 0.2),
        "psf_widefield.tif": ("ZYX", (31, 31, 31), 0.1, 0.2),
    }
    for name, (axes, shape, lateral, axial) in expected.items():
        with tifffile.TiffFile(SAMPLE_DATA / name) as tif:
            assert tif.series[0].axes == axes
            assert tif.series[0].shape == shape
            assert tif.imagej_metadata is not None
            assert tif.imagej_metadata["unit"] == "um"
            assert tif.imagej_metadata.get("spacing") == axial
            pixels, micrometres = tif.pages[0].tags["XResolution"].value
            assert micrometres / pixels == pytest.approx(lateral, rel=1e-4)


def test_blurred_sample_is_its_truth_through_its_psf() -> None:
    counts, truth, psf = (
        tifffile.imread(SAMPLE_DATA / f"{name}.tif")
        for name in ("mitochondria_3d_blurred", "mitochondria_3d_blurred_truth", "psf_widefield")
    )
    expected = 100 + blur(truth - 100, psf)
    residual = (counts - expected) / np.sqrt(Camera.scmos().variance((expected - 100) / 2.2) + 1 / 12)
    assert residual.mean() == pytest.approx(0, abs=0.01)
    assert residual.var() == pytest.approx(1, abs=0.01)
