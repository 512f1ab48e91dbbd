"""A training as the widget's job: fit the noise if nobody has, train, tell how it goes, keep what was learned.

    Plan → noise_fit.fit_channels → training.iter_train → Told, Seen … → Outcome

Runs in the worker thread and knows no window: what it yields are plain values. Leaving it, whichever way, leaves a
checkpoint in the cache folder (`unfinished.py`), from which the training goes on.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from napari_ambient.choices import ObjectiveName
from napari_ambient.train_config import TrainConfig
from napari_ambient.widgets._layers import crop
from napari_ambient.widgets._operator import Through, load_through
from napari_ambient.widgets._run import Cancelled, Job

if TYPE_CHECKING:
    from napari_ambient.noise import NoiseModel
    from napari_ambient.operators import Operator
    from napari_ambient.prior import Prior
    from napari_ambient.training import Step
    from napari_ambient.unfinished import Training
    from napari_ambient.volumes import Volume

START, THROUGH = "start.prior", "through.npz"
"""Beside an unfinished training, the prior that it was begun with, and what its images went through."""
TELL_EVERY = 0.2
"""Seconds between two looks of the window at the losses."""
KEEP_EVERY = 60.0
"""Seconds between two checkpoints: what a crash may cost."""
FIRST_PREVIEW, PREVIEW_EVERY, PREVIEW_SHARE = 1.0, 2.5, 0.15
"""Seconds to the first preview, between two at least, and the share of the time that they may take."""


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Parameters
    ----------
    volumes : tuple of Volume
        Noisy stacks, whole.
    config : TrainConfig
        How to train.
    device : str
        Where.
    folder : Path
        Where unfinished trainings are kept.
    name : str
        What the prior is called, without ".prior".
    region : (slice, slice), optional
        The part of the frames (Y, X) to train on.
    noise : tuple of NoiseModel, optional
        One per channel, of whole frames; fitted if left out.
    given_noise : bool
        Whether the user changed it: then it holds for every stack.
    resume : Training, optional
        Go on with this one; its own region, noise and configuration count.
    below_seconds : float, optional
        What the stage below the noise was estimated to take.
    start : Prior, optional
        Begin with this prior (fine-tuning).
    objective : str
        What to minimise.
    through : Through
        What the light went through before it was counted.
    """

    volumes: tuple[Volume, ...]
    config: TrainConfig
    device: str
    folder: Path
    name: str
    region: tuple[slice, slice] | None = None
    noise: tuple[NoiseModel, ...] | None = None
    given_noise: bool = False
    resume: Training | None = None
    below_seconds: float | None = None
    start: Prior | None = None
    objective: ObjectiveName = "auto"
    through: Through = field(default_factory=Through)


@dataclass
class Controls:
    """What the window may change while the training runs.

    Parameters
    ----------
    part : mapping of str to slice, optional
        The part of the first volume that is shown as a preview, by axis; None for no preview.
    """

    part: Mapping[str, slice] | None = None
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Stage:
    """What is being done, before the first step."""

    text: str


@dataclass(frozen=True)
class Fitted:
    """The noise, one model per channel of the first stack."""

    noise: tuple[NoiseModel, ...]


@dataclass(frozen=True)
class Point:
    """The losses of one step."""

    index: int
    losses: Mapping[str, float]
    validation: float | None


@dataclass(frozen=True)
class Told:
    """How the training goes.

    Parameters
    ----------
    points : tuple of Point
        The steps since the last time.
    step, total : int
        Steps done, and to do.
    rate : float
        Steps per second, lately; without the time that previews took.
    left : float
        Seconds to go.
    whole : bool
        Whether `left` counts both stages; else only the first, while nobody knows how long the second will take.
    """

    points: tuple[Point, ...]
    step: int
    total: int
    rate: float
    left: float
    whole: bool


@dataclass(frozen=True)
class Seen:
    """A preview.

    Parameters
    ----------
    volume : Volume
        The restored part.
    values : ndarray
        Its voxels.
    part : mapping of str to slice
        Where it lies in the first volume.
    step : int
        Steps behind it.
    """

    volume: Volume
    values: NDArray[Any]
    part: Mapping[str, slice]
    step: int


@dataclass(frozen=True)
class NoPreview:
    """The preview was given up."""

    reason: str


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Parameters
    ----------
    prior : Prior
        What was learned.
    step, total : int
        Steps done, and to do.
    seconds : float
        Time of training.
    training : Training
        Its place in the cache.
    """

    prior: Prior
    step: int
    total: int
    seconds: float
    training: Training

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.step == self.total


Message = Stage | Fitted | Told | Seen | NoPreview


def train_job(job: Job, plan: Plan, controls: Controls) -> Generator[Message, None, Outcome]:
    """Train as planned.

    Parameters
    ----------
    job : Job
        Asked to stop when the widget is closed.
    plan : Plan
        What is to be done.
    controls : Controls
        What the window may change meanwhile.

    Yields
    ------
    Stage, Fitted, Told, Seen, NoPreview

    Returns
    -------
    Outcome
        When it is finished, or `controls.stop` was set after at least one step.
    """
    yield Stage("Opening the images…")
    from napari_ambient.training import iter_train
    from napari_ambient.unfinished import begin

    volumes, region, config = list(plan.volumes), plan.region, plan.config
    noise, objective = plan.noise, plan.objective
    if plan.resume is not None:
        # Not even the noise is fitted again: what was begun goes on as it was.
        region = plan.resume.region
        plan.resume.check_unchanged(volumes)
        cut: Sequence[NoiseModel] | None = _noise_of(plan.resume, len(volumes))
        training = plan.resume
        start, objective = _start_of(training), _objective_of(training)
        operator = load_through(training.entry / THROUGH).operator()
    else:
        through = plan.through.read()
        operator = through.operator()
        if noise is None and len(volumes) == 1:
            yield Stage("Estimating the noise…")
            noise = _fit(volumes[0])
            yield Fitted(noise)
        # Several stacks are fitted one by one, by the training itself, unless the user knows better.
        if noise is None or (len(volumes) > 1 and not plan.given_noise):
            cut = None
        else:
            cut = noise if region is None else [model.crop(*region) for model in noise]
        training = begin(plan.folder, plan.name, volumes, region=region, given_noise=plan.given_noise)
        start = plan.start
        if start is not None:  # to go on, it must be there too
            start.save(training.entry / START)
        through.save(training.entry / THROUGH)
    job.check()
    whole = volumes[0]
    parts = volumes if region is None else [crop(v, {"Y": region[0], "X": region[1]}) for v in volumes]
    planes = slice(0, whole.sizes.get("Z", 1))
    with training.at_work():
        yield Stage("Reading the images…" if cut is not None else "Estimating the noise of each stack…")
        steps = iter_train(
            parts,
            cut,
            objective=objective,
            operator=operator if region is None else operator.crop([planes, *region]),
            start=start,
            config=config,
            device=plan.device,
            folder=training.bundle,
            resume=plan.resume is not None,
        )
        preview = _Preview(whole, noise, operator)
        try:
            yield from _follow(steps, plan, controls, preview, training, job)
        except (Cancelled, GeneratorExit):
            if preview.last is not None:
                preview.last.checkpoint(training.bundle)
            raise
        finally:
            steps.close()
        last = preview.last
        if last is None:
            raise ValueError("the training has no step left to do; train anew")
        prior = last.prior()
        if last.index < last.total:
            last.checkpoint(training.bundle)
        else:
            prior.save(training.bundle, overwrite=True)
            training.forget_checkpoint()
    return Outcome(prior, last.index, last.total, last.seconds, training)


class _Preview:
    """The restored part, every few seconds."""

    def __init__(self, volume: Volume, noise: Sequence[NoiseModel] | None, operator: Operator) -> None:
        self.volume, self.noise, self.operator = volume, noise, operator
        self.last: Step | None = None
        self.next = time.monotonic() + FIRST_PREVIEW
        self.spent = 0.0

    def see(self, step: Step, controls: Controls) -> Seen | NoPreview | None:
        """Restore the part, if it is time; a preview that fails must not end the training."""
        part, begin = controls.part, time.monotonic()
        if part is None or (begin < self.next and step.index < step.total):
            return None
        try:
            restored = self._restored(step.prior(), part)
            values = np.asarray(restored.data.compute(scheduler="synchronous"))
            result = Seen(restored, values, dict(part), step.index)
        except (MemoryError, ValueError) as error:
            controls.part = None
            return NoPreview(f"no preview: {error}")
        took = time.monotonic() - begin
        self.spent += took
        self.next = begin + max(PREVIEW_EVERY, took / PREVIEW_SHARE)
        return result

    def _restored(self, prior: Prior, part: Mapping[str, slice]) -> Volume:
        from napari_ambient.operators import Identity
        from napari_ambient.restoration import restore, restore_part, take_output

        if not isinstance(self.operator, Identity):  # with what lies around it, so that its borders are right
            models = _plain(prior.noise) if self.noise is None else self.noise
            draws = restore_part(
                self.volume,
                prior,
                part,
                noise=models,
                operator=self.operator,
                method="amortised",
                outputs=["mean"],
                draws=2,
                device=prior.device,
            )
            return take_output(draws, "mean")
        rows, columns = part.get("Y", slice(None)), part.get("X", slice(None))
        cut = _plain(prior.noise) if self.noise is None else [model.crop(rows, columns) for model in self.noise]
        return restore(crop(self.volume, part), prior, noise=cut, device=prior.device)


def _follow(
    steps: Generator[Step, None, None],
    plan: Plan,
    controls: Controls,
    preview: _Preview,
    training: Training,
    job: Job,
) -> Generator[Told | Seen | NoPreview, None, None]:
    """Take the steps; tell of them now and then."""
    points: list[Point] = []
    times: deque[tuple[float, int]] = deque(maxlen=400)
    told = kept = time.monotonic()
    for step in steps:
        preview.last = step
        now = time.monotonic() - preview.spent
        times.append((now, step.index))
        points.append(Point(step.index, step.losses, step.validation))
        stopping = controls.stop.is_set()
        if now + preview.spent - told >= TELL_EVERY or stopping or step.index == step.total:
            told = now + preview.spent
            first_stage = step.index < plan.config.steps < step.total
            # steps of the second stage take longer: those of the first do not foretell them
            second = step.index > plan.config.steps + 2
            while len(times) > 2 and (now - times[0][0] > 15 or (second and times[0][1] < plan.config.steps)):
                times.popleft()
            since, begun = times[0]
            elapsed = now - since
            rate = (step.index - begun) / elapsed if elapsed > 0 else 0.0
            to_do = (plan.config.steps if first_stage else step.total) - step.index
            left = to_do / rate if rate else float("nan")
            if first_stage and plan.below_seconds is not None:
                left += plan.below_seconds
            whole = not first_stage or plan.below_seconds is not None
            yield Told(tuple(points), step.index, step.total, rate, left, whole)
            points = []
        seen = preview.see(step, controls)
        if seen is not None:
            yield seen
        if time.monotonic() - kept > KEEP_EVERY:
            step.checkpoint(training.bundle)
            kept = time.monotonic()
        if stopping:
            break
        job.check()


def _fit(volume: Volume) -> tuple[NoiseModel, ...]:
    from napari_ambient.noise_fit import fit_channels

    return tuple(fit_channels(volume))


def fit_job(job: Job, volume: Volume) -> Generator[None, None, tuple[NoiseModel, ...]]:
    """Fit the noise of each channel of a volume.

    Parameters
    ----------
    job : Job
        Asked to stop when the result is not wanted any more.
    volume : Volume
        The noisy stack.

    Returns
    -------
    tuple of NoiseModel
    """
    yield
    return _fit(volume)


def _noise_of(training: Training, volumes: int) -> Sequence[NoiseModel] | None:
    """Give the noise that a training was begun with; None where the fits of several stacks must be made again."""
    from napari_ambient.prior import load_prior

    return None if volumes > 1 and not training.given_noise else load_prior(training.bundle).noise


def _start_of(training: Training) -> Prior | None:
    """Give the prior that a training was begun with; None where it was begun from scratch."""
    from napari_ambient.prior import load_prior

    path = training.entry / START
    return load_prior(path) if path.is_dir() else None


def _objective_of(training: Training) -> ObjectiveName:
    """Give the objective that a training was begun with."""
    from napari_ambient.prior import load_prior

    return cast(ObjectiveName, load_prior(training.bundle).record.objective)


def _plain(models: Sequence[NoiseModel]) -> list[NoiseModel]:
    """Models without the hot pixels of their own frames, which are other frames than the preview's."""
    from dataclasses import replace

    return [replace(model, hot_pixels=None) for model in models]


__all__ = ["Controls", "Fitted", "NoPreview", "Outcome", "Plan", "Seen", "Stage", "Told", "fit_job", "train_job"]
