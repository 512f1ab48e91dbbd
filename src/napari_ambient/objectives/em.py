"""Below the noise level, for Gaussian noise: expectation maximisation with online posterior draws.

A measurement, corrupted a little further, is an image at level sigma_y of the diffusion; so the reverse SDE from there,
with the moving average of the network as D, draws from its posterior (the E-step). D is trained on the draws as clean
images, at all levels (the M-step), and draws are refreshed all the time. Rozet et al. 2024 (arXiv 2405.13712), Bai et
al. 2024 (arXiv 2407.01014), Daras et al. 2024 (stochastic forward-backward deconvolution, arXiv 2411.12077). The E-step
needs a second-order SDE sampler: ancestral steps lose variance, and each round would lose it again.

A component of variance S converges as (1 - g²) per round, g = S/(S + sigma_y²): detail far below the noise cannot be
learned from noisy data alone. For the same reason whatever a round gets wrong is magnified 1/g² times where the rounds
settle: on two modes of spread 0.20 under noise of 0.5, twelve rounds ended at 0.09 (`benchmarks/below_sigma.py`), where
consistency, which has no rounds, gave 0.20; on images its error bars are a quarter to a half too wide. So it is there
for comparison, and consistency is the rule. The ambient loss stays on, so that D at sigma_y keeps what it learned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from napari_ambient.recorruption import Recorruption
from napari_ambient.samplers import dpm_sde, ladder, seeded_noise

from .base import Batch, Denoise
from .draw_stage import DrawStage
from .gaussian_levels import LOW, denoising


class ExpectationMaximisation(DrawStage):
    """Training on posterior draws, beside the ambient loss.

    Parameters
    ----------
    recorruption : Recorruption
        Gaussian.
    calls : int
        Network calls per draw.
    capacity : int
        Draws held.
    refresh : int
        Steps between new ones (a batch at a time).
    above : float
        Level to which a measurement is corrupted before drawing, in units of sigma_y; just above 1.
    """

    name = "em"

    def __init__(
        self,
        recorruption: Recorruption,
        *,
        calls: int = 16,
        capacity: int = 96,
        refresh: int = 4,
        above: float = 1.02,
    ) -> None:
        super().__init__(recorruption, capacity=capacity, refresh=refresh)
        if recorruption.corruption != "gaussian":
            raise ValueError("em needs the Gaussian form; for photon counting choose virtual_exposures")
        self.calls, self.above = calls, above

    def learn(self, denoiser: Denoise, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Learn to denoise the draws, below the measurement's level only: above it they would blur what data taught."""
        clean = self.buffer.draw(size, generator)
        high = self.above * self.recorruption.sigma_y
        loss = denoising(
            denoiser, clean["image"], clean["valid"], clean["channel"], generator, high=high, scales=self.scales
        )
        return {"gaussian": loss}

    def draw(self, average: Denoise, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a clean image of every crop from its posterior."""
        form = self.recorruption
        high = self.above * form.sigma_y
        start = torch.full((len(batch.counts),), high, device=batch.counts.device)
        x = form.recorrupt(batch.counts, batch.valid, start, generator, batch.upright).x_t

        def denoise(x_t: Tensor, sigma: float) -> Tensor:
            return level_denoiser(average, x_t, sigma, batch.channel)

        for _, reached in dpm_sde(denoise, x, ladder(high, LOW, self.calls), seeded_noise(generator)):
            x = reached
        return {"image": x, "valid": batch.valid, "channel": batch.channel}


def level_denoiser(denoise: Denoise, x_t: Tensor, sigma: float, channel: Tensor | int = 0) -> Tensor:
    """Call D(x_t, sigma) with one Gaussian level for all."""
    level = torch.full((len(x_t),), sigma, device=x_t.device)
    return denoise(x_t, level, corruption="gaussian", channel=channel).to(torch.float32)
