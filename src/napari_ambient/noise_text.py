"""Tell a noise model: in words for the command line, and as the photon-transfer plot.

In the flow: `fit-noise` prints and draws with these; a prior's record shows the same words.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .noise import NoiseModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]

__all__ = ["describe", "plot_transfer"]


def describe(model: NoiseModel) -> str:
    """Put a noise model into words, several lines.

    Parameters
    ----------
    model : NoiseModel
        What to tell.

    Returns
    -------
    str
        One quantity with its unit per line.
    """

    def number(value: float | Array | None, unit: str, unknown: str = "unknown") -> str:
        if value is None:
            return unknown
        if np.ndim(value):
            size = " x ".join(str(n) for n in np.shape(value))
            return f"{np.median(value):.4g} {unit} (median of a map of {size} pixels)"
        return f"{value:.4g} {unit}"

    ask = "unknown (give dark frames or --offset)"
    need = ask if model.offset is None else "unknown (too little of the image is dark: give dark frames)"
    hot = (
        "not looked for"
        if model.hot_pixels is None
        else (f"{int(model.hot_pixels.sum())} pixels ({100 * model.hot_pixels.mean():.2g} %)")
    )
    if model.correlation is None:
        colour = "white"
    else:
        middle = tuple(n // 2 for n in model.correlation.shape)
        colour = (
            f"correlated: {model.correlation[middle[0], middle[1] + 1]:.2f} to the next voxel along X, "
            f"{model.correlation[middle[0] + 1, middle[1]]:.2f} along Y"
        )
    counted = " (read noise counted as light)" if model.offset is None else ""
    rows = [
        ("gain (slope)", number(model.gain, "ADU per photo-electron")),
        ("zero of the line", number(model.zero, "ADU")),
        ("offset", number(model.offset, "ADU", ask)),
        ("read noise", number(model.read_noise, "ADU", need)),
        ("saturation", number(model.saturation, "ADU", "not reached")),
        ("hot pixels", hot),
        ("light", f"{model.photons:.3g} photo-electrons per voxel{counted}"),
        ("noise", colour),
        ("training form", f"{model.form}: {model.reason}"),
        ("method", model.method),
        *(("", note) for note in model.notes),
    ]
    return "\n".join(f"{name:<18}{text}" for name, text in rows)


def plot_transfer(model: NoiseModel, target: str | Path | Axes) -> None:
    """Draw the photon-transfer plot: the points, the line and where it crosses zero.

    Parameters
    ----------
    model : NoiseModel
        With points in `transfer`.
    target : path or matplotlib Axes
        A picture to write (.png, .svg, .pdf), or axes to draw on.
    """
    if model.transfer[0].size == 0:
        raise ValueError("this noise model has no photon-transfer points to plot: it was given, not fitted.")
    if not isinstance(target, (str, Path)):
        _draw(model, target)
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    _draw(model, figure.add_subplot())
    figure.savefig(target, dpi=150)


def _draw(model: NoiseModel, axes: Axes) -> None:
    mean, variance, count = model.transfer
    gain = float(np.median(model.gain))
    zero = float(np.median(model.zero))
    size = 10 + 40 * count / count.max()
    axes.scatter(mean, variance, s=size, alpha=0.6, label="measured")
    ends = np.array([zero, mean.max()])
    axes.plot(ends, gain * (ends - zero), color="C1", label=f"{gain:.3g} ADU x (mean - {zero:.4g} ADU)")
    if model.offset is not None:
        axes.axvline(float(np.median(model.offset)), color="0.6", linestyle=":", label="offset")
    axes.set_xlabel("mean (ADU)")
    axes.set_ylabel("variance (ADU$^2$)")
    axes.legend()
