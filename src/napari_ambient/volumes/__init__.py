"""Volumes: lazy images with axes, voxel size and history, and the files they come from and go to."""

from __future__ import annotations

from napari_ambient.volumes.errors import AxesError, ReadError, VolumeError, WriteError
from napari_ambient.volumes.files import BlockWritten, Format, iter_save_volume, open_volume, save_volume
from napari_ambient.volumes.volume import AXES, Volume

__all__ = [
    "AXES",
    "AxesError",
    "BlockWritten",
    "Format",
    "ReadError",
    "Volume",
    "VolumeError",
    "WriteError",
    "iter_save_volume",
    "open_volume",
    "save_volume",
]
