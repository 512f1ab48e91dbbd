"""Train a prior: one loop for every objective.

`iter_train` is a generator: it yields a `Step` after each step, and whoever iterates it owns progress, preview and
stopping. Leaving the loop at any step leaves a usable prior, ``step.prior()``, whose weights are the exponential
moving average. Everything drawn at a step depends on (seed, step, rank), so that a training resumed from a checkpoint,
also after the process was killed, ends with the very weights of one that was not interrupted.

Muon (`muon.py`) with a cosine schedule and clipped gradients, bfloat16 where it pays, `DistributedDataParallel` under
`torchrun`.
"""

from __future__ import annotations

import collections
import copy
import json
import math
import os
import threading
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from . import __version__
from .amortised import AmortisedPosterior, measured
from .choices import Below, ObjectiveName
from .denoiser import Denoiser, Scale
from .devices import autocast, choose_device, memory_errors
from .muon import optimisers_for
from .networks.low_rank import add_low_rank, merged_state
from .networks.unet import UNet, UNetArguments, choose_arguments
from .noise import NoiseModel
from .noise_fit import fit_noise
from .objectives import BELOW, OBJECTIVES, Batch, Objective
from .objectives.anchor import Anchor
from .objectives.base import ObjectiveError, Setting, mean_where, operator_names
from .objectives.views import Views, view_of
from .opening import widen
from .operators import Identity, Operator, OperatorError
from .prior import Prior, PriorError, Record, place, representative, write_whole
from .recorruption import (
    Gaussian,
    Quanta,
    Recorruption,
    Thinning,
    choose_form,
    choose_recorruption,
    fill,
    lag_of,
    look_at_quanta,
    read_variance_of,
    stabilise,
    to_photons,
    trusted,
)
from .train_config import CHECKPOINT, TrainConfig, TrainingError
from .volumes import Volume
from .volumes.patches import Crop, PatchStream

BEARS = {2: 48, 3: 24}  # features of the finest level up to which a network bears the whole learning rate
MOVED = 0.2  # standard deviations of the noise that one-call answers may move in the stage below it without a word
_SEEDING = threading.Lock()  # trainings of two widgets start with one shared generator


class TrainingWarning(UserWarning):
    """Something about the training that the user may want to know."""


@dataclass(frozen=True)
class Step:
    """What one training step brought.

    Parameters
    ----------
    index : int
        Steps done so far, from 1.
    total : int
        Steps to do.
    losses : dict of str to float
        Terms of the loss.
    validation : float or None
        Held-out loss, at the steps that validate.
    seconds : float
        Time of training so far, in this process.
    """

    index: int
    total: int
    losses: dict[str, float]
    validation: float | None
    seconds: float
    _training: _Training

    def prior(self) -> Prior:
        """Give the prior as it is now: a copy that further steps do not touch."""
        return self._training.prior(self.index)

    def checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint into the folder `path`, from which `iter_train(..., resume=True)` goes on."""
        self._training.save_checkpoint(Path(path), self.index)


def train(
    volume: Volume | Sequence[Volume],
    noise: NoiseModel | Sequence[NoiseModel] | None = None,
    *,
    objective: ObjectiveName = "auto",
    operator: Operator | None = None,
    target: Volume | Sequence[Volume] | None = None,
    start: Prior | None = None,
    config: TrainConfig | None = None,
    device: torch.device | str | None = None,
) -> Prior:
    """Train a prior from noisy stacks.

    Parameters
    ----------
    volume : Volume or sequence of Volume
        Noisy stacks of one kind of structure, in camera counts.
    noise : NoiseModel or sequence, optional
        The camera's noise: one model for everything, or one per stack and channel (stack by stack). Fitted to each
        stack if left out.
    objective : str
        What to minimise: "ambient" (only noise), "ambient_mask" (holes), "flow_diff", "ambient_flow", "sure_score" or
        "em" (any operator), and for comparison "blind_spot", "noise2noise" and "supervised". "auto" chooses by the
        operator.
    operator : Operator, optional
        What the microscope did to the light of these stacks before it was counted (`Blur`, `Mask`, `Downsample` and
        products): the prior is one of the structures before it.
    target : Volume or sequence of Volume, optional
        Clean stacks, for ``objective="supervised"``.
    start : Prior, optional
        Begin with the weights and scales of this prior (fine-tuning): a related stack then needs far fewer steps.
    config : TrainConfig, optional
        How to train.
    device : torch.device or str, optional
        Where; CUDA, MPS or CPU, whichever is there.

    Returns
    -------
    Prior

    Raises
    ------
    TrainingError, VolumeError, NoiseFitError
        If the data cannot be trained on; the message says why and what to do.
    """
    steps = iter_train(
        volume, noise, objective=objective, operator=operator, target=target, start=start, config=config, device=device
    )
    (last,) = collections.deque(steps, maxlen=1)
    return last.prior()


def iter_train(
    volume: Volume | Sequence[Volume],
    noise: NoiseModel | Sequence[NoiseModel] | None = None,
    *,
    objective: ObjectiveName = "auto",
    operator: Operator | None = None,
    target: Volume | Sequence[Volume] | None = None,
    start: Prior | None = None,
    config: TrainConfig | None = None,
    device: torch.device | str | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> Generator[Step, None, None]:
    """Train a prior, step by step; see `train` for the other parameters.

    Parameters
    ----------
    folder : path-like, optional
        The bundle to be; a checkpoint is written into it every `config.checkpoint_every` steps.
    resume : bool
        Go on from the checkpoint in `folder`, with the same data and configuration.

    Yields
    ------
    Step
        After each step. Stop iterating whenever the prior is good enough.
    """
    config = config or TrainConfig()
    volumes = [volume] if isinstance(volume, Volume) else list(volume)
    targets = [target] if isinstance(target, Volume) else (None if target is None else list(target))
    with memory_errors():
        training = _Training(volumes, noise, objective, operator or Identity(), targets, start, config, device)
        first = 0
        if resume:
            if folder is None:
                raise TrainingError("resume needs the folder of the unfinished training")
            first = training.load_checkpoint(Path(folder))
        path = None if folder is None or training.rank else Path(folder)
        yield from training.run(first, path)


class _Training:
    """The state of one training: denoiser, moving average, optimiser and the stream of crops."""

    def __init__(
        self,
        volumes: list[Volume],
        noise: NoiseModel | Sequence[NoiseModel] | None,
        objective: ObjectiveName,
        operator: Operator,
        targets: list[Volume] | None,
        start: Prior | None,
        config: TrainConfig,
        device: torch.device | str | None,
    ) -> None:
        if objective == "auto":
            objective = choose_objective(operator)
        if objective not in OBJECTIVES:
            raise TrainingError(f"objective is {objective!r}; choose one of auto, {', '.join(OBJECTIVES)}")
        if not volumes:
            raise TrainingError("no volume was given; training needs at least one stack")
        self.rank, self.world = _join_processes()
        self.device = choose_device(device)
        self.channels = _channels(volumes)
        kind = OBJECTIVES[objective]
        self.operator = operator
        _check_operator(volumes, operator)
        self.noises = _noise_models(volumes, self.channels, noise)
        widened = [widen(volume, operator) for volume in volumes]
        volumes = self.volumes = [wide.volume for wide in widened]
        self.operators = [wide.operator for wide in widened]
        self.noises = [[wide.noise(n) for n in row] for wide, row in zip(widened, self.noises, strict=True)]
        acting = self.operators[0]
        dims, depth = _choose_dims(volumes[0], config, planes_alone=kind.planes_alone)
        if config.batch is None:
            config = replace(config, batch=16 if dims == 2 and isinstance(operator, Identity) else 8)
        self.config = config
        arguments = choose_arguments(
            config.size, dims=dims, channels=depth if dims == 2 else 1, anisotropy=_anisotropy(volumes[0])
        )
        shown = kind.shows_holes or "mask" in operator_names(acting)  # where the holes are
        arguments = replace(arguments, extra=arguments.channels if shown else 0)
        if start is not None:
            _check_start(start, arguments, self.channels)
            arguments = start.denoiser.arguments
        patch = _choose_patch(volumes, arguments, config, depth, acting)
        self.stream = PatchStream(
            volumes,
            patch=patch,
            partner=_partner(kind, config),
            targets=targets,
            held_out=config.held_out,
            seed=config.seed,
            memory=config.memory * 2**20,
            square=_square(volumes),
        )
        flat = [n for row in self.noises for n in row]
        self.form = choose_form(flat, config.form)
        self.scales, self.quanta = self._look_at_the_data()
        self.setting = Setting(
            acting, arguments, tuple(self.scales), config.size, _anisotropy(volumes[0]), start is not None
        )
        self.objective = self._make_objective(kind, choose_recorruption(flat, self.form, quanta=self.quanta))
        self.below_name, self.below = self._choose_below(objective)
        with _weights_from(config.seed):
            self.denoiser = Denoiser(UNet(arguments), self.scales).to(self.device)
        if start is not None:
            self.scales = [Scale(*row) for row in start.denoiser.scales.tolist()]  # type: ignore[operator]
            self.denoiser.load_state_dict(start.denoiser.state_dict())
        if config.low_rank:
            self._change_by_low_rank(start)
        self.started_from = "" if start is None else start.sha256
        if dims == 2:
            self.denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = AveragedModel(self.denoiser, avg_fn=_decay(config.average), use_buffers=False)
        self.average.requires_grad_(False)
        self.rate = config.learning_rate * pace(arguments)
        self.companion = self.objective.companion
        self.companion_average: AveragedModel | None = None
        if self.companion is not None:
            self.companion.to(self.device)
            self.companion_average = AveragedModel(self.companion, avg_fn=_decay(config.average), use_buffers=False)
            self.companion_average.requires_grad_(False)
        others = [] if self.companion is None else list(self.companion.parameters())
        self.optimisers = optimisers_for(self.denoiser, self.rate, others=others)
        self.history: list[dict[str, Any]] = []
        self.kind = objective

    def run(self, first: int, folder: Path | None) -> Generator[Step, None, None]:
        """Take the steps from `first` on."""
        config = self.config
        model: torch.nn.Module = self.denoiser
        if self.world > 1:
            model = DistributedDataParallel(self.denoiser)
        every = max(1, config.total // max(1, config.validations))
        begin = time.perf_counter()
        for index in range(first + 1, config.total + 1):
            objective, rate = self.stage(index)
            for optimiser in self.optimisers.values():
                for group in optimiser.param_groups:
                    group["lr"] = rate
            batch = self.batch(self.stream.crops(index, self.crops_per_step, self.rank), min(1.0, index / config.steps))
            with autocast(self.device, config.precision):
                terms = objective.losses(model, self.average, batch, self.generator(index))
            total = sum(terms.values(), start=torch.zeros((), device=self.device))
            for optimiser in self.optimisers.values():
                optimiser.zero_grad(set_to_none=True)
            total.backward()
            if self.companion is not None and self.world > 1:
                _average_gradients(self.companion, self.world)
            norm = self._clip()
            losses = {name: float(value.detach()) for name, value in terms.items()}
            if not (math.isfinite(sum(losses.values())) and bool(torch.isfinite(norm))):
                raise TrainingError(
                    f"the loss became {losses} at step {index}; lower learning_rate (now {config.learning_rate:g}), "
                    "and check that the noise fit suits the data (napari-ambient fit-noise)"
                )
            for optimiser in self.optimisers.values():
                optimiser.step()
            self.average.update_parameters(self.denoiser)
            if self.companion_average is not None:
                assert self.companion is not None
                self.companion_average.update_parameters(self.companion)
            validation = None
            if self.stream.has_validation and (index % every == 0 or index in (config.steps, config.total)):
                validation = self.validate()
                self.history.append({"step": index, "validation": validation, **losses})
                if self.below is not None and index == config.total:
                    self._compare_with_before()
            if folder is not None and (index % config.checkpoint_every == 0 and index < config.total):
                self.save_checkpoint(folder, index)
            yield Step(index, config.total, losses, validation, time.perf_counter() - begin, self)

    @property
    def crops_per_step(self) -> int:
        """Crops per step of this process."""
        assert self.config.batch is not None
        return max(1, self.config.batch // self.world)

    def stage(self, index: int) -> tuple[Objective, float]:
        """Give the objective of a step, and its learning rate; the stage below the noise begins again at half of it."""
        config = self.config
        if index <= config.steps:
            return self.objective, self.rate * schedule(index, config.steps, config.warm_up)
        assert self.below is not None
        later = schedule(index - config.steps, config.below_steps, config.warm_up)
        return self.below, 0.5 * self.rate * later

    def batch(self, crops: Sequence[Crop], progress: float) -> Batch:
        """Turn crops of camera counts into a batch of photo-electrons."""
        counts, valid, learn, partners = [], [], [], []
        views = self._views(crops)
        for crop in crops:
            where = crop.place
            noise = self.noises[where.volume][where.channel]
            good = trusted(crop.values, noise, where.y, where.x)
            shown = [crop.values] if crop.partner is None else [crop.values, crop.partner]
            if not all(np.isfinite(values).all() for values in shown):
                raise TrainingError(
                    f"{self.volumes[where.volume].name or 'the volume'} holds NaN or infinite values near "
                    f"T={where.time}, Z={where.z.start}, Y={where.y.start}, X={where.x.start}; "
                    "crop them away or replace them"
                )
            photons = to_photons(crop.values, noise, where.y, where.x)
            exposures = shown if self.stream.partner == "time" else shown[:1]
            below = np.logical_and.reduce([v < (noise.saturation or math.inf) for v in exposures])
            counts.append(crop.turned(photons))
            valid.append(crop.turned(good))
            learn.append(crop.turned(good & below))
            if crop.partner is not None:
                partners.append(crop.turned(to_photons(crop.partner, noise, where.y, where.x)))
        stack = [np.stack(a) for a in (counts, valid, learn, *([partners] if partners else []))]
        if self.denoiser.arguments.dims == 3:
            stack = [a[:, None] for a in stack]
        tensors = [torch.from_numpy(a).to(self.device) for a in stack]
        channel = torch.tensor([crop.place.channel for crop in crops], device=self.device)
        partner = tensors[3] if partners else None
        if views is not None:
            seen = views.inner(tensors[0])
            with torch.no_grad():
                bright = views.expected(views.refined(torch.ones_like(tensors[0])))
            tensors[1] &= measured(bright)
            tensors[2] &= seen & tensors[1]
        upright = torch.tensor([crop.turn % 2 == 0 for crop in crops], device=self.device)
        return Batch(tensors[0], tensors[1], tensors[2], channel, partner, progress, views, upright)

    def _views(self, crops: Sequence[Crop]) -> Views | None:
        """Give the operators of some crops; None where images are only noisy."""
        if isinstance(self.operator, Identity):
            return None
        parts = []
        for crop in crops:
            where = crop.place
            sizes = self.volumes[where.volume].sizes
            whole = [sizes.get(axis, 1) for axis in "ZYX"]
            try:
                parts.append(view_of(self.operators[where.volume], whole, (where.z, where.y, where.x), crop.turn))
            except OperatorError as error:
                raise TrainingError(str(error)) from error
        return Views(parts, self.operator.stride)

    def _make_objective(self, kind: type[Objective], recorruption: Recorruption) -> Objective:
        try:
            with _weights_from(self.config.seed + 1):  # the companion's
                objective = kind(recorruption)
                objective.prepare(self.setting)
        except ObjectiveError as error:
            raise TrainingError(str(error)) from error
        return objective

    def _clip(self) -> Tensor:
        """Clip the gradients of denoiser and companion, each for itself; give their norm."""
        norm = torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), self.config.clip)
        if self.companion is None:
            return norm
        return norm + torch.nn.utils.clip_grad_norm_(self.companion.parameters(), self.config.clip)

    def generator(self, index: int) -> torch.Generator:
        """Give the generator of one step's corruption."""
        device = self.device if self.device.type == "cuda" else torch.device("cpu")
        state = np.random.SeedSequence([self.config.seed, 5, index, self.rank]).generate_state(1, np.uint64)
        return torch.Generator(device).manual_seed(int(state[0] >> 1))

    @torch.no_grad()
    def validate(self) -> float:
        """Give the moving average's held-out loss."""
        batch = self.batch(self.stream.validation_crops(16), 1.0)
        with autocast(self.device, self.config.precision):
            return float(self.objective.validation(self.average.module, batch, self.generator(0)))

    @torch.no_grad()
    def _compare_with_before(self) -> None:
        """Record, and say, what the stage below the noise did to the one-call answer at the measurement's own level."""
        anchor: Anchor = self.below.anchor  # type: ignore[union-attr]
        batch = self.batch(self.stream.validation_crops(16), 1.0)
        seen = self.objective.recorruption.measure(batch.counts, batch.valid)
        assert anchor.copy is not None
        now, then = (self.objective.answer(d, seen, batch) for d in (self.average.module, anchor.copy))
        moved = float(mean_where((now - then).square(), batch.valid).sqrt()) / self.objective.recorruption.sigma_y
        self.history[-1]["moved"] = moved
        before = [entry["validation"] for entry in self.history if entry["step"] == self.config.steps]
        after = self.history[-1]["validation"]
        if before and after > before[0] and moved > MOVED:
            warnings.warn(
                f"the stage below the noise moved the one-call answers by {moved:.2f} of the noise, and the held-out "
                f"loss rose from {before[0]:.5g} to {after:.5g}; train longer (--steps), or keep a prior without it "
                "for means",
                TrainingWarning,
                stacklevel=2,
            )

    def prior(self, index: int) -> Prior:
        """Copy the moving average into a prior."""
        denoiser = Denoiser(UNet(self.denoiser.arguments), self.scales)
        denoiser.load_state_dict({k: v.detach().cpu() for k, v in merged_state(self.average.module).items()})
        denoiser.eval().requires_grad_(False)
        first = self.volumes[0]
        record = Record(
            objective=self.kind,
            form="thinning" if isinstance(self.objective.recorruption, Thinning) else "gaussian",
            quanta=asdict(self.quanta),
            start=self.started_from,
            operator={} if isinstance(self.operator, Identity) else self.operator.to_dict(),
            axes=first.axes,
            voxel_size=dict(first.voxel_size),
            channel_names=tuple(first.channel_names),
            config=asdict(replace(self.config, below=self.below_name)),
            step=index,
            history=tuple(self.history),
            sources=tuple(v.name for v in self.volumes),
            version=__version__,
        )
        noise = tuple(representative([row[c] for row in self.noises]) for c in range(self.channels))
        return place(Prior(denoiser, noise, record, self._posterior()), self.device)

    def _posterior(self) -> AmortisedPosterior | None:
        """Copy the moving average of what draws from posteriors in one call, if there is any."""
        if self.companion_average is None:
            return None
        found = self.objective.amortised(self.companion_average.module)
        return None if found is None else copy.deepcopy(found).cpu().eval().requires_grad_(False)

    def save_checkpoint(self, folder: Path, index: int) -> None:
        """Write the prior so far and all that is needed to go on."""
        self.prior(index).save(folder, overwrite=True)
        tensors = {f"model.{k}": v for k, v in self.denoiser.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        if self.companion is not None:
            assert self.companion_average is not None
            tensors |= {f"companion.{k}": v for k, v in self.companion.state_dict().items()}
            tensors |= {f"companion_average.{k}": v for k, v in self.companion_average.state_dict().items()}
        tensors |= {f"objective.{k}": v for k, v in self.objective.state().items()}
        for name, optimiser in self.optimisers.items():
            for number, state in optimiser.state_dict()["state"].items():
                tensors |= {f"{name}.{number}.{k}": v for k, v in state.items()}
        if self.below is not None and index > self.config.steps:
            tensors |= {f"below.{k}": v for k, v in self.below.state().items()}
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        facts = {"step": index, "history": self.history, "fingerprint": self._fingerprint()}
        content = save_tensors(tensors, metadata={"training": json.dumps(facts)})
        try:
            write_whole(folder / CHECKPOINT, content)
        except OSError as error:
            raise PriorError(
                f"could not write the checkpoint {folder / CHECKPOINT} ({len(content)} bytes): "
                f"{error.strerror or error}; make room. The prior after {index} steps is in {folder}"
            ) from error

    def load_checkpoint(self, folder: Path) -> int:
        """Restore the state of a checkpoint and give its step."""
        path = folder / CHECKPOINT
        if not path.is_file():
            raise TrainingError(f"{folder} holds no {CHECKPOINT}; there is nothing to resume, train anew")
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["training"])
                tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise TrainingError(f"{path} is damaged ({error}); train anew") from error
        if facts["fingerprint"] != self._fingerprint():
            differences = [k for k, v in self._fingerprint().items() if facts["fingerprint"].get(k) != v]
            raise TrainingError(
                f"{path} belongs to a training with other {', '.join(differences)}; resume with the same data and "
                "configuration, or train anew"
            )

        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}

        self.denoiser.load_state_dict(part("model."))
        self.average.load_state_dict(part("average."))
        if self.companion is not None:
            assert self.companion_average is not None
            self.companion.load_state_dict(part("companion."))
            self.companion_average.load_state_dict(part("companion_average."))
        self.objective.load({k: v.to(self.device) for k, v in part("objective.").items()})
        for name, optimiser in self.optimisers.items():
            state = optimiser.state_dict()
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in part(f"{name}.").items():
                number, moment = key.split(".", 1)
                moments.setdefault(int(number), {})[moment] = value
            state["state"] = moments
            optimiser.load_state_dict(state)
        if self.below is not None and int(facts["step"]) > self.config.steps:
            self.below.load({k: v.to(self.device) for k, v in part("below.").items()})
        self.history = list(facts["history"])
        return int(facts["step"])

    def _fingerprint(self) -> dict[str, Any]:
        """Give what must be the same to resume, as JSON gives it back."""
        facts = {
            **asdict(replace(self.config, checkpoint_every=1)),
            "objective": self.kind,
            "optimisers": sorted(self.optimisers),
            "start": self.started_from,
            "operator": self.operator.to_dict(),
            "volumes": [[v.axes, list(v.shape)] for v in self.volumes],
            "gain": [[float(np.median(n.gain)) for n in row] for row in self.noises],
        }
        result: dict[str, Any] = json.loads(json.dumps(facts))
        return result

    def _change_by_low_rank(self, start: Prior | None) -> None:
        rank = self.config.low_rank
        if start is None:
            raise TrainingError(
                f"low_rank is {rank}, but there is no prior to start from, and nothing learned is worth keeping: give "
                "one (start=prior, --from PRIOR), or train all weights (low_rank=0)"
            )
        try:
            add_low_rank(self.denoiser, rank, torch.Generator().manual_seed(self.config.seed))
        except ValueError as error:
            raise TrainingError(f"low_rank is {rank}: {error} (low_rank=0)") from error

    def _choose_below(self, objective: str) -> tuple[Below, Objective | None]:
        below = self.config.below
        if below == "none":
            return below, None
        if OBJECTIVES[objective].below_itself:
            raise TrainingError(
                f"below is {below!r}, and the objective {objective} teaches all levels itself; use none"
            )
        if objective != "ambient":
            raise TrainingError(f"below is {below!r}, which follows the ambient objective, not {objective}; use none")
        form = self.objective.recorruption
        if below == "auto":
            below = "virtual_exposures" if isinstance(form, Thinning) else "consistency"
        try:
            stage = BELOW[below](form)
            stage.prepare(self.setting)
            return below, stage
        except ValueError as error:
            raise TrainingError(str(error)) from error

    def _look_at_the_data(self) -> tuple[list[Scale], Quanta]:
        """Give mean and spread of each channel's clean scaled intensity, and how the detector counts.

        The spread is the measured one less the noise's.
        """
        crops = self.stream.crops(0, 128)
        views = self._views(crops)
        scales, below = [], []
        for channel in range(self.channels):
            values = []
            for index, crop in enumerate(crops):
                if crop.place.channel != channel:
                    continue
                where = crop.place
                noise = self.noises[where.volume][channel]
                photons = to_photons(crop.values, noise, where.y, where.x)
                good = trusted(crop.values, noise, where.y, where.x)
                if views is None:
                    values.append(photons[good])
                else:  # light of one clean voxel, where any was measured
                    bright = _brightness(views.parts[index].operator, photons.shape)
                    good &= measured(bright)[0, 0].numpy()
                    values.append(photons[good] / bright[0, 0].numpy()[good])
                below.append(fill(torch.from_numpy(photons), torch.from_numpy(good)))
            photons = np.concatenate(values) if values else np.zeros(1, np.float32)
            seen = torch.from_numpy(photons)
            z = stabilise(seen, 1.0)
            variance = float(z.var(correction=0))
            what = f"channel {channel}" if self.channels > 1 else "the image"
            if photons.min() == photons.max():  # the variance of equal numbers need not be 0 to the last bit
                others = "choose other channels with --channel" if self.channels > 1 else "choose another"
                raise TrainingError(
                    f"{what} is constant ({float(photons[0]):g} photo-electrons); nothing can be learned from it: "
                    f"{others}"
                )
            if variance == 0:
                raise TrainingError(
                    f"{what} holds no light: all of it lies below the camera's zero (its largest value is "
                    f"{float(photons.max()):g} photo-electrons above it); give the right zero, or other images"
                )
            # the noise's share, by the table: below three photo-electrons it is less than one
            noise_share = float(Gaussian().variance_at(seen.mean()))
            scales.append(Scale(float(z.mean()), math.sqrt(max(variance - noise_share, 0.1 * variance))))
        flat = [n for row in self.noises for n in row]
        return scales, look_at_quanta(torch.cat(below), read_variance_of(flat), lag_of(flat))


def choose_objective(operator: Operator) -> ObjectiveName:
    """Choose the objective that does best through an operator (`benchmarks/corrupted_priors.py`)."""
    names = operator_names(operator)
    if not names:
        return "ambient"
    return "ambient_mask" if names == {"mask"} else "flow_diff"


def _partner(kind: type[Objective], config: TrainConfig) -> Literal["none", "time", "target"]:
    """Say what comes with each crop: other exposures also where the time points are said to be such."""
    if not config.still:
        return kind.partner
    if not kind.repeats:
        able = ", ".join(name for name, one in OBJECTIVES.items() if one.repeats)
        raise TrainingError(
            f"the time points are said to show the same field (still), and the objective {kind.name} does not learn "
            f"from that: choose {able}, or leave it out"
        )
    return "time"


def schedule(step: int, steps: int, warm_up: int) -> float:
    """Learning rate relative to its peak: linear warm-up, then a cosine to 2 %."""
    rise = min(1.0, step / max(1, min(warm_up, steps // 4)))
    return rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def pace(arguments: UNetArguments) -> float:
    """Learning rate relative to the small network's: wider and deeper ones bear less.

    At the small network's 2e-3 the medium one (2D) diverges as soon as the warm-up ends, and never recovers: 31.6 dB
    on a confocal stack that the small one restores at 38.1.
    """
    return min(1.0, BEARS[arguments.dims] / arguments.widths[0]) / arguments.blocks


@contextmanager
def _weights_from(seed: int) -> Generator[None, None, None]:
    """Let torch's shared generator give the weights of one training: other threads wait, the caller's state returns."""
    with _SEEDING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _decay(target: float) -> Any:
    """Give a moving average whose memory grows with the number of steps, up to the target decay."""

    def average(mean: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
        decay = min(target, (1 + int(count)) / (10 + int(count)))
        return torch.lerp(mean, value, 1 - decay)

    return average


def _join_processes() -> tuple[int, int]:
    """Join the processes that `torchrun` started; (0, 1) without it."""
    if "RANK" not in os.environ or not torch.distributed.is_available():
        return 0, 1
    if not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _check_start(start: Prior, wanted: UNetArguments, channels: int) -> None:
    """Refuse to train a prior on with images of another kind."""
    given = start.denoiser.arguments
    if (given.dims, given.channels) != (wanted.dims, wanted.channels):
        raise TrainingError(
            f"the prior to start from sees {given.dims}D images of {given.channels} planes, these volumes ask for "
            f"{wanted.dims}D of {wanted.channels}; choose dims and slices as it was trained, or train from scratch"
        )
    scales = len(start.denoiser.scales)  # type: ignore[arg-type]
    if scales != channels:
        raise TrainingError(
            f"the prior to start from has {scales} channels, the volumes {channels}; choose one channel of each "
            "(--channel)"
        )


def _check_operator(volumes: Sequence[Volume], operator: Operator) -> None:
    """Raise unless the operator fits every volume."""
    for volume in volumes:
        shape = tuple(volume.sizes.get(axis, 1) for axis in "ZYX")
        try:
            operator.output_shape(operator.input_shape(shape))
        except OperatorError as error:
            raise TrainingError(f"{volume.name or 'the volume'}: {error}") from error


def _brightness(operator: Operator, shape: Sequence[int]) -> Tensor:
    """Give what an even light of one photo-electron per clean voxel becomes, (1, 1, Z, Y, X)."""
    return operator.forward(torch.ones((1, 1, *operator.input_shape(tuple(shape)))))


def _average_gradients(module: torch.nn.Module, world: int) -> None:
    """Average the gradients of a module that is not wrapped for it over the processes."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= world


def _channels(volumes: Sequence[Volume]) -> int:
    counts = {dict(zip(v.axes, v.shape, strict=True)).get("C", 1) for v in volumes}
    if len(counts) > 1:
        raise TrainingError(f"the volumes have {sorted(counts)} channels; train on volumes with the same channels")
    return int(counts.pop())


def _noise_models(
    volumes: Sequence[Volume], channels: int, noise: NoiseModel | Sequence[NoiseModel] | None
) -> list[list[NoiseModel]]:
    """One noise model per volume and channel."""
    if noise is None:
        return [[fit_noise(v.channel(c) if "C" in v.axes else v) for c in range(channels)] for v in volumes]
    if isinstance(noise, NoiseModel):
        return [[noise] * channels for _ in volumes]
    models = list(noise)
    if len(models) == channels:
        return [models for _ in volumes]
    if len(models) == channels * len(volumes):
        return [models[v * channels : (v + 1) * channels] for v in range(len(volumes))]
    raise TrainingError(
        f"{len(models)} noise models for {len(volumes)} volumes of {channels} channels; give 1, {channels} or "
        f"{channels * len(volumes)}"
    )


def _choose_dims(volume: Volume, config: TrainConfig, *, planes_alone: bool = False) -> tuple[int, int]:
    """Dimensions of the network, and how many slices are its channels; `planes_alone`: not several (2.5D)."""
    slices = dict(zip(volume.axes, volume.shape, strict=True)).get("Z", 1)
    dims = config.dims
    if dims == "auto":
        dims = "3D" if slices >= 8 else "2.5D" if slices >= 3 and not planes_alone else "2D"
    if dims == "2D":
        return 2, 1
    if slices < 2:
        raise TrainingError(
            f"dims is {dims}, but {volume.name or 'the volume'} has axes {volume.axes} {volume.shape}: no Z to see; "
            "use dims='2D', or name the axes (axes='ZYX')"
        )
    if dims == "3D":
        return 3, 1
    return 2, min(config.slices, slices if slices % 2 else slices - 1)


def _anisotropy(volume: Volume) -> float:
    sizes = volume.voxel_size
    z, x = sizes.get("Z"), sizes.get("X")
    return z / x if z and x else 1.0


def _square(volumes: Sequence[Volume]) -> bool:
    """Whether quarter turns leave the physics alone: equal, or equally unknown, voxel sizes along Y and X."""
    return all(
        v.voxel_size.get("Y") is None
        or v.voxel_size.get("X") is None
        or math.isclose(v.voxel_size["Y"] or 1, v.voxel_size["X"] or 1, rel_tol=1e-3)
        for v in volumes
    )


def _choose_patch(
    volumes: Sequence[Volume], arguments: UNetArguments, config: TrainConfig, depth: int, operator: Operator
) -> tuple[int, int, int]:
    """Crop size (Z, Y, X): as asked, or the default cut to what the smallest volume holds.

    Behind an operator crops are larger by what it reaches, where nothing can be learned, up to twice.
    """
    with torch.device("meta"):
        stride = UNet(arguments).stride
    sizes = [dict(zip(v.axes, v.shape, strict=True)) for v in volumes]
    room = [min(s.get(axis, 1) for s in sizes) for axis in "ZYX"]
    default: tuple[int, ...] = (16, 48, 48) if arguments.dims == 3 else (64, 64)
    reach = [
        -(-2 * h // (s * n)) * n
        for h, s, n in zip(operator.halo[-len(stride) :], operator.stride[-len(stride) :], stride, strict=True)
    ]
    default = tuple(min(d + r, 2 * d) for d, r in zip(default, reach, strict=True))
    if config.patch is not None:
        patch = tuple(config.patch)
        if len(patch) != arguments.dims or any(p % s or p <= 0 for p, s in zip(patch, stride, strict=True)):
            raise TrainingError(
                f"patch is {patch}; give {arguments.dims} positive multiples of {stride} "
                f"({'Z, Y, X' if arguments.dims == 3 else 'Y, X'})"
            )
    else:
        # at least two strides, so that the coarsest level still sees a neighbour
        patch = tuple(
            max(min(d, n // s * s), s) for d, n, s in zip(default, room[-arguments.dims :], stride, strict=True)
        )
    full = (1,) * (3 - len(patch)) + patch
    if arguments.dims == 2:
        full = (depth, *full[1:])
    if any(p > n for p, n in zip(full, room, strict=True)):
        raise TrainingError(
            f"the smallest volume has (Z, Y, X) = {tuple(room)} voxels, fewer than the patch {full}; "
            f"train on larger images, or choose a smaller patch (a multiple of {stride})"
        )
    return full[0], full[1], full[2]


__all__ = ["CHECKPOINT", "Step", "TrainConfig", "TrainingError", "iter_train", "schedule", "train"]
