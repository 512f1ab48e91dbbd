"""Quality on real files: ambient training beside Noise2Void, Noise2Noise, CAREamics and BM3D.

    python benchmarks/quality.py DATA [--careamics PYTHON] [--steps 3000] [--threads 1 --clock cpu] [--out FOLDER]

DATA is a folder with `fmd/`, `ncs_eb3/` and `w2s/` (not part of this repository: see `benchmarks/README.md`). Our
methods share one network, one noise fit and one number of steps. "ambient still" is ambient training that is told, as
Noise2Noise has to be, that the frames are exposures of the same field (`TrainConfig.still`). CAREamics (its default
network) and BM3D run in the environment of the given interpreter, CAREamics for 100 epochs, and scored at the end and
where it had trained for as long as our ambient training took. On a machine that is busy with other work, `--threads 1
--clock cpu` counts the seconds of one core instead of those on the wall.
Every case is appended to `quality.csv` as soon as it is done, so that a run can be interrupted and goes on where it
stopped; `quality.md` is the same as a table.

PSNR in dB with peak 255; MSE in grey levels²; SSIM with data range 255; peak memory is of the whole process.

A reference that is the mean of many frames shows the field where it lay on average, and as bright; the frame that is
restored lay elsewhere (FMD BPAE_G: 0.47 pixels, and 10 % dimmer). Each method is scored against the reference as it
is, and, "in place", against the reference moved and dimmed to where and what the raw frame is. That is found from the
raw frame alone, by weighted least squares, before any method has seen it.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from scipy.ndimage import shift, spline_filter
from scipy.optimize import least_squares
from skimage.metrics import structural_similarity

from napari_ambient import NoiseModel, TrainConfig, Volume, fit_noise, iter_train, restore
from napari_ambient.choices import ObjectiveName

FMD = ("FISH", "MICE", "BPAE_B", "BPAE_G", "BPAE_R")
DATA_SETS = (*(f"FMD {name}" for name in FMD), "EB3", "W2S")
METHODS = ("raw", "ambient", "ambient still", "noise2noise", "blind_spot", "bm3d", "careamics")
NEEDS_REPEATS = ("ambient still", "noise2noise")
COLUMNS = (
    "data",
    "method",
    "psnr",
    "ssim",
    "mse",
    "psnr_no_hot",
    "psnr_in_place",
    "mse_in_place",
    "seconds",
    "peak_MB",
    "steps",
    "note",
)
Image = NDArray[np.float64]


@dataclass(frozen=True)
class Clock:
    """What counts as a second: on the wall, or of this process on a core."""

    kind: Literal["wall", "cpu"] = "wall"
    threads: int = 0

    def now(self) -> float:
        """Seconds since some moment."""
        return time.perf_counter() if self.kind == "wall" else time.process_time()


@dataclass
class Case:
    """One data set: what to train on, what to restore, and how to score it."""

    name: str
    train: list[Volume]
    test: list[Volume]
    reference: list[Image]
    affine: bool = False
    repeats: bool = True
    hot: NDArray[np.bool_] | None = None
    in_place: list[Image] | None = None

    def score(self, restored: list[NDArray[np.generic]]) -> dict[str, float]:
        """Average PSNR, SSIM and MSE over the test images."""
        rows = []
        in_place = self.in_place or self.reference
        for result, reference, placed in zip(restored, self.reference, in_place, strict=True):
            image = np.asarray(result, dtype=np.float64).reshape(reference.shape)
            if self.affine:
                slope, constant = np.polyfit(image.ravel(), reference.ravel(), 1)
                image = slope * image + constant
            error = np.square(image - reference)
            mse = float(error.mean())
            cold = mse if self.hot is None else float(error[~self.hot].mean())
            ssim = float(structural_similarity(image, reference, data_range=255))
            moved = float(np.square(image - placed).mean())
            rows.append((psnr(mse), ssim, mse, psnr(cold), psnr(moved), moved))
        return dict(zip(COLUMNS[2:8], np.mean(rows, axis=0).tolist(), strict=True))


def place(reference: Image, frame: Image) -> tuple[Image, tuple[float, float, float]]:
    """Move and dim the reference to where and what a raw frame of the same field is.

    Parameters
    ----------
    reference : ndarray, shape (Y, X)
        Mean of many frames.
    frame : ndarray, same shape
        One raw frame, whose noise is shot noise.

    Returns
    -------
    ndarray, shape (Y, X)
        scale * reference(. - shift), cubic splines.
    tuple of float
        Shift along Y and X, pixels, and scale, by least squares weighted with the expected variance.
    """
    weight = 1 / np.sqrt(np.maximum(reference, 0.1 * reference.mean()))
    inside = (slice(4, -4), slice(4, -4))
    coefficients = spline_filter(reference, order=3, mode="mirror")

    def moved(p: NDArray[np.float64]) -> Image:
        return np.asarray(p[2] * shift(coefficients, p[:2], order=3, mode="mirror", prefilter=False))

    found = least_squares(lambda p: ((moved(p) - frame) * weight)[inside].ravel(), [0.0, 0.0, 1.0], diff_step=1e-3)
    dy, dx, scale = (float(v) for v in found.x)
    return moved(found.x), (dy, dx, scale)


def psnr(mse: float) -> float:
    """PSNR in dB with peak 255."""
    return float(10 * np.log10(255**2 / mse))


def load_cases(data: Path, wanted: list[str]) -> list[Case]:
    """Read the cases that are asked for."""
    cases = []
    for name in FMD:
        if f"FMD {name}" in wanted:
            raw = tifffile.imread(data / f"fmd/Confocal_{name}_raw4.tif")
            reference = tifffile.imread(data / f"fmd/Confocal_{name}_gt_avg50.tif").astype(float)
            volume = Volume.from_array(raw, "TYX", name=name)
            first = Volume.from_array(raw[:1], "TYX", name=name)
            case = Case(f"FMD {name}", [volume], [first], [reference])
            case.in_place = [found_in(case.name, reference, raw[0])]
            cases.append(case)
    if "EB3" in wanted:
        raw = tifffile.imread(data / "ncs_eb3/eb3_scmos_20frames.tif")
        volume = Volume.from_array(raw[:4], "TYX", name="EB3")
        case = Case("EB3", [volume], [Volume.from_array(raw[:1], "TYX")], [raw[4:].mean(axis=0)])
        cases.append(case)
    if "W2S" in wanted:
        fields = tifffile.imread(data / "w2s/mito_train_fov001-040_avg1.tif")
        noisy = tifffile.imread(data / "w2s/mito_test_fov081-090_avg1.tif")
        clean = tifffile.imread(data / "w2s/mito_test_fov081-090_avg400.tif").astype(float)
        train = [Volume.from_array(f, "YX", name=f"field {i}") for i, f in enumerate(fields)]
        test = [Volume.from_array(f, "YX", name=f"test {i}") for i, f in enumerate(noisy)]
        cases.append(Case("W2S", train, test, list(clean), affine=True, repeats=False))
    return cases


def found_in(name: str, reference: Image, frame: NDArray[np.generic]) -> Image:
    """Give the reference in place, and say where that is."""
    placed, (dy, dx, scale) = place(reference, frame.astype(float))
    print(f"{name}: the reference lies {dy:.2f}, {dx:.2f} pixels (Y, X) off, at {scale:.3f} of its light", flush=True)
    return placed


def ours(case: Case, objective: ObjectiveName, config: TrainConfig, clock: Clock) -> dict[str, float | str]:
    """Train one of our objectives and restore the test images, each with its own noise fit where they differ."""
    begin = clock.now()
    noises = [fit_noise(volume) for volume in case.train]
    case.hot = noises[0].hot_pixels if len(noises) == 1 else None
    last = None
    for last in iter_train(case.train, noises, objective=objective, config=config):
        if last.index % 500 == 0:
            print(f"  {case.name} {objective} {last.index}/{last.total} {last.seconds:.0f} s {last.losses}", flush=True)
    assert last is not None
    prior = last.prior()
    seconds = clock.now() - begin
    models: list[NoiseModel | None] = [fit_noise(v) if case.affine else None for v in case.test]
    restored = [restore(v, prior, noise=m).data.compute() for v, m in zip(case.test, models, strict=True)]
    note = f"{prior.record.form}: {prior.noise[0].reason}" if objective == "ambient" else ""
    return {**case.score(restored), "seconds": seconds, "peak_MB": peak(), "steps": config.steps, "note": note}


def careamics(case: Case, python: Path, epochs: int, budget: float, clock: Clock) -> dict[str, dict[str, float | str]]:
    """Train CAREamics' Noise2Void with its defaults on the same frames and restore the test images with it.

    It predicts on one file, so test images of other files (W2S) are put behind the training frames. Gives the row of
    the end and that of the budget, both of one training.
    """
    frames = np.concatenate([np.asarray(v.data).reshape(-1, *v.shape[-2:]) for v in case.train])
    extra = 0
    if case.affine:
        tests = np.stack([np.asarray(v.data) for v in case.test])
        extra = len(tests)
        frames = np.concatenate([frames, tests])
    rows: dict[str, dict[str, float | str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.tif"
        tifffile.imwrite(source, frames)
        script = Path(__file__).with_name("careamics_n2v.py")
        options = ["--epochs", str(epochs), "--seconds", str(budget), "--clock", clock.kind]
        done = subprocess.run(
            [str(python), str(script), str(source), folder, *options, "--threads", str(clock.threads)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        log = json.loads(done.stdout.strip().splitlines()[-1])
        for name, part, file in (
            ("careamics", "budget", "at_seconds.npy"),
            (f"careamics {epochs}", "end", "at_end.npy"),
        ):
            if part not in log:
                continue
            out = np.load(Path(folder) / file)
            restored = list(out[-extra:]) if extra else [out[:1]]
            found = log[part]
            rows[name] = {
                **case.score(restored),
                "seconds": found["seconds"],
                "peak_MB": log["peak_MB"],
                "steps": found["steps"],
                "note": f"{found['epochs']} epochs",
            }
    return rows


def bm3d(case: Case, python: Path) -> dict[str, float | str]:
    """BM3D with sigma 1 between the generalised Anscombe transform and its exact unbiased inverse."""
    begin = time.perf_counter()
    restored = []
    code = "import sys,numpy as n,bm3d;n.save(sys.argv[2],bm3d.bm3d(n.load(sys.argv[1]),sigma_psd=1.0))"
    with tempfile.TemporaryDirectory() as folder:
        for volume in case.test:
            noise = fit_noise(volume if case.affine else case.train[0])
            z = noise.stabilise(np.asarray(volume.data, dtype=np.float64).reshape(volume.shape[-2:]))
            np.save(Path(folder) / "z.npy", z)
            subprocess.run([str(python), "-c", code, f"{folder}/z.npy", f"{folder}/out.npy"], check=True)
            restored.append(noise.unstabilise(np.load(Path(folder) / "out.npy")))
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    seconds = time.perf_counter() - begin
    return {**case.score(restored), "seconds": seconds, "peak_MB": memory, "steps": 0, "note": "no training"}


def peak() -> float:
    """Peak memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(
    data: Path,
    *,
    steps: int = 3000,
    epochs: int = 100,
    out: Path = Path("benchmarks/results"),
    python: Path | None = None,
    clock: Clock | None = None,
    wanted: list[str] | None = None,
    methods: list[str] | None = None,
) -> list[dict[str, str]]:
    """Run what is missing of the benchmark, and give all rows."""
    out.mkdir(parents=True, exist_ok=True)
    clock = clock or Clock()
    if clock.threads:
        torch.set_num_threads(clock.threads)
    table = out / "quality.csv"
    wanted, methods = wanted or [*DATA_SETS], methods or [*METHODS]
    unknown = sorted({*wanted} - {*DATA_SETS} | {*methods} - {*METHODS})
    if unknown:
        known = ", ".join((*DATA_SETS, *METHODS))
        raise ValueError(f"{', '.join(unknown)}: neither a data set nor a method; there are {known}")
    config = TrainConfig(steps=steps)
    for case in load_cases(data, wanted):
        for method in methods:
            rows = [r for r in read(table) if r["data"] == case.name]
            if any(r["method"] == method for r in rows) or (method in NEEDS_REPEATS and not case.repeats):
                continue
            if method in ("bm3d", "careamics") and python is None:
                continue
            print(f"{case.name}: {method}", flush=True)
            results: dict[str, dict[str, float | str]]
            if method == "raw":
                results = {method: {**case.score([np.asarray(v.data) for v in case.test])}}
            elif method == "bm3d":
                results = {method: bm3d(case, python)}  # type: ignore[arg-type]
            elif method == "careamics":
                budgets = [float(r["seconds"]) for r in rows if r["method"] == "ambient"]
                if not budgets:
                    raise ValueError(
                        f"{case.name} has no ambient row, whose time CAREamics is given; run ambient first"
                    )
                results = careamics(case, python, epochs, budgets[0], clock)  # type: ignore[arg-type]
            else:
                objective = cast(ObjectiveName, method.removesuffix(" still"))
                still = replace(config, still=method.endswith(" still"))
                results = {method: ours(case, objective, still, clock)}
            for name, result in results.items():
                write(table, {"data": case.name, "method": name, **result})
    rows = read(table)
    (out / "quality.md").write_text(markdown(rows), encoding="utf-8")
    return rows


def read(table: Path) -> list[dict[str, str]]:
    """Read the rows measured so far."""
    if not table.exists():
        return []
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(table: Path, row: dict[str, float | str]) -> None:
    """Append one row."""
    new = not table.exists()
    with table.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow({k: (f"{v:.4g}" if isinstance(v, float) else v) for k, v in row.items()})


def markdown(rows: list[dict[str, str]]) -> str:
    """Show PSNR per data set and method, with SSIM, seconds and memory."""
    methods = list(dict.fromkeys(r["method"] for r in rows))
    lines = ["| data | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for name in dict.fromkeys(r["data"] for r in rows):
        cells = {r["method"]: r for r in rows if r["data"] == name}
        texts = [
            f"{float(c['psnr']):.2f} dB, {float(c['ssim']):.3f}, {float(c['seconds'] or 0):.0f} s" if c else ""
            for c in (cells.get(m) for m in methods)
        ]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--careamics", type=Path, help="interpreter of an environment with careamics and bm3d")
    parser.add_argument("--epochs", type=int, default=100, help="of CAREamics")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    parser.add_argument("--data-sets", nargs="*", choices=DATA_SETS)
    parser.add_argument("--methods", nargs="*", choices=METHODS)
    given = parser.parse_args()
    main(
        given.data,
        steps=given.steps,
        out=given.out,
        python=given.careamics,
        epochs=given.epochs,
        clock=Clock(given.clock, given.threads),
        wanted=given.data_sets,
        methods=given.methods,
    )
