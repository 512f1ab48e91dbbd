"""Restore many files, one after another: skip what is finished, go on after a bad file, and say what became of each.

`iter_batch` is a generator of small reports, so that the command line's progress bar and a table of files in a window
are fed by the same loop. One file is open at a time. An output is whole or absent: `save_volume` writes under a
temporary name, so whatever is found under the final name is finished.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .volumes import Volume, VolumeError, iter_save_volume, open_volume

State = Literal["started", "working", "finished", "skipped", "failed"]
IMAGE_SUFFIXES = (".tif", ".tiff", ".npy", ".zarr")


@dataclass(frozen=True)
class Report:
    """What is happening to one file.

    Parameters
    ----------
    source, target : Path
        Input and output.
    state : str
        Started, working (with `done` of `total` blocks), finished, skipped or failed.
    message : str
        Why it was skipped or failed, or what to know of the result.
    """

    source: Path
    target: Path
    state: State
    done: int = 0
    total: int = 0
    message: str = ""


def find_files(patterns: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """List the images that files, folders and globs stand for, sorted, each once.

    Raises
    ------
    VolumeError
        If one of them stands for nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.suffix == ".zarr" or path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = [path] if _is_zarr(path) else sorted(p for p in path.iterdir() if _is_image(p))
        else:
            matches = sorted(p for p in map(Path, glob.glob(str(pattern), recursive=True)) if _is_image(p))
        if not matches:
            raise VolumeError(
                f"{pattern}: no image found; give files, folders or globs of {', '.join(IMAGE_SUFFIXES)}"
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def output_path(source: Path, folder: Path, suffix: str, format_: Literal["same", "tiff", "ome-zarr"]) -> Path:
    """Name the output of a file: ``cells.tif`` gives ``folder/cells_restored.ome.tif``."""
    stem = source.name
    for ending in (".ome.tiff", ".ome.tif", ".ome.zarr", ".tiff", ".tif", ".zarr", ".npy"):
        if stem.lower().endswith(ending):
            stem = stem[: -len(ending)]
            break
    to_zarr = format_ == "ome-zarr" or (format_ == "same" and _is_zarr(source))
    return folder / f"{stem}{suffix}{'.ome.zarr' if to_zarr else '.ome.tif'}"


def iter_batch(
    jobs: Sequence[tuple[Path, Path]],
    work: Callable[[Volume, Path], Volume],
    *,
    open_: Callable[[Path], Volume] = open_volume,
    overwrite: bool = False,
) -> Iterator[Report]:
    """Restore files one by one.

    Parameters
    ----------
    jobs : sequence of (source, target)
        What to read, and where to write.
    work : callable
        Turns an opened volume, to be written to a target, into a lazy restored one.
    open_ : callable
        Opens a source.
    overwrite : bool
        Do again what is finished.

    Yields
    ------
    Report
        Several per file; the last is finished, skipped or failed. Bad data and full disks fail the file and the loop
        goes on; a programming error is raised.
    """
    targets: dict[Path, Path] = {}
    for source, target in jobs:
        if target in targets:
            message = f"{targets[target]} has the same output {target}; use another --suffix or output folder"
            yield Report(source, target, "failed", message=message)
            continue
        targets[target] = source
        if target.exists() and not overwrite:
            yield Report(source, target, "skipped", message=f"{target} is there already (--overwrite to redo it)")
            continue
        yield Report(source, target, "started")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for block in iter_save_volume(target, work(open_(source), target), overwrite=overwrite):
                yield Report(source, target, "working", block.index, block.total)
        except (ValueError, OSError, MemoryError) as error:
            yield Report(source, target, "failed", message=str(error) or type(error).__name__)
            continue
        yield Report(source, target, "finished")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _is_zarr(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in ("zarr.json", ".zattrs", ".zgroup", ".zarray"))
