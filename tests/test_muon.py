"""Muon: orthogonal steps of Adam's size for kernels, and Adam itself for all else."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from napari_ambient import muon
from napari_ambient.muon import DECAY, SIZE, Muon, optimisers_for, orthogonalised


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("shape", [(5, 24, 216), (3, 96, 16), (2, 8, 8)])
def test_singular_values_become_one_and_directions_stay(shape: tuple[int, ...], generator: torch.Generator) -> None:
    """O(U Σ Vᵀ) is U Vᵀ to within the iteration's factor, for values from 1 to 1/30 and matrices wide and tall."""
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    values = torch.logspace(0, -1.5, min(shape[1:]))
    after = u.mT @ orthogonalised(u * values @ v) @ v.mT
    size = after.diagonal(dim1=1, dim2=2)
    assert bool(((size > 0.65) & (size < 1.25)).all())
    assert float((after - torch.diag_embed(size)).abs().max()) < 1e-4


def test_nothing_to_learn_moves_nothing() -> None:
    assert not bool(orthogonalised(torch.zeros(2, 4, 9)).any())


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("shape", [(24, 24, 3, 3), (48, 8, 2, 2), (8, 8, 3, 3, 3)])
def test_a_step_is_as_large_as_adams(shape: tuple[int, ...], scale: float, generator: torch.Generator) -> None:
    """Root mean square 0.2 of the learning rate, whatever the gradient's size."""
    kernel = nn.Parameter(torch.zeros(shape))
    kernel.grad = scale * torch.randn(shape, generator=generator)
    Muon([kernel], 1e-2).step()
    assert float(kernel.detach().square().mean().sqrt()) == pytest.approx(SIZE * 1e-2, rel=0.2)


def test_kernels_decay(generator: torch.Generator) -> None:
    """By 0.2 of the learning rate a step, besides what the gradient says."""
    start = torch.randn(6, 4, 3, 3, generator=generator)
    kernels = [nn.Parameter(start.clone()), nn.Parameter(torch.zeros_like(start))]
    gradient = torch.randn(start.shape, generator=generator)
    for kernel in kernels:
        kernel.grad = gradient.clone()
        Muon([kernel], 1e-2).step()
    torch.testing.assert_close(kernels[0] - kernels[1], (1 - DECAY * 1e-2) * start)


def test_a_kernel_without_gradient_stays() -> None:
    kernel = nn.Parameter(torch.ones(4, 4, 3, 3))
    Muon([kernel], 1e-2).step()
    assert bool((kernel == 1).all())


def test_kernels_take_muon_and_all_else_adam() -> None:
    """What is frozen takes neither; nothing is left without, and nothing has both."""
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 5), nn.Conv3d(2, 3, 1), nn.Conv2d(1, 1, 1))
    network[3].requires_grad_(False)
    flow = nn.Conv2d(2, 2, 3)
    found = optimisers_for(network, 0.5, others=flow.parameters())

    def names(optimiser: torch.optim.Optimizer) -> set[int]:
        return {id(p) for group in optimiser.param_groups for p in group["params"] if group["lr"] == 0.5}

    kernels = {id(network[0].weight), id(network[2].weight)}
    assert names(found["muon"]) == kernels
    every = {id(p) for p in [*network[:3].parameters(), *flow.parameters()]}
    assert names(found["adam"]) == every - kernels
    assert set(optimisers_for(nn.Linear(2, 2), 0.5)) == {"adam"}


def test_what_shows_little_is_learned_in_any_mixture(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noisy labels, and inputs of sizes 1 to 1/32 mixed by a rotation: Adam never gets to the smallest, Muon does."""
    monkeypatch.setattr(muon, "DECAY", 0.0)  # at so large a rate it would outweigh what shows little
    sizes = torch.logspace(0, -1.5, 8)
    mixing = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    goal = torch.randn(8, 8, generator=generator) @ mixing

    def error(optimise: Callable[[list[nn.Parameter], float], torch.optim.Optimizer], mixing: Tensor) -> float:
        draws = torch.Generator().manual_seed(1)
        kernel = nn.Parameter(torch.zeros(8, 8, 1, 1))
        optimiser = optimise([kernel], 0.1)
        for step in range(300):
            for group in optimiser.param_groups:
                group["lr"] = 0.1 * (1 - step / 300)
            inputs = (sizes * torch.randn(64, 8, generator=draws)) @ mixing
            labels = inputs @ goal.T + 0.3 * torch.randn(64, 8, generator=draws)
            optimiser.zero_grad()
            (nn.functional.conv2d(inputs[..., None, None], kernel)[..., 0, 0] - labels).square().mean().backward()
            optimiser.step()
        left, whole = ((k @ mixing.T)[:, -1].square().sum() for k in (kernel.detach()[..., 0, 0] - goal, goal))
        return float(left / whole)

    def adam(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99))

    assert error(Muon, mixing) < 0.1
    assert error(adam, mixing) > 0.25
    assert error(adam, torch.eye(8)) < 0.1  # where nothing is mixed it has no trouble


def test_the_momentum_is_part_of_the_state(generator: torch.Generator) -> None:
    """Stopped and gone on from its state, the next step is the same."""
    first = [nn.Parameter(torch.zeros(4, 4, 3, 3)), nn.Parameter(torch.zeros(4, 2, 1, 1))]
    gradients = [[torch.randn(p.shape, generator=generator) for p in first] for _ in range(4)]

    def go(parameters: list[nn.Parameter], optimiser: Muon, steps: list[list[Tensor]]) -> None:
        for step in steps:
            for p, g in zip(parameters, step, strict=True):
                p.grad = g.clone()
            optimiser.step()

    one = Muon(first, 1e-2)
    go(first, one, gradients[:2])
    second = copy.deepcopy(first)
    two = Muon(second, 1e-2)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    go(first, one, gradients[2:])
    go(second, two, gradients[2:])
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
