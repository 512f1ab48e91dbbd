"""What the instrument did to the light before the camera counted it: linear operators A in y = camera(A x).

    blur        (A x)(r) = Σ_s h(s) x(r - s)                      h the point-spread function, sum 1
    mask        (A x)(r) = m(r) x(r)                              m measured or not, illumination, dead pixels
    downsample  (A x)(R) = Σ x(r) over the voxels r of cell R     a binned or coarser camera
    A @ B       (A B) x = A (B x),  (A B)ᵀ = Bᵀ Aᵀ

x is the expected light of every voxel in photo-electrons, so A x is what the camera expects to count, and every
operator here gives light of 0 or more for light of 0 or more. Each knows its exact adjoint, ⟨A x, v⟩ = ⟨x, Aᵀ v⟩, also
at the borders. All work on tensors (B, C, [Z,] Y, X) of float32 or float64, on any device, and autograd runs through.

An operator also knows what a tile needs: its `halo`, its `stride`, and its `crop` to a region, so that a region
computed with its halo is the region of the whole. In the flow, the posterior methods and `restoration.py` take one;
`Identity` means denoising.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import fft
from torch import Tensor
from torch.nn import functional

__all__ = ["Blur", "Border", "Compose", "Downsample", "Identity", "Mask", "Operator", "OperatorError"]

Border = Literal["reflect", "zero", "wrap", "open"]
BORDERS: tuple[Border, ...] = ("reflect", "zero", "wrap", "open")
DARK: tuple[Border, ...] = ("zero", "open")
"""Borders beyond which there is no light, once what is open has been widened."""
Triple = tuple[int, int, int]

FEW_TAPS = 49
"""Kernels of up to so many voxels are summed tap by tap, larger ones go by Fourier transform (equally fast there)."""
BEYOND = 8
"""Voxels beyond an open border, along each axis that the PSF reaches over."""
SUM_TOLERANCE = 1e-3
"""How far a PSF's sum may be from 1; rounding of float32 files stays far below."""


class OperatorError(ValueError):
    """An operator cannot be made of what was given, or does not fit the image."""


class Operator(ABC):
    """A linear operator on images (B, C, [Z,] Y, X) in photo-electrons. `A @ B` applies B first."""

    halo: Triple = (0, 0, 0)
    """(Z, Y, X) voxels around a region that A or Aᵀ needs to be exact inside it; input voxels, whole strides."""
    stride: Triple = (1, 1, 1)
    """(Z, Y, X) input voxels per output voxel; regions to crop begin and end on multiples of it."""
    beyond: Triple = (0, 0, 0)
    """(Z, Y, X) measured voxels around an image that light may come from, though nobody measured there."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Apply A.

        Parameters
        ----------
        x : Tensor, shape (B, C, [Z,] Y, X)
            Expected light, photo-electrons; float32 or float64.

        Returns
        -------
        Tensor
            A x; its spatial shape is `output_shape` of x's.
        """

    @abstractmethod
    def adjoint(self, v: Tensor) -> Tensor:
        """Apply the adjoint: ⟨A x, v⟩ = ⟨x, Aᵀ v⟩ for all x and v.

        Parameters
        ----------
        v : Tensor, shape (B, C, [Z,] Y, X)
            Of a spatial shape that A gives; float32 or float64.

        Returns
        -------
        Tensor
            Aᵀ v; its spatial shape is `input_shape` of v's.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Record the operator: JSON-able names, shapes, and SHA-256 of arrays (as float32 or bool, in C order)."""

    @abstractmethod
    def describe(self) -> str:
        """Say what the operator does, in a few words."""

    def output_shape(self, spatial_input_shape: Sequence[int]) -> tuple[int, ...]:
        """Give the spatial shape of A x.

        Call it once with the shape of the whole volume before any `crop`: it is where an array that belongs to another
        volume is found out.

        Parameters
        ----------
        spatial_input_shape : sequence of int
            (Y, X) or (Z, Y, X) of x.

        Returns
        -------
        tuple of int

        Raises
        ------
        OperatorError
            If the operator does not fit that shape.
        """
        return _spatial(spatial_input_shape)

    def input_shape(self, spatial_output_shape: Sequence[int]) -> tuple[int, ...]:
        """Give the spatial shape of x for a measurement of `spatial_output_shape`; undoes `output_shape`."""
        return _spatial(spatial_output_shape)

    def crop(self, region: Sequence[slice]) -> Operator:
        """Give the operator of a region, to be applied to that region of x.

        What it computes is A's own answer, but for `halo` voxels along those sides of the region that are not sides of
        the volume.

        Parameters
        ----------
        region : sequence of slice
            ([Z,] Y, X) in voxels of the input, starts and stops given, on multiples of `stride`. It may reach beyond
            the volume, where per-voxel maps are reflected (… 2 1 0 1 2 …).

        Returns
        -------
        Operator

        Raises
        ------
        OperatorError
            If the region has no starts or stops, or is off the grid.
        """
        _spans(region, self.stride)
        return self

    def __matmul__(self, other: Operator) -> Operator:
        if not isinstance(other, Operator):
            return NotImplemented
        parts = [part for operator in (self, other) for part in _parts(operator) if not isinstance(part, Identity)]
        if len(parts) > 1:
            return Compose(*parts)
        return parts[0] if parts else Identity()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.describe()}>"


class Identity(Operator):
    """A x = x: the image is only noisy."""

    def forward(self, x: Tensor) -> Tensor:
        """See `Operator.forward`."""
        _checked(x)
        return x

    def adjoint(self, v: Tensor) -> Tensor:
        """See `Operator.adjoint`."""
        _checked(v)
        return v

    def to_dict(self) -> dict[str, Any]:
        """See `Operator.to_dict`."""
        return {"operator": "identity"}

    def describe(self) -> str:
        """See `Operator.describe`."""
        return "identity"


class Blur(Operator):
    """Convolution with a point-spread function.

    Parameters
    ----------
    psf : array_like, shape (Y, X) or (Z, Y, X)
        Point-spread function of 0 or more and sum 1, as `point_spread.prepare` and `point_spread.microscope_psf` make
        it. A plane blurs every plane of a stack alike. Any size; voxel n // 2 of an axis is the origin.
    border : {"reflect", "zero", "wrap", "open"}
        What lies beyond the border of the image: its mirror image about the outermost voxels (… 2 1 0 1 2 …), darkness,
        its opposite side, or what nobody knows. "reflect" is right for most specimens. "wrap" makes the operator
        diagonal in the Fourier domain (`transfer`); its `crop` is exact only where the halo does not reach beyond the
        volume. "open" is for PSFs that reach through the whole stack, as a widefield microscope's do: training and
        restoring then put `beyond` unmeasured voxels around the image (`opening.py`), and on images as wide as that
        the operator is the same as with "zero".
    beyond : int or sequence of int, optional
        With "open": measured voxels around the image, one number or (Z, Y, X); 8 along the axes that the PSF reaches
        over.

    Attributes
    ----------
    psf : ndarray of float64, read-only
    border : {"reflect", "zero", "wrap", "open"}

    Raises
    ------
    OperatorError
        If the PSF is not 2D or 3D, not finite, below zero somewhere, or does not sum to 1, or `beyond` makes no sense.

    Notes
    -----
    Large kernels go by Fourier transform, which may leave −1e-7 of the brightest light where there is none: clamp
    before taking logarithms.
    """

    def __init__(
        self, psf: ArrayLike, border: Border = "reflect", *, beyond: int | Sequence[int] | None = None
    ) -> None:
        kernel = np.array(psf, dtype=np.float64)
        if kernel.ndim not in (2, 3) or kernel.size == 0:
            raise OperatorError(f"the PSF has shape {kernel.shape}; give (Y, X) or (Z, Y, X)")
        if not np.isfinite(kernel).all():
            raise OperatorError("the PSF holds NaN or infinite values; point_spread.prepare says where")
        total = float(kernel.sum())
        if kernel.min() < 0 or abs(total - 1) > SUM_TOLERANCE:
            raise OperatorError(
                f"the PSF has its least value at {kernel.min():.4g} and sums to {total:.6g}; it must be 0 or more and "
                "sum to 1, so that light is kept: use point_spread.prepare (for losses of light multiply by a Mask)"
            )
        if border not in BORDERS:
            raise OperatorError(f"border is {border!r}; choose reflect, zero, wrap or open")
        kernel /= total
        kernel.setflags(write=False)
        self.psf, self.border = kernel, border
        # Aᵀ folds a mirror's far end onto the voxel n // 2 before the border: one more keeps it off the core
        mirror = int(border == "reflect")
        reach = [n // 2 + mirror if n > 1 else 0 for n in kernel.shape]
        self.halo = (0, reach[0], reach[1]) if kernel.ndim == 2 else (reach[0], reach[1], reach[2])
        self.beyond = _beyond(beyond, self.halo, border)
        self._axes = tuple(range(-kernel.ndim, 0))
        self._kept = _Kept()

    def forward(self, x: Tensor) -> Tensor:
        """See `Operator.forward`."""
        return self._apply(x, transposed=False)

    def adjoint(self, v: Tensor) -> Tensor:
        """See `Operator.adjoint`."""
        return self._apply(v, transposed=True)

    def transfer(
        self,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Give the transfer function of the PSF on a periodic grid.

        With border "wrap", A x = irfftn(H · rfftn(x), s=shape) over the PSF's axes, and Aᵀ has H's conjugate; with the
        other borders that holds only farther than `halo` from the border.

        Parameters
        ----------
        shape : sequence of int
            Grid along the PSF's axes, (Y, X) for a plane and (Z, Y, X) for a volume; may be smaller than the PSF, which
            then laps over itself.
        dtype : torch.dtype
            float32 or float64, the images' type.
        device : torch.device or str
            Where the images are.

        Returns
        -------
        Tensor, shape (..., X // 2 + 1), complex
            H, in the layout of `torch.fft.rfftn`; H = 1 at frequency zero.
        """
        sizes = tuple(int(n) for n in shape)
        if len(sizes) != self.psf.ndim or min(sizes) < 1:
            raise OperatorError(f"shape is {sizes}; the PSF has {self.psf.ndim} axes: give as many voxel counts")

        def make() -> Tensor:
            kernel = self.psf
            for axis, n in enumerate(sizes):
                at = (np.arange(kernel.shape[axis]) - self.psf.shape[axis] // 2) % n
                folded = np.zeros((*kernel.shape[:axis], n, *kernel.shape[axis + 1 :]))
                np.add.at(np.moveaxis(folded, axis, 0), at, np.moveaxis(kernel, axis, 0))
                kernel = folded
            return _rfftn(torch.as_tensor(kernel, dtype=dtype, device=device), sizes)

        return self._kept.get(("wrap", sizes, dtype, torch.device(device)), make)

    def to_dict(self) -> dict[str, Any]:
        """See `Operator.to_dict`."""
        more = {"beyond": list(self.beyond)} if self.border == "open" else {}
        return {"operator": "blur", "border": self.border, **more, "psf": _fingerprint(self.psf.astype(np.float32))}

    def describe(self) -> str:
        """See `Operator.describe`."""
        more = f" ({_times(self.beyond)} voxels)" if self.border == "open" else ""
        return f"blur by a PSF of {_times(self.psf.shape)} voxels, border {self.border}{more}"

    def _apply(self, x: Tensor, *, transposed: bool) -> Tensor:
        shape = _checked(x)
        if len(shape) < self.psf.ndim:
            raise OperatorError(
                f"a PSF of shape {self.psf.shape} (Z, Y, X) cannot blur an image of shape {shape} (Y, X); take the "
                "PSF's focal plane, or a stack"
            )
        if self.psf.size <= FEW_TAPS:
            return self._backward_taps(x) if transposed else self._forward_taps(x)
        if self.border == "wrap":
            sizes = shape[-self.psf.ndim :]
            gain = self.transfer(sizes, dtype=x.dtype, device=x.device)
            return self._filtered(x, gain.conj() if transposed else gain, sizes)
        return self._backward_fourier(x) if transposed else self._forward_fourier(x)

    # y(i) = Σ_j h(j) e(i + K - 1 - j), where e is x with K - 1 voxels of border: K - 1 - K//2 before, K//2 behind.

    def _forward_taps(self, x: Tensor) -> Tensor:
        extended = self._extend(x)
        result = torch.zeros_like(x)
        for weight, part in self._taps(extended, x.shape):
            result.add_(part, alpha=weight)
        return result

    def _backward_taps(self, v: Tensor) -> Tensor:
        extended = v.new_zeros(self._extended_shape(v.shape))
        for weight, part in self._taps(extended, v.shape):
            part.add_(v, alpha=weight)
        return self._fold(extended, v.shape)

    def _taps(self, extended: Tensor, shape: Sequence[int]) -> Iterator[tuple[float, Tensor]]:
        """Yield each voxel of the PSF with the part of `extended` that it takes to the image."""
        for at in zip(*np.nonzero(self.psf), strict=True):
            part = extended
            for axis, j in zip(self._axes, at, strict=True):
                part = part.narrow(axis, self.psf.shape[axis] - 1 - int(j), shape[axis])
            yield float(self.psf[at]), part

    def _forward_fourier(self, x: Tensor) -> Tensor:
        extended = self._extend(x)
        gain, sizes = self._padded_transfer(extended)
        result = self._filtered(extended, gain, sizes)
        for axis in self._axes:
            result = result.narrow(axis, self.psf.shape[axis] - 1, x.shape[axis])
        return result.contiguous()

    def _backward_fourier(self, v: Tensor) -> Tensor:
        ends = [(self.psf.shape[axis] - 1, 0) for axis in self._axes]
        extended = functional.pad(v, [n for pair in reversed(ends) for n in pair])
        gain, sizes = self._padded_transfer(extended)
        result = self._filtered(extended, gain.conj(), sizes)
        for axis in self._axes:
            result = result.narrow(axis, 0, extended.shape[axis])
        return self._fold(result, v.shape)

    def _filtered(self, x: Tensor, gain: Tensor, sizes: Sequence[int]) -> Tensor:
        filtered: Tensor = torch.fft.irfftn(_rfftn(x, sizes) * gain, s=list(sizes), dim=self._axes)
        return filtered

    def _padded_transfer(self, extended: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Transform of the PSF whose first voxel lies at the origin, on a grid of easy length around `extended`."""
        sizes = tuple(int(fft.next_fast_len(extended.shape[axis], real=True)) for axis in self._axes)

        def make() -> Tensor:
            kernel = torch.as_tensor(self.psf.copy(), dtype=extended.dtype, device=extended.device)
            return _rfftn(kernel, sizes)

        return self._kept.get((self.border, sizes, extended.dtype, extended.device), make), sizes

    def _ends(self, axis: int) -> tuple[int, int]:
        n = self.psf.shape[axis]
        return n - 1 - n // 2, n // 2

    def _extended_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        ends = len(shape) - self.psf.ndim
        return (*shape[:ends], *(shape[axis] + self.psf.shape[axis] - 1 for axis in self._axes))

    def _extend(self, x: Tensor) -> Tensor:
        if self.border in DARK:
            return functional.pad(x, [n for axis in reversed(self._axes) for n in self._ends(axis)])
        for axis in self._axes:
            before, behind = self._ends(axis)
            index = _fold_index(-before, x.shape[axis] + behind, x.shape[axis], self.border)
            x = x.index_select(axis, torch.as_tensor(index, device=x.device))
        return x

    def _fold(self, extended: Tensor, shape: Sequence[int]) -> Tensor:
        """Give the transpose of `_extend`: what lies beyond the border is added where it was copied from."""
        for axis in self._axes:
            before, behind = self._ends(axis)
            n = shape[axis]
            inner = extended.narrow(axis, before, n)
            if self.border not in DARK and before + behind > 0:
                inner = inner.clone()
                # each end for itself: then no voxel is added to twice at once, in an order that would depend on luck
                for start, length in ((0, before), (before + n, behind)):
                    index = _fold_index(start - before, start - before + length, n, self.border)
                    inner.index_add_(
                        axis, torch.as_tensor(index, device=extended.device), extended.narrow(axis, start, length)
                    )
            extended = inner
        return extended.contiguous()


class Mask(Operator):
    """Multiplication by a map: which voxels were measured, how they were lit, how much each pixel sees.

    Parameters
    ----------
    map : array_like, shape (Y, X) or (Z, Y, X)
        Bool (True: measured), or factors of 0 or more. A plane holds for every plane of a stack.

    Attributes
    ----------
    map : ndarray of bool or float32, read-only

    Raises
    ------
    OperatorError
        If the map is not 2D or 3D, not finite, or below zero somewhere.
    """

    def __init__(self, map: ArrayLike) -> None:
        values = np.asarray(map)
        if values.ndim not in (2, 3) or values.size == 0:
            raise OperatorError(f"the mask has shape {values.shape}; give (Y, X) or (Z, Y, X)")
        if values.dtype.kind not in "biuf":
            raise OperatorError(f"the mask has data type {values.dtype}; give bool or factors")
        if not np.isfinite(values).all() or values.min() < 0:
            raise OperatorError(
                "the mask holds NaN, infinite or negative values; set voxels that were not measured to 0 (or give "
                "numpy.isfinite(image) as the mask)"
            )
        copied = np.array(values, dtype=bool if values.dtype.kind == "b" else np.float32)
        copied.setflags(write=False)
        self.map: NDArray[np.bool_] | NDArray[np.float32] = copied
        self._kept = _Kept()

    def forward(self, x: Tensor) -> Tensor:
        """See `Operator.forward`."""
        self.output_shape(_checked(x))
        factors = self._kept.get(
            (x.dtype, x.device), lambda: torch.as_tensor(self.map.copy(), dtype=x.dtype, device=x.device)
        )
        return x * factors

    def adjoint(self, v: Tensor) -> Tensor:
        """See `Operator.adjoint`; a mask is its own."""
        return self.forward(v)

    def output_shape(self, spatial_input_shape: Sequence[int]) -> tuple[int, ...]:
        """See `Operator.output_shape`."""
        shape = _spatial(spatial_input_shape)
        if shape[-self.map.ndim :] != self.map.shape:
            raise OperatorError(
                f"the mask has shape {self.map.shape}, the image {shape}; give a mask of the image's shape, or of one "
                "plane (Y, X)"
            )
        return shape

    def input_shape(self, spatial_output_shape: Sequence[int]) -> tuple[int, ...]:
        """See `Operator.input_shape`."""
        return self.output_shape(spatial_output_shape)

    def crop(self, region: Sequence[slice]) -> Mask:
        """See `Operator.crop`."""
        spans = _spans(region, self.stride)
        if len(spans) < self.map.ndim:
            raise OperatorError(
                f"the region has {len(spans)} axes, the mask {self.map.ndim}; give slices of Z, Y and X"
            )
        values = self.map
        for axis, (start, stop) in enumerate(spans[-values.ndim :]):
            n = values.shape[axis]
            inside = 0 <= start and stop <= n
            index = slice(start, stop) if inside else _fold_index(start, stop, n, "reflect")
            values = values[(slice(None),) * axis + (index,)]
        return Mask(values)

    def to_dict(self) -> dict[str, Any]:
        """See `Operator.to_dict`."""
        return {"operator": "mask", "map": _fingerprint(self.map)}

    def describe(self) -> str:
        """See `Operator.describe`."""
        size = _times(self.map.shape)
        if self.map.dtype == bool:
            return f"mask, {100 * float(self.map.mean()):.4g} % of {size} voxels measured"
        return f"factors from {float(self.map.min()):.4g} to {float(self.map.max()):.4g} for {size} voxels"


class Downsample(Operator):
    """Coarser voxels: the light of all voxels of a cell together.

    Parameters
    ----------
    factor : int or sequence of int
        Voxels per cell: (Y, X) or (Z, Y, X). A single number holds for Y and X, as a camera bins, and leaves Z alone.
    reduce : {"sum", "mean"}
        "sum": the coarse voxel counts the photo-electrons of the whole cell, as a larger pixel does, so light is kept.
        "mean": it was exposed as if it were one fine voxel, as when planes are recorded at larger steps.

    Raises
    ------
    OperatorError
        If the factor is not made of whole numbers of 1 or more.
    """

    def __init__(self, factor: int | Sequence[int], reduce: Literal["sum", "mean"] = "sum") -> None:
        factors = tuple(np.atleast_1d(np.asarray(factor)).tolist())
        if np.ndim(factor) == 0:
            factors *= 2
        if len(factors) not in (2, 3) or not all(type(n) is int and n >= 1 for n in factors):
            raise OperatorError(
                f"factor is {factor!r}; give a whole number of 1 or more, or (Y, X) or (Z, Y, X) of them"
            )
        if reduce not in ("sum", "mean"):
            raise OperatorError(f"reduce is {reduce!r}; choose sum (photons of the cell together) or mean")
        z, y, x = (1, *factors) if len(factors) == 2 else factors
        self.stride = (int(z), int(y), int(x))
        self.reduce: Literal["sum", "mean"] = reduce
        self._share = 1.0 if reduce == "sum" else 1.0 / math.prod(self.stride)

    def forward(self, x: Tensor) -> Tensor:
        """See `Operator.forward`."""
        shape = self.output_shape(_checked(x))
        cells = [n for size, step in zip(shape, self.stride[-len(shape) :], strict=True) for n in (size, step)]
        inside = tuple(range(3, 3 + 2 * len(shape), 2))
        return x.reshape(*x.shape[:2], *cells).sum(inside) * self._share

    def adjoint(self, v: Tensor) -> Tensor:
        """See `Operator.adjoint`."""
        shape = _checked(v)
        fine = self.input_shape(shape)
        spread = v * self._share
        for axis, step in enumerate(self.stride[-len(shape) :]):
            spread = spread.unsqueeze(3 + 2 * axis)
            spread = spread.expand(*(step if i == 3 + 2 * axis else -1 for i in range(spread.ndim)))
        return spread.reshape(*v.shape[:2], *fine)

    def output_shape(self, spatial_input_shape: Sequence[int]) -> tuple[int, ...]:
        """See `Operator.output_shape`."""
        shape = self._fitting(spatial_input_shape)
        steps = self.stride[-len(shape) :]
        if any(n % step for n, step in zip(shape, steps, strict=True)):
            raise OperatorError(
                f"an image of shape {shape} cannot be cut into cells of {_times(steps)} voxels; crop it to multiples"
            )
        return tuple(n // step for n, step in zip(shape, steps, strict=True))

    def input_shape(self, spatial_output_shape: Sequence[int]) -> tuple[int, ...]:
        """See `Operator.input_shape`."""
        shape = self._fitting(spatial_output_shape)
        return tuple(n * step for n, step in zip(shape, self.stride[-len(shape) :], strict=True))

    def to_dict(self) -> dict[str, Any]:
        """See `Operator.to_dict`."""
        return {"operator": "downsample", "factor": list(self.stride), "reduce": self.reduce}

    def describe(self) -> str:
        """See `Operator.describe`."""
        return f"{self.reduce} over cells of {_times(self.stride)} voxels"

    def _fitting(self, shape: Sequence[int]) -> tuple[int, ...]:
        sizes = _spatial(shape)
        if len(sizes) == 2 and self.stride[0] > 1:
            raise OperatorError(f"factor is {self.stride} (Z, Y, X), the image is a plane {sizes}; give (Y, X) factors")
        return sizes


class Compose(Operator):
    """One operator after another; `A @ B` makes it.

    Parameters
    ----------
    *operators : Operator
        In the order of the formula: the last is applied first.
    """

    def __init__(self, *operators: Operator) -> None:
        if not operators:
            raise OperatorError("Compose got no operators; give one or more, or use Identity()")
        self.operators = tuple(part for operator in operators for part in _parts(operator))
        reach, step = [0, 0, 0], [1, 1, 1]
        for operator in reversed(self.operators):
            reach = [r + h * s for r, h, s in zip(reach, operator.halo, step, strict=True)]
            step = [s * t for s, t in zip(step, operator.stride, strict=True)]
        z, y, x = (-(-r // s) * s for r, s in zip(reach, step, strict=True))
        self.halo, self.stride = (z, y, x), (step[0], step[1], step[2])
        outside = [max(part.beyond[axis] for part in self.operators) for axis in range(3)]
        self.beyond = (outside[0], outside[1], outside[2])

    def forward(self, x: Tensor) -> Tensor:
        """See `Operator.forward`."""
        for operator in reversed(self.operators):
            x = operator.forward(x)
        return x

    def adjoint(self, v: Tensor) -> Tensor:
        """See `Operator.adjoint`."""
        for operator in self.operators:
            v = operator.adjoint(v)
        return v

    def output_shape(self, spatial_input_shape: Sequence[int]) -> tuple[int, ...]:
        """See `Operator.output_shape`."""
        shape = _spatial(spatial_input_shape)
        for operator in reversed(self.operators):
            shape = operator.output_shape(shape)
        return shape

    def input_shape(self, spatial_output_shape: Sequence[int]) -> tuple[int, ...]:
        """See `Operator.input_shape`."""
        shape = _spatial(spatial_output_shape)
        for operator in self.operators:
            shape = operator.input_shape(shape)
        return shape

    def crop(self, region: Sequence[slice]) -> Compose:
        """See `Operator.crop`."""
        spans = _spans(region, self.stride)
        cut = []
        for operator in reversed(self.operators):
            cut.append(operator.crop([slice(a, b) for a, b in spans]))
            steps = operator.stride[-len(spans) :]
            spans = tuple((a // s, b // s) for (a, b), s in zip(spans, steps, strict=True))
        return Compose(*reversed(cut))

    def to_dict(self) -> dict[str, Any]:
        """See `Operator.to_dict`; the operators stand in the order they are applied in."""
        return {"operator": "compose", "applied": [operator.to_dict() for operator in reversed(self.operators)]}

    def describe(self) -> str:
        """See `Operator.describe`."""
        return "; then ".join(operator.describe() for operator in reversed(self.operators))


class _Kept:
    """The tensor made last, kept for the dtype, device and shape it was made for; left behind when pickled."""

    def __init__(self) -> None:
        self._last: tuple[Hashable, Tensor] | None = None

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        last = self._last
        if last is None or last[0] != key:
            # autograd refuses tensors that were made in inference mode, and the next caller may need it
            with torch.inference_mode(False), torch.no_grad():
                last = (key, make())
            self._last = last
        return last[1]

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return _Kept, ()


def _beyond(given: int | Sequence[int] | None, halo: Triple, border: Border) -> Triple:
    """Give how many voxels lie beyond an open border."""
    if border != "open":
        if given is not None:
            raise OperatorError(
                f"beyond is {given}, and the border {border}; only open borders have voxels beyond them"
            )
        return (0, 0, 0)
    voxels = [BEYOND] * 3 if given is None else [given] * 3 if isinstance(given, int) else [int(n) for n in given]
    if len(voxels) != 3 or min(voxels) < 0:
        raise OperatorError(f"beyond is {given}; give a number of voxels of 0 or more, or (Z, Y, X) of them")
    z, y, x = (n if reach else 0 for n, reach in zip(voxels, halo, strict=True))
    return z, y, x


def _parts(operator: Operator) -> tuple[Operator, ...]:
    return operator.operators if isinstance(operator, Compose) else (operator,)


def _rfftn(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Transform the last axes, padded with zeros to `sizes`."""
    spectrum: Tensor = torch.fft.rfftn(x, s=list(sizes), dim=tuple(range(-len(sizes), 0)))
    return spectrum


def _checked(x: Tensor) -> tuple[int, ...]:
    """Give the spatial shape of an image that operators can take."""
    if x.ndim not in (4, 5):
        raise OperatorError(f"the image has shape {tuple(x.shape)}; give (B, C, Y, X) or (B, C, Z, Y, X)")
    if x.dtype not in (torch.float32, torch.float64):
        raise OperatorError(f"the image is {x.dtype}; convert it to float32 or float64")
    return tuple(x.shape[2:])


def _spatial(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(int(n) for n in shape)
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise OperatorError(f"the spatial shape is {sizes}; give (Y, X) or (Z, Y, X)")
    return sizes


def _spans(region: Sequence[slice], stride: Triple) -> tuple[tuple[int, int], ...]:
    """Give (start, stop) of each slice, which must lie on the stride's grid."""
    spans = []
    for part, step in zip(region, stride[-len(region) :] if len(region) in (2, 3) else (), strict=False):
        if part.start is None or part.stop is None or part.step not in (None, 1) or part.start >= part.stop:
            raise OperatorError(f"the region has {part}; give every slice a start and a larger stop, and no step")
        if part.start % step or part.stop % step:
            raise OperatorError(
                f"the region {part.start}:{part.stop} does not begin and end on multiples of {step}; widen it to them"
            )
        spans.append((int(part.start), int(part.stop)))
    if len(spans) not in (2, 3):
        raise OperatorError(f"the region has {len(region)} slices; give (Y, X) or (Z, Y, X)")
    return tuple(spans)


def _fold_index(start: int, stop: int, n: int, border: Border) -> NDArray[np.int64]:
    """Say for the coordinates start … stop - 1 which of the n voxels lies there beyond the border."""
    index = np.arange(start, stop, dtype=np.int64)
    if border == "wrap" or n == 1:
        return index % n
    folded = index % (2 * (n - 1))
    return np.minimum(folded, 2 * (n - 1) - folded)


def _fingerprint(array: NDArray[Any]) -> dict[str, Any]:
    plain = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "sha256": hashlib.sha256(plain.tobytes()).hexdigest(),
    }


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))
