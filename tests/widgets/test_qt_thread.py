"""The window lives while the real forms work: a heartbeat in the Qt thread goes on through a training and draws.

50 ms is the aim, and `test_run.py` holds it for the jobs alone. Here a layer is added too, for whose controls napari
takes 0.1 s by itself, and the machines that run tests are busy: so the limit is far above, and the best of three runs
counts. It still tells work in the Qt thread, which the control does, from work beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qtpy.QtCore import Qt, QTimer

from napari_ambient import restore, train
from napari_ambient.prior import Prior
from napari_ambient.train_config import TrainConfig
from napari_ambient.volumes import Volume
from napari_ambient.widgets import _training_job
from napari_ambient.widgets import restore as restore_form
from napari_ambient.widgets import train as train_form
from napari_ambient.widgets._session import priors_of
from napari_ambient.widgets._settings import Settings

LIMIT = 0.75
"""Seconds."""
WAIT = 60_000
"""Milliseconds."""
TINY = TrainConfig(steps=12, batch=2, patch=(32, 32), validations=2, precision="float32", below="auto", below_steps=4)


def counts() -> np.ndarray[Any, Any]:
    """Make waves of about 6 photo-electrons on a camera of gain 2 and offset 100."""
    y, x = np.meshgrid(*2 * (np.linspace(0, 3 * np.pi, 96),), indexing="ij")
    clean = np.broadcast_to(6 * (1 + np.sin(y) * np.sin(x)), (3, 96, 96))
    return (100 + 2 * np.random.default_rng(0).poisson(clean)).astype(np.uint16)


@pytest.fixture(scope="module")
def prior() -> Prior:
    """Train for a few steps, which also loads and warms up all that a first use does."""
    torch.set_num_threads(1)
    return train(Volume.from_array(counts(), "TYX"), config=TINY, device="cpu")


@pytest.fixture
def here(viewer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a window with an image, and forms that keep to the test's folder and show previews often."""
    for module in (train_form, restore_form):
        monkeypatch.setattr(module, "settings", lambda: Settings(device="cpu", cache_folder=tmp_path))
    monkeypatch.setattr(train_form, "WAIT", 10**8)
    monkeypatch.setattr(_training_job, "FIRST_PREVIEW", 0.0)
    monkeypatch.setattr(_training_job, "PREVIEW_EVERY", 0.2)
    viewer.add_image(counts(), name="cells", axis_labels=("t", "y", "x"))
    return viewer


def press(qtbot: Any, button: Any) -> None:
    qtbot.waitUntil(button.isEnabled, timeout=WAIT)
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def best_of_three(longest: Callable[[], float]) -> float:
    """Give the shortest of three longest standstills, s; no more runs than it takes."""
    gaps: list[float] = []
    while len(gaps) < 3 and not any(gap < LIMIT for gap in gaps):
        gaps.append(longest())
    print(f"longest standstills of the Qt thread: {', '.join(f'{1000 * gap:.0f} ms' for gap in gaps)}")
    return min(gaps)


def test_a_training_leaves_the_window_alive(
    here: Any, prior: Prior, qtbot: Any, largest_gap: Callable[..., float]
) -> None:
    """With both stages, the noise, losses and previews."""
    form = train_form.TrainWidget(here, config=TINY)
    here.window.add_dock_widget(form, name="Train")
    form.error_bars.setChecked(True)

    def longest() -> float:
        press(qtbot, form.train)
        return largest_gap(lambda: not form.training, WAIT)

    assert best_of_three(longest) < LIMIT
    assert form._prior is not None
    assert form._prior.record.step == 16


def test_draws_leave_the_window_alive(here: Any, prior: Prior, qtbot: Any, largest_gap: Callable[..., float]) -> None:
    form = restore_form.RestoreWidget(here)
    here.window.add_dock_widget(form, name="Restore")
    priors_of(here).add("tiny", prior)
    form.error_bars.click()
    form.draws.setValue(4)
    form.steps.setValue(6)

    def longest() -> float:
        press(qtbot, form.button)
        return largest_gap(lambda: not form.running, WAIT)

    assert best_of_three(longest) < LIMIT
    assert "cells error bar" in here.layers


def test_the_heartbeat_would_miss_draws_in_the_qt_thread(
    here: Any, prior: Prior, largest_gap: Callable[..., float]
) -> None:
    """Show the same work where it must not be."""
    done: list[int] = []

    def work() -> None:
        end = time.perf_counter() + 2 * LIMIT
        while time.perf_counter() < end:
            volume = Volume.from_array(counts(), "TYX")
            restore(volume, prior, method="samples", draws=4, steps=6, device="cpu").data.compute(
                scheduler="synchronous"
            )
        done.append(1)

    QTimer.singleShot(20, work)
    assert largest_gap(lambda: bool(done), WAIT) > LIMIT
