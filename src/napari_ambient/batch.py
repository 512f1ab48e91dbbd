"""Restore many files, one after another: skip what is finished, go on after a bad file, and say what became of each.

`iter_batch` is a generator of small reports, so that the command line's progress bar and a table of files in a window
are fed by the same loop; `restore_files` is that loop with a prior. One file is open at a time. An output is whole or
absent: `save_volume` writes under a temporary name, so whatever is found under the final name is finished.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .choices import OutputType, PosteriorName, RestoreMethod
from .volumes import Volume, VolumeError, iter_save_volume, open_volume

if TYPE_CHECKING:
    from .noise import NoiseModel
    from .operators import Operator
    from .prior import Prior

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
            raise VolumeError(f"{pattern}: no image found; give files, folders or globs of {', '.join(IMAGE_SUFFIXES)}")
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
            message = f"{targets[target]} has the same output {target}; use another suffix or output folder"
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


def restore_files(
    jobs: Sequence[tuple[Path, Path]],
    prior: Prior,
    *,
    noise: Literal["prior", "fit"] = "prior",
    method: RestoreMethod = "mean",
    operator: Callable[[Volume], Operator] | None = None,
    posterior: PosteriorName = "split_gibbs",
    draws: int = 8,
    steps: int = 18,
    seed: int = 0,
    outputs: Sequence[str] = ("mean", "std"),
    recalibrate: bool = False,
    dtype: OutputType = "float32",
    open_: Callable[[Path], Volume] = open_volume,
    overwrite: bool = False,
    device: Any = None,
    watch: Callable[[int, int], None] | None = None,
) -> Iterator[Report]:
    """Restore files with a prior, one by one.

    Parameters
    ----------
    jobs : sequence of (source, target)
        What to read, and where to write.
    prior : Prior
        The prior.
    noise : {"prior", "fit"}
        The noise model of the prior, or one fitted to each file.
    method, posterior, draws, steps, seed, outputs, dtype, device
        As for `restore`.
    operator : callable, optional
        Says what the microscope did to the light of a volume.
    recalibrate : bool
        Check the error bars of each file by held-out photons, and widen or narrow them accordingly.
    open_ : callable
        Opens a source.
    overwrite : bool
        Do again what is finished.
    watch : callable, optional
        ``watch(done, total)``, told of every network call for the file in work; what it raises ends everything, and
        the file in work is left out.

    Yields
    ------
    Report
        As `iter_batch`; that of a finished file says what to know of it.

    Raises
    ------
    ValueError
        If the error bars are to be recalibrated where there are none, or behind an operator.
    """
    from .noise_fit import fit_channels
    from .recalibration import measure_spread
    from .restoration import Clipping, restore
    from .uncertainty import work_folder

    if recalibrate and (method != "samples" or operator is not None):
        raise ValueError(
            "error bars are recalibrated where draws are made and no blur or hole is undone; leave one of the two out"
        )
    clipping, told = Clipping(), ""

    def checked(done: int, total: int) -> None:
        if watch is not None:  # recalibrating comes before the file's own work, of which nothing is done yet
            watch(0, total)

    def work(volume: Volume, target: Path) -> Volume:
        nonlocal clipping, told
        clipping, told = Clipping(), ""
        models: list[NoiseModel] | None = fit_channels(volume) if noise == "fit" else None
        spread = 1.0
        if recalibrate:
            if volume.sizes.get("C", 1) > 1:
                raise VolumeError("error bars are recalibrated for one channel at a time; choose the channel")
            model = None if models is None else models[0]
            found = measure_spread(volume, prior, noise=model, seed=seed, device=device, watch=checked)
            spread = found.factor
            told = f"error bars multiplied by {spread:.3f} ± {found.uncertainty:.3f} (held-out photons)"
        return restore(
            volume,
            prior,
            noise=models,
            operator=None if operator is None else operator(volume),
            method=method,
            posterior=posterior,
            draws=draws,
            steps=steps,
            seed=seed,
            outputs=outputs,
            spread=spread,
            work=None if method == "mean" else work_folder(target),
            dtype=dtype,
            device=device,
            clipping=clipping,
            watch=watch,
        )

    for report in iter_batch(jobs, work, open_=open_, overwrite=overwrite):
        if report.state == "finished":
            # the draws kept for a run that is killed are not needed any more
            shutil.rmtree(work_folder(report.target), ignore_errors=True)
            yield replace(report, message="; ".join(part for part in (told, clipping.describe()) if part))
        else:
            yield report


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _is_zarr(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in ("zarr.json", ".zattrs", ".zgroup", ".zarray"))
