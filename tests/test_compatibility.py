"""Misfits of prior and data: each kind is found and named, and data that fit are not complained of."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from napari_ambient.compatibility import find_misfits, misfits
from napari_ambient.denoiser import Denoiser, Scale
from napari_ambient.networks.unet import UNet
from napari_ambient.noise import NoiseModel
from napari_ambient.prior import Prior
from napari_ambient.volumes import Volume
from test_uncertainty import FLAT, SLICES, SOLID, make_prior


def camera(
    gain: float = 2.0, zero: float = 100.0, light: float = 4.0, shape: tuple[int, ...] = (6, 160, 160)
) -> np.ndarray:
    """Give a smooth field of `light` photo-electrons on average, never darker than a fifth of that."""
    rng = np.random.default_rng(7)
    y, x = np.meshgrid(*(np.linspace(0, 5 * np.pi, n) for n in shape[-2:]), indexing="ij")
    clean = light * (1 + 0.8 * np.sin(y) * np.sin(x))
    return (zero + gain * rng.poisson(np.broadcast_to(clean, shape))).astype(np.float32)


def about(volume: Volume, prior: Prior, noise: NoiseModel | None = None) -> list[str]:
    return [misfit.about for misfit in find_misfits(volume, prior, noise)]


@pytest.fixture(scope="module")
def prior() -> Prior:
    """Gain 2, zero 100, 4 photo-electrons, 0.1 µm."""
    made = make_prior(FLAT)
    return replace(made, record=replace(made.record, voxel_size={"Y": 0.1, "X": 0.1}))


def series(**settings: object) -> Volume:
    return Volume.from_array(camera(**settings), "TYX", voxel_size={"Y": 0.1, "X": 0.1})  # type: ignore[arg-type]


def test_what_fits_is_not_complained_of(prior: Prior) -> None:
    assert misfits(series(), prior) == []
    assert misfits(series(light=8.0), prior) == []  # twice as bright is another field of the same experiment


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"gain": 4.0}, "gain 4.* instead of 2"), ({"zero": 300.0}, "zero level 300.* instead of 100")],
)
def test_another_camera_is_named_and_refitted(prior: Prior, settings: dict[str, float], words: str) -> None:
    volume = series(**settings)
    (sentence,) = misfits(volume, prior)
    # the fit is right within some percent
    rounded = re.sub(r"(\d\.\d+|\d{3}(\.\d+)?)", lambda m: f"{round(float(m[0]))}", sentence)
    assert re.search(words, rounded), sentence
    assert "Fit the noise anew" in sentence
    known = NoiseModel(gain=settings.get("gain", 2.0), intercept=-settings.get("gain", 2.0) * settings.get("zero", 100))
    assert misfits(volume, prior, known) == []


def test_light_far_from_the_training(prior: Prior) -> None:
    found = find_misfits(series(light=40.0), prior)
    assert [misfit.about for misfit in found] == ["intensity"]
    assert "10 times as bright" in found[0].sentence
    (dim,) = misfits(series(light=0.5), prior)
    assert "times as dim" in dim


def test_one_bright_object(prior: Prior) -> None:
    values = camera()
    values[:, 70:90, 70:90] += 2 * 400
    (sentence,) = misfits(Volume.from_array(values, "TYX"), prior, prior.noise[0])
    assert "brightest voxels" in sentence


def test_voxel_size(prior: Prior) -> None:
    volume = Volume.from_array(camera(), "TYX", voxel_size={"Y": 0.2, "X": 0.2})
    (sentence,) = misfits(volume, prior)
    assert "0.2 × 0.2 µm" in sentence
    assert "0.5 times as wide" in sentence
    # unknown is not wrong
    assert misfits(Volume.from_array(camera(), "TYX"), prior) == []


def test_axes_and_channels() -> None:
    plane = Volume.from_array(camera(shape=(160, 160)), "YX")
    assert about(plane, make_prior(SOLID)) == ["axes"]
    assert about(plane, make_prior(SLICES)) == ["axes"]
    two = make_prior(FLAT)
    denoiser = Denoiser(UNet(FLAT), [Scale(3.5, 1.2)] * 2)
    two = replace(two, denoiser=denoiser, noise=two.noise * 2)
    three = Volume.from_array(camera(shape=(3, 64, 64)), "CYX")
    (sentence,) = misfits(three, two)
    assert "2 channels" in sentence
    assert "3" in sentence


def test_channels_are_named(prior: Prior) -> None:
    values = np.stack([camera(), camera(gain=6.0)], axis=1)
    volume = Volume.from_array(values, "TCYX", channel_names=["dna", "actin"])
    (sentence,) = misfits(volume, prior)
    assert "of channel actin" in sentence


def test_denoised_data_are_noticed(prior: Prior) -> None:
    """Where the noise cannot be measured, it says so instead of nothing."""
    y, x = np.meshgrid(*(np.linspace(0, 5 * np.pi, 160),) * 2, indexing="ij")
    moving = np.stack([108 + 6 * np.sin(y + 0.1 * t) * np.sin(x) for t in range(4)]).astype(np.float32)
    found = find_misfits(Volume.from_array(moving, "TYX"), prior)
    assert "noise" in [misfit.about for misfit in found]


def test_read_noise_is_a_haze(prior: Prior) -> None:
    """Of another camera it is told, also where the noise was fitted anew; the prior's own is not."""
    noisier = NoiseModel.from_camera(2.0, 100.0, 5.0, photons=4.0)
    (found,) = find_misfits(series(), prior, noisier)
    assert found.about == "intensity"
    assert "2.5 photo-electrons, in the prior's data 0" in found.sentence
    assert "6.2 photo-electrons of haze more" in found.sentence
    assert misfits(series(), replace(prior, noise=(noisier,)), noisier) == []
