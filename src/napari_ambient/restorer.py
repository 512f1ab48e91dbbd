"""Restore any region of a volume: one call of the denoiser per tile.

    x̂ = zero + gain · λ,   λ = photons(D(z, sigma_y)),   z = 2 √((y - zero)/gain + 3/8)

is the posterior mean E[x | y] of a measurement y, in its own units; or the mean of such answers over flips and quarter
turns of the plane (`networks/turns.py`). `volumes/tiles.py` says why a voxel does not depend
on the tiling. When memory runs out the tile is halved and the work goes on, and it says so. `restoration.py` makes lazy
volumes of this; `uncertainty.py` draws from the posterior instead of calling once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .devices import memory_errors
from .networks.turns import GROUPS, turned, unturned
from .noise import NoiseModel
from .prior import Prior
from .recorruption import (
    Quanta,
    Recorruption,
    choose_recorruption,
    from_photons,
    lag_of,
    read_variance_of,
    to_photons,
    trusted,
)
from .sampling import CallCount, TileWarning, network_domain
from .volumes import Volume
from .volumes.tiles import Tile, split

Array = NDArray[np.float32]


class RestorationError(ValueError):
    """A volume and a prior do not fit together, or the data cannot be restored."""


class RestorationWarning(UserWarning):
    """Something about a restoration that the user may want to know."""


@dataclass
class Clipping:
    """How many voxels did not fit into the output's data type."""

    below: int = 0
    above: int = 0
    total: int = 0

    def describe(self) -> str:
        """Say it in words; empty when nothing was clipped."""
        if not self.below + self.above:
            return ""
        share = 100 * (self.below + self.above) / max(self.total, 1)
        return f"{self.below} voxels clipped at the lower end, {self.above} at the upper ({share:.3g} %)"


@dataclass
class Restorer:
    """Restore any region of one volume: what the lazy blocks call.

    Parameters
    ----------
    volume : Volume
        The noisy volume.
    prior : Prior
        The prior.
    noise : tuple of NoiseModel
        One per channel.
    dtype : numpy.dtype
        Output type.
    clipping : Clipping
        Counts what was clipped so far.
    turns : {1, 2, 4, 8}
        Answers are averages over so many flips and quarter turns of the plane.
    """

    volume: Volume
    prior: Prior
    noise: tuple[NoiseModel, ...]
    dtype: np.dtype[Any]
    device: torch.device
    clipping: Clipping = field(default_factory=Clipping)
    turns: int = 1
    too_large: float = math.inf
    """Voxels (with halo) of the smallest tile that did not fit into memory."""
    count: CallCount = field(default_factory=lambda: CallCount(None, 1, 0))
    """Told of every network call."""

    def __post_init__(self) -> None:
        quanta = Quanta(**self.prior.record.quanta) if self.prior.record.quanta else None  # type: ignore[arg-type]
        if quanta is not None and any(a is not b for a, b in zip(self.noise, self._trained(), strict=True)):
            # another camera: its electronics and its read noise are what the counts show
            read = read_variance_of(self.noise)
            read = quanta.read_variance if read is None else read
            quanta = replace(quanta, read_variance=read, lag=lag_of(self.noise))
        self.quanta = quanta
        self.form: Recorruption = choose_recorruption(self.noise, self.prior.record.form, quanta=quanta)
        self.slices = self.prior.denoiser.arguments.channels
        sizes = dict(zip(self.volume.axes, self.volume.shape, strict=True))
        self.domain = network_domain(self.prior.denoiser.network, tuple(sizes.get(axis, 1) for axis in "ZYX"))

    def _trained(self) -> tuple[NoiseModel, ...]:
        """Give the noise of the prior's own data, one per channel of the volume."""
        return tuple(self.prior.noise[min(c, len(self.prior.noise) - 1)] for c in range(len(self.noise)))

    def read_variance(self, channel: int) -> tuple[float | NDArray[np.floating[Any]], float]:
        """Give r², photo-electrons², of the data's camera and of the prior's.

        Counts k above the line's zero are light and r² of read noise; the prior learned such counts of its own camera.
        What is not known of the data is taken for the same.

        Parameters
        ----------
        channel : int
            Of the volume.

        Returns
        -------
        here : float or ndarray, shape (Y, X)
            Of the data.
        there : float
            Of the data that the prior was trained on.
        """
        trained = self._trained()[channel]
        estimated = self.prior.record.quanta.get("read_variance")
        there = read_variance_of([trained])
        there = float(estimated or 0.0) if there is None else there
        noise = self.noise[channel]
        if noise is trained or noise.read_noise is None:
            return there, there
        here = np.square(np.divide(noise.read_noise, noise.gain))
        return (here if np.ndim(here) else float(here)), there

    @property
    def overlapping(self) -> bool:
        """Whether the network sees each plane with its neighbours (2.5D)."""
        return self.prior.denoiser.arguments.dims == 2 and self.slices > 1

    def region(self, time: int, channel: int, core: Sequence[slice]) -> NDArray[Any]:
        """Restore one region of one time point and channel.

        Parameters
        ----------
        time, channel : int
            Which image.
        core : sequence of slice
            Slices of Z, Y and X with their starts and stops given.

        Returns
        -------
        ndarray, shape of `core`
            In the units of the volume.
        """
        tile = self.domain.tile(core)
        halves = split(core, [max(s, 8) for s in self.domain.stride])
        if tile.voxels < self.too_large or halves is None:
            try:
                with memory_errors(), self.count.watched():
                    return self.convert(self._restore(tile, time, channel))
            except MemoryError as error:
                if halves is None:
                    raise MemoryError(
                        f"not enough memory for even the smallest tile ({error}); close other programs, train a "
                        "smaller network (--size small), or use the CPU (--device cpu)"
                    ) from error
                self.too_large = tile.voxels
                warnings.warn(
                    f"out of memory on {self.device} with a tile of {_size(tile.core)} voxels: halved, and going on",
                    TileWarning,
                    stacklevel=2,
                )
        parts = [self.region(time, channel, half) for half in halves]
        axis = next(a for a in range(3) if halves[0][a] != halves[1][a])
        return np.concatenate(parts, axis=axis)

    def _restore(self, tile: Tile, time: int, channel: int) -> Array:
        noise = self.noise[channel]
        box, indices = tile.sources()
        values = self.read(time, channel, box)
        photons = to_photons(values, noise, box[1], box[2])
        good = trusted(values, noise, box[1], box[2])
        spread = np.ix_(*indices)
        photons, good = photons[spread], good[spread]
        result = self._denoise(photons, good, channel, tile)
        return from_photons(result, noise, tile.core[1], tile.core[2])

    @torch.inference_mode()
    def _denoise(self, photons: Array, good: NDArray[np.bool_], channel: int, tile: Tile) -> Array:
        """Call the denoiser; (Z, Y, X) photo-electrons with halo in, the core out."""
        inner = tile.inner
        counts = torch.from_numpy(photons).to(self.device)
        valid = None if good.all() else torch.from_numpy(good).to(self.device)
        if self.prior.denoiser.arguments.dims == 3:
            clean = self._call(counts[None, None], None if valid is None else valid[None, None], channel)[0, 0]
            clean = clean[inner]
        else:
            planes = []
            half = self.slices // 2
            for z in range(inner[0].start, inner[0].stop):
                window = slice(z - half, z + half + 1)
                mask = None if valid is None else valid[None, window]
                plane = self._call(counts[None, window], mask, channel)
                planes.append(plane[0, half][inner[1:]])
            clean = torch.stack(planes)
        return clean.cpu().numpy()

    def _call(self, counts: Tensor, valid: Tensor | None, channel: int) -> Tensor:
        total = torch.zeros((), device=counts.device)
        for turn in GROUPS[self.turns]:
            mask = None if valid is None else turned(valid, turn)
            total = total + unturned(self._call_once(turned(counts, turn), mask, channel), turn)
        return total / self.turns

    def _call_once(self, counts: Tensor, valid: Tensor | None, channel: int) -> Tensor:
        scales = len(self.prior.denoiser.scales)  # type: ignore[arg-type]
        seen = self.form.measure(counts, valid)
        if self.prior.denoiser.arguments.dims == 2:
            seen = seen.contiguous(memory_format=torch.channels_last)
        answer = self.prior.denoiser(
            seen,
            torch.full((len(seen),), self.form.sigma_y, device=seen.device),
            corruption=self.form.corruption,
            measured=True,
            channel=min(channel, scales - 1),
            known=valid,
        )
        self.count.called()
        return self.form.photons(answer)

    def read(self, time: int, channel: int, box: Sequence[slice], *, holes: bool = False) -> Array:
        """Read voxels of one time point and channel, (Z, Y, X), in the volume's units; NaN are allowed as `holes`.

        Raises
        ------
        RestorationError
            If they are not all finite.
        """
        where = {"T": time, "C": channel, "Z": box[0], "Y": box[1], "X": box[2]}
        index = tuple(where[axis] for axis in self.volume.axes)
        values = np.asarray(self.volume.data[index].compute(scheduler="synchronous"), dtype=np.float32)
        if not holes and not np.isfinite(values).all():
            raise RestorationError(
                f"{self.volume.name or 'the volume'} holds NaN or infinite values in T={time}, C={channel}, "
                f"{_where(box)}; crop them away, replace them, or have them filled in by draws (--method samples, in "
                "Python method='samples')"
            )
        return values if values.ndim == 3 else values[None]

    def convert(self, values: Array) -> NDArray[Any]:
        """Convert to the output's type; what does not fit is clipped and counted."""
        if self.dtype.kind == "f":
            return values.astype(self.dtype, copy=False)
        limits = np.iinfo(self.dtype)
        rounded = np.rint(values)
        self.clipping.below += int((rounded < limits.min).sum())
        self.clipping.above += int((rounded > limits.max).sum())
        self.clipping.total += values.size
        return np.clip(rounded, limits.min, limits.max).astype(self.dtype)


def plan_tile(restorer: Restorer, free: int) -> tuple[int, int, int]:
    """Choose the largest tile (Z, Y, X) that fits into a quarter of the free memory, and at most 600 MB on a CPU.

    A tile pays for its halo too, so it is made as large as that allows, and no larger than the volume.
    """
    network = restorer.prior.denoiser.network
    arguments = network.arguments
    budget = free // 4 if restorer.device.type == "cuda" else min(free // 4, 600 * 2**20)
    cell = math.prod(arguments.strides[0])
    # live at the finest level: input and output at full resolution, about eight maps of its features
    per_voxel = 4 * (6 * arguments.channels + 8 * arguments.widths[0] / cell)
    domain = restorer.domain
    stride, halo = domain.stride, domain.halo
    flat = arguments.dims == 2
    # a 2D network sees one window of planes at a time, so Z costs nothing but the tile's own voxels
    size = [min(n, 8) if flat else n for n in domain.shape[:1]] + list(domain.shape[1:])

    def cost(core: Sequence[int]) -> float:
        full = [min(n + 2 * h, b - a) for n, h, a, b in zip(core, halo, domain.start, domain.stop, strict=True)]
        voxels = math.prod(full[1:]) if flat else math.prod(full)
        return voxels * per_voxel + 24 * math.prod(full)

    while cost(size) > budget:
        axis = max(range(3), key=lambda a: size[a] / (stride[a] if stride[a] > 1 or not flat else 64))
        smaller = -(-size[axis] // 2 // stride[axis]) * stride[axis]
        if smaller >= size[axis] or smaller < stride[axis]:
            break
        size[axis] = smaller
    return size[0], size[1], size[2]


def _size(core: Sequence[slice]) -> str:
    return " x ".join(str(s.stop - s.start) for s in core)


def _where(box: Sequence[slice]) -> str:
    return ", ".join(f"{axis}={s.start}:{s.stop}" for axis, s in zip("ZYX", box, strict=True))


__all__ = ["Clipping", "RestorationError", "RestorationWarning", "Restorer", "TileWarning", "plan_tile"]
