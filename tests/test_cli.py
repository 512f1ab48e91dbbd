"""The command line, as a user types it: results, messages and exit codes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_ambient import Volume, load_prior, open_volume, psf_fit, restore, save_volume
from napari_ambient.cli import main
from napari_ambient.measurement import operator_for
from napari_ambient.operators import Blur
from test_uncertainty import make_prior

TINY = ["--steps", "4", "--batch", "2", "--patch", "16", "16", "--precision", "float32", "--device", "cpu"]


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(*(np.linspace(0, 3 * np.pi, 48),) * 2, indexing="ij")
    counts = 100 + 2 * rng.poisson(5 * (1 + np.sin(y) * np.sin(x)), (4, 48, 48))
    path = tmp_path / "waves.tif"
    tifffile.imwrite(path, counts.astype(np.uint16), imagej=True, metadata={"axes": "TYX", "unit": "um"})
    return path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


def trained(stack: Path, folder: Path) -> Path:
    assert run("train", stack, "-o", folder / "a.prior", "--gain", 2, "--zero", 100, *TINY) == 0
    return folder / "a.prior"


def test_train_restore_info(stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The main path; the same voxels as the library gives; finished files are skipped the second time."""
    prior = trained(stack, tmp_path)
    assert sorted(p.name for p in prior.iterdir()) == ["prior.json", "weights.safetensors"]
    assert run("restore", prior, stack, "-o", tmp_path / "out") == 0
    result = open_volume(tmp_path / "out" / "waves_restored.ome.tif")
    expected = restore(open_volume(stack), load_prior(prior), device="cpu").data.compute()
    np.testing.assert_allclose(result.data.compute(), expected, rtol=1e-6)
    assert result.axes == "TYX"
    assert result.history[-1]["prior_sha256"] == load_prior(prior).sha256
    capsys.readouterr()
    assert run("restore", prior, stack, "-o", tmp_path / "out") == 0
    assert "skipped" in capsys.readouterr().out
    made = (tmp_path / "out" / "waves_restored.ome.tif").read_bytes()
    assert run("restore", prior, stack, "-o", tmp_path / "out", "--dtype", "input") == 1
    said = capsys.readouterr()
    assert "skipped" not in said.out
    assert "made with other settings (type float32 instead of uint16)" in said.err
    assert "--overwrite" in said.err
    assert (tmp_path / "out" / "waves_restored.ome.tif").read_bytes() == made
    assert run("restore", prior, stack, "-o", tmp_path / "out", "--turns", 8) == 1
    assert "(flips and quarter turns 1 instead of 8)" in " ".join(capsys.readouterr().err.split())
    assert run("restore", prior, stack, "-o", tmp_path / "out", "--turns", 2, "--method", "samples") == 2
    assert "--method mean" in capsys.readouterr().err
    assert run("restore", prior, stack, "-o", tmp_path / "out", "--dtype", "input", "--overwrite") == 0
    capsys.readouterr()
    assert run("info", prior) == 0
    text = capsys.readouterr().out
    assert "thinning form, 4 steps" in text
    assert "gain" in text
    assert run("info", stack) == 0
    assert "T = 4, Y = 48, X = 48" in capsys.readouterr().out


def test_restore_to_zarr_in_the_input_type(stack: Path, tmp_path: Path) -> None:
    """OME-Zarr out, uint16, rounded."""
    prior = trained(stack, tmp_path)
    code = run("restore", prior, stack, "-o", tmp_path, "--format", "ome-zarr", "--dtype", "input", "--suffix", "_d")
    assert code == 0
    assert open_volume(tmp_path / "waves_d.ome.zarr").dtype == np.uint16


def test_a_bad_file_gives_exit_code_1(stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are restored, the bad one is named."""
    prior = trained(stack, tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "bad.tif").write_bytes(stack.read_bytes()[:3000])
    (folder / "good.tif").write_bytes(stack.read_bytes())
    assert run("restore", prior, folder, "-o", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "bad.tif: FAILED" in error
    assert "1 of 2 files failed" in error
    assert (tmp_path / "out" / "good_restored.ome.tif").exists()


def test_fit_noise(stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints the camera, and draws the line."""
    assert run("fit-noise", stack, "--plot", tmp_path / "line.png") == 0
    text = capsys.readouterr().out.lower()
    assert "gain" in text
    assert "photo-electrons" in text
    assert (tmp_path / "line.png").read_bytes()[:4] == b"\x89PNG"


def test_fit_psf(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The fitted PSF is a file that `--psf` takes, with its optics in the history."""

    def optics(na: float) -> list[object]:
        return ["--na", na, "--refractive-index", 1.33, "--gain", 2, "--zero", 100]

    monkeypatch.setattr(psf_fit, "EVALUATIONS", 6)
    y = np.linspace(0, np.pi, 40)
    light = 5 + 60 * np.sin(y) * np.sin(y)[:, None] * np.ones((9, 1, 1))
    light[4, 15:25, 15:25] += 400
    counts = 100 + 2 * np.random.default_rng(0).poisson(light)
    step = {"Z": 0.4, "Y": 0.2, "X": 0.2}
    save_volume(tmp_path / "a.tif", Volume.from_array(counts.astype(np.uint16), "ZYX", voxel_size=step))
    assert run("fit-psf", tmp_path / "a.tif", "-o", tmp_path / "psf.tif", *optics(1.1)) == 0
    assert "held-out photons" in capsys.readouterr().out
    psf = open_volume(tmp_path / "psf.tif")
    assert psf.voxel_size == pytest.approx(step)
    assert psf.history[-1]["action"] == "fit PSF"
    operator = operator_for(open_volume(tmp_path / "a.tif"), psf=tmp_path / "psf.tif", psf_is="computed")
    assert isinstance(operator, Blur)
    assert run("fit-psf", tmp_path / "a.tif", "-o", tmp_path / "b.tif", *optics(1.4)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nowhere.tif"], "nowhere.tif"),
        (["restore", "nowhere.prior", "x.tif", "-o", "out"], "does not exist"),
        (["train", "nowhere*.tif", "-o", "a.prior"], "no image found"),
        (["fit-noise", "constant.tif"], "constant"),
        (["info", "cube.tif"], "axes"),
        (["train", "constant.tif", "-o", "a.prior", "--gain", "2"], "belong together"),
    ],
)
def test_what_cannot_be_done_gives_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line on stderr that says what came and what to do; no traceback."""
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("constant.tif", np.full((64, 64), 7, np.uint8))
    tifffile.imwrite("cube.tif", np.zeros((5, 6, 7), np.uint8), photometric="minisblack")
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_an_existing_prior_is_not_replaced(stack: Path, tmp_path: Path) -> None:
    """Only with --overwrite."""
    prior = trained(stack, tmp_path)
    before = load_prior(prior).sha256
    other = ["--seed", "5", *TINY]
    assert run("train", stack, "-o", prior, "--gain", 2, "--zero", 100, *other) == 2
    assert load_prior(prior).sha256 == before
    assert run("train", stack, "-o", prior, "--gain", 2, "--zero", 100, "--overwrite", *other) == 0
    assert load_prior(prior).sha256 != before


def test_help_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command and option says what it is for."""
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("train", "restore", "fit-noise", "info", "demo", "Exit codes"))
    assert run("train", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Optimiser steps" in text
    assert "blind-spot" in text or "blind_spot" in text
    # settings of one kind stand together, so that the few that everybody needs are found
    assert text.index("--output") < text.index("Reading the images") < text.index("--axes")
    assert text.index("Noise of the camera") < text.index("--gain") < text.index("Blur, holes and finer pixels")
    assert text.index("--na ") < text.rindex("Training in detail") < text.index("--learning-rate")
    assert "--no-" not in text


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupted_training_is_usable_and_resumes(stack: Path, tmp_path: Path) -> None:
    """Ctrl-C saves the prior so far, exit code 130; --resume ends where an uninterrupted training does."""
    program = [sys.executable, "-m", "napari_ambient", "train", str(stack), "--gain", "2", "--zero", "100"]
    options = ["--batch", "8", "--patch", "32", "32", "--precision", "float32", "--device", "cpu", "--steps", "300"]
    # seconds of work, so that the signal comes before the end on a busy machine too
    folder = tmp_path / "a.prior"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [*program, "-o", str(folder), *options]
    # a shell ignores Ctrl-C for what it runs in the background, and children inherit that
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, preexec_fn=_hear_interrupts) as process:
        assert process.stderr is not None
        text = b""
        while not re.search(rb"[4-9]/300|\d\d/300", text):
            piece = os.read(process.stderr.fileno(), 4096)  # what is there, without waiting for more
            assert piece, text  # it ended before it trained
            text += piece
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    stopped = load_prior(folder).record.step
    assert 4 <= stopped < 300
    assert (folder / "checkpoint.safetensors").exists()
    again = [*program, "-o", str(folder), *options, "--resume"]
    done = subprocess.run(again, capture_output=True, env=environment, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    assert load_prior(folder).record.step == 300
    assert not (folder / "checkpoint.safetensors").exists()


def test_samples_new_images_and_audit(stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a stage below the noise: error bars beside the mean, new images, the audit, and fine-tuning."""
    prior = tmp_path / "a.prior"
    below = ["--below", "auto", "--below-steps", "4"]
    assert run("train", stack, "-o", prior, "--gain", 2, "--zero", 100, *TINY, *below) == 0
    out = tmp_path / "out"
    draws = ["--method", "samples", "--draws", 2, "--steps", 3, "--device", "cpu"]
    assert run("restore", prior, stack, "-o", out, *draws, "--outputs", "mean", "std", "q95") == 0
    result = open_volume(out / "waves_restored.ome.tif")
    assert result.channel_names == ("mean", "std", "q95")
    assert result.shape == (4, 3, 48, 48)
    assert [p.name for p in out.iterdir()] == ["waves_restored.ome.tif"]
    assert run("restore", prior, stack, "-o", out, "--recalibrate") == 2
    assert "--method samples" in capsys.readouterr().err
    assert run("restore", prior, stack, "-o", out, *draws, "--recalibrate", "--finer", 2) == 2
    assert "leave it or them out" in capsys.readouterr().err
    # the four frames are of the same waves: the error bars of the first are checked by the others
    checked = [*draws, "--suffix", "_checked", "--recalibrate"]
    assert run("restore", prior, stack, "-o", out, *draws, "--still") == 2
    assert "add --recalibrate" in capsys.readouterr().err
    assert run("restore", prior, stack, "-o", out, *checked, "--still") == 0
    assert re.search(r"error bars multiplied by .*, by 3 other time points", capsys.readouterr().out)
    spread = open_volume(out / "waves_checked.ome.tif").history[-1]["spread"]
    assert spread["source"] == "3 other time points"
    assert run("restore", prior, stack, "-o", out, *checked) == 1
    assert "recalibrated by 3 other time points" in " ".join(capsys.readouterr().err.split())
    tifffile.imwrite(tmp_path / "psf.tif", np.pad(np.full((3, 3), 100, np.uint16), 4))
    tifffile.imwrite(tmp_path / "mask.tif", np.eye(48, dtype=np.uint8) == 0)
    through = ["--psf", tmp_path / "psf.tif", "--mask", tmp_path / "mask.tif", "--suffix", "_sharp"]
    assert run("restore", prior, stack, "-o", out, *draws, *through) == 0
    history = open_volume(out / "waves_sharp.ome.tif").history[-1]
    assert [part["operator"] for part in history["operator"]["applied"]] == ["blur", "mask"]
    optics = ["--na", 1.3, "--wavelength", 520, "--voxel-size", 0.2, 0.1, 0.1, "--suffix", "_optics"]
    assert run("restore", prior, stack, "-o", out, *draws, *optics) == 0
    assert run("restore", prior, stack, "-o", out, *draws, "--na", 1.3, "--suffix", "_x") == 1
    assert "--voxel-size" in capsys.readouterr().err
    assert run("restore", prior, stack, "-o", out, *draws, "--na", 1.3, "--psf", tmp_path / "psf.tif") == 2
    capsys.readouterr()
    assert run("sample", prior, "-o", tmp_path / "new.ome.tif", "--shape", 32, 40, "--count", 2, "--steps", 3) == 0
    assert "inferred by virtual_exposures" in capsys.readouterr().out
    assert open_volume(tmp_path / "new.ome.tif").shape == (2, 32, 40)
    tuned = tmp_path / "b.prior"
    assert run("train", stack, "-o", tuned, "--from", prior, "--gain", 2, "--zero", 100, *TINY) == 0
    assert load_prior(tuned).record.start == load_prior(prior).sha256
    assert run("audit", prior, stack, "--count", 2, "-o", tmp_path / "pairs.png") == 0
    said = capsys.readouterr().out
    assert re.search("(healthy|suspicious|memorised|undecided): ", said)
    assert "nothing was held out" in said


def test_what_needs_the_stage_below_says_so(stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A prior without it gives means only, and the message says how to train it on."""
    prior = trained(stack, tmp_path)
    assert run("sample", prior, "-o", tmp_path / "new.ome.tif") == 2
    assert "--below auto" in capsys.readouterr().err
    assert run("restore", prior, stack, "-o", tmp_path / "out", "--method", "samples") == 1
    assert "--below auto" in capsys.readouterr().err
    assert run("restore", prior, stack, "-o", tmp_path / "out", "--finer", 2) == 1
    assert "one network call cannot undo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--draws", 3, "--seed", 1], 2, "--draws and --seed: about draws, and none are made; add --method samples"),
        (["--psf", "nowhere.tif"], 2, "--psf nowhere.tif: there is no such file"),
        (["--mask", "nowhere.tif"], 2, "--mask nowhere.tif: there is no such file"),
        (
            ["--mask", "small.tif"],
            1,
            "the mask small has axes YX (40, 48), waves TYX (4, 48, 48); give one of the same",
        ),
        (["--mask", "unnamed.tif"], 1, "whose file names these axes"),
        (["--finer", 0], 1, "pixels that are 0 times finer (--finer) cannot be made"),
        (["--method", "samples", "--draws", 1], 1, "give 2 or more, 8 are usual; 1 is enough for the mean alone"),
        (["--method", "samples", "--posterior", "dps", "--finer", 2], 1, "no error bar; ask for the mean alone"),
        (["--psf", "negative.tif", "--psf-is", "computed"], 1, "values of the PSF are below 0"),
        (["--psf", "dark.tif"], 1, "the PSF is 0 everywhere; give the image of a bead"),
    ],
)
def test_restoring_in_a_way_that_cannot_be(
    options: list[object],
    code: int,
    message: str,
    stack: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is said in the words of the command line what came and what to do; nothing is written."""
    monkeypatch.chdir(tmp_path)
    make_prior().save(tmp_path / "a.prior")
    images = {
        "small": np.ones((40, 48), np.uint8),
        "unnamed": np.ones((4, 48, 48), np.uint8),
        "negative": np.pad(np.ones((3, 3), np.float32), 3) - 0.5,
        "dark": np.zeros((9, 9), np.float32),
    }
    for name, values in images.items():
        tifffile.imwrite(f"{name}.tif", values, photometric="minisblack")
    assert run("restore", "a.prior", stack, "-o", "out", "--device", "cpu", *options) == code
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("out/*.tif"))


def test_blurred_stacks_from_training_to_one_call(
    stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--psf` in training learns what was before the blur; the posterior of its own answers for that PSF alone."""
    line = np.exp(-(np.linspace(-1.5, 1.5, 5) ** 2))
    bead = tmp_path / "bead.tif"
    tifffile.imwrite(bead, np.outer(line, line).astype(np.float32))
    prior = tmp_path / "sharp.prior"
    # crops of 32: those of 16 show hardly anything but light from beyond their sides
    options = [*TINY[:4], "--patch", "32", "32", *TINY[7:]]
    given = ["--psf", bead, "--psf-is", "computed"]
    assert run("train", stack, "-o", prior, "--gain", 2, "--zero", 100, *given, *options) == 0
    assert load_prior(prior).record.objective == "flow_diff"
    assert run("info", prior) == 0
    assert "learned through: blur" in capsys.readouterr().out
    one = ["restore", prior, stack, "-o", tmp_path / "out", "--method", "amortised", "--draws", 2]
    assert run(*one) == 1
    assert "another operator" in capsys.readouterr().err
    assert run(*one, *given) == 0
    assert open_volume(tmp_path / "out" / "waves_restored.ome.tif").channel_names == ("mean", "std")
    # the audit restores the stacks through the PSF too: without it, or with another, it says what to give
    audit = ["audit", prior, stack, "--count", 2, "--device", "cpu"]
    assert run(*audit) == 2
    assert "trained through an operator (blur)" in (said := capsys.readouterr().err)
    assert "--psf" in said
    assert run(*audit, "--finer", 2) == 2
    assert "trained for another operator" in capsys.readouterr().err
    assert run(*audit, *given, "--na", 1.3) == 2
    assert "both give a PSF" in capsys.readouterr().err
    assert run(*audit, *given, "-o", tmp_path / "pairs.png") == 0
    assert re.search("(healthy|suspicious|memorised|undecided): ", capsys.readouterr().out)


@pytest.mark.parametrize("what", ["mask", "na"])
def test_the_audit_takes_what_the_training_took(
    what: str, stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prior learned through holes, or through a computed PSF, is audited through the same."""
    if what == "mask":
        mask = (np.random.default_rng(0).random((48, 48)) < 0.7).astype(np.uint8)
        tifffile.imwrite(tmp_path / "mask.tif", mask)
        given, others = ["--mask", tmp_path / "mask.tif"], ["--finer", 2]
    else:
        optics = ["--voxel-size", 0.3, 0.3, 0.3, "--wavelength", 520]
        given, others = [*optics, "--na", 1.3], [*optics, "--na", 0.7]
    prior = tmp_path / "through.prior"
    options = [*TINY[:4], "--patch", "32", "32", *TINY[7:]]
    assert run("train", stack, "-o", prior, "--objective", "em", *given, *options) == 0
    audit = ["audit", prior, stack, "--count", 2, "--device", "cpu"]
    assert run(*audit, *others) == 2
    assert "trained for another operator" in capsys.readouterr().err
    assert run(*audit, *given) == 0
    assert re.search("(healthy|suspicious|memorised|undecided): ", capsys.readouterr().out)
