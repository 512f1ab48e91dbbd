"""Fine-tune a network by low-rank changes of its convolutions, and fold them in afterwards.

LoRA (Hu et al. 2021, arXiv 2106.09685): the weights W that were learned before stay as they are, and each
convolution answers with

    W + (alpha/r) B A,    A ~ N(0, 1/columns), B = 0 at the start

where W, a kernel (out, in, ...), is read as a matrix of `out` rows and in·kernel columns, B has r columns and A has
r rows. At the start nothing has changed; at the end W + (alpha/r) B A is a kernel like any other, so that a network
that was fine-tuned this way is stored and run as if it had never heard of it.

`training.py` calls `add_low_rank` when `TrainConfig.low_rank` is above 0, and `merged_state` whenever it makes a prior.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

ALPHA = 16.0
"""Scale of the change."""


class LowRank(nn.Module):
    """The change of one convolution: W to W + (alpha/r) B A.

    Parameters
    ----------
    weight : Tensor, shape (out, in, ...)
        The kernel W; gives shape, type and device.
    rank : int
        Largest rank of the change, >= 1. A kernel with fewer rows or columns is changed without restriction.
    generator : torch.Generator
        Draws A (on the generator's device, so that the same seed gives the same A wherever W is).
    alpha : float
        Scale of the change.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator, *, alpha: float = ALPHA) -> None:
        super().__init__()
        rows, columns = len(weight), weight[0].numel()
        rank = min(rank, rows, columns)
        self.scale = alpha / rank
        draw = torch.randn(rank, columns, generator=generator, device=generator.device) / columns**0.5
        self.A = nn.Parameter(draw.to(weight))
        self.B = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Give the kernel with its change."""
        # float32 also in mixed precision: else the kernel that training sees is not the one that is kept
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.scale * (self.B @ self.A).reshape(weight.shape)


def add_low_rank(module: nn.Module, rank: int, generator: torch.Generator, *, alpha: float = ALPHA) -> None:
    """Freeze a network and give each of its convolutions a trainable change of low rank.

    Parameters
    ----------
    module : nn.Module
        The network (changed in place); its answers stay what they are. Only the factors A and B of the changes can be
        trained afterwards, r (out + in·kernel) numbers per convolution instead of out·in·kernel; biases and the layers
        that are no convolutions are frozen with the kernels.
    rank : int
        Largest rank r of each change.
    generator : torch.Generator
        Draws the factors A.
    alpha : float
        Scale of the changes.

    Raises
    ------
    ValueError
        If the rank is below 1, or so high that it restricts no convolution; if there is no convolution, or they have
        such a change already.
    """
    found = convolutions(module)
    if not found:
        raise ValueError(f"{type(module).__name__} has no convolution that could be changed by low rank")
    if any(parametrize.is_parametrized(c) for c in found.values()):
        raise ValueError(f"{type(module).__name__} has low-rank changes already; merge them first (merged_state)")
    full = max(min(len(c.weight), c.weight[0].numel()) for c in found.values())
    if not 1 <= rank < full:
        raise ValueError(
            f"the rank of the change is {rank}; choose 1 to {full - 1} (the widest convolution has rank {full}), "
            "or train all weights"
        )
    module.requires_grad_(False)
    for convolution in found.values():
        change = LowRank(convolution.weight, rank, generator, alpha=alpha)
        parametrize.register_parametrization(convolution, "weight", change)


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """Give a network's state with the low-rank changes folded into the kernels.

    Parameters
    ----------
    module : nn.Module
        A network, with or without low-rank changes; it is left as it is.

    Returns
    -------
    dict of str to Tensor
        What `state_dict` gives of the same network without such changes. Tensors that are not merged are the network's
        own, not copies.
    """
    state: dict[str, Tensor] = module.state_dict()
    for name, convolution in convolutions(module).items():
        if parametrize.is_parametrized(convolution):
            prefix = f"{name}." if name else ""
            for key in [k for k in state if k.startswith(f"{prefix}parametrizations.")]:
                del state[key]
            state[f"{prefix}weight"] = convolution.weight.detach()
    return state


def convolutions(module: nn.Module) -> dict[str, nn.Conv2d | nn.Conv3d]:
    """Give the convolutions of a network by name, in the network's order."""
    return {name: part for name, part in module.named_modules() if isinstance(part, (nn.Conv2d, nn.Conv3d))}
