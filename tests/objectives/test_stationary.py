"""Every objective leaves an exact model alone: its mean gradient is zero there, and a wrong model is pulled back.

Two specimens of independent voxels whose exact denoisers are known in closed form:

    white    x ~ N(0, SPREAD²),  y = x + N(0, SIGMA_Y²):    D(x_t, sigma) = SPREAD²/(SPREAD² + sigma²) x_t
    photons  x ~ Gamma(A, B),    k ~ Poisson(x):            E[x | k at exposure p] = (k + A)/(p + B)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks.two_modes import SIGMA_Y, Plain
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_ambient.denoiser import Scale
from napari_ambient.objectives import (
    BELOW,
    OBJECTIVES,
    Ambient,
    AmbientFlow,
    AmbientMask,
    Batch,
    FlowDiff,
    Noise2Noise,
    Objective,
    OperatorEM,
    Supervised,
    SureScore,
)
from napari_ambient.objectives.base import Denoise
from napari_ambient.objectives.gaussian_levels import denoising
from napari_ambient.objectives.operator_em import tempered
from napari_ambient.recorruption import FLOOR, Gaussian, Thinning

SPREAD = 0.8
GAIN = SPREAD**2 / (SPREAD**2 + SIGMA_Y**2)
WIDTH = math.sqrt(GAIN) * SIGMA_Y
A, B = 3.0, 0.5

Which = Callable[[Objective, nn.Module], nn.Parameter]
"""Chooses the parameter whose gradient is looked at."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def slope(
    objective: Callable[[], Objective],
    model: Callable[[], nn.Module],
    which: Which,
    batch: Callable[[int], Batch],
    *,
    leave_out: tuple[str, ...] = (),
    average: Callable[[], nn.Module] | None = None,
    seeds: int = 6,
) -> tuple[float, float]:
    """Give the mean gradient of the losses in one parameter, per voxel, and its standard error."""
    values = slopes(objective, model, which, batch, leave_out=leave_out, average=average, seeds=seeds)
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(seeds))


def slopes(
    objective: Callable[[], Objective],
    model: Callable[[], nn.Module],
    which: Which,
    batch: Callable[[int], Batch],
    *,
    leave_out: tuple[str, ...] = (),
    average: Callable[[], nn.Module] | None = None,
    seeds: int = 6,
) -> NDArray[np.float64]:
    """Give the gradients of the losses in one parameter, per voxel."""
    values = []
    for seed in range(seeds):
        learner, one = model(), objective()
        parameter = which(one, learner)
        terms = one.losses(learner, (average or model)(), batch(seed), torch.Generator().manual_seed(1000 + seed))
        total = sum((v for k, v in terms.items() if k not in leave_out), start=torch.zeros(()))
        values.append(float(torch.autograd.grad(total, parameter)[0]))
    return np.array(values)


def moved(which: Which, by: float) -> Which:
    """Choose the same parameter, and make it wrong."""

    def wrong(objective: Objective, model: nn.Module) -> nn.Parameter:
        parameter = which(objective, model)
        with torch.no_grad():
            parameter += by
        return parameter

    return wrong


# ------------------------------------------------------------------------------------------ Gaussian noise


def white_batch(seed: int, count: int = 96, size: int = 32) -> Batch:
    g = torch.Generator().manual_seed(seed)
    x = SPREAD * torch.randn((count, 1, size, size), generator=g)
    y = x + SIGMA_Y * torch.randn(x.shape, generator=g)
    good = torch.ones_like(y, dtype=torch.bool)
    return Batch(y, good, good, torch.zeros(count, dtype=torch.long))


class WhiteDenoiser(nn.Module):
    """The exact denoiser times `scale`; one call at the measurement gives `share` of what is exact, holes `hole`."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.share = nn.Parameter(torch.tensor(1.0))
        self.hole = nn.Parameter(torch.tensor(0.0))

    def forward(
        self, x: Tensor, sigma: Tensor, *, measured: Tensor | bool = False, known: Tensor | None = None, **_: object
    ) -> Tensor:
        level = sigma.reshape(-1, 1, 1, 1)
        factor = torch.where(torch.as_tensor(measured).reshape(-1, 1, 1, 1), self.share, self.scale)
        answer = factor * SPREAD**2 / (SPREAD**2 + level.square()) * x
        return answer if known is None else torch.where(known, answer, self.hole)


class WhitePosterior(nn.Module):
    """q(x | y) = N(a y, b²): exact at a = GAIN, b = WIDTH."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.log_b = nn.Parameter(torch.tensor(GAIN)), nn.Parameter(torch.tensor(math.log(WIDTH)))

    def forward(self, z: Tensor, light: Tensor, known: Tensor, channel: object) -> tuple[Tensor, Tensor]:
        x = self.a * light + self.log_b.exp() * z
        return x, -0.5 * z.square().flatten(1).sum(1) - z[0].numel() * self.log_b

    def log_density(self, prior: WhitePrior, x: Tensor, channel: object) -> Tensor:
        return (-0.5 * (x / prior.log_s.exp()).square() - prior.log_s).flatten(1).sum(1)

    def restored(self, u: Tensor, channel: object) -> Tensor:
        return u


class WhitePrior(nn.Module):
    """p(x) = N(0, s²): exact at s = SPREAD."""

    initialised = True

    def __init__(self) -> None:
        super().__init__()
        self.log_s = nn.Parameter(torch.tensor(math.log(SPREAD)))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.log_s.exp() * z, self.log_s.expand(len(z)) * z[0].numel()


class GaussianPlain(Plain, Gaussian):
    """`Plain`, known as Gaussian noise."""

    def __init__(self) -> None:
        self.correlation = None


def ambient(kind: type[Ambient] = Ambient) -> Ambient:
    """Without the boundary term, which teaches the average over recorruptions and not the exact answer."""
    objective = kind(Plain())
    objective.boundary = 0.0
    return objective


def flow_diff() -> FlowDiff:
    """FlowDiff with the exact posterior, and levels that reach far enough."""
    objective = FlowDiff(Plain(), low=0.004, high=150.0)
    objective.posterior = WhitePosterior()  # type: ignore[assignment]
    return objective


def ambient_flow() -> AmbientFlow:
    objective = AmbientFlow(Plain())
    objective.posterior, objective.prior = WhitePosterior(), WhitePrior()  # type: ignore[assignment]
    return objective


def operator_em(width: float = WIDTH) -> OperatorEM:
    """EM with exact draws from the posterior, or with too narrow ones."""
    objective = OperatorEM(Plain(), beginning=0.0, refresh=1)

    def exact(average: object, batch: Batch, light: Tensor, generator: torch.Generator) -> Tensor:
        return GAIN * batch.counts + width * torch.randn(batch.counts.shape, generator=generator)

    objective.draw = exact  # type: ignore[method-assign]
    return objective


def below(name: str) -> Objective:
    """Give a stage below the noise, whose ambient part teaches no average."""
    objective = BELOW[name](Thinning() if name == "virtual_exposures" else Plain())
    objective.ambient.boundary = 0.0  # type: ignore[attr-defined]
    return objective


def scale(objective: Objective, model: nn.Module) -> nn.Parameter:
    return model.scale  # type: ignore[return-value]


def share(objective: Objective, model: nn.Module) -> nn.Parameter:
    return model.share  # type: ignore[return-value]


def hole(objective: Objective, model: nn.Module) -> nn.Parameter:
    return model.hole  # type: ignore[return-value]


def posterior(name: str) -> Which:
    return lambda objective, model: getattr(objective.posterior, name)  # type: ignore[attr-defined]


def prior_width(objective: Objective, model: nn.Module) -> nn.Parameter:
    return objective.prior.log_s  # type: ignore[attr-defined]


WHITE: dict[str, tuple[Callable[[], Objective], list[Which]]] = {
    "ambient": (ambient, [scale]),
    "ambient_mask": (lambda: ambient(AmbientMask), [scale, hole]),
    "flow_diff": (flow_diff, [posterior("a"), posterior("log_b"), scale, share]),
    "ambient_flow": (ambient_flow, [posterior("a"), posterior("log_b"), prior_width, scale, share]),
    "sure_score": (lambda: SureScore(GaussianPlain()), [share]),
    "em": (operator_em, [scale, share]),
    "below: em": (lambda: below("em"), [scale]),
    "below: consistency": (lambda: below("consistency"), [scale]),
}


@pytest.fixture
def in_scaled_intensity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence in the units of the toy: counts are scaled intensities."""
    for module in ("base", "sure_score", "operator_em"):
        monkeypatch.setattr(f"napari_ambient.objectives.{module}.stabilise", lambda k, _: k)
    monkeypatch.setattr("napari_ambient.objectives.sure_score.blur", lambda k, _: torch.full_like(k, SIGMA_Y**2))


@pytest.mark.usefixtures("in_scaled_intensity")
@pytest.mark.parametrize("name", WHITE)
def test_exact_models_of_gaussian_noise_are_stationary(name: str) -> None:
    """In all that is trained; each parameter moved away is pulled back."""
    objective, parameters = WHITE[name]
    for which in parameters:
        mean, error = slope(objective, WhiteDenoiser, which, white_batch)
        assert abs(mean) < 4 * error + 0.01
        back, _ = slope(objective, WhiteDenoiser, moved(which, 0.3), white_batch)
        assert back > 5 * (abs(mean) + error) + 0.03


NEEDED = [
    ("flow_diff", posterior("a"), "prior"),
    ("flow_diff", posterior("log_b"), "entropy"),
    ("flow_diff", posterior("a"), "data"),
]


@pytest.mark.usefixtures("in_scaled_intensity")
@pytest.mark.parametrize(("name", "which", "term"), NEEDED, ids=[n[2] for n in NEEDED])
def test_terms_hold_each_other(name: str, which: Which, term: str) -> None:
    """Without the prior, the entropy or the data the exact posterior is not where the bound is least."""
    mean, _ = slope(WHITE[name][0], WhiteDenoiser, which, white_batch, leave_out=(term,))
    assert abs(mean) > 0.3


@pytest.mark.usefixtures("in_scaled_intensity")
def test_narrow_draws_are_noticed() -> None:
    """Means in place of draws have less variance than the images, and the denoiser learns them."""
    mean, error = slope(lambda: operator_em(0.0), WhiteDenoiser, scale, white_batch)
    assert mean > 8 * error + 0.05


@pytest.mark.usefixtures("in_scaled_intensity")
def test_the_misfit_alone_is_not_stein_s_estimate() -> None:
    def without_divergence() -> Objective:
        objective = SureScore(GaussianPlain())

        def misfit(denoiser: Denoise, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            answer = denoiser(batch.counts, torch.full((len(batch.counts),), SIGMA_Y), measured=True)
            return (answer - batch.counts).square().mean() / SIGMA_Y**2, torch.zeros_like(batch.counts)

        objective.risk = misfit  # type: ignore[method-assign]
        return objective

    mean, _ = slope(without_divergence, WhiteDenoiser, share, white_batch)
    assert mean < -0.3


@pytest.mark.usefixtures("in_scaled_intensity")
def test_one_chain_twice_is_not_consistency(monkeypatch: pytest.MonkeyPatch) -> None:
    """The squared violation of a single chain has the chain's own variance in it, which pulls D down."""

    def the_same(generator: torch.Generator) -> Callable[[int, Tensor], Tensor]:
        seed = int(torch.randint(2**31, (1,), generator=generator))
        return lambda step, like: torch.randn(like.shape, generator=torch.Generator().manual_seed(seed + step))

    monkeypatch.setattr("napari_ambient.objectives.consistency.seeded_noise", the_same)
    mean, _ = slope(lambda: below("consistency"), WhiteDenoiser, scale, white_batch)
    assert mean > 0.5  # with two it is 0.004 +- 0.005


# ------------------------------------------------------------------------------------------------- photons


def photon_batch(seed: int, count: int = 64, size: int = 32) -> Batch:
    rng = np.random.default_rng(seed)
    light = rng.gamma(A, 1 / B, (count, 1, size, size))
    counts, again = (torch.from_numpy(rng.poisson(light).astype(np.float32)) for _ in range(2))
    good = torch.ones_like(counts, dtype=torch.bool)
    return Batch(counts, good, good, torch.zeros(count, dtype=torch.long), again)


def alone(seed: int, count: int = 64, size: int = 32) -> Batch:
    """Give the same without another exposure."""
    return replace(photon_batch(seed, count, size), partner=None)


def mistaken(seed: int) -> Batch:
    """Give it with an exposure of another field."""
    return replace(photon_batch(seed), partner=photon_batch(seed + 500).partner)


def clean_batch(seed: int) -> Batch:
    """Give the same with the light itself for a partner."""
    batch = photon_batch(seed)
    light = np.random.default_rng(seed).gamma(A, 1 / B, batch.counts.shape)
    return replace(batch, partner=torch.from_numpy(light.astype(np.float32)))


class PhotonDenoiser(nn.Module):
    """2 √λ of λ = (trust · k + A)/(p + B), with another trust for measurements; `hole` times A/B where nothing is.

    Of images with Gaussian noise it says nothing that could be learned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trust = nn.Parameter(torch.tensor(1.0))
        self.share = nn.Parameter(torch.tensor(1.0))
        self.hole = nn.Parameter(torch.tensor(1.0))

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        *,
        corruption: str = "gaussian",
        measured: Tensor | bool = False,
        known: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        if corruption == "gaussian":
            return x
        exposure = sigma.square().reciprocal().reshape(-1, 1, 1, 1)
        counts = exposure * x.square() / 4 - 3 / 8
        trust = torch.where(torch.as_tensor(measured).reshape(-1, 1, 1, 1), self.share, self.trust)
        light = (trust * counts + A) / (exposure + B)
        light = light if known is None else torch.where(known, light, self.hole * A / B)
        return 2 * (light - FLOOR).sqrt()


def trust(objective: Objective, model: nn.Module) -> nn.Parameter:
    return model.trust  # type: ignore[return-value]


def thinning(kind: type[Ambient]) -> Ambient:
    objective = kind(Thinning())
    objective.boundary = 0.0
    return objective


PHOTONS: dict[str, tuple[Callable[[], Objective], list[Which], Callable[[int], Batch]]] = {
    "ambient": (lambda: thinning(Ambient), [trust], alone),
    "ambient_mask": (lambda: thinning(AmbientMask), [trust, hole], alone),
    "sure_score": (lambda: SureScore(Thinning()), [share], alone),
    "noise2noise": (lambda: Noise2Noise(Thinning()), [share], photon_batch),
    "supervised": (lambda: Supervised(Thinning()), [share], clean_batch),
    "below: virtual_exposures": (lambda: below("virtual_exposures"), [trust], lambda seed: alone(seed, 24, 24)),
}


@pytest.mark.parametrize("name", PHOTONS)
def test_exact_models_of_photon_noise_are_stationary(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In what they make of the counts; a model that trusts them too much is pulled back."""
    # the exact variance of the counts in place of a pilot of it
    monkeypatch.setattr("napari_ambient.objectives.sure_score.blur", lambda k, _: torch.full_like(k, A / B))
    objective, parameters, batch = PHOTONS[name]
    for which in parameters:
        mean, error = slope(objective, PhotonDenoiser, which, batch)
        assert abs(mean) < 4 * error + 0.01
        back, _ = slope(objective, PhotonDenoiser, moved(which, 0.3), batch)
        assert back > 5 * (abs(mean) + error) + 0.03


STILL: dict[str, tuple[Callable[[], Objective], Which]] = {
    "ambient": (lambda: thinning(Ambient), trust),
    "at the measurement": (lambda: Ambient(Thinning()), share),
    "ambient_mask": (lambda: thinning(AmbientMask), hole),
    "below: virtual_exposures": (lambda: below("virtual_exposures"), trust),
}


@pytest.mark.parametrize("name", STILL)
def test_another_exposure_leaves_exact_models_alone(name: str) -> None:
    """And pulls wrong ones back; one of another field is no label."""
    objective, which = STILL[name]
    leave_out = ("boundary",)  # which teaches the average over recorruptions
    mean, error = slope(objective, PhotonDenoiser, which, photon_batch, leave_out=leave_out)
    assert abs(mean) < 4 * error + 0.01
    back, _ = slope(objective, PhotonDenoiser, moved(which, 0.3), photon_batch, leave_out=leave_out)
    assert back > 5 * (abs(mean) + error) + 0.03
    if which is not hole:  # what is hidden has the same mean in every field
        wrong, _ = slope(objective, PhotonDenoiser, which, mistaken, leave_out=leave_out)
        assert wrong > 5 * (abs(mean) + error) + 0.03


def test_another_exposure_teaches_more() -> None:
    """The minimiser, to first order gradient over curvature, scatters less than half as much (in variance)."""
    scatter = []
    for batch in (alone, photon_batch):
        here, there = (
            slopes(lambda: thinning(Ambient), PhotonDenoiser, which, batch, seeds=24)
            for which in (trust, moved(trust, 0.02))
        )
        scatter.append(float(np.var(here) / np.mean(there - here) ** 2))
    assert scatter[1] < 0.5 * scatter[0]


def test_every_level_of_bright_images_weighs_alike() -> None:
    """Where the weight knows how wide they spread; with that of dim ones the highest levels rule."""
    bright = 20 * torch.randn((256, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    channel, good = torch.zeros(256, dtype=torch.long), torch.ones_like(bright, dtype=torch.bool)

    def linear(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
        return x * (400 / (400 + sigma.square())).reshape(-1, 1, 1, 1)  # exact

    def loss(low: float, high: float, scales: tuple[Scale, ...]) -> float:
        generator = torch.Generator().manual_seed(1)
        return float(denoising(linear, bright, good, channel, generator, low=low, high=high, scales=scales))

    known = (Scale(30.0, 20.0),)
    assert loss(0.1, 0.2, known) == pytest.approx(1, abs=0.05)
    assert loss(30.0, 40.0, known) == pytest.approx(1, abs=0.05)
    assert loss(30.0, 40.0, ()) > 50


def test_a_large_loss_pulls_no_harder_than_one() -> None:
    for value, slope_of in ((0.5, 1.0), (1.0, 1.0), (400.0, 1 / 400)):
        at = torch.tensor(value, requires_grad=True)
        (gradient,) = torch.autograd.grad(tempered(at), at)
        assert float(gradient) == pytest.approx(slope_of)


def test_every_objective_is_here() -> None:
    """But for the blind spot, whose exact answer is another one: `test_others.py` has it."""
    names = {*WHITE, *PHOTONS}
    assert names == {*OBJECTIVES, *(f"below: {name}" for name in BELOW)} - {"blind_spot"}
