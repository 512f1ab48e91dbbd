"""Ambient Diffusion: learn to fill what was not measured by hiding more of what was.

Daras, Shah, Dagan, Gollakota, Dimakis & Klivans 2023 (arXiv 2305.19256). Each measurement lacks some voxels: dead
pixels, sparse scans. A random share of the measured ones is hidden too, and the denoiser, which is told what is missing
but not why, must predict all that was measured. It cannot know which of the missing voxels will be asked for, so it
learns E[x | what is left] at every voxel. The measured voxels are noisy, so they are corrupted further as well, as in
`ambient.py`; a hidden voxel is one of exposure p = 0, all of whose counts are left to predict:

    thinning   k₁ ~ Binomial(k, p) where seen, nothing where hidden;   E[k₂ | k₁] = (1 - p) E[x | k₁],  p = 0 if hidden
    Gaussian   x_t where seen;   E[z | x_t] = E[x | x_t] where hidden

Holes are filled with the mean of their neighbours, and a further channel tells the network where they are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from napari_ambient.operators import Compose, Mask, Operator
from napari_ambient.recorruption import Further, Recorruption

from .ambient import Ambient
from .base import Batch, Denoise, ObjectiveError, Setting

HIDDEN = 0.15
"""Share of the measured voxels that is hidden; Daras et al. take 0.1 to 0.3."""


class AmbientMask(Ambient):
    """Further masking beside further noise.

    Parameters
    ----------
    recorruption : Recorruption
        Gaussian or thinning.
    hidden : float
        Share of the measured voxels that is hidden, above 0 and below 1.
    """

    name = "ambient_mask"
    through = ("mask",)
    shows_holes = True
    planes_alone = True

    def __init__(self, recorruption: Recorruption, *, hidden: float = HIDDEN) -> None:
        super().__init__(recorruption)
        if not 0 < hidden < 1:
            raise ValueError(f"hidden is {hidden}; it must be between 0 and 1")
        self.hidden = hidden

    def prepare(self, setting: Setting) -> None:
        """See `Objective.prepare`; illumination maps are refused."""
        super().prepare(setting)
        for mask in _masks(setting.operator):
            if not np.isin(mask.map, (0, 1)).all():
                raise ObjectiveError(
                    f"{self.name} knows voxels that were measured or not, and the mask has other factors "
                    f"({mask.describe()}); choose flow_diff, or divide the images by the illumination first"
                )

    def shown(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """See `Ambient.shown`; a random share of what was measured is hidden."""
        draw = torch.rand(batch.counts.shape, generator=generator, device=generator.device).to(batch.counts.device)
        return batch.valid & (draw >= self.hidden)

    def loss(self, prediction: Tensor, batch: Batch, shown: Tensor, further: Further) -> Tensor:
        """See `Ambient.loss`: what thinning left where the voxel was shown, all its counts where it was hidden."""
        form = self.recorruption
        return torch.where(shown, form.loss(prediction, further), form.fresh(prediction, batch.counts))

    def reconstruct(self, denoiser: Denoise, batch: Batch) -> Tensor:
        """See `Objective.reconstruct`."""
        return self.answer(denoiser, self.recorruption.measure(batch.counts, batch.valid), batch, batch.valid)


def _masks(operator: Operator) -> list[Mask]:
    parts = operator.operators if isinstance(operator, Compose) else (operator,)
    return [part for part in parts if isinstance(part, Mask)]
