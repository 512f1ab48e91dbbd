"""FlowDiff: a flow that infers clean images and a diffusion prior of them, trained together on corrupted images alone.

Wang, Bai, Luo, Chen & Sun 2024 (arXiv 2407.11162). The conditional flow q(x | y) draws clean images of every
measurement (`amortised.py`); the diffusion model learns their distribution, and is the flow's prior in turn. Both
minimise one bound on -log p(y), per measurement

    E_q [ -log p(y | A x) + log q(x | y) - log p(x) ],     -log p(x) ≤ ∫ E ‖D(x + sigma e, sigma) - x‖² / sigma³ dsigma

(the likelihood bound of diffusion models: Song et al. 2021, arXiv 2101.09258; in this form Kingma et al. 2021,
2107.00630, up to a constant). The denoiser takes its own part as ordinary denoising of the flow's draws, at Karras et
al.'s weights, the flow takes the gradient of the bound through a denoiser that is held fixed, the moving average.
Before it has learned anything that denoiser is the one of a white Gaussian prior of the images' mean and spread, so the
bound is proper from the first step on; in the beginning it learns smooth guesses (`first_guess.py` says why).

One call of the denoiser at the measurement's level is taught the mean of the flow's draws.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from napari_ambient.amortised import AmortisedPosterior
from napari_ambient.networks.flow import ConditionalFlow, choose_flow
from napari_ambient.recorruption import Recorruption, fill

from .base import Batch, Denoise, Objective, ObjectiveError, Setting
from .first_guess import BEGINNING, FirstGuess
from .gaussian_levels import HIGH, LOW, denoising


class FlowDiff(Objective):
    """Joint training of a conditional flow and a diffusion prior.

    Parameters
    ----------
    recorruption : Recorruption
        The form of noise.
    low, high : float
        Range of the levels, in scaled intensity.
    beginning : float
        Share of the training in which the denoiser learns first guesses in place of draws.
    """

    name = "flow_diff"
    one_call = False
    through = ("any",)
    below_itself = True
    planes_alone = True

    def __init__(
        self, recorruption: Recorruption, *, low: float = LOW, high: float = HIGH, beginning: float = BEGINNING
    ) -> None:
        super().__init__(recorruption)
        white_noise_alone(self.name, recorruption)
        self.low, self.high, self.beginning = low, high, beginning
        self.guess = FirstGuess()
        self.posterior: AmortisedPosterior

    def prepare(self, setting: Setting) -> None:
        """See `Objective.prepare`; makes the flow."""
        super().prepare(setting)
        self.posterior = make_posterior(self.name, setting)
        self.companion = self.posterior

    def amortised(self, companion: nn.Module) -> AmortisedPosterior | None:
        """See `Objective.amortised`."""
        assert isinstance(companion, AmortisedPosterior)
        return companion

    def losses(
        self, denoiser: Denoise, average: Denoise, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See `Objective.losses`; all terms in nats per clean voxel but `denoise` and `mean`."""
        x, terms = elbo(self.recorruption, self.posterior, batch, generator)
        voxels = x[0].numel()
        terms["prior"] = prior_bound(average, x, batch.channel, generator, low=self.low, high=self.high).mean() / voxels
        drawn = x.detach()
        if batch.progress < self.beginning:
            with torch.no_grad():
                drawn = self.recorruption.scaled(self.guess(batch, batch.evidence()[0], generator))
        return terms | self.teach(denoiser, drawn, batch, generator)

    def teach(self, denoiser: Denoise, drawn: Tensor, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Teach the denoiser the draws at all levels, and their mean in one call."""
        every = torch.ones_like(drawn, dtype=torch.bool)
        answer = self.reconstruct(denoiser, batch)
        return {
            "denoise": denoising(
                denoiser, drawn, every, batch.channel, generator, low=self.low, high=self.high, scales=self.scales
            ),
            "mean": self.recorruption.agreement(answer, drawn).mean(),
        }

    @torch.no_grad()
    def validation(self, denoiser: Denoise, batch: Batch, generator: torch.Generator) -> Tensor:
        """Held-out bound on -log p(y), nats per clean voxel."""
        x, terms = elbo(self.recorruption, self.posterior, batch, generator)
        bound = prior_bound(denoiser, x, batch.channel, generator, low=self.low, high=self.high)
        return sum(terms.values(), start=bound.mean() / x[0].numel())

    def state(self) -> dict[str, Tensor]:
        """See `Objective.state`."""
        return self.guess.state()

    def load(self, state: dict[str, Tensor]) -> None:
        """See `Objective.load`."""
        self.guess.load(state)


def white_noise_alone(name: str, form: Recorruption) -> None:
    """Refuse correlated noise, for which the likelihood of voxels is not the product of theirs."""
    if getattr(form, "correlation", None) is not None:
        raise ObjectiveError(
            f"{name} takes the noise of neighbouring voxels as independent, and here it is correlated; use the "
            "objective ambient, or data before any smoothing"
        )


def make_posterior(name: str, setting: Setting) -> AmortisedPosterior:
    """Make the flow for a training, of the network's dimensions."""
    network = setting.network
    if network.channels != 1:
        raise ObjectiveError(
            f"{name} draws single planes or whole stacks, not planes with their neighbours; choose dims 2D or 3D"
        )
    arguments = choose_flow(setting.size, dims=network.dims, conditions=2, anisotropy=setting.anisotropy)
    return AmortisedPosterior(ConditionalFlow(arguments), setting.scales)


def elbo(
    form: Recorruption, posterior: AmortisedPosterior, batch: Batch, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw clean crops, and give what the measurement and the flow's own entropy say of them.

    Parameters
    ----------
    form : Recorruption
        The form of noise.
    posterior : AmortisedPosterior
        q(x | y).
    batch : Batch
        The measurements.
    generator : torch.Generator
        Source of the draws.

    Returns
    -------
    x : Tensor, shape (B, 1, [Z,] Y, X)
        Draws, in scaled intensity.
    terms : dict of str to Tensor
        `data`, -log p(y | A x), and `entropy`, log q(x | y): nats per clean voxel, the first up to what depends on y.
    """
    light, known = batch.evidence()
    z = torch.randn(light.shape, generator=generator, device=generator.device).to(light.device)
    x, log_q = posterior(z, light, known, batch.channel)
    voxels = x.numel()
    misfit = form.surprise(fill(batch.counts, batch.valid), batch.expected(form.photons(x)))
    return x, {"data": (misfit * batch.learn).sum() / voxels, "entropy": log_q.sum() / voxels}


def prior_bound(
    denoiser: Denoise,
    x: Tensor,
    channel: Tensor | int,
    generator: torch.Generator,
    *,
    low: float = LOW,
    high: float = HIGH,
) -> Tensor:
    """Estimate the diffusion model's bound on -log p(x), up to a constant.

    Parameters
    ----------
    denoiser : Denoise
        D.
    x : Tensor, shape (B, C, [Z,] Y, X)
        Clean images, in scaled intensity.
    channel : Tensor of shape (B,) or int
        Image channel of each.
    generator : torch.Generator
        Source of levels (one for each image, evenly spread over the batch) and noise.
    low, high : float
        Range of the levels.

    Returns
    -------
    Tensor, shape (B,)
        Nats.
    """
    device = generator.device
    size = len(x)
    draw = torch.rand(2, generator=generator, device=device)
    order = torch.randperm(size, generator=generator, device=device)
    place = ((order + draw[0]) / size).to(x.device)
    sigma = torch.exp(math.log(low) + math.log(high / low) * place).to(x.dtype)
    noise = torch.randn(x.shape, generator=generator, device=device).to(x)
    level = sigma.reshape(-1, *(1,) * (x.ndim - 1))
    error = (denoiser(x + level * noise, sigma, corruption="gaussian", channel=channel) - x) / level
    return math.log(high / low) * error.square().flatten(1).sum(1)
