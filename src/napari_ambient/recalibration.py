"""Are the error bars right on *these* data? A check that needs no clean image, and a correction.

Draws with mean m and variance s² claim an error of u = s² (1 + 1/K). An independent measurement h of the same light x,
with exposure e, so that E h = x and Var h = x / e, tells what it is: for any m that has not seen h,

    E[(h - m)² - v] = E (x - m)²,        v = h/e

It comes from the image itself by splitting its photo-electrons, k = k₁ + k₂ (`splitting.py`): draws are made from k₁
alone, the exposure 1 - e, and h = k₂/e. Or, much more sharply, from other frames of the same still field: draws are
made from one frame, h is the mean of e others, and v their own sample variance over e, which asks no noise model. The
right variance is then taken for a power of the claimed one,

    E (x - m)² = a u^b

b by least squares over bins of voxels, a so that the sums of both sides over the image agree. The variance of a few
draws is itself uncertain, and bins of it would mix voxels that are alike; so voxels are sorted by one half of the draws
and u in each bin is the mean of the other half's, and the other way round. Bins are weighted by photon noise,
Var (h - m)² = 2 (m/e + u)² + m/e³, and a Gaussian prior b ~ N(1, 0.3²) says what to do where the data cannot tell.
Repeats tell more than a power: what the bins have beyond it is 1 + δ(log u), δ a Gaussian process of standard deviation
0.5 and length 0.7 (held-out photons do not: at 0.7 photo-electrons the bend followed their noise). `moments.Spread`
keeps the factor √(a u₀^(b-1)), at the mean u₀, the power b, and √(1 + δ) at some u; ``restore(..., spread=...)`` widens
the draws about their mean by them, and the record says so. It mends the size of the error bars, not their place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .devices import choose_device, free_memory
from .moments import Moments, Spread
from .noise import NoiseModel
from .prior import Prior, place
from .recorruption import Thinning, to_photons, trusted
from .restoration import fit_to_frame
from .restorer import Clipping, RestorationError, Restorer, plan_tile
from .sampling import CallCount, TiledDenoiser, Watch, keyed_noise, network_calls, network_domain, posterior_draw
from .volumes import Volume

Array = NDArray[np.floating]

CROP = 256
"""Largest side, voxels, of the part that is looked at."""
USUAL = 0.3
"""Standard deviation of the power's prior about 1."""
BINS, FEWEST = 20, 100
"""Bins of voxels with a like claim, and the fewest voxels in one."""
BEND, LENGTH = 0.5, 0.7
"""What the right variance may have beyond the power law: standard deviation, relative to it, and length in log u."""
KNOTS = 9


def measure_spread(
    volume: Volume,
    prior: Prior,
    *,
    noise: NoiseModel | None = None,
    time: int = 0,
    channel: int = 0,
    repeats: Sequence[int] = (),
    exposure: float = 0.7,
    draws: int = 8,
    steps: int = 18,
    seed: int = 0,
    device: torch.device | str | None = None,
    watch: Watch | None = None,
) -> Spread:
    """Measure how wide the draws should be, by held-out photons or by other frames of the same field.

    Parameters
    ----------
    volume : Volume
        Noisy volume, in camera counts.
    prior : Prior
        A prior of the thinning form with a stage below the noise.
    noise : NoiseModel, optional
        The camera's noise; the prior's own if left out.
    time, channel : int
        Which image; its middle, at most 256 voxels wide, is looked at.
    repeats : sequence of int
        Other time points of the volume that show the same field, unmoved and not bleached. They tell some ten times
        more than photons held out of one frame; without them photons are held out.
    exposure : float
        Share of the photons that the draws see when photons are held out, 0.3 to 0.9.
    draws, steps, seed : int
        As for `restore`; 4 draws or more.
    device : torch.device or str, optional
        Where to run.
    watch : callable, optional
        ``watch(done, total)``, called after every network call; what it raises ends it.

    Returns
    -------
    Spread

    Raises
    ------
    RestorationError
        If prior and data do not fit, there is no such time point, or too few photons are there to tell.
    """
    if not prior.knows_below or not isinstance(prior.recorruption, Thinning):
        raise RestorationError(
            "error bars are checked for priors of the thinning form with a stage below the noise (--below auto)"
        )
    if not 0.3 <= exposure <= 0.9 or draws < 4:
        raise RestorationError(f"exposure is {exposure} and draws {draws}; give 0.3 to 0.9, and 4 draws or more")
    sizes = volume.sizes
    frames = sizes.get("T", 1)
    if any(not 0 <= t < frames or t == time for t in repeats) or len(set(repeats)) < len(repeats):
        raise RestorationError(
            f"repeats are {list(repeats)}; name other time points than {time}, each once, of the {frames} there are"
        )
    chosen = choose_device(device)
    model = fit_to_frame(noise or prior.noise[min(channel, len(prior.noise) - 1)], (sizes["Y"], sizes["X"]))
    restorer = Restorer(
        volume, place(prior, chosen), (model,) * (channel + 1), np.dtype(np.float32), chosen, Clipping()
    )
    depth, height, width = restorer.domain.shape
    rows, columns = (slice((n - min(n, CROP)) // 2, (n + min(n, CROP)) // 2) for n in (height, width))
    planes = slice(0, depth if prior.denoiser.arguments.dims == 3 else min(depth, prior.denoiser.arguments.channels))

    def read(frame: int) -> tuple[torch.Tensor, torch.Tensor]:
        values = restorer.read(frame, channel, (planes, rows, columns))
        return (
            torch.from_numpy(to_photons(values, model, rows, columns))[None, None],
            torch.from_numpy(trusted(values, model, rows, columns))[None, None],
        )

    counts, good = read(time)
    form = restorer.form
    assert isinstance(form, Thinning)
    if repeats:
        others = [read(frame) for frame in repeats]
        seen, share = counts, 1.0
        stack, weight = torch.stack([k for k, _ in others]), float(len(repeats))
        held = stack.mean(0)
        own = (stack.var(0) if len(repeats) > 1 else held) / weight
        counted = good & torch.stack([g for _, g in others]).all(0)
        source = f"{len(repeats)} other time points"
    else:
        generator = torch.Generator().manual_seed(seed)
        seen = form.part(counts, counts, torch.tensor(exposure), generator)
        share, weight = exposure, 1 - exposure
        held, counted, source = (counts - seen) / weight, good, "held-out photons"
        own = held / weight
    network = prior.denoiser.network
    shape, tile = tuple(counts.shape[-3:]), plan_tile(restorer, free_memory(chosen))
    calls = CallCount(watch, draws, steps * network_calls(prior.denoiser, shape, tile))
    tiled = TiledDenoiser(prior.denoiser, network_domain(network, shape), tile, chosen, calls)
    scales = len(prior.denoiser.scales)  # type: ignore[arg-type]
    halves = Moments(mates=False), Moments(mates=False)
    with torch.inference_mode():
        for number in range(draws):
            light = seen
            for reached in posterior_draw(
                form,
                lambda x_t, sigma, **condition: tiled(x_t, sigma, **{**condition, "channel": min(channel, scales - 1)}),
                seen,
                good,
                steps=steps,
                noise=keyed_noise((seed, time, channel, number, 7)),
                shortest=share,
            ):
                light = light if reached is None else reached
            halves[number % 2].add(light.numpy())
    where = counted.numpy()
    return compare(
        sum(half.count * half.mean()[where] for half in halves) / draws,
        np.stack([np.square(half.std()[where]) * (1 + 1 / draws) for half in halves]),
        held.numpy()[where],
        own.numpy()[where],
        weight,
        source=source,
        bend=bool(repeats),
    )


def compare(
    mean: Array,
    claimed: Array,
    held: Array,
    own: Array,
    exposure: float,
    *,
    source: str = "given",
    bend: bool = False,
) -> Spread:
    """Compare the variances that draws claim with the error that an independent measurement shows.

    Parameters
    ----------
    mean : ndarray, shape (N,)
        Mean of draws, photo-electrons.
    claimed : ndarray, shape (2, N)
        Variance that they claim for it, by two independent halves of the draws.
    held : ndarray, shape (N,)
        The same light measured independently, of variance light / `exposure`.
    own : ndarray, shape (N,)
        An unbiased estimate of that variance.
    exposure : float
        See `held`, above 0.
    source : str
        What it was measured by, in words.
    bend : bool
        Whether to look for more than a power law.

    Returns
    -------
    Spread

    Raises
    ------
    RestorationError
        If the measurement cannot tell.
    """
    squared = np.square(held - mean) - own
    error, usual = float(squared.mean()), float(claimed.mean())
    scatter = float(squared.std(ddof=1)) / len(squared) ** 0.5
    if error <= 3 * scatter or len(squared) < FEWEST:
        raise RestorationError(
            f"the {source} cannot tell: mean squared error {error:.3g} ± {scatter:.2g} photo-electrons²; take a larger "
            "image, or more frames of the same field"
        )
    light = np.maximum(mean, 0.05 * max(float(mean.mean()), 1e-6))
    scale, ours, theirs = [], [], []
    for sorting, other in (claimed, claimed[::-1]):
        for part in np.array_split(np.argsort(sorting), min(BINS, len(squared) // FEWEST)):
            u = float(other[part].mean())
            noise = float((2 * np.square(light[part] / exposure + u) + light[part] / exposure**3).mean())
            scale.append(noise / len(part) * 2)  # each voxel is in two bins
            ours.append(math.log(max(u / usual, 1e-6)))
            theirs.append(float(squared[part].mean()))
    weight, logarithm, measured = 1 / np.array(scale), np.array(ours), np.array(theirs)
    powers = np.linspace(0.2, 3.0, 141)
    losses = []
    for power in powers:
        basis = np.exp(power * logarithm)
        explained = float((weight * basis * measured).sum()) ** 2 / float((weight * basis**2).sum())
        losses.append(((power - 1) / USUAL) ** 2 - explained)
    least = int(np.clip(np.argmin(losses), 1, len(powers) - 2))
    curve = (losses[least - 1] - 2 * losses[least] + losses[least + 1]) / (powers[1] - powers[0]) ** 2
    power = float(round(powers[least], 2))
    right = np.exp(power * logarithm)
    knots: tuple[tuple[float, float], ...] = ()
    if bend and np.ptp(logarithm) > 0:
        law = error / float(right.mean()) * right
        at, by = _bend(logarithm, measured / law, np.array(scale) / law**2)
        right = right * np.interp(logarithm, at, by)
        knots = tuple((math.exp(a / 2) * usual**0.5, math.sqrt(b)) for a, b in zip(at, by, strict=True))
    factor = (error / usual / float(right.mean())) ** 0.5
    return Spread(
        factor=factor,
        power=power,
        error=error**0.5,
        claimed=usual**0.5,
        uncertainty=factor * scatter / (2 * error),
        power_uncertainty=float(2 / max(curve, 1e-12)) ** 0.5,
        source=source,
        bend=knots,
    )


def _bend(logarithm: Array, relative: Array, variance: Array) -> tuple[Array, Array]:
    """Smooth variances relative to the power law, of bins at log u, by a Gaussian process about 1; at some log u."""

    def kernel(a: Array, b: Array) -> Array:
        return np.asarray(BEND**2 * np.exp(-np.square((a[:, None] - b) / LENGTH) / 2))

    at = np.linspace(logarithm.min(), logarithm.max(), KNOTS)
    known = kernel(logarithm, logarithm) + np.diag(variance)
    bend = 1 + kernel(at, logarithm) @ np.linalg.solve(known, relative - 1)
    return at, np.clip(bend, 0.1, 10)
