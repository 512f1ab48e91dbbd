"""Expectation maximisation through an operator: draw clean images from their posterior, learn them, and begin again.

Rozet, Andry, Lanusse & Louppe 2024 (arXiv 2405.13712); Bai et al. 2024 (arXiv 2407.01014). Given the diffusion prior so
far, split Gibbs (`posterior/split_gibbs.py`) draws the clean image behind each measurement through A (the E-step), and
the denoiser learns to denoise the draws at all levels (the M-step); a buffer of draws is refreshed all the time.

What A has removed comes from the prior alone, so it stays what the first prior made it: the training begins with
smooth guesses (`first_guess.py`) in place of draws, or with the one-call answers of the prior that it starts from.
One call of the denoiser at the measurement's level is taught the mean of the draws, or held at what that prior knew.

Crops must be wider than A reaches, behind a deep PSF much wider than structures are. They are drawn whole and learned
in parts, so that a step does not cost the voxels that only A needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from napari_ambient.posterior import Gaussian as GaussianNoise
from napari_ambient.posterior import PoissonGaussian, Problem, SquareLink, sample_posterior
from napari_ambient.recorruption import DARKEST, Gaussian, Recorruption, blur, fill, stabilise
from napari_ambient.samplers import seeded_noise

from .anchor import Anchor
from .base import Batch, Denoise, Objective, Setting
from .buffer import Buffer
from .em import level_denoiser
from .first_guess import BEGINNING, FirstGuess, Seen
from .flow_diff import white_noise_alone
from .gaussian_levels import denoising

WHOLE = (32, 96, 96)
"""(Z, Y, X) voxels from which on a draw is learned in parts of half its width."""


def tempered(loss: Tensor) -> Tensor:
    """Give 1 + log of a loss above 1, so that it pulls no harder than the others; in bright images it is hundreds."""
    return torch.where(loss > 1, 1 + loss.clamp_min(1).log(), loss)


def part_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Give how many voxels of a crop ([Z,] Y, X) are learned at once, multiples of 8 where it is cut."""
    return tuple(n // 2 // 8 * 8 if n >= least else n for n, least in zip(shape, WHOLE[-len(shape) :], strict=True))


class OperatorEM(Objective):
    """Training on posterior draws through an operator.

    Parameters
    ----------
    recorruption : Recorruption
        The form of noise.
    stages : int
        Stages of split Gibbs per draw, of six calls each.
    capacity : int
        Draws held for each crop of a batch: small batches bring few, and the first guesses would stay for ever.
    refresh : int
        Steps between new ones (a batch at a time).
    beginning : float
        Share of the training that learns first guesses.
    """

    name = "em"
    one_call = False
    through = ("any",)
    below_itself = True
    planes_alone = True

    def __init__(
        self,
        recorruption: Recorruption,
        *,
        stages: int = 6,
        capacity: int = 12,
        refresh: int = 10,
        beginning: float = BEGINNING,
    ) -> None:
        super().__init__(recorruption)
        white_noise_alone(self.name, recorruption)
        self.stages, self.refresh, self.beginning = stages, refresh, beginning
        self.capacity = capacity
        self.buffer = Buffer(capacity)
        self.anchor = Anchor(recorruption)
        self.guess = FirstGuess()
        self._started = False

    def prepare(self, setting: Setting) -> None:
        """See `Objective.prepare`."""
        super().prepare(setting)
        self._started = setting.started

    def losses(
        self, denoiser: Denoise, average: Denoise, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See `Objective.losses`."""
        light, known = batch.evidence()
        begins = batch.progress < self.beginning
        self.buffer.capacity = self.capacity * len(batch.counts)
        window = part_of(light.shape[2:])
        whole = math.prod(light.shape[2:]) // math.prod(window)
        due = self.buffer.due(self.refresh * max(1, whole // 2))
        if due or (begins and (whole == 1 or len(self.buffer) < self.buffer.capacity)):
            with torch.no_grad():
                if begins:
                    image = self._first(average, batch, light, known, generator)
                else:
                    image = self.draw(average, batch, light, generator)
            seen = stabilise(light, 1.0)
            self.buffer.add({"image": image, "seen": seen, "known": known, "channel": batch.channel})
        held = self.buffer.draw(len(batch.counts), generator, window)
        every = torch.ones_like(held["image"], dtype=torch.bool)
        loss = denoising(denoiser, held["image"], every, held["channel"], generator, scales=self.scales)
        return {"denoise": loss, "mean": tempered(self._one_call(denoiser, average, batch, light, known, held))}

    def _one_call(
        self,
        denoiser: Denoise,
        average: Denoise,
        batch: Batch,
        light: Tensor,
        known: Tensor,
        held: dict[str, Tensor],
    ) -> Tensor:
        """Teach the one-call answer: the mean of the draws, or what the prior that it starts from knew."""
        if self._started:
            self.anchor.hold(average)
            assert self.anchor.copy is not None
            seen = stabilise(light, 1.0)
            with torch.no_grad():
                taught = self.answer(self.anchor.copy, seen, batch, known)
            return self.recorruption.agreement(self.answer(denoiser, seen, batch, known), taught).mean()
        rows = replace(batch, channel=held["channel"])
        answer = self.answer(denoiser, held["seen"], rows, held["known"])
        return self.recorruption.agreement(answer, held["image"]).mean()

    def _first(
        self, average: Denoise, batch: Batch, light: Tensor, known: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Guess the clean crops, scaled intensity: by the denoiser's own answers, where it was trained before."""
        if not self._started:
            return self.recorruption.scaled(self.guess(batch, light, generator))
        return self.answer(average, stabilise(light, 1.0), batch, known).to(light.dtype)

    def draw(self, average: Denoise, batch: Batch, light: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the clean crops from their posterior; scaled intensity."""
        counts = torch.where(batch.learn, batch.counts, torch.zeros_like(batch.counts))
        likelihood = (
            GaussianNoise(blur(fill(batch.counts, batch.valid), 2.0).to(counts.dtype).clamp_min(DARKEST))
            if isinstance(self.recorruption, Gaussian)
            else PoissonGaussian()
        )
        problem = Problem(counts, Seen(batch.views, batch.learn), likelihood, SquareLink(0.0))

        def denoise(z: Tensor, sigma: float) -> Tensor:
            return level_denoiser(average, z, sigma, batch.channel)

        z = light
        for _, reached in sample_posterior(
            "split_gibbs",
            denoise,
            problem,
            steps=self.stages,
            noise=seeded_noise(generator),
            start=stabilise(light, 1.0),
        ):
            z = reached
        return z

    def validation(self, denoiser: Denoise, batch: Batch, generator: torch.Generator) -> Tensor:
        """Held-out misfit of the one-call answer to what was measured, nats per voxel: a check, not the objective."""
        expected = batch.expected(self.recorruption.photons(self.reconstruct(denoiser, batch)))
        return (self.recorruption.surprise(batch.counts, expected) * batch.learn).sum() / batch.learn.sum()

    def state(self) -> dict[str, Tensor]:
        """See `Objective.state`."""
        return {**self.buffer.state(), **self.anchor.state(), **self.guess.state()}

    def load(self, state: dict[str, Tensor]) -> None:
        """See `Objective.load`."""
        self.guess.load(state)
        self.anchor.load(state)
        self.buffer.load(state)
