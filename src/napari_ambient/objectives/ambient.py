"""Ambient training: a denoiser for every level above the data's own, from noisy data alone.

Corrupt the measurement y further, to x_t at level sigma > sigma_y, and learn what y still tells that x_t does not:

    Gaussian   E[y | x_t] = (1 - α) x_t + α E[x | x_t],  α = 1 - sigma_y²/sigma²     (Daras et al. 2024, 2404.10177)
    photons    E[k₂ | k₁] = (1 - p) E[x | k₁],           p = 1/sigma²                 (binomial thinning)

Both identities are exact, so D(x_t, sigma) = E[x | x_t] at every level above sigma_y (`recorruption.py`).

At sigma_y itself, where a measurement is restored, neither form teaches anything (α = 0, p = 1), and a network never
shown an uncorrupted y extrapolates there. So part of each batch is the *boundary* term: D(y, sigma_y) learns the
moving average's answer to y corrupted a little further. Least squares over the draws gives the mean of those answers,

    D(y, sigma_y) → E[ D(x_t, sigma) | y ],

an average over recorruptions in one call. A test holds the two together, within what a short training leaves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from napari_ambient.recorruption import Recorruption

from .base import Batch, Denoise, Objective, mean_where


class Ambient(Objective):
    """Tweedie's formula twice, or thinning; and the boundary term.

    Parameters
    ----------
    recorruption : Recorruption
        Gaussian or thinning.
    near : tuple of float, optional
        Range of the levels next to the boundary, in units of sigma_y; by default what the form asks for.
    far : float
        Share of the levels drawn beyond `near`, up to `sigma_max` (they teach the prior its large structures).
    sigma_max : float
        Highest level, in units of sigma_y.
    boundary : float
        Share of the batch spent on the boundary term (measured after 1500 steps on simulated fields: a quarter 43.32
        dB, half 43.25, half from the first sixth of the training on 43.11).
    start : float
        Progress (0 to 1) at which the boundary term begins.
    level : float, optional
        Level of the recorruption that the boundary term averages over, in units of sigma_y; the lowest of `near`.
    power : float
        Weight of the levels beyond `near`: (near / sigma)^power. Their errors are larger, and at equal weight they
        rule the gradient (measured: -0.6 dB at the boundary).
    """

    name = "ambient"
    one_call = False

    def __init__(
        self,
        recorruption: Recorruption,
        *,
        near: tuple[float, float] | None = None,
        far: float = 0.1,
        sigma_max: float = 20.0,
        boundary: float = 0.25,
        start: float = 0.4,
        level: float | None = None,
        power: float = 2.0,
    ) -> None:
        super().__init__(recorruption)
        near = near or recorruption.near
        if not 1 < near[0] < near[1] <= sigma_max:
            raise ValueError(f"near is {near} and sigma_max {sigma_max}; they must rise from above 1")
        self.near, self.far, self.sigma_max = near, far, sigma_max
        self.boundary, self.start, self.level, self.power = boundary, start, level or near[0], power

    def levels(self, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Draw noise levels: mostly uniform in exposure p = (sigma_y/sigma)² near the boundary, some far above."""
        low, high = (1 / s**2 for s in reversed(self.near))
        draw = torch.rand((3, count), generator=generator, device=generator.device).to(device)
        close = (low + (high - low) * draw[0]).rsqrt()
        distant = torch.exp(math.log(self.near[1]) + (math.log(self.sigma_max / self.near[1])) * draw[1])
        return self.recorruption.sigma_y * torch.where(draw[2] < self.far, distant, close)

    def losses(
        self, denoiser: Denoise, average: Denoise, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See `Objective.losses`."""
        form = self.recorruption
        size = len(batch.counts)
        sigma = self.levels(size, generator, batch.counts.device)
        count = round(size * self.boundary) if batch.progress >= self.start else 0
        sigma[:count] = self.level * form.sigma_y
        further = form.recorrupt(batch.counts, batch.valid, sigma, generator)
        measured = torch.arange(size, device=sigma.device) < count
        seen, seen_sigma = further.x_t, sigma
        if count:
            with torch.no_grad():
                taught = average(
                    further.x_t[:count],
                    sigma[:count],
                    corruption=form.corruption,
                    channel=batch.channel[:count],
                )
            seen = torch.cat([form.measure(batch.counts[:count], batch.valid[:count]), further.x_t[count:]])
            seen_sigma = torch.where(measured, torch.full_like(sigma, form.sigma_y), sigma)
        prediction = denoiser(seen, seen_sigma, corruption=form.corruption, measured=measured, channel=batch.channel)
        relative = (self.near[1] * form.sigma_y / sigma).clamp_max(1).reshape(-1, *(1,) * (batch.counts.ndim - 1))
        weight = batch.learn / size
        own = form.loss(prediction, further) * weight * relative**self.power
        result = {"ambient": own[count:].sum() / weight[count:].sum().clamp_min(1e-6) * (1 - count / size)}
        if count:
            difference = form.agreement(prediction[:count], taught)
            result["boundary"] = mean_where(difference, batch.valid[:count]) * (count / size)
        return result

    def validation(self, denoiser: Denoise, batch: Batch, generator: torch.Generator) -> Tensor:
        """Held-out loss at the level next to the boundary: an unbiased error up to a constant."""
        form = self.recorruption
        sigma = torch.full((len(batch.counts),), self.level * form.sigma_y, device=batch.counts.device)
        further = form.recorrupt(batch.counts, batch.valid, sigma, generator)
        prediction = denoiser(further.x_t, sigma, corruption=form.corruption, channel=batch.channel)
        return mean_where(form.loss(prediction, further), batch.learn)
