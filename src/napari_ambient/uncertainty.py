"""Error bars: mean, standard deviation and quantiles of draws from the posterior, image by image.

Each draw is a clean image that the measurement could have come from (`sampling.py`); what they agree on is known, where
they differ is not. One image (a plane for a 2D prior, a stack otherwise) of one time point and channel is worked on at
a time, with its whole state in memory, and a finished draw can be kept in a work folder, so that a killed run goes on
with the draws that it lacks. `restoration.restore(method="samples")` makes a lazy volume of it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import __version__
from .amortised import evidence
from .devices import free_memory
from .moments import Moments, Spread
from .operators import Identity, Mask, Operator
from .posterior import (
    DRAWS,
    Gaussian,
    Likelihood,
    MethodName,
    PoissonGaussian,
    Problem,
    SquareLink,
    sample_posterior,
)
from .prior import write_whole
from .recorruption import at, blur, fill, stabilise, to_photons, trusted
from .restorer import RestorationError, RestorationWarning, Restorer
from .samplers import Noise
from .sampling import (
    CallCount,
    TiledDenoiser,
    Watch,
    amortised_draw,
    keyed_noise,
    negated,
    network_calls,
    network_domain,
    posterior_draw,
)

Array = NDArray[np.float32]
MATE = 1  # number of the draw that is made of the first one's noise, negated (`moments.py`)
CALLS_PER_STAGE = 6  # of split Gibbs
SLICES_THROUGH = (
    "this prior sees planes with their neighbours (2.5D), and behind a blur or holes its draws are not draws of one "
    "joint distribution of the whole stack: their error bars were measured to be too narrow, so do not rely on them; "
    "train a prior of single planes or of whole stacks (--dims 2D or 3D)"
)
"""Said of priors whose planes overlap where draws begin far above the noise."""
MAPS = (
    "the noise model has a map for every camera pixel, and the operator changes the pixels; fit the noise of this "
    "volume as one camera (--noise fit, in Python noise=fit_noise(volume))"
)
STATE = 14  # float32 images alive while drawing: state, rate, the rate before, noise, sums, and what they pass through


@dataclass(frozen=True)
class Output:
    """One thing to compute of the draws.

    Parameters
    ----------
    name : str
        "mean", "std", "q05" (any two digits: a quantile in per cent) or "draws" (each of them).
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in ("mean", "std", "draws") and self.quantile is None:
            raise RestorationError(
                f"output {self.name!r} is not known; choose of mean, std, draws and quantiles such as q05, q50, q95"
            )

    @property
    def quantile(self) -> float | None:
        """The quantile, 0 to 1; None for the others."""
        digits = self.name[1:]
        return int(digits) / 100 if self.name[:1] == "q" and len(digits) == 2 and digits.isdigit() else None

    def labels(self, draws: int) -> list[str]:
        """Name the images that it gives."""
        return [f"draw {k + 1}" for k in range(draws)] if self.name == "draws" else [self.name]


class DrawRestorer:
    """Draw from the posterior of one image at a time: what the lazy blocks call.

    Parameters
    ----------
    restorer : Restorer
        Volume, prior, noise and device.
    draws : int
        Draws per image.
    steps : int
        Network calls per draw.
    seed : int
        Seed of the draws.
    outputs : sequence of Output
        What to give.
    tile : tuple of int
        Largest tile (Z, Y, X), voxels.
    work : Path or None
        Folder that keeps finished draws.
    operator : Operator
        What the microscope did to the light; draws are of what was before it.
    posterior : str
        Posterior method for an operator other than Identity.
    spread : Spread or float
        Widens the draws about their mean (`recalibration.py`).
    amortised : bool
        Draw by the prior's own posterior, trained for this operator, in one call.
    watch : Watch, optional
        Told of every network call.
    """

    def __init__(
        self,
        restorer: Restorer,
        *,
        draws: int,
        steps: int,
        seed: int,
        outputs: Sequence[Output],
        tile: tuple[int, int, int],
        work: Path | None,
        operator: Operator | None = None,
        posterior: MethodName = "split_gibbs",
        spread: float | Spread = 1.0,
        amortised: bool = False,
        watch: Watch | None = None,
    ) -> None:
        self.amortised = amortised
        self.operator, self.posterior = operator or Identity(), posterior
        self.restorer, self.draws, self.steps, self.seed = restorer, draws, steps, seed
        self.outputs, self.tile, self.work = tuple(outputs), tile, work
        self.labels = [label for output in outputs for label in output.labels(draws)]
        if not isinstance(spread, Spread):
            if not 0 < spread < 100:
                raise RestorationError(
                    f"spread is {spread}; it is a factor of the standard deviation, above 0 (1: none)"
                )
            spread = Spread(spread)
        self.spread = spread
        if steps < 2 or seed < 0:
            raise RestorationError(f"steps is {steps} and seed {seed}; give 2 steps or more, and a seed of 0 or more")
        if posterior not in DRAWS and any(o.name not in ("mean", "draws") for o in self.outputs):
            raise RestorationError(
                f"the spread of {posterior} is no error bar; ask for the mean alone (outputs: mean), or use "
                f"{' or '.join(sorted(DRAWS))} (--posterior)"
            )
        if work is not None:
            work.mkdir(parents=True, exist_ok=True)
        self.count = self._foresee(watch)

    @property
    def planes(self) -> bool:
        """Whether every plane is an image of its own (2D priors)."""
        flat = self.operator.halo[0] == 0 and self.operator.stride[0] == 1
        return flat and self.restorer.prior.denoiser.arguments.dims == 2 and self.restorer.slices == 1

    def clean_shape(self, measured: Sequence[int]) -> tuple[int, ...]:
        """Give the voxels (Z, Y, X) of the clean image behind a measured one."""
        return tuple(self.operator.input_shape(tuple(measured)))

    def image(self, time: int, channel: int, planes: slice) -> Array:
        """Compute the outputs of some planes of one time point and channel.

        Parameters
        ----------
        time, channel : int
            Which image.
        planes : slice
            Planes; all of them, unless every plane is an image of its own.

        Returns
        -------
        ndarray of float32, shape (outputs, Z, Y, X)
            In the units of the volume.
        """
        measured = (planes.stop - planes.start, *self.restorer.domain.shape[1:])
        shape = tuple(self._operator(planes).input_shape(measured))
        keep = any(o.quantile is not None or o.name == "draws" for o in self.outputs)
        self._check_memory(shape, keep)
        noise = self.restorer.noise[channel]
        moments = Moments()
        kept: list[Array] = []
        for draw in self._draw_all(time, channel, planes, shape):
            moments.add(draw)
            if keep:
                kept.append(draw)
        total = moments.mean()
        std = moments.std() if any(o.name != "mean" for o in self.outputs) and moments.count > 1 else total
        spread = self.spread.factor if std is total else self.spread.of(std)
        zero, gain = (at(v, slice(None), slice(None)) for v in (noise.zero, noise.gain))
        if shape != measured and (np.ndim(zero) or np.ndim(gain)):
            raise RestorationError(MAPS)
        results: list[NDArray[np.floating[Any]]] = []
        for output in self.outputs:
            if output.name == "mean":
                results.append(zero + gain * total)
            elif output.name == "std":
                results.append(gain * spread * std)
            elif output.name == "draws":
                results.extend(zero + gain * (total + spread * (draw - total)) for draw in kept)
            else:
                assert output.quantile is not None
                quantile = np.quantile(np.stack(kept), output.quantile, axis=0)
                results.append(zero + gain * (total + spread * (quantile - total)))
        return np.stack([np.asarray(r, dtype=np.float32) for r in results])

    def _operator(self, planes: slice) -> Operator:
        """Give the operator of the planes that are an image of their own: a mask is cut to them."""
        whole = self.restorer.domain.shape
        if not self.planes or (planes.start, planes.stop) == (0, whole[0]) or isinstance(self.operator, Identity):
            return self.operator
        return self.operator.crop([planes, slice(0, whole[1]), slice(0, whole[2])])

    def _draw_all(self, time: int, channel: int, planes: slice, shape: tuple[int, ...]) -> Iterator[Array]:
        counts, valid, holes = self._read(time, channel, planes)
        digest = "" if self.work is None else self._digest(counts, valid, channel)
        for number in range(self.draws):
            key = (self.seed, time, self.restorer.volume.first_channel + channel, number)
            name = "_".join(map(str, (*key, planes.start, digest)))
            path = None if self.work is None else self.work / f"{name}.npy"
            if path is not None and path.exists():
                yield np.load(path)
                self.count.piece_ended()
                continue
            self._check_measured(time, channel, planes, shape, valid)
            with self.count.watched():
                draw = self._draw(counts, valid, key, planes.start, channel, holes)
            if path is not None:
                write_whole(path, _npy(draw))
            yield draw

    def _check_measured(
        self, time: int, channel: int, planes: slice, shape: Sequence[int], valid: torch.Tensor | None
    ) -> None:
        """Refuse an image of which nothing was measured: its draws would be of the prior alone."""
        if valid is None and isinstance(self.operator, Identity):
            return
        seen = self._operator(planes).forward(torch.ones((1, 1, *shape)))
        if not bool((seen if valid is None else torch.where(valid, seen, torch.zeros_like(seen))).any()):
            raise RestorationError(
                f"nothing was measured in T={time}, C={channel}, Z={planes.start}:{planes.stop}: all of it is NaN, "
                "infinite, hot or masked; leave such images out, or correct the mask (0 where nothing was measured)"
            )

    def _draw(
        self,
        counts: torch.Tensor,
        valid: torch.Tensor | None,
        key: tuple[int, ...],
        first: int,
        channel: int,
        holes: bool,
    ) -> Array:
        restorer = self.restorer
        operator = self._operator(slice(first, first + counts.shape[-3]) if self.planes else slice(None))
        shape = tuple(operator.input_shape(tuple(counts.shape[-3:])))
        domain = network_domain(restorer.prior.denoiser.network, shape)
        tiled = TiledDenoiser(restorer.prior.denoiser, domain, self.tile, restorer.device, self.count)
        scales = len(restorer.prior.denoiser.scales)  # type: ignore[arg-type]

        def denoise(x_t: torch.Tensor, sigma: torch.Tensor, **condition: Any) -> torch.Tensor:
            condition["channel"] = min(channel, scales - 1)
            return tiled(x_t, sigma, **condition)

        clean: Array
        result: torch.Tensor | None = None
        noise = keyed_noise(key, first)
        if key[-1] == MATE:
            noise = negated(keyed_noise((*key[:-1], 0), first))
        if self.amortised:
            with torch.inference_mode():
                clean = self._draw_at_once(counts, valid, operator, tiled, noise, min(channel, scales - 1))
            self.count.piece_ended(tiled.calls)
            return clean
        if holes or not isinstance(self.operator, Identity):
            if restorer.overlapping and isinstance(self.operator, Identity):  # NaN, of which nobody knew before
                warnings.warn(SLICES_THROUGH, RestorationWarning, stacklevel=2)
            # some methods differentiate the network
            with torch.inference_mode(self.posterior in ("split_gibbs", "diffpir")):
                clean = self._draw_through(counts, valid, operator, denoise, noise, channel)
            self.count.piece_ended(tiled.calls)
            return clean
        with torch.inference_mode():
            for reached in posterior_draw(restorer.form, denoise, counts, valid, steps=self.steps, noise=noise):
                result = reached
        assert result is not None
        self.count.piece_ended(tiled.calls)
        clean = result[0, 0].numpy()
        return clean

    def _draw_at_once(
        self,
        counts: torch.Tensor,
        valid: torch.Tensor | None,
        operator: Operator,
        tiled: TiledDenoiser,
        noise: Noise,
        channel: int,
    ) -> Array:
        """Draw by the prior's flow; where it has none, ask the denoiser, which was trained behind the operator."""
        restorer = self.restorer
        shape = tuple(operator.input_shape(tuple(counts.shape[-3:])))
        bright = operator.forward(torch.ones((1, 1, *shape)))
        light, known = evidence(counts, valid, bright, operator.stride)
        posterior = restorer.prior.posterior
        if posterior is None:
            answer = tiled(
                stabilise(light, 1.0),
                torch.tensor([restorer.form.sigma_y]),
                corruption=restorer.form.corruption,
                measured=True,
                channel=channel,
                known=known,
            )
            photons = restorer.form.photons(answer)
        else:
            photons = amortised_draw(
                restorer.form,
                posterior,
                light,
                known,
                tile=self.tile,
                device=restorer.device,
                noise=noise,
                channel=channel,
                count=self.count,
            )
        clean: Array = photons[0, 0].numpy()
        return clean

    def _draw_through(
        self,
        counts: torch.Tensor,
        valid: torch.Tensor | None,
        operator: Operator,
        denoise: Callable[..., torch.Tensor],
        noise: Noise,
        channel: int,
    ) -> Array:
        """Draw what was before the operator; hot pixels and holes are a mask behind it.

        D knows λ = light + r² of its own camera; k is A light + r² of the data's camera, with that variance. So

            k - Δ ~ A λ with variance A λ + Δ,   Δ = r²(data) - A r²(prior)

        and r²(data) - r²(prior) is added to the light that is given, whose zero is the data's.
        """
        form = self.restorer.form
        likelihood: Likelihood = PoissonGaussian()
        seen = counts
        here, there = self.restorer.read_variance(channel)
        if np.ndim(here) or here != there:
            shape = tuple(operator.input_shape(tuple(counts.shape[-3:])))
            beyond = torch.as_tensor(here, dtype=torch.float32) - operator.forward(torch.full((1, 1, *shape), there))
            counts = counts - beyond
            likelihood = PoissonGaussian(beyond.clamp_min(0))
        if valid is not None:
            operator = Mask(valid[0, 0].numpy()) @ operator
            counts = torch.where(valid, counts, torch.zeros_like(counts))
        if self.posterior == "diffpir":  # which knows Gaussian noise alone: the counts' own variance, from a pilot
            seen = fill(seen.reshape(1, -1, *seen.shape[-2:]), None if valid is None else valid[0])
            likelihood = Gaussian(blur(seen, 2.0).clamp_min(0.1).reshape(counts.shape))
        problem = Problem(counts, operator, likelihood, SquareLink(0.0))

        def at_level(z: torch.Tensor, sigma: float) -> torch.Tensor:
            return denoise(z, torch.tensor([sigma]), corruption="gaussian").to(torch.float32)

        z: torch.Tensor | None = None
        for _, reached in sample_posterior(self.posterior, at_level, problem, steps=self.steps, noise=noise):
            z = reached
        assert z is not None
        light: Array = form.photons(z.detach())[0, 0].numpy()
        if np.ndim(here) and np.shape(here) != light.shape[-2:]:
            raise RestorationError(MAPS)
        return light + np.asarray(here - there, dtype=np.float32)

    def _foresee(self, watch: Watch | None) -> CallCount:
        """Foresee the network calls: (images and draws) pieces of (steps and tiles) calls."""
        restorer = self.restorer
        shape = self.clean_shape(restorer.domain.shape)
        images = math.prod(n for axis, n in restorer.volume.sizes.items() if axis in "TC")
        if self.planes:
            images, shape = images * shape[0], (1, *shape[1:])
        through = not isinstance(self.operator, Identity)
        steps = self.steps * (CALLS_PER_STAGE if through and self.posterior == "split_gibbs" else 1)
        steps = 1 if self.amortised else steps
        return CallCount(watch, images * self.draws, steps * network_calls(restorer.prior.denoiser, shape, self.tile))

    def _read(self, time: int, channel: int, planes: slice) -> tuple[torch.Tensor, torch.Tensor | None, bool]:
        restorer = self.restorer
        box = (planes, *(slice(0, n) for n in restorer.domain.shape[1:]))
        values = restorer.read(time, channel, box, holes=True)
        noise = restorer.noise[channel]
        good = trusted(values, noise, box[1], box[2])
        photons = np.nan_to_num(to_photons(values, noise, box[1], box[2]), posinf=0, neginf=0)
        valid = None if good.all() else torch.from_numpy(good)[None, None]
        holes = not bool(np.isfinite(values).all())
        return torch.from_numpy(photons)[None, None], valid, holes

    def _check_memory(self, shape: tuple[int, ...], keep: bool) -> None:
        voxels = int(np.prod(shape))
        need = 4 * voxels * (STATE + (self.draws if keep else 0) + len(self.labels))
        free = free_memory(torch.device("cpu"))
        if need > free:
            raise MemoryError(
                f"draws of an image of {' x '.join(map(str, shape))} voxels need about {need / 2**30:.1f} GiB, "
                f"{free / 2**30:.1f} GiB are free; crop the volume, ask for mean and std only, or use a 2D prior, "
                "which draws plane by plane"
            )

    def _digest(self, counts: torch.Tensor, valid: torch.Tensor | None, channel: int) -> str:
        """Identify a draw by all that it depends on, so that no draw of another image or task is ever taken up."""
        task = {
            "prior": self.restorer.prior.sha256,
            "form": self.restorer.prior.record.form,
            "quanta": None if self.restorer.quanta is None else asdict(self.restorer.quanta),
            "steps": self.steps,
            "operator": self.operator.to_dict(),
            "posterior": "amortised" if self.amortised else self.posterior,
            "mate": MATE,
            "version": __version__,
        }
        digest = hashlib.sha256(json.dumps(task, sort_keys=True, default=str).encode())
        digest.update(counts.numpy().tobytes())
        for read_variance in self.restorer.read_variance(channel):
            digest.update(np.asarray(read_variance).tobytes())
        if valid is not None:
            digest.update(valid.numpy().tobytes())
        return digest.hexdigest()[:16]


def _npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def work_folder(output: str | os.PathLike[str]) -> Path:
    """Give the hidden folder beside an output that keeps its finished draws."""
    path = Path(output)
    return path.with_name(f".{path.name}.work")
