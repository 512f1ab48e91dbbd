"""A U-Net in 2D, 2.5D and 3D, for which a tile gives the same voxels as the whole image.

Convolutional encoder and decoder with skip connections (Ronneberger, Fischer & Brox 2015, arXiv 1505.04597) and
residual blocks whose features are scaled and shifted by an embedding of a few numbers, the *condition* (FiLM,
Perez et al. 2018, arXiv 1709.07871). The image enters and leaves through a space-to-depth step, so that no
convolution runs at full resolution; this is what makes it quick on a laptop.

Nothing here mixes distant voxels: there are no statistics over space and no global attention, only convolutions
and one root-mean-square norm over the channels of each voxel. The output at a voxel therefore depends only on the
input within `UNet.receptive_field` of it, which `restoration.py` uses as its halo.

The network knows nothing of diffusion: `denoiser.py` gives it its meaning.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_ambient.choices import Size

TRUSTED = 1024  # voxels of a 3D level from which on bfloat16 is used on a CPU (seen wrong at 144, right at 1152)

WIDTHS: dict[int, dict[str, tuple[int, ...]]] = {
    2: {"small": (32, 48, 64), "medium": (64, 128, 192), "large": (96, 192, 256, 320)},
    3: {"small": (24, 40, 56), "medium": (48, 80, 128), "large": (64, 128, 192, 256)},
}
BLOCKS: dict[str, int] = {"small": 1, "medium": 2, "large": 2}


@dataclass(frozen=True)
class UNetArguments:
    """What is needed to build the same network again (kept in the prior bundle).

    Parameters
    ----------
    dims : int
        2 for images (also 2.5D, where neighbouring slices are channels), 3 for volumes.
    channels : int
        Channels of input and output: 1, or the number of neighbouring slices in 2.5D.
    widths : tuple of int
        Feature channels per level, finest first.
    blocks : int
        Residual blocks per level and direction.
    strides : tuple of tuple of int
        Pooling before each level, one tuple (Z, Y, X) or (Y, X) per level; the first is the space-to-depth step.
    condition : int
        How many numbers condition the network.
    extra : int
        Channels of the input beyond those of the output.
    """

    dims: int = 2
    channels: int = 1
    widths: tuple[int, ...] = (32, 48, 64)
    blocks: int = 1
    strides: tuple[tuple[int, ...], ...] = ((2, 2), (2, 2), (2, 2))
    condition: int = 3
    extra: int = 0

    def __post_init__(self) -> None:
        if self.dims not in (2, 3):
            raise ValueError(f"dims is {self.dims}; a network is 2D or 3D")
        if len(self.widths) != len(self.strides) or any(len(s) != self.dims for s in self.strides):
            raise ValueError(
                f"strides {self.strides} do not fit widths {self.widths}: give one {self.dims}-tuple per level"
            )

    def to_dict(self) -> dict[str, Any]:
        """Give the arguments as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> UNetArguments:
        """Make the arguments from what `to_dict` gave."""
        strides = tuple(tuple(int(n) for n in s) for s in values["strides"])
        return cls(**{**values, "widths": tuple(values["widths"]), "strides": strides})


def choose_arguments(
    size: Size = "small", *, dims: int = 2, channels: int = 1, anisotropy: float = 1.0
) -> UNetArguments:
    """Choose the network's arguments for a size and a voxel shape.

    Parameters
    ----------
    size : {"small", "medium", "large"}
        `small` (0.3 million parameters in 2D, 0.5 in 3D) is for a CPU.
    dims : int
        2 or 3.
    channels : int
        Neighbouring slices seen together (2.5D); 1 otherwise.
    anisotropy : float
        Voxel size along Z over voxel size along X. Z is pooled only at the levels where its steps are not
        already coarser than those of Y and X (3D only).

    Returns
    -------
    UNetArguments
    """
    if size not in BLOCKS:
        raise ValueError(f"size is {size!r}; choose one of {', '.join(BLOCKS)}")
    widths = WIDTHS[dims][size]
    base = UNetArguments(dims=2, channels=channels, widths=(1,), strides=((2, 2),), blocks=BLOCKS[size])
    if dims == 2:
        return replace(base, widths=widths, strides=((2, 2),) * len(widths))
    strides = []
    ratio = max(float(anisotropy), 1e-6)  # Z step over X step at the current level
    for _ in widths:
        # halving X doubles the X step; pool Z too unless its step would then stay the coarser by more than √2
        pool_z = ratio < 2**0.5
        strides.append((2 if pool_z else 1, 2, 2))
        ratio *= (2 if pool_z else 1) / 2
    return replace(base, dims=3, widths=widths, strides=tuple(strides))


class ChannelNorm(nn.Module):
    """Root-mean-square norm over the channels of each voxel; no statistics over space."""

    def forward(self, x: Tensor) -> Tensor:
        """Divide each voxel's features by their root mean square."""
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-4)


class Block(nn.Module):
    """Two convolutions with a residual connection; the condition scales and shifts in between."""

    def __init__(self, width: int, condition: int, dims: int) -> None:
        super().__init__()
        conv = nn.Conv3d if dims == 3 else nn.Conv2d
        self.first = conv(width, width, 3, padding=1)
        self.film = nn.Linear(condition, 2 * width)
        self.second = conv(width, width, 3, padding=1)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map features (B, width, ...) with condition (B, condition)."""
        scale, shift = self.film(condition).reshape(len(x), -1, *(1,) * (x.ndim - 2)).chunk(2, dim=1)
        h = torch.addcmul(shift, self.first(x), 1 + scale)
        change: Tensor = self.second(functional.silu(h, inplace=not h.requires_grad))
        return x + change


class UNet(nn.Module):
    """The network F(x, condition): image in, image of the same shape out.

    Parameters
    ----------
    arguments : UNetArguments
        The architecture.
    """

    def __init__(self, arguments: UNetArguments) -> None:
        super().__init__()
        self.arguments = arguments
        dims, widths, strides = arguments.dims, arguments.widths, arguments.strides
        conv = nn.Conv3d if dims == 3 else nn.Conv2d
        embedding = 4 * max(16, widths[0] // 2)
        self.embed = nn.Sequential(
            nn.Linear(arguments.condition, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        cell = _product(strides[0])
        self.enter = conv((arguments.channels + arguments.extra) * cell, widths[0], 3, padding=1)
        self.norms = ChannelNorm()

        def blocks(width: int) -> nn.ModuleList:
            return nn.ModuleList(Block(width, embedding, dims) for _ in range(arguments.blocks))

        self.encoder = nn.ModuleList(blocks(width) for width in widths[:-1])
        self.down = nn.ModuleList(
            conv(a, b, stride, stride=stride)  # type: ignore[arg-type]
            for a, b, stride in zip(widths[:-1], widths[1:], strides[1:], strict=True)
        )
        self.middle = blocks(widths[-1])
        self.up = nn.ModuleList(
            conv(b, a * _product(stride), 1) for a, b, stride in zip(widths[:-1], widths[1:], strides[1:], strict=True)
        )
        self.decoder = nn.ModuleList(blocks(width) for width in widths[:-1])
        self.leave = conv(widths[0], arguments.channels * cell, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    @property
    def stride(self) -> tuple[int, ...]:
        """Total stride per axis: image sizes and tile origins are multiples of it."""
        total = [1] * self.arguments.dims
        for stride in self.arguments.strides:
            total = [a * b for a, b in zip(total, stride, strict=True)]
        return tuple(total)

    @property
    def receptive_field(self) -> tuple[int, ...]:
        """How far, in voxels per axis, an output voxel can see; a multiple of the stride.

        A voxel's cell at a level begins up to (step − 1) voxels from it, and every 3-wide convolution at a level
        reaches one step of that level further.
        """
        arguments = self.arguments
        reach = [0] * arguments.dims
        step = [1] * arguments.dims
        for level, stride in enumerate(arguments.strides):
            step = [a * b for a, b in zip(step, stride, strict=True)]
            last = level == len(arguments.strides) - 1
            convolutions = 2 * arguments.blocks * (1 if last else 2) + (2 if level == 0 else 0)
            reach = [r + convolutions * s for r, s in zip(reach, step, strict=True)]
        reach = [r + s - 1 for r, s in zip(reach, step, strict=True)]
        return tuple(-(-r // s) * s for r, s in zip(reach, self.stride, strict=True))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Run the network.

        Parameters
        ----------
        x : Tensor, shape (B, channels + extra, [Z,] Y, X)
            Image; Z, Y, X multiples of `stride`.
        condition : Tensor, shape (B, arguments.condition)
            Numbers of order one.

        Returns
        -------
        Tensor, shape (B, channels, [Z,] Y, X)
        """
        strides = self.arguments.strides
        embedded = self.embed(condition)
        h = self.enter(space_to_depth(x, strides[0]))
        skips = []
        for blocks, down in zip(self.encoder, self.down, strict=True):
            h = _level(blocks, h, embedded)  # type: ignore[arg-type]
            skips.append(h)
            h = down(h)
        h = _level(self.middle, h, embedded)
        for level in reversed(range(len(self.up))):
            h = skips.pop() + depth_to_space(self.up[level](h), strides[level + 1])
            h = _level(self.decoder[level], h, embedded)  # type: ignore[arg-type]
        return depth_to_space(self.leave(self.norms(h)), strides[0])


def _level(blocks: Iterable[nn.Module], h: Tensor, embedded: Tensor) -> Tensor:
    """Run the blocks of one level, in float32 where bfloat16 cannot be trusted.

    The CPU's bfloat16 convolutions (oneDNN) of small volumes now and then return a gradient of the weights full of
    garbage, about one step in thirty, and never the same twice. Few voxels cost little in float32.
    """
    if h.ndim == 5 and h.device.type == "cpu" and math.prod(h.shape[2:]) < TRUSTED:
        with torch.autocast("cpu", enabled=False):
            h, embedded = (v.float() if v.dtype == torch.bfloat16 else v for v in (h, embedded))
            for block in blocks:
                h = block(h, embedded)
        return h
    for block in blocks:
        h = block(h, embedded)
    return h


def space_to_depth(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Move each cell of `stride` voxels into the channels: (B, C, ...) to (B, C·cell, .../stride)."""
    if len(stride) == 2 and stride[0] == stride[1]:
        return functional.pixel_unshuffle(x, stride[0])
    batch, channels, *sizes = x.shape
    split = [n for size, s in zip(sizes, stride, strict=True) for n in (size // s, s)]
    dims = len(sizes)
    order = [0, 1, *range(3, 3 + 2 * dims, 2), *range(2, 2 + 2 * dims, 2)]
    out = [size // s for size, s in zip(sizes, stride, strict=True)]
    return x.reshape(batch, channels, *split).permute(order).reshape(batch, channels * _product(stride), *out)


def depth_to_space(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Undo `space_to_depth`."""
    if len(stride) == 2 and stride[0] == stride[1]:
        return functional.pixel_shuffle(x, stride[0])
    batch, channels, *sizes = x.shape
    dims = len(sizes)
    channels //= _product(stride)
    order = [0, 1, *(n for axis in range(dims) for n in (2 + dims + axis, 2 + axis))]
    out = [size * s for size, s in zip(sizes, stride, strict=True)]
    return x.reshape(batch, channels, *stride, *sizes).permute(order).reshape(batch, channels, *out)


def _product(values: Sequence[int]) -> int:
    total = 1
    for value in values:
        total *= value
    return total
