"""The demonstration: train on the sample stack, restore it, and show noisy, restored and true images side by side.

The sample (`sample_data/README.md`) is simulated, so that the truth is known and the gain can be stated:
PSNR = 10 log10(peak² / mean squared error), with the truth's largest value as the peak, over fields that were not
trained on: a network that was shown the truth (`compare`) knows it by heart where it was trained.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from .prior import Prior
from .progress import follow
from .restoration import restore
from .samples import SAMPLE, sample_folder
from .train_config import TrainConfig
from .training import iter_train
from .volumes import Volume, iter_save_volume, open_volume

HELD_OUT = 4
"""Fields of the sample that are restored and scored, but not trained on."""


def run(output: Path, *, steps: int = 3000, compare: bool = False, device: str = "auto") -> int:
    """Train, restore, save and draw.

    Parameters
    ----------
    output : Path
        Folder for everything that is written.
    steps : int
        Training steps.
    compare : bool
        Also train the same network on the clean truth, for as many steps.
    device : str
        auto, cpu, cuda or mps.

    Returns
    -------
    int
        Exit code: 0, or 130 when interrupted (what was trained so far is restored and saved all the same).
    """
    folder = sample_folder()
    noisy, truth = (open_volume(folder / f"{SAMPLE}{end}.tif") for end in ("", "_truth"))
    print(f"noisy stack: {noisy.describe()}")
    output.mkdir(parents=True, exist_ok=True)
    config = TrainConfig(steps=steps)
    begin = time.perf_counter()
    seen = noisy.replace(data=noisy.data[:-HELD_OUT])
    last = follow(iter_train(seen, config=config, device=device, folder=output / "demo.prior"), "train")
    if last is None:
        print("interrupted before the first step", file=sys.stderr)
        return 130
    prior = last.prior()
    prior.save(output / "demo.prior", overwrite=True)
    (output / "demo.prior" / "checkpoint.safetensors").unlink(missing_ok=True)
    noise = prior.noise[0]
    print(
        f"noise: gain {float(np.median(noise.gain)):.3g} counts per photo-electron, "
        f"{noise.photons:.3g} photo-electrons per voxel; {prior.record.form} form, because {noise.reason}"
    )
    clean = np.asarray(truth.data, dtype=np.float32)
    restored = restore(noisy, prior, device=device)
    for name in ("restored.ome.tif", "restored.ome.zarr"):
        blocks = iter_save_volume(output / name, restored, overwrite=True)
        with tqdm(desc=f"write {name}", unit="tile", dynamic_ncols=True) as bar:
            for block in blocks:
                bar.total = block.total
                bar.update(1)
    result = np.asarray(open_volume(output / "restored.ome.tif").data)
    new = slice(-HELD_OUT, None)
    counts = np.asarray(noisy.data, dtype=np.float32)
    scores = {"noisy": psnr(counts[new], clean[new]), "restored": psnr(result[new], clean[new])}
    if compare:
        scores["trained on the truth"] = psnr(_supervised(noisy, truth, prior, config, device)[new], clean[new])
    draw(output / "demo.png", counts[-1], result[-1], clean[-1], scores)
    print(f"on {HELD_OUT} of {len(counts)} fields, which were not trained on:")
    print(", ".join(f"{name} {value:.2f} dB" for name, value in scores.items()))
    print(f"gain {scores['restored'] - scores['noisy']:.2f} dB in {time.perf_counter() - begin:.0f} s")
    print(f"wrote {output / 'demo.prior'}, restored.ome.tif, restored.ome.zarr and demo.png there")
    return 0 if last.index == last.total else 130


def psnr(image: NDArray[np.generic], truth: NDArray[np.float32]) -> float:
    """Peak signal-to-noise ratio in dB, with the truth's largest value as the peak."""
    error = np.mean(np.square(image.astype(np.float64) - truth))
    return float(10 * np.log10(float(truth.max()) ** 2 / error))


def draw(
    path: Path,
    noisy: NDArray[np.generic],
    restored: NDArray[np.generic],
    truth: NDArray[np.float32],
    scores: dict[str, float],
) -> None:
    """Draw the three images at the same contrast, with a magnified part below each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3, gridspec_kw={"height_ratios": [1.0, 1.0]})
    low, high = np.percentile(truth, (1, 99.8))
    titles = [f"noisy, {scores['noisy']:.1f} dB", f"restored, {scores['restored']:.1f} dB", "truth"]
    # the part of the image with most light
    size = min(96, *truth.shape)
    y, x = (min(max(int(p) - size // 2, 0), n - size) for p, n in zip(_brightest(truth), truth.shape, strict=True))
    for column, (image, title) in enumerate(zip((noisy, restored, truth), titles, strict=True)):
        for row, part in enumerate((image, image[y : y + size, x : x + size])):
            axes[row, column].imshow(part, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axes[row, column].set_axis_off()
        axes[0, column].set_title(title)
    figure.savefig(path, dpi=110)


def _brightest(image: NDArray[np.float32]) -> tuple[int, ...]:
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(image.astype(np.float32), 12)
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(smooth)), smooth.shape))


def _supervised(noisy: Volume, truth: Volume, prior: Prior, config: TrainConfig, device: str) -> NDArray[np.generic]:
    seen, target = (v.replace(data=v.data[:-HELD_OUT]) for v in (noisy, truth))
    last = follow(
        iter_train(seen, prior.noise, objective="supervised", target=target, config=config, device=device),
        "train on the truth",
    )
    if last is None:
        raise KeyboardInterrupt
    return np.asarray(restore(noisy, last.prior(), device=device).data)
