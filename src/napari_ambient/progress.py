"""Progress on a terminal or in a notebook."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

if TYPE_CHECKING:
    from .training import Step


def follow(steps: Generator[Step, Any, Any], title: str) -> Step | None:
    """Show a training's progress, time left and losses until it ends or Ctrl-C stops it; give the last step."""
    last: Step | None = None
    with tqdm(desc=title, unit="step", dynamic_ncols=True, smoothing=0.05) as bar:
        try:
            for step in steps:
                if last is None:
                    bar.reset(total=step.total)
                    bar.update(step.index - 1)
                    bar.initial = step.index - 1
                last = step
                bar.update(1)
                if step.validation is not None:
                    bar.set_postfix_str(
                        " ".join(f"{k} {v:.4g}" for k, v in step.losses.items()) + f" held-out {step.validation:.4g}"
                    )
        except KeyboardInterrupt:
            steps.close()
    return last
