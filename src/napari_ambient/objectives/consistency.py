"""Below the noise level, for Gaussian noise: the consistency of D along the reverse SDE.

Let x_s come from x_t, s < t, by the reverse SDE of the exact D. Then D(x_t, t) = E[D(x_s, s) | x_t] (Daras et al. 2024,
arXiv 2404.10177, after Consistent Diffusion Models, arXiv 2302.09057): what was learned from data above sigma_y
determines D all the way down. With two independent chains the squared violation has no bias,

    (D(x_s¹, s) - D(x_t, t)) · (D(x_s², s) - D(x_t, t)),    averaged over x_t.

The gradient is stopped on the higher level t, which was learned from data, or from levels above: with gradients on both
sides D collapsed. Chains are those of the moving average. The ambient loss stays on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from napari_ambient.recorruption import Recorruption
from napari_ambient.samplers import dpm_sde, ladder, seeded_noise

from .ambient import Ambient
from .anchor import Anchor
from .base import Batch, Denoise, Objective, mean_where
from .em import level_denoiser
from .gaussian_levels import LOW


class Consistency(Objective):
    """Training by consistency, beside the ambient loss.

    Parameters
    ----------
    recorruption : Recorruption
        Gaussian.
    calls : int
        Network calls from sigma_y down to t.
    pair_calls : int
        Network calls from t to s, in each of the two chains.
    ratio : float
        Largest t/s.
    above : float
        Level to which a measurement is corrupted before its chain starts, in units of sigma_y; just above 1.
    """

    name = "consistency"
    one_call = False

    def __init__(
        self,
        recorruption: Recorruption,
        *,
        calls: int = 4,
        pair_calls: int = 2,
        ratio: float = 4.0,
        above: float = 1.02,
    ) -> None:
        super().__init__(recorruption)
        if recorruption.corruption != "gaussian":
            raise ValueError("consistency needs the Gaussian form; for photon counting choose virtual_exposures")
        self.ambient = Ambient(recorruption)
        self.anchor = Anchor(recorruption)
        self.calls, self.pair_calls, self.ratio, self.above = calls, pair_calls, ratio, above

    def losses(
        self, denoiser: Denoise, average: Denoise, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See `Objective.losses`."""
        form = self.recorruption
        size = len(batch.counts)
        self.anchor.hold(average)
        result = self.ambient.losses(denoiser, average, batch.part(slice(0, max(1, size // 2))), generator)
        result["anchor"] = self.anchor.loss(denoiser, batch.part(slice(size // 2, None)), generator)
        chained = batch.part(slice(0, max(1, size // 2)))
        high = self.above * form.sigma_y
        with torch.no_grad():
            draw = torch.rand(2, generator=generator, device=generator.device).tolist()
            # s log-uniform from sigma_y down, t above it by up to `ratio`, at most where the data end
            low = high * (LOW / high) ** draw[0]
            upper = min(high, low * self.ratio ** max(draw[1], 0.1))
            start = torch.full((len(chained.counts),), high, device=chained.counts.device)
            x = form.recorrupt(chained.counts, chained.valid, start, generator, chained.upright).x_t

            def denoise(x_t: Tensor, sigma: float) -> Tensor:
                return level_denoiser(average, x_t, sigma, chained.channel)

            noise = seeded_noise(generator)
            if upper < high * 0.999:
                for _, reached in dpm_sde(denoise, x, ladder(high, upper, self.calls + 1, end=False), noise):
                    x = reached
            above = denoise(x, upper)
            pairs = []
            for _ in range(2):
                end = x
                if low < upper * 0.999:
                    for _, reached in dpm_sde(denoise, x, ladder(upper, low, self.pair_calls + 1, end=False), noise):
                        end = reached
                pairs.append(end)
        one, two = (level_denoiser(denoiser, pair, low, chained.channel) - above for pair in pairs)
        # each level of order one: the spread of D(x_s) given x_t is of the order of t
        product = one * two / max(upper, LOW) ** 2
        result["consistency"] = mean_where(product, chained.valid)
        if not math.isfinite(float(result["consistency"].detach())):
            raise FloatingPointError("the consistency loss is not finite: lower the learning rate")
        return result

    def validation(self, denoiser: Denoise, batch: Batch, generator: torch.Generator) -> Tensor:
        """Held-out ambient loss: what this stage must not make worse."""
        return self.ambient.validation(denoiser, batch, generator)

    def state(self) -> dict[str, Tensor]:
        """See `Objective.state`."""
        return self.anchor.state()

    def load(self, state: dict[str, Tensor]) -> None:
        """See `Objective.load`."""
        self.anchor.load(state)
