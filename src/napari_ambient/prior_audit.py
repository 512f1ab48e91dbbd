"""Does a prior remember its training patches? New images and restored ones, against the stack it was trained on.

`audit.py` compares arrays; here they are made of a prior and volumes: new images by `Prior.sample`, training and
held-out images denoised by one call of the same prior (both in the same way, or the comparison means nothing), all in
scaled intensity. Where nothing is held out, the lower quarter of each training image stands in, and the notes say so.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .audit import Audit, Watch, audit
from .prior import Prior, PriorError
from .recorruption import at
from .restoration import restore
from .volumes import Volume

SIZE = 128  # of the new images, voxels along Y and X


def audit_prior(
    prior: Prior,
    training: Volume | Sequence[Volume],
    held_out: Volume | Sequence[Volume] | None = None,
    *,
    channel: int = 0,
    count: int = 16,
    most_images: int = 64,
    steps: int = 32,
    seed: int = 0,
    watch: Watch | None = None,
) -> Audit:
    """Look for training patches in what a prior generates and restores.

    Parameters
    ----------
    prior : Prior
        A prior with a stage below the noise.
    training : Volume or sequence of Volume
        The noisy stacks that it was trained on.
    held_out : Volume or sequence of Volume, optional
        Stacks of the same kind that it was not trained on: other fields of view.
    channel : int
        Image channel.
    count : int
        New images, of 128 x 128 voxels or the size of the training images.
    most_images : int
        Planes (2D priors) or stacks looked at on either side.
    steps : int
        Network calls per new image.
    seed : int
        Of all random choices.
    watch : callable, optional
        Called now and then with (what is being done, done, total); what it raises ends the audit.

    Returns
    -------
    Audit
        With a verdict in words; `Audit.figure` draws the closest pairs.

    Raises
    ------
    PriorError
        If the prior knows nothing below the noise of its data.
    """
    if len(prior.noise) > 1:
        prior = prior.channel(channel)
    if held_out is not None and _sources(held_out) & _sources(training):
        both = ", ".join(sorted(_sources(held_out) & _sources(training)))
        raise PriorError(f"{both} is given as trained on and as held out; hold out another field of view")
    known = _images(prior, training, channel, most_images, "denoising training images", watch)
    notes: tuple[str, ...] = ()
    if held_out is None:
        border = 3 * known[0].shape[-2] // 4
        known, unseen = [image[..., :border, :] for image in known], [image[..., border:, :] for image in known]
        notes = (
            "nothing was held out: the lower quarter of each training image stands in, which the prior may have seen; "
            "give a stack of another field of view for a sharper answer",
        )
    else:
        unseen = _images(prior, held_out, channel, most_images, "denoising held-out images", watch)
    sizes = [min(n, SIZE) for n in np.min([image.shape for image in known], axis=0)]
    if known[0].ndim == 3:
        sizes[0] = min(known[0].shape[0], 16)
    drawing = None if watch is None else functools.partial(watch, "drawing new images")
    drawn = np.stack(list(prior.iter_sample(sizes, count=count, steps=steps, seed=seed, watch=drawing)))
    form = prior.recorruption
    noise = prior.noise[0]
    photons = (drawn - float(np.median(noise.zero))) / float(np.median(noise.gain))
    samples = form.scaled(torch.from_numpy(photons.astype(np.float32))).numpy()
    sigma = form.sigma_y
    result = audit(samples, known, unseen, _restorer(prior), sigma=sigma, seed=seed, device=prior.device, watch=watch)
    unknown = _names(training) - set(prior.record.sources)
    if unknown:
        notes = (*notes, f"the prior does not name {', '.join(sorted(unknown))} among what it was trained on")
    return replace(result, notes=(*result.notes, *notes))


def _list(volumes: Volume | Sequence[Volume]) -> list[Volume]:
    return [volumes] if isinstance(volumes, Volume) else list(volumes)


def _names(volumes: Volume | Sequence[Volume]) -> set[str]:
    return {v.name for v in _list(volumes)}


def _sources(volumes: Volume | Sequence[Volume]) -> set[str]:
    return {v.source for v in _list(volumes) if v.source is not None}


def _images(
    prior: Prior,
    volumes: Volume | Sequence[Volume],
    channel: int,
    most: int,
    stage: str,
    watch: Watch | None,
) -> list[NDArray[np.float32]]:
    """Denoise some images by one call of the prior, in scaled intensity."""
    flat = prior.denoiser.arguments.dims == 2
    images: list[NDArray[np.float32]] = []
    for volume in _list(volumes):
        one = volume.channel(channel) if "C" in volume.axes else volume
        noise = prior.noise[0]
        clean = restore(one, prior, device=prior.device)
        zero, gain = (at(v, slice(None), slice(None)) for v in (noise.zero, noise.gain))
        lead = clean.data.shape[:-2] if flat else clean.data.shape[:-3]
        for index in np.ndindex(*lead):
            if len(images) == most:
                return images
            if watch is not None:
                watch(stage, len(images), most if len(_list(volumes)) > 1 else min(most, math.prod(lead)))
            photons = (np.asarray(clean.data[index].compute(scheduler="synchronous")) - zero) / gain
            scaled = prior.recorruption.scaled(torch.from_numpy(np.asarray(photons, dtype=np.float32)))
            images.append(scaled.numpy())
    return images


def _restorer(prior: Prior) -> Callable[[Tensor, float], Tensor]:
    """Give a clean estimate of crops at a Gaussian level, padded to the network's stride."""
    network = prior.denoiser.network
    stride = network.stride
    slices = network.arguments.channels

    def restore_crops(crops: Tensor, sigma: float) -> Tensor:
        with torch.inference_mode():
            sizes = crops.shape[2:]
            padding = [p for n, s in zip(reversed(sizes), reversed(stride), strict=True) for p in (0, -n % s)]
            seen = functional.pad(crops, padding, mode="replicate")
            if network.arguments.dims == 2 and slices > 1:
                seen = seen.expand(-1, slices, *seen.shape[2:])
            level = torch.full((len(seen),), sigma, device=seen.device)
            answer: Tensor = prior.denoiser(seen, level, corruption="gaussian")
            if network.arguments.dims == 2 and slices > 1:
                answer = answer[:, slices // 2 : slices // 2 + 1]
            for axis, n in enumerate(sizes, 2):
                answer = answer.narrow(axis, 0, n)
            return answer

    return restore_crops
