"""The ✕ of a dock while its form works: it asks first; then the work stops, and nothing goes on without a form.

The Train form's own words, and what it keeps, are in test_train.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from qtpy.compat import isalive
from qtpy.QtCore import Qt

from napari_ambient.denoiser import Denoiser, Scale
from napari_ambient.networks.unet import UNet, UNetArguments
from napari_ambient.noise import NoiseModel
from napari_ambient.prior import Prior, Record
from napari_ambient.widgets import _run
from napari_ambient.widgets._session import priors_of

WAIT = 30_000
"""Milliseconds; torch alone takes seconds to load on a busy machine."""


def make_prior() -> Prior:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = UNet(UNetArguments(widths=(8, 8, 8)))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    denoiser = Denoiser(network, [Scale(4.9, 1.5)])
    denoiser.eval().requires_grad_(False)
    config = {"steps": 3, "below": "virtual_exposures", "below_steps": 3}
    noise = NoiseModel(gain=2.0, intercept=-200.0, photons=6.0)
    return Prior(denoiser, (noise,), Record("ambient", "thinning", "TYX", {}, config=config, step=6))


def counts() -> np.ndarray[Any, Any]:
    return (100 + 2 * np.random.default_rng(0).poisson(6, (3, 64, 64))).astype(np.uint16)


def restoring(viewer: Any, qtbot: Any, folder: Path) -> Any:
    """Restore with so many draws that it would take hours."""
    form = opened(viewer, "restore", "RestoreWidget")
    qtbot.waitUntil(form.button.isEnabled, timeout=WAIT)
    form.error_bars.click()
    form.draws.setValue(256)
    form.steps.setValue(200)
    return form, form.button


def drawing(viewer: Any, qtbot: Any, folder: Path) -> Any:
    """Draw large new images."""
    form = opened(viewer, "sample", "SampleWidget")
    qtbot.waitUntil(form.draw.isEnabled, timeout=WAIT)
    form.count.setValue(64)
    form.steps.setValue(500)
    return form, form.draw


def checking(viewer: Any, qtbot: Any, folder: Path) -> Any:
    """Look for memorised images."""
    form, _ = drawing(viewer, qtbot, folder)
    return form, form.audit


def batch(viewer: Any, qtbot: Any, folder: Path) -> Any:
    """Restore a file with many draws."""
    tifffile.imwrite(folder / "a.tif", counts(), imagej=True, metadata={"axes": "TYX"})
    form = opened(viewer, "batch", "BatchWidget")
    form.add([str(folder / "a.tif")])
    form.method.setCurrentIndex(form.method.findData("samples"))
    form.draws.setValue(1000)
    form.steps.setValue(500)
    qtbot.waitUntil(form.start.isEnabled, timeout=WAIT)
    return form, form.start


def opened(viewer: Any, module: str, name: str) -> Any:
    viewer.add_image(counts(), name="cells", axis_labels=("t", "y", "x"))
    priors_of(viewer).add("tiny", make_prior())
    form = getattr(importlib.import_module(f"napari_ambient.widgets.{module}"), name)(viewer)
    viewer.window.add_dock_widget(form, name=name)
    return form


WORDS = {
    restoring: "cells is being restored.",
    drawing: "New images are being drawn.",
    checking: "The prior is being checked for memorisation.",
    batch: "A file is being restored.",
}


@pytest.mark.parametrize("work", WORDS)
def test_it_asks_and_stops(
    work: Callable[..., Any], viewer: Any, qtbot: Any, tmp_path: Path, answer: Callable[[str], list[str]]
) -> None:
    form, button = work(viewer, qtbot, tmp_path)
    dock = form.parent()
    cross = dock.titleBarWidget().close_button
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: form._job is not None and form.bar.bar.maximum() > 0, timeout=WAIT)

    asked = answer("Go on")
    qtbot.mouseClick(cross, Qt.MouseButton.LeftButton)
    assert asked[0].startswith(f"{WORDS[work]} Stop and close?")
    assert form.parent() is dock
    qtbot.wait(100)
    assert form._job is not None
    assert not form._job.cancelling

    asked = answer("Stop and close")
    qtbot.mouseClick(cross, Qt.MouseButton.LeftButton)
    assert len(asked) == 1
    assert form.parent() is not dock
    # not even a short job is left behind
    qtbot.waitUntil(lambda: not _run._running, timeout=2000)
    form.deleteLater()  # napari took it out of the window, and nobody owns it now
    qtbot.waitUntil(lambda: not isalive(form), timeout=WAIT)


@pytest.mark.parametrize("work", WORDS)
def test_a_form_that_does_nothing_closes_at_once(
    work: Callable[..., Any], viewer: Any, qtbot: Any, tmp_path: Path, answer: Callable[[str], list[str]]
) -> None:
    form, _ = work(viewer, qtbot, tmp_path)
    asked = answer("Go on")
    dock = form.parent()
    qtbot.mouseClick(dock.titleBarWidget().close_button, Qt.MouseButton.LeftButton)
    assert asked == []
    assert form.parent() is not dock
    qtbot.waitUntil(lambda: not _run._running, timeout=WAIT)
    form.deleteLater()
    qtbot.waitUntil(lambda: not isalive(form), timeout=WAIT)


def test_a_window_of_its_own_asks_too(
    viewer: Any, qtbot: Any, tmp_path: Path, answer: Callable[[str], list[str]]
) -> None:
    """A form outside a dock, as a script may show it."""
    form, button = restoring(viewer, qtbot, tmp_path)
    viewer.window.remove_dock_widget(form)
    form.show()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: form.running, timeout=WAIT)
    asked = answer("Go on")
    form.close()
    qtbot.wait(50)
    assert asked
    assert form.running
    assert form.isVisible()
    answer("Stop and close")
    form.close()
    qtbot.waitUntil(lambda: not _run._running, timeout=2000)
    form.deleteLater()
    qtbot.waitUntil(lambda: not isalive(form), timeout=WAIT)
