"""Draws from the posterior of whole images, and new images from the prior, through tiles that step together.

A draw of one image (a plane for a 2D network, a stack otherwise) keeps its whole state; at every step the denoiser is
called tile by tile, each with its halo, and only the cores are kept. So all tiles are at the same level at every step
and nothing is blended: the draw is the one that the whole image would give, whatever the tiles. (Tiles sampled on their
own and blended afterwards lose half of the variance where they overlap.) What is random at a voxel depends on
(seed, time, channel, draw, step, plane) and its place in the plane alone.

    photons    K by `samplers.accumulate` from k at exposure 1 to P;  λ = r(K, P)
    Gaussian   x by `samplers.dpm_sde` from y at sigma_y down to 0;  λ = photons(x)

`restoration.py` turns draws into means, standard deviations and quantiles of volumes.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .amortised import AmortisedPosterior
from .denoiser import Denoiser
from .devices import memory_errors
from .networks.flow import ConditionalFlow
from .networks.unet import UNet
from .objectives.gaussian_levels import HIGH, LOW
from .objectives.virtual_exposures import photon_rate
from .recorruption import Recorruption, fill
from .samplers import Noise, accumulate, dpm_ode, dpm_sde, exposure_ladder, ladder
from .volumes.tiles import Domain, cores, split

LONGEST = 32.0  # exposure of a draw's photons, as `objectives/virtual_exposures.py` trains it; why, is said there
GLANCE = 0.05  # seconds between two looks of who watches, within one network call
ABOVE = 1.02  # level at which a draw from Gaussian noise starts, in units of sigma_y

Key = tuple[int, ...]
"""Whatever tells one stream of random numbers from another: (seed, time, channel, draw, ...)."""


Watch = Callable[[int, int], object]
"""watch(done, total), told of every network call; what it raises stops the work."""


class CallCount:
    """Count the network calls of a restoration, and tell somebody who watches.

    How many there will be is foreseen from equal pieces of work (draws), and corrected by every piece that ends: tiles
    are halved when memory runs out, images with holes take another method, finished draws are read from the disk.

    Parameters
    ----------
    watch : Watch or None
        Told ``(done, total)`` after every network call, and again with the same numbers while one lasts (`watched`).
        Whatever it raises ends the work.
    pieces : int
        Pieces of work.
    calls : int
        Network calls foreseen for each.
    """

    def __init__(self, watch: Watch | None, pieces: int, calls: int) -> None:
        self._watch, self._left, self._calls = watch, pieces, calls
        self._done, self._total = 0, pieces * calls
        self._lock = threading.Lock()

    def called(self) -> None:
        """Say that the network was called."""
        with self._lock:
            self._done += 1
        self.look()

    def look(self) -> None:
        """Let the watcher have a look, and stop the work."""
        if self._watch is not None:
            with self._lock:
                done, total = self._done, max(self._total, self._done)
            self._watch(done, total)

    def piece_ended(self, calls: int | None = None) -> None:
        """Say that a piece has ended after so many calls; None: it was there already."""
        with self._lock:
            self._left = max(self._left - 1, 0)
            if calls is None:
                self._done += self._calls
            else:
                self._calls = calls
                self._total = self._done + self._left * calls
        if calls is None:
            self.look()

    def watched(self) -> AbstractContextManager[object]:
        """Let the watcher look in from within network calls and Fourier transforms too, which can take seconds."""
        return nullcontext() if self._watch is None else _Glances(self.look)

    def __reduce__(self) -> tuple[type[CallCount], tuple[None, int, int]]:
        """Travel to the workers of a cluster, where nobody watches."""
        return CallCount, (None, self._left, self._calls)


class _Glances(TorchFunctionMode):
    """Call `look` before an operation of torch in this thread, at most twenty times a second."""

    def __init__(self, look: Callable[[], None]) -> None:
        super().__init__()
        self.look, self.last = look, time.monotonic()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if time.monotonic() - self.last > GLANCE:
            self.look()
            self.last = time.monotonic()
        return func(*args, **(kwargs or {}))


class TileWarning(UserWarning):
    """Something about the tiles that the user may want to know."""


class Tiles:
    """Apply a network to whole images tile by tile.

    Parameters
    ----------
    domain : Domain
        Stride, halo and margin of the network on images of this size.
    tile : tuple of int
        Largest tile (Z, Y, X), voxels.
    device : torch.device
        Where the network runs; the images stay where they are.
    planes : int
        0 for a network that sees volumes; else how many neighbouring planes it sees together.
    count : CallCount, optional
        Told of every network call.
    """

    def __init__(
        self,
        domain: Domain,
        tile: Sequence[int],
        device: torch.device,
        *,
        planes: int,
        count: CallCount | None = None,
    ) -> None:
        self.domain, self.tile, self.device, self.planes = domain, tuple(tile), device, planes
        self.count = count or CallCount(None, 1, 0)
        self.calls = 0

    def apply(self, network: Callable[..., Tensor], *images: Tensor) -> Tensor:
        """Call a network on whole images.

        Parameters
        ----------
        network : callable
            Takes as many images as are given, (1, 1, Z, Y, X) or (1, planes, Y, X), and gives one of that shape.
        *images : Tensor, shape (1, 1, Z, Y, X)
            The images.

        Returns
        -------
        Tensor
            Shape and type of the first.
        """
        result = torch.empty_like(images[0])
        for core in cores(result.shape[-3:], self._limits()):
            self._fill(result, network, images, core)
        return result

    def _limits(self) -> tuple[int, ...]:
        return tuple(max(t // s * s, s) for t, s in zip(self.tile, self.domain.stride, strict=True))

    def _fill(
        self, result: Tensor, network: Callable[..., Tensor], images: Sequence[Tensor], core: Sequence[slice]
    ) -> None:
        try:
            with memory_errors():
                result[0, 0][tuple(core)] = self._call(network, images, core)
        except MemoryError as error:
            halves = split(core, [max(s, 8) for s in self.domain.stride])
            if halves is None:
                raise MemoryError(
                    f"not enough memory for even the smallest tile ({error}); close other programs, train a "
                    "smaller network (--size small), or use the CPU (--device cpu)"
                ) from error
            size = [part.stop - part.start for part in halves[0]]
            warnings.warn(
                f"out of memory on {self.device}: tiles of {' x '.join(map(str, size))} voxels from here on",
                TileWarning,
                stacklevel=2,
            )
            self.tile = tuple(size)
            for half in halves:
                self._fill(result, network, images, half)

    def _call(self, network: Callable[..., Tensor], images: Sequence[Tensor], core: Sequence[slice]) -> Tensor:
        tile = self.domain.tile(core)
        box, indices = tile.sources()
        parts = []
        for image in images:
            part = image[0, 0][box]
            for axis, index in enumerate(indices):
                part = part.index_select(axis, torch.from_numpy(index))
            parts.append(part.to(self.device))
        home = images[0].device
        if not self.planes:
            answer: Tensor = network(*(part[None, None] for part in parts))[0, 0]
            self._called()
            return answer[tile.inner].to(home)
        half = self.planes // 2
        planes = []
        for z in range(tile.inner[0].start, tile.inner[0].stop):
            window = slice(z - half, z + half + 1)
            seen = (part[None, window].contiguous(memory_format=torch.channels_last) for part in parts)
            planes.append(network(*seen)[0, half][tile.inner[1:]])
            self._called()
        return torch.stack(planes).to(home)

    def _called(self) -> None:
        self.calls += 1
        self.count.called()


class TiledDenoiser(Tiles):
    """A denoiser of whole images that works tile by tile.

    Parameters
    ----------
    denoiser : Denoiser
        The network with its preconditioning.
    domain, tile, device, count
        As for `Tiles`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        domain: Domain,
        tile: Sequence[int],
        device: torch.device,
        count: CallCount | None = None,
    ) -> None:
        planes = 0 if denoiser.arguments.dims == 3 else denoiser.arguments.channels
        super().__init__(domain, tile, device, planes=planes, count=count)
        self.denoiser = denoiser

    def __call__(self, x_t: Tensor, sigma: Tensor, *, known: Tensor | None = None, **condition: Any) -> Tensor:
        """Call D on a whole image.

        Parameters
        ----------
        x_t : Tensor, shape (1, 1, Z, Y, X)
            Image at level sigma.
        sigma : Tensor, shape (1,)
            The level.
        known : Tensor of bool, shape of `x_t`, optional
            False where `x_t` was not measured but filled in.
        **condition
            As for `Denoiser.forward`.

        Returns
        -------
        Tensor
            Shape of `x_t`.
        """
        level = sigma.to(self.device)
        if known is None:
            return self.apply(lambda x: self.denoiser(x, level, **condition), x_t)
        return self.apply(lambda x, k: self.denoiser(x, level, known=k, **condition), x_t, known)


def network_domain(network: UNet | ConditionalFlow, shape: Sequence[int]) -> Domain:
    """Give the domain of an image (Z, Y, X) for a network: its stride, its receptive field as halo, and the margin."""
    stride, reach = network.stride, network.receptive_field
    if network.arguments.dims == 2:  # planes; in 2.5D each with its neighbours
        neighbours = network.arguments.channels // 2 if isinstance(network, UNet) else 0
        stride, reach = (1, *stride), (neighbours, *reach)
    # a margin of one coarsest cell keeps the zeros that convolutions pad with away from the border's voxels
    margin = tuple(r if s == 1 else s * max(1, 8 // s) for s, r in zip(stride, reach, strict=True))
    return Domain(tuple(shape), tuple(stride), tuple(reach), margin)


def network_calls(denoiser: Denoiser, shape: Sequence[int], tile: Sequence[int]) -> int:
    """Count the network calls for an image (Z, Y, X) in tiles of at most `tile` voxels; 2D networks see planes."""
    domain = network_domain(denoiser.network, shape)
    tile = [max(t // s * s, s) for t, s in zip(tile, domain.stride, strict=True)]
    over = [-(-n // t) for n, t in zip(shape, tile, strict=True)]
    return (shape[0] if denoiser.arguments.dims == 2 else over[0]) * over[1] * over[2]


def keyed_noise(key: Key, first_plane: int = 0) -> Noise:
    """Give standard normals that depend on the key, the step, the plane and the place in the plane.

    Parameters
    ----------
    key : tuple of int
        What tells this stream from others.
    first_plane : int
        Number of the image's first plane in the volume.
    """

    def noise(step: int, like: Tensor) -> Tensor:
        planes = [
            np.random.Generator(
                np.random.Philox(np.random.SeedSequence([*key, step, first_plane + z]))
            ).standard_normal(tuple(like.shape[-2:]), dtype=np.float32)
            for z in range(like.shape[-3])
        ]
        return torch.from_numpy(np.stack(planes)).reshape(like.shape).to(like)

    return noise


def negated(noise: Noise) -> Noise:
    """Give the same normals with the other sign: the mate of a draw (`moments.py`)."""
    return lambda step, like: -noise(step, like)


def posterior_draw(
    form: Recorruption,
    denoise: Callable[..., Tensor],
    counts: Tensor,
    valid: Tensor | None,
    *,
    steps: int,
    noise: Noise,
    shortest: float = 1.0,
) -> Iterator[Tensor | None]:
    """Draw one clean image from the posterior of a measurement.

    Parameters
    ----------
    form : Recorruption
        The form of noise that the denoiser was trained with.
    denoise : callable
        The denoiser of whole images.
    counts : Tensor, shape (1, 1, Z, Y, X)
        Photo-electrons.
    valid : Tensor of bool or None
        False at hot pixels.
    steps : int
        Network calls, 2 or more.
    noise : Noise
        Source of what is random.
    shortest : float
        Exposure at which the photo-electrons were counted, in units of the training's measurements; photons only.

    Yields
    ------
    None or Tensor
        None after each step, and at last the draw, in photo-electrons.
    """
    if steps < 2:
        raise ValueError(f"steps is {steps}; a draw needs at least 2 network calls (18 is usual)")
    flat = counts.reshape(1, -1, *counts.shape[-2:])
    good = None if valid is None else valid.reshape(flat.shape)
    base = fill(flat, good).reshape(counts.shape)
    if form.corruption == "photon":

        def rate(reached: Tensor, exposure: float) -> Tensor:
            return photon_rate(form, denoise, reached, exposure)

        reached = base
        for _, counted in accumulate(rate, base, exposure_ladder(LONGEST, steps - 1, shortest=shortest), noise):
            reached = counted
            yield None
        yield rate(reached, LONGEST)
        return
    high = ABOVE * form.sigma_y
    # the extra noise up to `high`, keyed like every other step
    state = int(noise(steps, base[..., :1, :1]).view(torch.int32).sum()) & 0x7FFFFFFF
    generator = torch.Generator().manual_seed(state)
    level = torch.tensor([high])
    x = form.recorrupt(flat, good, level, generator).x_t.reshape(counts.shape)

    def at_level(x_t: Tensor, sigma: float) -> Tensor:
        return denoise(x_t, torch.tensor([sigma]), corruption="gaussian")

    for _, reached in dpm_sde(at_level, x, ladder(high, LOW, steps), noise):
        x = reached
        yield None
    yield form.photons(x)


def amortised_draw(
    form: Recorruption,
    posterior: AmortisedPosterior,
    light: Tensor,
    known: Tensor,
    *,
    tile: Sequence[int],
    device: torch.device,
    noise: Noise,
    channel: int = 0,
    count: CallCount | None = None,
) -> Tensor:
    """Draw one clean image from its posterior by one call of a flow.

    Parameters
    ----------
    form : Recorruption
        The form of noise that it was trained with.
    posterior : AmortisedPosterior
        The flow.
    light, known : Tensor, shape (1, 1, Z, Y, X)
        What the measurement shows (`amortised.evidence`).
    tile : sequence of int
        Largest tile (Z, Y, X), voxels.
    device : torch.device
        Where the flow is.
    noise : Noise
        Source of what is random.
    channel : int
        Image channel.
    count : CallCount, optional
        Told of every network call.

    Returns
    -------
    Tensor, shape (1, 1, Z, Y, X)
        Photo-electrons.
    """
    flow = posterior.flow
    planes = 0 if flow.arguments.dims == 3 else 1
    tiles = Tiles(network_domain(flow, tuple(light.shape[-3:])), tile, device, planes=planes, count=count)

    def draw(z: Tensor, light: Tensor, known: Tensor) -> Tensor:
        x: Tensor = posterior(z, light, known, channel)[0]
        return x

    return form.photons(tiles.apply(draw, noise(0, light), light, known))


def prior_draw(
    denoise: Callable[..., Tensor], shape: Sequence[int], *, steps: int, noise: Noise, centre: float, spread: float
) -> Tensor:
    """Draw a new image from the prior: the probability flow from pure noise down to 0.

    Parameters
    ----------
    denoise : callable
        The denoiser of whole images.
    shape : sequence of int
        (Z, Y, X).
    steps : int
        Network calls.
    noise : Noise
        Source of the first noise.
    centre, spread : float
        Mean and standard deviation of clean images; the first level is far above the spread.

    Returns
    -------
    Tensor, shape (1, 1, Z, Y, X)
        Scaled intensity.
    """
    high = min(HIGH, 10 * spread)
    x: Tensor = centre + (high**2 + spread**2) ** 0.5 * noise(0, torch.empty((1, 1, *shape)))

    def at_level(x_t: Tensor, sigma: float) -> Tensor:
        return denoise(x_t, torch.tensor([sigma]), corruption="gaussian")

    for _, reached in dpm_ode(at_level, x, ladder(high, LOW, steps), noise):
        x = reached
    return x
