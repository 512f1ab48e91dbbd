"""Below the noise level, for photons: train on exposures longer than the measurement.

Photons are counted on, beyond the measurement k at exposure 1, with the moving average of the network as the rate
(`samplers.accumulate`), to K at exposure P: "what a P times longer exposure would have counted". Such a *virtual
exposure* is a draw from the posterior. Thinning it to p in [1, P], k₁ ~ Binomial(K, p/P), k₂ = K - k₁, gives

    E[k₂ | k₁] = (P - p) E[x | k₁],

the same loss as for the measurement itself, and teaches D at sigma = 1/√p, below the measurement's own noise level. It
is the photon twin of expectation maximisation with online posterior draws (Rozet et al. 2024, arXiv 2405.13712;
Bai et al. 2024, arXiv 2407.01014): the measured photons stay part of K, so what they tell is never lost.

In the same stage the prior becomes a Gaussian diffusion prior: the light λ = D(K) at the end of a virtual exposure is
a clean image z = 2 √λ, on which D(z + sigma e, sigma) is trained at all levels. The ambient loss stays on, so that D at
the measurement's own level keeps what it learned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from napari_ambient.recorruption import Recorruption, Thinning, fill, stabilise
from napari_ambient.samplers import accumulate, exposure_ladder, seeded_noise
from napari_ambient.splitting import binomial

from .base import Batch, Denoise, mean_where
from .draw_stage import DrawStage
from .gaussian_levels import denoising


class VirtualExposures(DrawStage):
    """Training on virtual exposures, beside the ambient loss.

    Parameters
    ----------
    recorruption : Recorruption
        Thinning.
    longest : float
        Exposure P of the virtual exposures, in units of the measurement's. A draw is E[x | K], which lacks the variance
        that K leaves: 6 to 12 % of it at P = 16 after a long training, and then error bars too narrow by a fifth
        (FMD MICE, 1200 + 800 steps: rms error over rms standard deviation 1.21 with P = 16, 0.93 with 32, 0.87 with
        64; 90 % intervals hold 79, 89 and 91 % of the foreground).
    calls : int
        Network calls per virtual exposure.
    capacity : int
        Virtual exposures held.
    refresh : int
        Steps between new ones (a batch at a time).
    upper : float
        Longest exposure that is trained, relative to P.
    """

    name = "virtual_exposures"

    def __init__(
        self,
        recorruption: Recorruption,
        *,
        longest: float = 32.0,
        calls: int = 14,
        capacity: int = 96,
        refresh: int = 4,
        upper: float = 0.8,
    ) -> None:
        super().__init__(recorruption, capacity=capacity, refresh=refresh)
        if not isinstance(recorruption, Thinning):
            raise ValueError("virtual exposures need the thinning form; for the Gaussian form choose em or consistency")
        self.longest, self.calls, self.upper = longest, calls, upper

    def learn(self, denoiser: Denoise, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Learn from thinned virtual exposures, and to denoise the light at their end."""
        half = max(1, size // 2)
        thinned = self._thinned(denoiser, self.buffer.draw(half, generator), generator)
        clean = self.buffer.draw(half, generator)
        gaussian = denoising(denoiser, clean["light"], clean["valid"], clean["channel"], generator, scales=self.scales)
        return {"virtual": thinned, "gaussian": gaussian}

    def draw(self, average: Denoise, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a virtual exposure of every crop."""
        form = self.recorruption
        base = fill(batch.counts, batch.valid)

        def rate(counts: Tensor, exposure: float) -> Tensor:
            return photon_rate(form, average, counts, exposure, batch.channel)

        exposures = exposure_ladder(self.longest, self.calls)
        counts = base
        for _, reached in accumulate(rate, base, exposures, seeded_noise(generator)):
            counts = reached
        light = form.scaled(rate(counts, self.longest))
        return {
            "base": base,
            "added": counts - base,
            "light": light,
            "valid": batch.valid,
            "channel": batch.channel,
            "upright": torch.ones_like(batch.channel, dtype=torch.bool) if batch.upright is None else batch.upright,
        }

    def _thinned(self, denoiser: Denoise, rows: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        form = self.recorruption
        assert isinstance(form, Thinning)
        base, added = rows["base"], rows["added"]
        draw = torch.rand(len(base), generator=generator, device=generator.device).to(base.device)
        exposure = (self.upper * self.longest) ** draw
        view = (-1,) + (1,) * (base.ndim - 1)
        share = (exposure / self.longest).reshape(view)
        first = form.part(base, base, share, generator, rows["upright"]) + binomial(
            added, share.expand_as(added), generator
        )
        left = (base + added - first) / self.longest
        seen = stabilise(first, exposure.reshape(view))
        prediction = denoiser(seen, exposure.rsqrt(), corruption=form.corruption, channel=rows["channel"])
        rate = form.photons(prediction)
        loss = (1 - share) * rate - left * rate.log()
        return mean_where(loss, rows["valid"])


def photon_rate(
    form: Recorruption, denoise: Denoise, counts: Tensor, exposure: float, channel: Tensor | int = 0
) -> Tensor:
    """Give E[photo-electrons per unit of exposure | counts], r(k, p), for `samplers.accumulate`.

    Parameters
    ----------
    form : Thinning
        The form of noise.
    denoise : callable
        The denoiser.
    counts : Tensor, shape (B, C, [Z,] Y, X)
        Photo-electrons up to the exposure.
    exposure : float
        p, 1 at the measurement.
    channel : Tensor or int
        Image channel of each sample.

    Returns
    -------
    Tensor
        Photo-electrons, above 0.
    """
    sigma = torch.full((len(counts),), exposure**-0.5, device=counts.device)
    seen = stabilise(counts, exposure)
    return form.photons(
        denoise(seen, sigma, corruption=form.corruption, measured=exposure == 1, channel=channel).to(torch.float32)
    )
