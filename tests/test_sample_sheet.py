"""The sheet of new images beside training crops: places, contrast, crops that are what they say, and one by one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from napari_ambient import restore
from napari_ambient.denoiser import Denoiser, Scale
from napari_ambient.networks.unet import UNet, UNetArguments
from napari_ambient.noise import NoiseModel
from napari_ambient.operators import Blur, Downsample, Operator
from napari_ambient.prior import Prior, PriorError, Record
from napari_ambient.restorer import RestorationError
from napari_ambient.sample_sheet import cell_shape, contrast, lay_out, training_crops
from napari_ambient.volumes import Volume, VolumeError

NOISE = NoiseModel(gain=2.0, intercept=-200.0, photons=4.0)
FLAT = UNetArguments(widths=(8, 8, 8))
SOLID = UNetArguments(dims=3, widths=(6, 6), strides=((1, 2, 2), (2, 2, 2)))


def make_prior(arguments: UNetArguments = FLAT, *, below: str = "virtual_exposures") -> Prior:
    torch.manual_seed(0)
    network = UNet(arguments)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    denoiser = Denoiser(network, [Scale(3.5, 1.2)])
    denoiser.requires_grad_(False)
    config = {"steps": 3, "below": below, "below_steps": 3}
    return Prior(denoiser, (NOISE,), Record("ambient", "thinning", "TYX", {}, config=config, step=6))


def counts(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return (100 + 2 * np.random.default_rng(seed).poisson(4, shape)).astype(np.uint16)


# ------------------------------------------------------------------------------------------------ layout


@pytest.mark.parametrize("count", [1, 2, 4, 6, 9, 16, 25])
@pytest.mark.parametrize("cell", [(8, 8), (3, 8, 12)])
def test_every_image_has_its_own_cell(count: int, cell: tuple[int, ...]) -> None:
    """Images come back whole from their cells; all else is NaN; two blocks are neither a tower nor a ribbon."""
    block = lay_out(count, cell, gap=2)
    sheet = block.empty()
    for index in range(count):
        block.place(sheet, index, np.full(cell, index, np.float32))
    assert sheet.shape == block.shape
    assert int(np.isfinite(sheet).sum()) == count * int(np.prod(cell))
    for index in range(count):
        y, x = block.corner(index)
        np.testing.assert_array_equal(sheet[..., y : y + cell[-2], x : x + cell[-1]], index)
    if count > 2:
        assert 0.5 <= 2 * block.shape[-1] / block.shape[-2] <= 3


def test_cells_do_not_touch() -> None:
    block = lay_out(6, (8, 8), gap=3)
    corners = sorted(block.corner(index) for index in range(6))
    for (y, x), (v, u) in pairwise(corners):
        assert v - y >= 8 + 3 or u - x >= 8 + 3


def test_smaller_images_fit_and_larger_do_not() -> None:
    block = lay_out(2, (8, 8), gap=1)
    sheet = block.empty()
    block.place(sheet, 1, np.ones((5, 6), np.float32))
    assert int(np.nansum(sheet)) == 30
    with pytest.raises(ValueError, match="does not fit"):
        block.place(sheet, 0, np.ones((9, 8), np.float32))
    with pytest.raises(IndexError, match="cell 2 of 2"):
        block.place(sheet, 2, np.ones((8, 8), np.float32))
    with pytest.raises(ValueError, match="one image or more"):
        lay_out(0, (8, 8))


def test_one_contrast_for_all() -> None:
    """The limits are those of all voxels together, whatever is missing; they never coincide."""
    low, high = contrast([np.linspace(0, 1, 1001), np.array([np.nan, 0.5])])
    assert (low, high) == (pytest.approx(0.005, abs=1e-3), pytest.approx(0.998, abs=1e-3))
    assert contrast([np.full((4, 4), 7.0)]) == (7.0, 8.0)
    assert contrast([np.full((4, 4), np.nan)]) == (0.0, 1.0)


# ------------------------------------------------------------------------------------------------- crops


def test_raw_crops_are_cut_from_the_data() -> None:
    """Each crop is found in the volume as it is; the seed decides where; the larger volume is drawn more often."""
    small, large = counts((2, 24, 24)), counts((6, 48, 48), 1) + 1000
    volumes = [Volume.from_array(data, "TYX") for data in (small, large)]
    crops = list(training_crops(volumes, make_prior(), (16, 16), count=12, shown="raw", seed=3))
    again = list(training_crops(volumes, make_prior(), (16, 16), count=12, shown="raw", seed=3))
    other = list(training_crops(volumes, make_prior(), (16, 16), count=12, shown="raw", seed=4))
    assert all(np.array_equal(a, b) for a, b in zip(crops, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(crops, other, strict=True))
    for crop in crops:
        data = large if crop.min() >= 1000 else small
        windows = np.lib.stride_tricks.sliding_window_view(data, (1, 16, 16))
        assert (windows.reshape(-1, 256) == crop.ravel()).all(1).any()
    # 12 volumes in 13 by voxels: all 12 draws from the small one would be a fault of the weights
    assert sum(crop.min() >= 1000 for crop in crops) > 6


def test_denoised_crops_are_cut_from_the_restoration() -> None:
    """Cropping the lazy restoration gives the voxels that restoring everything would give."""
    volume = Volume.from_array(counts((1, 40, 44)), "TYX")
    prior = make_prior()
    (crop,) = training_crops([volume], prior, (24, 24), count=1, seed=1)
    whole = restore(volume, prior).data[0].compute()
    windows = np.lib.stride_tricks.sliding_window_view(whole, (24, 24))
    # float32 sums in another order
    assert np.abs(windows - crop).max(axis=(2, 3)).min() < 1e-3
    assert np.abs(volume.data[0].compute().astype(float).std() - crop.std()) > 1e-3


@pytest.mark.parametrize("operator", [Blur(np.full((3, 3), 1 / 9)), Downsample(2)], ids=["blur", "coarse pixels"])
def test_crops_of_a_prior_through_an_operator_are_of_what_was_before_it(operator: Operator) -> None:
    """They are cut from the reconstruction, on the clean grid; without the operator it is asked for."""
    volume = Volume.from_array(counts((2, 40, 44)), "TYX")
    plain = make_prior()
    prior = replace(plain, record=replace(plain.record, objective="sure_score", operator=operator.to_dict()))
    crops = list(training_crops([volume], prior, (24, 24), count=2, operator=operator, seed=1))
    whole = restore(volume, prior, operator=operator, method="amortised", outputs=["mean"]).data.compute()
    assert whole.shape[-2:] == operator.input_shape((40, 44))
    windows = np.lib.stride_tricks.sliding_window_view(np.squeeze(whole), (1, 24, 24))[:, :, :, 0]
    for crop in crops:
        assert crop.shape == (24, 24)
        # float32 sums in another order
        assert np.abs(windows - crop).max(axis=(-2, -1)).min() < 1e-3
    with pytest.raises(RestorationError, match="operator of the training"):
        next(training_crops([volume], prior, (24, 24), count=1))
    (raw,) = training_crops([volume], prior, (16, 16), count=1, shown="raw")
    assert raw.shape == (16, 16)


def test_crops_of_what_is_too_small_or_flat() -> None:
    volume = Volume.from_array(counts((2, 20, 12)), "TYX")
    (crop,) = training_crops([volume], make_prior(), (16, 16), count=1, shown="raw")
    assert crop.shape == (16, 12)
    solid = make_prior(SOLID)
    assert cell_shape(solid, 16, 8) == (8, 16, 16)
    assert cell_shape(make_prior(), 16) == (16, 16)
    (crop,) = training_crops([Volume.from_array(counts((10, 20, 20)), "ZYX")], solid, (8, 16, 16), count=1)
    assert crop.shape == (8, 16, 16)
    with pytest.raises(VolumeError, match="the prior is 3D"):
        next(training_crops([volume], solid, (8, 16, 16), count=1))
    with pytest.raises(VolumeError, match="choose the layer or the files"):
        next(training_crops([], make_prior(), (16, 16), count=1))


# -------------------------------------------------------------------------------------------- one by one


@pytest.mark.parametrize("arguments", [FLAT, SOLID], ids=["2D", "3D"])
def test_images_come_one_by_one(arguments: UNetArguments) -> None:
    """The same images as all at once, with every network call told, and the last as the last."""
    prior = make_prior(arguments)
    shape = cell_shape(prior, 20, 8)
    told: list[tuple[int, int]] = []
    one_by_one = list(prior.iter_sample(shape, count=2, steps=3, seed=5, watch=lambda *seen: told.append(seen)))
    np.testing.assert_array_equal(np.stack(one_by_one), prior.sample(shape, count=2, steps=3, seed=5))
    assert told == [(n, 6) for n in range(1, 7)]


def test_what_the_watcher_raises_ends_the_drawing() -> None:
    calls = 0

    def stop(done: int, total: int) -> None:
        nonlocal calls
        calls = done
        if done == 4:
            raise KeyboardInterrupt

    images = make_prior().iter_sample((16, 16), count=5, steps=3, watch=stop)
    next(images)
    with pytest.raises(KeyboardInterrupt):
        next(images)
    assert calls == 4


def test_a_prior_that_knows_nothing_below_draws_nothing() -> None:
    with pytest.raises(PriorError, match="nothing below the noise"):
        next(make_prior(below="none").iter_sample((16, 16)))
