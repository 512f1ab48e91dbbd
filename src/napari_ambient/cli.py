"""The command line: train, restore, sample, audit, fit-noise, info, demo.

Every command is a few lines around the same public functions that notebooks and widgets call; the help texts are the
docstrings. Exit codes: 0 all is well, 1 some file failed, 2 the command cannot be carried out, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

from cyclopts import App, Parameter
from tqdm import tqdm

from . import __version__
from .choices import ObjectiveName, OutputType, PosteriorName, PresetName, RestoreMethod
from .measurement import Optics, check_optics, operator_for, with_holes
from .train_config import TrainConfig, TrainingError
from .train_config import preset as settings

if TYPE_CHECKING:
    from .noise import NoiseModel
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
    default_parameter=Parameter(consume_multiple=True, negative_iterable=()),
    help="Learn what clean structures look like from noisy microscopy stacks alone, and restore with it.",
)


@app.command
def train(
    inputs: list[str],
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    preset: PresetName = "balanced",
    objective: ObjectiveName = "auto",
    psf: Path | None = None,
    psf_is: Literal["bead", "computed"] = "bead",
    mask: Path | None = None,
    finer: int = 1,
    target: list[str] | None = None,
    start: Annotated[Path | None, Parameter(name="--from")] = None,
    channel: str | None = None,
    axes: str | None = None,
    voxel_size: tuple[float, float, float] | None = None,
    level: int = 0,
    gain: float | None = None,
    zero: float | None = None,
    dark: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    optics: Annotated[Optics | None, Parameter(name="*")] = None,
    asked: Annotated[AskedConfig | None, Parameter(name="*")] = None,
) -> int:
    """Train a prior from noisy stacks.

    Parameters
    ----------
    inputs : list of str
        Noisy stacks: files, folders or globs of TIFF, OME-Zarr or .npy. All of one kind of structure.
    output : Path
        The prior to write, a folder such as mito.prior.
    preset : str
        How much to invest: quick (600 steps), balanced (3000), best (8000 of a larger network; with a GPU, or over
        night). What is named below goes before it.
    objective : str
        What to minimise. auto: ambient for stacks that are only noisy, ambient_mask for holes, flow_diff behind a PSF.
        ambient_flow, sure_score and em learn through any of them too; the others serve comparison.
    psf : Path
        The stacks are blurred: the image of a point, on their voxels. The prior is of what was before the blur.
    psf_is : str
        A bead's image, whose background is taken away, or a computed PSF, which has none.
    mask : Path
        The stacks have holes: an image of 0 where nothing was measured, 1 elsewhere.
    finer : int
        Learn structures on so many times finer pixels along Y and X.
    target : list of str
        Clean stacks for the objective "supervised", in the order of the inputs.
    start : Path
        Begin with this prior (fine-tuning): a related stack then needs far fewer steps.
    channel : str
        Train on this channel only (name or number).
    axes : str
        Name the axes when the files do not, such as TYX or ZYX.
    voxel_size : tuple of float
        Voxel size Z Y X in micrometres, when the files do not tell.
    level : int
        Pyramid level of OME-Zarr and pyramidal TIFF.
    gain : float
        Camera counts per photo-electron, when known; with --zero. Else fitted to each stack.
    zero : float
        Level at which the photon-transfer line crosses zero: offset - read_noise²/gain.
    dark : Path
        Frames taken without light, for offset and read noise.
    resume : bool
        Go on with the unfinished training in the output folder.
    overwrite : bool
        Replace the prior that is there.
    device : str
        auto, cpu, cuda or mps.
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
    operator = None
    if psf is not None or optics.na is not None or mask is not None or finer != 1:
        operator = operator_for(volumes[0], psf=psf, psf_is=psf_is, optics=optics, mask=mask, finer=finer)
    steps = iter_train(
        volumes,
        noise,
        objective=objective,
        operator=operator,
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
    noise: Literal["prior", "fit"] = "prior",
    method: RestoreMethod = "mean",
    draws: int = 8,
    steps: int = 18,
    seed: int = 0,
    outputs: list[str] | None = None,
    recalibrate: bool = False,
    psf: Path | None = None,
    psf_is: Literal["bead", "computed"] = "bead",
    mask: Path | None = None,
    finer: int = 1,
    posterior: PosteriorName = "split_gibbs",
    dtype: OutputType = "float32",
    format: Literal["same", "tiff", "ome-zarr"] = "same",
    suffix: str = "_restored",
    channel: str | None = None,
    axes: str | None = None,
    voxel_size: tuple[float, float, float] | None = None,
    level: int = 0,
    overwrite: bool = False,
    device: str = "auto",
    optics: Annotated[Optics | None, Parameter(name="*")] = None,
) -> int:
    """Restore files, folders or globs of stacks with a prior.

    Finished files are skipped, so the same command goes on where it was stopped; a bad file is reported at the end and
    does not stop the others.

    Parameters
    ----------
    prior : Path
        The prior, a folder such as mito.prior.
    inputs : list of str
        Noisy stacks: files, folders or globs of TIFF, OME-Zarr or .npy.
    output : Path
        Folder for the results.
    noise : str
        Use the noise model of the prior, or fit it anew to each file (other camera settings than in training).
    method : str
        The posterior mean in one call, what draws from the posterior say (mean and error bar), or, with a prior
        trained behind a PSF or mask, the draws of its own posterior, one call each.
    draws : int
        Draws per image, for --method samples.
    steps : int
        Network calls per draw; with --psf, --na, --mask or --finer stages of six calls each (12 are usual).
    seed : int
        Seed of the draws.
    outputs : list of str
        Channels of the result: mean, std, quantiles such as q05 and q95, draws. Default: mean std.
    recalibrate : bool
        Check the error bars of each file by photons held out from it, and widen or narrow them accordingly.
    psf : Path
        Deconvolve: the image of a point, on the voxels of the inputs; with --method samples.
    psf_is : str
        A bead's image, whose background is taken away, or a computed PSF, which has none.
    mask : Path
        Fill in: an image of 0 where nothing was measured, 1 elsewhere, or one for each time point or channel; with
        --method samples. NaN are holes too.
    finer : int
        Super-resolution: so many times finer pixels along Y and X, of the same brightness, for priors of structures
        that fine; with --method samples.
    posterior : str
        Method behind --psf, --mask and --finer. diffpir, dps and red_diff are for comparison.
    dtype : str
        Type of the result: float32, or that of the input (rounded; clipped voxels are counted).
    format : str
        Format of the result.
    suffix : str
        Added to the names.
    channel : str
        Restore this channel only (name or number).
    axes : str
        Name the axes when the files do not, such as TYX or ZYX.
    voxel_size : tuple of float
        Voxel size Z Y X in micrometres, when the files do not tell.
    level : int
        Pyramid level of OME-Zarr and pyramidal TIFF.
    overwrite : bool
        Restore again what is finished.
    device : str
        auto, cpu, cuda or mps.
    """
    from .batch import find_files, iter_batch, output_path
    from .compatibility import find_misfits
    from .noise_fit import fit_channels
    from .prior import load_prior
    from .recalibration import measure_spread
    from .restoration import Clipping
    from .restoration import restore as restore_volume
    from .uncertainty import work_folder

    loaded = load_prior(prior)
    optics = optics or Optics()
    check_optics(psf is not None, optics)
    if method != "samples" and recalibrate:
        raise ValueError("--recalibrate is about the error bars of draws; add --method samples")
    if recalibrate and (psf is not None or optics.na is not None or mask is not None or finer != 1):
        raise ValueError("--recalibrate checks draws without --psf, --na, --mask and --finer; leave it or them out")
    if method == "mean" and outputs is not None:
        raise ValueError("--outputs says what to give of draws; add --method samples")
    if channel is not None and len(loaded.noise) > 1:
        loaded = loaded.channel(int(channel) if channel.isdecimal() else channel)
    jobs = [(path, output_path(path, output, suffix, format)) for path in find_files(inputs)]
    clipping = Clipping()

    def work(volume: Volume, target: Path) -> Volume:
        nonlocal clipping
        clipping = Clipping()
        models = fit_channels(volume) if noise == "fit" else None
        for misfit in find_misfits(volume, loaded, models):
            option = " (--noise fit)" if misfit.about == "noise" else ""
            print(f"{volume.name}: note: {misfit.sentence}{option}", file=sys.stderr)
        spread = 1.0
        if recalibrate:
            if volume.sizes.get("C", 1) > 1:
                raise ValueError("--recalibrate looks at one channel; choose it with --channel")
            model = None if models is None else models[0]
            found = measure_spread(volume, loaded, noise=model, seed=seed, device=device)
            spread = found.factor
            print(f"{volume.name}: error bars multiplied by {spread:.3f} ± {found.uncertainty:.3f} (held-out photons)")
        one_mask = mask
        if mask is not None and (holed := with_holes(volume, mask)) is not None:
            volume, one_mask = holed, None
        return restore_volume(
            volume,
            loaded,
            spread=spread,
            noise=models,
            operator=operator_for(volume, psf=psf, psf_is=psf_is, optics=optics, mask=one_mask, finer=finer),
            method=method,
            posterior=posterior,
            draws=draws,
            steps=steps,
            seed=seed,
            outputs=outputs or (("mean",) if method == "amortised" and loaded.posterior is None else ("mean", "std")),
            work=None if method == "mean" else work_folder(target),
            dtype=dtype,
            device=device,
            clipping=clipping,
            watch=watch,
        )

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

    failed: list[tuple[Path, str]] = []
    try:
        for report in iter_batch(jobs, work, open_=open_, overwrite=overwrite):
            title = report.source.name
            if report.state == "working":
                continue
            if bar is not None:
                bar.close()
                bar = None
            if report.state == "finished":
                shutil.rmtree(work_folder(report.target), ignore_errors=True)
                clipped = clipping.describe()
                print(f"{report.source} -> {report.target}{'; ' + clipped if clipped else ''}")
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
        File to write, OME-TIFF or OME-Zarr; the images lie along T.
    shape : tuple of int
        Y X or Z Y X.
    count : int
        How many images.
    steps : int
        Network calls per image.
    seed : int
        Seed.
    channel : int
        Image channel of the prior.
    overwrite : bool
        Replace the file that is there.
    device : str
        auto, cpu, cuda or mps.
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
    axes: str | None = None,
    seed: int = 0,
    device: str = "auto",
) -> int:
    """Check whether a prior memorised its training stacks instead of learning from them.

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
        Image channel.
    axes : str
        Name the axes when the files do not, such as TYX or ZYX.
    seed : int
        Seed of all random choices.
    device : str
        auto, cpu, cuda or mps.
    """
    from .batch import find_files
    from .devices import choose_device
    from .prior import load_prior
    from .prior_audit import audit_prior

    loaded = load_prior(prior, device=choose_device(device))
    known = [_open(path, None, 0, axes, None) for path in find_files(training)]
    unseen = [_open(path, None, 0, axes, None) for path in find_files(held_out)] if held_out else None
    result = audit_prior(loaded, known, unseen, channel=channel, count=count, seed=seed)
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
        Repeats of a static field, successive frames, or single images.
    dark : Path
        Frames taken without light.
    offset : float
        The camera's offset, when known.
    plot : Path
        Save the photon-transfer plot as an image.
    channel : str
        Use this channel only (name or number).
    axes : str
        Name the axes when the file does not, such as TYX or ZYX.
    level : int
        Pyramid level of OME-Zarr and pyramidal TIFF.
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
def info(path: str, /, *, axes: str | None = None, level: int = 0) -> int:
    """Describe a stack or a prior.

    Parameters
    ----------
    path : str
        TIFF, OME-Zarr or .npy file, folder, or a prior.
    axes : str
        Name the axes when the file does not, such as TYX or ZYX.
    level : int
        Pyramid level of OME-Zarr and pyramidal TIFF.
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
        auto, cpu, cuda or mps.
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
    return [
        fit(v.channel(c) if "C" in v.axes else v, dark=frames) for v in volumes for c in range(v.sizes.get("C", 1))
    ]


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
