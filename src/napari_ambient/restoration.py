"""Restore volumes with a prior: one call of the denoiser per tile.

    x̂ = zero + gain · λ,   λ = photons(D(z, sigma_y)),   z = 2 √((y - zero)/gain + 3/8)

is the posterior mean E[x | y] of a measurement y, in its own units. Time points and channels are separate images.
The result is lazy: its dask blocks are tiles, and each block reads what it needs of the source, so that memory does not
grow with the volume. `volumes/tiles.py` says why a voxel does not depend on the tiling.

When memory runs out the tile is halved and the work goes on, and it says so.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import dask.array as da
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import __version__
from .devices import choose_device, free_memory, memory_errors
from .noise import NoiseModel
from .prior import Prior, place
from .recorruption import Recorruption, choose_recorruption, from_photons, to_photons, trusted
from .volumes import Volume
from .volumes.tiles import Domain, Tile, split

Array = NDArray[np.float32]


class RestorationError(ValueError):
    """A volume and a prior do not fit together, or the data cannot be restored."""


class TileWarning(UserWarning):
    """Something about the tiles that the user may want to know."""


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
    """

    volume: Volume
    prior: Prior
    noise: tuple[NoiseModel, ...]
    dtype: np.dtype[Any]
    device: torch.device
    clipping: Clipping = field(default_factory=Clipping)
    too_large: float = math.inf
    """Voxels (with halo) of the smallest tile that did not fit into memory."""

    def __post_init__(self) -> None:
        self.form: Recorruption = choose_recorruption(self.noise, self.prior.record.form)
        network = self.prior.denoiser.network
        stride, reach = network.stride, network.receptive_field
        slices = network.arguments.channels
        if network.arguments.dims == 2:  # planes; in 2.5D each with its neighbours
            stride, reach = (1, *stride), (slices // 2, *reach)
        self.slices = slices
        sizes = dict(zip(self.volume.axes, self.volume.shape, strict=True))
        shape = tuple(sizes.get(axis, 1) for axis in "ZYX")
        # a margin of one coarsest cell keeps the zeros that convolutions pad with away from the border's voxels
        margin = tuple(r if s == 1 else s * max(1, 8 // s) for s, r in zip(stride, reach, strict=True))
        self.domain = Domain(shape, stride, tuple(reach), margin)

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
                with memory_errors():
                    return self._convert(self._restore(tile, time, channel))
            except MemoryError as error:
                if halves is None:
                    raise MemoryError(
                        f"not enough memory for even the smallest tile ({error}); close other programs, or use a "
                        "smaller network (size 'small'), or --device cpu"
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
        values = self._read(time, channel, box)
        if not np.isfinite(values).all():
            raise RestorationError(
                f"{self.volume.name or 'the volume'} holds NaN or infinite values in T={time}, C={channel}, "
                f"{_where(box)}; crop them away or replace them"
            )
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
        )
        return self.form.photons(answer)

    def _read(self, time: int, channel: int, box: Sequence[slice]) -> Array:
        where = {"T": time, "C": channel, "Z": box[0], "Y": box[1], "X": box[2]}
        index = tuple(where[axis] for axis in self.volume.axes)
        values = np.asarray(self.volume.data[index].compute(scheduler="synchronous"), dtype=np.float32)
        return values if values.ndim == 3 else values[None]

    def _convert(self, values: Array) -> NDArray[Any]:
        if self.dtype.kind == "f":
            return values.astype(self.dtype, copy=False)
        limits = np.iinfo(self.dtype)
        rounded = np.rint(values)
        self.clipping.below += int((rounded < limits.min).sum())
        self.clipping.above += int((rounded > limits.max).sum())
        self.clipping.total += values.size
        return np.clip(rounded, limits.min, limits.max).astype(self.dtype)


def restore(
    volume: Volume,
    prior: Prior,
    *,
    noise: NoiseModel | Sequence[NoiseModel] | None = None,
    method: Literal["mean"] = "mean",
    dtype: Literal["float32", "input"] = "float32",
    tile: Sequence[int] | None = None,
    device: torch.device | str | None = None,
    clipping: Clipping | None = None,
) -> Volume:
    """Denoise a volume: the posterior mean of every voxel, in the volume's own units.

    Parameters
    ----------
    volume : Volume
        Noisy volume, in camera counts.
    prior : Prior
        A prior of such structures.
    noise : NoiseModel or sequence of NoiseModel, optional
        The camera's noise, one model or one per channel; the prior's own if left out. Refit it (`fit_noise`) when the
        camera, its gain or its offset differ from the training's.
    method : {"mean"}
        What to compute.
    dtype : {"float32", "input"}
        Type of the result: float32, or that of the volume, rounded and clipped (and counted in `clipping`).
    tile : sequence of int, optional
        Largest tile (Z, Y, X) in voxels; chosen from the free memory if left out. It does not change the result.
    device : torch.device or str, optional
        Where to run; CUDA, MPS or CPU, whichever is there.
    clipping : Clipping, optional
        Filled while the result is computed.

    Returns
    -------
    Volume
        Lazy; nothing is computed before it is saved or its data is asked for. It keeps axes, voxel size, units and
        channel names, and its history names the prior.

    Raises
    ------
    RestorationError
        If volume, noise and prior do not fit together.

    Warns
    -----
    TileWarning
        When memory runs out and tiles are halved.
    """
    if method != "mean":
        raise RestorationError(f"method is {method!r}; this version knows 'mean'")
    if dtype not in ("float32", "input"):
        raise RestorationError(f"dtype is {dtype!r}; choose float32 or input")
    sizes = dict(zip(volume.axes, volume.shape, strict=True))
    channels = sizes.get("C", 1)
    models = _noise(prior, noise, channels)
    for model in models:
        _check_maps(model, (sizes["Y"], sizes["X"]))
    scales = len(prior.denoiser.scales)  # type: ignore[arg-type]
    if scales not in (1, channels):
        raise RestorationError(
            f"the prior has {scales} channels ({', '.join(prior.record.channel_names) or 'unnamed'}), the volume "
            f"{channels}; choose one channel of each (--channel)"
        )
    if prior.denoiser.arguments.dims == 3 and sizes.get("Z", 1) == 1:
        raise RestorationError(
            f"the prior is 3D, the volume has axes {volume.axes} {volume.shape}: no Z to see; name the axes "
            "(axes='ZYX'), or train a 2D prior"
        )
    chosen = choose_device(device)
    out = np.dtype(np.float32) if dtype == "float32" else volume.dtype
    restorer = Restorer(
        volume, place(prior, chosen), models, out, chosen, clipping if clipping is not None else Clipping()
    )
    limit = tuple(tile) if tile is not None else plan_tile(restorer, free_memory(chosen))
    if len(limit) != 3 or min(limit) < 1:
        raise RestorationError(f"tile is {tuple(limit)}; give three positive numbers (Z, Y, X)")
    chunks = tuple(
        (1,) * n if axis in "TC" else _chunks(n, limit["ZYX".index(axis)], restorer.domain.stride["ZYX".index(axis)])
        for axis, n in zip(volume.axes, volume.shape, strict=True)
    )
    data = da.map_blocks(
        functools.partial(_block, restorer=restorer, axes=volume.axes),
        chunks=chunks,
        dtype=out,
        meta=np.empty((0,) * volume.data.ndim, dtype=out),
    )
    record = {
        "action": "restore",
        "method": method,
        "prior_sha256": prior.sha256,
        "prior_objective": prior.record.objective,
        "prior_step": prior.record.step,
        "form": prior.record.form,
        "noise": [
            {"gain": float(np.median(m.gain)), "zero": float(np.median(m.zero)), "fitted": m.method} for m in models
        ],
        "seed": prior.record.config.get("seed"),
        "dtype": str(out),
        "source": volume.name,
        "program": "napari-ambient",
        "version": __version__,
    }
    return volume.replace(data=data).with_history(record)


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


def _block(restorer: Restorer, axes: str, block_info: Any = None) -> NDArray[Any]:
    """One dask block: one tile (or several time points of it, one after another)."""
    spans = dict(zip(axes, block_info[None]["array-location"], strict=True))
    core = [slice(*spans.get(axis, (0, 1))) for axis in "ZYX"]
    times, channels = (range(*spans.get(axis, (0, 1))) for axis in "TC")
    shape = tuple(b - a for a, b in block_info[None]["array-location"])
    parts = [[restorer.region(t, c, core) for c in channels] for t in times]
    return np.asarray(parts).reshape(shape)


def _noise(
    prior: Prior, noise: NoiseModel | Sequence[NoiseModel] | None, channels: int
) -> tuple[NoiseModel, ...]:
    if noise is None:
        models: tuple[NoiseModel, ...] = prior.noise
    else:
        models = (noise,) if isinstance(noise, NoiseModel) else tuple(noise)
    if len(models) == 1:
        models = models * channels
    if len(models) != channels:
        raise RestorationError(
            f"{len(models)} noise models for {channels} channels; give one, or one per channel"
        )
    return models


def _check_maps(noise: NoiseModel, plane: tuple[int, int]) -> None:
    """Per-pixel maps belong to one camera frame; they cannot be moved to another."""
    for name in ("gain", "intercept", "hot_pixels"):
        shape = np.shape(getattr(noise, name)) if getattr(noise, name) is not None else ()
        if shape and shape != plane:
            raise RestorationError(
                f"the noise model's {name} map is for frames of {shape} pixels, the volume has {plane}; fit the noise "
                "of this volume (noise=fit_noise(volume), or --noise fit)"
            )


def _chunks(size: int, limit: int, stride: int) -> tuple[int, ...]:
    """Equal chunks of at most `limit` voxels that begin on the stride's grid."""
    if size <= limit:
        return (size,)
    count = math.ceil(size / limit)
    step = min(limit, math.ceil(size / count / stride) * stride)
    return tuple(min(step, size - a) for a in range(0, size, step))


def _size(core: Sequence[slice]) -> str:
    return " x ".join(str(s.stop - s.start) for s in core)


def _where(box: Sequence[slice]) -> str:
    return ", ".join(f"{axis}={s.start}:{s.stop}" for axis, s in zip("ZYX", box, strict=True))


__all__ = ["Clipping", "RestorationError", "Restorer", "TileWarning", "plan_tile", "restore"]
