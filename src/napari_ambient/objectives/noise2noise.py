"""Noise2Noise: predict one exposure from another of the same field (Lehtinen et al. 2018, arXiv 1803.04189).

The noise of the second exposure y' is independent of the first, so E[y' | y] = E[x | y] and the Poisson deviance
``λ - y' log λ`` has its minimum at λ = E[x | y]. Needs repeats of a field that does not move.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Batch, Denoise, Objective, mean_where


class Noise2Noise(Objective):
    """Regression of one exposure on another."""

    name = "noise2noise"
    partner = "time"
    repeats = True

    def losses(
        self, denoiser: Denoise, average: Denoise, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See `Objective.losses`; the batch's partner is another exposure."""
        assert batch.partner is not None
        rate = self.recorruption.photons(
            self.answer(denoiser, self.recorruption.measure(batch.counts, batch.valid), batch)
        )
        return {"noise2noise": mean_where(rate - batch.partner * rate.log(), batch.learn)}
