"""Low-rank changes: nothing at the start, rank at most r afterwards, and no trace once merged."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from napari_ambient.networks.low_rank import LowRank, add_low_rank, convolutions, merged_state
from napari_ambient.networks.unet import UNet, UNetArguments

CASES = {
    "2D": UNetArguments(widths=(8, 12, 16)),
    "2.5D": UNetArguments(widths=(8, 8), strides=((2, 2), (2, 2)), blocks=2, channels=3),
    "3D": UNetArguments(dims=3, widths=(8, 12), strides=((1, 2, 2), (2, 2, 2))),
}
RANK = 2


def learned(arguments: UNetArguments, dtype: torch.dtype = torch.float64) -> UNet:
    """Give a network whose weights are all of order one, as if it had learned something."""
    torch.manual_seed(0)
    net = UNet(arguments)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net.to(dtype)


def changed(arguments: UNetArguments, *, steps: int = 3, dtype: torch.dtype = torch.float64) -> tuple[UNet, UNet]:
    """Give a network as it was, and after a few steps of its low-rank changes."""
    before = learned(arguments, dtype)
    net = copy.deepcopy(before)
    add_low_rank(net, RANK, torch.Generator().manual_seed(1))
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    x, condition = image(arguments, dtype)
    for _ in range(steps):
        optimiser.zero_grad()
        (net(x, condition) - x).square().mean().backward()
        optimiser.step()
    return before, net


def image(arguments: UNetArguments, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, arguments.channels, *(16,) * arguments.dims, generator=generator, dtype=dtype)
    return x, torch.randn(2, arguments.condition, generator=generator, dtype=dtype)


@pytest.mark.parametrize("kind", CASES)
def test_nothing_has_changed_at_the_start(kind: str) -> None:
    """B = 0: the same answer and the same weights, bit by bit."""
    before = learned(CASES[kind])
    net = copy.deepcopy(before)
    add_low_rank(net, RANK, torch.Generator().manual_seed(1))
    x, condition = image(CASES[kind])
    assert torch.equal(net(x, condition), before(x, condition))
    assert all(torch.equal(v, before.state_dict()[k]) for k, v in merged_state(net).items())


@pytest.mark.parametrize("kind", CASES)
def test_every_convolution_changes_by_low_rank_and_nothing_else_changes(kind: str) -> None:
    """The matrix of each kernel's change has exactly min(r, rows, columns) singular values; all else is untouched."""
    before, net = changed(CASES[kind])
    old, new = before.state_dict(), merged_state(net)
    kernels = {f"{name}.weight" for name in convolutions(before)}
    assert kernels
    for key, value in new.items():
        if key not in kernels:
            assert torch.equal(value, old[key]), key
            continue
        values = torch.linalg.svdvals((value - old[key]).flatten(1))
        # float64: what is not there is 1e-16 of the kernel's size
        assert int((values > 1e-10 * values[0]).sum()) == min(RANK, len(values)), key
        kept = net.get_submodule(key.removesuffix(".weight")).parametrizations.weight.original
        assert torch.equal(kept, old[key]), key


@pytest.mark.parametrize("kind", CASES)
def test_training_all_weights_is_not_low_rank(kind: str) -> None:
    """Negative control: the same steps on all weights fail the count of singular values."""
    before = learned(CASES[kind])
    net = copy.deepcopy(before)
    x, condition = image(CASES[kind])
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    (net(x, condition) - x).square().mean().backward()
    optimiser.step()
    difference = (net.enter.weight - before.enter.weight).detach().flatten(1)
    assert int(torch.linalg.matrix_rank(difference)) > RANK


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", CASES)
def test_merged_answers_the_same(kind: str, dtype: torch.dtype) -> None:
    """A plain network loads the merged state, strictly, and gives the same answer: the kernels are the same bits."""
    before, net = changed(CASES[kind], dtype=dtype)
    plain = UNet(CASES[kind]).to(dtype)
    plain.load_state_dict(merged_state(net))
    assert list(merged_state(before)) == list(before.state_dict())
    x, condition = image(CASES[kind], dtype)
    answer = net(x, condition)
    torch.testing.assert_close(plain(x, condition), answer, rtol=0, atol=1e-6)
    assert (before(x, condition) - answer).abs().max() > 1e-2  # there was something to merge


def test_merging_does_not_touch_the_network() -> None:
    """Training goes on afterwards with the same factors."""
    _, net = changed(CASES["2D"])
    state = {k: v.clone() for k, v in net.state_dict().items()}
    merged_state(net)["enter.weight"].zero_()
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_the_change_is_the_formula() -> None:
    """W + (alpha/r) B A with the kernel read as (out, in·kernel), written out index by index."""
    weight = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    change = LowRank(weight, 2, torch.Generator().manual_seed(0), alpha=3.0).double()
    nn.init.normal_(change.B)
    a = change.A.reshape(2, 3, 2, 2)
    expected = weight + 1.5 * torch.einsum("or,rikl->oikl", change.B, a)
    torch.testing.assert_close(change(weight), expected)


def test_the_first_factor_keeps_the_size_of_features() -> None:
    """A ~ N(0, 1/columns), so that A x is of order one when x is: the mean square of a row's norm is one."""
    change = LowRank(torch.zeros(400, 100, 3, 3), 300, torch.Generator().manual_seed(0))
    # 270 000 normal numbers: their mean square is known to √(2/270000) = 0.3 %
    assert float(change.A.detach().square().sum(1).mean()) == pytest.approx(1, rel=0.015)
    assert not change.B.any()


def test_how_many_numbers_are_trained() -> None:
    """For each convolution r (out + in·kernel), with r cut to what the kernel can have."""
    _, net = changed(CASES["2D"])
    expected = 0
    for convolution in convolutions(net).values():
        rows, columns = len(convolution.weight), convolution.weight[0].numel()
        expected += min(RANK, rows, columns) * (rows + columns)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == expected


def test_the_seed_decides() -> None:
    """The same generator gives the same factors, also for a network that was copied; another gives others."""
    nets = [learned(CASES["2D"], torch.float32) for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        add_low_rank(net, RANK, torch.Generator().manual_seed(seed))
    first, second, third = (net.state_dict() for net in (nets[0], copy.deepcopy(nets[1]), nets[2]))
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert not all(torch.equal(v, third[k]) for k, v in first.items())


def test_mixed_precision_trains_the_kernel_that_is_kept() -> None:
    """Under autocast the change is still computed in float32: rounded to bfloat16 it would be off by 0.4 %."""
    _, net = changed(CASES["2D"], dtype=torch.float32)
    exact = net.middle[0].first.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.middle[0].first.weight, exact)


def test_processes_share_the_changes(tmp_path: object) -> None:
    """`DistributedDataParallel` reduces the factors' gradients, and asks for none of the frozen weights."""
    net = learned(CASES["2D"], torch.float32)
    add_low_rank(net, RANK, torch.Generator().manual_seed(1))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(net)
        x, condition = image(CASES["2D"], torch.float32)
        model(x, condition).square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == name.endswith((".A", ".B")), name


def test_what_cannot_be_changed_is_refused() -> None:
    """A rank that is none or restricts nothing, a second change, a network without convolutions."""
    net = learned(CASES["2D"])
    generator = torch.Generator().manual_seed(1)
    for rank in (0, -1, 16, 500):
        with pytest.raises(ValueError, match=rf"is {rank}; choose 1 to 15 .*or train all weights"):
            add_low_rank(net, rank, generator)
    assert all(p.requires_grad for p in net.parameters())
    add_low_rank(net, 15, generator)
    with pytest.raises(ValueError, match="merge them first"):
        add_low_rank(net, 2, generator)
    with pytest.raises(ValueError, match="Linear has no convolution"):
        add_low_rank(nn.Linear(2, 2), 1, generator)
