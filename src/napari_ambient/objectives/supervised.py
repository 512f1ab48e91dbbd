"""Supervised training on clean targets: the oracle of the benchmarks.

Minimises the Poisson deviance ``λ - x log λ`` of the clean photo-electrons x under the prediction λ = D(y), whose
minimum is at λ = E[x | y]. Users have no clean targets; this says what they would gain by them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Batch, Denoise, Objective, mean_where


class Supervised(Objective):
    """Regression of the clean target on the measurement."""

    name = "supervised"
    partner = "target"

    def losses(
        self, denoiser: Denoise, average: Denoise, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See `Objective.losses`; the batch's partner is the clean target."""
        assert batch.partner is not None
        rate = self.recorruption.photons(
            self.answer(denoiser, self.recorruption.measure(batch.counts, batch.valid), batch)
        )
        return {"supervised": mean_where(rate - batch.partner * rate.log(), batch.learn)}
