"""A smooth first guess of the clean images, from which a prior behind an operator begins.

What an operator has removed no measurement can tell: an image that differs there alone fits as well. Whatever a prior
holds of it at the beginning it keeps, so one that begins with white noise would draw white noise there for ever (800
steps of FlowDiff behind a blur of 1.5 pixels from a white prior: 19.5 dB, where the blurred image itself has 23.7). A
few iterations of Richardson-Lucy (Richardson 1972, Lucy 1974) from a smooth image stay smooth where nothing is known,

    x ← x · Aᵀ(k / A x) / Aᵀ1

Where A is no blur they would give back the noise, and the smoothed measurement itself is the guess.
"""

from __future__ import annotations

import torch
from torch import Tensor

from napari_ambient.recorruption import DARKEST, blur

from .base import Batch
from .views import Views

BEGINNING = 0.2
"""Share of a training whose prior learns first guesses."""
ITERATIONS = 8  # of Richardson-Lucy: more let in noise
SMOOTH = 1.0  # voxels: standard deviation of the Gaussian that smooths the measurement


class Seen:
    """The operators of a batch, where their answer is to be learned from: what the posterior methods need.

    Parameters
    ----------
    views : Views or None
        The operators; None for the identity.
    learn : Tensor of bool, shape (B, C, [Z,] Y, X)
        Measured voxels to learn from.
    """

    def __init__(self, views: Views | None, learn: Tensor) -> None:
        self.views, self.learn = views, learn

    def forward(self, x: Tensor, /) -> Tensor:
        """Give A x where it counts, 0 elsewhere."""
        return self.learn * (x if self.views is None else self.views.expected(x))

    def adjoint(self, v: Tensor, /) -> Tensor:
        """Give Aᵀ v."""
        v = self.learn * v
        return v if self.views is None else self.views.adjoint(v)


def first_guess(batch: Batch, light: Tensor) -> Tensor:
    """Guess the clean crops of a batch.

    Parameters
    ----------
    batch : Batch
        The measurements.
    light : Tensor, shape (B, 1, [Z,] Y, X)
        What they show on the clean voxels (`Batch.evidence`).

    Returns
    -------
    Tensor, shape of `light`
        Photo-electrons, above 0.
    """
    x = blur(light, SMOOTH).to(light.dtype).clamp_min(DARKEST / 10)
    views = batch.views
    if views is None or not any(any(view.operator.halo) for view in views.parts):
        return x
    seen = Seen(views, batch.learn)
    share = seen.adjoint(torch.ones_like(batch.counts))
    touched = share > 1e-3
    for _ in range(ITERATIONS):
        ratio = batch.counts.clamp_min(0) / seen.forward(x).clamp_min(1e-3)
        x = torch.where(touched, x * seen.adjoint(ratio) / share.clamp_min(1e-3), x).clamp_min(1e-4)
    return x
