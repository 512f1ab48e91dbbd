"""Below the noise level: law 4 on the two-mode toy, and the pieces that the stages share."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from napari_ambient.objectives import BELOW, Ambient, Batch, Objective
from napari_ambient.objectives.buffer import Buffer
from napari_ambient.recorruption import Further, Gaussian, Recorruption, Thinning

MODE, WITHIN, SIGMA_Y = 1.0, 0.2, 0.5


def test_buffer_replaces_the_oldest() -> None:
    """It fills up, then the oldest rows give way; a checkpoint brings back the very same buffer."""
    buffer = Buffer(4)
    for start in (0, 3, 6):
        buffer.add({"x": torch.arange(start, start + 3.0)[:, None, None, None]})
    rows = buffer.state()["x"].flatten().tolist()
    assert sorted(rows) == [5.0, 6.0, 7.0, 8.0]
    copy = Buffer(4)
    copy.load(buffer.state())
    for b in (buffer, copy):
        b.add({"x": torch.tensor([9.0])[:, None, None, None]})
        assert sorted(b.state()["x"].flatten().tolist()) == [6.0, 7.0, 8.0, 9.0]
    one, two = (b.draw(3, torch.Generator().manual_seed(1))["x"] for b in (buffer, copy))
    assert torch.equal(one, two)
    with pytest.raises(ValueError, match="at least one row"):
        Buffer(0)


@pytest.mark.parametrize(
    ("below", "form"), [("virtual_exposures", Gaussian()), ("em", Thinning()), ("consistency", Thinning())]
)
def test_the_wrong_form_is_refused(below: str, form: Recorruption) -> None:
    """Each stage says for which form of noise it is, and what to choose instead."""
    with pytest.raises(ValueError, match="choose"):
        BELOW[below](form)


class Plain(Recorruption):
    """Gaussian noise of level SIGMA_Y and no transform: counts are scaled intensities."""

    corruption = "gaussian"
    sigma_y = SIGMA_Y
    near = (1.02, 3.0)

    def measure(self, counts: Tensor, valid: Tensor | None = None) -> Tensor:
        return counts

    def recorrupt(
        self, counts: Tensor, valid: Tensor | None, sigma: Tensor, generator: torch.Generator | None
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


class Scalar(nn.Module):
    """A denoiser of single voxels: a small perceptron, preconditioned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1)
        )

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
    from napari_ambient.samplers import dpm_sde, ladder, seeded_noise

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


@pytest.fixture(scope="module")
def ambient() -> dict[str, Tensor]:
    """Weights after ambient training alone."""
    torch.set_num_threads(1)
    model = Scalar()
    fit(model, Ambient(Plain(), boundary=0.0, far=0.02), 1200, 1, None, 2e-3)
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("below", ["em", "consistency"])
def test_two_modes(ambient: dict[str, Tensor], below: str) -> None:
    """Law 4: the spread within a mode moves toward the truth, and D at sigma_y does not degrade."""
    model, teacher = Scalar(), Scalar()
    for m in (model, teacher):
        m.load_state_dict(ambient)
    before, error_before = drawn_spread(model), at_boundary(model)
    teacher.requires_grad_(False)
    stage = BELOW[below](Plain(), **({"capacity": 4096} if below == "em" else {}))
    for round_ in range(5):  # the moving average, in steps
        fit(model, stage, 100, 10 + round_, teacher, 1e-3)
        teacher.load_state_dict(model.state_dict())
    after = drawn_spread(model)
    assert abs(after - WITHIN) < 0.75 * abs(before - WITHIN)
    assert after > 0.6 * WITHIN  # and does not collapse
    assert at_boundary(model) < error_before + 0.03
