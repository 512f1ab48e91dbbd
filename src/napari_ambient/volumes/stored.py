"""From what a file says to a volume: settling which dimension is which.

Files name their axes, or do not; they drop axes of size 1, or invent them; they order them in their own way.
The readers (`tiff.py`, `ome_zarr.py`, `inplace.py`) answer with `Stored`, in the file's own terms. Here the
user's word goes before the file's, our own record before a format's habits, and what nobody says is an error:
axes are never guessed.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np

from napari_ambient.volumes.errors import AxesError, VolumeError
from napari_ambient.volumes.volume import (
    AXES,
    Volume,
    canonical,
    check_axes,
    unnamed_axes_message,
    voxel_size_scale,
)


@dataclass(frozen=True)
class Stored:
    """What a file holds, before its axes are settled and brought into order; the readers' common answer."""

    data: da.Array
    """Lazy values, in the file's order of dimensions."""
    axes: str
    """One letter per dimension; any letter outside TCZYX is an axis whose meaning the file does not say."""
    scale: dict[str, float]
    units: dict[str, str]
    channel_names: tuple[str, ...]
    name: str
    record: Mapping[str, Any] | None
    """What `Volume.record` left in the file, if we wrote it."""
    expandable: bool = False
    """The file format stores axes of size 1 that say nothing, so the reader dropped them."""

    def settle(
        self,
        path: str,
        axes: str | None,
        voxel_size: Mapping[str, float | None] | Sequence[float | None] | None,
    ) -> Volume:
        """Settle which dimension is which, and make a volume.

        Parameters
        ----------
        path : str
            Where it was read from.
        axes : str, optional
            What the user says; goes before what the file says.
        voxel_size : mapping or sequence of float, optional
            In µm; goes before what the file says.

        Returns
        -------
        Volume

        Raises
        ------
        AxesError
            If the file does not name its axes and the user does not either, or what she says does not fit.
        """
        record = self.record or {}
        data, stored = self.data, self.axes
        recorded = record.get("axes")
        if axes is not None:
            check_axes(axes)
            fitted = _fit(data, stored, axes, self.expandable)
            if fitted is None:
                raise AxesError(
                    f"axes {axes!r} name {len(axes)} dimensions, but {path} has shape {self.data.shape}"
                    + (f" (which it calls {stored})" if set(stored) <= set(AXES) else "")
                    + "; give one letter per dimension, in the order of the shape"
                )
            data, stored = fitted, axes
        elif isinstance(recorded, str) and self.expandable:
            # An axis of size 1 that we wrote is real. Another program may have changed the file since, so the
            # record counts only where it fits.
            fitted = _fit(data, stored, _merge(stored, recorded), True)
            if fitted is not None:
                data, stored = fitted, _merge(stored, recorded)
        if any(letter not in AXES for letter in stored):
            raise AxesError(unnamed_axes_message(path, stored, data.shape))
        ordered = canonical(stored)
        if ordered != stored:
            data = data.transpose([stored.index(axis) for axis in ordered])
        if data.dtype == bool:
            data = data.astype(np.uint8)
        given = voxel_size_scale(voxel_size, ordered)
        scale = {axis: step for axis, step in self.scale.items() if axis in ordered} | given
        units = {axis: unit for axis, unit in self.units.items() if axis in scale} | dict.fromkeys(given, "micrometer")
        channels = dict(zip(ordered, data.shape, strict=True)).get("C", 1)
        try:
            return Volume(
                data=data,
                axes=ordered,
                scale=scale,
                units=units,
                channel_names=self.channel_names if len(self.channel_names) == channels else (),
                name=self.name,
                history=tuple(record.get("history", ())),
                source=path,
            )
        except VolumeError as error:
            raise type(error)(f"{path}: {error}") from error


def _merge(stored: str, recorded: str) -> str:
    """Insert the axes that only the record has into the stored order; "" where that is not possible."""
    if not set(stored) <= set(recorded) or not set(recorded) <= set(AXES):
        return ""
    return "".join(axis for axis in recorded if axis not in stored) + stored


def _fit(data: da.Array, stored: str, axes: str, expandable: bool) -> da.Array | None:
    """Give the array one dimension per letter of `axes`, or return None."""
    if len(axes) == data.ndim:
        return data
    extra = [axis for axis in axes if axis not in stored]
    if not expandable or "".join(axis for axis in axes if axis in stored) != stored:
        return None
    expanded: da.Array = da.expand_dims(data, tuple(axes.index(axis) for axis in extra))
    return expanded


def parse_record(text: str | Mapping[str, Any], path: str) -> Mapping[str, Any] | None:
    """Read what `Volume.record` left in a file.

    Parameters
    ----------
    text : str or mapping
        JSON, or what it says.
    path : str
        The file, for the message.

    Returns
    -------
    mapping or None
        None, with a warning, if it is damaged: the voxels can be read without it.
    """
    reason = ""
    record: Any = text
    if isinstance(text, str):
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            reason = str(error)
    if not reason and not isinstance(record, Mapping):
        reason = f"it is a {type(record).__name__}"
    if not reason and record.get("format") != 1:
        reason = f"its format is {record.get('format')!r} and this version reads format 1"
    if not reason:
        history = record.get("history", [])
        if not isinstance(history, list) or not all(isinstance(entry, Mapping) for entry in history):
            reason = "its history is not a list of records"
    if reason:
        warnings.warn(f"the napari-ambient history in {path} cannot be used: {reason}", UserWarning, stacklevel=2)
        return None
    return dict(record)
