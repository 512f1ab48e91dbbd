"""Objectives that learn through operators: an exact model is stationary, and a wrong one is not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from benchmarks.two_modes import SIGMA_Y, Plain
from torch import Tensor, nn

from napari_ambient.denoiser import Scale
from napari_ambient.networks.unet import UNetArguments
from napari_ambient.objectives import AmbientFlow, AmbientMask, Batch, FlowDiff, OperatorEM, SureScore
from napari_ambient.objectives import Objective as Base
from napari_ambient.objectives.base import ObjectiveError, Setting
from napari_ambient.objectives.views import Views, view_of
from napari_ambient.operators import Blur, Downsample, Identity, Mask
from napari_ambient.recorruption import Gaussian, Thinning

SPREAD = 0.8
GAIN = SPREAD**2 / (SPREAD**2 + SIGMA_Y**2)
WIDTH = math.sqrt(GAIN) * SIGMA_Y


def white_batch(count: int = 96, size: int = 32, seed: int = 0) -> Batch:
    """White Gaussian images x ~ N(0, SPREAD²) under white noise: everything is known in closed form."""
    g = torch.Generator().manual_seed(seed)
    x = SPREAD * torch.randn((count, 1, size, size), generator=g)
    y = x + SIGMA_Y * torch.randn(x.shape, generator=g)
    good = torch.ones_like(y, dtype=torch.bool)
    return Batch(y, good, good, torch.zeros(count, dtype=torch.long))


class WhiteDenoiser(nn.Module):
    """The exact denoiser times `scale`; one call at the measurement gives `share` of what is exact."""

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


def flow_diff() -> FlowDiff:
    """FlowDiff with the exact posterior, and levels that reach far enough."""
    objective = FlowDiff(Plain(), low=0.004, high=150.0)
    objective.posterior = WhitePosterior()  # type: ignore[assignment]
    return objective


def ambient_flow() -> AmbientFlow:
    """AmbientFlow with the exact flows."""
    objective = AmbientFlow(Plain())
    objective.posterior, objective.prior = WhitePosterior(), WhitePrior()  # type: ignore[assignment]
    return objective


def slopes(
    objective: Base,
    which: Callable[[Base, WhiteDenoiser], nn.Parameter],
    leave_out: str | None = None,
    seeds: int = 6,
) -> tuple[float, float]:
    """Mean gradient of the losses in one parameter per voxel, and its standard error."""
    values = []
    for seed in range(seeds):
        denoiser = WhiteDenoiser()
        parameter = which(objective, denoiser)
        g = torch.Generator().manual_seed(1000 + seed)
        terms = objective.losses(denoiser, WhiteDenoiser(), white_batch(seed=seed), g)
        total = sum((v for k, v in terms.items() if k != leave_out), start=torch.zeros(()))
        values.append(float(torch.autograd.grad(total, parameter)[0]))
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(seeds))


POSTERIOR_SLOPES = [
    ("a", lambda o, d: o.posterior.a, "prior"),
    ("b", lambda o, d: o.posterior.log_b, "entropy"),
    ("scale", lambda o, d: d.scale, None),
    ("share", lambda o, d: d.share, None),
]


@pytest.fixture(autouse=True)
def as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence in the units of the toy: counts are scaled intensities."""
    monkeypatch.setattr("napari_ambient.objectives.base.stabilise", lambda k, _: k)
    for module in ("sure_score", "operator_em"):
        monkeypatch.setattr(f"napari_ambient.objectives.{module}.stabilise", lambda k, _: k)
    monkeypatch.setattr("napari_ambient.objectives.sure_score.blur", lambda k, _: torch.full_like(k, SIGMA_Y**2))


@pytest.mark.parametrize(("name", "which", "needed"), POSTERIOR_SLOPES, ids=[s[0] for s in POSTERIOR_SLOPES])
def test_flow_diff_leaves_the_exact_model_alone(
    name: str, which: Callable[[Base, WhiteDenoiser], nn.Parameter], needed: str | None
) -> None:
    """Posterior, prior and one-call answer are stationary together; without the prior or the entropy they are not."""
    mean, error = slopes(flow_diff(), which)
    assert abs(mean) < 4 * error + 0.01
    if needed is not None:
        wrong, _ = slopes(flow_diff(), which, leave_out=needed)
        assert abs(wrong) > 0.3


def test_ambient_flow_leaves_the_exact_model_alone() -> None:
    """Both flows, the denoiser and the one-call answer; a prior of another width pulls."""
    for which in (
        lambda o, d: o.posterior.a,
        lambda o, d: o.posterior.log_b,
        lambda o, d: o.prior.log_s,
        lambda o, d: d.scale,
        lambda o, d: d.share,
    ):
        mean, error = slopes(ambient_flow(), which)
        assert abs(mean) < 4 * error + 0.01
    wide = ambient_flow()
    with torch.no_grad():
        wide.prior.log_s += 0.3
    mean, _ = slopes(wide, lambda o, d: o.prior.log_s)
    assert mean > 0.2


def test_sure_leaves_the_exact_model_alone() -> None:
    """Stein's estimate has its minimum at Wiener's gain; the misfit alone has not."""
    mean, error = slopes(SureScore(GaussianPlain()), lambda o, d: d.share)
    assert abs(mean) < 4 * error + 0.01
    objective = SureScore(GaussianPlain())
    objective.risk = lambda denoiser, batch, generator: (  # type: ignore[method-assign]
        (denoiser(batch.counts, torch.full((len(batch.counts),), SIGMA_Y), measured=True) - batch.counts)
        .square()
        .mean()
        / SIGMA_Y**2,
        torch.zeros_like(batch.counts),
    )
    wrong, _ = slopes(objective, lambda o, d: d.share)
    assert abs(wrong) > 0.3


class GaussianPlain(Plain, Gaussian):
    """`Plain`, known as Gaussian noise."""

    def __init__(self) -> None:
        self.correlation = None


def test_masks_leave_the_exact_model_alone() -> None:
    """Seen and hidden voxels have their minimum at their own conditional means; law 1 for masks."""
    for which in (lambda o, d: d.scale, lambda o, d: d.hole):
        objective = AmbientMask(Plain())
        objective.boundary = 0.0
        mean, error = slopes(objective, which)
        assert abs(mean) < 4 * error + 0.01
    wrong = AmbientMask(Plain())
    wrong.boundary = 0.0
    mean, _ = slopes(wrong, lambda o, d: _moved(d.hole, 0.3))
    assert mean > 0.02


def _moved(parameter: nn.Parameter, by: float) -> nn.Parameter:
    with torch.no_grad():
        parameter += by
    return parameter


def test_hidden_photons_are_independent_of_what_is_seen() -> None:
    """Thinning with holes: what is left to predict is uncorrelated with what is shown, given the light."""
    form, g = Thinning(), torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((64, 1, 32, 32), 5.0), generator=g)
    hidden = torch.rand(counts.shape, generator=g) < 0.3
    further = form.recorrupt(counts, ~hidden, torch.full((64,), 1.25), g)
    left = torch.where(hidden, counts, further.remainder)
    shown = further.x_t
    for where in (hidden, ~hidden):
        correlation = float(torch.corrcoef(torch.stack([shown[where], left[where]]))[0, 1])
        assert abs(correlation) < 4 / math.sqrt(int(where.sum()))
    # shown in full and asked for in full, it is not
    assert float(torch.corrcoef(torch.stack([form.measure(counts).flatten(), counts.flatten()]))[0, 1]) > 0.9


def test_em_leaves_the_exact_model_alone() -> None:
    """Exact draws of every measurement together follow the prior, which the exact denoiser already knows."""
    objective = OperatorEM(Plain(), beginning=0.0, refresh=1)

    def exact(average: object, batch: Batch, light: Tensor, generator: torch.Generator) -> Tensor:
        return GAIN * batch.counts + WIDTH * torch.randn(batch.counts.shape, generator=generator)

    objective.draw = exact  # type: ignore[method-assign]
    for which in (lambda o, d: d.scale, lambda o, d: d.share):
        mean, error = slopes(objective, which)
        assert abs(mean) < 4 * error + 0.01
    narrow = OperatorEM(Plain(), beginning=0.0, refresh=1)
    narrow.draw = lambda average, batch, light, generator: GAIN * batch.counts  # type: ignore[method-assign]
    mean, error = slopes(narrow, lambda o, d: d.scale)
    assert mean > 0.05


def test_refusals() -> None:
    """Each objective says which operators it knows, and refuses the rest."""
    blur = Blur(np.full((3, 3), 1 / 9))
    network, scales = UNetArguments(), (Scale(2.0, 1.0),)
    with pytest.raises(ObjectiveError, match=r"cannot learn through this operator.*flow_diff"):
        AmbientMask(Thinning()).prepare(Setting(blur, network, scales))
    with pytest.raises(ObjectiveError, match="other factors"):
        AmbientMask(Thinning()).prepare(Setting(Mask(np.full((8, 8), 0.5)), network, scales))
    with pytest.raises(ObjectiveError, match="neighbours"):
        FlowDiff(Thinning()).prepare(Setting(blur, UNetArguments(channels=5), scales))
    correlation = np.zeros((3, 3))
    correlation[1], correlation[1, 1] = 0.2, 1.0
    with pytest.raises(ObjectiveError, match="correlated"):
        FlowDiff(Gaussian(correlation=correlation))
    FlowDiff(Thinning()).prepare(Setting(Downsample(2) @ blur, network, scales))
    AmbientMask(Thinning()).prepare(Setting(Identity(), network, scales))


def test_evidence_of_coarse_pixels_and_holes() -> None:
    """The light of one clean voxel, holes filled, on the clean grid."""
    mask = np.ones((8, 8), bool)
    mask[2, 3] = False
    operator = Mask(mask) @ Downsample(2)
    place = (slice(0, 1), slice(0, 8), slice(0, 8))
    views = Views([view_of(operator, (1, 8, 8), place, 0)], operator.stride)
    counts = torch.full((1, 1, 8, 8), 12.0)
    counts[0, 0, 2, 3] = 0
    good = torch.ones_like(counts, dtype=torch.bool)
    light, known = Batch(counts, good, good, torch.zeros(1, dtype=torch.long), views=views).evidence()
    assert light.shape == known.shape == (1, 1, 16, 16)
    torch.testing.assert_close(light, torch.full_like(light, 3.0))
    assert (~known).sum() == 4 and not known[0, 0, 4:6, 6:8].any()
