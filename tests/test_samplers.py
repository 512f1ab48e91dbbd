"""Samplers against closed forms: the posterior's variance, the order of convergence, the law of counting on."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from napari_ambient.samplers import (
    SAMPLERS,
    Noise,
    Sampler,
    accumulate,
    dpm_ode,
    dpm_sde,
    euler_ancestral,
    exposure_ladder,
    heun,
    ladder,
    matching_factors,
    poisson_quantile,
    seeded_noise,
)
from oracles import GammaLight, GaussianField, TwoModes

torch.set_num_threads(1)

SPECTRUM = torch.tensor([0.1, 0.3, 1.0, 3.0, 10.0, 100.0], dtype=torch.float64).reshape(1, 1, 1, -1)
"""Variances of the clean image, over the noise's; one voxel each."""


def scalar(x: Tensor, sigma: float) -> Tensor:
    """Give D of independent Gaussian voxels of variance SPECTRUM."""
    return SPECTRUM / (SPECTRUM + sigma**2) * x


def last(steps: object) -> Tensor:
    """Exhaust a sampler and give its last image."""
    *_, (_, x) = steps  # type: ignore[misc]
    return x


def response(sampler: Sampler, sigmas: tuple[float, ...], **options: object) -> tuple[Tensor, Tensor]:
    """Give the gain from y to the answer's mean, and its variance, exactly.

    With a linear D a sampler is linear in y and in each of its noises: their responses, one by one, are its law.
    """
    silent: Noise = lambda step, like: torch.zeros_like(like)  # noqa: E731
    gain = last(sampler(scalar, torch.ones_like(SPECTRUM), sigmas, silent, **options))  # type: ignore[call-arg]
    steps = torch.arange(len(sigmas) - 1).reshape(-1, 1, 1, 1)
    # image i of the batch gets a pulse at step i
    pulse: Noise = lambda step, like: (steps == step).to(like).expand_as(like)  # noqa: E731
    still = torch.zeros((len(steps), *SPECTRUM.shape[1:]), dtype=SPECTRUM.dtype)
    pulses = last(sampler(scalar, still, sigmas, pulse, **options))  # type: ignore[call-arg]
    return gain, pulses.square().sum(0, keepdim=True)


# --- law 3 ----------------------------------------------------------------------------------------


def test_the_sde_draws_from_the_posterior() -> None:
    """Mean S y/(S + σ²), variance S σ²/(S + σ²), within 3 % at 16 calls."""
    gain, variance = response(dpm_sde, ladder(1.0, 0.05, 16))
    truth = SPECTRUM / (SPECTRUM + 1)
    torch.testing.assert_close(gain, truth, rtol=1e-10, atol=0)  # D is a martingale: exact at any step length
    torch.testing.assert_close(variance, truth, rtol=0.03, atol=0)  # measured -1.5 to 0.8 %


@pytest.mark.parametrize("sampler", [dpm_ode, heun])
def test_a_flow_has_no_spread(sampler: Sampler) -> None:
    """Negative control: the probability flow from y gives one image, and not the posterior mean either."""
    gain, variance = response(sampler, ladder(1.0, 0.05, 16))
    assert float(variance.max()) == 0
    # y shrinks by √(S/(S + σ²)), by which the variances agree over all y, instead of S/(S + σ²)
    torch.testing.assert_close(gain[..., :5], (SPECTRUM / (SPECTRUM + 1)).sqrt()[..., :5], rtol=0.02, atol=0)


def test_ancestral_sampling_is_too_sure() -> None:
    """Negative control: DDPM, the same thing as Euler's ancestral step, misses a fifth of the variance and more."""
    gain, variance = response(euler_ancestral, ladder(1.0, 0.05, 16))
    truth = SPECTRUM / (SPECTRUM + 1)
    torch.testing.assert_close(gain, truth, rtol=1e-10, atol=0)
    missing = 1 - variance / truth
    assert float(missing.min()) > 0.19 and float(missing.max()) < 0.31  # measured 21 to 30 %


def test_the_matched_rule_is_exact_where_the_image_speaks_for_itself() -> None:
    """For S ≫ σ² the variance is exact with any number of calls; midpoint loses 14 % with six."""
    midpoint, matched = (response(dpm_sde, ladder(1.0, 0.1, 6), rule=r)[1] for r in ("midpoint", "matched"))
    truth = SPECTRUM / (SPECTRUM + 1)
    error = (matched / truth - 1).abs().flatten()
    assert float(error[-1]) < 0.002
    assert float(error[2:].max()) < 0.03  # S ≥ σ²
    assert float((midpoint / truth - 1).abs()[..., -1]) > 0.1


def test_a_field_is_drawn_band_by_band() -> None:
    """The same on images, with real noise: every band of frequencies has the posterior's mean and variance."""
    generator = torch.Generator().manual_seed(3)
    frequency = torch.hypot(*torch.meshgrid(*[torch.fft.fftfreq(32, dtype=torch.float64)] * 2, indexing="ij"))
    prior = GaussianField(8 / (1 + (frequency / 0.1) ** 2) ** 1.5)
    clean = prior.draw(1, generator)
    y = clean + torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    mean, variance = prior.posterior(y, 1.0)
    draws = last(dpm_sde(prior, y.repeat(200, 1, 1, 1), ladder(1.0, 0.05, 16), seeded_noise(generator)))
    spread = torch.fft.fft2(draws - mean).abs().square().mean((0, 1)) / 32**2
    offset = torch.fft.fft2(draws.mean(0, keepdim=True) - mean).abs().square()[0, 0] / 32**2
    for low, high in pairwise((0.0, 0.1, 0.2, 0.3, 0.8)):
        band = (frequency >= low) & (frequency < high)
        ratio = float((spread[band] / variance[band]).mean())
        # 200 draws of half as many free frequencies: 1/√(100 n); the rule itself 3 %
        assert ratio == pytest.approx(1, abs=0.03 + 3 / math.sqrt(100 * int(band.sum())))
        assert float((offset[band] / variance[band]).mean()) < 2 / 200  # 1/200 were the mean exact


def test_two_modes_are_weighed() -> None:
    """From a measurement between two modes: the share of each, and the spread inside."""
    prior, sigma, count = TwoModes(), 0.5, 40_000
    generator = torch.Generator().manual_seed(5)
    y = torch.full((1, 1, 1, count), 0.1, dtype=torch.float64)
    draws = last(dpm_sde(prior, y, ladder(sigma, 0.025, 24), seeded_noise(generator)))
    upper = draws > 0
    share = float(prior.weight(y[..., 0], sigma))  # 0.666; 16, 24 and 48 calls give 0.701, 0.685 and 0.671
    assert float(upper.double().mean()) == pytest.approx(share, abs=0.025)
    mean, variance = prior.within(y[..., 0], sigma, 1)
    assert float(draws[upper].mean()) == pytest.approx(float(mean), rel=0.02)
    assert float(draws[upper].std()) == pytest.approx(math.sqrt(variance), rel=0.05)
    flow = last(dpm_ode(prior, y, ladder(sigma, 0.025, 24), seeded_noise(generator)))
    assert float((flow > 0).double().mean()) in (0.0, 1.0)  # negative control


# --- order of convergence -------------------------------------------------------------------------


def order(errors: list[float], steps: list[int]) -> float:
    """Regress log-error on log-step."""
    return float(-np.polyfit(np.log(steps), np.log(errors), 1)[0])


@pytest.mark.parametrize(("sampler", "expected"), [(heun, 2.0), (dpm_ode, 2.0)])
def test_order_of_a_flow(sampler: Sampler, expected: float) -> None:
    """Against x(σ) = x(σ₀) √((S + σ²)/(S + σ₀²))."""
    counts, low = [20, 40, 80, 160], 0.1
    exact = ((SPECTRUM + low**2) / (SPECTRUM + 1)).sqrt()
    errors = []
    for n in counts:
        sigmas = ladder(1.0, low, n + 1, spacing="log", end=False)
        x = last(sampler(scalar, torch.ones_like(SPECTRUM), sigmas, lambda step, like: like))
        errors.append(float((x - exact).abs().max()))
    assert order(errors, counts) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize(("sampler", "expected"), [(dpm_sde, 2.0), (euler_ancestral, 1.0)])
def test_order_of_the_moments(sampler: Sampler, expected: float) -> None:
    """Against the variance of x(σ) given x(σ₀), which is Gaussian between y and the clean image."""
    counts, low = [20, 40, 80, 160], 0.1
    share = low**2
    exact = (1 - share) ** 2 * SPECTRUM / (SPECTRUM + 1) + share * (1 - share)
    errors = []
    for n in counts:
        variance = response(sampler, ladder(1.0, low, n + 1, spacing="log", end=False))[1]
        errors.append(float((variance / exact - 1).abs().max()))
    assert order(errors, counts) == pytest.approx(expected, abs=0.2)


# --- noise, and what is refused -------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_voxel_depends_on_its_own_noise(sampler: Sampler) -> None:
    """A crop sampled with the crop of the noise is the crop of the whole, to rounding."""
    shape, sigmas = (1, 1, 12, 12), ladder(2.0, 0.1, 5)
    field = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    prior = TwoModes()
    whole = last(sampler(prior, 2 * field[-1], sigmas, lambda step, like: field[step]))
    crop = (..., slice(3, 9), slice(2, 7))
    part = last(sampler(prior, 2 * field[-1][crop], sigmas, lambda step, like: field[step][crop]))
    torch.testing.assert_close(whole[crop], part)
    assert whole.dtype == torch.float32


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_levels_are_told_as_they_are_reached(sampler: Sampler) -> None:
    sigmas = ladder(2.0, 0.1, 5)
    steps = list(sampler(scalar, torch.ones_like(SPECTRUM), sigmas, seeded_noise(torch.Generator())))
    assert [sigma for sigma, _ in steps] == list(sigmas[1:])


def test_the_ladder() -> None:
    assert ladder(80.0, 0.02, 1) == (80.0, 0.0)
    for spacing in ("rho", "log"):
        sigmas = ladder(80.0, 0.02, 18, spacing=spacing)  # type: ignore[arg-type]
        assert (len(sigmas), sigmas[0], sigmas[-2], sigmas[-1]) == (19, 80.0, 0.02, 0.0)
        assert all(a > b for a, b in pairwise(sigmas))
    roots = np.diff(np.array(ladder(80.0, 0.02, 18, end=False)) ** (1 / 7))
    np.testing.assert_allclose(roots, roots[0])
    ratios = np.diff(np.log(ladder(80.0, 0.02, 18, spacing="log", end=False)))
    np.testing.assert_allclose(ratios, ratios[0])


@pytest.mark.parametrize(("high", "low", "steps"), [(1.0, 1.0, 4), (1.0, 0.0, 4), (1.0, 0.1, 0), (math.inf, 0.1, 4)])
def test_a_ladder_that_does_not_descend_is_refused(high: float, low: float, steps: int) -> None:
    with pytest.raises(ValueError, match="levels need high > low > 0"):
        ladder(high, low, steps)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("sigmas", [(1.0,), (1.0, 1.0), (0.1, 1.0), (1.0, 0.0, -1.0)])
def test_levels_that_do_not_descend_are_refused(sampler: Sampler, sigmas: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="descending, only the last may be 0"):
        list(sampler(scalar, torch.ones_like(SPECTRUM), sigmas, seeded_noise(torch.Generator())))


def test_rules_that_do_not_exist_are_refused() -> None:
    start, sigmas, noise = torch.ones_like(SPECTRUM), ladder(1.0, 0.1, 3), seeded_noise(torch.Generator())
    with pytest.raises(ValueError, match="choose midpoint, or matched with eta 1"):
        list(dpm_sde(scalar, start, sigmas, noise, eta=0.5, rule="matched"))
    with pytest.raises(ValueError, match="eta is -1"):
        list(dpm_sde(scalar, start, sigmas, noise, eta=-1.0))
    with pytest.raises(ValueError, match="order is 3"):
        list(accumulate(GammaLight((1, 1, 1)), start, (1.0, 2.0), noise, order=3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="above 0 and ascending"):
        list(accumulate(GammaLight((1, 1, 1)), start, (1.0, 1.0), noise))
    with pytest.raises(ValueError, match="they must grow"):
        exposure_ladder(0.5, 12)


# --- photons --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 1e-6, 0.1, 1.0, 5.3, 11.9])
def test_few_photons_are_exact(rate: float) -> None:
    """P(K > k) ≤ P(Z > z) < P(K ≥ k), from eight standard deviations below to eight above."""
    z = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    k = poisson_quantile(torch.full_like(z, rate), z)
    above = stats.norm.sf(z.numpy())
    assert (stats.poisson.sf(k.numpy(), rate) <= above * (1 + 1e-6)).all()
    assert (stats.poisson.sf(k.numpy() - 1, rate) > above * (1 - 1e-6)).all()
    single = poisson_quantile(torch.full_like(z, rate).float(), z.float())
    assert single.dtype == torch.float32
    differ = (single - k).abs()
    assert float(differ[z > -4].max()) <= 1  # below, 6e-8 is all that single precision sees
    assert float((differ > 0).double().mean()) < 1e-3  # on the edge between two counts


@pytest.mark.parametrize("rate", [12.0, 30.0, 200.0, 5000.0])
def test_many_photons_are_nearly_exact(rate: float) -> None:
    """Above 12 the expansion is off by one count at most, seldom, and its moments are right."""
    u = (np.arange(200_000) + 0.5) / 200_000
    z = torch.tensor(stats.norm.ppf(u))
    k = poisson_quantile(torch.full_like(z, rate), z).numpy()
    error = k - stats.poisson.ppf(u, rate)
    assert np.abs(error).max() <= 1
    assert np.mean(error != 0) < 0.005
    assert k.mean() == pytest.approx(rate, rel=2e-4)
    assert k.var() == pytest.approx(rate, rel=2e-3)


def test_rates_below_zero_are_refused() -> None:
    for wrong in (-0.1, math.nan):
        with pytest.raises(ValueError, match="they must be 0 or more"):
            poisson_quantile(torch.tensor([1.0, wrong]), torch.zeros(2))


PRIORS = [GammaLight((1, 2.0, 1.0)), GammaLight((1, 1.0, 0.05)), GammaLight((1, 30.0, 10.0))]


def counted(prior: GammaLight, start: float, order: int, steps: int = 12) -> tuple[float, float]:
    """Give mean and variance of the photons added to `start` until exposure 16."""
    counts = torch.full((1, 1, 1, 80_000), start, dtype=torch.float64)
    noise = seeded_noise(torch.Generator().manual_seed(7))
    more = last(accumulate(prior, counts, exposure_ladder(16.0, steps), noise, order=order)) - start  # type: ignore[arg-type]
    return float(more.mean()), float(more.var())


@pytest.mark.parametrize("prior", PRIORS, ids=["a2b1", "a1b.05", "a30b10"])
@pytest.mark.parametrize("start", [0.0, 3.0, 30.0])
def test_counting_on_has_the_predictive_law(prior: GammaLight, start: float) -> None:
    """Gamma prior: what is still to come is negative-binomial of mean 15 m and variance 15 m (1 + 15/(1 + b))."""
    mean, variance = prior.future(start, 1.0, 16.0)
    got = counted(prior, start, 2)
    # 80 000 draws: the mean to 0.4 % of the standard deviation, the variance to about 1 %; the rule itself 0 to -2 %
    assert got[0] == pytest.approx(mean, abs=0.01 * math.sqrt(variance))
    assert got[1] == pytest.approx(variance, rel=0.035)


@pytest.mark.parametrize("prior", PRIORS[:2], ids=["a2b1", "a1b.05"])
def test_holding_the_rate_still_is_too_sure(prior: GammaLight) -> None:
    """Negative control: at first order the mean is right and 15 to 20 % of the variance missing."""
    mean, variance = prior.future(3.0, 1.0, 16.0)
    got = counted(prior, 3.0, 1)
    assert got[0] == pytest.approx(mean, abs=0.01 * math.sqrt(variance))
    assert 0.78 < got[1] / variance < 0.87


def test_counting_on_chooses_between_dim_and_bright() -> None:
    """A prior of two kinds of light is far from Gamma: mean and variance hold within 5 %; at first order not."""
    prior = GammaLight((0.5, 20.0, 20.0), (0.5, 20.0, 4.0))  # about 1 or about 5 photons
    mean, variance = prior.future(3.0, 1.0, 16.0)
    second, first = counted(prior, 3.0, 2), counted(prior, 3.0, 1)
    assert second[0] == pytest.approx(mean, abs=0.01 * math.sqrt(variance))
    assert second[1] == pytest.approx(variance, rel=0.05)
    assert first[1] < 0.9 * variance


def test_counts_grow_and_stay_whole() -> None:
    counts = torch.tensor([0.0, 1.0, 40.0]).reshape(1, 1, 1, 3)
    seen = list(accumulate(PRIORS[0], counts, exposure_ladder(16.0, 4), seeded_noise(torch.Generator().manual_seed(1))))
    assert [p for p, _ in seen] == list(exposure_ladder(16.0, 4)[1:])
    for (_, one), (_, two) in pairwise(seen):
        assert bool((two >= one).all()) and torch.equal(two, two.round())
    assert seen[-1][1].dtype == torch.float32


def test_a_crop_counts_on_as_the_whole_does() -> None:
    field = torch.randn(6, 1, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    counts = torch.poisson(torch.full((1, 1, 10, 10), 3.0), generator=torch.Generator().manual_seed(1))
    exposures = exposure_ladder(16.0, 6)
    whole = last(accumulate(PRIORS[0], counts, exposures, lambda step, like: field[step]))
    crop = (..., slice(2, 9), slice(4, 10))
    part = last(accumulate(PRIORS[0], counts[crop], exposures, lambda step, like: field[step][crop]))
    assert torch.equal(whole[crop], part)


def test_matching_factors_make_the_variance_whole() -> None:
    """The factors, put back into e_i = g c e_{i-1} + N, give the wanted variances from the second step on."""
    p = exposure_ladder(16.0, 7)
    gains, noises = [(q - a) / q for a, q in pairwise(p)], [(q - a) / q**2 for a, q in pairwise(p)]
    goals = [1 / p[0] - 1 / q for q in p[1:]]
    factors = matching_factors(gains, noises, goals)
    assert factors[0] == 0
    for step in range(1, 7):
        total = 0.0
        for source in range(step + 1):  # each noise on its own
            move = way = math.sqrt(noises[source])
            for i in range(source + 1, step + 1):
                move *= gains[i] * factors[i]
                way += move
            total += way**2
        assert total == pytest.approx(goals[step], rel=1e-9)
