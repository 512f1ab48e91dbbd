"""A sheet of new images beside crops of the training data, at the same size and the same contrast.

Cell i of a block of c columns has its first voxel at ((i // c)·(h + g), (i mod c)·(w + g)), with cells of h × w voxels
and gaps of g. The blocks stand side by side. What lies between the cells, and what a cell is wider than its image, is
NaN: no voxel is invented. `Prior.iter_sample` gives the new images, `training_crops` the others, of the structures
before the operator where the prior was trained through one; the sheet only places them, one by one as they come. In the
flow this stands beside the memorisation audit (`prior_audit.py`): the eye's test first, the statistics' after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .volumes import Volume, VolumeError

if TYPE_CHECKING:
    from .operators import Operator
    from .prior import Prior

Shown = Literal["denoised", "raw"]
TILE = (8, 256, 256)  # of the restoration behind a crop, voxels: small, since only one crop of it is kept
LOW, HIGH = 0.5, 99.8  # percentiles between which both sides are shown


@dataclass(frozen=True)
class Block:
    """Cells of one size in rows and columns.

    Parameters
    ----------
    count : int
        How many images.
    cell : tuple of int
        Size of an image, ([Z,] Y, X), voxels.
    columns : int
        Images per row.
    gap : int
        Voxels between the cells.
    """

    count: int
    cell: tuple[int, ...]
    columns: int
    gap: int

    @property
    def rows(self) -> int:
        """Rows that the images fill."""
        return math.ceil(self.count / self.columns)

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels of the whole block, ([Z,] Y, X)."""
        height, width = self.cell[-2:]
        return (
            *self.cell[:-2],
            self.rows * (height + self.gap) - self.gap,
            self.columns * (width + self.gap) - self.gap,
        )

    def empty(self) -> NDArray[np.float32]:
        """Give the block without its images: all NaN."""
        return np.full(self.shape, np.nan, dtype=np.float32)

    def corner(self, index: int) -> tuple[int, int]:
        """Give the first voxel (Y, X) of a cell."""
        if not 0 <= index < self.count:
            raise IndexError(f"cell {index} of {self.count}")
        row, column = divmod(index, self.columns)
        return row * (self.cell[-2] + self.gap), column * (self.cell[-1] + self.gap)

    def place(self, block: NDArray[np.float32], index: int, image: NDArray[Any]) -> None:
        """Put an image, at most as large as a cell, into its cell.

        Parameters
        ----------
        block : ndarray of float32, shape `shape`
            Filled in place.
        index : int
            Which cell.
        image : ndarray
            Of as many dimensions as a cell; a smaller one keeps the first voxels of the cell.
        """
        if image.ndim != len(self.cell) or any(n > m for n, m in zip(image.shape, self.cell, strict=True)):
            raise ValueError(f"an image of {image.shape} does not fit into a cell of {self.cell} voxels")
        y, x = self.corner(index)
        lead = tuple(slice(0, n) for n in image.shape[:-2])
        block[(*lead, slice(y, y + image.shape[-2]), slice(x, x + image.shape[-1]))] = image


def lay_out(count: int, cell: Sequence[int], *, gap: int | None = None) -> Block:
    """Choose rows and columns so that two such blocks side by side are about as high as wide.

    Parameters
    ----------
    count : int
        Images, 1 or more.
    cell : sequence of int
        Size of an image, ([Z,] Y, X), voxels.
    gap : int, optional
        Voxels between the images; a thirty-second of their width if left out.

    Returns
    -------
    Block
    """
    size = tuple(int(n) for n in cell)
    if count < 1 or len(size) not in (2, 3) or min(size) < 1:
        raise ValueError(f"count is {count} and cell {size}; give one image or more, of (Y, X) or (Z, Y, X) voxels")
    columns = max(1, round(math.sqrt(count / 1.5 * size[-2] / size[-1])))
    return Block(count, size, min(columns, count), max(1, size[-1] // 32) if gap is None else gap)


def cell_shape(prior: Prior, size: int, depth: int = 16) -> tuple[int, ...]:
    """Give the shape of a new image: planes for priors of planes, stacks for priors of stacks.

    Parameters
    ----------
    prior : Prior
        The prior.
    size : int
        Voxels along Y and X.
    depth : int
        Voxels along Z, for 3D priors.
    """
    return (depth, size, size) if prior.denoiser.arguments.dims == 3 else (size, size)


def training_crops(
    volumes: Sequence[Volume],
    prior: Prior,
    shape: Sequence[int],
    *,
    count: int,
    shown: Shown = "denoised",
    operator: Operator | None = None,
    channel: int = 0,
    seed: int = 0,
    device: Any = None,
    watch: Callable[[], object] | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Cut crops from random places of the training volumes, one after another.

    Parameters
    ----------
    volumes : sequence of Volume
        What the prior was trained on; volumes are drawn in proportion to their voxels.
    prior : Prior
        Restores the crops by its own means (`prior_audit.own_means`).
    shape : sequence of int
        (Y, X) or (Z, Y, X), voxels. Where a volume is smaller, so is the crop.
    count : int
        How many.
    shown : {"denoised", "raw"}
        Restored by the prior, or as measured.
    operator : Operator, optional
        What the microscope did to the light, for priors that were trained through it; crops "denoised" are then of
        what was before it, on the clean grid.
    channel : int
        Image channel.
    seed : int
        Of the places.
    device : torch.device or str, optional
        Where to denoise.
    watch : callable, optional
        Called before every crop; what it raises ends it.

    Yields
    ------
    ndarray of float32
        In the units of the volumes.

    Raises
    ------
    VolumeError
        If there is no volume, or (3D) one without Z.
    RestorationError
        If crops are to be restored and the prior was trained through another operator than is given.
    """
    from .prior_audit import own_means

    if not volumes:
        raise VolumeError("no training data to cut crops from; choose the layer or the files the prior was trained on")
    solid = len(shape) == 3
    sources = [volume.channel(channel) if "C" in volume.axes else volume for volume in volumes]
    for volume in sources:
        if solid and "Z" not in volume.axes:
            raise VolumeError(f"{volume.name} has axes {volume.axes}, the prior is 3D: choose stacks with a Z axis")
    measured = sources
    by_parts = shown == "denoised" and operator is not None and operator.stride == (1, 1, 1)
    if shown == "denoised":
        alone = prior.channel(channel) if len(prior.noise) > 1 else prior
        sources = [own_means(volume, alone, operator, tile=TILE, device=device) for volume in measured]
    share = np.array([math.prod(volume.shape) for volume in sources], dtype=np.float64)
    rng = np.random.default_rng([seed, 2])
    for _ in range(count):
        if watch is not None:
            watch()
        index = int(rng.choice(len(sources), p=share / share.sum()))
        volume = sources[index]
        box = _random_box(volume, shape, rng)
        if by_parts:  # behind an operator an image is restored whole, which one crop of it need not wait for
            spans = [span if isinstance(span, slice) else slice(span, span + 1) for span in box]
            part = dict(zip(volume.axes, spans, strict=True))
            volume = own_means(measured[index], alone, operator, part=part, tile=TILE, device=device)
            box = tuple(slice(None) if isinstance(span, slice) else 0 for span in box)
        crop = np.asarray(volume.data[box].compute(scheduler="synchronous"), dtype=np.float32)
        yield crop[None] if solid and crop.ndim == 2 else crop


def contrast(images: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Give the limits between which all the images are shown: percentiles 0.5 and 99.8 of all their voxels.

    Parameters
    ----------
    images : sequence of ndarray
        NaN voxels are left out.

    Returns
    -------
    (float, float)
        Low and high, never equal.
    """
    seen = np.concatenate([np.asarray(image)[np.isfinite(image)].ravel() for image in images])
    if not seen.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(seen, (LOW, HIGH)))
    return (low, high) if high > low else (low, low + 1.0)


def _random_box(volume: Volume, shape: Sequence[int], rng: np.random.Generator) -> tuple[slice | int, ...]:
    wanted = dict(zip("ZYX"[-len(shape) :], shape, strict=True))
    box: list[slice | int] = []
    for axis, size in volume.sizes.items():
        if axis in wanted:
            extent = min(int(wanted[axis]), size)
            start = int(rng.integers(size - extent + 1))
            box.append(slice(start, start + extent))
        else:
            box.append(int(rng.integers(size)))
    return tuple(box)
