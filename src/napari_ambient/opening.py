"""Light from beyond the image: unmeasured voxels around it, for blurs whose border is open.

    y = W H x        x on the image and some voxels around it, H dark beyond these, W the window of what was measured

Where a PSF reaches through the whole stack, as a widefield microscope's does, the border decides: a mirror puts
specimens above and below the stack whose light is seen as much as the real one's. Here what lies around the stack is
drawn along with the rest, from the prior and from what its light explains, and then cut away. On a real widefield
nucleus of 45 planes Richardson-Lucy gains 1.5 dB by it (`benchmarks/README.md`).

Training (`training.py`) and restoring (`restoration.py`) widen their volumes here, by whole eights of voxels, so that
a network that halves them sees the stack to its end.
"""

from __future__ import annotations

from dataclasses import dataclass

import dask.array as da
import numpy as np

from .noise import NoiseModel
from .operators import Blur, Compose, Mask, Operator
from .volumes import Volume

WHOLE = 8  # voxels: widened axes are multiples of it
Margins = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Widened:
    """A volume with unmeasured voxels around it, and the operator that knows which.

    Parameters
    ----------
    volume : Volume
        As wide as the light comes from; the voxels around the image repeat its outermost ones, and are masked.
    operator : Operator
        On such volumes.
    margins : tuple of (int, int)
        (Z, Y, X) measured voxels before and behind the image.
    """

    volume: Volume
    operator: Operator
    margins: Margins

    def noise(self, model: NoiseModel) -> NoiseModel:
        """Widen the maps of a noise model along Y and X."""
        return model.with_maps(lambda values: np.pad(values, self.margins[1:], mode="edge"))

    def inner(self, result: Volume) -> Volume:
        """Cut what is around the image away from a result on the clean voxels."""
        cut = {
            axis: slice(low * step, result.sizes[axis] - high * step)
            for axis, (low, high), step in zip("ZYX", self.margins, self.operator.stride, strict=True)
            if axis in result.axes
        }
        return result.replace(data=result.data[tuple(cut.get(axis, slice(None)) for axis in result.axes)])


def widen(volume: Volume, operator: Operator) -> Widened:
    """Put unmeasured voxels around a volume where the operator is open.

    Parameters
    ----------
    volume : Volume
        The measurement.
    operator : Operator
        What the microscope did to the light.

    Returns
    -------
    Widened
        Volume and operator as they are where no border is open.
    """
    sizes = tuple(volume.sizes.get(axis, 1) for axis in "ZYX")
    margins = tuple(
        (n, n + -(size + 2 * n) % WHOLE) if n and size > 1 else (0, 0)
        for n, size in zip(operator.beyond, sizes, strict=True)
    )
    if not any(map(any, margins)):
        return Widened(volume, operator, margins)
    window = Mask(np.pad(np.ones(sizes, bool), margins))
    pads = [margins["ZYX".index(axis)] if axis in "ZYX" else (0, 0) for axis in volume.axes]
    chunks = tuple(
        (low + sizes_[0] + high,) if len(sizes_) == 1 else (low + sizes_[0], *sizes_[1:-1], sizes_[-1] + high)
        for sizes_, (low, high) in zip(volume.data.chunks, pads, strict=True)
    )
    data = da.pad(volume.data, pads, mode="edge").rechunk(chunks)
    return Widened(volume.replace(data=data), window @ _closed(operator, margins), margins)


def _closed(operator: Operator, margins: Margins) -> Operator:
    """Give an operator on the widened grid: open borders dark, maps as wide as that."""
    parts = operator.operators if isinstance(operator, Compose) else (operator,)
    closed: list[Operator] = []
    step = [1, 1, 1]
    for part in parts:  # the last to act comes first, on the measured voxels
        if isinstance(part, Mask):
            wide = [(low * s, high * s) for (low, high), s in zip(margins, step, strict=True)]
            closed.append(Mask(np.pad(part.map, wide[-part.map.ndim :], mode="edge")))
        elif isinstance(part, Blur) and part.border == "open":
            closed.append(Blur(part.psf, border="zero"))
        else:
            closed.append(part)
        step = [a * b for a, b in zip(step, part.stride, strict=True)]
    return Compose(*closed) if len(closed) > 1 else closed[0]


__all__ = ["Widened", "widen"]
