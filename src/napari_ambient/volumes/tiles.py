"""Tiles that give the same voxels as the whole image.

Along each axis of n voxels the image is extended by reflection by a margin m and then up to a multiple of the
network's stride s: that *domain* [-m, N) is fixed by the volume alone. A tile has a core [a, b) that begins on the
stride's grid, and reads [a - h, b + h) cut to the domain. With a halo h at least the receptive field, what the
network adds at the tile's artificial edges never reaches the core, and at the domain's edges every tile sees what
the whole image sees. So a restored voxel does not depend on the tile's size, order or worker.

Planned here with integers only; `restoration.py` reads and restores.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Domain:
    """The extended image along its spatial axes.

    Parameters
    ----------
    shape : tuple of int
        Voxels per axis, (Z, Y, X).
    stride : tuple of int
        The network's total stride per axis.
    halo : tuple of int
        How far a tile reads beyond its core; a multiple of the stride, at least the receptive field.
    margin : tuple of int
        Reflected voxels at each end of the volume; a multiple of the stride.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    halo: tuple[int, ...]
    margin: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("halo", "margin"):
            for value, stride in zip(getattr(self, name), self.stride, strict=True):
                if value < 0 or value % stride:
                    raise ValueError(
                        f"{name} {getattr(self, name)} is not a multiple of the network's stride {self.stride}; "
                        "round it up"
                    )

    @property
    def start(self) -> tuple[int, ...]:
        """First coordinate of the domain (zero or negative)."""
        return tuple(-m for m in self.margin)

    @property
    def stop(self) -> tuple[int, ...]:
        """One past the domain's last coordinate."""
        return tuple(-(-(n + m) // s) * s for n, m, s in zip(self.shape, self.margin, self.stride, strict=True))

    def tile(self, core: Sequence[slice]) -> Tile:
        """Plan the tile for a core.

        Parameters
        ----------
        core : sequence of slice
            Voxels wanted, inside the volume; each start is snapped down to the stride's grid for reading.

        Returns
        -------
        Tile
        """
        read, inner = [], []
        for axis, part in enumerate(core):
            if not 0 <= part.start < part.stop <= self.shape[axis]:
                raise ValueError(f"core {tuple(core)} lies outside the volume {self.shape}")
            stride, halo = self.stride[axis], self.halo[axis]
            low = part.start // stride * stride - halo
            high = -(-part.stop // stride) * stride + halo
            low, high = max(low, self.start[axis]), min(high, self.stop[axis])
            read.append(slice(low, high))
            inner.append(slice(part.start - low, part.stop - low))
        return Tile(core=tuple(core), read=tuple(read), inner=tuple(inner), shape=self.shape)


@dataclass(frozen=True)
class Tile:
    """One piece of work: read, run the network, keep the inner part."""

    core: tuple[slice, ...]
    """Where the result belongs in the volume."""
    read: tuple[slice, ...]
    """What to read, in the domain's coordinates (may lie outside the volume: reflected)."""
    inner: tuple[slice, ...]
    """Where the core lies in what was read."""
    shape: tuple[int, ...]
    """The volume's spatial shape."""

    @property
    def voxels(self) -> int:
        """How many voxels are read."""
        return math.prod(part.stop - part.start for part in self.read)

    def sources(self) -> tuple[tuple[slice, ...], tuple[NDArray[np.intp], ...]]:
        """Say which voxels of the volume to read and how to spread them over the tile.

        Returns
        -------
        box : tuple of slice
            The smallest box of the volume that holds everything.
        indices : tuple of ndarray
            Per axis, for each voxel of the tile its index in the box.
        """
        box, indices = [], []
        for part, n in zip(self.read, self.shape, strict=True):
            index = reflect(np.arange(part.start, part.stop), n)
            low = int(index.min())
            box.append(slice(low, int(index.max()) + 1))
            indices.append(index - low)
        return tuple(box), tuple(indices)


def reflect(index: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """Fold any integer coordinate into [0, n) by reflection about the border voxels (… 2 1 0 1 2 …)."""
    if n == 1:
        return np.zeros_like(index)
    period = 2 * (n - 1)
    folded = np.mod(index, period)
    return np.where(folded < n, folded, period - folded)


def cores(shape: Sequence[int], tile: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Cut a volume into cores of at most `tile` voxels per axis, in C order."""
    ranges = [[slice(a, min(a + t, n)) for a in range(0, n, t)] for n, t in zip(shape, tile, strict=True)]
    yield from itertools.product(*ranges)


def split(core: Sequence[slice], stride: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Halve a core across its longest axis, on the stride's grid; None when it is as small as it gets."""
    sizes = [part.stop - part.start for part in core]
    for axis in sorted(range(len(sizes)), key=lambda a: -sizes[a] / stride[a]):
        step = stride[axis]
        middle = (core[axis].start + sizes[axis] // 2) // step * step
        if core[axis].start < middle < core[axis].stop:
            first, second = list(core), list(core)
            first[axis] = slice(core[axis].start, middle)
            second[axis] = slice(middle, core[axis].stop)
            return tuple(first), tuple(second)
    return None
