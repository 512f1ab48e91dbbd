"""The window lives while the real forms work: a heartbeat in the Qt thread goes on through all that they do.

Measured is the CPU time of the Qt thread between two heartbeats, from the click on: a training with noise fit, losses
and previews, a restoration with its layers, a sheet of samples, a batch and the opening of its results. It may be 50 ms
longer than napari itself takes to add a layer, which is measured beside it. The best of three runs
counts, as caches that other programs empty make any work longer; the control does the same work in the Qt thread.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from qtpy.QtWidgets import QPushButton

from napari_ambient import restore, train
from napari_ambient.prior import Prior
from napari_ambient.train_config import TrainConfig
from napari_ambient.volumes import Volume
from napari_ambient.widgets import _training_job
from napari_ambient.widgets import batch as batch_form
from napari_ambient.widgets import restore as restore_form
from napari_ambient.widgets import sample as sample_form
from napari_ambient.widgets import train as train_form
from napari_ambient.widgets._session import priors_of
from napari_ambient.widgets._settings import Settings

LIMIT = 0.05
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
    for module in (train_form, restore_form, sample_form, batch_form):
        monkeypatch.setattr(module, "settings", lambda: Settings(device="cpu", cache_folder=tmp_path))
    monkeypatch.setattr(train_form, "WAIT", 10**8)
    monkeypatch.setattr(_training_job, "FIRST_PREVIEW", 0.0)
    monkeypatch.setattr(_training_job, "PREVIEW_EVERY", 0.2)
    viewer.add_image(counts(), name="cells", axis_labels=("t", "y", "x"))
    return viewer


@pytest.fixture
def longest(here: Any, prior: Prior, longest_work: Callable[..., float], qtbot: Any) -> Callable[..., None]:
    """Return a function that clicks a button, up to three times until a run keeps to the limit."""

    def napari_alone() -> float:
        took = longest_work(
            lambda: here.add_image(counts().astype(np.float32), name="own", axis_labels=("t", "y", "x")), lambda: True
        )
        here.layers.remove("own")
        return took

    napari_takes = min(napari_alone() for _ in range(3))

    def click(button: Any, ended: Callable[[], bool], *, layers: int = 1) -> None:
        works: list[float] = []
        limit = LIMIT + layers * napari_takes
        while len(works) < 3 and not any(work < limit for work in works):
            qtbot.waitUntil(button.isEnabled, timeout=WAIT)
            works.append(longest_work(button.click, ended, WAIT))
        print(
            f"longest work in the Qt thread: {', '.join(f'{1000 * work:.0f} ms' for work in works)}; "
            f"of napari for a layer: {1000 * napari_takes:.0f} ms"
        )
        assert min(works) < limit

    return click


def test_a_training(here: Any, longest: Callable[..., None], qtbot: Any) -> None:
    """With both stages, the noise, losses and previews; and again, when the preview is there already."""
    form = train_form.TrainWidget(here, config=TINY)
    here.window.add_dock_widget(form, name="Train")
    form.error_bars.setChecked(True)
    longest(form.noise.estimate, lambda: form._fit is None)
    for _ in range(2):
        longest(form.train, lambda: not form.training)
        assert form._prior is not None
        assert form._prior.record.step == 16
    assert sum("(preview)" in layer.name for layer in here.layers) == 1


@pytest.mark.parametrize("where", ["whole", "slice"])
def test_a_restoration_and_its_preview(here: Any, prior: Prior, longest: Callable[..., None], where: str) -> None:
    """With the error bar and the draws; the second preview takes the place of the first."""
    form = restore_form.RestoreWidget(here)
    here.window.add_dock_widget(form, name="Restore")
    priors_of(here).add("tiny", prior)
    form.error_bars.click()
    form.keep.setChecked(True)
    form.draws.setValue(2)
    form.steps.setValue(3)
    form.where.setCurrentIndex(form.where.findData(where))
    longest(form.button, lambda: not form.running)
    first = list(form._layers)
    longest(form.button, lambda: not form.running)
    assert (form._layers == first) == (where == "slice")  # napari takes long to remove layers
    suffix = " (preview)" if where == "slice" else ""
    assert {f"cells {what}{suffix}" for what in ("draws", "error bar", "restored")} <= {
        each.name for each in here.layers
    }


def test_a_sheet_of_samples(here: Any, prior: Prior, longest: Callable[..., None]) -> None:
    form = sample_form.SampleWidget(here)
    here.window.add_dock_widget(form, name="Sample")
    priors_of(here).add("tiny", prior)
    for box, value in ((form.count, 3), (form.size, 32), (form.steps, 3)):
        box.setValue(value)
    longest(form.draw, lambda: form._job is None, layers=3)  # which come at once: images, crops, titles
    assert "titles" in here.layers


def test_a_batch_and_its_results(
    here: Any, prior: Prior, longest: Callable[..., None], qtbot: Any, tmp_path: Path
) -> None:
    for number in range(3):
        tifffile.imwrite(tmp_path / f"{number}.tif", counts(), imagej=True, metadata={"axes": "TYX"})
    form = batch_form.BatchWidget(here)
    here.window.add_dock_widget(form, name="Batch")
    priors_of(here).add("tiny", prior)
    form.add([str(tmp_path / "*.tif")])
    qtbot.waitUntil(lambda: len(form.table.rows) == 3 and form._reading is None, timeout=WAIT)
    longest(form.start, lambda: form._job is None)
    assert form.table.count("finished") + form.table.count("skipped") == 3
    opener = QPushButton()
    qtbot.addWidget(opener)
    opener.clicked.connect(lambda: form.open_row(form.table.rows[0]))
    before = len(here.layers)
    longest(opener, lambda: len(here.layers) > before)


def test_the_heartbeat_would_miss_draws_in_the_qt_thread(
    here: Any, prior: Prior, longest_work: Callable[..., float]
) -> None:
    """Show the same work where it must not be."""

    def work() -> None:
        volume = Volume.from_array(counts(), "TYX")
        drawn = restore(volume, prior, method="samples", draws=8, steps=8, device="cpu")
        drawn.data.compute(scheduler="synchronous")

    assert longest_work(work, lambda: True, WAIT) > 0.5
