"""What can go wrong with a volume: its axes, reading it, writing it.

Every error says what came, what is allowed and what to do. All of them are `ValueError`s, so that a caller
who does not care which one came (the batch command, a widget) catches `VolumeError`.
"""

from __future__ import annotations


class VolumeError(ValueError):
    """A volume, or what was asked of it, is not usable."""


class AxesError(VolumeError):
    """The axes are unknown, or do not fit the data."""


class ReadError(VolumeError):
    """A file cannot be opened or read."""


class WriteError(VolumeError):
    """A file cannot be written; nothing that looks whole was left behind."""
