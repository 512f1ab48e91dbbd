"""What was learned from data is held while the levels below it are taught.

The stages below the noise level (`em.py`, `consistency.py`, `virtual_exposures.py`) train one network at all levels,
and what they teach below the measurement's level, which is inferred and at first wrong, pulls at D at that level too
(measured on two modes with exact noise: error at sigma_y 0.07 before, 0.16 after 600 steps; with the anchor 0.08). So
a copy of the network as it was when the stage began is kept, and D is asked to agree with it just above the boundary:

    E ‖D(x_t, sigma) - D₀(x_t, sigma)‖² / c_out(sigma)²,    sigma in [1, 1.3] sigma_y
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from napari_ambient.recorruption import Recorruption

from .base import Batch, Denoise, mean_where

ABOVE, HIGHEST = 1.02, 1.3
"""Levels held, in units of sigma_y."""


class Anchor:
    """A frozen copy of the denoiser.

    Parameters
    ----------
    recorruption : Recorruption
        The form of noise.
    spread : float
        Standard deviation of clean images that the weight assumes, scaled intensity.
    """

    def __init__(self, recorruption: Recorruption, *, spread: float = 2.0) -> None:
        self.recorruption, self.spread = recorruption, spread
        self.copy: nn.Module | None = None
        self._waiting: dict[str, Tensor] = {}

    def hold(self, denoiser: Denoise) -> None:
        """Take the copy, the first time."""
        if self.copy is not None:
            return
        inner = getattr(denoiser, "module", denoiser)
        if not isinstance(inner, nn.Module):
            raise TypeError(f"the denoiser is a {type(inner).__name__}; only a module can be held")
        self.copy = copy.deepcopy(inner).requires_grad_(False)
        if self._waiting:
            self.copy.load_state_dict(self._waiting)
            self._waiting = {}

    def loss(self, denoiser: Denoise, batch: Batch, generator: torch.Generator) -> Tensor:
        """Give the distance from the copy, a scalar; the first of the batch as measurements, the others above."""
        assert self.copy is not None
        form = self.recorruption
        size = len(batch.counts)
        device = batch.counts.device
        draw = torch.rand(size, generator=generator, device=generator.device).to(device)
        sigma = form.sigma_y * (ABOVE + (HIGHEST - ABOVE) * draw)
        seen = form.recorrupt(batch.counts, batch.valid, sigma, generator, batch.upright).x_t
        count = size // 2
        measured = torch.arange(size, device=device) < count
        if count:
            seen = torch.cat([form.measure(batch.counts[:count], batch.valid[:count]), seen[count:]])
            sigma = torch.where(measured, torch.full_like(sigma, form.sigma_y), sigma)
        condition = {"corruption": form.corruption, "measured": measured, "channel": batch.channel}
        with torch.no_grad():
            held = self.copy(seen, sigma, **condition)
        level = sigma.reshape(-1, *(1,) * (seen.ndim - 1))
        weight = (level.square() + self.spread**2) / (level * self.spread).square()
        return mean_where(weight * (denoiser(seen, sigma, **condition) - held).square(), batch.valid)

    def state(self) -> dict[str, Tensor]:
        """Give what a checkpoint keeps."""
        values = self._waiting if self.copy is None else self.copy.state_dict()
        return {f"anchor.{k}": v for k, v in values.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` gave, once `hold` is called."""
        self._waiting = {k.removeprefix("anchor."): v for k, v in state.items() if k.startswith("anchor.")}
        self.copy = None
