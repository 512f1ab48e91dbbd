"""The command line: train, restore, sample, audit, fit-noise, fit-psf, info, demo.

Every command is a few lines around the same public functions that notebooks and widgets call; the help texts are the
docstrings. Exit codes: 0 all is well, 1 some file failed, 2 the command cannot be carried out, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

from cyclopts import App, Group, Parameter
from tqdm import tqdm

from . import __version__
from .choices import Border, ObjectiveName, OutputType, PosteriorName, PresetName, RestoreMethod
from .measurement import Optics, check_optics, mask_of_each, operator_for, with_holes
from .train_config import TrainConfig, TrainingError
from .train_config import preset as settings

if TYPE_CHECKING:
    from .noise import NoiseModel
    from .operators import Operator
    from .volumes import Volume


class AskedConfig(TrainConfig):
    """Settings that know which of them the user named: what was not named follows the preset."""

    asked: dict[str, Any]

    def __new__(cls, **asked: Any) -> AskedConfig:
        """Keep what was named; the dataclass fills in the rest."""
        self = super().__new__(cls)
        object.__setattr__(self, "asked", asked)
        return self


AskedConfig.__doc__ = TrainConfig.__doc__  # which the help shows

app = App(
    name="napari-ambient",
    version=__version__,
    default_parameter=Parameter(consume_multiple=True, negative_iterable=(), negative_bool=()),
    help="""Learn what clean structures look like from noisy microscopy stacks alone, and restore with it.

Usually: `napari-ambient train cells*.tif -o cells.prior`, which learns a *prior* (what such structures look like) and
takes minutes to hours; then `napari-ambient restore cells.prior cells*.tif -o restored/`. With `--below auto` in
training there can be error bars and deconvolution too (`restore --method samples`). `napari-ambient demo` tries it all
on a sample, and `napari-ambient COMMAND --help` explains every option.

Exit codes: 0 all is well, 1 some file failed (the others are done), 2 the command cannot be carried out, 130
interrupted.""",
)

READING = Parameter(group=Group("Reading the images", sort_key=1))
CAMERA = Parameter(group=Group("Noise of the camera (measured from the images, if left out)", sort_key=2))
DRAWING = Parameter(group=Group("Draws and error bars (--method samples)", sort_key=3))
THROUGH = Parameter(group=Group("Blur, holes and finer pixels", sort_key=4))
WRITING = Parameter(group=Group("Results", sort_key=5))
DETAILS = Parameter(group=Group("Training in detail", sort_key=6))


@app.command
def train(
    inputs: list[str],
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    preset: PresetName = "balanced",
    start: Annotated[Path | None, Parameter(name="--from")] = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    channel: Annotated[str | None, READING] = None,
    axes: Annotated[str | None, READING] = None,
    voxel_size: Annotated[tuple[float, float, float] | None, READING] = None,
    level: Annotated[int, READING] = 0,
    gain: Annotated[float | None, CAMERA] = None,
    zero: Annotated[float | None, CAMERA] = None,
    dark: Annotated[Path | None, CAMERA] = None,
    psf: Annotated[Path | None, THROUGH] = None,
    psf_is: Annotated[Literal["bead", "computed"], THROUGH] = "bead",
    border: Annotated[Border, THROUGH] = "reflect",
    mask: Annotated[Path | None, THROUGH] = None,
    finer: Annotated[int, THROUGH] = 1,
    optics: Annotated[Optics | None, Parameter(name="*"), THROUGH] = None,
    objective: Annotated[ObjectiveName, DETAILS] = "auto",
    target: Annotated[list[str] | None, DETAILS] = None,
    asked: Annotated[AskedConfig | None, Parameter(name="*"), DETAILS] = None,
) -> int:
    """Train a prior from noisy stacks.

    A prior is what the program learned of such structures; all stacks should show structures of one kind, recorded in
    one way. Nothing clean is needed. Ctrl-C ends the training early and keeps a usable prior. Error bars, deconvolution
    and new images need a second stage of the training: add --below auto.

    Parameters
    ----------
    inputs : list of str
        Noisy stacks: files, folders or patterns (cells*.tif) of TIFF, OME-Zarr or .npy.
    output : Path
        The prior to write, a folder such as mito.prior.
    preset : str
        How much time to invest: quick (600 steps), balanced (3000), best (8000 of a larger network; with a GPU, or
        over night). What is named under "Training in detail" goes before it.
    start : Path
        Begin with this prior (fine-tuning): a related stack then needs far fewer steps.
    resume : bool
        Go on with the unfinished training in the output folder.
    overwrite : bool
        Replace the prior that is there.
    device : str
        Where to compute: auto, cpu, cuda or mps.
    channel : str
        Train on this channel only: its name, or its number from 0.
    axes : str
        Name the axes when the files do not, slowest first, such as TYX (time series) or ZYX (stack).
    voxel_size : tuple of float
        Voxel size Z Y X in micrometres, when the files do not tell.
    level : int
        Pyramid level of OME-Zarr and pyramidal TIFF; 0 is full resolution.
    gain : float
        Camera counts per photo-electron, with --zero.
    zero : float
        Camera counts where there is no light, with --gain: the camera's offset, less read_noise²/gain.
    dark : Path
        Frames taken without light; they tell offset and read noise.
    psf : Path
        The stacks are blurred, and what was before the blur is learned: the image of a point (a bead) on voxels of the
        same size as those of the stacks.
    psf_is : str
        What --psf is: a bead's image, whose background is taken away, or a computed PSF, which has none.
    border : str
        What lies beyond the images whose light is seen: their mirror image, or (open) what nobody knows, which is right
        for widefield stacks, whose PSF reaches through all planes.
    mask : Path
        The stacks have holes: an image of 0 where nothing was measured, 1 elsewhere.
    finer : int
        Learn structures on so many times finer pixels along Y and X.
    objective : str
        What the network learns by; auto is right for most: ambient for stacks that are only noisy, ambient_mask for
        holes, flow_diff behind a PSF. ambient_flow, sure_score and em learn through blur and holes too; the others
        serve comparison.
    target : list of str
        Clean stacks for the objective "supervised", in the order of the inputs.
    """
    from .batch import find_files
    from .prior import load_prior
    from .progress import follow
    from .training import iter_train

    config = settings(preset, **(asked.asked if asked else {}))
    optics = optics or Optics()
    check_optics(psf is not None, optics)
    if output.exists() and any(output.iterdir()) and not (resume or overwrite):
        raise TrainingError(f"{output} exists; choose another name, or pass --overwrite or --resume")
    volumes = [_open(path, channel, level, axes, voxel_size) for path in find_files(inputs)]
    targets = [_open(path, channel, level, axes, voxel_size) for path in find_files(target)] if target else None
    for volume in volumes:
        print(f"{volume.name}: {volume.describe()}")
    noise = _given_noise(volumes, gain, zero, dark)
    begin = None if start is None else load_prior(start)
    if begin is not None and begin.knows_below and config.below == "none":
        print(
            "note: the prior to start from can give error bars and new images, what comes of it will not; "
            "--below auto keeps that",
            file=sys.stderr,
        )
    steps = iter_train(
        volumes,
        noise,
        objective=objective,
        operator=_operator(volumes[0], psf, psf_is, optics, mask, finer, border),
        target=targets,
        start=begin,
        config=config,
        device=device,
        folder=output,
        resume=resume,
    )
    last = follow(steps, f"train {output.name}")
    if last is None:
        print("nothing was trained", file=sys.stderr)
        return 130
    interrupted = last.index < last.total
    if int(os.environ.get("RANK", "0")):  # under torchrun the first process alone writes
        return 130 if interrupted else 0
    prior = last.prior()
    if interrupted:
        last.checkpoint(output)
        print(f"stopped after {last.index} of {last.total} steps; {output} is usable, --resume goes on")
    else:
        prior.save(output, overwrite=True)
        (output / "checkpoint.safetensors").unlink(missing_ok=True)
        print(f"wrote {output} ({prior.record.form} form, {last.total} steps, {last.seconds:.0f} s)")
        if prior.record.history and "moved" in prior.record.history[-1]:
            moved = prior.record.history[-1]["moved"]
            print(f"one-call answers moved by {moved:.2g} of the noise in the stage below it; {prior.levels}")
    return 130 if interrupted else 0


@app.command
def restore(
    prior: Path,
    inputs: list[str],
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    method: RestoreMethod = "mean",
    noise: Literal["prior", "fit"] = "prior",
    turns: Literal[1, 2, 4, 8] = 1,
    device: str = "auto",
    channel: Annotated[str | None, READING] = None,
    axes: Annotated[str | None, READING] = None,
    voxel_size: Annotated[tuple[float, float, float] | None, READING] = None,
    level: Annotated[int, READING] = 0,
    draws: Annotated[int, DRAWING] = 8,
    outputs: Annotated[list[str] | None, DRAWING] = None,
    steps: Annotated[int, DRAWING] = 18,
    seed: Annotated[int, DRAWING] = 0,
    recalibrate: Annotated[bool, DRAWING] = False,
    still: Annotated[bool, DRAWING] = False,
    psf: Annotated[Path | None, THROUGH] = None,
    psf_is: Annotated[Literal["bead", "computed"], THROUGH] = "bead",
    border: Annotated[Border, THROUGH] = "reflect",
    mask: Annotated[Path | None, THROUGH] = None,
    finer: Annotated[int, THROUGH] = 1,
    posterior: Annotated[PosteriorName, THROUGH] = "split_gibbs",
    optics: Annotated[Optics | None, Parameter(name="*"), THROUGH] = None,
    format: Annotated[Literal["same", "tiff", "ome-zarr"], WRITING] = "same",
    suffix: Annotated[str, WRITING] = "_restored",
    dtype: Annotated[OutputType, WRITING] = "float32",
    overwrite: Annotated[bool, WRITING] = False,
) -> int:
    """Restore files, folders or patterns of stacks with a prior.

    Finished files are skipped, so the same command goes on where it was stopped; a bad file is reported at the end and
    does not stop the others. A result that was made with other settings or another prior is neither skipped nor
    replaced: its file fails, and it is said what differs.

    Parameters
    ----------
    prior : Path
        The prior, a folder such as mito.prior.
    inputs : list of str
        Noisy stacks: files, folders or patterns (cells*.tif) of TIFF, OME-Zarr or .npy.
    output : Path
        Folder for the results.
    method : str
        mean: the clean image, fast. samples: several draws of what the clean image may have been, of which clean image
        and error bar are made; slower, and what --psf, --mask and --finer need (for a prior trained with --below
        auto). amortised: draws in one call each, with a prior trained with --psf or --mask.
    noise : str
        Use the noise of the camera that the prior was trained with, or fit it anew to each file (other camera or
        settings than in training).
    turns : int
        Average the clean image (method mean) over so many flips and quarter turns of the plane: as many times slower,
        and a little sharper.
    device : str
        Where to compute: auto, cpu, cuda or mps.
    channel : str
        Restore this channel only: its name, or its number from 0.
    axes : str
        Name the axes when the files do not, slowest first, such as TYX (time series) or ZYX (stack).
    voxel_size : tuple of float
        Voxel size Z Y X in micrometres, when the files do not tell.
    level : int
        Pyramid level of OME-Zarr and pyramidal TIFF; 0 is full resolution.
    draws : int
        Draws per image; more make the error bars smoother.
    outputs : list of str
        Channels of the result: mean (clean image), std (error bar), quantiles such as q05 and q95, draws (each of
        them). Default: mean std.
    steps : int
        Network calls per draw; with --psf, --na, --mask or --finer stages of six calls each: 12 are usual, 24 or more
        behind the PSF of a widefield microscope, which reaches through the stack.
    seed : int
        Seed of the draws: the same seed gives the same draws.
    recalibrate : bool
        Check the error bars of each file by photons held out from it, and widen or narrow them accordingly.
    still : bool
        With --recalibrate: the time points of each file show the same field, unmoved and not bleached. The first one's
        error bars are checked by the others, which is much sharper.
    psf : Path
        Deconvolve: the image of a point (a bead) on voxels of the same size as those of the inputs.
    psf_is : str
        What --psf is: a bead's image, whose background is taken away, or a computed PSF, which has none.
    border : str
        What lies beyond the images whose light is seen: their mirror image, or (open) what nobody knows, which is right
        for widefield stacks, whose PSF reaches through all planes.
    mask : Path
        Fill in: an image of 0 where nothing was measured, 1 elsewhere, or one for each time point or channel. NaN in
        the inputs are holes too.
    finer : int
        Super-resolution: so many times finer pixels along Y and X, of the same brightness, for priors of structures
        that fine.
    posterior : str
        How draws are made behind --psf, --mask and --finer. mmps draws too; diffpir, dps and red_diff give no error
        bars and serve comparison.
    format : str
        Format of the result: that of the input (TIFF for .npy), OME-TIFF or OME-Zarr.
    suffix : str
        Added to the names of the inputs.
    dtype : str
        Type of the result's numbers: float32, or that of the input (rounded; clipped voxels are counted).
    overwrite : bool
        Restore again what is finished, or was made with other settings.
    """
    from .batch import find_files, output_path, restore_files
    from .compatibility import find_misfits
    from .prior import load_prior

    loaded = load_prior(prior)
    optics = optics or Optics()
    check_optics(psf is not None, optics)
    _check_border(psf, optics, border)
    if method != "samples" and recalibrate:
        raise ValueError("--recalibrate is about the error bars of draws; add --method samples")
    if still and not recalibrate:
        raise ValueError("--still says by what the error bars are checked; add --recalibrate")
    if recalibrate and (psf is not None or optics.na is not None or mask is not None or finer != 1):
        raise ValueError("--recalibrate checks draws without --psf, --na, --mask and --finer; leave it or them out")
    if method != "mean" and turns > 1:
        raise ValueError("--turns averages the mean of one network call; take more --draws instead, or --method mean")
    if method == "mean":
        usual = {"outputs": (outputs, None), "draws": (draws, 8), "steps": (steps, 18), "seed": (seed, 0)}
        unused = [f"--{name}" for name, (given, default) in usual.items() if given != default]
        if unused:
            raise ValueError(f"{' and '.join(unused)}: about draws, and none are made; add --method samples")
    for option, path in (("--psf", psf), ("--mask", mask)):
        if path is not None and not path.exists():
            raise ValueError(f"{option} {path}: there is no such file (from the folder {Path.cwd()})")
    if channel is not None and len(loaded.noise) > 1:
        loaded = loaded.channel(int(channel) if channel.isdecimal() else channel)
    jobs = [(path, output_path(path, output, suffix, format)) for path in find_files(inputs)]
    through = psf is not None or optics.na is not None or mask is not None or finer != 1
    each = mask is not None and mask_of_each(mask)  # with time points or channels: cut in as NaN

    def look(volume: Volume, models: Sequence[NoiseModel] | None) -> None:
        for misfit in find_misfits(volume, loaded, models):
            option = " (--noise fit)" if misfit.sentence.endswith("Fit the noise anew.") else ""
            print(f"{volume.name}: note: {misfit.sentence}{option}", file=sys.stderr)

    def prepare(volume: Volume) -> Volume:
        return with_holes(volume, mask) if mask is not None and each else volume

    def operator(volume: Volume) -> Operator:
        one = None if each else mask
        return operator_for(volume, psf=psf, psf_is=psf_is, optics=optics, mask=one, finer=finer, border=border)

    bar: tqdm[Any] | None = None
    title = ""

    def watch(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, desc=title, unit="call", dynamic_ncols=True)
        bar.total = total  # which is corrected as draws end
        bar.update(done - bar.n)

    def open_(path: Path) -> Volume:
        return _open(path, channel, level, axes, voxel_size)

    files = restore_files(
        jobs,
        loaded,
        noise=noise,
        method=method,
        operator=operator if through else None,
        posterior=posterior,
        draws=draws,
        steps=steps,
        seed=seed,
        outputs=outputs or (("mean",) if method == "amortised" and loaded.posterior is None else ("mean", "std")),
        recalibrate=recalibrate,
        still=still,
        turns=turns,
        dtype=dtype,
        prepare=prepare,
        look=look,
        open_=open_,
        overwrite=overwrite,
        device=device,
        watch=watch,
    )
    failed: list[tuple[Path, str]] = []
    try:
        for report in files:
            title = report.source.name
            if report.state == "working":
                continue
            if bar is not None:
                bar.close()
                bar = None
            if report.state == "finished":
                print(f"{report.source} -> {report.target}{'; ' + report.message if report.message else ''}")
            elif report.state == "skipped":
                print(f"{report.source}: skipped, {report.message}")
            elif report.state == "failed":
                failed.append((report.source, report.message))
                print(f"{report.source}: FAILED, {report.message}", file=sys.stderr)
    except KeyboardInterrupt:
        if bar is not None:
            bar.close()
        print("interrupted; finished files are kept, run the same command to go on", file=sys.stderr)
        return 130
    if failed:
        print(f"{len(failed)} of {len(jobs)} files failed", file=sys.stderr)
    return 1 if failed else 0


@app.command
def sample(
    prior: Path,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    shape: tuple[int, ...] = (256, 256),
    count: int = 4,
    steps: int = 32,
    seed: int = 0,
    channel: int = 0,
    overwrite: bool = False,
    device: str = "auto",
) -> int:
    """Draw new images from a prior: what it takes such structures to look like.

    Parameters
    ----------
    prior : Path
        The prior, a folder such as mito.prior, trained with a stage below the noise (--below auto).
    output : Path
        File to write, such as new.ome.tif or new.ome.zarr; the images lie along the time axis.
    shape : tuple of int
        Size in voxels, Y X or Z Y X.
    count : int
        How many images.
    steps : int
        Network calls per image.
    seed : int
        The same seed gives the same images.
    channel : int
        Number of the prior's channel, from 0.
    overwrite : bool
        Replace the file that is there.
    device : str
        Where to compute: auto, cpu, cuda or mps.
    """
    from .devices import choose_device
    from .prior import load_prior
    from .volumes import Volume, save_volume

    loaded = load_prior(prior, device=choose_device(device))
    print(loaded.levels)
    images = loaded.sample(shape, count=count, steps=steps, seed=seed, channel=channel)
    axes = "TYX" if images.ndim == 3 else "TZYX"
    record = {"action": "sample", "prior_sha256": loaded.sha256, "steps": steps, "seed": seed, "version": __version__}
    sizes = {axis: size for axis, size in loaded.record.voxel_size.items() if size is not None and axis in axes}
    volume = Volume.from_array(images, axes, voxel_size=sizes or None, name=output.name, history=(record,))
    print(f"wrote {save_volume(output, volume, overwrite=overwrite)}")
    return 0


@app.command
def audit(
    prior: Path,
    training: list[str],
    /,
    *,
    held_out: list[str] | None = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    count: int = 16,
    channel: int = 0,
    seed: int = 0,
    device: str = "auto",
    axes: Annotated[str | None, READING] = None,
    voxel_size: Annotated[tuple[float, float, float] | None, READING] = None,
    psf: Annotated[Path | None, THROUGH] = None,
    psf_is: Annotated[Literal["bead", "computed"], THROUGH] = "bead",
    border: Annotated[Border, THROUGH] = "reflect",
    mask: Annotated[Path | None, THROUGH] = None,
    finer: Annotated[int, THROUGH] = 1,
    optics: Annotated[Optics | None, Parameter(name="*"), THROUGH] = None,
) -> int:
    """Check whether a prior memorised its training stacks instead of learning from them.

    New images are drawn and compared with the training stacks; the verdict is healthy, suspicious, memorised, or
    undecided, with the reason. Held-out stacks make it sharper. For a prior that was trained with --psf, --na, --mask
    or --finer, give the same again: its stacks are restored through them.

    Parameters
    ----------
    prior : Path
        The prior, trained with a stage below the noise (--below auto).
    training : list of str
        The stacks that it was trained on.
    held_out : list of str
        Stacks of the same kind that it was not trained on, of other fields of view.
    output : Path
        Save the closest pairs as a picture (PNG).
    count : int
        New images to look at.
    channel : int
        Number of the channel, from 0.
    seed : int
        Seed of all random choices.
    device : str
        Where to compute: auto, cpu, cuda or mps.
    axes : str
        Name the axes when the files do not, slowest first, such as TYX (time series) or ZYX (stack).
    voxel_size : tuple of float
        Voxel size Z Y X in micrometres, when the files do not tell.
    psf : Path
        The PSF of the training: the image of a point (a bead) on voxels of the same size as those of the stacks.
    psf_is : str
        What --psf is: a bead's image, whose background is taken away, or a computed PSF, which has none.
    border : str
        What lies beyond the images whose light is seen: their mirror image, or (open) what nobody knows, which is right
        for widefield stacks, whose PSF reaches through all planes.
    mask : Path
        The mask of the stacks: an image of 0 where nothing was measured, 1 elsewhere.
    finer : int
        The prior's structures are on so many times finer pixels along Y and X.
    """
    from .batch import find_files
    from .devices import choose_device
    from .prior import load_prior
    from .prior_audit import audit_prior

    loaded = load_prior(prior, device=choose_device(device))
    optics = optics or Optics()
    check_optics(psf is not None, optics)
    known = [_open(path, None, 0, axes, voxel_size) for path in find_files(training)]
    unseen = [_open(path, None, 0, axes, voxel_size) for path in find_files(held_out)] if held_out else None
    operator = _operator(known[0], psf, psf_is, optics, mask, finer, border)
    result = audit_prior(loaded, known, unseen, operator=operator, channel=channel, count=count, seed=seed)
    print(f"{result.verdict}: {result.sentence}")
    for note in result.notes:
        print(f"note: {note}")
    if output is not None:
        result.figure(output)
        print(f"wrote {output}")
    return 0


@app.command
def fit_noise(
    path: str,
    /,
    *,
    kind: Literal["auto", "repeats", "frames", "single"] = "auto",
    dark: Path | None = None,
    offset: float | None = None,
    plot: Path | None = None,
    channel: str | None = None,
    axes: str | None = None,
    level: int = 0,
) -> int:
    """Estimate a camera's noise from its images: gain, read noise, hot pixels, photons per voxel.

    Parameters
    ----------
    path : str
        A noisy image or stack.
    kind : str
        What the images are: repeats of a field in which nothing moves, successive frames of a film, or single images.
    dark : Path
        Frames taken without light; they tell offset and read noise.
    offset : float
        The camera's offset in counts, when known.
    plot : Path
        Save the photon-transfer plot (variance against mean) as an image.
    channel : str
        Use this channel only: its name, or its number from 0.
    axes : str
        Name the axes when the file does not, slowest first, such as TYX (time series) or ZYX (stack).
    level : int
        Pyramid level of OME-Zarr and pyramidal TIFF; 0 is full resolution.
    """
    from . import noise_fit

    volume = _open(path, channel, level, axes, None)
    dark_volume = None if dark is None else _open(dark, None, 0, None, None)
    print(f"{volume.name}: {volume.describe()}")
    count = volume.sizes.get("C", 1)
    for c in range(count):
        part = volume.channel(c) if "C" in volume.axes else volume
        model = noise_fit.fit_noise(part, kind=kind, dark=dark_volume, offset=offset)
        if count > 1:
            print(f"channel {volume.channel_names[c] if volume.channel_names else c}")
        print(noise_fit.describe(model))
        if plot is not None:
            target = plot if count == 1 else plot.with_stem(f"{plot.stem}_{c}")
            noise_fit.plot_transfer(model, target)
            print(f"wrote {target}")
    return 0


@app.command
def fit_psf(
    path: str,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    na: float,
    wavelength: float = 520.0,
    refractive_index: float = 1.515,
    gain: float | None = None,
    zero: float | None = None,
    channel: str | None = None,
    axes: str | None = None,
    voxel_size: tuple[float, float, float] | None = None,
    level: int = 0,
    seed: int = 0,
    overwrite: bool = False,
) -> int:
    """Fit the PSF of a widefield microscope to a stack: the optics that predict photons held out of it best.

    Aperture, axial scale and spherical aberration, from what is written on the objective on; it takes minutes, up to a
    quarter of an hour. Of a time series the first time point is used. Then deconvolve with
    `--psf psf.tif --psf-is computed`.

    Parameters
    ----------
    path : str
        A noisy widefield stack.
    output : Path
        File to write, such as psf.tif.
    na : float
        Numerical aperture, as written on the objective.
    wavelength : float
        Emission wavelength, nm.
    refractive_index : float
        Refractive index of the immersion: oil 1.515, glycerol 1.47, silicone 1.40, water 1.33, air 1.0.
    gain : float
        Camera counts per photo-electron, with --zero; else both are measured from the stack.
    zero : float
        Camera counts without light.
    channel : str
        Use this channel: its name, or its number from 0.
    axes : str
        Name the axes when the file does not, slowest first, such as TYX (time series) or ZYX (stack).
    voxel_size : tuple of float
        Z Y X in micrometres, when the file does not say it.
    level : int
        Pyramid level of OME-Zarr and pyramidal TIFF; 0 is full resolution.
    seed : int
        Of the choice of the photons that are held out.
    overwrite : bool
        Replace the file that is there.
    """
    from . import noise_fit, psf_fit
    from .noise import NoiseModel
    from .volumes import save_volume

    volume = _open(path, channel, level, axes, voxel_size)
    print(f"{volume.name}: {volume.describe()}")
    if "T" in volume.axes:
        volume = volume.replace(data=volume.data[0], axes=volume.axes[1:])
    optics = Optics(na=na, wavelength=wavelength, refractive_index=refractive_index)
    noise = _given_noise([volume], gain, zero, None)
    if not isinstance(noise, NoiseModel):
        noise = noise_fit.fit_noise(volume)
    with tqdm(desc="fitting the PSF", unit="PSF", total=psf_fit.EVALUATIONS, dynamic_ncols=True) as bar:

        def told(best: psf_fit.FittedPsf) -> None:
            bar.update(best.evaluations - bar.n)
            bar.set_postfix_str(f"NA {best.na:.2f}, axial scale {best.axial_scale:.2f}")

        found = psf_fit.fit_psf(volume, noise, optics, seed=seed, watch=told)
    print(found.describe())
    print(f"wrote {save_volume(output, found.volume(volume), overwrite=overwrite)}")
    return 0


@app.command
def info(path: str, /, *, axes: str | None = None, level: int = 0) -> int:
    """Describe a stack (axes, voxel size, and what was done to it) or a prior (what it was trained on, and its noise).

    Parameters
    ----------
    path : str
        TIFF, OME-Zarr or .npy file, folder, or a prior.
    axes : str
        Name the axes when the file does not, slowest first, such as TYX (time series) or ZYX (stack).
    level : int
        Pyramid level of OME-Zarr and pyramidal TIFF; 0 is full resolution.
    """
    if (Path(path) / "prior.json").is_file():
        from .noise_fit import describe
        from .prior import load_prior

        prior = load_prior(path)
        record, network = prior.record, prior.denoiser.network
        weights = sum(p.numel() for p in network.parameters())
        print(f"{path}: a prior, {network.arguments.dims}D network of {weights / 1e6:.2f} million parameters")
        print(f"objective {record.objective}, {record.form} form, {record.step} steps, version {record.version}")
        print(f"trained on {', '.join(record.sources) or 'unnamed stacks'}, axes {record.axes}, µm {record.voxel_size}")
        print(prior.levels)
        if record.operator:
            parts = record.operator.get("applied", [record.operator])
            print(f"learned through: {', then '.join(str(part['operator']) for part in parts)} (in this order)")
        if prior.posterior is not None:
            print("has a posterior of its own, of one call per draw: restore --method amortised")
        if record.history:
            print(f"held-out loss {record.history[0]['validation']:.4g} -> {record.history[-1]['validation']:.4g}")
        for c, noise in enumerate(prior.noise):
            print(f"noise of channel {c}:")
            print(describe(noise))
        return 0
    volume = _open(path, None, level, axes, None)
    print(f"{volume.name}: {volume.describe()}")
    if volume.channel_names:
        print("channels: " + ", ".join(volume.channel_names))
    for entry in volume.history:
        print("history: " + json.dumps(entry))
    return 0


@app.command
def demo(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("demo"),
    steps: int = 3000,
    compare: bool = False,
    device: str = "auto",
) -> int:
    """Train on the sample stack, restore it, and draw noisy, restored and true images with their PSNR.

    Parameters
    ----------
    output : Path
        Folder for the prior, the restored stack (TIFF and OME-Zarr) and the picture.
    steps : int
        Training steps.
    compare : bool
        Also train the same network on the clean truth for as many steps, to see how near it comes.
    device : str
        Where to compute: auto, cpu, cuda or mps.
    """
    from .demo import run

    return run(output, steps=steps, compare=compare, device=device)


def _open(
    path: str | Path,
    channel: str | None,
    level: int,
    axes: str | None,
    voxel_size: Sequence[float] | None,
) -> Volume:
    from .volumes import open_volume

    which = int(channel) if channel is not None and channel.isdecimal() else channel
    volume = open_volume(path, channel=which, level=level, axes=axes)
    if voxel_size is None:
        return volume
    # Z Y X are always given; a plane has no use for the first
    steps = [step for axis, step in zip("ZYX", voxel_size, strict=True) if axis in volume.axes]
    return open_volume(path, channel=which, level=level, axes=axes, voxel_size=steps)


def _operator(
    volume: Volume,
    psf: Path | None,
    psf_is: Literal["bead", "computed"],
    optics: Optics,
    mask: Path | None,
    finer: int,
    border: Border,
) -> Operator | None:
    """Give the operator that the options name; None where they name none."""
    _check_border(psf, optics, border)
    if psf is None and optics.na is None and mask is None and finer == 1:
        return None
    return operator_for(volume, psf=psf, psf_is=psf_is, optics=optics, mask=mask, finer=finer, border=border)


def _check_border(psf: Path | None, optics: Optics, border: Border) -> None:
    if border != "reflect" and psf is None and optics.na is None:
        raise ValueError(f"--border {border} is about a blur; add --psf or --na, or leave it out")


def _given_noise(
    volumes: Sequence[Volume], gain: float | None, zero: float | None, dark: Path | None
) -> list[NoiseModel] | NoiseModel | None:
    """Give the noise that the user named, or fit each volume with the dark frames; None to let training fit it."""
    from .noise import NoiseModel
    from .noise_fit import fit_noise as fit

    if (gain is None) != (zero is None):
        raise TrainingError("--gain and --zero belong together; give both, or neither to have them fitted")
    if gain is not None and zero is not None:
        return NoiseModel(gain=gain, intercept=-gain * zero)
    if dark is None:
        return None
    frames = _open(dark, None, 0, None, None)
    return [fit(v.channel(c) if "C" in v.axes else v, dark=frames) for v in volumes for c in range(v.sizes.get("C", 1))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    # Before torch starts its threads: a waiting thread spins only briefly. Where other programs keep the cores
    # busy, the default was measured ten times slower; with this a busy core costs little (GNU OpenMP only).
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    warnings.showwarning = _show_warning
    try:
        code = app(arguments, result_action="return_value")
    except (ValueError, OSError, MemoryError) as error:
        print(f"napari-ambient: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    tqdm.write(f"{category.__name__}: {message}", file=sys.stderr)
