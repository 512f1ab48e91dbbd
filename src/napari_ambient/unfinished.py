"""Unfinished trainings: kept in a folder until they are finished, found again after a stop or a crash.

    folder/2026-11-20 16-47-12 mito/
        origin.json         what was trained on: names, axes, shapes and the region of the frames
        mito.prior/         the prior so far, with the checkpoint from which `iter_train(..., resume=True)` goes on

The folder is the plugin's cache; only the newest trainings stay in it. Nothing here loads torch.

In the flow: beside `training.py`, for programs whose users do not name a folder before they train.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from .train_config import CHECKPOINT, TrainConfig, TrainingError
from .volumes import Volume

ORIGIN, RUNNING = "origin.json", "running.json"
KEPT = 8
"""Trainings that stay in the folder; older ones give way to new ones."""

Region = tuple[slice, slice]


@dataclass(frozen=True)
class Training:
    """A training that was begun.

    Parameters
    ----------
    bundle : Path
        The prior to be.
    names : tuple of str
        Of the volumes that it is trained on.
    shapes : tuple of (str, tuple of int)
        Their axes and whole shapes.
    region : (slice, slice) or None
        The part of the frames (Y, X) that is trained on; None for all of it.
    check : int
        Of some voxels, so that a stack that changed is seen.
    given_noise : bool
        Whether the noise was given, not fitted.
    """

    bundle: Path
    names: tuple[str, ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    region: Region | None
    check: int
    given_noise: bool

    @property
    def entry(self) -> Path:
        """Its place in the folder of trainings."""
        return self.bundle.parent

    def fits(self, volumes: Sequence[Volume]) -> bool:
        """Whether it was begun with volumes of these names, axes and shapes (the whole ones, before any region)."""
        return self.names == tuple(v.name for v in volumes) and self.shapes == _shapes(volumes)

    def progress(self) -> Progress | None:
        """How far it got; None where there is no checkpoint (yet).

        Raises
        ------
        TrainingError
            If the checkpoint is damaged.
        """
        path = self.bundle / CHECKPOINT
        if not path.is_file():
            return None
        try:
            with open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(length, 2**26)))
            facts = json.loads(header["__metadata__"]["training"])
            known = {field.name for field in fields(TrainConfig)}
            settings = {k: v for k, v in facts["fingerprint"].items() if k in known}
            settings.pop("checkpoint_every", None)  # does not matter for the result, and is not kept
            patch = settings.get("patch")
            config = TrainConfig(**{**settings, "patch": None if patch is None else tuple(patch)})
            return Progress(int(facts["step"]), config)
        except (OSError, struct.error, KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"{path} is damaged ({error}); train anew") from error

    @property
    def running(self) -> bool:
        """Whether a program that is alive is at it."""
        try:
            facts = json.loads((self.entry / RUNNING).read_text(encoding="utf-8"))
            return bool(psutil.Process(facts["process"]).create_time() == facts["since"])
        except (OSError, KeyError, ValueError, psutil.Error):
            return False

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Say that this program is at it, so that nobody else goes on with it or takes it away meanwhile.

        Raises
        ------
        TrainingError
            If somebody is.
        """
        if self.running:
            raise TrainingError(f"{self.bundle.stem} is being trained already; stop that training first, or train anew")
        facts = {"process": os.getpid(), "since": psutil.Process().create_time()}
        (self.entry / RUNNING).write_text(json.dumps(facts), encoding="utf-8")
        try:
            yield
        finally:
            (self.entry / RUNNING).unlink(missing_ok=True)

    def check_unchanged(self, volumes: Sequence[Volume]) -> None:
        """Refuse to go on with other data.

        Parameters
        ----------
        volumes : sequence of Volume
            The whole ones.

        Raises
        ------
        TrainingError
            If the voxels looked at are not those that it was begun with.
        """
        if self.check != check_of(volumes):
            raise TrainingError(
                f"{', '.join(self.names)} changed since this training was begun; train anew, or open what it was "
                "begun with"
            )

    def forget_checkpoint(self) -> None:
        """Keep only the prior: the training is finished."""
        (self.bundle / CHECKPOINT).unlink(missing_ok=True)

    def discard(self) -> None:
        """Take it out of the folder."""
        shutil.rmtree(self.entry, ignore_errors=True)


@dataclass(frozen=True)
class Progress:
    """How far a training got.

    Parameters
    ----------
    step : int
        Steps done.
    config : TrainConfig
        How it is trained.
    """

    step: int
    config: TrainConfig


def begin(
    folder: Path, name: str, volumes: Sequence[Volume], *, region: Region | None = None, given_noise: bool = False
) -> Training:
    """Make a place for a new training, and forget the oldest ones.

    Parameters
    ----------
    folder : Path
        The folder of trainings; made if it is not there.
    name : str
        What the prior will be called, without ".prior".
    volumes : sequence of Volume
        What it is trained on, whole. A few of the voxels are read.
    region : (slice, slice), optional
        The part of the frames that is trained on.
    given_noise : bool
        Whether the noise was given.

    Returns
    -------
    Training
    """
    plain = re.sub(r"[^\w .+-]", "_", name).strip(" .") or "prior"
    stamp = time.strftime("%Y-%m-%d %H-%M-%S")
    entry = folder / f"{stamp} {plain}"
    number = 1
    while entry.exists():
        number += 1
        entry = folder / f"{stamp} {plain} {number}"
    entry.mkdir(parents=True)
    names = tuple(v.name for v in volumes)
    training = Training(entry / f"{plain}.prior", names, _shapes(volumes), region, check_of(volumes), given_noise)
    origin = {
        "bundle": training.bundle.name,
        "names": names,
        "shapes": training.shapes,
        "region": None if region is None else [[s.start, s.stop] for s in region],
        "check": training.check,
        "given_noise": given_noise,
    }
    (entry / ORIGIN).write_text(json.dumps(origin, indent=2), encoding="utf-8")
    for old in known(folder)[KEPT:]:
        if not old.running:
            old.discard()
    return training


def known(folder: Path) -> list[Training]:
    """Give the trainings in a folder, the newest first; what is not one is passed over.

    Parameters
    ----------
    folder : Path
        The folder of trainings; it need not be there.

    Returns
    -------
    list of Training
    """
    if not folder.is_dir():
        return []
    found = [_read(entry) for entry in sorted(folder.iterdir(), key=_age)]
    return [training for training in found if training is not None]


def check_of(volumes: Sequence[Volume]) -> int:
    """Sum up a few voxels of each volume: the middle 32² of the first image."""
    result = 0
    for volume in volumes:
        rows, columns = (slice(max(0, n // 2 - 16), n // 2 + 16) for n in (volume.sizes["Y"], volume.sizes["X"]))
        first = (0,) * (volume.ndim - 2)
        values = np.asarray(volume.data[(*first, rows, columns)].compute(scheduler="synchronous"))
        result = zlib.crc32(np.ascontiguousarray(values).tobytes(), result)
    return result


def _shapes(volumes: Sequence[Volume]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((v.axes, v.shape) for v in volumes)


def _age(entry: Path) -> float:
    origin = entry / ORIGIN
    return -(origin if origin.is_file() else entry).stat().st_mtime


def _read(entry: Path) -> Training | None:
    path = entry / ORIGIN
    if not path.is_file():
        return None
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        region = facts["region"]
        spans = None if region is None else (slice(*region[0]), slice(*region[1]))
        return Training(
            entry / facts["bundle"],
            tuple(facts["names"]),
            tuple((axes, tuple(shape)) for axes, shape in facts["shapes"]),
            spans,
            int(facts["check"]),
            bool(facts["given_noise"]),
        )
    except (KeyError, TypeError, ValueError):  # another program's, or cut short by a crash
        return None


__all__ = ["Progress", "Training", "begin", "check_of", "known"]
