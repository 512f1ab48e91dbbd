"""Flips and quarter turns of the plane, the eight symmetries of the square, numbered as `volumes.patches` does.

    T_k = flip_X^[k ≥ 4] ∘ turn^(k mod 4),   0 ≤ k < 8

The structures of a specimen have no preferred direction, so that the clean image of a turned image is the turned clean
image. Networks learn this only nearly; the mean over a group of turns, Σ T_k⁻¹ D(T_k y) / n, has it exactly, and a
smaller error wherever the errors of the turned images differ (test-time augmentation, self-ensemble: Timofte, Rothe &
Van Gool 2016, arXiv 1511.02228).
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUPS: dict[int, tuple[int, ...]] = {
    1: (0,),
    2: (0, 2),  # half turn
    4: (0, 2, 4, 6),  # and mirror images, for which pixels need not be square
    8: tuple(range(8)),
}
"""Which turns an average over so many of them takes; each is a group."""


def turned(image: Tensor, turn: int) -> Tensor:
    """Apply flips and quarter turns to the last two axes.

    Parameters
    ----------
    image : Tensor, shape (..., Y, X)
        Any image.
    turn : int
        Which, 0 to 7; from 4 on also mirrored along X.

    Returns
    -------
    Tensor, shape (..., Y, X) or (..., X, Y)
    """
    out = torch.rot90(image, turn % 4, (-2, -1))
    return out.flip(-1) if turn >= 4 else out


def unturned(image: Tensor, turn: int) -> Tensor:
    """Undo `turned`."""
    out = image.flip(-1) if turn >= 4 else image
    return torch.rot90(out, -(turn % 4), (-2, -1))
