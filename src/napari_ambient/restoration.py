"""Restore volumes with a prior, lazily.

``method="mean"`` is the posterior mean in one call per tile (`restorer.py`), ``method="samples"`` what draws from the
posterior say: mean, standard deviation, quantiles, or the draws themselves (`uncertainty.py`). Time points and channels
are separate images. The result's dask blocks are tiles (images, for draws), and each block reads what it needs of the
source, so that memory does not grow with the volume.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import dask.array as da
import numpy as np
import torch
from numpy.typing import NDArray

from . import __version__
from .choices import RestoreMethod
from .devices import choose_device, free_memory
from .moments import Spread
from .networks.turns import GROUPS
from .noise import NoiseModel
from .opening import widen
from .operators import Identity, Operator
from .posterior import MethodName
from .prior import Prior, place
from .restorer import Clipping, RestorationError, RestorationWarning, Restorer, TileWarning, plan_tile
from .sampling import CallCount, Watch, network_domain
from .uncertainty import SLICES_THROUGH, DrawRestorer, Output
from .volumes import Volume


def restore(
    volume: Volume,
    prior: Prior,
    *,
    noise: NoiseModel | Sequence[NoiseModel] | None = None,
    operator: Operator | None = None,
    method: RestoreMethod = "mean",
    posterior: MethodName = "split_gibbs",
    draws: int = 8,
    steps: int = 18,
    seed: int = 0,
    outputs: Sequence[str] = ("mean", "std"),
    spread: float | Spread = 1.0,
    turns: int = 1,
    work: str | Path | None = None,
    dtype: Literal["float32", "input"] = "float32",
    tile: Sequence[int] | None = None,
    device: torch.device | str | None = None,
    clipping: Clipping | None = None,
    watch: Watch | None = None,
) -> Volume:
    """Denoise a volume: the posterior mean of every voxel, in the volume's own units.

    Parameters
    ----------
    volume : Volume
        Noisy volume, in camera counts.
    prior : Prior
        A prior of such structures.
    noise : NoiseModel or sequence of NoiseModel, optional
        The camera's noise, one model or one per channel; the prior's own if left out. Refit it (`fit_noise`) when the
        camera, its gain or its offset differ from the training's.
    operator : Operator, optional
        What the microscope did to the light: `Blur` (deconvolution), `Mask` (inpainting; NaN in the volume are holes
        then too), `Downsample` (super-resolution), and products of them. The prior must be one of the structures before
        it. Not with ``method="mean"``.
    posterior : {"split_gibbs", "mmps", "diffpir", "dps", "red_diff"}
        Posterior method behind an operator; the first two give draws whose spread is an error bar.
    method : {"mean", "samples", "amortised"}
        The posterior mean in one network call, what draws from the posterior say, or what draws of the prior's own
        learned posterior say, one call each: for priors that were trained through this very operator
        (``objective="flow_diff"`` and others). Those without a flow give its mean alone, ``outputs=["mean"]``.
    draws : int
        Draws per image (samples), 2 or more for a standard deviation.
    steps : int
        Network calls per draw (samples); behind an operator stages of split Gibbs (each of six calls; 12 are usual, 24
        or more behind a PSF that reaches through the stack, as a widefield microscope's does), or levels of the other
        methods.
    seed : int
        Seed of the draws: the same seed gives the same draws, whatever the tiles.
    outputs : sequence of str
        What to give of the draws, as channels of the result: "mean", "std" (the error bar), quantiles in per cent such
        as "q05" and "q95", and "draws" (each draw).
    spread : float or Spread
        Widens the draws about their mean: what `recalibration.measure_spread` found for such data, or a factor.
        Written into the history.
    turns : {1, 2, 4, 8}
        Average the mean (``method="mean"``) over so many flips and quarter turns of the plane, at so many times the
        cost: a little sharper. 8 needs voxels that are square in the plane.
    work : path-like, optional
        Folder that keeps finished draws, so that a run that was killed goes on where it stopped.
    dtype : {"float32", "input"}
        Type of the result: float32, or that of the volume, rounded and clipped (and counted in `clipping`).
    tile : sequence of int, optional
        Largest tile (Z, Y, X) in voxels; chosen from the free memory if left out. It does not change the result.
    device : torch.device or str, optional
        Where to run; CUDA, MPS or CPU, whichever is there.
    clipping : Clipping, optional
        Filled while the result is computed.
    watch : callable, optional
        ``watch(done, total)``, called in the computing thread after every network call, also within one image of draws;
        while a call lasts it is called with the same numbers, up to twenty times a second. What it raises stops the
        computation at once: a file that is being saved is then removed, finished draws stay in `work`. On a
        dask.distributed cluster nobody is told.

    Returns
    -------
    Volume
        Lazy; nothing is computed before it is saved or its data is asked for. It keeps axes, voxel size, units and
        channel names, and its history names the prior.

    Raises
    ------
    RestorationError
        If volume, noise and prior do not fit together.

    Warns
    -----
    TileWarning
        When memory runs out and tiles are halved.
    RestorationWarning
        When a prior of planes with their neighbours draws behind an operator (its error bars are too narrow there;
        the history keeps this as a note), a PSF is wider than the image, or known hot pixels are of another frame.
    """
    if method not in get_args(RestoreMethod):
        raise RestorationError(f"method is {method!r}; choose one of {', '.join(get_args(RestoreMethod))}")
    operator = operator or Identity()
    if method == "mean" and not isinstance(operator, Identity):
        raise RestorationError(
            f"one network call cannot undo an operator ({operator.describe()}); restore by draws (--method samples, in "
            "Python method='samples'), of which the mean alone can be asked for (outputs: mean), or with a prior "
            "trained through the operator by its own posterior (method amortised)"
        )
    undone = [part for part in _without_maps(prior.record.operator) if part != "mask"]
    if method == "mean" and undone:
        raise RestorationError(
            f"this prior was trained by {prior.record.objective} through {', '.join(p['operator'] for p in undone)}, "
            "which its one-call answer undoes; use the method amortised with the operator of the training, or the "
            "method samples, which takes the images as they are"
        )
    if dtype not in ("float32", "input"):
        raise RestorationError(f"the output's type (dtype) is {dtype!r}; choose float32 or input")
    sizes = dict(zip(volume.axes, volume.shape, strict=True))
    channels = sizes.get("C", 1)
    models = _noise(prior, noise, channels)
    models = tuple(fit_to_frame(model, (sizes["Y"], sizes["X"])) for model in models)
    if operator.halo[0] and sizes.get("Z", 1) == 1:
        raise RestorationError(
            f"the operator reaches over planes ({operator.describe()}), and the volume has one; give a PSF of one "
            "plane, such as the focal plane, or name the axes (--axes ZYX, in Python axes='ZYX')"
        )
    shape = [sizes.get(axis, 1) for axis in "ZYX"]
    reaches = zip("ZYX", shape, operator.halo, operator.beyond, strict=True)
    wide = [axis for axis, n, reach, beyond in reaches if n > 1 and reach >= n and not beyond]
    if wide:
        warnings.warn(
            f"the PSF reaches farther along {', '.join(wide)} than the image is wide ({operator.describe()}, image "
            f"{' x '.join(map(str, shape))} voxels): most light comes from beyond its borders, where it is taken for "
            "its mirror image; crop the PSF, take larger images, or open the border (--border open, in Python "
            "Blur(psf, border='open'))",
            RestorationWarning,
            stacklevel=2,
        )
    check_turns(turns, method, volume, prior)
    scales = len(prior.denoiser.scales)  # type: ignore[arg-type]
    if scales not in (1, channels):
        raise RestorationError(
            f"the prior has {scales} channels ({', '.join(prior.record.channel_names) or 'unnamed'}), the volume "
            f"{channels}; choose one channel (--channel, in Python volume.channel and prior.channel)"
        )
    if prior.denoiser.arguments.dims == 3 and sizes.get("Z", 1) == 1:
        raise RestorationError(
            f"the prior is 3D, the volume has axes {volume.axes} {volume.shape}: no Z to see; name the axes "
            "(--axes ZYX, in Python axes='ZYX'), or train a 2D prior (--dims 2D)"
        )
    if method == "amortised":
        _check_amortised(prior, operator, outputs)
        draws = 1 if prior.posterior is None else draws
    given, through = volume, operator
    opened = widen(volume, operator)
    volume, operator = opened.volume, opened.operator
    models = tuple(opened.noise(model) for model in models)
    chosen = choose_device(device)
    out = np.dtype(np.float32) if dtype == "float32" else volume.dtype
    counted = Clipping() if clipping is None else clipping
    restorer = Restorer(volume, place(prior, chosen), models, out, chosen, counted, turns)
    limit = tuple(tile) if tile is not None else plan_tile(restorer, free_memory(chosen))
    if len(limit) != 3 or min(limit) < 1:
        raise RestorationError(f"tile is {tuple(limit)}; give three positive numbers (Z, Y, X)")
    notes: list[str] = []
    if method != "mean":
        _check_draws(draws, outputs)
        if method == "samples":
            _check_below(prior)
            if restorer.overlapping and not isinstance(operator, Identity):
                notes.append(SLICES_THROUGH)
                warnings.warn(SLICES_THROUGH, RestorationWarning, stacklevel=2)
        drawing = DrawRestorer(
            restorer,
            draws=draws,
            steps=steps,
            seed=seed,
            outputs=[Output(name) for name in outputs],
            tile=(limit[0], limit[1], limit[2]),
            work=None if work is None else Path(work),
            operator=operator,
            posterior=posterior,
            spread=spread,
            amortised=method == "amortised",
            watch=watch,
        )
        data, axes, names = _draw_blocks(drawing, volume, channels)
    else:
        data, axes, names = _mean_blocks(restorer, volume, limit), volume.axes, volume.channel_names
        images = sizes.get("T", 1) * channels
        tiles = math.prod(len(parts) for axis, parts in zip(axes, data.chunks, strict=True) if axis in "ZYX")
        if prior.denoiser.arguments.dims == 2:  # which sees one plane, with its neighbours, at a call
            tiles = math.prod(data.numblocks[-2:]) * sizes.get("Z", 1)
        restorer.count = CallCount(watch, images, tiles * turns)
    record = {
        "action": "restore",
        "method": method,
        "prior_sha256": prior.sha256,
        "prior_objective": prior.record.objective,
        "prior_step": prior.record.step,
        "form": prior.record.form,
        "noise_from": "prior" if noise is None else "given",
        "noise": [
            {"gain": float(np.median(m.gain)), "zero": float(np.median(m.zero)), "fitted": m.method} for m in models
        ],
        "seed": prior.record.config.get("seed") if method == "mean" else seed,
        **({} if method == "mean" else {"draws": draws, "steps": steps, "outputs": list(outputs)}),
        **({} if method == "mean" else {"spread": spread.to_dict() if isinstance(spread, Spread) else spread}),
        **({"turns": turns} if turns > 1 else {}),
        **({} if isinstance(through, Identity) else {"operator": through.to_dict(), "posterior": posterior}),
        "dtype": str(out),
        "axes": volume.axes,
        "channels": list(range(volume.first_channel, volume.first_channel + channels)),
        "source": volume.name,
        **({"notes": notes} if notes else {}),
        "program": "napari-ambient",
        "version": __version__,
    }
    scale = dict(volume.scale)
    clean = operator.input_shape(restorer.domain.shape)
    for axis, measured, wanted in zip("ZYX", restorer.domain.shape, clean, strict=True):
        if axis in scale:
            scale[axis] *= measured / wanted
    result = opened.inner(given.replace(data=data, axes=axes, channel_names=names, scale=scale))
    return result.with_history(record)


def restore_part(
    volume: Volume,
    prior: Prior,
    part: Mapping[str, slice],
    *,
    noise: NoiseModel | Sequence[NoiseModel] | None = None,
    operator: Operator | None = None,
    **settings: Any,
) -> Volume:
    """Restore a part of a volume as it will look in the whole: a preview.

    The part is computed with what network and operator see around it, which is then cut away. The mean of an image is
    exactly that of the whole volume; draws are other draws from the same posterior.

    Parameters
    ----------
    volume : Volume
        Noisy volume, in camera counts.
    prior : Prior
        A prior of such structures.
    part : mapping of str to slice
        Voxels along T, Z, Y and X; an axis that is left out is taken whole. Channels cannot be cut.
    noise, operator, **settings
        As for `restore`, for the whole volume.

    Returns
    -------
    Volume
        Lazy, of the part's shape.

    Raises
    ------
    RestorationError
        If the part is empty or outside, or the operator changes the grid.
    """
    operator = operator or Identity()
    if operator.stride != (1, 1, 1):
        raise RestorationError(
            f"a part cannot be restored through an operator that changes the grid ({operator.describe()}); crop the "
            "volume instead"
        )
    sizes = volume.sizes
    strange = [axis for axis in part if axis not in sizes or axis == "C"]
    if strange:
        raise RestorationError(
            f"the part names {', '.join(strange)}; a volume {volume.axes} is cut along T, Z, Y and X"
        )
    domain = network_domain(prior.denoiser.network, tuple(sizes.get(axis, 1) for axis in "ZYX"))
    read: dict[str, slice] = {}
    inner: dict[str, slice] = {}
    for axis, n in sizes.items():
        start, stop, step = part.get(axis, slice(None)).indices(n)
        if step != 1 or start >= stop:
            raise RestorationError(f"the part is {part[axis]} along {axis}, which has {n}: choose at least one voxel")
        low, high = start, stop
        if axis in "ZYX":
            i = "ZYX".index(axis)
            reach = domain.halo[i] + operator.halo[i]
            # from a multiple of the stride on, so that the network's grid lies as it does in the whole
            low = max(start - reach, 0) // domain.stride[i] * domain.stride[i]
            high = min(-(-(stop + reach) // domain.stride[i]) * domain.stride[i], n)
        read[axis], inner[axis] = slice(low, high), slice(start - low, stop - low)
    box = [read.get(axis, slice(0, 1)) for axis in "ZYX"]
    models = _noise(prior, noise, sizes.get("C", 1))
    plane = (sizes["Y"], sizes["X"])
    cropped = restore(
        volume.replace(data=volume.data[tuple(read.values())]),
        prior,
        noise=[fit_to_frame(model, plane).with_maps(lambda m: m[box[1], box[2]]) for model in models],
        operator=operator if isinstance(operator, Identity) else operator.crop(box),
        **settings,
    )
    kept = tuple(inner.get(axis, slice(None)) if axis != "C" else slice(None) for axis in cropped.axes)
    where = {axis: [part[axis].start, part[axis].stop] for axis in part}
    history = (*cropped.history[:-1], {**cropped.history[-1], "part": where})
    return cropped.replace(data=cropped.data[kept], history=history)


def take_output(restored: Volume, name: str) -> Volume:
    """Take one of the outputs of draws: "mean", "std", a quantile, or "draw 1".

    Parameters
    ----------
    restored : Volume
        From `restore(method="samples")`, also when it was saved and opened again.
    name : str
        The output.

    Returns
    -------
    Volume
        With the axes of the volume that was restored.

    Raises
    ------
    RestorationError
        If there is no such output.
    """
    data, axes, labels = _by_output(restored)
    if name not in labels:
        raise RestorationError(f"output {name!r} was not asked for; there are {', '.join(labels)}")
    number = labels.index(name)
    names = tuple(given.removesuffix(name).rstrip() for given in restored.channel_names[number :: len(labels)])
    return restored.replace(data=data[number], axes=axes, channel_names=names if all(names) else ())


def take_draws(restored: Volume) -> da.Array:
    """Take all draws, along an axis of their own.

    Parameters
    ----------
    restored : Volume
        From `restore(method="samples", outputs=[..., "draws"])`.

    Returns
    -------
    dask array, shape (draws, *shape of the volume that was restored)

    Raises
    ------
    RestorationError
        If the draws were not asked for.
    """
    data, _, labels = _by_output(restored)
    if "draw 1" not in labels:
        raise RestorationError(
            f"the draws themselves were not asked for (outputs: draws); there are {', '.join(labels)}"
        )
    first = labels.index("draw 1")
    draws: da.Array = data[first : first + sum(label.startswith("draw ") for label in labels)]
    return draws


def _by_output(restored: Volume) -> tuple[da.Array, str, list[str]]:
    """Give what was restored with the outputs along a first axis of their own, the other axes, and the labels."""
    records = [record for record in restored.history if record.get("action") == "restore" and "outputs" in record]
    if not records or "C" not in restored.axes:
        raise RestorationError(f"{restored.name or 'the volume'} holds no draws; restore it by draws (method samples)")
    record = records[-1]
    labels = [label for output in record["outputs"] for label in Output(output).labels(record["draws"])]
    at = restored.axes.index("C")
    shape = restored.shape
    split = restored.data.reshape((*shape[:at], shape[at] // len(labels), len(labels), *shape[at + 1 :]))
    data = da.moveaxis(split, at + 1, 0)
    if "C" in record["axes"]:
        return data, restored.axes, labels
    return data[(slice(None),) * (at + 1) + (0,)], restored.axes.replace("C", ""), labels


def _mean_blocks(restorer: Restorer, volume: Volume, limit: Sequence[int]) -> Any:
    chunks = tuple(
        (1,) * n if axis in "TC" else _chunks(n, limit["ZYX".index(axis)], restorer.domain.stride["ZYX".index(axis)])
        for axis, n in zip(volume.axes, volume.shape, strict=True)
    )
    return da.map_blocks(
        functools.partial(_block, restorer=restorer, axes=volume.axes),
        chunks=chunks,
        dtype=restorer.dtype,
        meta=np.empty((0,) * volume.data.ndim, dtype=restorer.dtype),
    )


def _draw_blocks(drawing: DrawRestorer, volume: Volume, channels: int) -> tuple[Any, str, tuple[str, ...]]:
    """Lay out the outputs as channels: those of the first channel, then those of the second, ..."""
    sizes = dict(zip(volume.axes, volume.shape, strict=True))
    sizes |= dict(zip("ZYX", drawing.clean_shape(drawing.restorer.domain.shape), strict=True))
    axes = "".join(axis for axis in "TCZYX" if axis in volume.axes or axis == "C")
    count = len(drawing.labels)
    blocks = {
        "T": (1,) * sizes.get("T", 1),
        "C": (count,) * channels,
        "Z": (1,) * sizes.get("Z", 1) if drawing.planes else (sizes.get("Z", 1),),
        "Y": (sizes["Y"],),
        "X": (sizes["X"],),
    }
    dtype = drawing.restorer.dtype
    data = da.map_blocks(
        functools.partial(_draw_block, drawing=drawing, axes=axes),
        chunks=tuple(blocks[axis] for axis in axes),
        dtype=dtype,
        meta=np.empty((0,) * len(axes), dtype=dtype),
    )
    given = volume.channel_names if len(volume.channel_names) == channels else tuple(map(str, range(channels)))
    prefix = [""] if channels == 1 and not volume.channel_names else [f"{name} " for name in given]
    return data, axes, tuple(f"{p}{label}" for p in prefix for label in drawing.labels)


def check_turns(turns: int, method: RestoreMethod, volume: Volume, prior: Prior) -> None:
    """Refuse averages over turns that there are not, or that the image does not allow."""
    if turns not in GROUPS:
        raise RestorationError(f"turns is {turns}; choose {', '.join(map(str, GROUPS))} (1: the image as it is)")
    if turns > 1 and method != "mean":
        raise RestorationError(
            "flips and quarter turns are averaged over in the mean of one network call (method mean); draws are "
            "averages already: take more draws, or leave turns at 1"
        )
    y, x = (volume.voxel_size.get(axis) for axis in "YX")
    square = y is None or x is None or math.isclose(y, x, rel_tol=1e-3)
    strides = prior.denoiser.arguments.strides
    if turns == 8 and not (square and all(s[-1] == s[-2] for s in strides)):
        raise RestorationError(
            f"turns is 8, and quarter turns need voxels of the same size along Y and X (they are {y} and {x} µm); "
            "choose 4 or fewer"
        )


def _check_amortised(prior: Prior, operator: Operator, outputs: Sequence[str]) -> None:
    """Refuse measurements that the prior's own posterior was not trained for."""
    trained = prior.record.operator
    if prior.posterior is None and not trained:
        raise RestorationError(
            "this prior has no posterior of its own: it was trained on images that are only noisy; use the method "
            "mean or samples, or train one through the operator (objective flow_diff)"
        )
    given = {} if isinstance(operator, Identity) else operator.to_dict()
    if _without_maps(given) != _without_maps(trained):
        raise RestorationError(
            f"the prior's own posterior was trained for another operator than this one ({operator.describe()}), and "
            "knows no other; use the method samples, which takes any, or give the operator of the training"
        )
    if prior.posterior is None and list(outputs) != ["mean"]:
        raise RestorationError(
            f"the outputs are {' '.join(outputs)}, and the prior was trained by {prior.record.objective}, which gives "
            "the mean alone; ask for the output mean only, or use the method samples"
        )


def _without_maps(record: Mapping[str, Any]) -> list[Any]:
    """Give the operators of a record; masks without their maps, which are shown to the posterior at every voxel."""
    parts = record.get("applied", [record] if record else [])
    return [part["operator"] if part.get("operator") == "mask" else dict(part) for part in parts]


def _check_below(prior: Prior) -> None:
    if not prior.knows_below:
        raise RestorationError(
            "this prior knows nothing below the noise of its data, which draws need; train it on with the stage below "
            "(--below auto, in Python below='auto'), or to its end where it was stopped early (--resume)"
        )


def _check_draws(draws: int, outputs: Sequence[str]) -> None:
    if draws < 1 or (draws < 2 and "std" in outputs):
        raise RestorationError(
            f"draws is {draws}; the error bar (std) is the scatter of draws: give 2 or more, 8 are usual; 1 is enough "
            "for the mean alone (outputs: mean)"
        )
    if isinstance(outputs, str) or len(set(outputs)) < len(outputs):
        raise RestorationError(
            f"the outputs are {outputs if isinstance(outputs, str) else ' '.join(outputs)!r}; give different names, "
            "such as mean and std, each once (in Python a list of them)"
        )
    if not outputs:
        raise RestorationError(
            "the list of outputs is empty; choose of mean, std, draws and quantiles such as q05, q95"
        )


def _block(restorer: Restorer, axes: str, block_info: Any = None) -> NDArray[Any]:
    """One dask block: one tile (or several time points of it, one after another)."""
    spans = dict(zip(axes, block_info[None]["array-location"], strict=True))
    core = [slice(*spans.get(axis, (0, 1))) for axis in "ZYX"]
    times, channels = (range(*spans.get(axis, (0, 1))) for axis in "TC")
    shape = tuple(b - a for a, b in block_info[None]["array-location"])
    parts = [[restorer.region(t, c, core) for c in channels] for t in times]
    return np.asarray(parts).reshape(shape)


def _draw_block(drawing: DrawRestorer, axes: str, block_info: Any = None) -> NDArray[Any]:
    """One dask block: all outputs of one image."""
    spans = dict(zip(axes, block_info[None]["array-location"], strict=True))
    shape = tuple(b - a for a, b in block_info[None]["array-location"])
    # an operator may change the number of planes; then all are drawn together
    low, high = spans.get("Z", (0, 1)) if drawing.planes else (0, drawing.restorer.domain.shape[0])
    channel = spans["C"][0] // len(drawing.labels)
    values = drawing.image(spans.get("T", (0, 1))[0], channel, slice(low, high))
    return drawing.restorer.convert(values).reshape(shape)


def _noise(prior: Prior, noise: NoiseModel | Sequence[NoiseModel] | None, channels: int) -> tuple[NoiseModel, ...]:
    if noise is None:
        models: tuple[NoiseModel, ...] = prior.noise
    else:
        models = (noise,) if isinstance(noise, NoiseModel) else tuple(noise)
    if len(models) == 1:
        models = models * channels
    if len(models) != channels:
        raise RestorationError(f"{len(models)} noise models for {channels} channels; give one, or one per channel")
    return models


def fit_to_frame(noise: NoiseModel, plane: tuple[int, int]) -> NoiseModel:
    """Refuse per-pixel maps of another frame; hot pixels of another frame are left out, and it is said."""
    for name in ("gain", "intercept"):
        shape = np.shape(getattr(noise, name))
        if shape and shape != plane:
            raise RestorationError(
                f"the noise model's {name} map is for frames of {shape} pixels, the volume has {plane}; fit the noise "
                "of this volume (--noise fit, in Python noise=fit_noise(volume))"
            )
    if noise.hot_pixels is not None and noise.hot_pixels.shape != plane:
        warnings.warn(
            f"{int(noise.hot_pixels.sum())} hot pixels are known for frames of {noise.hot_pixels.shape} pixels, the "
            f"volume has {plane}: they are not masked; fit the noise of this volume to find its own (--noise fit)",
            RestorationWarning,
            stacklevel=3,
        )
        return replace(noise, hot_pixels=None)
    return noise


def _chunks(size: int, limit: int, stride: int) -> tuple[int, ...]:
    """Equal chunks of at most `limit` voxels that begin on the stride's grid."""
    if size <= limit:
        return (size,)
    count = math.ceil(size / limit)
    step = min(limit, math.ceil(size / count / stride) * stride)
    return tuple(min(step, size - a) for a in range(0, size, step))


__all__ = [
    "Clipping",
    "RestorationError",
    "RestorationWarning",
    "Restorer",
    "TileWarning",
    "plan_tile",
    "restore",
    "restore_part",
    "take_draws",
    "take_output",
]
