"""Operators of turned crops: each crop is measured at its own place, in its own orientation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_ambient.networks.turns import turned
from napari_ambient.objectives.views import Views, view_of
from napari_ambient.operators import Blur, Downsample, Mask, Operator, OperatorError

RNG = np.random.default_rng(0)


def lopsided() -> Blur:
    """Make a PSF without any symmetry."""
    psf = RNG.random((5, 5))
    return Blur(psf / psf.sum())


@pytest.mark.parametrize(
    "operator",
    [
        lopsided(),
        Mask(RNG.random((48, 40)) < 0.5),
        Mask(RNG.random((48, 40)) < 0.5) @ lopsided(),
        Downsample(2),
        Downsample(2) @ lopsided(),
    ],
    ids=["blur", "mask", "mask blur", "coarse", "coarse blur"],
)
def test_crops_see_what_the_whole_image_shows(operator: Operator) -> None:
    """Inside the halo, the expected counts of every turned crop are those of the whole image at its place."""
    light = torch.rand((1, 1, 1, *operator.input_shape((48, 40))), dtype=torch.float64)
    seen = operator.forward(light)
    step = operator.stride[-1]
    places = [(0, 8), (16, 0), (32, 24), (8, 8)]
    views, crops, wanted = [], [], []
    for turn, (y, x) in zip((0, 3, 5, 6), places, strict=True):
        place = (slice(0, 1), slice(y, y + 16), slice(x, x + 16))
        views.append(view_of(operator, (1, 48, 40), place, turn))
        fine = light[0, 0, :, y * step : (y + 16) * step, x * step : (x + 16) * step]
        crops.append(turned(fine, turn))
        wanted.append(turned(seen[0, 0, :, y : y + 16, x : x + 16], turn))
    batch = Views(views, operator.stride)
    got = batch.expected(torch.stack(crops))
    inner = batch.inner(got)
    target = torch.stack(wanted)
    torch.testing.assert_close(got[inner], target[inner], rtol=0, atol=1e-9)
    # sides that are sides of the image need no margin; others do
    assert inner[0].any(-1).all() == (operator.halo[1] == 0)
    if operator.halo[1]:
        assert not torch.allclose(got[~inner], target[~inner])
    # the adjoint, on the same crops
    v = torch.randn(got.shape, dtype=torch.float64)
    x = torch.randn(len(views), *crops[0].shape, dtype=torch.float64)
    assert float((batch.expected(x) * v).sum()) == pytest.approx(float((x * batch.adjoint(v)).sum()), abs=1e-8)


def test_volumes_and_neighbouring_planes() -> None:
    """3D crops go through 3D operators; the planes that a 2D network sees together through the mask's planes."""
    mask = Mask(RNG.random((6, 16, 16)) < 0.5)
    place = (slice(2, 5), slice(0, 16), slice(0, 16))
    views = Views([view_of(mask, (6, 16, 16), place, 1)], mask.stride)
    planes, volume = torch.ones(1, 3, 16, 16), torch.ones(1, 1, 3, 16, 16)
    wanted = turned(torch.from_numpy(mask.map[2:5].astype(np.float32)), 1)
    assert torch.equal(views.expected(planes)[0], wanted)
    assert torch.equal(views.expected(volume)[0, 0], wanted)


def test_crops_smaller_than_the_operator_reaches() -> None:
    """Nothing could be learned from them, and the message says so."""
    with pytest.raises(OperatorError, match="no voxel of a crop"):
        view_of(lopsided(), (1, 48, 48), (slice(0, 1), slice(8, 14), slice(8, 14)), 0)
