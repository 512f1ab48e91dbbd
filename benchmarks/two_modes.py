"""The smallest test of what lies below the noise: values of two modes, their noisy measurements, and a scalar denoiser.

    x = ±MODE + WITHIN · normal,      y = x + SIGMA_Y · normal,      E[x | x_t] in closed form (`exact`)

Only y is ever shown. The spread within a mode, 0.2, is well below the noise, 0.5. `below_sigma.py` prints what each
training stage makes of it, and the tests state its law.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from napari_ambient.objectives import Batch, Objective
from napari_ambient.recorruption import Further, Gaussian, Recorruption
from napari_ambient.samplers import dpm_sde, ladder, seeded_noise

MODE, WITHIN, SIGMA_Y = 1.0, 0.2, 0.5


class Plain(Recorruption):
    """Gaussian noise of level SIGMA_Y and no transform: counts are scaled intensities."""

    corruption = "gaussian"
    sigma_y = SIGMA_Y
    near = (1.02, 3.0)

    def measure(self, counts: Tensor, valid: Tensor | None = None) -> Tensor:
        return counts

    def recorrupt(
        self,
        counts: Tensor,
        valid: Tensor | None,
        sigma: Tensor,
        generator: torch.Generator | None,
        upright: Tensor | None = None,
    ) -> Further:
        extra = (sigma.square() - SIGMA_Y**2).clamp_min(0).sqrt().reshape(-1, 1, 1, 1)
        noise = torch.randn(counts.shape, generator=generator)
        return Further(counts + extra * noise, sigma, counts, torch.full_like(counts, SIGMA_Y**2))

    def loss(self, prediction: Tensor, further: Further) -> Tensor:
        return Gaussian.loss(Gaussian(), prediction, further)

    def agreement(self, prediction: Tensor, taught: Tensor) -> Tensor:
        return (prediction - taught).square()

    def photons(self, prediction: Tensor) -> Tensor:
        return prediction

    def scaled(self, photons: Tensor) -> Tensor:
        return photons

    def fresh(self, prediction: Tensor, counts: Tensor) -> Tensor:
        return (prediction - counts).square()

    def surprise(self, counts: Tensor, expected: Tensor) -> Tensor:
        return (counts - expected).square() / (2 * SIGMA_Y**2)


class Scalar(nn.Module):
    """A denoiser of single voxels: a small perceptron, preconditioned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x_t: Tensor, sigma: Tensor, **_: object) -> Tensor:
        level = sigma.reshape(-1, 1, 1, 1).expand_as(x_t)
        spread = (MODE**2 + WITHIN**2) ** 0.5
        total = (level.square() + spread**2).sqrt()
        seen = torch.stack([x_t / total, level.log() / 4, x_t / (level.square() + WITHIN**2).sqrt()], dim=-1)
        skip = spread**2 / total.square() * x_t
        return skip + level * spread / total * self.network(seen)[..., 0]


def two_modes(count: int, g: torch.Generator) -> Tensor:
    """Draw noisy values of +-MODE, each blurred by WITHIN, and by the measurement."""
    sign = 2.0 * (torch.rand(count, generator=g) < 0.5) - 1
    spread = (WITHIN**2 + SIGMA_Y**2) ** 0.5
    return (MODE * sign + spread * torch.randn(count, generator=g)).reshape(-1, 1, 1, 1)


def exact(x: Tensor, sigma: float) -> Tensor:
    """E[clean | x] for the two modes."""
    variance = WITHIN**2 + sigma**2
    return (WITHIN**2 * x + sigma**2 * MODE * torch.tanh(x * MODE / variance)) / variance


def fit(
    model: Scalar, objective: Objective, steps: int, seed: int, average: Callable[..., Tensor] | None, rate: float
) -> None:
    g = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99))
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-5
        counts = two_modes(2048, g)
        yes = torch.ones_like(counts, dtype=torch.bool)
        batch = Batch(counts, yes, yes, torch.zeros(len(counts), dtype=torch.long), None, 0.0)
        loss = sum(objective.losses(model, average or model, batch, g).values(), start=torch.zeros(()))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def drawn_spread(model: Scalar) -> float:
    """Give the standard deviation within a mode of posterior draws from fresh measurements."""
    g = torch.Generator().manual_seed(99)
    x = two_modes(20_000, g)

    def denoise(x_t: Tensor, sigma: float) -> Tensor:
        with torch.no_grad():
            return model(x_t, torch.full((len(x_t),), sigma))

    for _, reached in dpm_sde(denoise, x, ladder(SIGMA_Y, 0.03, 16), seeded_noise(g)):
        x = reached
    return float((x.abs() - MODE).square().mean().sqrt())


def at_boundary(model: Scalar) -> float:
    """Give the root mean square error of D at the measurement's level against the exact D."""
    x = two_modes(20_000, torch.Generator().manual_seed(5))
    with torch.no_grad():
        answer = model(x, torch.full((len(x),), 1.02 * SIGMA_Y))
    return float((answer - exact(x, 1.02 * SIGMA_Y)).square().mean().sqrt())
