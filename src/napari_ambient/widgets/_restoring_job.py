"""The work of the Restore form, off the Qt thread: what was asked for → volumes to show.

    Task → compatibility.find_misfits | restoration.restore, restore_part → Volume → memory, or OME-Zarr on disk → Made

Everything here is a plain function or value: no Qt object, no layer. Progress goes through `restore`'s `watch`, which
also stops the work as soon as the user asks.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from napari_ambient.choices import Border, RestoreMethod
from napari_ambient.volumes import Volume, iter_save_volume, open_volume
from napari_ambient.widgets._operator import Through, Undone
from napari_ambient.widgets._run import Turn

if TYPE_CHECKING:
    from napari_ambient.compatibility import Misfit
    from napari_ambient.moments import Spread
    from napari_ambient.noise import NoiseModel
    from napari_ambient.prior import Prior

REPORT_EVERY = 0.1
"""Seconds between two reports of progress."""
SHOW_EVERY = 1.0
"""Seconds between two looks at a file that grows."""
LOOKED_AT = 1_000_000
"""Voxels from which contrast limits are taken."""

Result = Literal["mean", "draws"]
Limits = tuple[float, float]
What = Literal["draws", "error bar", "mean"]


@dataclass(frozen=True)
class Item:
    """One image to restore.

    Parameters
    ----------
    volume : Volume
        The image.
    part : mapping of str to slice
        What of it; empty: all.
    path : Path
        Where the result goes if it is too large for the memory.
    measured : callable or None
        Reads where something was measured (True); None: everywhere but at NaN.
    channel : int or None
        Which of the prior's channels it is; None: all.
    """

    volume: Volume
    part: Mapping[str, slice]
    path: Path
    measured: Callable[[], NDArray[np.bool_]] | None = None
    channel: int | None = None


@dataclass(frozen=True)
class Task:
    """What the form says, all plain values.

    Parameters
    ----------
    prior : Prior
        The prior.
    items : tuple of Item
        The images.
    refit : bool
        Fit the noise of each image anew.
    through : {"nothing", "psf", "holes", "both"}
        What is to be undone besides the noise.
    psf : ndarray or None
        For "psf" and "both".
    border : {"reflect", "open"}
        What lies beyond the image that is blurred.
    amortised : bool
        By the prior's own posterior, which was trained for this very task.
    result : {"mean", "draws"}
        The mean alone, or with what draws say of it.
    keep : bool
        Keep the draws too.
    draws, steps, seed : int
        As for `restore`.
    recalibrate : bool
        Measure by held-out photons how wide the draws should be, and widen or narrow them accordingly.
    still : bool
        All time points show the same field: measure it by the others instead.
    turns : {1, 2, 4, 8}
        As for `restore`, where one call gives the mean.
    dtype : {"float32", "input"}
        Type of the result.
    device : str
        Where to run.
    memory : int
        Bytes; larger results go to the disk.
    """

    prior: Prior
    items: tuple[Item, ...]
    refit: bool = False
    through: Undone = "nothing"
    psf: NDArray[Any] | None = None
    border: Border = "reflect"
    amortised: bool = False
    result: Result = "mean"
    keep: bool = False
    draws: int = 8
    steps: int = 18
    seed: int = 0
    recalibrate: bool = False
    still: bool = False
    turns: int = 1
    dtype: Literal["float32", "input"] = "float32"
    device: str = "auto"
    memory: int = 2_000_000_000

    @property
    def method(self) -> RestoreMethod:
        """One call suffices for the mean of what is only noisy."""
        if self.amortised:
            return "amortised"
        return "mean" if self.result == "mean" and self.through == "nothing" else "samples"

    @property
    def outputs(self) -> tuple[str, ...]:
        """What to make of the draws."""
        if self.result == "mean":
            return ("mean",)
        return ("mean", "std", "draws") if self.keep else ("mean", "std")

    def size(self, item: Item) -> int:
        """Bytes that the result of an image takes, about."""
        count = {"mean": 1, "std": 1, "draws": self.draws}
        voxels = 1
        for axis, n in item.volume.sizes.items():
            start, stop, _ = item.part.get(axis, slice(None)).indices(n)
            voxels *= max(stop - start, 0)
        itemsize = 4 if self.dtype == "float32" else item.volume.dtype.itemsize
        return voxels * itemsize * sum(count[name] for name in self.outputs)


@dataclass(frozen=True)
class Growing:
    """The result of an image is being written: its mean can be looked at, voxels to come are 0."""

    number: int
    mean: Volume


@dataclass(frozen=True)
class Grown:
    """Some more of it is there."""

    number: int


@dataclass(frozen=True)
class Made:
    """One layer of what became of an image; the mean comes last.

    Parameters
    ----------
    number : int
        Of the item.
    what : {"draws", "error bar", "mean"}
        What it is.
    volume : Volume
        The mean, or the standard deviation of the draws; of the draws, their mean.
    limits : (float, float)
        Contrast limits.
    values : ndarray or None
        The voxels of `volume`, or of the draws, where they are in memory.
    draws : dask array or None
        The draws, shape (draws, *shape of the mean).
    moved : bool
        Whether light was moved or added, so that the contrast limits of the source say little.
    path : Path or None
        Where it lies on disk, if it does.
    notes : tuple of str
        What to know of the image; with the mean.
    """

    number: int
    what: What
    volume: Volume
    limits: Limits
    values: NDArray[Any] | None = None
    draws: da.Array | None = None
    moved: bool = False
    path: Path | None = None
    notes: tuple[str, ...] = ()


Report = Callable[[int, int, str], None]
"""report(done, total, text), callable in any thread."""


def restore_job(
    task: Task, check: Callable[[], None], report: Report
) -> Generator[Growing | Grown | Made | Turn, None, float]:
    """Restore every image of a task, one after another.

    Parameters
    ----------
    task : Task
        What to do.
    check : callable
        Raises when the user has asked to stop.
    report : callable
        Told of the progress, some ten times a second.

    Yields
    ------
    Growing, Grown, Made, Turn
        What can be shown.

    Returns
    -------
    float
        Seconds.
    """
    from napari_ambient.noise_fit import fit_channels

    begin = time.perf_counter()
    for number, item in enumerate(task.items):
        name = item.volume.name if len(task.items) > 1 else ""
        check()
        models = None
        if task.refit:
            report(0, 0, " ".join(("fitting the noise", f"of {name}" if name else "")).strip())
            models = fit_channels(item.volume)
        check()
        prior = task.prior if item.channel is None else task.prior.channel(item.channel)
        yield from _restore(task, prior, number, item, models, _Watch(check, report, name))
    return time.perf_counter() - begin


def look_job(
    volume: Volume, prior: Prior, channel: int | None, refit: bool, check: Callable[[], None]
) -> Generator[None, None, list[Misfit]]:
    """Find where prior (or one channel of it) and data do not fit; with `refit` by the data's own noise."""
    from napari_ambient.compatibility import find_misfits
    from napari_ambient.noise_fit import fit_channels

    check()
    yield
    models = fit_channels(volume) if refit else None
    check()
    return find_misfits(volume, prior if channel is None else prior.channel(channel), models)


class _Watch:
    """What `restore` calls after every network call: it stops the work, and reports now and then."""

    def __init__(self, check: Callable[[], None], report: Report, name: str) -> None:
        self.check, self.report, self.name = check, report, name
        self.last = 0.0

    def __call__(self, done: int, total: int) -> None:
        self.check()
        now = time.perf_counter()
        if done == total or now - self.last > REPORT_EVERY:
            self.last = now
            self.report(done, total, self.name)


def _restore(
    task: Task, prior: Prior, number: int, item: Item, models: list[NoiseModel] | None, watch: _Watch
) -> Generator[Growing | Grown | Made | Turn, None, None]:
    from napari_ambient.restoration import Clipping, restore, restore_part

    operator = _through(task, item).operator()
    clipping = Clipping()
    settings: dict[str, Any] = {"method": task.method, "dtype": task.dtype, "device": task.device}
    if task.method == "mean":
        settings["turns"] = task.turns
    else:
        settings |= {"draws": task.draws, "steps": task.steps, "seed": task.seed, "outputs": task.outputs}
    notes: list[str] = []
    if task.recalibrate and task.method == "samples":
        found, note = _spread(task, prior, item, models, watch)
        settings["spread"] = found
        notes.append(note)
    settings |= {"noise": models, "operator": operator, "clipping": clipping, "watch": watch}
    if item.part:
        result = restore_part(item.volume, prior, item.part, **settings)
    else:
        result = restore(item.volume, prior, **settings)
    path = None
    if result.nbytes <= task.memory:
        values = np.asarray(result.data.compute(scheduler="synchronous"))
        result = result.replace(data=da.from_array(values, chunks=-1, name=False))
    else:
        path = item.path
        path.parent.mkdir(parents=True, exist_ok=True)
        yield from _save(result, path, number, task.method)
        result = open_volume(path)
    notes += [clipping.describe()] if clipping.describe() else []
    yield from _made(task, number, result, path, tuple(notes))


def _through(task: Task, item: Item) -> Through:
    """Say what the light of an image went through."""
    if task.psf is None and task.through in ("psf", "both"):
        raise AssertionError("a deconvolution needs a PSF")
    measured = item.measured
    if measured is None and task.amortised and task.through in ("holes", "both"):
        # nothing is painted, and NaN are the holes: the prior's own posterior asks for a mask all the same
        shape = (item.volume.sizes["Y"], item.volume.sizes["X"])
        measured = functools.partial(np.full, shape, True)
    return Through(task.psf, measured, task.border)


def _spread(task: Task, prior: Prior, item: Item, models: list[NoiseModel] | None, watch: _Watch) -> tuple[Spread, str]:
    """Measure how wide the draws of an image should be, at the time point that is asked for; and say it."""
    from napari_ambient.recalibration import measure_spread

    frames, at = item.volume.sizes.get("T", 1), item.part.get("T", slice(0, 1)).start
    if task.still and frames == 1:
        raise AssertionError("other time points need a time series")
    checking = _Watch(watch.check, watch.report, " ".join(filter(None, ("checking the error bars", watch.name))))
    found = measure_spread(
        item.volume,
        prior,
        noise=None if models is None else models[0],
        time=at,
        repeats=[frame for frame in range(frames) if frame != at] if task.still else (),
        seed=task.seed,
        device=task.device,
        watch=checking,
    )
    return found, found.describe()


def _save(result: Volume, path: Path, number: int, method: RestoreMethod) -> Generator[Growing | Grown, None, None]:
    """Write the result block by block, and let it be looked at meanwhile."""
    from napari_ambient.volumes.growing import GrowingArray

    shown = 0.0
    for written in iter_save_volume(path, result):
        if written.index == 1:
            growing = GrowingArray(written)
            # a name of its own, so that dask keeps no old blocks of it for new ones
            data = da.from_array(growing, chunks=result.data.chunks, name=f"growing-{id(growing)}", asarray=False)
            yield Growing(number, _mean(result.replace(data=data), method))
        if written.level == 0 and time.perf_counter() - shown > SHOW_EVERY:
            shown = time.perf_counter()
            yield Grown(number)


def _mean(result: Volume, method: RestoreMethod) -> Volume:
    from napari_ambient.restoration import take_output

    return result if method == "mean" else take_output(result, "mean")


def _made(
    task: Task, number: int, result: Volume, path: Path | None, notes: tuple[str, ...]
) -> Generator[Made | Turn, None, None]:
    """Give the layers of a result one by one: napari takes a tenth of a second for each."""
    from napari_ambient.restoration import take_draws, take_output

    def values(data: da.Array) -> NDArray[Any] | None:
        return np.asarray(data.compute(scheduler="synchronous")) if path is None else None

    moved = task.through != "nothing"
    mean = _mean(result, task.method)
    limits = _limits(mean, 0.001, 0.999)
    if "std" in task.outputs and task.method != "mean":
        if task.keep:
            draws = take_draws(result)
            yield Made(number, "draws", mean, limits, values(draws), draws, moved, path)
            yield Turn()
        error_bar = take_output(result, "std")
        low, high = _limits(error_bar, 0.0, 0.995)
        yield Made(number, "error bar", error_bar, (min(0.0, low), high), values(error_bar.data), path=path)
        yield Turn()
    yield Made(number, "mean", mean, limits, values(mean.data), moved=moved, path=path, notes=notes)


def _limits(volume: Volume, low: float, high: float) -> Limits:
    """Give quantiles of a volume from some of its planes."""
    shape = volume.shape
    planes = int(np.prod(shape[:-2]))
    count = max(1, min(planes, LOOKED_AT // (shape[-1] * shape[-2])))
    values = []
    for i in np.linspace(0, planes - 1, count).round().astype(int):
        plane = volume.data[np.unravel_index(i, shape[:-2])] if planes > 1 else volume.data.reshape(shape[-2:])
        step = max(1, round((plane.size / LOOKED_AT) ** 0.5))
        seen = np.asarray(plane[::step, ::step].compute(scheduler="synchronous"))
        values.append(seen[np.isfinite(seen)])
    seen = np.concatenate(values)
    if not seen.size:
        return 0.0, 1.0
    bottom, top = (float(q) for q in np.quantile(seen, (low, high)))
    return bottom, max(top, bottom + 1e-6 * max(abs(bottom), 1.0))
