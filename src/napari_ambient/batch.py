"""Restore many files, one after another: skip what is finished, go on after a bad file, and say what became of each.

A result that was made in another way than the one asked for (method, draws, seed, operator, noise, prior, …: its
history says how) is neither taken for finished nor replaced: its file fails, and the message names what differs.

`iter_batch` is a generator of small reports, so that the command line's progress bar and a table of files in a window
are fed by the same loop; `restore_files` is that loop with a prior. One file is open at a time. An output is whole or
absent: `save_volume` writes under a temporary name, so whatever is found under the final name is finished.
"""

from __future__ import annotations

import glob
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .choices import OutputType, PosteriorName, RestoreMethod
from .volumes import Volume, VolumeError, iter_save_volume, open_volume

if TYPE_CHECKING:
    from .moments import Spread
    from .noise import NoiseModel
    from .operators import Operator
    from .prior import Prior

State = Literal["started", "working", "finished", "skipped", "failed"]
IMAGE_SUFFIXES = (".tif", ".tiff", ".npy", ".zarr")
REDO = (
    "redo it (--overwrite; in napari without “skip files whose result is there”), or choose another folder or suffix "
    "for the results"
)


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
    differs: Callable[[Volume, Volume], Sequence[str]] | None = None,
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
    differs : callable, optional
        Given an opened source and the result that is there already, says in what the result is another than `work`
        would give; a file whose result differs fails. Without it whatever is there is taken for finished.

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
            yield _found(source, target, open_, differs)
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
    still: bool = False,
    turns: int = 1,
    dtype: OutputType = "float32",
    prepare: Callable[[Volume], Volume] | None = None,
    look: Callable[[Volume, Sequence[NoiseModel] | None], object] | None = None,
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
    method, posterior, draws, steps, seed, outputs, turns, dtype, device
        As for `restore`.
    operator : callable, optional
        Says what the microscope did to the light of a volume.
    recalibrate : bool
        Check the error bars of each file by held-out photons, and widen or narrow them accordingly.
    still : bool
        The time points of each file show the same field, unmoved: check the error bars by them instead.
    prepare : callable, optional
        Changes a volume before it is restored, such as cutting holes into it; its noise is fitted before that.
    look : callable, optional
        ``look(volume, noise)``, called before each file is restored, with the noise fitted to it or None.
    open_ : callable
        Opens a source.
    overwrite : bool
        Do again what is finished, and what was made with other settings.
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
        If the error bars are to be recalibrated where there are none, or behind an operator; or by time points
        without being recalibrated.
    """
    from .noise_fit import fit_channels
    from .recalibration import measure_spread
    from .restoration import Clipping, restore
    from .uncertainty import work_folder

    if recalibrate and (method != "samples" or operator is not None):
        raise ValueError(
            "error bars are recalibrated where draws are made and no blur or hole is undone; leave one of the two out"
        )
    if still and not recalibrate:
        raise ValueError("still time points are what error bars are recalibrated by; add recalibrate, or leave it out")
    clipping, told = Clipping(), ""
    settings: dict[str, Any] = {
        "method": method,
        "posterior": posterior,
        "draws": draws,
        "steps": steps,
        "seed": seed,
        "outputs": outputs,
        "turns": turns,
        "dtype": dtype,
        "device": device,
    }

    def given(volume: Volume) -> dict[str, Any]:
        seen = volume if prepare is None else prepare(volume)
        return {"volume": seen, "operator": None if operator is None else operator(seen), **settings}

    def differs(volume: Volume, result: Volume) -> list[str]:
        # what is measured in each file is not measured again only to be compared
        model = None if noise == "prior" else _plain(prior.noise[0])
        expected = restore(prior=prior, noise=model, **given(volume))
        measured = (["noise"] if noise == "fit" else []) + (["spread"] if recalibrate else [])
        found = other_settings(result, expected, leave_out=measured)
        if recalibrate and not found:
            spread = result.history[-1].get("spread", 1)
            if spread == 1:
                found.append("error bars not recalibrated")
            elif isinstance(spread, Mapping) and ("time points" in spread["source"]) != still:
                found.append(f"error bars recalibrated by {spread['source']}")
        return found

    def checked(done: int, total: int) -> None:
        if watch is not None:  # recalibrating comes before the file's own work, of which nothing is done yet
            watch(0, total)

    def work(volume: Volume, target: Path) -> Volume:
        nonlocal clipping, told
        clipping, told = Clipping(), ""
        models: list[NoiseModel] | None = fit_channels(volume) if noise == "fit" else None
        if look is not None:
            look(volume, models)
        spread: float | Spread = 1.0
        if recalibrate:
            if volume.sizes.get("C", 1) > 1:
                raise VolumeError(
                    "error bars are recalibrated for one channel at a time; choose the channel (--channel)"
                )
            model = None if models is None else models[0]
            frames = volume.sizes.get("T", 1)
            if still and frames < 2:
                raise VolumeError(
                    f"{volume.name or 'the file'} has one time point, and none to check its error bars by; leave out "
                    "--still (in Python still), or name the axes (--axes TYX)"
                )
            found = measure_spread(
                volume,
                prior,
                noise=model,
                repeats=range(1, frames) if still else (),
                seed=seed,
                device=device,
                watch=checked,
            )
            spread, told = found, found.describe()
        return restore(
            prior=prior,
            noise=models,
            spread=spread,
            work=None if method == "mean" else work_folder(target),
            clipping=clipping,
            watch=watch,
            **given(volume),
        )

    for report in iter_batch(jobs, work, open_=open_, overwrite=overwrite, differs=differs):
        if report.state == "finished":
            # the draws kept for a run that is killed are not needed any more
            shutil.rmtree(work_folder(report.target), ignore_errors=True)
            yield replace(report, message="; ".join(part for part in (told, clipping.describe()) if part))
        else:
            yield report


def other_settings(result: Volume, expected: Volume, *, leave_out: Sequence[str] = ()) -> list[str]:
    """Say in what a restored volume that was saved was made otherwise than one that would be made now.

    Parameters
    ----------
    result : Volume
        The one that is there; its history says how it was made.
    expected : Volume
        From `restore`; nothing of it is computed.
    leave_out : sequence of str
        Entries of the record that are not compared. The program's version never is.

    Returns
    -------
    list of str
        Such as "seed 0 instead of 3"; empty if the settings are the same.
    """
    before, after = (json.loads(json.dumps(volume.history)) for volume in (result, expected))
    if not before or before[-1].get("action") != "restore":
        return ["it does not say that it was restored, and how"]
    old, new = before[-1], after[-1]
    ignored = {*leave_out, "action", "program", "version", "notes"}
    if old.get("prior_sha256") != new["prior_sha256"]:  # of which these follow
        ignored |= {"prior_objective", "prior_step", "form", "noise"}
    if old.get("method") != new["method"]:
        ignored |= {"seed", "draws", "steps", "outputs", "spread", "turns"}
    ignored |= {"noise_from", "channels"} - old.keys()  # which earlier versions did not write
    if old.get("noise_from") != new["noise_from"]:
        ignored.add("noise")
    if old.get("operator") is None or new.get("operator") is None:
        ignored.add("posterior")
    found = [
        _said(name, old.get(name), new.get(name))
        for name in dict.fromkeys([*new, *old])
        if name not in ignored and old.get(name) != new.get(name)
    ]
    if before[:-1] != after[:-1]:
        found.append("what was done to the image before (such as another mask)")
    if not found and result.sizes != expected.sizes:
        sizes = (" × ".join(map(str, volume.shape)) for volume in (result, expected))
        found.append(f"{' voxels instead of '.join(sizes)}")
    if not found and not _same_steps(result, expected):
        found.append(f"voxel size {_steps(result)} instead of {_steps(expected)} µm")
    return found


_WORDS = {
    "prior_sha256": "prior",
    "noise": "noise model",
    "noise_from": "noise",
    "spread": "recalibration of the error bars",
    "turns": "flips and quarter turns",
    "operator": "PSF, mask or pixel size",
    "posterior": "posterior method",
    "dtype": "type",
    "source": "image",
    "prior_objective": "objective of the prior",
    "prior_step": "steps of the prior",
}


_UNSAID = {"turns": "1"}  # what the record leaves out where it is as usual


def _said(name: str, old: Any, new: Any) -> str:
    """Say of one entry of the record what it was and what it would be."""
    word = _WORDS.get(name, name)
    if isinstance(old, Mapping) or isinstance(new, Mapping):
        parts = [_parts(value) for value in (old, new)]
        return f"another {word}" if parts[0] == parts[1] else f"{word}: {parts[0]} instead of {parts[1]}"
    if name in ("prior_sha256", "noise"):
        return f"another {word}"
    before, after = (
        " ".join(map(str, value)) if isinstance(value, list) else str(value)
        for value in (_UNSAID.get(name, "nothing") if value is None else value for value in (old, new))
    )
    if name == "noise_from":
        before, after = ("the prior's" if value == "prior" else "fitted to the file" for value in (old, new))
    return f"{word} {before} instead of {after}"


def _parts(operator: Mapping[str, Any] | None) -> str:
    """Name the parts of an operator."""
    if operator is None:
        return "none"
    return " and ".join(str(part["operator"]) for part in operator.get("applied", [operator]))


def _same_steps(result: Volume, expected: Volume) -> bool:
    ours, theirs = result.voxel_size, expected.voxel_size
    return all(
        (ours[axis] is None) == (step is None) and math.isclose(ours[axis] or 1, step or 1, rel_tol=1e-4)
        for axis, step in theirs.items()
    )


def _steps(volume: Volume) -> str:
    return " × ".join("unknown" if step is None else f"{step:.4g}" for step in volume.voxel_size.values())


def _plain(noise: NoiseModel) -> NoiseModel:
    """Give a noise model without maps, which may be of another frame."""
    import numpy as np

    from .noise import NoiseModel

    return NoiseModel(gain=float(np.median(noise.gain)), intercept=float(np.median(noise.intercept)))


def _found(
    source: Path,
    target: Path,
    open_: Callable[[Path], Volume],
    differs: Callable[[Volume, Volume], Sequence[str]] | None,
) -> Report:
    """Report on a file whose result is there already."""
    if differs is None:
        return Report(source, target, "skipped", message=f"{target} is there already (--overwrite to redo it)")
    try:
        result = open_volume(target)
    except (ValueError, OSError) as error:
        return Report(source, target, "failed", message=f"{target} is there already, and unreadable: {error}; {REDO}")
    try:
        different = differs(open_(source), result)
    except (ValueError, OSError, MemoryError) as error:
        return Report(source, target, "failed", message=str(error) or type(error).__name__)
    if different:
        message = f"{target} is there already, made with other settings ({'; '.join(different)}); {REDO}"
        return Report(source, target, "failed", message=message)
    return Report(source, target, "skipped", message=f"{target} is there already (--overwrite to redo it)")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _is_zarr(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in ("zarr.json", ".zattrs", ".zgroup", ".zarray"))
