"""What the stages that train on posterior draws share: ambient loss and anchor on, and a buffer of draws kept fresh.

`em.py` and `virtual_exposures.py` say how a draw is made and what is learned from it.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from napari_ambient.recorruption import Recorruption

from .ambient import Ambient
from .anchor import Anchor
from .base import Batch, Denoise, Objective
from .buffer import Buffer


class DrawStage(Objective):
    """A stage below the noise that trains on draws.

    Parameters
    ----------
    recorruption : Recorruption
        The form of noise.
    capacity : int
        Draws held.
    refresh : int
        Steps between new ones (a batch at a time).
    """

    one_call = False

    def __init__(self, recorruption: Recorruption, *, capacity: int, refresh: int) -> None:
        super().__init__(recorruption)
        self.ambient = Ambient(recorruption)
        self.anchor = Anchor(recorruption)
        self.buffer = Buffer(capacity)
        self.refresh = refresh

    @abstractmethod
    def draw(self, average: Denoise, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw from the posterior of every crop: the rows of the buffer."""

    @abstractmethod
    def learn(self, denoiser: Denoise, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Give the losses on draws of the buffer, for a batch of `size`."""

    def losses(
        self, denoiser: Denoise, average: Denoise, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See `Objective.losses`."""
        size = len(batch.counts)
        self.anchor.hold(average)
        if self.buffer.due(self.refresh) or len(self.buffer) < self.buffer.capacity:
            with torch.no_grad():
                self.buffer.add(self.draw(average, batch, generator))
        result = self.ambient.losses(denoiser, average, batch.part(slice(0, max(1, size // 2))), generator)
        result["anchor"] = self.anchor.loss(denoiser, batch.part(slice(size // 2, None)), generator)
        return result | self.learn(denoiser, size, generator)

    def validation(self, denoiser: Denoise, batch: Batch, generator: torch.Generator) -> Tensor:
        """Held-out ambient loss: what this stage must not make worse."""
        return self.ambient.validation(denoiser, batch, generator)

    def state(self) -> dict[str, Tensor]:
        """See `Objective.state`."""
        return {**self.buffer.state(), **self.anchor.state()}

    def load(self, state: dict[str, Tensor]) -> None:
        """See `Objective.load`."""
        self.anchor.load(state)
        self.buffer.load(state)
