"""Split a measurement into two that are independent given the light: thinning for detectors that are not ideal.

Photo-electrons ``k = (y - zero) / gain`` are split as k = k₁ + k₂, k₁ the exposure p. For whole Poisson counts binomial
thinning is exact. Real detectors give k that are not whole; a rule that only has the right first two moments
(`thin`) then leaks: from the value of k₁ a network can read the fraction of k, and with it k₂. So the split is made
of what the detector counted, drawn from its posterior given k and a blurred pilot m of the light:

    camera        k = n + r² + r e              n | k ∝ Poisson(n; m - r²) N(k; n + r², r²)
                  k₁ = Binomial(n, p) + p (k - n) + √(p (1 - p)) r e'
    pulses        k = h₁ + ... + hₙ             n | k ∝ Poisson(n; m/μ) Gamma(k; n s, μ/s)
                  k₁ = k B,  B ~ Beta(n₁ s, (n - n₁) s),  n₁ ~ Binomial(n, p)

Were m the light itself, k₁ and k₂ would be independent, not merely uncorrelated ("data thinning", Neufeld et al. 2024,
arXiv 2301.07276). Pulse heights h are Gamma of shape s and mean μ = s/(s + 1), so that Var k = E k: a photomultiplier,
whose heights spread, or an EMCCD (s = 1). Measured on a confocal stack of 0.7 photo-electrons per voxel: MSE of the
trained denoiser after 3000 steps 40.6 with `thin`, 36.1 with pulses; Noise2Noise 32.6.

The shape shows in the third cumulant of k, to which read noise adds nothing, in flat parts of the image and after the
best quadratic is taken from each small window (`pulse_shape_of`),

    κ₃ / (κ₂ - r²) = E h³ / E h² = (s + 2) / (s + 1)

1.5 for exponential pulses, 1 where all are alike. It matters: a confocal stack of s = 3.6 by this rule has a mean
squared error of 33.5 after 2000 steps with 4, 35.8 with 1.8 and 35.3 with 7; an EMCCD's fields (1.2 to 1.7) read 32.85
dB with 4 and 33.18 with 1.

*Lag*. A scanning detector's electronics smear each pixel's pulses into its neighbours along the fast axis X,

    k = H u / v,   H = (b, 1 - 2b, b) along X,   v = (1 - 2b)² + 2b²

so that the noise of neighbours is correlated, and k₁ tells of k₂ next to it. u is split instead, whose noise is white
and whose variance is its mean, and the parts are smeared again: k₁ = H u₁ / v (`Lag`). Simulated fields of 4
photo-electrons, mean squared error after 1200 steps without and with it: 0.631 and 0.622 where neighbours are
correlated by 0.09, 0.801 and 0.739 where by 0.2 (with the Gaussian form, told the correlation, 0.827). The
confocal stacks of the benchmark have 0.05, at which nothing is gained, so that the fit calls it white.

Where m exceeds `BRIGHT` photo-electrons the number of quanta no longer shows, and two moments are enough: `thin`,
with the share w = r²/m of the added noise Gaussian.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import median

import torch
from torch import Tensor

from .noise import lag_kernel

BRIGHT = 8.0
BRIGHTEST = 20.0  # a single count above it is split by `thin`, wherever it lies
QUANTA = 36
WINDOW = 4  # pixels: side of the windows in which the third cumulant is taken
FLAT = (0.1, 0.6)  # of the windows, by their light: darker ones have too few photons, brighter ones too much structure
BINS = 6
SHARPEST = 20.0  # shape of pulses that are almost alike


class Lag:
    """The smear of a scanning detector along X, and back.

    Parameters
    ----------
    correlation : float
        Of the noise of neighbours along X, 0 to 0.3.
    """

    def __init__(self, correlation: float) -> None:
        self.share, self.variance = lag_kernel(correlation)

    def undone(self, counts: Tensor) -> Tensor:
        """Give u of counts k, any shape, X last."""
        return self.variance * _times(counts, _unsmear(counts.shape[-1], self.share))

    def applied(self, white: Tensor) -> Tensor:
        """Give k of u."""
        return _times(white, _smear(white.shape[-1], self.share)) / self.variance


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    """Multiply in the precision of the counts, also within autocast."""
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ matrix.to(rows)


def _smear(size: int, share: float) -> Tensor:
    """Give Hᵀ for rows of so many pixels; at their ends the pixel itself stands for its neighbour."""
    index = torch.arange(size)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for step, weight in ((-1, share), (0, 1 - 2 * share), (1, share)):
        matrix.index_put_((index, (index + step).clamp(0, size - 1)), torch.tensor(weight).double(), accumulate=True)
    return matrix.T


@lru_cache(maxsize=16)
def _unsmear(size: int, share: float) -> Tensor:
    inverse: Tensor = torch.linalg.inv(_smear(size, share))
    return inverse


def pulse_shape_of(photons: Tensor, pilot: Tensor, read_variance: float = 0.0) -> float:
    """Estimate the shape of the pulse heights from the third cumulant of counts in the darker, flatter parts.

    Parameters
    ----------
    photons : Tensor, shape (N, Y, X)
        Photo-electrons of some crops, without hot pixels; Var k = E k.
    pilot : Tensor, same shape
        The same, blurred: sorts the windows by their light, not by their own noise.
    read_variance : float
        r², photo-electrons².

    Returns
    -------
    float
        s, from 1 (exponential pulses; also where the structure inside windows outweighs the noise) to `SHARPEST`.
    """
    count, height, width = photons.shape
    rows, columns = height // WINDOW, width // WINDOW
    if rows * columns == 0:
        return 1.0

    def windows(values: Tensor) -> Tensor:
        cut = values[:, : rows * WINDOW, : columns * WINDOW].double()
        cells = cut.reshape(count, rows, WINDOW, columns, WINDOW).transpose(2, 3)
        return cells.reshape(-1, WINDOW**2)

    light = windows(pilot).mean(1)
    without = _without_structure(photons.device)
    residual = windows(photons) @ without
    # of independent voxels, whatever the structure that was taken away: κ₂ tr R and κ₃ Σ R_ij³
    second = residual.square().sum(1) / without.trace()
    third = residual.pow(3).sum(1) / without.pow(3).sum()
    order = light.argsort()
    low, high = (round(share * len(order)) for share in FLAT)
    ratios = []
    for part in order[low:high].tensor_split(BINS):
        spread = float(second[part].mean()) - read_variance if len(part) else 0.0
        if spread > 0:
            ratios.append(float(third[part].mean()) / spread)
    # what is left of the structure adds, the more the brighter the window: the median of the bins, not their mean
    ratio = median(ratios) if ratios else 1.5
    steep = (2 - ratio) / max(ratio - 1, 1e-6)
    return float(f"{min(max(steep, 1.0), SHARPEST):.2g}")


def _without_structure(device: torch.device) -> Tensor:
    """Give the projection R, (WINDOW², WINDOW²), that takes the best quadratic in Y and X from a window."""
    y, x = torch.meshgrid(*2 * (torch.arange(WINDOW, dtype=torch.float64) - (WINDOW - 1) / 2,), indexing="ij")
    terms = torch.stack([(y**i * x**j).flatten() for i in range(3) for j in range(3 - i)], dim=1)
    basis = torch.linalg.qr(terms)[0]
    result: Tensor = (torch.eye(WINDOW**2, dtype=torch.float64) - basis @ basis.T).to(device)
    return result


def split(
    counts: Tensor,
    pilot: Tensor,
    exposure: Tensor,
    *,
    read_variance: float = 0.0,
    pulse_shape: float = math.inf,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw k₁.

    Parameters
    ----------
    counts : Tensor, any shape
        Photo-electrons k; need not be whole, may be below zero.
    pilot : Tensor, same shape
        Estimate m of E[k].
    exposure : Tensor, broadcastable
        Probability p, in (0, 1).
    read_variance : float
        r², photo-electrons².
    pulse_shape : float
        Shape s of the pulse heights; infinite where every quantum counts the same.
    generator : torch.Generator, optional
        Source of the draws.

    Returns
    -------
    Tensor
        k₁, with E[k₁ | k] = p k.
    """
    first = _split_bright(counts, pilot, exposure, read_variance, generator)
    few = (counts < BRIGHTEST) & (pilot < BRIGHT)
    if (read_variance == 0 and math.isinf(pulse_shape)) or not bool(few.any()):
        return first
    dim = (counts[few], pilot[few], exposure.expand_as(counts)[few])
    if read_variance > 0:
        first[few] = _split_camera(*dim, read_variance, generator)
    else:
        first[few] = _split_pulses(*dim, pulse_shape, generator)
    return first


def thin(counts: Tensor, exposure: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Thin photo-electrons: keep each with probability `exposure`.

    The fraction f of k goes to k₁ as a = 1 - p + p f with probability p f/a, which has mean p f and variance
    p (1 - p) f; so Cov(k₁, k₂ | x) = p (1 - p) (Var k - E k) = 0 for any measurement whose variance equals its mean.

    Parameters
    ----------
    counts : Tensor, any shape
        Photo-electrons, 0 or more; need not be whole.
    exposure : Tensor, broadcastable
        Probability p, in (0, 1).
    generator : torch.Generator, optional
        Source of the draws.

    Returns
    -------
    Tensor
        k₁ with E[k₁ | k] = p k and Var(k₁ | k) = p (1 - p) k.
    """
    whole = counts.floor()
    fraction = counts - whole
    p = exposure.expand_as(counts)
    kept = binomial(whole, p, generator)
    size = 1 - p + p * fraction
    return kept + size * (rand_like(counts, generator) * size < p * fraction)


def _split_bright(
    counts: Tensor, pilot: Tensor, exposure: Tensor, read_variance: float, generator: torch.Generator | None
) -> Tensor:
    photons = counts.clamp_min(0)
    thinned = thin(photons, exposure, generator)
    if read_variance == 0:
        return thinned + exposure * (counts - photons)
    # what is dimmer than the read noise has less of it: the variance is the mean everywhere
    variance = pilot.clamp_min(1e-3)
    share = (read_variance / variance).clamp_max(1)
    added = (1 - share).sqrt() * (thinned - exposure * photons)
    camera = (share * exposure * (1 - exposure) * variance).sqrt() * randn_like(counts, generator)
    return exposure * counts + added + camera


def _split_camera(
    counts: Tensor, pilot: Tensor, p: Tensor, read_variance: float, generator: torch.Generator | None
) -> Tensor:
    n = torch.arange(QUANTA, dtype=counts.dtype, device=counts.device)
    read = pilot.clamp(1e-3, read_variance)
    light = (pilot - read).clamp_min(1e-3)
    log = (counts - read)[..., None] - n
    log.square_().div_(-2 * read[..., None]).addcmul_(light.log()[..., None], n).sub_(torch.lgamma(n + 1))
    quanta = _draw(log, generator)
    added = (p * (1 - p) * read).sqrt() * randn_like(counts, generator)
    return binomial(quanta, p, generator) + p * (counts - quanta) + added


def _split_pulses(counts: Tensor, pilot: Tensor, p: Tensor, shape: float, generator: torch.Generator | None) -> Tensor:
    k = counts.clamp_min(1e-2)
    n = torch.arange(1, QUANTA + 1, dtype=counts.dtype, device=counts.device)  # something was counted
    rate = shape / (shape + 1) / pilot.clamp_min(1e-2)  # μ/m
    scale = 1 / (shape + 1)  # μ/s
    each = shape * (k / scale).log() - rate.log()
    log = (each[..., None] * n).sub_(torch.lgamma(n + 1) + torch.lgamma(n * shape))
    quanta = _draw(log, generator) + 1
    kept = binomial(quanta, p, generator)
    one, two = (_gamma(shape * q, generator) for q in (kept, quanta - kept))
    return counts * (one / (one + two))


def _draw(log: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw indices along the last axis, where cumulative sums are quick, with the given log-probabilities."""
    below = torch.softmax(log, -1).cumsum_(-1)
    chosen = rand_like(log[..., 0], generator)[..., None]
    return torch.searchsorted(below, chosen)[..., 0].clamp_max(QUANTA - 1).to(log.dtype)


def _gamma(shape: Tensor, generator: torch.Generator | None) -> Tensor:
    """Gamma variates of shape 0 (exactly 0) or above 1, by Wilson & Hilferty (1931): the cube root is nearly normal."""
    a = shape.clamp_min(1e-3)
    root = (1 - 1 / (9 * a) + randn_like(shape, generator) / (3 * a.sqrt())).clamp_min(1e-3)
    return torch.where(shape > 0, a * root**3, torch.zeros_like(shape))


def binomial(n: Tensor, p: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw from Binomial(n, p), n whole and p of its shape."""
    # on the generator's device: not every accelerator has Binomial draws
    device = n.device if generator is None else generator.device
    return torch.binomial(n.to(device), p.to(device).contiguous(), generator=generator).to(n.device)


def rand_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw uniformly in [0, 1), on the generator's device, which for MPS is the CPU."""
    device = x.device if generator is None else generator.device
    return torch.rand(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


def randn_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw from the unit normal, on the generator's device, which for MPS is the CPU."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
