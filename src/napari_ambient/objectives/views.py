"""How the crops of a batch were measured: the operator of each crop's own place, in the crop's own orientation.

A crop of the measurement shows light from beyond its sides, which a network that sees the crop alone cannot know. So
the light of the crop is put through A, cut to the crop's place, and only voxels farther than A's halo from those sides
that are not sides of the volume are compared with what was counted (`inner`). Crops are flipped and turned for
training; A is not (a PSF need not be symmetric), so the light is turned back before it and its answer forth again.

    expected counts = T A T⁻¹ light,        T the crop's flips and quarter turns
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from napari_ambient.networks.turns import turned, unturned
from napari_ambient.operators import Operator, OperatorError


@dataclass(frozen=True)
class View:
    """How one crop was measured.

    Parameters
    ----------
    operator : Operator
        A, cut to the crop's place.
    turn : int
        0 to 7, as in `volumes.patches.Crop`: quarter turns (turn % 4), then a flip along X (turn >= 4).
    inner : tuple of slice
        (Z, Y, X) measured voxels whose light all comes from the crop, before it is turned.
    """

    operator: Operator
    turn: int
    inner: tuple[slice, slice, slice]


class Views:
    """How the crops of a batch were measured.

    Parameters
    ----------
    parts : sequence of View
        One per crop.
    stride : tuple of int
        (Z, Y, X) voxels of the clean image per measured one.
    """

    def __init__(self, parts: Sequence[View], stride: tuple[int, int, int]) -> None:
        self.parts, self.stride = tuple(parts), stride

    def __len__(self) -> int:
        return len(self.parts)

    def part(self, which: slice) -> Views:
        """Give some of the crops."""
        return Views(self.parts[which], self.stride)

    def expected(self, light: Tensor) -> Tensor:
        """Compute what the camera expects to count of each crop.

        Parameters
        ----------
        light : Tensor, shape (B, C, [Z,] Y, X)
            Light of every voxel of the clean crops, photo-electrons.

        Returns
        -------
        Tensor, shape (B, C, [Z,] Y, X)
            A of it, on the measured voxels; autograd runs through.
        """
        if len(light) != len(self.parts):
            raise ValueError(f"{len(light)} crops and {len(self.parts)} operators; there must be one for each")
        return self._each(light, Operator.forward.__name__)

    def adjoint(self, counts: Tensor) -> Tensor:
        """Apply Aᵀ to measured crops (B, C, [Z,] Y, X); undoes the shape of `expected`."""
        return self._each(counts, Operator.adjoint.__name__)

    def _each(self, images: Tensor, method: str) -> Tensor:
        native = [unturned(image, view.turn) for image, view in zip(images, self.parts, strict=True)]
        alike = all(view.operator is self.parts[0].operator for view in self.parts)
        if alike and len({image.shape for image in native}) == 1:
            seen = list(_apply(self.parts[0].operator, method, torch.stack(native)))
        else:
            seen = [_apply(v.operator, method, image[None])[0] for v, image in zip(self.parts, native, strict=True)]
        return torch.stack([turned(image, view.turn) for image, view in zip(seen, self.parts, strict=True)])

    def inner(self, counts: Tensor) -> Tensor:
        """Say which of the measured voxels (shape of `counts`) saw light from the crop alone."""
        result = torch.zeros(counts.shape, dtype=torch.bool, device=counts.device)
        for image, view in zip(result, self.parts, strict=True):
            native = unturned(torch.zeros_like(image), view.turn)
            native[(..., *view.inner) if native.ndim == 4 else (..., *view.inner[1:])] = True
            image.copy_(turned(native, view.turn))
        return result

    def refined(self, counts: Tensor) -> Tensor:
        """Repeat each measured voxel over the voxels of the clean image that it is made of."""
        dims = counts.ndim - 2
        for axis, step in enumerate(self.stride[-dims:]):
            counts = counts.repeat_interleave(step, dim=2 + axis) if step > 1 else counts
        return counts


def view_of(operator: Operator, volume: Sequence[int], place: Sequence[slice], turn: int) -> View:
    """Cut an operator to the place of a crop.

    Parameters
    ----------
    operator : Operator
        A of the whole volume.
    volume : sequence of int
        (Z, Y, X) voxels of the measured volume.
    place : sequence of slice
        (Z, Y, X) of the crop in it.
    turn : int
        The crop's flips and quarter turns.

    Returns
    -------
    View

    Raises
    ------
    OperatorError
        If nothing of the crop is farther than the operator's halo from its sides.
    """
    region = [slice(p.start * s, p.stop * s) for p, s in zip(place, operator.stride, strict=True)]
    inner = []
    for axis, part, size, halo, step in zip("ZYX", place, volume, operator.halo, operator.stride, strict=True):
        margin = -(-halo // step)
        low = 0 if part.start == 0 else margin
        high = part.stop - part.start - (0 if part.stop == size else margin)
        if low >= high:
            raise OperatorError(
                f"the operator reaches {halo} voxels along {axis}, and the crops have {part.stop - part.start}: no "
                f"voxel of a crop shows the crop's own light alone; take crops of more than {2 * margin} voxels "
                "(patch), or a PSF cut to where it has its light"
            )
        inner.append(slice(low, high))
    return View(operator.crop(region), turn, (inner[0], inner[1], inner[2]))


def _apply(operator: Operator, method: str, images: Tensor) -> Tensor:
    """Apply to (B, C, Z, Y, X), or to (B, Z, Y, X), the planes of one stack, which networks see as channels."""
    function = getattr(operator, method)
    result: Tensor = function(images) if images.ndim == 5 else function(images[:, None])[:, 0]
    return result
