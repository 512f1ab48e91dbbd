"""Crops: repeatable, never from the held-out part, bounded in memory, every block seen in the end."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

from napari_ambient.volumes import Volume, VolumeError
from napari_ambient.volumes import patches as patches_module
from napari_ambient.volumes.patches import PatchStream


def numbered(shape: tuple[int, ...], axes: str) -> Volume:
    """Every voxel holds its own number, so that a crop tells where it came from."""
    return Volume.from_array(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), axes)


def test_crops_are_where_they_say() -> None:
    """Values, place and turn agree."""
    volume = numbered((3, 2, 40, 50), "TCYX")
    stream = PatchStream([volume], patch=(1, 16, 16))
    data = volume.data.compute()
    for crop in stream.crops(5, 32):
        p = crop.place
        np.testing.assert_array_equal(crop.values[0], data[p.time, p.channel, p.y, p.x])
        turned = crop.turned(crop.values)
        assert sorted(turned.ravel()) == sorted(crop.values.ravel())
        expected = np.rot90(crop.values, crop.turn % 4, (-2, -1))
        np.testing.assert_array_equal(turned, expected[..., ::-1] if crop.turn >= 4 else expected)


def test_draws_depend_on_seed_step_and_rank_only() -> None:
    """The same step gives the same crops, whatever was drawn before; other steps, seeds and ranks do not."""
    volume = numbered((4, 64, 64), "TYX")

    def draw(seed: int, step: int, rank: int = 0) -> list[np.ndarray]:
        return [c.values for c in PatchStream([volume], patch=(1, 16, 16), seed=seed).crops(step, 4, rank)]

    stream = PatchStream([volume], patch=(1, 16, 16), seed=1)
    for step in range(7):
        stream.crops(step, 3)
    np.testing.assert_array_equal([c.values for c in stream.crops(7, 4)], draw(1, 7))
    for other in (draw(1, 8), draw(2, 7), draw(1, 7, 1)):
        assert not np.array_equal(other, draw(1, 7))


@pytest.mark.parametrize("count", [1, 6])
def test_held_out_is_never_trained_on(count: int) -> None:
    """By region for few stacks, by whole stacks for many: no voxel is in both."""
    volumes = [numbered((2, 48, 80), "TYX") for _ in range(count)]
    stream = PatchStream(volumes, patch=(1, 16, 16), held_out=0.2)

    def voxels(crops: list[patches_module.Crop]) -> set[tuple[int, float]]:
        return {(c.place.volume, float(v)) for c in crops for v in c.values.ravel()}

    trained = voxels([c for step in range(60) for c in stream.crops(step, 8)])
    held = voxels(stream.validation_crops(64))
    assert held
    assert not trained & held
    if count == 1:
        assert len(trained) > 0.9 * 2 * 48 * 64  # everything else is reached
    else:
        assert len({v for v, _ in held}) == 1
    assert [c.place for c in stream.validation_crops(8)] == [c.place for c in stream.validation_crops(8)]


def test_memory_is_bounded_and_every_block_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for four blocks of twelve, few are read per step, and all are read in the end."""
    monkeypatch.setattr(patches_module, "BLOCK_VOXELS", 32 * 32)
    reads: list[tuple[slice, ...]] = []

    def block(block_info: dict | None = None) -> np.ndarray:
        location = block_info[None]["array-location"]  # type: ignore[index]
        reads.append(location)
        return np.zeros([b - a for a, b in location], np.float32)

    chunks = ((1,) * 12, (32,), (32,))
    data = da.map_blocks(block, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    stream = PatchStream([Volume.from_array(data, "TYX")], patch=(1, 16, 16), held_out=0, memory=4 * 32 * 32 * 4)
    assert stream.slots == 4
    seen = set()
    for step in range(0, 1600):
        seen |= {c.place.time for c in stream.crops(step, 2)}
    assert seen == set(range(12))
    assert len(reads) < 60
    assert len(stream._cache) <= 8
    # a stream that begins in the middle draws the same
    late = PatchStream([Volume.from_array(data, "TYX")], patch=(1, 16, 16), held_out=0, memory=4 * 32 * 32 * 4)
    assert [c.place for c in late.crops(1234, 8)] == [c.place for c in stream.crops(1234, 8)]


def test_large_planes_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No block is larger than the limit by more than its shape forces, and every voxel can be drawn."""
    monkeypatch.setattr(patches_module, "BLOCK_VOXELS", 4096)
    stream = PatchStream([numbered((1, 200, 300), "ZYX")], patch=(1, 16, 16), held_out=0)
    assert len(stream._training) > 10
    covered = np.zeros((200, 300), bool)
    for b in stream._training:
        covered[b.place.y, b.place.x] = True
    assert covered.all()


def test_partners() -> None:
    """Repeats come from another time point of the same place; targets from the clean volume."""
    volume = numbered((3, 40, 40), "TYX")
    data = volume.data.compute()
    for crop in PatchStream([volume], patch=(1, 16, 16), partner="time").crops(0, 16):
        assert crop.partner is not None
        difference = np.unique(crop.partner - crop.values)
        assert len(difference) == 1
        assert difference[0] % 1600 == 0
        assert difference[0] != 0
    target = volume.replace(data=volume.data + 0.5)
    for crop in PatchStream([volume], patch=(1, 16, 16), partner="target", targets=[target]).crops(0, 8):
        assert crop.partner is not None
        p = crop.place
        np.testing.assert_array_equal(crop.partner[0], data[p.time, p.y, p.x] + 0.5)


def test_what_cannot_be_trained_on_is_refused() -> None:
    """Too small, no repeats, no targets, targets of another shape."""
    small = numbered((2, 12, 40), "TYX")
    with pytest.raises(VolumeError, match="12 voxels along Y, fewer than the patch's 16"):
        PatchStream([small], patch=(1, 16, 16))
    flat = numbered((40, 40), "YX")
    with pytest.raises(VolumeError, match="axis T of at least 2 exposures"):
        PatchStream([flat], patch=(1, 16, 16), partner="time")
    with pytest.raises(VolumeError, match="one clean target for each"):
        PatchStream([flat], patch=(1, 16, 16), partner="target")
    with pytest.raises(VolumeError, match="they must be the same"):
        PatchStream([flat], patch=(1, 16, 16), partner="target", targets=[small])
    with pytest.raises(VolumeError, match="no volume was given"):
        PatchStream([], patch=(1, 16, 16))
