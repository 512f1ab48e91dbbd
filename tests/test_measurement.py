"""The operator of a measurement: what comes before what, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from napari_ambient.measurement import Optics, computed_psf, mask_of_each, operator_for, with_holes
from napari_ambient.noise_fit import fit_channels
from napari_ambient.operators import Blur, Downsample, Identity, Mask, Operator
from napari_ambient.point_spread import prepare
from napari_ambient.volumes import Volume, save_volume

OPTICS = Optics(na=1.2, wavelength=600)


@pytest.fixture
def image(rng: np.random.Generator) -> Volume:
    return Volume.from_array(rng.random((24, 20)), voxel_size={"Y": 0.1, "X": 0.1}, name="cells")


@pytest.fixture
def bead(rng: np.random.Generator) -> Volume:
    y, x = np.mgrid[-4:5, -4:5]
    # lopsided, so that the order of blur and pixels matters
    spot = np.exp(-((y - 0.6) ** 2 + x**2 / 2) / 2) * (1 + 0.3 * (x > 1))
    return Volume.from_array(100 + 50 * spot, voxel_size={"Y": 0.1, "X": 0.1}, name="bead")


def same(one: Operator, other: Operator, rng: np.random.Generator, shape: tuple[int, int]) -> bool:
    """Compare what two operators do to an image of noise, float64."""
    x = torch.from_numpy(rng.standard_normal((1, 1, *shape)))
    return torch.allclose(one.forward(x), other.forward(x), atol=1e-12)


def test_nothing_known_is_the_identity(image: Volume) -> None:
    assert isinstance(operator_for(image), Identity)


def test_a_bead_was_seen_through_the_pixels(image: Volume, bead: Volume, rng: np.random.Generator) -> None:
    blur = Blur(prepare(np.asarray(bead.data), background="border"))
    found = operator_for(image, psf=bead, finer=2)
    pixels = Downsample(2, reduce="mean")
    assert same(found, blur @ pixels, rng, (48, 40))
    # the other order is not the same: the check above would see it
    assert not same(found, pixels @ blur, rng, (48, 40))


def test_optics_act_before_the_pixels(image: Volume, rng: np.random.Generator) -> None:
    psf = computed_psf(image, OPTICS, finer=2)
    found = operator_for(image, optics=OPTICS, finer=2)
    assert same(found, Downsample(2, reduce="mean") @ Blur(psf), rng, (48, 40))


def test_a_computed_psf_keeps_its_tails(image: Volume, bead: Volume, rng: np.random.Generator) -> None:
    blur = Blur(prepare(np.asarray(bead.data), background=None))
    assert same(operator_for(image, psf=bead, psf_is="computed"), blur, rng, (24, 20))
    assert not same(operator_for(image, psf=bead), blur, rng, (24, 20))


def test_files_arrays_and_volumes_are_the_same(
    image: Volume, bead: Volume, tmp_path: Path, rng: np.random.Generator
) -> None:
    path = save_volume(tmp_path / "bead.ome.tif", bead)
    assert same(operator_for(image, psf=path), operator_for(image, psf=bead), rng, (24, 20))
    measured = rng.random((24, 20)) > 0.3
    mask = save_volume(tmp_path / "mask.tif", Volume.from_array(measured.astype(np.uint8)))
    expected = Mask(measured)
    for given in (mask, measured, Volume.from_array(measured)):
        assert same(operator_for(image, mask=given), expected, rng, (24, 20))
    assert not same(operator_for(image, mask=~measured), expected, rng, (24, 20))


def test_what_does_not_fit_is_refused(image: Volume, bead: Volume) -> None:
    with pytest.raises(ValueError, match="both give a PSF"):
        operator_for(image, psf=bead, optics=OPTICS)
    with pytest.raises(ValueError, match="numerical aperture"):
        operator_for(image, optics=Optics(wavelength=600))
    coarse = bead.replace(scale={"Y": 0.2, "X": 0.2})
    with pytest.raises(ValueError, match=r"bead has voxels of 0.2 µm along Y, cells of 0.1 µm"):
        operator_for(image, psf=coarse)
    with pytest.raises(ValueError, match="voxel size along Y, X is unknown"):
        operator_for(Volume.from_array(np.zeros((24, 20))), optics=OPTICS)


def test_each_channel_has_its_own_noise(rng: np.random.Generator) -> None:
    light = 20 * (1 + np.sin(np.linspace(0, 9, 96)))[:, None] * np.ones((8, 1, 96))
    counts = np.stack([100 + gain * rng.poisson(light) for gain in (2, 5)], axis=1).astype(np.uint16)
    volume = Volume.from_array(counts, "TCYX")
    gains = [float(np.median(model.gain)) for model in fit_channels(volume)]
    # 74 000 voxels per channel: the slope is known to about a percent; a tenth leaves room for the fit's own choices
    assert gains == pytest.approx([2, 5], rel=0.1)
    assert len(fit_channels(volume.channel(0))) == 1


def test_masks_of_every_time_point_become_holes(rng: np.random.Generator) -> None:
    """They differ from image to image, so they go into the volume as NaN; a single one stays an operator."""
    counts = rng.poisson(5, (3, 2, 8, 6)).astype(np.uint16)
    volume = Volume.from_array(counts, "TCYX", name="cells")
    measured = rng.random((3, 8, 6)) > 0.4
    mask = Volume.from_array(measured.astype(np.uint8), "TYX", name="scan")
    assert mask_of_each(mask)
    assert not mask_of_each(Volume.from_array(measured.astype(np.uint8), "ZYX"))
    holed = with_holes(volume, mask)
    values = np.asarray(holed.data)
    np.testing.assert_array_equal(np.isfinite(values), np.broadcast_to(measured[:, None], values.shape))
    np.testing.assert_array_equal(values[np.isfinite(values)], counts[np.isfinite(values)])
    assert holed.axes == volume.axes
    # the history tells masks apart, and does not depend on how the same one is stored
    assert holed.history[-1]["source"] == "scan"
    digests = [
        with_holes(volume, Volume.from_array(given, "TYX")).history[-1]["sha256"]
        for given in (measured, measured.astype(np.uint16) * 300, ~measured)
    ]
    assert digests[0] == digests[1] == holed.history[-1]["sha256"] != digests[2]
    with pytest.raises(ValueError, match="same size along T"):
        with_holes(volume, Volume.from_array(np.ones((2, 8, 6), np.uint8), "TYX"))
