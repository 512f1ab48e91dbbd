"""The network: an output voxel depends on the input within the receptive field only, and on the grid's phase only."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from napari_ambient.networks.unet import (
    UNet,
    UNetArguments,
    choose_arguments,
    depth_to_space,
    space_to_depth,
)

CASES = [
    UNetArguments(widths=(8, 8, 8)),
    UNetArguments(widths=(8, 8), strides=((2, 2), (2, 2)), blocks=2, channels=3),
    UNetArguments(widths=(8, 8, 8), strides=((1, 1), (2, 2), (2, 2))),
    UNetArguments(dims=3, widths=(8, 8), strides=((1, 2, 2), (2, 2, 2))),
]


def randomise(net: UNet) -> UNet:
    """Give every weight a value, also those that start at zero, so that every path is open."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net.double()


@pytest.mark.parametrize("arguments", CASES, ids=range(len(CASES)))
def test_receptive_field(arguments: UNetArguments) -> None:
    """The gradient of one voxel is zero outside the receptive field, and not zero one stride inside it."""
    net = randomise(UNet(arguments))
    reach, stride = net.receptive_field, net.stride
    sizes = [2 * (r + s) for r, s in zip(reach, stride, strict=True)]
    x = torch.randn(1, arguments.channels, *sizes, dtype=torch.float64, requires_grad=True)
    condition = torch.zeros(1, arguments.condition, dtype=torch.float64)
    widest = [0] * arguments.dims
    for phase in (0, 1):
        centre = tuple(n // 2 + phase * (s - 1) for n, s in zip(sizes, stride, strict=True))
        (gradient,) = torch.autograd.grad(net(x, condition)[(0, 0, *centre)], x)
        touched = gradient[0].abs().sum(0).nonzero()
        for axis, c in enumerate(centre):
            seen = (touched[:, axis] - c).abs().max().item()
            widest[axis] = max(widest[axis], int(seen))
    for seen, r, s in zip(widest, reach, stride, strict=True):
        assert seen <= r
        assert seen > r - 2 * s  # not needlessly wide


@pytest.mark.parametrize("arguments", CASES, ids=range(len(CASES)))
def test_shifts_by_the_stride_commute(arguments: UNetArguments) -> None:
    """A crop on the stride's grid gives the same voxels inside the receptive field."""
    net = randomise(UNet(arguments))
    reach, stride = net.receptive_field, net.stride
    sizes = [2 * r + 4 * s for r, s in zip(reach, stride, strict=True)]
    x = torch.randn(1, arguments.channels, *sizes, dtype=torch.float64)
    condition = torch.randn(1, arguments.condition, dtype=torch.float64)
    with torch.no_grad():
        whole = net(x, condition)
        shifted = net(x[(..., *(slice(s, None) for s in stride))], condition)
    core = tuple(slice(r + s, n - r) for n, r, s in zip(sizes, reach, stride, strict=True))
    moved = tuple(slice(c.start - s, c.stop - s) for c, s in zip(core, stride, strict=True))
    torch.testing.assert_close(whole[(..., *core)], shifted[(..., *moved)], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stride", [(2, 2), (1, 2), (1, 2, 2), (2, 3, 1)])
def test_space_to_depth_is_undone(stride: tuple[int, ...]) -> None:
    """A permutation of the voxels, cell by cell."""
    sizes = [6 * s for s in stride]
    x = torch.randn(2, 3, *sizes)
    deep = space_to_depth(x, stride)
    cell = torch.tensor(stride).prod()
    assert deep.shape == (2, 3 * cell, *(6,) * len(stride))
    torch.testing.assert_close(depth_to_space(deep, stride), x, rtol=0, atol=0)
    first = x[(0, 0, *(slice(0, s) for s in stride))].flatten()
    torch.testing.assert_close(deep[(0, slice(0, int(cell)), *(0,) * len(stride))], first, rtol=0, atol=0)


def test_small_is_small() -> None:
    """Under 0.6 million parameters, in 2D and 3D."""
    for dims in (2, 3):
        assert sum(p.numel() for p in UNet(choose_arguments("small", dims=dims)).parameters()) < 600_000


def test_pooling_follows_the_voxel_size() -> None:
    """Z is pooled like Y and X for cubic voxels, and later for voxels longer in Z."""
    assert choose_arguments(dims=3, anisotropy=1.0).strides == ((2, 2, 2),) * 3
    assert choose_arguments(dims=3, anisotropy=2.0).strides == ((1, 2, 2), (2, 2, 2), (2, 2, 2))
    assert choose_arguments(dims=3, anisotropy=4.0).strides == ((1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert choose_arguments(dims=3, anisotropy=40.0).strides == ((1, 2, 2),) * 3


def test_arguments_survive_json() -> None:
    """What the bundle keeps builds the same network."""
    arguments = choose_arguments("medium", dims=3, anisotropy=3)
    assert UNetArguments.from_dict(arguments.to_dict()) == arguments
    with pytest.raises(ValueError, match="one 2-tuple per level"):
        UNetArguments(widths=(8,), strides=((2, 2), (2, 2)))
    with pytest.raises(ValueError, match="choose one of small, medium, large"):
        choose_arguments("huge")  # type: ignore[arg-type]


def test_small_volumes_are_convolved_in_float32() -> None:
    """On a CPU the coarse levels of a 3D network stay out of bfloat16, the fine ones do not; 2D is left alone."""
    for dims, shape, expected in ((3, (1, 1, 16, 48, 48), torch.float32), (2, (1, 1, 64, 64), torch.bfloat16)):
        network = UNet(choose_arguments("small", dims=dims))
        seen: dict[str, torch.dtype] = {}

        def look(name: str, seen: dict[str, torch.dtype] = seen) -> Any:
            return lambda module, inputs, output: seen.__setitem__(name, output.dtype)

        network.middle[0].first.register_forward_hook(look("coarse"))
        network.encoder[0][0].first.register_forward_hook(look("fine"))
        with torch.autocast("cpu", torch.bfloat16):
            network(torch.zeros(shape), torch.zeros(1, network.arguments.condition))
        assert seen == {"coarse": expected, "fine": torch.bfloat16}
