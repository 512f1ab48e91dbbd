"""A lazy image with its axes, voxel size and history.

A `Volume` is a dask array and what makes its numbers a measurement: which dimension is which (`axes`, in the
order T, C, Z, Y, X), how large a step along each is (`scale` in `units`, only where it is *known*), the
channels' names, and what was done to it (`history`). The physical position of voxel i along an axis is
``scale * i``.

Every way into the program (files here, napari layers in `widgets/`, arrays in notebooks) makes a `Volume`,
and every way out starts from one.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np

from napari_ambient.volumes.errors import AxesError, VolumeError
from napari_ambient.volumes.units import MICROMETERS, SECONDS

AXES = "TCZYX"
"""The axes a volume may have, in the order in which it has them."""


def check_axes(axes: str) -> None:
    """Raise unless the letters are among TCZYX, appear once, and end with YX.

    Parameters
    ----------
    axes : str
        One letter per dimension, slowest first, as numpy counts them.

    Raises
    ------
    AxesError
        If not.
    """
    rule = (
        "axes name the dimensions of the array, slowest first, each once, out of T (time), C (channel), Z, "
        f"Y, X, and end with YX: 'ZYX' for a stack of planes, say; got {axes!r}"
    )
    unknown = [letter for letter in axes if letter not in AXES]
    if unknown:
        raise AxesError(f"unknown axes {', '.join(map(repr, unknown))}: {rule}")
    twice = sorted({letter for letter in axes if axes.count(letter) > 1}, key=AXES.index)
    if twice:
        raise AxesError(f"axis {', '.join(twice)} appears more than once: {rule}")
    if not axes.endswith("YX"):
        raise AxesError(f"the last two axes are not Y and X: {rule}")


def canonical(axes: str) -> str:
    """Return the same letters in the order T, C, Z, Y, X."""
    return "".join(sorted(axes, key=AXES.index))


@dataclass(frozen=True, eq=False)
class Volume:
    """A lazy image with its axes, voxel size and history.

    Parameters
    ----------
    data : dask array
        One dimension per letter of `axes`; integers or floats of at most 64 bits. Nothing is computed or read
        until it is needed.
    axes : str
        Which of T, C, Z, Y, X the dimensions are, in that order; ends with "YX".
    scale : mapping of str to float
        Physical step along an axis, for the axes where it is known. An unknown step is absent, never 1.0.
    units : mapping of str to str
        Unit of each known step, spelled as OME-NGFF does ("micrometer", "second", …).
    channel_names : tuple of str
        One name per channel; a volume without a C axis may have one name. Empty when unknown.
    name : str
        What to call it.
    history : tuple of mappings
        What was done to it, newest last: JSON-able records (prior hash, settings, seed, version, …).
    source : str or None
        The path it was opened from.
    first_channel : int
        Number of its first channel in the image that `channel` took it from: what a restoration draws at random
        in a channel is the same whether the channel was taken out before or not.

    Raises
    ------
    VolumeError, AxesError
        If these do not fit together.
    """

    data: da.Array
    axes: str
    scale: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    channel_names: tuple[str, ...] = ()
    name: str = ""
    history: tuple[Mapping[str, Any], ...] = ()
    source: str | None = None
    first_channel: int = 0

    def __post_init__(self) -> None:
        """Check that the fields fit together, and bring them into one form."""
        if not isinstance(self.data, da.Array):
            raise VolumeError(
                f"data is a {type(self.data).__name__}, not a dask array; use Volume.from_array(array, axes)"
            )
        check_axes(self.axes)
        if self.axes != canonical(self.axes):
            raise AxesError(f"axes {self.axes!r} are not in the order T, C, Z, Y, X; Volume.from_array transposes")
        if self.data.ndim != len(self.axes):
            raise AxesError(
                f"an array of shape {self.data.shape} has {self.data.ndim} dimensions, but axes "
                f"{self.axes!r} name {len(self.axes)}"
            )
        if any(math.isnan(n) for n in self.data.shape):
            raise VolumeError(
                f"the array's shape {self.data.shape} is not known; call compute_chunk_sizes() on it first"
            )
        empty = [axis for axis, n in zip(self.axes, self.data.shape, strict=True) if n == 0]
        if empty:
            raise VolumeError(f"axis {', '.join(empty)} has size 0 in shape {self.data.shape}: there is no image")
        _check_dtype(self.dtype)
        if not self.dtype.isnative:
            object.__setattr__(self, "data", self.data.astype(self.dtype.newbyteorder("=")))
        object.__setattr__(self, "scale", {axis: float(self.scale[axis]) for axis in self.axes if axis in self.scale})
        object.__setattr__(self, "units", {axis: self.units[axis] for axis in self.axes if axis in self.units})
        object.__setattr__(self, "channel_names", tuple(self.channel_names))
        object.__setattr__(self, "history", tuple(self.history))
        self._check_scale()
        self._check_names()
        try:
            json.dumps(self.history, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise VolumeError(f"the history cannot be stored as JSON ({error}); use plain numbers and text") from error

    def _check_scale(self) -> None:
        for axis, step in self.scale.items():
            if axis == "C":
                raise VolumeError("channels have no physical step; leave C out of the scale")
            if not (math.isfinite(step) and step > 0):
                raise VolumeError(f"the step along {axis} is {step}; it must be a positive number, or absent")
            allowed = SECONDS if axis == "T" else MICROMETERS
            if self.units.get(axis) not in allowed:
                raise VolumeError(
                    f"the unit of axis {axis} is {self.units.get(axis)!r}; allowed are OME-NGFF's units of "
                    f"{'time: second, millisecond' if axis == 'T' else 'space: micrometer, nanometer'}, …"
                )
        if set(self.units) != set(self.scale):
            raise VolumeError(f"units are given for {sorted(self.units)}, but steps for {sorted(self.scale)}")

    def _check_names(self) -> None:
        channels = self.sizes.get("C", 1)
        if self.channel_names and len(self.channel_names) != channels:
            raise VolumeError(f"{len(self.channel_names)} channel names {self.channel_names} for {channels} channels")
        for text in (self.name, *self.channel_names):
            if not isinstance(text, str) or any(ord(letter) < 32 for letter in text):
                raise VolumeError(f"the name {text!r} is not plain text without control characters")

    @classmethod
    def from_array(
        cls,
        array: Any,
        axes: str | None = None,
        *,
        voxel_size: Mapping[str, float | None] | Sequence[float | None] | None = None,
        channel_names: Sequence[str] = (),
        name: str = "",
        history: Sequence[Mapping[str, Any]] = (),
    ) -> Volume:
        """Make a volume of an array.

        Parameters
        ----------
        array : numpy or dask array
            Integers, floats, or bool (which becomes uint8, 0 and 1).
        axes : str, optional
            The array's dimensions in *its* order, ending with "YX"; others than TCZYX ("ZCYX") are
            transposed. May be left out for a two-dimensional array, "YX".
        voxel_size : mapping or sequence of float, optional
            In µm: {"Z": 0.3, "Y": 0.1, "X": 0.1}, or one number per spatial axis in the order Z, Y, X. None
            (for one axis or altogether) means unknown.
        channel_names : sequence of str
            One per channel.
        name : str
            What to call it.
        history : sequence of mappings
            What was done to it so far.

        Returns
        -------
        Volume

        Raises
        ------
        AxesError
            If `axes` is missing for more than two dimensions, or does not fit.
        """
        plain = array if isinstance(array, da.Array) else np.asarray(array)
        if plain.dtype == bool:
            plain = plain.astype(np.uint8)
        _check_dtype(plain.dtype)
        data = plain if isinstance(plain, da.Array) else da.from_array(plain)
        if axes is None:
            if data.ndim != 2:
                raise AxesError(unnamed_axes_message("the array", "?" * max(data.ndim - 2, 0) + "YX", data.shape))
            axes = "YX"
        check_axes(axes)
        if data.ndim != len(axes):
            raise AxesError(
                f"an array of shape {data.shape} has {data.ndim} dimensions, but axes {axes!r} name {len(axes)}"
            )
        ordered = canonical(axes)
        if ordered != axes:
            data = data.transpose([axes.index(axis) for axis in ordered])
        scale = voxel_size_scale(voxel_size, ordered)
        return cls(
            data=data,
            axes=ordered,
            scale=scale,
            units=dict.fromkeys(scale, "micrometer"),
            channel_names=tuple(channel_names),
            name=name,
            history=tuple(history),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(int(n) for n in self.data.shape)

    @property
    def sizes(self) -> dict[str, int]:
        """Voxels by axis: {"T": 34, "Z": 81, "Y": 512, "X": 512}."""
        return dict(zip(self.axes, self.shape, strict=True))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel's value."""
        dtype: np.dtype[Any] = np.dtype(self.data.dtype)
        return dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @property
    def nbytes(self) -> int:
        """Bytes that the whole volume would take in memory."""
        return int(math.prod(self.shape)) * self.dtype.itemsize

    @property
    def voxel_size(self) -> dict[str, float | None]:
        """Step along each spatial axis in µm; None where it is unknown."""
        return {
            axis: self.scale[axis] * MICROMETERS[self.units[axis]] if axis in self.scale else None
            for axis in self.axes
            if axis in "ZYX"
        }

    def describe(self) -> str:
        """Say in one line what this is.

        Returns
        -------
        str
            Such as "T = 34, Z = 81, Y = 512, X = 512, uint16, 0.2 x 0.1 x 0.1 µm (Z x Y x X)".
        """
        parts = [f"{axis} = {n}" for axis, n in self.sizes.items()]
        parts.append(str(self.dtype))
        known = self.voxel_size
        if any(step is not None for step in known.values()):
            steps = " x ".join("?" if step is None else f"{step:.4g}" for step in known.values())
            parts.append(f"{steps} µm ({' x '.join(known)})")
        else:
            parts.append("voxel size unknown")
        if "T" in self.scale:
            parts.append(f"{self.scale['T']:.4g} {self.units['T']} per frame")
        if self.channel_names:
            parts.append(f"channels {', '.join(self.channel_names)}")
        return ", ".join(parts)

    def replace(self, **changes: Any) -> Volume:
        """Return a copy with some fields changed.

        Parameters
        ----------
        **changes
            Fields of `Volume` and their new values.

        Returns
        -------
        Volume
        """
        return replace_fields(self, **changes)

    def with_history(self, record: Mapping[str, Any]) -> Volume:
        """Return a copy with one more record at the end of its history.

        Parameters
        ----------
        record : mapping
            What was done, JSON-able.

        Returns
        -------
        Volume
        """
        return self.replace(history=(*self.history, dict(record)))

    def channel(self, which: int | str) -> Volume:
        """Pick one channel; the result has no C axis, and keeps the channel's name.

        Parameters
        ----------
        which : int or str
            Its name, or its index from 0 (a text of digits that is no channel's name is an index too).

        Returns
        -------
        Volume

        Raises
        ------
        VolumeError
            If there is no such channel; the message lists those that exist.
        """
        index = self._channel_index(which)
        if "C" not in self.axes:
            return self
        return self.replace(
            data=self.data[(slice(None),) * self.axes.index("C") + (index,)],
            axes=self.axes.replace("C", ""),
            channel_names=self.channel_names[index : index + 1],
            first_channel=self.first_channel + index,
        )

    def _channel_index(self, which: int | str) -> int:
        count = self.sizes.get("C", 1)
        names = self.channel_names
        exist = ", ".join(f"{i} ({names[i]!r})" if names else f"{i}" for i in range(count))
        if isinstance(which, str) and which in names:
            if names.count(which) > 1:
                raise VolumeError(f"several channels are called {which!r}; use an index: {exist}")
            return names.index(which)
        if isinstance(which, str) and which.isdecimal():
            which = int(which)
        if isinstance(which, str) or isinstance(which, bool) or not 0 <= which < count:
            has = f"the channels are {exist}" if "C" in self.axes else f"the image has one channel, {exist}"
            raise VolumeError(f"no channel {which!r}: {has}")
        return int(which)

    def record(self) -> dict[str, Any]:
        """Return what only this program would remember, to be stored in a file beside its standard metadata.

        Returns
        -------
        dict
            Which axes are real (also those of size 1), which steps are known, the names and the history.
        """
        return {
            "format": 1,
            "axes": self.axes,
            "scale": dict(self.scale),
            "units": dict(self.units),
            "channel_names": list(self.channel_names),
            "name": self.name,
            "history": [dict(entry) for entry in self.history],
        }


def file_stem(path: str) -> str:
    """Return a file's name without its folder and its image suffixes.

    Parameters
    ----------
    path : str
        Such as "runs/mito.ome.tif".

    Returns
    -------
    str
        "mito".
    """
    return re.sub(r"(\.ome)?\.(tiff?|btf|tf[28]|zarr|npy|lsm|stk)$", "", Path(path).name, flags=re.IGNORECASE)


def _check_dtype(dtype: np.dtype[Any]) -> None:
    """Raise unless values of this type can be intensities."""
    if dtype.kind in "iuf" and dtype.itemsize <= 8:
        return
    hint = {
        "c": "take its real part or magnitude first",
        "b": "Volume.from_array converts it to uint8",
    }.get(dtype.kind, "convert it to float32 first")
    raise VolumeError(f"values of type {dtype} are not intensities: integers and floats are; {hint}")


def voxel_size_scale(
    voxel_size: Mapping[str, float | None] | Sequence[float | None] | None, axes: str
) -> dict[str, float]:
    """Read a voxel size in µm as steps by axis, leaving out the unknown ones.

    Parameters
    ----------
    voxel_size : mapping or sequence of float, optional
        By axis, or one number per spatial axis of `axes` in the order Z, Y, X.
    axes : str
        The volume's axes.

    Returns
    -------
    dict of str to float

    Raises
    ------
    VolumeError
        If it does not fit the axes.
    """
    spatial = [axis for axis in "ZYX" if axis in axes]
    if voxel_size is None:
        return {}
    if isinstance(voxel_size, Mapping):
        strange = [axis for axis in voxel_size if axis not in spatial]
        if strange:
            raise VolumeError(f"voxel_size is given for {strange}, but the spatial axes are {spatial}")
        steps = dict(voxel_size)
    else:
        if isinstance(voxel_size, str) or len(voxel_size) != len(spatial):
            raise VolumeError(
                f"voxel_size {voxel_size!r} must have one number in µm for each of the axes "
                f"{', '.join(spatial)}, in this order"
            )
        steps = dict(zip(spatial, voxel_size, strict=True))
    return {axis: float(step) for axis, step in steps.items() if step is not None}


def unnamed_axes_message(what: str, stored: str, shape: Sequence[int]) -> str:
    """Say which axes are possible where a file does not name them.

    Parameters
    ----------
    what : str
        What was opened.
    stored : str
        One letter per dimension in the file's order; any letter outside TCZYX is an axis without a known
        meaning.
    shape : sequence of int
        Voxels along each.

    Returns
    -------
    str
    """
    shape = tuple(int(n) for n in shape)
    unnamed = [i for i, letter in enumerate(stored) if letter not in AXES]
    free = [axis for axis in "TCZ" if axis not in stored]
    if len(unnamed) > len(free):
        return (
            f"{what} has shape {shape}, more dimensions than T, C, Z, Y, X can name; save the parts you need "
            "as separate files first"
        )
    possible = []
    for letters in itertools.combinations(free, len(unnamed)):
        named = dict(zip(unnamed, letters, strict=True))
        possible.append("".join(named.get(i, letter) for i, letter in enumerate(stored)))
    sizes = ", ".join(f"dimension {i} (size {shape[i]})" for i in unnamed)
    first = possible[0]
    return (
        f"{what} has shape {shape} and does not name {sizes}. Possible axes: {', '.join(possible)}"
        f"{', or another order of the same letters' if len(unnamed) > 1 else ''}. Name them, in the order of "
        f'the shape: axes="{first}" (on the command line --axes {first})'
    )
