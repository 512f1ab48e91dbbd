"""Fine-tune a network by low-rank changes of its convolutions, and fold them in afterwards.

LoRA (Hu et al. 2021, arXiv 2106.09685): the weights W that were learned before stay as they are, and each
convolution answers with

    W + (alpha/r) B A,    A ~ N(0, 1/columns), B = 0 at the start

where W, a kernel (out, in, ...), is read as a matrix of `out` rows and in·kernel columns, B has r columns and A has
r rows. At the start nothing has changed; at the end W + (alpha/r) B A is a kernel like any other, so that a network
that was fine-tuned this way is stored and run as if it had never heard of it.

Of the 598 108 numbers of the small 2D network, r = 4 trains 34 144 (6 %) and r = 8 trains 66 544 (11 %).

`training.py` calls `add_low_rank` when `TrainConfig.low_rank` is above 0, and `merged_state` whenever it makes a prior.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

ALPHA = 64.0
"""Scale of the change, chosen so that the learning rate for all weights suits the changes too.

Adam moves each element of B by about the learning rate, and B's step reaches the kernel through A, whose elements are
of size 1/√columns (1/21 to 1/29 for the 3×3 kernels of the small 2D network): alpha/r has to make up for that.
Measured with the learning rate 2e-3 and 90 steps of batch 4 on six simulated fields, from a prior of 500 steps on
`sample_data/filaments_2d.tif` (PSNR in dB of the one-call mean; one seed: 0.2 dB means little):

    fields                      as begun   all weights   r = 4, alpha 4   16      64      256     r = 8, 64   r = 16, 64
    filaments, coarser pixels   35.19      38.24         37.40            37.76   37.89           38.00       38.02
    dim mitochondria            42.53      45.38         45.21            45.31   45.38   44.98   45.43       45.59

The mitochondria are not akin to what the prior knew: from scratch the same steps reach 46.48 there. With one field of
filaments of 128 × 128 pixels and 100 steps, scored on the other five: all weights 37.73 (and what they knew before
falls from 42.04 to 35.74), r = 4 37.31 (to 36.62). In these single runs low rank forgot less and came close to all
weights, but did not surpass them on the filaments; nor does it keep a single small field from being overfitted: after
400 steps 36.81, all weights 36.65.
"""


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
