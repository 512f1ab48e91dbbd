"""Where a prior and new data do not fit together, in sentences for people.

A prior knows structures of one kind, on voxels of one size, in one range of light, under the noise of its own data:

    z = 2 √((y - zero)/gain + 3/8)        is what the network sees

With another camera setting the same light gives other z, and with another voxel size the same structure has another
width. Such misfits raise no error, they give worse images, so they are said before restoring: `restore` takes a noise
model fitted anew, and the remedy for the rest is a prior trained on, or from, such data. This file measures the data
quickly (some planes); command line and window show what it finds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .noise import NoiseModel
from .noise_fit import NoiseFitError, fit_noise
from .noise_planes import evenly
from .prior import Prior
from .recorruption import read_variance_of, to_photons
from .volumes import Volume

About = Literal["axes", "voxel size", "noise", "intensity"]

QUICK = 500_000  # voxels that the quick fit of the noise looks at
PLANES = 6  # whose light is looked at
SAME_VOXEL = 1.2  # ratio up to which the width of a structure is the same for a network that saw it turned and flipped
SAME_NOISE = 1.3  # of the variance; the quick fit is right within some 10 %
READ_MATTERS = 0.5  # photo-electrons² more or less of read noise
SAME_LIGHT = 3.0  # ratio of mean photo-electrons: fields of one experiment differ as much
BRIGHTEST = 8.0  # spreads of z above the training's centre


@dataclass(frozen=True)
class Misfit:
    """One thing in which prior and data do not fit.

    Parameters
    ----------
    about : {"axes", "voxel size", "noise", "intensity"}
        What it is about; for noise the remedy is to fit it anew.
    sentence : str
        What the prior has, what the data have, and what to do.
    """

    about: About
    sentence: str


def misfits(volume: Volume, prior: Prior, noise: NoiseModel | Sequence[NoiseModel] | None = None) -> list[str]:
    """Say where a prior and data do not fit.

    Parameters
    ----------
    volume : Volume
        The noisy data.
    prior : Prior
        The prior to restore them with.
    noise : NoiseModel or sequence of NoiseModel, optional
        The data's own noise, where it was fitted anew; else the data are measured quickly and compared with the
        prior's noise.

    Returns
    -------
    list of str
        Sentences; empty where all fits.
    """
    return [misfit.sentence for misfit in find_misfits(volume, prior, noise)]


def find_misfits(volume: Volume, prior: Prior, noise: NoiseModel | Sequence[NoiseModel] | None = None) -> list[Misfit]:
    """Find where a prior and data do not fit, each with what it is about; see `misfits`.

    Parameters
    ----------
    volume : Volume
        The noisy data.
    prior : Prior
        The prior to restore them with.
    noise : NoiseModel or sequence of NoiseModel, optional
        The data's own noise, where it was fitted anew.

    Returns
    -------
    list of Misfit
    """
    shape = list(_axes(volume, prior))
    found = shape + list(_voxel_size(volume, prior))
    if any("channels" in misfit.sentence for misfit in shape):
        return found  # which noise belongs to which channel is not known then
    count = volume.sizes.get("C", 1)
    given = [noise] if isinstance(noise, NoiseModel) else list(noise or ())
    for channel in range(count):
        part = volume.channel(channel) if "C" in volume.axes else volume
        name = _name(volume, channel)
        trained = prior.noise[min(channel, len(prior.noise) - 1)]
        used = given[min(channel, len(given) - 1)] if given else trained
        if not given:
            other, sentences = _noise(part, trained, name)
            used = other or used
            found += sentences
        found += _read_noise(trained, used, prior, name)
        found += _intensity(part, prior, trained, used, channel, name)
    return found


def _axes(volume: Volume, prior: Prior) -> list[Misfit]:
    arguments, sizes = prior.denoiser.arguments, volume.sizes
    found = []
    depth = sizes.get("Z", 1)
    if arguments.dims == 3 and depth == 1:
        found.append(
            f"The prior is 3D, and the data ({volume.axes}) have no Z: correct their axes, or choose a 2D prior."
        )
    elif arguments.dims == 2 and arguments.channels > depth:
        found.append(
            f"The prior looks at {arguments.channels} neighbouring planes at once, and the data have "
            f"{depth}: the missing ones are mirrored; a 2D prior suits these data better."
        )
    scales = len(prior.denoiser.scales)  # type: ignore[arg-type]
    channels = sizes.get("C", 1)
    if scales not in (1, channels):
        found.append(
            f"The prior has {scales} channels ({', '.join(prior.record.channel_names) or 'unnamed'}), the data have "
            f"{channels}: choose one channel of each."
        )
    return [Misfit("axes", sentence) for sentence in found]


def _voxel_size(volume: Volume, prior: Prior) -> list[Misfit]:
    looks_at = "ZYX" if prior.denoiser.arguments.dims == 3 or prior.denoiser.arguments.channels > 1 else "YX"
    different = []
    for axis in looks_at:
        here, there = volume.voxel_size.get(axis), prior.record.voxel_size.get(axis)
        if here is not None and there and max(here / there, there / here) > SAME_VOXEL:
            different.append((axis, here, there))
    if not different:
        return []
    axes = ", ".join(axis for axis, _, _ in different)
    ours, theirs = (" × ".join(f"{row[i]:.3g}" for row in different) for i in (1, 2))
    return [
        Misfit(
            "voxel size",
            f"Voxel size: {ours} µm along {axes}, in the prior's data {theirs} µm; to it, structures look "
            f"{different[-1][2] / different[-1][1]:.2g} times as wide. Correct the voxel size, or train on such data.",
        )
    ]


def _noise(volume: Volume, trained: NoiseModel, name: str) -> tuple[NoiseModel | None, list[Misfit]]:
    """Compare the variance that the data show with what the prior's noise model says of their dim and bright parts.

    Gives the data's own noise too, where it is another.
    """
    try:
        fitted = fit_noise(volume, budget=QUICK)
    except NoiseFitError as error:
        reason = str(error).split(": ")[0].rstrip(".")
        return None, [Misfit("noise", f"Noise{name}: it could not be compared with the prior's ({reason}).")]
    mean, _, count = fitted.transfer
    if not mean.size:
        return None, []
    order = np.argsort(mean)
    share = np.cumsum(count[order]) / count.sum()
    levels = np.array([mean[order][np.searchsorted(share, q)] for q in (0.1, 0.9)])
    gain, zero = (float(np.median(v)) for v in (trained.gain, trained.zero))
    # a fifth of a photo-electron keeps the dark from mattering, where nothing is restored
    seen = fitted.variance(levels) + 0.2 * np.square(fitted.gain)
    said = np.maximum(gain * (levels - zero), 0.0) + 0.2 * gain**2
    ratio = seen / said
    worst = float(ratio[np.argmax(np.abs(np.log(ratio)))])
    if 1 / SAME_NOISE < worst < SAME_NOISE:
        return None, []
    return fitted, [
        Misfit(
            "noise",
            f"Noise{name}: its variance is {worst:.2g} times what the prior expects (gain "
            f"{float(np.median(fitted.gain)):.3g} instead of {gain:.3g}, zero level "
            f"{float(np.median(fitted.zero)):.4g} instead of {zero:.4g}). Fit the noise anew.",
        )
    ]


def _read_noise(trained: NoiseModel, used: NoiseModel, prior: Prior, name: str) -> list[Misfit]:
    """Compare the read noise, which to the network is light: r² photo-electrons of it, everywhere."""
    here, there = (read_variance_of([noise]) for noise in (used, trained))
    if used is trained or here is None:
        return []
    if there is None:
        there = float(prior.record.quanta.get("read_variance") or 0.0)
    usual = trained.photons if math.isfinite(trained.photons) else 0.0
    if abs(here - there) < max(READ_MATTERS, 0.2 * usual):
        return []
    return [
        Misfit(
            "intensity",
            f"Read noise{name}: {math.sqrt(here):.2g} photo-electrons, in the prior's data {math.sqrt(there):.2g}; to "
            f"the network, {abs(here - there):.2g} photo-electrons of haze {'more' if here > there else 'less'} than "
            "it learned from. Draws behind a PSF or a mask allow for it, one call does not: look closely at the "
            "result, or train on such data.",
        )
    ]


def _intensity(
    volume: Volume, prior: Prior, trained: NoiseModel, used: NoiseModel, channel: int, name: str
) -> list[Misfit]:
    """Compare the light, as the network will see it, with that of the training."""
    light = _light(volume, used)
    if not light.size:
        return []
    scales = prior.denoiser.scales
    row = min(channel, len(scales) - 1)  # type: ignore[arg-type]
    centre, spread = (float(v) for v in scales[row])  # type: ignore[index]
    usual = trained.photons if math.isfinite(trained.photons) and trained.photons > 0 else max(centre**2 / 4, 0.05)
    here = max(float(light.mean()), 0.0)
    ratio = max(here, 0.01) / usual
    if not 1 / SAME_LIGHT < ratio < SAME_LIGHT:
        what = "bright" if ratio > 1 else "dim"
        times = ratio if ratio > 1 else 1 / ratio
        return [
            Misfit(
                "intensity",
                f"Light{name}: {times:.2g} times as {what} as what the prior was trained on ({here:.3g} instead of "
                f"{usual:.3g} photo-electrons per voxel). Look closely at the result, or train on such data.",
            )
        ]
    top = 2 * math.sqrt(max(float(np.quantile(light, 0.999)), 0.0) + 3 / 8)
    if top > centre + BRIGHTEST * max(spread, 1.0):
        return [
            Misfit(
                "intensity",
                f"Light{name}: the brightest voxels ({top**2 / 4:.3g} photo-electrons) are far beyond what the prior "
                "was trained on, and may be dimmed or blurred. Train on data that hold such bright structures.",
            )
        ]
    return []


def _light(volume: Volume, noise: NoiseModel) -> NDArray[np.float32]:
    """Read some planes in photo-electrons, finite voxels only."""
    shape = volume.shape
    chosen = [np.unravel_index(i, shape[:-2]) for i in evenly(range(math.prod(shape[:-2])), PLANES)]
    plane = tuple(noise.gain.shape) if isinstance(noise.gain, np.ndarray) else None
    if plane is not None and plane != shape[-2:]:
        # maps of another frame, which `restore` refuses: their medians tell the range
        noise = NoiseModel(gain=float(np.median(noise.gain)), intercept=float(np.median(noise.intercept)))
    values = []
    for place in chosen:
        counts = np.asarray(volume.data[place].compute(scheduler="synchronous"), dtype=np.float32)[None]
        photons = to_photons(counts, noise, slice(None), slice(None))
        values.append(photons[np.isfinite(photons)])
    return np.concatenate(values)


def _name(volume: Volume, channel: int) -> str:
    if volume.sizes.get("C", 1) == 1:
        return ""
    return f" of channel {volume.channel_names[channel] if volume.channel_names else channel}"
