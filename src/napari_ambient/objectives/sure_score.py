"""SURE-Score: denoise without clean images by Stein's unbiased risk estimate, and learn the prior from the answers.

Aali, Arvinte, Kumar & Tamir 2023 (arXiv 2305.01166). A reconstruction h of the measurement k is judged without the
truth by the unbiased estimate of its error in the measurement (Stein 1981),

    E Σ (A h(k) - A x)² / V  =  E Σ [ (A h - k)² / V + 2 (W / V) ∂(A h)_i / ∂k_i ] + constant

with W = V for Gaussian noise; for photon counts W = k (PURE, to first order: Luisier, Blu & Unser 2011), whatever V
weighs them. The divergence is estimated by one random sign per voxel (Ramani, Blu & Unser 2008). The diffusion model
learns to denoise h(k) as if it were clean: posterior means, which have less detail than the images themselves.

h is the denoiser's own one-call answer to a measurement.
"""

from __future__ import annotations

import torch
from torch import Tensor

from napari_ambient.recorruption import DARKEST, Gaussian, Recorruption, blur, fill, stabilise

from .base import Batch, Denoise, Objective
from .flow_diff import white_noise_alone
from .gaussian_levels import denoising

STEP = 0.1  # of the finite difference, standard deviations of the noise
PILOT = 2.0  # voxels: blur of the measurement that estimates its variance


class SureScore(Objective):
    """Stein's unbiased risk estimate, and denoising score matching on its answers."""

    name = "sure_score"
    one_call = False
    through = ("any",)
    below_itself = True

    def __init__(self, recorruption: Recorruption) -> None:
        super().__init__(recorruption)
        white_noise_alone(self.name, recorruption)

    def losses(
        self, denoiser: Denoise, average: Denoise, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See `Objective.losses`."""
        with torch.autocast(batch.counts.device.type, enabled=False):  # the divergence is a small difference
            risk, clean = self.risk(denoiser, batch, generator)
        every = torch.ones_like(clean, dtype=torch.bool)
        score = denoising(denoiser, clean.detach(), every, batch.channel, generator, scales=self.scales)
        return {"sure": risk, "denoise": score}

    @torch.no_grad()
    def validation(self, denoiser: Denoise, batch: Batch, generator: torch.Generator) -> Tensor:
        """Held-out risk estimate."""
        return self.risk(denoiser, batch, generator)[0]

    def risk(self, denoiser: Denoise, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Estimate the error in the measurement, per voxel in units of the noise, and give the reconstruction."""
        form, counts = self.recorruption, batch.counts
        variance = blur(fill(counts, batch.valid), PILOT).clamp_min(DARKEST)
        weight = torch.ones_like(counts) if isinstance(form, Gaussian) else counts / variance
        sign = torch.randint(2, counts.shape, generator=generator, device=generator.device).to(counts) * 2 - 1
        moved = counts + STEP * variance.sqrt() * sign
        expected, clean = self._expected(denoiser, batch, counts)
        beside, _ = self._expected(denoiser, batch, moved)
        divergence = sign * weight * (beside - expected) / (STEP * variance.sqrt())
        risk = (expected - counts).square() / variance + 2 * divergence
        return (risk * batch.learn).sum() / batch.learn.sum().clamp_min(1), clean

    def _expected(self, denoiser: Denoise, batch: Batch, counts: Tensor) -> tuple[Tensor, Tensor]:
        light, known = Batch(counts, batch.valid, batch.learn, batch.channel, views=batch.views).evidence()
        clean = self.answer(denoiser, stabilise(light, 1.0), batch, known)
        return batch.expected(self.recorruption.photons(clean)), clean
