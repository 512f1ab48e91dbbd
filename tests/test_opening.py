"""Open borders: the light of what lies around an image is explained by it, and what is made of it is cut away."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import dask.array as da
import numpy as np
import pytest
import torch
from benchmarks.deconvolution import iterate
from numpy.typing import NDArray

from napari_ambient import NoiseModel, TrainConfig, Volume, iter_train, restore
from napari_ambient.opening import widen
from napari_ambient.operators import Blur, Compose, Downsample, Identity, Mask, Operator, OperatorError
from napari_ambient.point_spread import microscope_psf
from napari_ambient.restoration import RestorationWarning
from test_watch import FLAT, counts, make_prior


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


PSF = np.outer([1, 2, 3, 2, 1], [1, 2, 3, 2, 1]) / 81.0


def stack(shape: tuple[int, ...], axes: str) -> Volume:
    return Volume.from_array(counts(shape), axes, voxel_size=dict.fromkeys("ZYX" if "Z" in axes else "YX", 0.1))


def forward(operator: Operator, x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(operator.forward(torch.from_numpy(x)[None, None])[0, 0])


def test_volumes_are_widened_by_whole_eights() -> None:
    """Only along axes that the PSF reaches over; blocks stay what they were, but for the outermost."""
    volume = stack((2, 3, 45, 30), "TZYX")
    volume = volume.replace(data=da.asarray(volume.data).rechunk((1, 3, 16, 30)))
    wide = widen(volume, Blur(PSF, "open"))
    assert wide.margins == ((0, 0), (8, 11), (8, 10))
    assert wide.volume.shape == (2, 3, 64, 48)
    assert wide.volume.data.chunks[2] == (24, 16, 24)
    np.testing.assert_array_equal(wide.volume.data[..., 8:53, 8:38], volume.data)
    back = wide.inner(wide.volume)
    np.testing.assert_array_equal(back.data, volume.data)
    window = wide.operator.operators[0]  # type: ignore[attr-defined]
    assert window.map.sum() == 3 * 45 * 30
    # a border that is not open leaves all as it is
    assert widen(volume, Blur(PSF)).volume is volume
    assert widen(volume, Identity()).operator.describe() == "identity"


@pytest.mark.parametrize(
    "made", [lambda b: b, lambda b: Mask(np.arange(24 * 32).reshape(24, 32) % 7 > 1) @ b, lambda b: Downsample(2) @ b]
)
def test_the_widened_operator_is_the_window_of_a_larger_one(made: object) -> None:
    """What the camera sees of a larger scene is what it sees of the image and what lies around it."""
    open_, dark = (made(Blur(PSF, border)) for border in ("open", "zero"))  # type: ignore[operator]
    step = open_.stride[2]
    measured = Volume.from_array(np.zeros((24, 32), np.float32), "YX")
    wide = widen(measured, open_)
    (top, bottom), (left, right) = wide.margins[1:]
    rng = np.random.default_rng(0)
    scene = rng.random((1, step * (24 + top + bottom), step * (32 + left + right)))
    seen = forward(wide.operator, scene)[0]
    parts = dark.operators if isinstance(dark, Compose) else (dark,)
    plain = Compose(*(part for part in parts if not isinstance(part, Mask)))
    expected = forward(plain, scene)[0][top : top + 24, left : left + 32]
    if isinstance(parts[0], Mask):
        expected = expected * parts[0].map
    np.testing.assert_allclose(seen[top : top + 24, left : left + 32], expected, atol=1e-12)
    seen[top : top + 24, left : left + 32] = 0
    assert not seen.any()
    # the image alone lacks that light
    inner = scene[:, step * top : -step * bottom, step * left : -step * right]
    assert np.abs(forward(plain, inner)[0] - forward(plain, scene)[0][top : top + 24, left : left + 32]).max() > 0.05


def test_light_from_above_and_below_is_no_structure_of_the_stack() -> None:
    """Richardson and Lucy's iterations come closer to a stack, at their best, than where borders are mirrors."""
    psf = microscope_psf(
        "widefield",
        na=1.1,
        wavelength_nm=500,
        refractive_index=1.33,
        voxel_size_um=(0.5, 0.25, 0.25),
        shape=(23, 15, 15),
    )
    rng = np.random.default_rng(1)
    scene = np.zeros((40, 40, 40))
    scene[tuple(rng.integers((4, 8, 8), (36, 32, 32), (60, 3)).T)] = 2000.0
    scene = np.asarray(Blur(np.ones((3, 3, 3)) / 27, "zero").forward(torch.from_numpy(scene)[None, None])[0, 0])
    inside = (slice(14, 26), slice(8, 32), slice(8, 32))
    photons = rng.poisson(forward(Blur(psf, "zero"), scene).clip(0))[inside].astype(np.float64)
    errors = {}
    for border in ("reflect", "open"):
        found = iterate(photons, Blur(psf, border), 0.0)  # type: ignore[arg-type]
        errors[border] = min(float(np.mean((x - scene[inside]) ** 2)) for x in islice(found, 50))
    assert errors["open"] < 0.9 * errors["reflect"]


def test_restored_images_lie_where_they_were() -> None:
    """Shape, voxel size, history and the camera's maps: nothing of the widening shows."""
    prior = make_prior(FLAT)
    hot = np.zeros((45, 38), dtype=bool)
    hot[0, 7] = True
    gain = np.full((45, 38), 2.0)
    gain[:, 19:] = 4.0
    noise = replace(prior.noise[0], hot_pixels=hot, gain=gain, intercept=-100 * gain)
    volume = stack((2, 45, 38), "TYX")
    operator = Blur(PSF, "open", beyond=4)
    result = restore(volume, prior, noise=noise, operator=operator, method="samples", draws=2, steps=3)
    assert (result.axes, result.shape) == ("TCYX", (2, 2, 45, 38))
    assert result.voxel_size == volume.voxel_size
    assert np.isfinite(result.data.compute(scheduler="synchronous")).all()
    assert result.history[-1]["operator"] == operator.to_dict()
    assert result.history[-1]["operator"]["beyond"] == [0, 4, 4]
    finer = restore(volume, make_prior(FLAT), operator=Downsample(2) @ operator, method="samples", draws=2, steps=2)
    assert finer.shape == (2, 2, 90, 76)
    assert finer.data.compute(scheduler="synchronous").shape == (2, 2, 90, 76)


def test_a_psf_wider_than_the_image_needs_an_open_border() -> None:
    prior, volume = make_prior(FLAT), stack((16, 16), "YX")
    wide = np.ones((33, 33)) / 33**2
    with pytest.warns(RestorationWarning, match="open the border"):
        restore(volume, prior, operator=Blur(wide), method="samples", draws=2, steps=2)
    restore(volume, prior, operator=Blur(wide, "open"), method="samples", draws=2, steps=2)  # a warning is an error


@pytest.mark.parametrize("objective", ["em", "flow_diff"])
def test_training_through_an_open_border(objective: str) -> None:
    """Also of stacks of several sizes; its record names the operator that was given, and it restores through it."""
    volumes = [stack((44, 48), "YX"), stack((60, 41), "YX")]
    operator = Blur(PSF, "open")
    config = TrainConfig(steps=4, batch=2, patch=(32, 32), validations=1, precision="float32")
    noise = NoiseModel(gain=2.0, intercept=-200.0, photons=4.0)
    last = None
    for last in iter_train(volumes, noise, objective=objective, operator=operator, config=config):  # type: ignore[arg-type]
        assert all(np.isfinite(v) for v in last.losses.values())
    assert last is not None
    prior = last.prior()
    assert prior.record.operator == operator.to_dict()
    result = restore(volumes[0], prior, operator=operator, method="amortised", draws=2, outputs=["mean"])
    assert result.data.compute(scheduler="synchronous").shape == (1, 44, 48)


def test_beyond_what() -> None:
    with pytest.raises(OperatorError, match="only open borders have voxels beyond"):
        Blur(PSF, "reflect", beyond=3)
    with pytest.raises(OperatorError, match="beyond is -1"):
        Blur(PSF, "open", beyond=-1)
    assert Blur(PSF, "open").beyond == (0, 8, 8)
    assert (Mask(np.ones((4, 4))) @ Blur(PSF, "open", beyond=(1, 2, 3))).beyond == (0, 2, 3)
    assert "border open (0 x 8 x 8 voxels)" in Blur(PSF, "open").describe()
