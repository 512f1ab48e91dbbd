"""Tiles: every core is covered once, and a local operator gives the same result through any tiling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from napari_ambient.volumes.tiles import Domain, cores, reflect, split


def test_reflection_agrees_with_numpy() -> None:
    """Any coordinate folds back as `numpy.pad(mode="reflect")` does, also farther than the array is long."""
    for n in (1, 2, 3, 7):
        padded = np.pad(np.arange(n), 20, mode="reflect")
        np.testing.assert_array_equal(reflect(np.arange(-20, n + 20), n), padded)


@pytest.mark.parametrize("tile", [(4, 8, 8), (1, 13, 64), (9, 64, 5), (99, 99, 99)])
def test_tiles_agree_with_the_whole(tile: tuple[int, int, int], rng: np.random.Generator) -> None:
    """A filter of the halo's reach, with its own zero padding at the tiles' edges, does not see the tiling."""
    image = rng.normal(size=(9, 45, 37))
    domain = Domain(image.shape, stride=(1, 4, 4), halo=(2, 8, 8), margin=(2, 8, 8))

    def filtered(core: tuple[slice, ...]) -> np.ndarray:
        piece = domain.tile(core)
        box, indices = piece.sources()
        read = image[box][np.ix_(*indices)]
        # a grid of stride 4, as pooling gives, and zeros beyond the edge, as convolutions pad
        pooled = ndimage.uniform_filter(read, (3, 3, 3), mode="constant")
        pooled = ndimage.uniform_filter(pooled[:, ::4, ::4], (3, 3, 3), mode="constant")
        return np.repeat(np.repeat(pooled, 4, 1), 4, 2)[piece.inner]

    whole = filtered(tuple(slice(0, n) for n in image.shape))
    assembled = np.full(image.shape, np.nan)
    for core in cores(image.shape, tile):
        assert np.isnan(assembled[core]).all()  # each voxel once
        assembled[core] = filtered(core)
    np.testing.assert_allclose(assembled, whole, rtol=0, atol=1e-12)
    # negative control: with half the halo the seams show
    small = Domain(image.shape, stride=(1, 4, 4), halo=(0, 0, 0), margin=(2, 8, 8))
    if tile != (99, 99, 99):
        domain = small
        seams = [np.abs(filtered(core) - whole[core]).max() for core in cores(image.shape, tile)]
        assert max(seams) > 1e-3


def test_split_keeps_the_grid() -> None:
    """Halves meet on the stride's grid; a core of one cell is not split."""
    core = (slice(0, 5), slice(8, 40), slice(3, 20))
    first, second = split(core, (1, 8, 8)) or ((), ())
    assert first[0] == slice(0, 2)
    assert second[0] == slice(2, 5)
    assert split((slice(0, 1), slice(0, 8), slice(0, 8)), (1, 8, 8)) is None
    halves = split((slice(0, 1), slice(8, 40), slice(0, 8)), (1, 8, 8))
    assert halves is not None
    assert halves[0][1] == slice(8, 24)


def test_what_cannot_be_tiled_is_refused() -> None:
    """A halo off the grid, and a core outside the volume."""
    with pytest.raises(ValueError, match="multiple of the network's stride"):
        Domain((8, 8), (4, 4), (6, 4), (4, 4))
    with pytest.raises(ValueError, match="outside the volume"):
        Domain((8, 8), (4, 4), (4, 4), (4, 4)).tile((slice(0, 9), slice(0, 8)))
