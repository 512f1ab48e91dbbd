"""Samplers: carry an image from a high noise level to a low one with nothing but a denoiser, step by step.

With D(x, sigma) = E[clean | x], λ = -log sigma and η between 0 (an ordinary differential equation) and 1 (the reverse
of the noising), all of these equations share their marginals (Song et al. 2021, arXiv 2011.13456; here the
variance-exploding case of Karras et al. 2022, arXiv 2206.00364):

    dx = (1 + η) (D(x, sigma) - x) dλ + √(2 η) sigma dW

Everything but D is linear, so a step from s to t of length h = log(s/t) is exact up to the integral over D:

    x_t = e^{-(1+η)h} x_s + (1 + η) ∫₀ʰ e^{-(1+η)(h-τ)} D dτ + t √(1 - e^{-2ηh}) ε

Holding D still is the first order; D + c (D - D₋), D₋ the estimate one step of length h₋ before and c = ½ h/h₋, the
second: DPM-Solver++(2M), with η = 1 its SDE (Lu et al. 2022, arXiv 2211.01095). Started at a measurement y, which is an
image at level sigma_y, the SDE draws from the posterior of the clean image.

Photons have a twin. Of a count k at exposure p, E[photons per exposure | k] = r(k, p) is all that is needed to count
on: dk = Poisson(r(k, p) dp), the posterior predictive law of a longer exposure (`accumulate`).

In both D and r are martingales: the mean is right at any step length, and what a rule can lose is variance. At first
order it is lost, because the news of a step (what its own noise or photons reveal) has no part in that same step. The
factor c hands on the news of the step before, and may be chosen to make the variance whole (`matching_factors`).

A sampler is a generator, so that its caller stops, shows and synchronises tiles as it likes; all that is random comes
from `noise(step, like)`, so that the caller can make a voxel's normals depend on its place and nothing else.
Samplers know no network: `posterior/` hands them denoisers that have seen y, `sampling.py` denoisers of tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
"""D(x, sigma) -> E[clean | x]; (B, C, [Z,] Y, X), in scaled intensity."""
Rate = Callable[[Tensor, float], Tensor]
"""r(k, p) -> expected photo-electrons per unit of exposure, given the photo-electrons k counted up to exposure p."""
Noise = Callable[[int, Tensor], Tensor]
"""noise(step, like) -> independent standard normals of the shape, type and device of `like`."""
Sampler = Callable[[Denoise, Tensor, Sequence[float], Noise], Iterator[tuple[float, Tensor]]]
"""sampler(denoise, x, sigmas, noise) -> (sigma, x) after each step."""

FEW = 12.0  # expected photo-electrons, below which the Poisson quantile is summed exactly
MOST = 60  # photo-electrons that an expectation of FEW does not exceed (probability 1e-22)


def seeded_noise(generator: torch.Generator) -> Noise:
    """Draw noise from a generator, for whole arrays: it depends on the order of the calls, not on their index.

    Parameters
    ----------
    generator : torch.Generator
        Source of the draws; may sit on another device than the images.

    Returns
    -------
    Noise
    """

    def noise(step: int, like: Tensor) -> Tensor:
        draw = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device)
        return draw.to(like.device)

    return noise


def ladder(
    high: float,
    low: float,
    steps: int,
    *,
    rho: float = 7.0,
    spacing: Literal["rho", "log"] = "rho",
    end: bool = True,
) -> tuple[float, ...]:
    """Give descending noise levels.

    Parameters
    ----------
    high, low : float
        First and last level at which the denoiser is called, in scaled intensity; high > low > 0. With `low` a
        twentieth of `high`, 16 steps and `dpm_sde`, the variance of a Gaussian posterior is right within 2 % for
        structure of more than a tenth of the noise's variance.
    steps : int
        Number of levels from `high` to `low`, 1 or more (1: `high` alone).
    rho : float
        Bend of the "rho" spacing, sigma_i = (high^{1/ρ} + i/(steps-1) (low^{1/ρ} - high^{1/ρ}))^ρ (Karras et al. 2022,
        equation 5); the larger, the more levels lie near `low`.
    spacing : {"rho", "log"}
        "log": equal ratios, the limit of large `rho`.
    end : bool
        Append the level 0: the last step then returns D itself. Without it the last image keeps noise of level `low`.

    Returns
    -------
    tuple of float
        `steps` levels, and 0.

    Raises
    ------
    ValueError
        If the levels do not descend.
    """
    if not (math.isfinite(high) and high > 0) or steps < 1 or not rho > 0 or (steps > 1 and not 0 < low < high):
        raise ValueError(
            f"high {high}, low {low}, steps {steps}, rho {rho}: levels need high > low > 0, at least one step and "
            "rho > 0; the level 0 is appended by end=True"
        )
    if spacing not in ("rho", "log"):
        raise ValueError(f"spacing is {spacing!r}; choose rho or log")
    along = [i / (steps - 1) for i in range(1, steps - 1)]
    if spacing == "log":
        inner = [high * (low / high) ** a for a in along]
    else:
        first, last = high ** (1 / rho), low ** (1 / rho)
        inner = [(first + a * (last - first)) ** rho for a in along]
    levels = (high, *inner, low) if steps > 1 else (high,)
    return (*levels, 0.0) if end else levels


def dpm_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    eta: float = 1.0,
    rule: Literal["midpoint", "matched"] = "midpoint",
) -> Iterator[tuple[float, Tensor]]:
    """Solve the reverse SDE by DPM-Solver++(2M): one call per step, second order in the moments.

    Parameters
    ----------
    denoise : Denoise
        The denoiser.
    x : Tensor, shape (B, C, [Z,] Y, X)
        Image at level `sigmas[0]`, in scaled intensity.
    sigmas : sequence of float
        Descending levels (`ladder`); only the last may be 0.
    noise : Noise
        Source of what is random; called with the step's index, but not on a step to level 0.
    eta : float
        η, 0 or more: 1 the reverse of the noising, 0 its probability flow (deterministic).
    rule : {"midpoint", "matched"}
        How far to extrapolate. "midpoint": c = ½ h/h₋. "matched": c such that the variance is exact where the noisy
        image alone knows the clean one (spread of the clean image given x: sigma²); with few steps the better choice
        for structure above the noise, the worse for detail below it. Needs eta = 1 and four steps or more: the
        second makes good what the first lost, and with fewer there is too much of it.

    Yields
    ------
    sigma : float
        Level reached.
    x : Tensor
        Image at that level.
    """
    _check_descending(sigmas)
    if not eta >= 0:
        raise ValueError(f"eta is {eta}; it must be 0 (deterministic) or more (1: the reverse SDE)")
    if rule not in ("midpoint", "matched") or (rule == "matched" and eta != 1):
        raise ValueError(f"rule is {rule!r} with eta {eta}; choose midpoint, or matched with eta 1")
    steps = list(pairwise(sigmas))
    lengths = [math.log(s / t) if t > 0 else math.inf for s, t in steps]
    if rule == "matched":
        kept = [(t / s) ** 2 for s, t in steps]
        factors = matching_factors(
            [1 - k for k in kept],
            [t**2 * (1 - k) for (_, t), k in zip(steps, kept, strict=True)],
            [sigmas[0] ** 2 - t**2 for _, t in steps],
        )
    else:  # an infinite step goes to D itself
        factors = (0.0, *(h / (2 * g) if math.isfinite(h) else 0.0 for g, h in pairwise(lengths)))
    before: Tensor | None = None
    for step, ((s, t), h) in enumerate(zip(steps, lengths, strict=True)):
        clean = denoise(x, s)
        ahead = clean if before is None else clean + factors[step] * (clean - before)
        x = math.exp(-(1 + eta) * h) * x - math.expm1(-(1 + eta) * h) * ahead
        if eta > 0 and t > 0:
            x = x + t * math.sqrt(-math.expm1(-2 * eta * h)) * noise(step, x)
        before = clean
        yield t, x


def dpm_ode(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[tuple[float, Tensor]]:
    """Solve the probability flow by DPM-Solver++(2M): one call per step, second order; draws no noise.

    From a measurement y it has no spread at all: for new images from pure noise, never for a posterior.
    Parameters and yields as for `dpm_sde`.
    """
    return dpm_sde(denoise, x, sigmas, noise, eta=0.0)


def heun(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[tuple[float, Tensor]]:
    """Solve the probability flow dx/dsigma = (x - D)/sigma by Heun's rule (Karras et al. 2022, algorithm 1).

    Two calls per step (one on a step to level 0), second order; draws no noise. Parameters and yields as for
    `dpm_sde`.
    """
    _check_descending(sigmas)
    for s, t in pairwise(sigmas):
        slope = (x - denoise(x, s)) / s
        there = x + (t - s) * slope
        if t > 0:
            slope = (slope + (there - denoise(there, t)) / t) / 2
            there = x + (t - s) * slope
        x = there
        yield t, x


def euler_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise
) -> Iterator[tuple[float, Tensor]]:
    """Draw x_t from q(x_t | x_s, clean = D): ancestral sampling, first order; for comparison.

    In the variance-exploding form this one rule is DDPM's (Ho et al. 2020, arXiv 2006.11239), Euler's ancestral step
    and the first order of `dpm_sde`: mean (t²/s²) x + (1 - t²/s²) D, variance t² (1 - t²/s²). Taking D for the clean
    image leaves out the spread of the clean image given x_s, so the draws vary too little: by 21 to 30 % of the
    variance at 16 calls. Parameters and yields as for `dpm_sde`.
    """
    _check_descending(sigmas)
    for step, (s, t) in enumerate(pairwise(sigmas)):
        kept = (t / s) ** 2
        x = kept * x + (1 - kept) * denoise(x, s)
        if t > 0:
            x = x + t * math.sqrt(1 - kept) * noise(step, x)
        yield t, x


SAMPLERS: dict[str, Sampler] = {
    "dpm_sde": dpm_sde,
    "dpm_ode": dpm_ode,
    "heun": heun,
    "euler_ancestral": euler_ancestral,
}


def exposure_ladder(longest: float, steps: int, *, shortest: float = 1.0) -> tuple[float, ...]:
    """Give exposures that grow by equal ratios from the measurement's, `shortest`, to `longest`; steps + 1 of them."""
    if not 0 < shortest < longest < math.inf or steps < 1:
        raise ValueError(f"exposures from {shortest} to {longest} in {steps} steps; they must grow, in 1 step or more")
    ratio = longest / shortest
    return (shortest, *(shortest * ratio ** (i / steps) for i in range(1, steps)), longest)


def accumulate(
    rate: Rate, counts: Tensor, exposures: Sequence[float], noise: Noise, *, order: Literal[1, 2] = 2
) -> Iterator[tuple[float, Tensor]]:
    """Count on beyond the measurement: k ← k + Poisson((q - p) r), the law of what a longer exposure would have shown.

    The first order holds the rate r of a step still; the second takes r + c (r - r₋), r₋ the rate one step before. With
    V the posterior variance of the light, dr = (V/r)(dk - r dp), and c is such that the variance of the count is exact
    where V = r/p, that is where the counts alone know the light (`matching_factors`). With 12 steps from exposure 1 to
    16 and Gamma priors of any strength, the variance of the added counts is then low by 0 to 2 %; at first order by 8
    to 21 %.

    Parameters
    ----------
    rate : Rate
        Posterior mean of the light, photo-electrons per unit of exposure, 0 or more.
    counts : Tensor, shape (B, C, [Z,] Y, X)
        Photo-electrons counted up to `exposures[0]`.
    exposures : sequence of float
        Ascending exposures; the measurement's is 1 (`exposure_ladder`).
    noise : Noise
        Source of what is random; called with the step's index.
    order : {1, 2}
        Order of the rule.

    Yields
    ------
    exposure : float
        Exposure reached.
    counts : Tensor
        Photo-electrons counted up to it.
    """
    if len(exposures) < 2 or not exposures[0] > 0 or any(not p < q for p, q in pairwise(exposures)):
        raise ValueError(f"exposures are {tuple(exposures)}; give two or more, above 0 and ascending")
    if order not in (1, 2):
        raise ValueError(f"order is {order}; choose 1 or 2")
    steps = list(pairwise(exposures))
    factors: tuple[float, ...] = (0.0,) * len(steps)
    if order == 2:
        factors = matching_factors(
            [(q - p) / q for p, q in steps],
            [(q - p) / q**2 for p, q in steps],
            [1 / exposures[0] - 1 / q for _, q in steps],
        )
    before: Tensor | None = None
    for step, (p, q) in enumerate(steps):
        now = rate(counts, p)
        ahead = now if before is None else (now + factors[step] * (now - before)).clamp_min(0)
        counts = counts + poisson_quantile((q - p) * ahead, noise(step, counts))
        before = now
        yield q, counts


def matching_factors(gains: Sequence[float], noises: Sequence[float], goals: Sequence[float]) -> tuple[float, ...]:
    """Give the factors c that make the variance of an estimate exact after every step.

    In step i the estimate moves by e_i = g_i c_i e_{i-1} + N_i, N_i new noise, and the variance of its whole way,
    Var(e_0 + … + e_i), is known: a quadratic equation for c_i. In `dpm_sde` the estimate is x itself, wherever D = x;
    in `accumulate` it is the rate k/p.

    Parameters
    ----------
    gains : sequence of float
        g_i: what share of what is handed on arrives.
    noises : sequence of float
        Variance of N_i.
    goals : sequence of float
        Variance wanted after step i.

    Returns
    -------
    tuple of float
        c_i, one per step. The first is 0, as there is nothing to hand on: what the first step loses the second makes
        good.
    """
    factors: list[float] = []
    whole = last = along = 0.0  # variance of the way so far, of its last move, and their covariance
    for gain, noise, goal in zip(gains, noises, goals, strict=True):
        factor = 0.0
        if factors:
            a, b = gain**2 * last, gain * along
            factor = (math.sqrt(b * b + a * (goal - whole - noise)) - b) / a
        factors.append(factor)
        share = gain * factor
        whole, along, last = (
            whole + 2 * share * along + share**2 * last + noise,
            share * along + share**2 * last + noise,
            share**2 * last + noise,
        )
    return tuple(factors)


def poisson_quantile(rate: Tensor, z: Tensor) -> Tensor:
    """Turn standard normals into Poisson draws: the least k with P(K ≤ k) ≥ Φ(z), voxel by voxel.

    Below an expectation of `FEW` the probabilities are summed from the top, so that single precision reaches far into
    the upper tail. Above, Cornish and Fisher's expansion with all cumulants equal to the rate λ, rounded to whole
    numbers, less the variance 1/12 that the rounding adds:

        k = round(λ + √λ z + (z² - 1)/6 - (z³ + 2z)/(72 √λ))

    Parameters
    ----------
    rate : Tensor, any shape
        Expectation λ, 0 or more.
    z : Tensor, same shape
        Standard normals.

    Returns
    -------
    Tensor
        Whole numbers, in the type of `rate`.

    Raises
    ------
    ValueError
        If an expectation is below zero or not a number.
    """
    if not bool((rate >= 0).all()):
        raise ValueError(
            f"Poisson rates go down to {float(rate.min())}; they must be 0 or more and finite: see what gives the rate"
        )
    root = rate.clamp_min(FEW).sqrt()
    counts = (rate + root * z + (z.square() - 1) / 6 - (z**3 + 2 * z) / (72 * root)).round()
    for low, high in pairwise((0.0, 0.3, 1.0, 3.0, FEW)):  # few photons, few terms
        few = (rate >= low) & (rate < high)
        if not bool(few.any()):
            continue
        expected = rate[few]
        logarithm = expected.clamp_min(1e-30).log()
        above = torch.special.erfc(z[few] / math.sqrt(2)) / 2  # ndtr(-z) loses its digits in the tail
        tail, number = torch.zeros_like(expected), torch.zeros_like(expected)
        for k in range(_most(float(expected.max())), 0, -1):
            tail += torch.exp(k * logarithm - expected - math.lgamma(k + 1))  # P(K ≥ k)
            number += above < tail
        counts[few] = number
    return counts


def _most(rate: float) -> int:
    """Give a number of photo-electrons that an expectation below `FEW` exceeds with a probability below 1e-18."""
    logarithm, k = math.log(max(rate, 1e-30)), math.ceil(rate) + 1
    while k < MOST and k * logarithm - rate - math.lgamma(k + 1) > math.log(1e-19):
        k += 1
    return k


def _check_descending(sigmas: Sequence[float]) -> None:
    if len(sigmas) < 2 or not all(s > t >= 0 for s, t in pairwise(sigmas)):
        raise ValueError(
            f"noise levels are {tuple(sigmas)}; give two or more, descending, only the last may be 0 (see `ladder`)"
        )
