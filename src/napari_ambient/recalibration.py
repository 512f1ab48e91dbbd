"""Are the error bars right on *these* data? A check by held-out photons that needs no clean image, and a correction.

Split the measured photo-electrons into two independent parts, k = k₁ + k₂, k₁ the exposure p (`splitting.py`). Draws
are made from k₁ alone; their mean m and variance s² claim an error of s² (1 + 1/K). The held-out k₂ measures it: for
any m that has not seen k₂,

    E[(k₂/(1-p) - m)² - k₂/(1-p)²] = E (x - m)²,

because k₂ has mean and variance (1-p) x. So over many voxels

    spread² = Σ [(k₂/(1-p) - m)² - k₂/(1-p)²] / Σ s² (1 + 1/K)

is the factor by which the claimed variance is too small. ``restore(..., spread=...)`` widens the draws about their mean
by its root, and the record says so. It is one number for a whole image, taken at the exposure p: it mends the size of
the error bars, not their place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .devices import choose_device, free_memory
from .noise import NoiseModel
from .prior import Prior, place
from .recorruption import Thinning, blur, to_photons, trusted
from .restoration import fit_to_frame
from .restorer import Clipping, RestorationError, Restorer, plan_tile
from .sampling import CallCount, TiledDenoiser, Watch, keyed_noise, network_calls, network_domain, posterior_draw
from .splitting import split
from .volumes import Volume

CROP = 256
"""Largest side, voxels, of the part that is looked at."""


@dataclass(frozen=True)
class Spread:
    """What held-out photons say of the error bars.

    Parameters
    ----------
    factor : float
        By how much the claimed standard deviation is to be multiplied; 1 where it is right.
    error : float
        Root mean square error of the mean of draws, photo-electrons, as the held-out photons measure it.
    claimed : float
        Root mean square of the claimed standard deviation, photo-electrons.
    uncertainty : float
        Standard error of the factor.
    """

    factor: float
    error: float
    claimed: float
    uncertainty: float


def measure_spread(
    volume: Volume,
    prior: Prior,
    *,
    noise: NoiseModel | None = None,
    time: int = 0,
    channel: int = 0,
    exposure: float = 0.7,
    draws: int = 8,
    steps: int = 18,
    seed: int = 0,
    device: torch.device | str | None = None,
    watch: Watch | None = None,
) -> Spread:
    """Measure by held-out photons how wide the draws should be.

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
    exposure : float
        Share p of the photons that the draws see, 0.3 to 0.9.
    draws, steps, seed : int
        As for `restore`.
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
        If prior and data do not fit, or too few photons are held out to tell.
    """
    if not prior.knows_below or not isinstance(prior.recorruption, Thinning):
        raise RestorationError(
            "held-out photons tell only of priors of the thinning form with a stage below the noise (--below auto)"
        )
    if not 0.3 <= exposure <= 0.9 or draws < 2:
        raise RestorationError(f"exposure is {exposure} and draws {draws}; give 0.3 to 0.9, and 2 draws or more")
    chosen = choose_device(device)
    sizes = dict(zip(volume.axes, volume.shape, strict=True))
    model = fit_to_frame(noise or prior.noise[min(channel, len(prior.noise) - 1)], (sizes["Y"], sizes["X"]))
    restorer = Restorer(
        volume, place(prior, chosen), (model,) * (channel + 1), np.dtype(np.float32), chosen, Clipping()
    )
    depth, height, width = restorer.domain.shape
    rows, columns = (slice((n - min(n, CROP)) // 2, (n + min(n, CROP)) // 2) for n in (height, width))
    planes = slice(0, depth if prior.denoiser.arguments.dims == 3 else min(depth, prior.denoiser.arguments.channels))
    values = restorer.read(time, channel, (planes, rows, columns))
    good = torch.from_numpy(trusted(values, model, rows, columns))[None, None]
    counts = torch.from_numpy(to_photons(values, model, rows, columns))[None, None]
    form = restorer.form
    assert isinstance(form, Thinning)
    generator = torch.Generator().manual_seed(seed)
    pilot = blur(counts.reshape(1, -1, *counts.shape[-2:]), 2.0).reshape(counts.shape)
    first = split(
        counts,
        pilot,
        torch.tensor(exposure),
        read_variance=form.read_variance,
        pulse_shape=form.pulse_shape,
        generator=generator,
    )
    held = (counts - first) / (1 - exposure)
    network = prior.denoiser.network
    shape, tile = tuple(counts.shape[-3:]), plan_tile(restorer, free_memory(chosen))
    calls = CallCount(watch, draws, steps * network_calls(prior.denoiser, shape, tile))
    tiled = TiledDenoiser(prior.denoiser, network_domain(network, shape), tile, chosen, calls)
    scales = len(prior.denoiser.scales)  # type: ignore[arg-type]
    lights = []
    with torch.inference_mode():
        for number in range(draws):
            key = (seed, time, channel, number, 7)
            light = first
            for reached in posterior_draw(
                form,
                lambda x_t, sigma, **condition: tiled(x_t, sigma, **{**condition, "channel": min(channel, scales - 1)}),
                first,
                good,
                steps=steps,
                noise=keyed_noise(key),
                shortest=exposure,
            ):
                light = light if reached is None else reached
            lights.append(light)
    stack = torch.stack(lights).double()
    mean, variance = stack.mean(dim=0), stack.var(dim=0) * (1 + 1 / draws)
    squared = ((held - mean).square() - held / (1 - exposure))[good]
    claimed = float(variance[good].mean())
    error = float(squared.mean())
    scatter = float(squared.std()) / len(squared) ** 0.5
    if error <= 3 * scatter:
        raise RestorationError(
            f"the held-out photons cannot tell: mean squared error {error:.3g} ± {scatter:.2g} photo-electrons²; take "
            "a larger image"
        )
    factor = (error / claimed) ** 0.5
    return Spread(factor, error**0.5, claimed**0.5, factor * scatter / (2 * error))
