"""Random training crops, streamed from lazy volumes.

A stack is cut into blocks of at most a few megabytes. When all blocks fit into the memory allowance they are read
once; otherwise a working set of them is held, and each slot of the set is refilled in its turn, so that over a long
training every block is seen and memory never grows with the data. What is drawn at a step depends on (seed, step,
rank) alone: a resumed training sees the same crops as one that was never interrupted.

Held-out crops come from whole stacks, or where there are few stacks from a strip of each at the end of its longest
axis, and are never trained on.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import VolumeError
from .volume import Volume

BLOCK_VOXELS = 2**21  # about one 1448² plane: 8 MB as float32


@dataclass(frozen=True)
class Place:
    """Where a crop was taken: volume, time point, channel and the slices of Z, Y and X."""

    volume: int
    time: int
    channel: int
    z: slice
    y: slice
    x: slice


@dataclass(frozen=True)
class Crop:
    """One training crop.

    Parameters
    ----------
    values : ndarray, shape (Z, Y, X), float32
        Camera counts.
    partner : ndarray or None
        The same voxels of another time point (repeats) or of the clean target; shape of `values`.
    place : Place
        Where it was taken.
    turn : int
        0 to 7: quarter turns (turn % 4), then a flip along X (turn >= 4); `turned` applies it.
    """

    values: NDArray[np.float32]
    partner: NDArray[np.float32] | None
    place: Place
    turn: int

    def turned(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Apply this crop's flips and quarter turns to an array whose last axes are (Y, X)."""
        out = np.rot90(array, self.turn % 4, axes=(-2, -1))
        return np.ascontiguousarray(out[..., ::-1] if self.turn >= 4 else out)


@dataclass(frozen=True)
class _Block:
    place: Place
    weight: float


class PatchStream:
    """Draw crops from one or several volumes.

    Parameters
    ----------
    volumes : sequence of Volume
        Lazy stacks; T and Z (unless `patch` has depth) and C are loops over images.
    patch : tuple of int
        Crop size (Z, Y, X); Z is 1 for a 2D network, the number of slices for 2.5D.
    partner : {"none", "time", "target"}
        What comes with each crop: nothing, another time point of the same place, or the clean target.
    targets : sequence of Volume, optional
        Clean volumes for ``partner="target"``, shaped as `volumes`.
    held_out : float
        Share of the data kept for validation, 0 to 0.5.
    seed : int
        Seed of everything drawn.
    memory : int
        Bytes that may be held as float32 blocks.
    square : bool
        Whether quarter turns are allowed (equal voxel sizes along Y and X, square crops).

    Raises
    ------
    VolumeError
        If a volume is smaller than the patch, or the volumes do not fit together.
    """

    def __init__(
        self,
        volumes: Sequence[Volume],
        *,
        patch: tuple[int, int, int],
        partner: str = "none",
        targets: Sequence[Volume] | None = None,
        held_out: float = 0.1,
        seed: int = 0,
        memory: int = 512 * 2**20,
        square: bool = True,
    ) -> None:
        if not volumes:
            raise VolumeError("no volume was given; training needs at least one stack")
        self.patch, self.partner, self.seed = patch, partner, seed
        self.square = square and patch[1] == patch[2]
        self._volumes = list(volumes)
        self._targets = list(targets) if targets is not None else None
        if partner == "target":
            if self._targets is None or len(self._targets) != len(self._volumes):
                raise VolumeError("supervised training needs one clean target for each volume")
            for volume, target in zip(self._volumes, self._targets, strict=True):
                if volume.shape != target.shape or volume.axes != target.axes:
                    raise VolumeError(
                        f"the target has axes {target.axes} {target.shape}, the volume {volume.axes} "
                        f"{volume.shape}; they must be the same"
                    )
        for volume in self._volumes:
            self._check(volume)
        training, validation = self._divide(held_out)
        self._training = [b for place in training for b in self._blocks(place)]
        self._validation = [b for place in validation for b in self._blocks(place)]
        per_block = 4 * max(_voxels(b.place) for b in self._training) * (1 if partner == "none" else 2)
        self.slots = min(len(self._training), max(4, memory // per_block))
        self._cache: OrderedDict[tuple[object, ...], NDArray[np.float32]] = OrderedDict()
        self._room = 2 * self.slots + 4 if partner != "none" else self.slots + 4

    @property
    def has_validation(self) -> bool:
        """Whether anything could be held out."""
        return bool(self._validation)

    @property
    def voxels(self) -> int:
        """Voxels that can be trained on."""
        return sum(_voxels(b.place) for b in self._training)

    def crops(self, step: int, count: int, rank: int = 0) -> list[Crop]:
        """Draw the crops of one training step."""
        rng = np.random.default_rng([self.seed, 1, step, rank])
        blocks = [self._training[i] for i in self._working_set(step)]
        weights = np.array([b.weight for b in blocks])
        chosen = rng.choice(len(blocks), size=count, p=weights / weights.sum())
        return [self._crop(blocks[i], rng) for i in chosen]

    def validation_crops(self, count: int) -> list[Crop]:
        """Draw the held-out crops: always the same ones."""
        if not self._validation:
            return []
        rng = np.random.default_rng([self.seed, 2])
        weights = np.array([b.weight for b in self._validation])
        chosen = rng.choice(len(self._validation), size=count, p=weights / weights.sum())
        return [self._crop(self._validation[i], rng) for i in sorted(chosen)]

    def _check(self, volume: Volume) -> None:
        sizes = dict(zip(volume.axes, volume.shape, strict=True))
        for axis, wanted in zip("ZYX", self.patch, strict=True):
            have = sizes.get(axis, 1)
            if have < wanted:
                raise VolumeError(
                    f"{volume.name or 'the volume'} has {have} voxels along {axis}, fewer than the patch's {wanted}; "
                    f"choose a patch of at most {have} along {axis}"
                )
        if self.partner == "time" and sizes.get("T", 1) < 2:
            raise VolumeError(
                f"{volume.name or 'the volume'} has axes {volume.axes} {volume.shape}; training on repeats needs an "
                "axis T of at least 2 exposures of the same field"
            )

    def _divide(self, held_out: float) -> tuple[list[Place], list[Place]]:
        """Divide into whole images to train on and to hold out."""
        places = []
        for v, volume in enumerate(self._volumes):
            sizes = dict(zip(volume.axes, volume.shape, strict=True))
            z, y, x = (slice(0, sizes.get(axis, 1)) for axis in "ZYX")
            for c in range(sizes.get("C", 1)):
                for t in range(sizes.get("T", 1)):
                    places.append(Place(v, t, c, z, y, x))
        if held_out <= 0:
            return places, []
        if len(self._volumes) >= 5:
            rng = np.random.default_rng([self.seed, 3])
            count = max(1, round(held_out * len(self._volumes)))
            out = set(rng.choice(len(self._volumes), size=count, replace=False).tolist())
            return [p for p in places if p.volume not in out], [p for p in places if p.volume in out]
        training, validation = [], []
        for place in places:
            parts = {"z": place.z, "y": place.y, "x": place.x}
            # a strip along the axis with the most room; both sides must still hold a patch
            axis = max("zyx", key=lambda a: parts[a].stop / self.patch["zyx".index(a)])
            size, need = parts[axis].stop, self.patch["zyx".index(axis)]
            strip = max(need, round(held_out * size))
            if size - strip < need:
                training.append(place)
                continue
            training.append(Place(**{**place.__dict__, axis: slice(0, size - strip)}))
            validation.append(Place(**{**place.__dict__, axis: slice(size - strip, size)}))
        return training, validation

    def _blocks(self, place: Place) -> list[_Block]:
        """Cut an image into blocks that each hold a patch."""
        sizes = [s.stop - s.start for s in (place.z, place.y, place.x)]
        limit = list(sizes)
        while math.prod(limit) > BLOCK_VOXELS:
            ratio = [n / p for n, p in zip(limit, self.patch, strict=True)]
            axis = int(np.argmax(ratio))
            if ratio[axis] < 4:
                break
            limit[axis] = -(-limit[axis] // 2)
        ranges = []
        for part, size, n, need in zip((place.z, place.y, place.x), limit, sizes, self.patch, strict=True):
            starts = range(0, n, size)
            ranges.append(
                [
                    # a last block too thin for a patch reaches back into its neighbour
                    slice(part.start + min(a, n - need), part.start + min(a + size, n))
                    for a in starts
                ]
            )
        blocks = []
        for z in ranges[0]:
            for y in ranges[1]:
                for x in ranges[2]:
                    where = Place(place.volume, place.time, place.channel, z, y, x)
                    positions = math.prod(s.stop - s.start - p + 1 for s, p in zip((z, y, x), self.patch, strict=True))
                    blocks.append(_Block(where, float(positions)))
        return blocks

    def _working_set(self, step: int) -> list[int]:
        total = len(self._training)
        if self.slots == total:
            return list(range(total))
        period = 50 * self.slots  # steps until every slot has been refilled once: one block read per 50 steps
        chosen = []
        for slot in range(self.slots):
            round_ = (step + 50 * slot) // period
            order = _permutation(self.seed, total, round_ * self.slots // total)
            chosen.append(int(order[(round_ * self.slots + slot) % total]))
        return sorted(set(chosen))

    def _crop(self, block: _Block, rng: np.random.Generator) -> Crop:
        place = block.place
        values = self._read(place, target=False)
        starts = [rng.integers(n - p + 1) for n, p in zip(values.shape, self.patch, strict=True)]
        cut = tuple(slice(int(a), int(a) + p) for a, p in zip(starts, self.patch, strict=True))
        turn = int(rng.integers(8)) if self.square else int(rng.choice([0, 2, 4, 6]))
        partner = None
        if self.partner == "time":
            sizes = dict(zip(self._volumes[place.volume].axes, self._volumes[place.volume].shape, strict=True))
            other = (place.time + int(rng.integers(1, sizes["T"]))) % sizes["T"]
            partner = self._read(Place(**{**place.__dict__, "time": other}), target=False)[cut]
        elif self.partner == "target":
            partner = self._read(place, target=True)[cut]
        origin = (place.z.start, place.y.start, place.x.start)
        z, y, x = (slice(o + c.start, o + c.stop) for o, c in zip(origin, cut, strict=True))
        where = Place(place.volume, place.time, place.channel, z, y, x)
        return Crop(values[cut], partner, where, turn)

    def _read(self, place: Place, *, target: bool) -> NDArray[np.float32]:
        spans = tuple((s.start, s.stop) for s in (place.z, place.y, place.x))
        key = (target, place.volume, place.time, place.channel, spans)
        found = self._cache.get(key)
        if found is None:
            source = self._targets if target else self._volumes
            assert source is not None
            found = read_region(source[place.volume], place)
            self._cache[key] = found
            while len(self._cache) > self._room:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(key)
        return found


def read_region(volume: Volume, place: Place) -> NDArray[np.float32]:
    """Read one region of one time point and channel as a float32 array (Z, Y, X)."""
    where: dict[str, int | slice] = {
        **{"T": place.time, "C": place.channel},
        **{"Z": place.z, "Y": place.y, "X": place.x},
    }
    index = tuple(where[axis] for axis in volume.axes)
    values = np.asarray(volume.data[index].compute(scheduler="synchronous"), dtype=np.float32)
    return values if values.ndim == 3 else values[None]


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, total: int, epoch: int) -> NDArray[np.intp]:
    return np.random.default_rng([seed, 4, epoch]).permutation(total)


def _voxels(place: Place) -> int:
    return math.prod(s.stop - s.start for s in (place.z, place.y, place.x))
