"""Blind-spot training: Noise2Void (Krull, Buchholz & Jug 2019, arXiv 1811.10980).

A few voxels of the input are replaced by one of their neighbours in the plane, and the network is asked only for what
was there. White noise cannot be predicted from the neighbours, so the Poisson deviance ``λ - y log λ`` at those voxels
has its minimum at the expectation of x given the neighbourhood without its centre.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .base import Batch, Denoise, Objective, mean_where

MASKED_SHARE = 0.02
RADIUS = 2


class BlindSpot(Objective):
    """Noise2Void masking with uniform replacement from a 5 × 5 window, never the voxel itself."""

    name = "blind_spot"

    def losses(
        self, denoiser: Denoise, average: Denoise, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See `Objective.losses`."""
        counts = batch.counts
        masked = torch.rand(counts.shape, generator=generator, device=generator.device).to(counts.device) < MASKED_SHARE
        seen = torch.where(masked, _neighbour(counts, generator), counts)
        prediction = self.answer(denoiser, self.recorruption.measure(seen, batch.valid), batch)
        rate = self.recorruption.photons(prediction)
        return {"blind_spot": mean_where(rate - counts * rate.log(), masked & batch.learn)}


def _neighbour(counts: Tensor, generator: torch.Generator) -> Tensor:
    """Give for each voxel a random other voxel of its 5 × 5 window in the plane."""
    height, width = counts.shape[-2:]
    side = 2 * RADIUS + 1
    flat = counts.reshape(-1, 1, height, width)
    padded = functional.pad(flat, (RADIUS,) * 4, mode="reflect")
    draw = torch.randint(side * side - 1, flat.shape, generator=generator, device=generator.device).to(counts.device)
    draw = draw + (draw >= side * side // 2)  # skip the centre
    rows = torch.arange(height, device=counts.device).reshape(-1, 1) + draw // side
    columns = torch.arange(width, device=counts.device) + draw % side
    index = rows * (width + 2 * RADIUS) + columns
    return padded.flatten(1).gather(1, index.flatten(1)).reshape(counts.shape)
