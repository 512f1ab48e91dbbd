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

Where another exposure y' of the same field comes with y (a field that keeps still), its noise is independent of all of
y, so E[y' | x_t] = E[x | x_t] too (Noise2Noise): y' is a second label beside what y still tells, and the only one at
sigma_y, beside the boundary term. Each label weighs as its variance asks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from napari_ambient.recorruption import Further, Recorruption

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
    repeats = True
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

    def shown(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Say which voxels of the measurement to corrupt further and show; of the others nothing is seen."""
        return batch.valid

    def loss(self, prediction: Tensor, batch: Batch, shown: Tensor, further: Further) -> Tensor:
        """Give the loss per voxel of a prediction of what is not `shown`."""
        return self.recorruption.loss(prediction, further)

    def losses(
        self, denoiser: Denoise, average: Denoise, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See `Objective.losses`."""
        form = self.recorruption
        size = len(batch.counts)
        sigma = self.levels(size, generator, batch.counts.device)
        count = self._measured(size, generator) if batch.progress >= self.start else 0
        sigma[:count] = self.level * form.sigma_y
        shown = self.shown(batch, generator)
        further = form.recorrupt(batch.counts, shown, sigma, generator, batch.upright)
        measured = torch.arange(size, device=sigma.device) < count
        seen, seen_sigma, seen_where = further.x_t, sigma, shown
        if count:
            with torch.no_grad():
                taught = average(
                    further.x_t[:count],
                    sigma[:count],
                    corruption=form.corruption,
                    channel=batch.channel[:count],
                    known=self._known(shown[:count]),
                )
            seen = torch.cat([form.measure(batch.counts[:count], batch.valid[:count]), further.x_t[count:]])
            seen_where = torch.cat([batch.valid[:count], shown[count:]])
            seen_sigma = torch.where(measured, torch.full_like(sigma, form.sigma_y), sigma)
        prediction = denoiser(
            seen,
            seen_sigma,
            corruption=form.corruption,
            measured=measured,
            channel=batch.channel,
            known=self._known(seen_where),
        )
        relative = (self.near[1] * form.sigma_y / sigma).clamp_max(1).reshape(-1, *(1,) * (batch.counts.ndim - 1))
        weight = batch.learn / size
        own = self.loss(prediction, batch, shown, further)
        if batch.partner is not None:
            own = own + form.fresh(prediction, batch.partner)
        own = own * weight * relative**self.power
        result = {"ambient": own[count:].sum() / weight[count:].sum().clamp_min(1e-6) * (1 - count / size)}
        if count:
            # in holes too where they are shown as such: the measured term never asks there
            where = torch.ones_like(batch.valid[:count]) if self.shows_holes else batch.valid[:count]
            difference = form.agreement(prediction[:count], taught)
            result["boundary"] = mean_where(difference, where) * (count / size)
            if batch.partner is not None:
                told = form.fresh(prediction[:count], batch.partner[:count])
                result["repeat"] = mean_where(told, batch.learn[:count]) * (count / size)
        return result

    def validation(self, denoiser: Denoise, batch: Batch, generator: torch.Generator) -> Tensor:
        """Held-out loss at the level next to the boundary: an unbiased error up to a constant."""
        form = self.recorruption
        sigma = torch.full((len(batch.counts),), self.level * form.sigma_y, device=batch.counts.device)
        shown = self.shown(batch, generator)
        further = form.recorrupt(batch.counts, shown, sigma, generator, batch.upright)
        prediction = denoiser(
            further.x_t, sigma, corruption=form.corruption, channel=batch.channel, known=self._known(shown)
        )
        return mean_where(self.loss(prediction, batch, shown, further), batch.learn)

    def _measured(self, size: int, generator: torch.Generator) -> int:
        """Give how much of a batch is the boundary term: in batches of few crops, its share on average."""
        share = size * self.boundary
        whole = math.floor(share)
        if share == whole:
            return whole
        return whole + int(float(torch.rand((), generator=generator, device=generator.device)) < share - whole)

    def _known(self, where: Tensor) -> Tensor | None:
        """Give what the denoiser is told of holes."""
        return where if self.shows_holes else None
