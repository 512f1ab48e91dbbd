"""A (conditional) normalising flow for images: invertible, with an exact density, and tile by tile the same voxels.

A normalising flow (Dinh et al. 2017, RealNVP, arXiv 1605.08803; Kingma & Dhariwal 2018, Glow, arXiv 1807.03039) maps
standard normal noise z to an image of the same shape, given images y (`seen` in the code), by an invertible network

    x = G(z; y),    log p(x|y) = log N(z; 0, 1) − log |det dx/dz|,    z = G⁻¹(x; y)

G is built of layers whose Jacobians are triangular, or the same small matrix at every voxel: an *affine coupling*
scales and shifts half of the channels by what a small network says of the other half and of the features of y,
ActNorm scales and shifts each channel, and a *mixing* is an invertible matrix W = P L U across channels. These act at
several scales. Seen from x, each scale moves cells of voxels into the channels (space to depth), runs its steps, and
sets about half of the channels aside as finished noise. The last layer is x = m(y) + exp(s(y)) u, so that the flow is
a Gaussian with a mean and standard deviation of each voxel after the first training steps already. Conditioning on y
makes G a sampler of posteriors (Wang et al. 2024, FlowDiff, arXiv 2407.11162; Kelkar et al. 2023, AmbientFlow,
arXiv 2309.04856).

The noise that is set aside lies in z in the cell of voxels in which it acts, and nothing mixes distant voxels: there
are no statistics over space and no global attention. An output voxel therefore depends only on z and y within
`ConditionalFlow.receptive_field` of it, and noise that is keyed by absolute voxel gives the same image tile by tile.

The network knows nothing of noise models, priors or training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_ambient.choices import Size

from .unet import ChannelNorm, choose_arguments, depth_to_space, space_to_depth

COUPLING_BOUND = 2.0  # of a coupling's |log-scale|: one step scales by e⁻² to e² at most, many steps by more
SPREAD_BOUND = 8.0  # of |s(y)|: posteriors may be 3000 times narrower than the images' own spread, or wider
LEAST_STD = 1e-5  # of what initialises an ActNorm, once the images are of order one: less is float32's rounding

# One scale more nearly doubles the halo, which a volume has to pay along three axes, and would have 128 channels there.
SCALES: dict[int, int] = {2: 3, 3: 2}
STEPS: dict[str, int] = {"small": 4, "medium": 6, "large": 8}
HIDDEN: dict[int, dict[str, int]] = {
    2: {"small": 48, "medium": 96, "large": 128},
    3: {"small": 32, "medium": 64, "large": 96},
}
FEATURES: dict[int, dict[str, int]] = {
    2: {"small": 32, "medium": 64, "large": 96},
    3: {"small": 16, "medium": 32, "large": 64},
}


@dataclass(frozen=True)
class FlowArguments:
    """What is needed to build the same flow again.

    Parameters
    ----------
    dims : int
        2 for images, 3 for volumes.
    conditions : int
        Channels of the conditioning image y, at full resolution; 0 for an unconditional flow.
    strides : tuple of tuple of int
        Space-to-depth step of each scale, finest first, one tuple (Z, Y, X) or (Y, X) per scale. Each moves cells of
        two voxels or more into the channels.
    steps : int
        Coupling steps per scale.
    hidden : int
        Channels inside the networks of the couplings.
    features : int
        Channels of the features of y, at every scale.
    """

    dims: int = 2
    conditions: int = 1
    strides: tuple[tuple[int, ...], ...] = ((2, 2), (2, 2), (2, 2))
    steps: int = 4
    hidden: int = 48
    features: int = 32

    def __post_init__(self) -> None:
        if self.dims not in (2, 3):
            raise ValueError(f"dims is {self.dims}; a flow is 2D or 3D")
        if self.conditions < 0:
            raise ValueError(f"conditions is {self.conditions}; give the number of conditioning channels, or 0")
        if not self.strides or any(len(s) != self.dims for s in self.strides):
            raise ValueError(f"strides {self.strides} do not fit {self.dims}D: give one {self.dims}-tuple per scale")
        if any(min(s) < 1 or math.prod(s) < 2 for s in self.strides):
            raise ValueError(
                f"strides {self.strides}: a coupling needs two channels or more, so each scale must step by 2 or more "
                "along one axis at least, and by 1 or more along all"
            )
        for name in ("steps", "hidden", "features"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more")

    def to_dict(self) -> dict[str, Any]:
        """Give the arguments as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FlowArguments:
        """Make the arguments from what `to_dict` gave."""
        strides = tuple(tuple(int(n) for n in s) for s in values["strides"])
        return cls(**{**values, "strides": strides})


def choose_flow(size: Size = "small", *, dims: int = 2, conditions: int = 1, anisotropy: float = 1.0) -> FlowArguments:
    """Choose the flow's arguments for a size and a voxel shape.

    Parameters
    ----------
    size : {"small", "medium", "large"}
        `small` (under 0.4 million parameters) is for a CPU.
    dims : int
        2 or 3.
    conditions : int
        Channels of the conditioning image; 0 for an unconditional flow.
    anisotropy : float
        Voxel size along Z over voxel size along X: the scales step along Z where `unet.choose_arguments` pools.

    Returns
    -------
    FlowArguments
    """
    if size not in STEPS:
        raise ValueError(f"size is {size!r}; choose one of {', '.join(STEPS)}")
    if dims not in HIDDEN:
        raise ValueError(f"dims is {dims}; a flow is 2D or 3D")
    strides = choose_arguments("small", dims=dims, anisotropy=anisotropy).strides[: SCALES[dims]]
    return FlowArguments(
        dims=dims,
        conditions=conditions,
        strides=strides,
        steps=STEPS[size],
        hidden=HIDDEN[dims][size],
        features=FEATURES[dims][size],
    )


class ConditionalFlow(nn.Module):
    """The invertible map x = G(z; y) of one-channel images, and the density that it gives them.

    It computes in the type of its parameters, under autocast too: what bfloat16 rounds off cannot be inverted.

    Parameters
    ----------
    arguments : FlowArguments
        The architecture. A new flow's couplings and last layer are the identity, so that G is one linear map within
        each cell of voxels, a rotation: x is white noise.
    """

    initialised: Tensor

    def __init__(self, arguments: FlowArguments) -> None:
        super().__init__()
        self.arguments = arguments
        features = arguments.features if arguments.conditions else 0
        self.pyramid = Pyramid(arguments) if arguments.conditions else None
        self.frame = ActNorm(1)
        self.head: nn.Module | None = None
        if arguments.conditions:
            self.head = _conv(arguments.dims, features, 2 * math.prod(arguments.strides[0]), 1, zero=True)
        scales = []
        channels = 1
        for stride in arguments.strides:
            channels *= math.prod(stride)
            scales.append(
                nn.ModuleList(
                    Step(channels, features, arguments.hidden, arguments.dims) for _ in range(arguments.steps)
                )
            )
            channels = _passed(channels)
        self.scales = nn.ModuleList(scales)
        self.register_buffer("initialised", torch.tensor(False))

    @property
    def stride(self) -> tuple[int, ...]:
        """Total stride per axis: image sizes and tile origins are multiples of it."""
        return _steps(self.arguments)[-1]

    @property
    def receptive_field(self) -> tuple[int, ...]:
        """How far, in voxels per axis, a voxel of x = G(z; y) can see z and y; a multiple of the stride.

        The cell of a voxel at the coarsest scale begins up to (stride − 1) voxels from it, and every 3-wide
        convolution at a scale reaches one step of that scale further. What an inverse sees of y is wider: there the
        last layer comes first.
        """
        arguments, steps = self.arguments, _steps(self.arguments)
        reach = []
        for axis in range(arguments.dims):
            step = [s[axis] for s in steps]
            couplings = [Coupling.REACH * arguments.steps * s for s in step]
            ways = [sum(couplings)]
            if arguments.conditions:
                # y reaches a coupling past its first convolution, from the decoder of its scale upwards
                ways += [
                    sum(couplings[: k + 1]) - s + sum(2 * s for s in step[k:-1]) + Pyramid.encoder_reach(step)
                    for k, s in enumerate(step)
                ]
            reach.append(max(ways) + step[-1] - 1)
        return tuple(-(-r // s) * s for r, s in zip(reach, self.stride, strict=True))

    def forward(self, z: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Make images of noise.

        Parameters
        ----------
        z : Tensor, shape (B, 1, [Z,] Y, X)
            Standard normal noise; Z, Y, X multiples of `stride`.
        seen : Tensor, shape (B, arguments.conditions, [Z,] Y, X), optional
            The conditioning image y, of order one; None for an unconditional flow.

        Returns
        -------
        x : Tensor
            Shape of `z`.
        log_det : Tensor, shape (B,)
            log |det dx/dz| of each image.

        Raises
        ------
        ValueError
            If the shapes do not fit the flow, or `seen` is missing or not wanted.
        """
        self._check("z", z, seen)
        with torch.autocast(z.device.type, enabled=False):
            mean, log_std, features = self._read(seen, like=z)
            log_det = z.new_zeros(len(z))
            pieces = []
            h = z
            for stride in self.arguments.strides:
                h = space_to_depth(h, stride)
                pieces.append(h)
                h = h[:, : _passed(h.shape[1])]
            h = pieces[-1]
            for k in reversed(range(len(self.scales))):
                if k < len(pieces) - 1:
                    h = torch.cat((h, pieces[k][:, h.shape[1] :]), dim=1)
                for step in reversed(self._scale(k)):
                    h, change = step(h, features[k])
                    log_det = log_det + change
                h = depth_to_space(h, self.arguments.strides[k])
            x, change = self.frame(mean + log_std.exp() * h)
            return x, log_det + log_std.flatten(1).sum(1) + change

    def inverse(self, x: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Find the noise of which images are made.

        Parameters
        ----------
        x : Tensor, shape (B, 1, [Z,] Y, X)
            Images; Z, Y, X multiples of `stride`.
        seen : Tensor, shape (B, arguments.conditions, [Z,] Y, X), optional
            As for `forward`.

        Returns
        -------
        z : Tensor
            Shape of `x`.
        log_det : Tensor, shape (B,)
            log |det dz/dx| of each image.

        Raises
        ------
        ValueError
            As `forward`.
        """
        self._check("x", x, seen)
        with torch.autocast(x.device.type, enabled=False):
            return self._inverse(x, seen, initialise=False)

    def log_prob(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """Give the log-density log p(x|y) of whole images, in nats.

        Parameters
        ----------
        x, seen : Tensor
            As for `inverse`.

        Returns
        -------
        Tensor, shape (B,)
        """
        z, log_det = self.inverse(x, seen)
        z = z.flatten(1)
        return log_det - 0.5 * z.square().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)

    @torch.no_grad()
    def initialise(self, x: Tensor, seen: Tensor | None = None) -> None:
        """Set the shift and scale of every ActNorm, so that the noise of these images has mean 0 and variance 1.

        This is done once, before training (data-dependent initialisation; Salimans & Kingma 2016, arXiv 1602.07868).
        What it sets are parameters; a flow in use takes no statistics of what it is given.

        Parameters
        ----------
        x, seen : Tensor
            As for `inverse`: a typical batch.

        Raises
        ------
        ValueError
            If the shapes do not fit the flow, or the images do not vary.
        RuntimeError
            If the flow has been initialised already: that would undo what it has learned since.
        """
        if self.initialised:
            raise RuntimeError("this flow has been initialised already; build a new one to begin anew")
        self._check("x", x, seen)
        if not x.std() > 0:
            raise ValueError("the images have the same value everywhere, or are not finite; initialise with images")
        with torch.autocast(x.device.type, enabled=False):
            self._inverse(x, seen, initialise=True)
        self.initialised.fill_(True)

    def _inverse(self, x: Tensor, seen: Tensor | None, *, initialise: bool) -> tuple[Tensor, Tensor]:
        mean, log_std, features = self._read(seen, like=x)
        if initialise:
            self.frame.initialise(x, least=0)
        h, log_det = self.frame.inverse(x)
        h = (h - mean) * torch.exp(-log_std)
        log_det = log_det - log_std.flatten(1).sum(1)
        pieces: list[Tensor] = []
        for k, stride in enumerate(self.arguments.strides):
            h = space_to_depth(h, stride)
            for step in self._scale(k):
                if initialise:
                    step.initialise(h)
                h, change = step.inverse(h, features[k])
                log_det = log_det + change
            pieces.append(h)
            h = h[:, : _passed(h.shape[1])]
        z = pieces.pop()
        for stride in reversed(self.arguments.strides):
            z = depth_to_space(z, stride)
            if pieces:
                z = torch.cat((z, pieces.pop()[:, z.shape[1] :]), dim=1)
        return z, log_det

    def _scale(self, k: int) -> Sequence[Step]:
        return cast("Sequence[Step]", list(cast("nn.ModuleList", self.scales[k])))

    def _read(self, seen: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
        """Give m(y) and s(y) of every voxel, in the frame's units, and the features of y at every scale."""
        if self.pyramid is None or self.head is None:
            nothing = torch.zeros_like(like)
            return nothing, nothing, [None] * len(self.arguments.strides)
        finest, features = self.pyramid(seen)
        mean, log_std = self.head(finest).chunk(2, dim=1)
        first = self.arguments.strides[0]
        return depth_to_space(mean, first), depth_to_space(_bounded(log_std, SPREAD_BOUND), first), features

    def _check(self, name: str, image: Tensor, seen: Tensor | None) -> None:
        arguments, stride = self.arguments, self.stride
        axes = "ZYX"[-arguments.dims :]
        sizes = tuple(image.shape[2:])
        if image.ndim != arguments.dims + 2 or image.shape[1] != 1:
            raise ValueError(
                f"{name} has shape {tuple(image.shape)}; this {arguments.dims}D flow takes (B, 1, {', '.join(axes)})"
            )
        if 0 in sizes or any(n % s for n, s in zip(sizes, stride, strict=True)):
            raise ValueError(f"{name} has sizes {sizes} along {axes}; pad or crop them to multiples of {stride}")
        if arguments.conditions == 0:
            if seen is not None:
                raise ValueError("this flow is unconditional (conditions = 0); leave out seen")
            return
        expected = (len(image), arguments.conditions, *sizes)
        if seen is None:
            raise ValueError(f"this flow is conditional; give seen, of shape {expected} for this {name}")
        if tuple(seen.shape) != expected:
            raise ValueError(f"seen has shape {tuple(seen.shape)}; for this {name} and this flow it must be {expected}")


class Step(nn.Module):
    """One step at one scale: coupling, ActNorm, mixing, from z to x."""

    def __init__(self, channels: int, features: int, hidden: int, dims: int) -> None:
        super().__init__()
        self.coupling = Coupling(channels, features, hidden, dims)
        # seen from x the norm comes after the mixing, so that an initialised flow ends with variance 1
        self.norm = ActNorm(channels)
        self.mixing = Mixing(channels)

    def forward(self, h: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map (B, channels, ...) towards x; with the change of the log-determinant."""
        h, first = self.coupling(h, features)
        h, second = self.norm(h)
        h, third = self.mixing(h)
        return h, first + second + third

    def inverse(self, h: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map (B, channels, ...) towards z; with the change of the log-determinant."""
        h, third = self.mixing.inverse(h)
        h, second = self.norm.inverse(h)
        h, first = self.coupling.inverse(h, features)
        return h, first + second + third

    def initialise(self, h: Tensor) -> None:
        """Set the ActNorm for what comes from x."""
        self.norm.initialise(self.mixing.inverse(h)[0])


class ActNorm(nn.Module):
    """A shift and a scale of each channel; the identity until it is initialised or trained."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Scale, then shift; with the log-determinant, the same for every image."""
        return _per_channel(self.shift, h) + _per_channel(self.log_scale.exp(), h) * h, self._log_det(h)

    def inverse(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `forward`; with the log-determinant."""
        return (h - _per_channel(self.shift, h)) * _per_channel(torch.exp(-self.log_scale), h), -self._log_det(h)

    def initialise(self, h: Tensor, *, least: float = LEAST_STD) -> None:
        """Set shift and scale so that `inverse` gives each channel of `h` mean 0 and variance 1."""
        values = h.transpose(0, 1).flatten(1)
        std, mean = torch.std_mean(values, dim=1, correction=0)
        if not bool((std > least).all()):
            raise ValueError(
                f"a combination of neighbouring voxels hardly varies (standard deviation {std.min().item():.1g} of the "
                f"images' own, {least:g} is the least): initialise with more or other images, as noisy as they are"
            )
        self.shift.copy_(mean)
        self.log_scale.copy_(std.log())

    def _log_det(self, h: Tensor) -> Tensor:
        return _voxels(h) * self.log_scale.sum()


class Mixing(nn.Module):
    """An invertible matrix W = P L U across the channels of each voxel (Glow, equation 10); a rotation at first.

    P is a fixed permutation, L lower triangular with ones on the diagonal, U upper triangular with ±exp(log_diagonal)
    on the diagonal, the signs fixed; log |det W| is the sum of log_diagonal.
    """

    permutation: Tensor
    signs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0]
        permutation, lower, upper = (m.to(torch.get_default_dtype()) for m in torch.linalg.lu(rotation))
        self.register_buffer("permutation", permutation)
        self.register_buffer("signs", upper.diagonal().sign())
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(upper.diagonal().abs().log())

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply each voxel's channels by W; with the log-determinant, the same for every image."""
        lower, upper = self._factors()
        return _mix(self.permutation @ lower @ upper, h), self._log_det(h)

    def inverse(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply each voxel's channels by W⁻¹ = U⁻¹ L⁻¹ Pᵀ; with the log-determinant."""
        lower, upper = self._factors()
        half = torch.linalg.solve_triangular(lower, self.permutation.T, upper=False, unitriangular=True)
        return _mix(torch.linalg.solve_triangular(upper, half, upper=True), h), -self._log_det(h)

    def _factors(self) -> tuple[Tensor, Tensor]:
        ones = torch.ones_like(self.log_diagonal)
        lower = self.lower.tril(-1) + torch.diag(ones)
        return lower, self.upper.triu(1) + torch.diag(self.signs * self.log_diagonal.exp())

    def _log_det(self, h: Tensor) -> Tensor:
        return _voxels(h) * self.log_diagonal.sum()


class Coupling(nn.Module):
    """Scale and shift the second part b of the channels by what a small network says of the first part a and of y.

    b becomes exp(s(a, y)) b + t(a, y), with |s| < COUPLING_BOUND, and a stays; the log-determinant is the sum of s.
    Zero-initialised: the identity at first.
    """

    REACH = 2  # its 3-wide convolutions in a row

    def __init__(self, channels: int, features: int, hidden: int, dims: int) -> None:
        super().__init__()
        self.kept = channels // 2
        self.enter = _conv(dims, self.kept, hidden, 3)
        self.condition = _conv(dims, features, hidden, 1) if features else None
        self.middle = _conv(dims, hidden, hidden, 1)
        self.leave = _conv(dims, hidden, 2 * (channels - self.kept), 3, zero=True)

    def forward(self, h: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map (B, channels, ...) towards x; with the log-determinant of each image."""
        a, b = h[:, : self.kept], h[:, self.kept :]
        s, t = self._scale_and_shift(a, features)
        return torch.cat((a, torch.addcmul(t, s.exp(), b)), dim=1), s.flatten(1).sum(1)

    def inverse(self, h: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Undo `forward`; with the log-determinant of each image."""
        a, b = h[:, : self.kept], h[:, self.kept :]
        s, t = self._scale_and_shift(a, features)
        return torch.cat((a, (b - t) * torch.exp(-s)), dim=1), -s.flatten(1).sum(1)

    def _scale_and_shift(self, a: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        inner = self.enter(a)
        if self.condition is not None:
            inner = inner + self.condition(features)
        inner = functional.silu(self.middle(functional.silu(inner)))
        s, t = self.leave(inner).chunk(2, dim=1)
        return _bounded(s, COUPLING_BOUND), t


class Pyramid(nn.Module):
    """Features of the conditioning image at every scale: a small U-Net (see `unet.py`) that gives all its levels."""

    def __init__(self, arguments: FlowArguments) -> None:
        super().__init__()
        dims, width, strides = arguments.dims, arguments.features, arguments.strides
        conv = nn.Conv3d if dims == 3 else nn.Conv2d
        self.norms = ChannelNorm()
        self.stride = strides[0]
        self.strides = strides[1:]
        self.enter = _conv(dims, arguments.conditions * math.prod(self.stride), width, 3)
        self.encoder = nn.ModuleList(Residual(width, dims) for _ in self.strides)
        self.down = nn.ModuleList(
            conv(width, width, s, stride=s)  # type: ignore[arg-type]
            for s in self.strides
        )
        self.middle = Residual(width, dims)
        self.up = nn.ModuleList(_conv(dims, width, width * math.prod(s), 1) for s in self.strides)
        self.decoder = nn.ModuleList(Residual(width, dims) for _ in self.strides)

    @staticmethod
    def encoder_reach(step: Sequence[int]) -> int:
        """How far the convolutions before the decoder reach along an axis, for the scales' steps in voxels."""
        return step[0] + 2 * sum(step)

    def forward(self, seen: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map (B, conditions, ...) to features (B, features, ...).

        Returns
        -------
        finest : Tensor
            Features of the finest scale, which a linear estimate of x can reach unchanged.
        levels : list of Tensor
            Features of every scale, finest first, normed at each voxel.
        """
        h = self.enter(space_to_depth(seen, self.stride))
        skips = []
        for block, down in zip(self.encoder, self.down, strict=True):
            h = block(h)
            skips.append(h)
            h = down(h)
        h = self.middle(h)
        levels = [h]
        for k in reversed(range(len(self.strides))):
            h = self.decoder[k](skips.pop() + depth_to_space(self.up[k](h), self.strides[k]))
            levels.insert(0, h)
        return h, [self.norms(level) for level in levels]


class Residual(nn.Module):
    """Two convolutions beside a direct connection, through which a linear estimate can pass unchanged."""

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        self.first = _conv(dims, width, width, 3)
        self.second = _conv(dims, width, width, 3, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (B, width, ...)."""
        change: Tensor = self.second(functional.silu(self.first(x)))
        return x + change


def _conv(dims: int, channels: int, out: int, width: int, *, zero: bool = False) -> nn.Conv2d | nn.Conv3d:
    """Make a convolution that keeps the shape; with zero weights at first if asked."""
    conv = (nn.Conv3d if dims == 3 else nn.Conv2d)(channels, out, width, padding=width // 2)
    if zero:
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(cast("Tensor", conv.bias))
    return conv


def _bounded(values: Tensor, bound: float) -> Tensor:
    """Bound smoothly: the values where they are small, ±bound where they are large."""
    return bound * torch.tanh(values / bound)


def _mix(matrix: Tensor, h: Tensor) -> Tensor:
    """Multiply the channels of each voxel; by matmul, which unlike a convolution is not rounded to TF32 on a GPU."""
    return (matrix @ h.flatten(2)).reshape(h.shape)


def _per_channel(values: Tensor, h: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (h.ndim - 2))


def _voxels(h: Tensor) -> int:
    return math.prod(h.shape[2:])


def _passed(channels: int) -> int:
    """How many of a scale's channels go on to the next; the others are finished noise."""
    return channels // 2


def _steps(arguments: FlowArguments) -> list[tuple[int, ...]]:
    """Give the size of a cell of voxels at each scale, finest first."""
    total = (1,) * arguments.dims
    steps = []
    for stride in arguments.strides:
        total = tuple(a * b for a, b in zip(total, stride, strict=True))
        steps.append(total)
    return steps
