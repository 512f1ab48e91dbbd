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

from napari_ambient.recorruption import Recorruption, Thinning, blur, fill, stabilise
from napari_ambient.samplers import accumulate, exposure_ladder, seeded_noise
from napari_ambient.splitting import binomial, split

from .ambient import Ambient
from .anchor import Anchor
from .base import Batch, Denoise, Objective, mean_where
from .buffer import Buffer
from .gaussian_levels import denoising


class VirtualExposures(Objective):
    """Training on virtual exposures, beside the ambient loss.

    Parameters
    ----------
    recorruption : Recorruption
        Thinning.
    longest : float
        Exposure P of the virtual exposures, in units of the measurement's.
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
    one_call = False

    def __init__(
        self,
        recorruption: Recorruption,
        *,
        longest: float = 16.0,
        calls: int = 12,
        capacity: int = 96,
        refresh: int = 4,
        upper: float = 0.8,
    ) -> None:
        super().__init__(recorruption)
        if not isinstance(recorruption, Thinning):
            raise ValueError("virtual exposures need the thinning form; for the Gaussian form choose em or consistency")
        self.ambient = Ambient(recorruption)
        self.anchor = Anchor(recorruption)
        self.longest, self.calls, self.refresh, self.upper = longest, calls, refresh, upper
        self.buffer = Buffer(capacity)
        self._steps = 0

    def losses(
        self, denoiser: Denoise, average: Denoise, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See `Objective.losses`."""
        size = len(batch.counts)
        self.anchor.hold(average)
        if len(self.buffer) < self.buffer.capacity or self._steps % self.refresh == 0:
            self.buffer.add(self.expose(average, batch, generator))
        self._steps += 1
        result = self.ambient.losses(denoiser, average, batch.part(slice(0, max(1, size // 2))), generator)
        result["anchor"] = self.anchor.loss(denoiser, batch.part(slice(size // 2, None)), generator)
        half = max(1, size // 2)
        result["virtual"] = self._thinned(denoiser, self.buffer.draw(half, generator), generator)
        clean = self.buffer.draw(half, generator)
        result["gaussian"] = denoising(denoiser, clean["light"], clean["valid"], clean["channel"], generator)
        return result

    def validation(self, denoiser: Denoise, batch: Batch, generator: torch.Generator) -> Tensor:
        """Held-out ambient loss: what this stage must not make worse."""
        return self.ambient.validation(denoiser, batch, generator)

    @torch.no_grad()
    def expose(self, average: Denoise, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
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
        }

    def _thinned(self, denoiser: Denoise, rows: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        form = self.recorruption
        assert isinstance(form, Thinning)
        base, added = rows["base"], rows["added"]
        draw = torch.rand(len(base), generator=generator, device=generator.device).to(base.device)
        exposure = (self.upper * self.longest) ** draw
        view = (-1,) + (1,) * (base.ndim - 1)
        share = (exposure / self.longest).reshape(view)
        first = split(
            base,
            blur(base, 2.0),
            share,
            read_variance=form.read_variance,
            pulse_shape=form.pulse_shape,
            generator=generator,
        ) + binomial(added, share.expand_as(added), generator)
        left = (base + added - first) / self.longest
        seen = stabilise(first, exposure.reshape(view))
        prediction = denoiser(seen, exposure.rsqrt(), corruption=form.corruption, channel=rows["channel"])
        rate = form.photons(prediction)
        loss = (1 - share) * rate - left * rate.log()
        return mean_where(loss, rows["valid"])

    def state(self) -> dict[str, Tensor]:
        """See `Objective.state`."""
        return {**self.buffer.state(), **self.anchor.state(), "steps": torch.tensor(self._steps)}

    def load(self, state: dict[str, Tensor]) -> None:
        """See `Objective.load`."""
        self._steps = int(state["steps"])
        self.anchor.load(state)
        self.buffer.load({k: v for k, v in state.items() if k != "steps" and not k.startswith("anchor.")})


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
