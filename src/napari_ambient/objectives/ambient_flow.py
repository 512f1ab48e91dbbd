"""AmbientFlow: a flow as the prior of clean images and a flow as their posterior, trained together.

Kelkar, Deshpande, Banerjee & Anastasio 2023 (arXiv 2309.04856). As FlowDiff (`flow_diff.py`), with an invertible
generator p(x) in the diffusion model's place, whose likelihood is exact. Both flows maximise the importance-weighted
bound on log p(y) from M draws of the posterior flow (Burda et al. 2016, arXiv 1509.00519)

    log p(y) ≥ E log (1/M) Σ_m p(y | A x_m) p(x_m) / q(x_m | y),     x_m ~ q(x | y)

The denoiser, which every prior here needs for its samplers, learns the images that the prior flow makes, and the mean
of the posterior's draws in one call.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from napari_ambient.amortised import AmortisedPosterior
from napari_ambient.networks.flow import ConditionalFlow, choose_flow
from napari_ambient.recorruption import Recorruption, fill, stabilise

from .base import Batch, Denoise, Objective, Setting
from .first_guess import BEGINNING, FirstGuess
from .flow_diff import make_posterior, white_noise_alone
from .gaussian_levels import denoising

ROUGH = 0.2  # of the noise of one exposure, added to the first guesses that the prior flow learns


class AmbientFlow(Objective):
    """Joint training of a prior flow and a posterior flow.

    Parameters
    ----------
    recorruption : Recorruption
        The form of noise.
    draws : int
        M, draws of the posterior per measurement.
    beginning : float
        Share of the training in which the prior flow learns first guesses too (`first_guess.py`).
    """

    name = "ambient_flow"
    one_call = False
    through = ("any",)
    below_itself = True
    planes_alone = True

    def __init__(self, recorruption: Recorruption, *, draws: int = 2, beginning: float = BEGINNING) -> None:
        super().__init__(recorruption)
        white_noise_alone(self.name, recorruption)
        if draws < 1:
            raise ValueError(f"draws is {draws}; give 1 or more")
        self.draws, self.beginning = draws, beginning
        self.guess = FirstGuess()

    def prepare(self, setting: Setting) -> None:
        """See `Objective.prepare`; makes the flows."""
        super().prepare(setting)
        arguments = choose_flow(setting.size, dims=setting.network.dims, conditions=0, anisotropy=setting.anisotropy)
        self.posterior, self.prior = make_posterior(self.name, setting), ConditionalFlow(arguments)
        self.companion = nn.ModuleDict({"posterior": self.posterior, "prior": self.prior})

    def amortised(self, companion: nn.Module) -> AmortisedPosterior | None:
        """See `Objective.amortised`."""
        assert isinstance(companion, nn.ModuleDict)
        posterior = companion["posterior"]
        assert isinstance(posterior, AmortisedPosterior)
        return posterior

    def losses(
        self, denoiser: Denoise, average: Denoise, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See `Objective.losses`; `bound` in nats per clean voxel."""
        bound, drawn = self.bound(batch, generator)
        terms = {"bound": bound}
        with torch.no_grad():
            z = torch.randn(drawn.shape, generator=generator, device=generator.device).to(drawn)
            made = self.posterior.restored(self.prior(z)[0], batch.channel)
        if batch.progress < self.beginning:
            with torch.no_grad():
                made = self.recorruption.scaled(self.guess(batch, batch.evidence()[0], generator))
            # a little noise, for a density of its own to be there
            rough = made + ROUGH * torch.randn(made.shape, generator=generator, device=generator.device).to(made)
            terms["first"] = -self.posterior.log_density(self.prior, rough, batch.channel).mean() / made[0].numel()
        every = torch.ones_like(made, dtype=torch.bool)
        return terms | {
            "denoise": denoising(denoiser, made, every, batch.channel, generator, scales=self.scales),
            "mean": self.recorruption.agreement(self.reconstruct(denoiser, batch), drawn.detach()).mean(),
        }

    @torch.no_grad()
    def validation(self, denoiser: Denoise, batch: Batch, generator: torch.Generator) -> Tensor:
        """Held-out bound on -log p(y), nats per clean voxel."""
        return self.bound(batch, generator)[0]

    def state(self) -> dict[str, Tensor]:
        """See `Objective.state`."""
        return self.guess.state()

    def load(self, state: dict[str, Tensor]) -> None:
        """See `Objective.load`."""
        self.guess.load(state)

    def bound(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Give the bound on -log p(y) per clean voxel, up to what depends on y, and one draw of each crop."""
        form = self.recorruption
        light, known = batch.evidence()
        if not self.prior.initialised:
            self.prior.initialise(self.posterior.normalised(stabilise(light, 1.0), batch.channel))
        rows = []
        for _ in range(self.draws):
            z = torch.randn(light.shape, generator=generator, device=generator.device).to(light)
            x, log_q = self.posterior(z, light, known, batch.channel)
            misfit = form.surprise(fill(batch.counts, batch.valid), batch.expected(form.photons(x))) * batch.learn
            log_p = self.posterior.log_density(self.prior, x, batch.channel)
            rows.append(log_p - misfit.flatten(1).sum(1) - log_q)
        weights = torch.stack(rows)
        bound = torch.logsumexp(weights, 0) - math.log(self.draws)
        return -bound.mean() / x[0].numel(), x
