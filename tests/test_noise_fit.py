"""fit_noise: known cameras are found, what cannot be told is unknown, and unfit images are refused."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import dask.array
import numpy as np
import pytest
import tifffile
import torch
from benchmarks import noise as benchmark
from numpy.typing import NDArray
from scipy import ndimage

from napari_ambient.noise import NoiseModel
from napari_ambient.noise_fit import NoiseFitError, NoiseFitWarning, describe, fit_noise, plot_transfer
from napari_ambient.simulate import Camera, filaments, gaussian_psf, nuclei, through_microscope
from napari_ambient.splitting import Lag

Light = NDArray[np.float32]


@pytest.fixture(scope="module")
def light() -> Light:
    """Give the expected photo-electrons of one field, (256, 256), mean signal 3, with a dark border."""
    return benchmark.expected_light(3.0, 2)


def repeats(camera: Camera, light: Light, count: int, seed: int = 0) -> NDArray[np.uint8 | np.uint16]:
    rng = np.random.default_rng(seed)
    return np.stack([camera.expose(light, rng) for _ in range(count)])


# ------------------------------------------------------------------------------------------ known cameras


@pytest.mark.parametrize(
    ("camera", "photons"),
    [("sCMOS", 0.5), ("EMCCD", 100), ("PMT 8 bit", 3), ("counting", 1000)],
)
def test_known_cameras_are_found(camera: str, photons: float) -> None:
    """The bars: eight frames 10 % and 20 %, one frame 15 % and 30 %; the benchmark holds the whole table."""
    truth, frames, _ = benchmark.simulate(camera, photons, 1)
    read = benchmark.true_read_noise(truth)
    for images, axes, gain_bar, read_bar in ((frames, "TYX", 0.10, 0.20), (frames[0], "YX", 0.15, 0.30)):
        model = fit_noise(images, axes=axes, offset=float(np.mean(truth.offset)))
        assert model.gain == pytest.approx(float(np.mean(truth.slope)), rel=gain_bar)
        if model.read_noise is not None:
            assert model.read_noise == pytest.approx(read, rel=read_bar)


def test_gain_of_an_emccd_contains_its_excess_noise(light: Light) -> None:
    model = fit_noise(repeats(Camera.emccd(), light, 4), axes="TYX")
    assert model.gain == pytest.approx(2 * 25, rel=0.05)


def test_offset_and_read_noise_stay_unknown_without_help(light: Light) -> None:
    frames = repeats(Camera.scmos(), light, 4)
    model = fit_noise(frames, axes="TYX")
    assert model.offset is None
    assert model.read_noise is None
    assert model.zero == pytest.approx(100 - 3.1**2 / 2.2, abs=0.7)
    known = fit_noise(frames, axes="TYX", offset=100.0)
    assert known.read_noise == pytest.approx(3.1, rel=0.1)
    assert known.photons == pytest.approx(float(light.mean()), rel=0.1)


def test_read_noise_stays_unknown_where_light_hides_it() -> None:
    """No part of the field is dark: at the offset the line's error is larger than the read variance."""
    bright = benchmark.expected_light(300.0, 2)[:, 24:] + 200
    model = fit_noise(repeats(Camera.scmos(), bright, 2), axes="TYX", offset=100.0)
    assert model.gain == pytest.approx(2.2, rel=0.1)
    assert model.read_noise is None
    assert "dark frames" in describe(model)


def test_dark_frames_give_offset_read_noise_and_hot_pixels(light: Light) -> None:
    camera = Camera.scmos().with_maps((256, 256), 3, hot=0.01)
    dark = repeats(camera, np.zeros((256, 256), dtype=np.float32), 30, seed=8)
    volume = SimpleNamespace(data=dask.array.from_array(dark), axes="TYX")
    model = fit_noise(repeats(camera, light, 2), axes="TYX", dark=volume)
    assert model.offset == pytest.approx(100, abs=0.1)
    assert model.read_noise == pytest.approx(3.15, rel=0.05)
    assert model.gain == pytest.approx(2.2, rel=0.05)
    truly_hot = np.asarray(camera.read_noise) > 3 * 3.1
    assert model.hot_pixels is not None
    assert model.hot_pixels[truly_hot].mean() > 0.95
    assert model.hot_pixels[~truly_hot].mean() < 0.001


# ----------------------------------------------------------------------------------- what images may show


def test_noisy_pixels_are_found_in_four_frames(light: Light) -> None:
    """Most of the surplus of variance goes, for few good pixels; a camera without noisy pixels loses none."""
    camera = Camera.scmos().with_maps((256, 256), 3, hot=0.02)
    model = fit_noise(repeats(camera, light, 4), axes="TYX")
    noisy = np.asarray(camera.read_noise) > 6 * 3.1
    assert model.hot_pixels is not None
    assert model.hot_pixels[noisy].mean() > 0.6  # the others lie in bright light
    assert model.hot_pixels[np.asarray(camera.read_noise) < 2 * 3.1].mean() < 0.015
    clean = fit_noise(repeats(Camera.scmos(), light, 4), axes="TYX")
    assert clean.hot_pixels is None or clean.hot_pixels.mean() < 5e-3


def test_hot_pixels_are_found_in_the_frames_and_do_not_move_the_line(light: Light) -> None:
    camera = Camera.scmos().with_maps((256, 256), 3, hot=0.02)
    model = fit_noise(repeats(camera, light, 16), axes="TYX")
    truly_hot = np.asarray(camera.read_noise) > 6 * 3.1
    assert model.hot_pixels is not None
    assert model.hot_pixels[truly_hot].mean() > 0.95
    assert model.hot_pixels[np.asarray(camera.read_noise) < 2 * 3.1].mean() < 0.003
    assert model.gain == pytest.approx(2.2, rel=0.1)
    # The control: without leaving them out the variance without light is several times too high.
    assert model.variance(100.0) == pytest.approx(3.15**2, rel=0.3)


def test_lone_points_of_light_are_not_hot(rng: np.random.Generator) -> None:
    points = np.zeros((256, 256), dtype=np.float32)
    points[rng.integers(8, 248, 60), rng.integers(8, 248, 60)] = 1
    light = through_microscope(points, gaussian_psf((0.1, 0.1)), peak=60, background=5)
    model = fit_noise(repeats(Camera.scmos(), light, 8), axes="TYX")
    assert model.hot_pixels is None or model.hot_pixels.sum() <= 2


def test_saturated_parts_are_left_out() -> None:
    light = benchmark.expected_light(30.0, 1)
    camera = Camera.pmt(gain=4.0, read_noise=0.5)
    image = camera.expose(light, np.random.default_rng(0))
    assert (image == 255).mean() > 0.02
    model = fit_noise(image)
    assert model.saturation == 255
    assert model.gain == pytest.approx(float(np.mean(camera.slope)), rel=0.1)


def test_a_limit_below_the_end_of_the_dtype_is_found() -> None:
    light = benchmark.expected_light(300.0, 1)
    image = Camera.scmos(gain=10.0, bits=12).expose(light, np.random.default_rng(0))
    assert (image == 4095).sum() > 50
    assert fit_noise(image).saturation == 4095
    assert fit_noise(Camera.scmos().expose(light, np.random.default_rng(0))).saturation is None


def test_correlated_noise_is_told_and_its_variance_is_that_of_a_voxel(light: Light) -> None:
    frames = repeats(Camera.photon_counter(), light + 2, 8).astype(np.float32)
    kernel = np.array([0.25, 0.5, 0.25])
    smeared = ndimage.convolve1d(frames, kernel, axis=2, mode="reflect")
    model = fit_noise(smeared, axes="TYX")
    assert model.form == "gaussian"
    assert "correlated" in model.reason
    assert model.correlation is not None
    # Autocorrelation of (1, 2, 1) / 4 is (1, 4, 6, 4, 1) / 16.
    np.testing.assert_allclose(model.correlation[2], np.array([1, 4, 6, 4, 1]) / 6, atol=0.04)
    np.testing.assert_allclose(model.correlation[3], 0, atol=0.04)
    assert model.gain == pytest.approx(6 / 16, rel=0.1)
    assert fit_noise(frames, axes="TYX").correlation is None


@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("expected", [0.1, 0.2])
def test_the_lag_of_a_scanning_detector_is_found(light: Light, frames: int, expected: float) -> None:
    """Neighbours along X share noise and no others do: counts can be thinned all the same. White noise has no lag."""
    rng = np.random.default_rng(4)
    gain, lag = 4.0, Lag(expected)
    white = torch.from_numpy(rng.poisson(np.broadcast_to(light * lag.variance, (frames, *light.shape))))
    counts = (gain * lag.applied(white.double())).numpy()
    model = fit_noise(counts.astype(np.float32), axes="TYX")
    assert model.lag == pytest.approx(expected, abs=0.03)
    assert model.gain == pytest.approx(gain, rel=0.1)
    assert model.correlation is None and model.form == "thinning"
    assert NoiseModel.from_dict(model.to_dict()).lag == model.lag
    even = (gain * rng.poisson(light, (frames, *light.shape))).astype(np.float32)
    assert fit_noise(even, axes="TYX").lag == 0


def test_correlation_is_told_from_structure_in_one_image(light: Light) -> None:
    image = Camera.photon_counter().expose(light + 2, np.random.default_rng(0)).astype(np.float32)
    assert fit_noise(image).correlation is None
    kernel = np.array([0.25, 0.5, 0.25])
    model = fit_noise(ndimage.convolve1d(image, kernel, axis=1, mode="reflect"))
    assert model.correlation is not None
    assert model.correlation[2, 3] == pytest.approx(4 / 6, abs=0.08)
    assert model.gain == pytest.approx(6 / 16, rel=0.2)


def test_negative_correlation_is_proven_in_an_image_full_of_structure() -> None:
    """Sharpened along X, as some cameras do: the corner of the spectrum alone would read 60 % too much."""
    light = through_microscope(
        filaments((256, 256), 1, density=2.0), gaussian_psf((0.1, 0.1)), peak=200, background=5, haze=0.3
    )
    image = Camera.photon_counter().expose(light, np.random.default_rng(0)).astype(np.float64)
    sharpened = ndimage.convolve1d(image, np.array([-0.2, 1.4, -0.2]), axis=1, mode="reflect")
    variance = 1.4**2 + 2 * 0.2**2
    assert fit_noise(sharpened).gain == pytest.approx(variance, rel=0.15)


# ------------------------------------------------------------------------------------------ kinds of stack


def test_frames_of_one_field_are_taken_as_frames(light: Light) -> None:
    model = fit_noise(repeats(Camera.scmos(), light, 4), axes="TYX")
    assert model.method == "frames"
    assert any("agree" in note for note in model.notes)


def test_bleaching_does_not_count_as_noise() -> None:
    rng = np.random.default_rng(0)
    camera = Camera.photon_counter()
    bright = benchmark.expected_light(200.0, 0)
    frames = np.stack([camera.expose(bright * 0.8**t, rng) for t in range(8)])
    model = fit_noise(frames, axes="TYX", kind="frames")
    assert model.gain == pytest.approx(1, rel=0.1)
    # The control: for an unmoving, constant field these frames are not.
    assert fit_noise(frames, axes="TYX", kind="repeats").gain > 1.3


def test_different_fields_are_taken_as_single_images() -> None:
    rng = np.random.default_rng(0)
    camera = Camera.scmos()
    fields = np.stack([camera.expose(benchmark.expected_light(10.0, seed), rng) for seed in range(4)])
    model = fit_noise(fields, axes="TYX")
    assert model.method == "single"
    assert any("different fields" in note for note in model.notes)
    assert model.gain == pytest.approx(2.2, rel=0.1)


def test_z_stacks_are_pooled() -> None:
    step = (0.3, 0.1, 0.1)
    specimen = nuclei((8, 128, 128), 1, voxel_size=step)
    light = through_microscope(specimen, gaussian_psf(step), peak=20, background=1)
    stack = Camera.scmos().expose(light, np.random.default_rng(0))
    model = fit_noise(SimpleNamespace(data=dask.array.from_array(stack), axes="ZYX"))
    assert model.method == "single"
    assert model.gain == pytest.approx(2.2, rel=0.15)


def test_images_stretched_one_by_one_are_not_pooled_silently() -> None:
    rng = np.random.default_rng(0)
    images = []
    for seed, stretch in enumerate((1.0, 3.0, 1.5, 5.0)):
        counts = Camera.photon_counter().expose(benchmark.expected_light(20.0, seed), rng)
        images.append(np.clip(stretch * counts.astype(float), 0, 65535))
    stack = np.rint(images).astype(np.uint16)
    with pytest.warns(NoiseFitWarning, match="do not share one camera gain"):
        fit_noise(stack, axes="TYX")
    assert fit_noise(stack[1]).gain == pytest.approx(3, rel=0.15)


# -------------------------------------------------------------------------------------------------- maps


def test_maps_make_a_model_for_every_pixel(light: Light) -> None:
    camera = Camera.scmos().with_maps((256, 256), 3, hot=0.01)
    gain, offset, read = (np.asarray(m, dtype=float) for m in (camera.gain, camera.offset, camera.read_noise))
    frames = repeats(camera, light, 4)
    model = fit_noise(frames, axes="TYX", maps={"gain": gain, "offset": offset, "variance": read**2})
    assert model.method == "maps"
    np.testing.assert_array_equal(model.gain, gain)
    np.testing.assert_allclose(model.variance(offset), read**2, rtol=1e-9)
    assert model.photons == pytest.approx(float(light.mean()), rel=0.05)
    stacked = fit_noise(frames, axes="TYX", maps=np.stack([offset, read**2, gain]))
    np.testing.assert_array_equal(stacked.intercept, model.intercept)
    assert "median of a map of 256 x 256" in describe(model)


def test_maps_of_another_setting_are_noticed(light: Light) -> None:
    frames = repeats(Camera.scmos(), light, 4)
    maps = np.stack([np.full((256, 256), value) for value in (100.0, 3.1**2, 2.2)])
    assert fit_noise(frames, axes="TYX", maps=maps).gain is not None
    with pytest.warns(NoiseFitWarning, match="variance that the maps predict"):
        fit_noise(frames, axes="TYX", maps=maps - np.array([10.0, 0, 0])[:, None, None])


@pytest.mark.parametrize(
    ("maps", "reason"),
    [
        ({"gain": np.ones((256, 256))}, "it needs"),
        (np.ones((2, 256, 256)), "must be"),
        (np.ones((3, 128, 128)), "cut the maps"),
        (-np.ones((3, 256, 256)), "variance >= 0"),
    ],
)
def test_wrong_maps_are_refused(maps: object, reason: str, light: Light) -> None:
    with pytest.raises(NoiseFitError, match=reason):
        fit_noise(Camera.scmos().expose(light, np.random.default_rng(0)), maps=maps)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ large volumes


def test_only_a_few_planes_of_a_large_volume_are_read_and_always_the_same() -> None:
    computed = []

    def plane(block_info: dict[None, dict[str, list[tuple[int, int]]]] | None = None) -> NDArray[np.uint16]:
        assert block_info is not None
        t, z = (block_info[None]["array-location"][axis][0] for axis in (0, 1))
        computed.append((t, z))
        image = Camera.scmos().expose(benchmark.expected_light(5.0, z), np.random.default_rng([t, z]))
        return image[None, None]

    lazy = dask.array.map_blocks(
        plane,
        chunks=((1,) * 40, (1,) * 30, (256,), (256,)),
        dtype=np.uint16,
        meta=np.empty((0,) * 4, np.uint16),
    )
    volume = SimpleNamespace(data=lazy, axes="TZYX")
    first = fit_noise(volume, budget=8 * 256**2)
    read = len(computed)
    assert read <= 9
    second = fit_noise(volume, budget=8 * 256**2)
    assert computed[:read] == computed[read:]
    assert (first.gain, first.intercept) == (second.gain, second.intercept)
    assert first.gain == pytest.approx(2.2, rel=0.15)
    assert any(f"{read} of 1200 planes" in note for note in first.notes)


def test_planes_larger_than_a_chip_are_read_in_regions() -> None:
    tile = Camera.scmos().expose(benchmark.expected_light(5.0, 1), np.random.default_rng(0))
    lazy = dask.array.tile(dask.array.from_array(tile), (16, 16))
    model = fit_noise(lazy, budget=9 * 256**2)
    assert model.hot_pixels is None
    assert model.gain == pytest.approx(2.2, rel=0.15)


# --------------------------------------------------------------------------------------------- bad input


def noise_image(shape: tuple[int, ...] = (64, 64)) -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(100, 5, shape)


def with_nan() -> NDArray[np.float64]:
    image = noise_image()
    image[3, 4] = np.nan
    return image


@pytest.mark.parametrize(
    ("image", "options", "reason"),
    [
        (with_nan(), {}, "1 voxels that are NaN"),
        (np.full((64, 64), 7, dtype=np.uint8), {}, "constant"),
        (np.where(noise_image() > 95, 255, 20).astype(np.uint8), {}, "saturated"),
        (noise_image((20, 64)), {}, "too small"),
        (noise_image((0, 64, 64)), {"axes": "TYX"}, "empty"),
        (noise_image((4, 64, 64)), {}, "which axis is time"),
        (noise_image((4, 64, 64)), {"axes": "YX"}, "do not fit"),
        (noise_image((2, 64, 64)), {"axes": "CYX"}, "2 channels"),
        (noise_image((1, 64, 64)), {"axes": "TYX", "kind": "frames"}, "two frames"),
        (noise_image(), {"kind": "repeat"}, "not known"),
        (noise_image(), {"offset": 1.0, "dark": noise_image()}, "give one"),
        (noise_image((256, 256)), {}, "does not rise"),
        (noise_image((256, 256)), {"dark": np.zeros(5)}, "dark frames have shape"),
    ],
)
def test_images_that_tell_no_noise_are_refused(
    image: NDArray[np.float64], options: dict[str, object], reason: str
) -> None:
    with pytest.raises(NoiseFitError, match=reason):
        fit_noise(image, **options)  # type: ignore[arg-type]


def test_an_averaged_image_whose_noise_does_not_rise_is_refused(light: Light) -> None:
    image = 100 + light + np.random.default_rng(0).normal(0, 3, light.shape)
    with pytest.raises(NoiseFitError, match="does not rise"):
        fit_noise(image)


# ------------------------------------------------------------------------------------------------ telling


def test_description_names_what_is_unknown_and_plots_are_written(light: Light, tmp_path: Path) -> None:
    model = fit_noise(Camera.scmos().expose(light, np.random.default_rng(0)))
    text = describe(model)
    assert "ADU per photo-electron" in text
    assert text.count("unknown (give dark frames or --offset)") == 2
    assert "white" in text
    plot_transfer(model, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="no photon-transfer points"):
        plot_transfer(NoiseModel(1.0, 0.0), tmp_path / "none.png")


# --------------------------------------------------------------------------------------- real acquisitions


@pytest.mark.skipif("NAPARI_AMBIENT_DATA" not in os.environ, reason="NAPARI_AMBIENT_DATA names no folder of real data")
@pytest.mark.parametrize(
    ("name", "axes", "slope", "tolerance", "zero"),
    [
        ("fmd/Confocal_FISH_raw4.tif", "TYX", 20, 0.15, 3.5),
        ("fmd/Confocal_MICE_raw4.tif", "TYX", 5.2, 0.1, 3.3),
        ("fmd/Confocal_BPAE_B_raw4.tif", "TYX", 3.9, 0.1, 3.3),
        ("ncs_eb3/eb3_scmos_20frames.tif", "TYX", 2.2, 0.12, 97),
        ("photon_counting/tcspc_cells_counts_256bins.tif", "TYX", 1.0, 0.05, 0.0),
        ("convallaria/convallaria_frame0.tif", "YX", 52, 0.1, 483),
    ],
)
def test_real_cameras(name: str, axes: str, slope: float, tolerance: float, zero: float) -> None:
    model = fit_noise(tifffile.imread(Path(os.environ["NAPARI_AMBIENT_DATA"]) / name), axes=axes)
    assert model.gain == pytest.approx(slope, rel=tolerance)
    # A tenth of a photo-electron, or half for the single image.
    assert model.zero == pytest.approx(zero, abs=0.5 * slope)


@pytest.mark.parametrize("frames", [1, 4])
def test_images_without_noise_are_named(frames: int) -> None:
    """Copies of one frame, and an image that is smooth to the last digit."""
    smooth = 100 + 50 * np.sin(np.linspace(0, 9, 96))[:, None] * np.ones(96)
    stack = np.tile(smooth, (frames, 1, 1)).astype(np.float32)
    with pytest.raises(NoiseFitError, match="no noise at all"):
        fit_noise(stack, axes="TYX")
