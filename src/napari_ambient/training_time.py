"""How long a training will take on this machine: some of its own steps, timed.

    seconds = steps · t + validations · t_v + full · t_d + (below - full) · (t_d + (r - 1) · t_p) / r

t, t_v: a step and a validation of the ambient stage; t_d, t_p: a step of the stage below the noise with and without new
draws, of which one in r makes some once the buffer is full (`objectives/draw_stage.py`). The steps are timed on made
counts of the shape, light and noise of the data: how long a step takes depends on nothing else, and nothing is read.

In the flow: before training, so that a preset is chosen knowing what it costs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from .choices import ObjectiveName
from .devices import choose_device
from .noise import NoiseModel
from .objectives.draw_stage import DrawStage
from .operators import Identity, Operator
from .recorruption import choose_form
from .train_config import TrainConfig
from .training import iter_train
from .volumes import Volume

if TYPE_CHECKING:
    from .prior import Prior
    from .training import Step

LARGEST = {"T": 1, "Z": 32, "Y": 128, "X": 128}
WARM_UP = 2  # steps in which torch chooses its kernels


@dataclass(frozen=True)
class TrainingTime:
    """How long a training will take.

    Parameters
    ----------
    seconds : float
        Of the ambient stage, with its validations.
    below_seconds : float
        Of the stage below the noise; 0 without it.
    step_seconds : float
        Of one step of the ambient stage.
    where : str
        What it was timed on, in words.
    final : bool
        Whether everything was timed.
    """

    seconds: float
    below_seconds: float
    step_seconds: float
    where: str
    final: bool = True

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return self.seconds + self.below_seconds

    def describe(self) -> str:
        """Say it in one line: "about 4 minutes on this CPU (2 threads), 16 steps per second"."""
        rate = 1 / self.step_seconds
        step = "step" if f"{rate:.2g}" == "1" else "steps"
        pace = f"{rate:.2g} {step} per second" if rate >= 1 else f"{self.step_seconds:.2g} seconds per step"
        below = f", {in_words(self.below_seconds)} of it for error bars" if self.below_seconds else ""
        return f"about {in_words(self.total)} on {self.where}{below}; {pace}"


def estimate_time(
    volume: Volume | Sequence[Volume],
    noise: NoiseModel | None = None,
    *,
    objective: ObjectiveName = "auto",
    operator: Operator | None = None,
    start: Prior | None = None,
    config: TrainConfig | None = None,
    device: torch.device | str | None = None,
    budget: float = 2.0,
) -> TrainingTime:
    """Time some steps of a training; see `iter_estimate_time`.

    Parameters
    ----------
    volume, noise, objective, operator, start, config, device, budget
        As there.

    Returns
    -------
    TrainingTime
    """
    *_, last = iter_estimate_time(
        volume, noise, objective=objective, operator=operator, start=start, config=config, device=device, budget=budget
    )
    return last


def iter_estimate_time(
    volume: Volume | Sequence[Volume],
    noise: NoiseModel | None = None,
    *,
    objective: ObjectiveName = "auto",
    operator: Operator | None = None,
    start: Prior | None = None,
    config: TrainConfig | None = None,
    device: torch.device | str | None = None,
    budget: float = 2.0,
) -> Generator[TrainingTime, None, None]:
    """Time some steps of a training, better and better.

    Parameters
    ----------
    volume : Volume or sequence of Volume
        What will be trained on; only the axes and shape of the first are looked at.
    noise : NoiseModel, optional
        Its noise, where that is known already: its form and light take part in the time.
    objective : str
        What will be minimised, as for `train`.
    operator : Operator, optional
        What the microscope did to the light, as for `train`.
    start : Prior, optional
        The prior to be trained on with (fine-tuning): its own network is timed.
    config : TrainConfig, optional
        How it will be trained.
    device : torch.device or str, optional
        Where; CUDA, MPS or CPU, whichever is there.
    budget : float
        Seconds that the timing may take, about; three steps of each kind are taken in any case.

    Yields
    ------
    TrainingTime
        After each timed step, so that it can be stopped; the last one counts everything.

    Raises
    ------
    TrainingError, VolumeError, MemoryError
        If the data cannot be trained on so; as in training.
    """
    config = config or TrainConfig()
    chosen = choose_device(device)
    first = volume if isinstance(volume, Volume) else volume[0]
    stand_in = _plain_noise(noise)
    piece = _made_counts(first, stand_in, config)
    form = choose_form([stand_in] if noise is None else [noise], config.form)
    quick = replace(config, form=form, below="none", steps=10**6, checkpoint_every=10**6, validations=1)
    where = _describe(chosen)
    seconds: list[float] = []
    operator = operator or Identity()
    cut = operator.crop([slice(0, piece.sizes.get(a, 1) * s) for a, s in zip("ZYX", operator.stride, strict=True)])
    steps = iter_train(piece, stand_in, objective=objective, operator=cut, start=start, config=quick, device=chosen)
    for step, took in _timed(steps):
        if step.index <= WARM_UP and seconds:  # the steps in which torch chooses its kernels do not count
            seconds.clear()
        seconds.append(took)
        one = float(np.median(seconds))
        result = TrainingTime(config.steps * one, 0.0, one, where, final=False)
        slow = took > budget / 4
        if len(seconds) >= (2 if slow else 3) and step.seconds > budget / 2:
            break
        yield result
    if config.held_out > 0 and step._training.stream.has_validation:
        begin = time.perf_counter()
        step._training.validate()
        validation = time.perf_counter() - begin
        result = replace(result, seconds=result.seconds + config.validations * validation)
    if config.below != "none":
        below = replace(quick, below=config.below, steps=1, below_steps=10**6)
        for found in _below_seconds(piece, stand_in, start, below, config, chosen):
            if found is None:
                yield result
            else:
                result = replace(result, below_seconds=found)
    yield replace(result, final=True)


def in_words(seconds: float) -> str:
    """Say a time: "40 seconds", "4 minutes", "2.5 hours"; no more digits than a forecast deserves."""
    for size, name in ((3600.0, "hour"), (60.0, "minute")):
        if seconds >= 1.5 * size:
            number = seconds / size
            halves = round(2 * number) / 2
            return f"{number:.0f} {name}s" if number >= 4 else f"{halves:g} {name}s"
    if seconds >= 20:
        return f"{round(seconds / 10) * 10:.0f} seconds"
    count = max(1, math.ceil(seconds))
    return f"{count} second{'s' if count > 1 else ''}"


def _timed(steps: Generator[Step, None, None]) -> Generator[tuple[Step, float], None, None]:
    begin = time.perf_counter()
    for step in steps:
        yield step, time.perf_counter() - begin
        begin = time.perf_counter()


def _below_seconds(
    piece: Volume,
    noise: NoiseModel,
    start: Prior | None,
    timed: TrainConfig,
    config: TrainConfig,
    device: torch.device,
) -> Generator[float | None, None, None]:
    """Seconds of the stage below the noise, at last: steps that draw and steps that do not, timed apart."""
    drawing: list[float] = []
    plain: list[float] = []
    for step, took in _timed(iter_train(piece, noise, start=start, config=timed, device=device)):
        stage = step._training.below
        if step.index == 1:
            yield None
            continue
        if not isinstance(stage, DrawStage):
            plain.append(took)
        elif step.index == 2:  # torch chooses its kernels
            first = took
        elif step.index == 3:
            drawing.append(min(took, first))
            # As in the course of the training, a full buffer: copies of the draws so far take no time.
            while len(stage.buffer) < stage.buffer.capacity:
                stage.buffer.add({k: v for k, v in stage.buffer.state().items() if k != "next"})
        else:
            plain.append(took)
        if len(plain) == 2:
            break
        yield None
    usual = min(plain)
    if isinstance(stage, DrawStage):
        full = min(config.below_steps, -(-stage.buffer.capacity // step._training.crops_per_step))
        later = (drawing[0] + (stage.refresh - 1) * usual) / stage.refresh
        yield full * drawing[0] + (config.below_steps - full) * later
    else:
        yield config.below_steps * usual


def _plain_noise(noise: NoiseModel | None) -> NoiseModel:
    """Give the same noise without maps, so that it fits counts of any shape; a dim counter where it is unknown."""
    if noise is None:
        return NoiseModel(gain=1.0, intercept=0.0, photons=3.0)
    return replace(
        noise,
        gain=float(np.median(noise.gain)),
        intercept=float(np.median(noise.intercept)),
        offset=None if noise.offset is None else float(np.median(noise.offset)),
        read_noise=None if noise.read_noise is None else float(np.median(noise.read_noise)),
        saturation=None,
        hot_pixels=None,
    )


def _made_counts(volume: Volume, noise: NoiseModel, config: TrainConfig) -> Volume:
    """Make counts of the light and noise of the data, of its axes, and as large as a patch or two."""
    patch = dict(zip("XYZ", reversed(config.patch or ()), strict=False))
    shape = [min(n, max(LARGEST.get(axis, n), 2 * patch.get(axis, 0))) for axis, n in volume.sizes.items()]
    rng = np.random.default_rng(config.seed)
    light = noise.photons if np.isfinite(noise.photons) and noise.photons > 0 else 3.0
    grid = np.linspace(0, 4 * np.pi, shape[-1]) + np.linspace(0, 4 * np.pi, shape[-2])[:, None]
    mean = noise.zero + noise.gain * light * (1 + 0.8 * np.sin(grid))
    counts = noise.sample(np.broadcast_to(mean, shape), rng)
    return Volume.from_array(counts.astype(np.float32), volume.axes, voxel_size=volume.voxel_size)


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}"
    if device.type == "mps":
        return "this Apple GPU"
    threads = torch.get_num_threads()
    return f"this CPU ({threads} thread{'s' if threads > 1 else ''})"


__all__ = ["TrainingTime", "estimate_time", "in_words", "iter_estimate_time"]
