"""Does a prior remember its training patches? New images and restored ones, against the stack it was trained on.

`audit.py` compares arrays; here they are made of a prior and volumes: new images by `Prior.sample`, training and
held-out images restored by the same prior's own means (both in the same way, or the comparison means nothing), all in
scaled intensity. Where nothing is held out, the lower quarter of each training image stands in, and the notes say so.

    only noisy        x̂ = D(y, sigma_y), one call
    through A         x̂ = mean of draws of q(x | y), or D's one-call answer where the prior has no flow (`amortised.py`)

A prior that was trained through an operator is one of the images before it, and there both tests are made: new images
against x̂ on the clean grid, and corrupt-and-restore as x̂ + 10 sigma_y e → D(x_t, 10 sigma_y), a level at which such
priors were taught everything that they draw with. If the prior owes nothing to which of the fields were measured for
the training, x̂ of both sides are exchangeable, whatever A has removed of them; so a verdict is as sure as for images
that are only noisy. Corrupting the measurement further and restoring it through A would ask about q, which was taught
no such noise, and mostly about A: of an image at ten times its noise behind a blur next to nothing comes back. What q
has memorised shows in x̂, and counts. New images have detail where A left none, which x̂, a mean, has not: it is as
noise to the search, and copies lie the farther from their originals the more A removed (`audit.py` says how far).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .audit import Audit, Watch, audit
from .operators import Identity, Operator
from .prior import Prior, PriorError
from .recorruption import at
from .restoration import restore, restore_part, take_output
from .volumes import Volume

SIZE = 128  # of the new images, voxels along Y and X
DRAWS = 8  # of a flow, whose mean is its restoration


def audit_prior(
    prior: Prior,
    training: Volume | Sequence[Volume],
    held_out: Volume | Sequence[Volume] | None = None,
    *,
    operator: Operator | None = None,
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
    operator : Operator, optional
        What the microscope did to the light of all these stacks: needed, and then the one of the training, for priors
        that were trained through one. Masks may differ from the training's.
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
        If the prior knows nothing below the noise of its data, was trained through an operator that is not given, or
        the same files are given as trained on and as held out.
    RestorationError
        If it was trained through another operator.
    """
    _check(prior, operator)
    if len(prior.noise) > 1:
        prior = prior.channel(channel)
    if held_out is not None and _sources(held_out) & _sources(training):
        both = ", ".join(sorted(_sources(held_out) & _sources(training)))
        raise PriorError(f"{both} is given as trained on and as held out; hold out another field of view")
    known = _images(prior, training, operator, channel, most_images, "restoring training images", watch)
    notes: tuple[str, ...] = ()
    if held_out is None:
        border = 3 * known[0].shape[-2] // 4
        known, unseen = [image[..., :border, :] for image in known], [image[..., border:, :] for image in known]
        notes = (
            "nothing was held out: the lower quarter of each training image stands in, which the prior may have seen; "
            "give a stack of another field of view for a sharper answer",
        )
    else:
        unseen = _images(prior, held_out, operator, channel, most_images, "restoring held-out images", watch)
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


def own_means(
    volume: Volume,
    prior: Prior,
    operator: Operator | None = None,
    *,
    part: Mapping[str, slice] | None = None,
    **settings: Any,
) -> Volume:
    """Restore a volume by the prior's own means.

    Parameters
    ----------
    volume : Volume
        A measurement like those that the prior was trained on.
    prior : Prior
        The prior.
    operator : Operator, optional
        What the microscope did to the light, for priors that were trained through it.
    part : mapping of str to slice, optional
        Voxels to restore, as for `restore_part`; everything if left out.
    **settings
        As for `restore`, such as `device`.

    Returns
    -------
    Volume
        Lazy; in the units of the volume, with its axes, on the clean grid.

    Raises
    ------
    RestorationError
        If the prior was trained through another operator, or through one and none is given.
    """
    through = operator is not None and not isinstance(operator, Identity)
    if through:
        settings |= {"operator": operator, "method": "amortised", "draws": DRAWS, "outputs": ["mean"]}
    restored = restore(volume, prior, **settings) if part is None else restore_part(volume, prior, part, **settings)
    return take_output(restored, "mean") if through else restored


def _check(prior: Prior, operator: Operator | None) -> None:
    """Refuse at once what would come to light only after all images were restored."""
    trained = prior.record.operator
    if not prior.knows_below:
        further = "train it on with the stage below (--below auto, in Python below='auto')"
        if prior.record.objective == "ambient_mask":
            further = "train it on by the objective em (--from), through the same mask"
        raise PriorError(
            f"this prior, of the objective {prior.record.objective}, knows nothing below the noise of its data, and "
            f"the audit needs new images drawn from it; {further}, or to its end where it was stopped early (--resume)"
        )
    if trained and operator is None:
        names = " and ".join(str(part["operator"]) for part in trained.get("applied", [trained]))
        raise PriorError(
            f"this prior was trained through an operator ({names}), and its images must be restored through it before "
            "they can be compared; give the operator of the training (--psf or --na, --mask, --finer as for train, in "
            "Python operator=)"
        )


def _list(volumes: Volume | Sequence[Volume]) -> list[Volume]:
    return [volumes] if isinstance(volumes, Volume) else list(volumes)


def _names(volumes: Volume | Sequence[Volume]) -> set[str]:
    return {v.name for v in _list(volumes)}


def _sources(volumes: Volume | Sequence[Volume]) -> set[str]:
    return {v.source for v in _list(volumes) if v.source is not None}


def _images(
    prior: Prior,
    volumes: Volume | Sequence[Volume],
    operator: Operator | None,
    channel: int,
    most: int,
    stage: str,
    watch: Watch | None,
) -> list[NDArray[np.float32]]:
    """Restore some images by the prior's own means, in scaled intensity."""
    flat = prior.denoiser.arguments.dims == 2
    images: list[NDArray[np.float32]] = []
    for volume in _list(volumes):
        one = volume.channel(channel) if "C" in volume.axes else volume
        noise = prior.noise[0]
        clean = own_means(one, prior, operator, device=prior.device)
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
