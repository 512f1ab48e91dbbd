"""Whether a prior that memorised is found out and a healthy one left alone, and what fine-tuning saves.

    python -m benchmarks.memorisation [DATA] [--steps 800] [--below-steps 600] [--out FOLDER]

*Audit.* Simulated filaments and mitochondria (5 photo-electrons per voxel). A healthy prior is trained on 16 fields of
192². One on four patches of 64², for three times as many steps: ambient training of noisy patches, turned and flipped,
does not memorise them. One that is made to: the network of a healthy prior is trained on by plain denoising of four
*clean* patches, never turned, at every level. All are audited with the images that they were trained on and with fields
that they were not.

*Fine-tuning* (DATA: the folder with `fmd/`). A prior of FMD BPAE_G is trained on BPAE_R for a quarter of the steps, all
weights and by low-rank changes, beside one trained on BPAE_R from scratch for all of them: PSNR of frame 0 against the
mean of 50. With `--below-steps` priors are audited before and after fine-tuning, and one from scratch.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import time
from pathlib import Path

import numpy as np
import tifffile
import torch
from benchmarks.deconvolution import sharp
from numpy.typing import NDArray

from napari_ambient import NoiseModel, Prior, TrainConfig, Volume, fit_noise, restore, train
from napari_ambient.prior_audit import audit_prior
from napari_ambient.training import schedule

LEVEL = 5.0
COUNTER = NoiseModel(gain=1.0, intercept=0.0, photons=LEVEL)
Row = dict[str, float | str]


def counted(seeds: range, size: int = 192) -> NDArray[np.float32]:
    """Count the photons of some fields, from the middle of each."""
    rng = np.random.default_rng([7, seeds.start])
    low = (192 - size) // 2
    middle = slice(low, low + size)
    return np.stack([rng.poisson(sharp(seed, LEVEL)[middle, middle]) for seed in seeds]).astype(np.float32)


def memorising(steps: int, below_steps: int) -> list[Row]:
    """Audit a prior of many fields and one of four patches."""
    held = Volume.from_array(counted(range(300, 308)), "TYX", name="held out")
    rows: list[Row] = []
    healthy: Prior | None = None
    for name, volume, times in (
        ("healthy", Volume.from_array(counted(range(16)), "TYX", name="fields"), 1),
        ("four patches", Volume.from_array(counted(range(4), 64), "TYX", name="patches"), 3),
    ):
        begin = time.process_time()
        config = TrainConfig(steps=times * steps, held_out=0.0, below="auto", below_steps=times * below_steps)
        prior = train(volume, COUNTER, config=config)
        rows.append({"prior": name, "seconds": time.process_time() - begin, **verdict(prior, volume, held)})
        print(rows[-1], flush=True)
        healthy = healthy or prior
    assert healthy is not None
    begin = time.process_time()
    clean = np.stack([sharp(seed, LEVEL)[64:128, 64:128] for seed in range(4)]).astype(np.float32)
    volume = Volume.from_array(counted(range(4), 64), "TYX", name="patches")
    prior = memorised(healthy, clean, 4 * steps)
    rows.append({"prior": "made to memorise", "seconds": time.process_time() - begin, **verdict(prior, volume, held)})
    print(rows[-1], flush=True)
    return rows


def memorised(prior: Prior, clean: NDArray[np.float32], steps: int) -> Prior:
    """Train the prior's network to denoise nothing but these clean images, at levels from 0.1 to 80 sigma_y.

    The minimum of Σ ‖D(x + σ e, σ) - x‖² over a finite set of x is the posterior mean over that set (Karras et al.
    2022, arXiv 2206.00364, eq. 3), and new images drawn with it are the images of the set.
    """
    prior = copy.deepcopy(prior)
    denoiser = prior.denoiser.train().requires_grad_(True)
    x = prior.recorruption.scaled(torch.from_numpy(clean))[:, None]
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 1e-3 * schedule(step + 1, steps, 50)
        pick = torch.randint(len(x), (8,), generator=generator)
        sigma = torch.exp(math.log(0.1) + math.log(800) * torch.rand(8, generator=generator))
        level = sigma.reshape(-1, 1, 1, 1)
        noisy = x[pick] + level * torch.randn(x[pick].shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            error = denoiser(noisy, sigma, corruption="gaussian") - x[pick]
        loss = (error / level.clamp_max(float(x.std()))).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    denoiser.eval().requires_grad_(False)
    return prior


def verdict(prior: Prior, training: Volume, held: Volume) -> Row:
    """Audit, and give the verdict with its reasons."""
    found = audit_prior(prior, training, held, count=12)
    return {"verdict": found.verdict, "why": found.sentence}


def fine_tuning(data: Path, steps: int, below_steps: int) -> list[Row]:
    """Train on BPAE_R from scratch and from a prior of BPAE_G."""
    stacks = {}
    for name in ("BPAE_G", "BPAE_R"):
        raw = tifffile.imread(data / f"fmd/Confocal_{name}_raw4.tif")
        stacks[name] = Volume.from_array(raw, "TYX", name=name)
    reference = tifffile.imread(data / "fmd/Confocal_BPAE_R_gt_avg50.tif").astype(float)
    noise = {name: fit_noise(volume) for name, volume in stacks.items()}
    source = train(stacks["BPAE_G"], noise["BPAE_G"], config=TrainConfig(steps=steps))
    red = stacks["BPAE_R"]
    rows: list[Row] = []
    for name, start, config in (
        ("from scratch", None, TrainConfig(steps=steps)),
        ("from scratch, a quarter", None, TrainConfig(steps=steps // 4)),
        ("fine-tuned, a quarter", source, TrainConfig(steps=steps // 4)),
        ("low rank 8, a quarter", source, TrainConfig(steps=steps // 4, low_rank=8)),
        ("as it is", source, None),
    ):
        prior = source if config is None else train(red, noise["BPAE_R"], start=start, config=config)
        first = Volume.from_array(np.asarray(red.data[:1]), "TYX")
        image = np.asarray(restore(first, prior, noise=noise["BPAE_R"]).data.compute()[0], dtype=np.float64)
        psnr = float(10 * np.log10(255**2 / np.mean((image - reference) ** 2)))
        rows.append({"prior": name, "steps": 0 if config is None else config.steps, "BPAE_R dB": psnr})
        print(rows[-1], flush=True)
    if below_steps:
        rows += audited_fine_tuning(stacks, steps, below_steps)
    return rows


def audited_fine_tuning(stacks: dict[str, Volume], steps: int, below_steps: int) -> list[Row]:
    """Audit a prior of BPAE_G, that prior fine-tuned on BPAE_R, and one of BPAE_R from scratch, on halves of fields."""
    halves = {
        name: [
            Volume.from_array(np.asarray(volume.data[:, part]), "TYX", name=f"{name} {part.start}")
            for part in (slice(0, 256), slice(256, 512))
        ]
        for name, volume in stacks.items()
    }
    rows: list[Row] = []
    before: Prior | None = None
    for label, name, share, tuned in (
        ("before", "BPAE_G", 1, False),
        ("fine-tuned, a quarter", "BPAE_R", 4, True),
        ("from scratch", "BPAE_R", 1, False),
    ):
        config = TrainConfig(steps=steps // share, below="auto", below_steps=below_steps)
        training, held = halves[name]
        prior = train(training, fit_noise(training), start=before if tuned else None, config=config)
        before = before or prior
        rows.append({"prior": f"{label}, audited on {name}", **verdict(prior, training, held)})
        print(rows[-1], flush=True)
    return rows


def main(
    data: Path | None, *, steps: int = 800, below_steps: int = 600, out: Path = Path("benchmarks/results")
) -> list[Row]:
    """Run what there is data for, and write `memorisation.csv`."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows = memorising(steps, below_steps)
    if data is not None:
        rows += fine_tuning(data, steps, below_steps)
    with (out / "memorisation.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(k for row in rows for k in row)))
        writer.writeheader()
        writer.writerows(rows)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--below-steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    main(given.data, steps=given.steps, below_steps=given.below_steps, out=given.out)
