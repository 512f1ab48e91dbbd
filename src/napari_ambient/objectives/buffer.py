"""A buffer of draws from the posterior, refreshed little by little: the data of the stages below the noise level.

`virtual_exposures.py`, `em.py` and `operator_em.py` draw what the measurements leave open with the moving average of
the network, and train on the draws as if they were clean. Drawing costs a dozen network calls, so a draw is used many
times: each step takes some from here, flipped at random, and every few steps the oldest give way to new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Buffer:
    """Named tensors with one row per draw, at most `capacity` rows, the oldest overwritten first.

    Parameters
    ----------
    capacity : int
        Most rows held.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; a buffer holds at least one row")
        self.capacity = capacity
        self._rows: dict[str, Tensor] = {}
        self._next = self._steps = 0

    def __len__(self) -> int:
        return len(next(iter(self._rows.values()))) if self._rows else 0

    def due(self, every: int) -> bool:
        """Count a step, and say whether it is one of those, `every` steps apart, that bring new rows."""
        self._steps += 1
        return (self._steps - 1) % every == 0

    def add(self, rows: dict[str, Tensor]) -> None:
        """Take in rows, (n, ...) each; beyond the capacity they replace the oldest."""
        if len(self) < self.capacity:
            room = self.capacity - len(self)
            first = {k: v[:room].detach().clone() for k, v in rows.items()}
            self._rows = {k: torch.cat([self._rows[k], v]) for k, v in first.items()} if self._rows else first
            rows = {k: v[room:] for k, v in rows.items()}
        count = len(next(iter(rows.values())))
        for row in range(count):
            for name, values in rows.items():
                self._rows[name][self._next] = values[row]
            self._next = (self._next + 1) % self.capacity

    def draw(self, count: int, generator: torch.Generator, window: Sequence[int] = ()) -> dict[str, Tensor]:
        """Give `count` rows at random, the images (four dimensions and more) flipped at random along X and Y.

        With a `window`, voxels ([Z,] Y, X), a random part of so many of the images, the same of each.
        """
        index = torch.randint(len(self), (count,), generator=generator, device=generator.device)
        flips = torch.rand(2, generator=generator, device=generator.device) < 0.5
        axes = [axis for axis, flip in zip((-2, -1), flips.tolist(), strict=True) if flip]
        sizes = next((v.shape[-len(window) :] for v in self._rows.values() if v.ndim > 3), ())
        if tuple(window) == tuple(sizes):
            window = ()
        cut: list[Any] = [...]
        for n, width in zip(sizes, window, strict=False):
            at = int(torch.randint(n - width + 1, (), generator=generator, device=generator.device))
            cut.append(slice(at, at + width))
        result = {}
        for name, values in self._rows.items():
            chosen = values[index.to(values.device)]
            if chosen.ndim > 3:
                part = chosen[tuple(cut)]
                chosen = part.flip(axes) if axes else part
            result[name] = chosen
        return result

    def state(self) -> dict[str, Tensor]:
        """Give what a checkpoint keeps."""
        return {**self._rows, "next": torch.tensor([self._next, self._steps])}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` gave; what else an objective keeps has names with a dot, and is left alone."""
        self._next, self._steps = state["next"].tolist()
        self._rows = {k: v for k, v in state.items() if k != "next" and "." not in k}
