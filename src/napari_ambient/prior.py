"""A prior: a trained denoiser with the noise, the scale and the record it was trained with.

On disk it is a folder, `mito.prior/`:

    weights.safetensors   the denoiser's weights and the arrays of the noise models
    prior.json            everything else, with the SHA-256 of the weights

No pickle, so that a prior from a stranger can be opened. Whatever does not fit (a damaged file, another program's
folder, a format from a newer version) is refused with the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from .amortised import AmortisedPosterior, amortised_from
from .denoiser import Denoiser, Scale
from .networks.unet import UNet, UNetArguments
from .noise import NoiseModel
from .recorruption import Quanta, Recorruption, choose_recorruption
from .sampling import CallCount, TiledDenoiser, Watch, keyed_noise, network_calls, network_domain, prior_draw

FORMAT = 2
WHOLE = ("flow_diff", "ambient_flow", "sure_score", "em")
"""Objectives that teach all noise levels at once."""
WEIGHTS, DESCRIPTION = "weights.safetensors", "prior.json"
PROGRAM = "napari-ambient"


class PriorError(ValueError):
    """A prior bundle cannot be read or written."""


@dataclass(frozen=True)
class Record:
    """Where a prior comes from.

    Parameters
    ----------
    objective : str
        Training objective.
    form : {"thinning", "gaussian"}
        Form of recorruption.
    axes : str
        Axes of the training volumes.
    voxel_size : dict
        µm per axis; None where unknown.
    channel_names : tuple of str
        One per scale and noise model, or empty.
    config : dict
        The training configuration.
    step : int
        Training steps behind these weights.
    history : tuple of dict
        Losses along the training.
    sources : tuple of str
        Names of the training volumes.
    version : str
        Version of this package.
    quanta : dict
        How the detector counts (`recorruption.Quanta`).
    start : str
        Hash of the prior that the training began with; empty if from scratch.
    operator : dict
        What the microscope had done to the training's light (`Operator.to_dict`); empty where it was only noisy.
    """

    objective: str
    form: Literal["thinning", "gaussian"]
    axes: str
    voxel_size: Mapping[str, float | None]
    channel_names: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0
    history: tuple[Mapping[str, Any], ...] = ()
    sources: tuple[str, ...] = ()
    version: str = ""
    quanta: Mapping[str, float | None] = field(default_factory=dict)
    start: str = ""
    operator: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Prior:
    """A learned prior of what the clean structures look like.

    Parameters
    ----------
    denoiser : Denoiser
        The network with its preconditioning and scales.
    noise : tuple of NoiseModel
        One per channel of the training volumes.
    record : Record
        Where it comes from.
    posterior : AmortisedPosterior or None
        A flow that draws from posteriors in one call, for measurements through the operator of the record.
    """

    denoiser: Denoiser
    noise: tuple[NoiseModel, ...]
    record: Record
    posterior: AmortisedPosterior | None = None

    @property
    def recorruption(self) -> Recorruption:
        """The form of noise that the denoiser was trained with."""
        quanta = Quanta(**self.record.quanta) if self.record.quanta else None  # type: ignore[arg-type]
        return choose_recorruption(self.noise, self.record.form, quanta=quanta)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.denoiser.parameters()).device

    @property
    def sha256(self) -> str:
        """Hash of the weights and noise arrays, as in the bundle."""
        return hashlib.sha256(self._tensors()).hexdigest()

    def to(self, device: torch.device | str) -> Prior:
        """Move the weights to a device (in place) and return the prior."""
        self.denoiser.to(device)
        if self.posterior is not None:
            self.posterior.to(device)
        return self

    @property
    def levels(self) -> str:
        """Say in words which noise levels were learned from data, and which were inferred."""
        sigma = self.recorruption.sigma_y
        if self.record.objective in WHOLE:
            return f"all levels inferred by {self.record.objective}, as far as the measurements determine them"
        if not self.knows_below:
            return f"learned from data at and above the measurement's own noise (sigma {sigma:.2g}); nothing below"
        return (
            f"learned from data at and above the measurement's own noise (sigma {sigma:.2g}); below it inferred by "
            f"{self.record.config['below']}, as far as noisy data determine it"
        )

    @property
    def knows_below(self) -> bool:
        """Whether a stage taught it what lies below the measurement's own noise, which draws need."""
        config = self.record.config
        if self.record.objective in WHOLE:  # but not from its beginning on, which has guesses to learn from
            return self.record.step >= int(config.get("steps", 0)) / 2
        if config.get("below", "none") == "none":
            return False
        # half of the stage, at least: a training that was stopped before has not learned it
        return self.record.step >= int(config["steps"]) + int(config["below_steps"]) / 2

    def channel(self, which: int | str) -> Prior:
        """Give the prior of one of its image channels, by number or name."""
        names = list(self.record.channel_names)
        count = len(self.noise)
        index = names.index(which) if isinstance(which, str) and which in names else which
        if not isinstance(index, int) or not 0 <= index < count:
            raise PriorError(f"channel {which!r} is not known; choose 0 to {count - 1}, or of the names {names}")
        scale = Scale(*self.denoiser.scales[index].tolist())  # type: ignore[index]
        denoiser = Denoiser(UNet(self.denoiser.arguments), [scale])
        state = {k: v for k, v in self.denoiser.state_dict().items() if k != "scales"}
        denoiser.load_state_dict({**state, "scales": denoiser.state_dict()["scales"]})
        denoiser.to(self.device).eval().requires_grad_(False)
        record = replace(self.record, channel_names=tuple(names[index : index + 1]))
        posterior = None if self.posterior is None else self.posterior.channel(index)
        return place(Prior(denoiser, (self.noise[index],), record, posterior), None)

    def sample(
        self,
        shape: Sequence[int],
        *,
        count: int = 1,
        steps: int = 32,
        seed: int = 0,
        channel: int = 0,
        tile: Sequence[int] | None = None,
    ) -> NDArray[np.float32]:
        """Draw new images of such structures: the probability flow of the prior from pure noise.

        Parameters
        ----------
        shape : sequence of int
            (Y, X) or (Z, Y, X), any size; a 2D prior draws the planes independently.
        count : int
            How many.
        steps : int
            Network calls per image.
        seed : int
            Seed; the same seed gives the same images, whatever the tiles.
        channel : int
            Image channel.
        tile : sequence of int, optional
            Largest tile (Z, Y, X), voxels.

        Returns
        -------
        ndarray of float32, shape (count, *shape)
            Expected counts, in the units of the training data.

        Raises
        ------
        PriorError
            If the prior knows nothing below the noise of its data.
        """
        images = list(self.iter_sample(shape, count=count, steps=steps, seed=seed, channel=channel, tile=tile))
        return np.stack(images)

    def iter_sample(
        self,
        shape: Sequence[int],
        *,
        count: int = 1,
        steps: int = 32,
        seed: int = 0,
        channel: int = 0,
        tile: Sequence[int] | None = None,
        watch: Watch | None = None,
    ) -> Iterator[NDArray[np.float32]]:
        """Draw new images as `sample` does, and give each as soon as it is there.

        Parameters
        ----------
        shape, count, steps, seed, channel, tile
            As for `sample`.
        watch : callable, optional
            ``watch(done, total)``, called after every network call of all images; what it raises ends the drawing.

        Yields
        ------
        ndarray of float32, shape `shape`
            Expected counts, in the units of the training data.

        Raises
        ------
        PriorError
            If the prior knows nothing below the noise of its data.
        """
        if not self.knows_below:
            raise PriorError(
                "this prior knows nothing below the noise of its data, which new images need; train it on with the "
                "stage below (below='auto', --below auto)"
            )
        full = tuple(int(n) for n in shape)
        if len(full) not in (2, 3) or min(full) < 1 or count < 1:
            raise PriorError(f"shape is {full} and count {count}; give (Y, X) or (Z, Y, X), and one image or more")
        if not 0 <= channel < len(self.noise) or steps < 2 or seed < 0:
            raise PriorError(
                f"channel is {channel}, steps {steps}, seed {seed}; channels are 0 to {len(self.noise) - 1}, steps 2 "
                "or more, seeds 0 or more"
            )
        planes = (1, *full) if len(full) == 2 else full
        network = self.denoiser.network
        if network.arguments.dims == 3 and planes[0] == 1:
            raise PriorError(f"the prior is 3D, shape {full} has one plane; give (Z, Y, X)")
        usual = (32, 160, 160) if network.arguments.dims == 3 else (64, 512, 512)
        limit = usual if tile is None else tuple(tile)
        if len(limit) != 3 or min(limit) < 1:
            raise PriorError(f"tile is {limit}; give three positive numbers (Z, Y, X)")
        calls = CallCount(watch, count, steps * network_calls(self.denoiser, planes, limit))
        tiled = TiledDenoiser(self.denoiser, network_domain(network, planes), limit, self.device, calls)
        scales: Tensor = self.denoiser.scales  # type: ignore[assignment]
        centre, spread = (float(v) for v in scales[channel])
        noise = self.noise[min(channel, len(self.noise) - 1)]
        zero, gain = float(np.median(noise.zero)), float(np.median(noise.gain))

        def denoise(x_t: Tensor, sigma: Tensor, **condition: Any) -> Tensor:
            return tiled(x_t, sigma, **condition, channel=channel)

        for number in range(count):
            with torch.inference_mode():
                draw = prior_draw(
                    denoise, planes, steps=steps, noise=keyed_noise((seed, number)), centre=centre, spread=spread
                )
                light = zero + gain * self.recorruption.photons(draw)[0, 0].numpy()
            yield np.asarray(light, dtype=np.float32).reshape(full)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the bundle.

        Parameters
        ----------
        path : path-like
            The folder, by custom named ``something.prior``.
        overwrite : bool
            Replace the prior that is there. Any other folder is never replaced.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        PriorError
            If something else is there, or the disk is full; what was there before stays whole.
        """
        path = Path(path)
        if path.exists():
            if not (path / DESCRIPTION).exists() and (not path.is_dir() or any(_foreign(path))):
                raise PriorError(f"{path} exists and is not a prior; choose another name")
            if (path / DESCRIPTION).exists() and not overwrite:
                raise PriorError(f"{path} exists; choose another name, or pass overwrite=True (--overwrite)")
        weights = self._tensors()
        description = self._describe(hashlib.sha256(weights).hexdigest())
        try:
            path.mkdir(parents=True, exist_ok=True)
            # The description of the new weights is put beside the old one first: were the program killed between the
            # two renames, `load_prior` finds the one that belongs to the weights.
            write_whole(path / (DESCRIPTION + ".next"), description.encode())
            write_whole(path / WEIGHTS, weights)
            os.replace(path / (DESCRIPTION + ".next"), path / DESCRIPTION)
        except OSError as error:
            free = shutil.disk_usage(path if path.exists() else path.parent).free
            raise PriorError(
                f"could not write {path}: {error.strerror or error}. It needs {len(weights) + len(description)} bytes, "
                f"{free} are free; make room or choose another disk"
            ) from error
        return path

    def _tensors(self) -> bytes:
        tensors = {f"denoiser.{k}": v.detach().cpu().contiguous() for k, v in self.denoiser.state_dict().items()}
        if self.posterior is not None:
            own = self.posterior.state_dict()
            tensors |= {f"posterior.{k}": v.detach().cpu().contiguous() for k, v in own.items()}
        for c, noise in enumerate(self.noise):
            for name, value in noise.to_dict().items():
                if isinstance(value, np.ndarray):
                    tensors[f"noise.{c}.{name}"] = torch.from_numpy(np.array(value))
        return save_tensors(tensors)

    def _describe(self, digest: str) -> str:
        noise = [{k: ("array" if isinstance(v, np.ndarray) else v) for k, v in n.to_dict().items()} for n in self.noise]
        description = {
            "program": PROGRAM,
            "format": FORMAT,
            "weights_sha256": digest,
            "network": self.denoiser.arguments.to_dict(),
            **({} if self.posterior is None else {"posterior": self.posterior.arguments.to_dict()}),
            "noise": noise,
            "record": asdict(self.record),
        }
        return json.dumps(description, indent=2, default=_plain)


class _Description(pydantic.BaseModel):
    """The description as it comes from outside."""

    model_config = pydantic.ConfigDict(extra="forbid")
    program: Literal["napari-ambient"]
    format: int
    weights_sha256: str
    network: dict[str, Any]
    posterior: dict[str, Any] | None = None
    noise: list[dict[str, Any]]
    record: dict[str, Any]


def load_prior(path: str | os.PathLike[str], *, device: torch.device | str | None = None) -> Prior:
    """Read a prior bundle.

    Parameters
    ----------
    path : path-like
        The folder.
    device : torch.device or str, optional
        Where to put the weights; the CPU by default.

    Returns
    -------
    Prior

    Raises
    ------
    PriorError
        If the folder is missing, foreign, damaged, or of a newer format; the message says which.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise PriorError(f"{path} {what}; a prior is a folder with {DESCRIPTION} and {WEIGHTS}")
    if not (path / DESCRIPTION).is_file() or not (path / WEIGHTS).is_file():
        missing = [n for n in (DESCRIPTION, WEIGHTS) if not (path / n).is_file()]
        raise PriorError(f"{path} is not a prior: {' and '.join(missing)} missing")
    weights = (path / WEIGHTS).read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    description = _read_description(path / DESCRIPTION)
    following = path / (DESCRIPTION + ".next")
    if description.weights_sha256 != digest and following.is_file():
        description = _read_description(following)
    if description.weights_sha256 != digest:
        raise PriorError(
            f"{path / WEIGHTS} is damaged: its SHA-256 is {digest[:12]}…, the description says "
            f"{description.weights_sha256[:12]}…; copy the bundle again or train anew"
        )
    try:
        tensors = load_tensors(weights)
        arguments = UNetArguments.from_dict(description.network)
        state = {k.removeprefix("denoiser."): v for k, v in tensors.items() if k.startswith("denoiser.")}
        denoiser = Denoiser(UNet(arguments), [Scale(*row) for row in state["scales"].tolist()])
        denoiser.load_state_dict(state)
        posterior = None
        if description.posterior is not None:
            own = {k.removeprefix("posterior."): v for k, v in tensors.items() if k.startswith("posterior.")}
            posterior = amortised_from(description.posterior, own).eval().requires_grad_(False)
        noise = tuple(_read_noise(c, values, tensors) for c, values in enumerate(description.noise))
        values = dict(description.record)
        for name in ("channel_names", "history", "sources"):
            values[name] = tuple(values.get(name, ()))
        record = Record(**values)
        if not noise:
            raise ValueError("it holds no noise model")
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PriorError(f"{path} is damaged: {error}; copy the bundle again or train anew") from error
    denoiser.eval().requires_grad_(False)
    return place(Prior(denoiser, noise, record, posterior), device)


def place(prior: Prior, device: torch.device | str | None) -> Prior:
    """Move a prior to a device, in the memory layout that its convolutions like best."""
    if prior.denoiser.arguments.dims == 2:
        prior.denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return prior if device is None else prior.to(device)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is either wholly there or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def representative(noises: Sequence[NoiseModel]) -> NoiseModel:
    """Choose the noise model of median gain among those of several stacks of one channel."""
    if len(noises) == 1:
        return noises[0]
    order = sorted(noises, key=lambda n: float(np.median(n.gain)))
    chosen = order[len(order) // 2]
    return replace(chosen, notes=(*chosen.notes, f"the median of {len(noises)} stacks' noise models"))


def _read_description(path: Path) -> _Description:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PriorError(f"{path} is damaged: {error}; copy the bundle again or train anew") from error
    if not isinstance(values, dict) or values.get("program") != PROGRAM:
        raise PriorError(f"{path} was not written by {PROGRAM}; it cannot be used as a prior")
    if not isinstance(values.get("format"), int) or values["format"] > FORMAT:
        raise PriorError(
            f"{path} has format {values.get('format')}, this version reads up to {FORMAT}; update {PROGRAM}"
        )
    try:
        return _Description.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PriorError(f"{path} is damaged: {where}: {first['msg']}; copy the bundle again") from error


def _read_noise(channel: int, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> NoiseModel:
    filled = {
        k: (tensors[f"noise.{channel}.{k}"].numpy() if isinstance(v, str) and v == "array" else v)
        for k, v in values.items()
    }
    return NoiseModel.from_dict(filled)


def _foreign(path: Path) -> list[Path]:
    """Files of a folder that are not what an unfinished training leaves."""
    return [p for p in path.iterdir() if p.name != "checkpoint.safetensors" and not p.name.endswith(".partial")]


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be written to JSON")
