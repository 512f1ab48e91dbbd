"""A posterior that has been learned: one call of a conditional flow draws a clean image from its measurement.

    x = centre + spread · G(z; seen),    z standard normal,    log q(x | y) = log N(z) - log |det dG/dz| - n log spread

G is an invertible network (`networks/flow.py`) and `seen` what the measurement shows on the voxels of the clean image:
its counts, brought to the light of one voxel and stabilised as the denoiser's input is, and where anything was measured
at all. The operator itself is not told to G: it is learned for the operator that it was trained with, and for no other.
FlowDiff (Wang, Bai, Luo, Chen & Sun 2024, arXiv 2407.11162) and AmbientFlow (Kelkar et al. 2023, arXiv 2309.04856)
train one, `objectives/flow_diff.py` and `objectives/ambient_flow.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .denoiser import Scale
from .networks.flow import ConditionalFlow, FlowArguments
from .recorruption import fill, stabilise

LEAST = 1e-3  # of the brightest voxel's share of light, below which a voxel counts as not measured


class AmortisedPosterior(nn.Module):
    """q(x | y), by a conditional flow.

    Parameters
    ----------
    flow : ConditionalFlow
        G, with the two conditioning channels of `evidence`.
    scales : sequence of Scale
        Mean and spread of the clean scaled intensity of every image channel, as in the denoiser.
    """

    def __init__(self, flow: ConditionalFlow, scales: Sequence[Scale]) -> None:
        super().__init__()
        if flow.arguments.conditions != 2:
            raise ValueError(f"the flow has {flow.arguments.conditions} conditioning channels; it must have 2")
        self.flow = flow
        self.register_buffer("scales", torch.tensor([list(s) for s in scales], dtype=torch.float32))

    @property
    def arguments(self) -> FlowArguments:
        """The flow's arguments."""
        return self.flow.arguments

    def forward(self, z: Tensor, light: Tensor, known: Tensor, channel: Tensor | int = 0) -> tuple[Tensor, Tensor]:
        """Draw.

        Parameters
        ----------
        z : Tensor, shape (B, 1, [Z,] Y, X)
            Standard normals.
        light, known : Tensor, shape of `z`
            From `evidence`.
        channel : Tensor of shape (B,) or int
            Image channel of each sample.

        Returns
        -------
        x : Tensor, shape of `z`
            Clean images, in scaled intensity.
        log_q : Tensor, shape (B,)
            log q(x | y), nats, but for the constant of the standard normal.
        """
        light = stabilise(light, 1.0)
        seen = torch.cat([self.normalised(light, channel), known.to(light.dtype)], dim=1)
        with torch.autocast(z.device.type, enabled=False):  # densities need their digits
            u, log_det = self.flow(z, seen)
        _, spread = self._scale(z, channel)
        log_q = -0.5 * z.square().flatten(1).sum(1) - log_det - z[0].numel() * spread.flatten().log()
        return self.restored(u, channel), log_q

    def normalised(self, x: Tensor, channel: Tensor | int = 0) -> Tensor:
        """Bring scaled intensity to mean 0 and spread 1."""
        centre, spread = self._scale(x, channel)
        return (x - centre) / spread

    def restored(self, u: Tensor, channel: Tensor | int = 0) -> Tensor:
        """Undo `normalised`."""
        centre, spread = self._scale(u, channel)
        return centre + spread * u

    def log_density(self, flow: ConditionalFlow, x: Tensor, channel: Tensor | int = 0) -> Tensor:
        """Give log p(x) of images (B, 1, [Z,] Y, X) in scaled intensity under a flow of normalised ones, nats, (B,).

        As with `forward`, without the constant of the standard normal.
        """
        _, spread = self._scale(x, channel)
        with torch.autocast(x.device.type, enabled=False):
            z, log_det = flow.inverse(self.normalised(x, channel))
        return -0.5 * z.square().flatten(1).sum(1) + log_det - x[0].numel() * spread.flatten().log()

    def channel(self, index: int) -> AmortisedPosterior:
        """Give the posterior of one image channel."""
        scales: Tensor = self.scales  # type: ignore[assignment]
        module = AmortisedPosterior(ConditionalFlow(self.arguments), [Scale(*scales[index].tolist())])
        module.flow.load_state_dict(self.flow.state_dict())
        return module.to(scales.device).eval().requires_grad_(False)

    def _scale(self, like: Tensor, channel: Tensor | int) -> tuple[Tensor, Tensor]:
        scales: Tensor = self.scales  # type: ignore[assignment]
        index = torch.as_tensor(channel, device=scales.device).expand(len(like))
        view = (len(like),) + (1,) * (like.ndim - 1)
        centre, spread = (scales[index, i].reshape(view) for i in (0, 1))
        return centre, spread


def measured(bright: Tensor) -> Tensor:
    """Say where A 1, (B, C, [Z,] Y, X), is bright enough for its voxels to count as measured."""
    return bright > LEAST * bright.amax(tuple(range(1, bright.ndim)), keepdim=True)


def evidence(counts: Tensor, valid: Tensor | None, bright: Tensor, stride: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Say what a measurement shows, on the voxels of the clean image.

    Parameters
    ----------
    counts : Tensor, shape (B, 1, [Z,] Y, X)
        Photo-electrons.
    valid : Tensor of bool, same shape, or None
        False at hot pixels and holes.
    bright : Tensor, same shape
        A 1: what an evenly lit image of one photo-electron per clean voxel would give.
    stride : sequence of int
        (Z, Y, X) clean voxels per measured one.

    Returns
    -------
    light : Tensor, shape (B, 1, [Z,] Y, X) of the clean image
        Photo-electrons per clean voxel, if the light were even within each measured one; where nothing was measured,
        that of the neighbours.
    known : Tensor of bool, same shape
        Where something was measured.
    """
    known = measured(bright)
    if valid is not None:
        known = known & valid
    light = fill(torch.where(known, counts / bright.clamp_min(1e-12), torch.zeros_like(counts)), known)
    dims = counts.ndim - 2
    for axis, step in enumerate(tuple(stride)[-dims:]):
        if step > 1:
            light, known = (v.repeat_interleave(step, dim=2 + axis) for v in (light, known))
    return light, known


def amortised_from(arguments: dict[str, Any], state: dict[str, Tensor]) -> AmortisedPosterior:
    """Build one again from what a prior bundle keeps."""
    flow = ConditionalFlow(FlowArguments.from_dict(arguments))
    module = AmortisedPosterior(flow, [Scale(*row) for row in state["scales"].tolist()])
    module.load_state_dict(state)
    return module
