"""Quality on real files: ambient training beside Noise2Void, Noise2Noise, CAREamics and BM3D.

    python benchmarks/quality.py DATA [--careamics PYTHON] [--script careamics_n2v.py] [--steps 3000] [--out FOLDER]

DATA is a folder with `fmd/`, `ncs_eb3/` and `w2s/` (not part of this repository: see `benchmarks/README.md`). Our
methods share one network, one noise fit and one number of steps. CAREamics (its default network) and BM3D run in the
environment of the given interpreter, CAREamics once for as long as our ambient training took and once for 100 epochs.
Every case is appended to `quality.csv` as soon as it is done, so that a run can be interrupted and goes on where it
stopped; `quality.md` is the same as a table.

PSNR in dB with peak 255; MSE in grey levels²; SSIM with data range 255; peak memory is of the whole process.
"""

from __future__ import annotations

import argparse
import csv
import re
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from napari_ambient import NoiseModel, TrainConfig, Volume, fit_noise, iter_train, restore
from napari_ambient.choices import ObjectiveName

FMD = ("FISH", "MICE", "BPAE_B", "BPAE_G", "BPAE_R")
COLUMNS = ("data", "method", "psnr", "ssim", "mse", "psnr_no_hot", "seconds", "peak_MB", "steps", "note")
Image = NDArray[np.float64]


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

    def score(self, restored: list[NDArray[np.generic]]) -> dict[str, float]:
        """Average PSNR, SSIM and MSE over the test images."""
        rows = []
        for result, reference in zip(restored, self.reference, strict=True):
            image = np.asarray(result, dtype=np.float64).reshape(reference.shape)
            if self.affine:
                slope, constant = np.polyfit(image.ravel(), reference.ravel(), 1)
                image = slope * image + constant
            error = np.square(image - reference)
            mse = float(error.mean())
            cold = mse if self.hot is None else float(error[~self.hot].mean())
            ssim = float(structural_similarity(image, reference, data_range=255))
            rows.append((psnr(mse), ssim, mse, psnr(cold)))
        return dict(zip(("psnr", "ssim", "mse", "psnr_no_hot"), np.mean(rows, axis=0).tolist(), strict=True))


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
            cases.append(Case(f"FMD {name}", [volume], [first], [reference]))
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


def ours(case: Case, objective: ObjectiveName, config: TrainConfig) -> dict[str, float | str]:
    """Train one of our objectives and restore the test images, each with its own noise fit where they differ."""
    begin = time.perf_counter()
    noises = [fit_noise(volume) for volume in case.train]
    case.hot = noises[0].hot_pixels if len(noises) == 1 else None
    last = None
    for last in iter_train(case.train, noises, objective=objective, config=config):
        if last.index % 500 == 0:
            print(f"  {case.name} {objective} {last.index}/{last.total} {last.seconds:.0f} s {last.losses}", flush=True)
    assert last is not None
    prior = last.prior()
    seconds = time.perf_counter() - begin
    models: list[NoiseModel | None] = [fit_noise(v) if case.affine else None for v in case.test]
    restored = [restore(v, prior, noise=m).data.compute() for v, m in zip(case.test, models, strict=True)]
    note = f"{prior.record.form}: {prior.noise[0].reason}" if objective == "ambient" else ""
    return {**case.score(restored), "seconds": seconds, "peak_MB": peak(), "steps": config.steps, "note": note}


def careamics(case: Case, python: Path, script: Path, epochs: int) -> dict[str, float | str]:
    """Train CAREamics' Noise2Void with its defaults on the same frames and restore the test images with it.

    The script trains and predicts on one file, so the test images of another file are put behind the training frames
    for prediction only where they are part of it (FMD, EB3); for W2S training frames and test images are one stack.
    """
    frames = np.concatenate([np.asarray(v.data).reshape(-1, *v.shape[-2:]) for v in case.train])
    extra = 0
    if case.affine:
        tests = np.stack([np.asarray(v.data) for v in case.test])
        extra = len(tests)
        frames = np.concatenate([frames, tests])
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.tif", Path(folder) / "out.tif"
        tifffile.imwrite(source, frames)
        done = subprocess.run(
            [str(python), str(script), str(source), str(epochs), "-o", str(target)],
            capture_output=True,
            text=True,
            check=True,
        )
        out = tifffile.imread(target)
    restored = list(out[-extra:]) if extra else [out[:1]]
    seconds = float(re.findall(r"train_s ([\d.]+)", done.stdout)[-1])
    steps = float(re.findall(r"steps (\d+)", done.stdout)[-1])
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {**case.score(restored), "seconds": seconds, "peak_MB": memory, "steps": steps, "note": f"{epochs} epochs"}


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
    out: Path = Path("benchmarks/results"),
    python: Path | None = None,
    script: Path | None = None,
    wanted: list[str] | None = None,
    methods: list[str] | None = None,
) -> list[dict[str, str]]:
    """Run what is missing of the benchmark, and give all rows."""
    out.mkdir(parents=True, exist_ok=True)
    table = out / "quality.csv"
    wanted = wanted or [*(f"FMD {n}" for n in FMD), "EB3", "W2S"]
    methods = methods or ["ambient", "noise2noise", "blind_spot", "bm3d", "careamics", "careamics 100"]
    config = TrainConfig(steps=steps)
    for case in load_cases(data, wanted):
        for method in methods:
            rows = read(table)
            if any(r["data"] == case.name and r["method"] == method for r in rows):
                continue
            if method == "noise2noise" and not case.repeats:
                continue
            jobs: dict[str, Callable[[], dict[str, float | str]]] = {
                "raw": lambda: {**case.score([np.asarray(v.data) for v in case.test])},  # noqa: B023
                "bm3d": lambda: bm3d(case, python),  # type: ignore[arg-type]  # noqa: B023
                "careamics": lambda: careamics(case, python, script, epochs_for(case, rows)),  # type: ignore[arg-type]  # noqa: B023
                "careamics 100": lambda: careamics(case, python, script, 100),  # type: ignore[arg-type]  # noqa: B023
            }
            if method in ("bm3d", "careamics", "careamics 100") and python is None:
                continue
            print(f"{case.name}: {method}", flush=True)
            result = jobs.get(method, lambda: ours(case, method, config))()  # type: ignore[arg-type]  # noqa: B023
            write(table, {"data": case.name, "method": method, **result})
    rows = read(table)
    (out / "quality.md").write_text(markdown(rows), encoding="utf-8")
    return rows


def epochs_for(case: Case, rows: list[dict[str, str]]) -> int:
    """Give CAREamics epochs for as many seconds as our ambient training took (measured: 16 steps of 0.284 s each)."""
    seconds = next(
        (float(r["seconds"]) for r in rows if r["data"] == case.name and r["method"] == "ambient"), 120.0
    )
    timed = [r for r in rows if r["data"] == case.name and r["method"].startswith("careamics")]
    per_epoch = float(timed[0]["seconds"]) / float(timed[0]["note"].split()[0]) if timed else 4.5
    return max(1, round(seconds / per_epoch))


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
    parser.add_argument("--script", type=Path, help="script that trains and predicts: SCRIPT IN.tif EPOCHS -o OUT.tif")
    parser.add_argument("--data-sets", nargs="*")
    parser.add_argument("--methods", nargs="*")
    given = parser.parse_args()
    main(
        given.data,
        steps=given.steps,
        out=given.out,
        python=given.careamics,
        script=given.script,
        wanted=given.data_sets,
        methods=given.methods,
    )
