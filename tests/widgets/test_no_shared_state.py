"""Two open widgets share no state: what is chosen, running or said in one is not seen in the other.

What they do share by design are the viewer's layers and the list of priors; which of them is chosen is each one's own.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QAbstractButton, QAbstractSpinBox, QComboBox, QLabel, QLineEdit, QWidget

from napari_ambient import widgets
from napari_ambient.widgets import _run

FORMS = {"train": "TrainWidget", "restore": "RestoreWidget", "sample": "SampleWidget", "batch": "BatchWidget"}


def form(name: str) -> Any:
    return getattr(importlib.import_module(f"napari_ambient.widgets.{name}"), FORMS[name])


def parts(widget: QWidget) -> list[QWidget]:
    """Every part of a form that shows or takes a value, in a fixed order."""
    kinds = (QAbstractSpinBox, QComboBox, QLineEdit, QAbstractButton, QLabel)
    return [part for part in widget.findChildren(QWidget) if isinstance(part, kinds)]


def value(part: QWidget) -> Any:
    if isinstance(part, QComboBox):
        return part.currentText(), part.isEnabled()
    if isinstance(part, QAbstractButton):
        return part.text(), part.isChecked(), part.isEnabled()
    return part.text(), part.isEnabled()  # type: ignore[attr-defined]


def change(part: QWidget) -> bool:
    """Choose something else; whether that was possible."""
    before = value(part)
    if isinstance(part, QComboBox) and part.isEnabled():
        part.setCurrentIndex((part.currentIndex() + 1) % max(part.count(), 1))
    elif isinstance(part, QAbstractSpinBox) and part.isEnabled():
        part.stepBy(1)
    elif isinstance(part, QLineEdit) and part.isEnabled() and not isinstance(part.parent(), QAbstractSpinBox):
        part.setText("1" if part.validator() is not None else f"{part.text()}x")
        part.editingFinished.emit()
    elif isinstance(part, QAbstractButton) and part.isEnabled() and part.isCheckable():
        part.click()
    return value(part) != before


def opened(viewer: Any, kind: Any, number: int) -> Any:
    """Open a form in a dock, without what it does after a while (the time estimate, the comparison with the image)."""
    widget = kind(viewer)
    viewer.window.add_dock_widget(widget, name=f"{kind.__name__} {number}")
    for timer in widget.findChildren(QTimer):
        timer.stop()
    return widget


@pytest.fixture
def quiet(qtbot: Any) -> Any:
    """End whatever still works when a test is over."""
    yield
    for job in list(_run._running):
        job.cancel()
    qtbot.waitUntil(lambda: not _run._running, timeout=30_000)


@pytest.mark.parametrize("name", FORMS)
def test_choices_in_one_form_do_not_reach_the_other(name: str, viewer: Any, qtbot: Any, quiet: None) -> None:
    """Change every part of one of two forms of a kind: the other, and one opened later, stay as they were."""
    counts = np.random.default_rng(0).poisson(4, (4, 48, 48)).astype(np.uint16)
    viewer.add_image(counts, name="cells", axis_labels=("t", "y", "x"))
    viewer.add_image(counts[:3], name="other", axis_labels=("t", "y", "x"))
    kind = form(name)
    first, second = opened(viewer, kind, 1), opened(viewer, kind, 2)
    qtbot.waitUntil(lambda: not _run._running, timeout=30_000)
    fresh = [value(part) for part in parts(second)]
    changed = sum(change(part) for part in parts(first))
    # a form of which nothing could be changed would pass for nothing
    assert changed >= 4
    assert [value(part) for part in parts(second)] == fresh
    for timer in first.findChildren(QTimer):
        timer.stop()
    third = opened(viewer, kind, 3)
    qtbot.waitUntil(lambda: not _run._running, timeout=30_000)
    settled = [value(part) for part in parts(third)]
    assert [type(part) for part in parts(third)] == [type(part) for part in parts(second)]
    assert settled == fresh


@pytest.mark.parametrize("name", FORMS)
def test_no_form_keeps_state_in_its_class(name: str) -> None:
    """A class attribute that can be changed would be one for all forms."""
    for owner in form(name).__mro__:
        if not owner.__module__.startswith("napari_ambient"):
            break
        mutable = [key for key, kept in vars(owner).items() if isinstance(kept, (list, dict, set))]
        assert [key for key in mutable if not key.startswith("__")] == []


def test_no_module_is_written_to() -> None:
    """No function of the plugin rebinds a name of its module (`global`)."""
    folder = Path(inspect.getfile(widgets)).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not isinstance(node, ast.Global), f"{path.name}:{getattr(node, 'lineno', '?')}"


def test_the_checks_bite(viewer: Any, qtbot: Any) -> None:
    """A form whose parts follow each other is found."""
    kept: list[QComboBox] = []

    class Sharing(QWidget):
        def __init__(self) -> None:
            super().__init__()
            self.box = QComboBox(self)
            self.box.addItems(["a", "b"])
            kept.append(self.box)
            self.box.currentIndexChanged.connect(lambda index: [other.setCurrentIndex(index) for other in kept])

    first, second = Sharing(), Sharing()
    for widget in (first, second):
        qtbot.addWidget(widget)
    fresh = [value(part) for part in parts(second)]
    assert sum(change(part) for part in parts(first)) == 1
    assert [value(part) for part in parts(second)] != fresh
