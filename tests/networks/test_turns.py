"""Flips and quarter turns: the patch stream's own, undone exactly, and averages over groups of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_ambient.networks.turns import GROUPS, turned, unturned
from napari_ambient.volumes.patches import Crop, Place


@pytest.mark.parametrize("turn", range(8))
def test_turns_are_those_of_the_crops(turn: int) -> None:
    """The same flips and quarter turns as the patch stream's, and undone again."""
    image = torch.randn(2, 6, 6)
    place = Place(0, 0, 0, slice(0, 1), slice(0, 6), slice(0, 6))
    crop = Crop(image.numpy(), None, place, turn)
    np.testing.assert_array_equal(turned(image, turn).numpy(), crop.turned(image.numpy()))
    assert torch.equal(unturned(turned(image, turn), turn), image)


@pytest.mark.parametrize("count", GROUPS)
def test_they_are_groups(count: int) -> None:
    """As many different turns as named, and two of them one after the other are a third."""
    image = torch.arange(36.0).reshape(6, 6)
    images = [turned(image, turn) for turn in GROUPS[count]]
    assert len({tuple(i.flatten().tolist()) for i in images}) == count
    for one in images:
        for turn in GROUPS[count]:
            assert any(torch.equal(turned(one, turn), other) for other in images)


def test_four_turns_keep_the_sides_apart() -> None:
    """Up to four never exchange Y and X, whose voxels may differ in size."""
    image = torch.rand(4, 6)
    assert {turned(image, turn).shape for turn in GROUPS[4]} == {image.shape}
    assert turned(image, 1).shape == (6, 4)
