"""What napari's style sheet leaves to us can be read on every theme, and no form is cut at its side."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from napari.components._viewer_key_bindings import toggle_theme
from napari.settings import get_settings
from napari.utils.theme import get_theme
from qtpy.QtCore import QRect, Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QLabel, QPushButton, QScrollArea, QWidget

from napari_ambient.noise import NoiseModel
from napari_ambient.widgets import _run
from napari_ambient.widgets._file_table import STATE, FileTable
from napari_ambient.widgets._forms import _Fold
from napari_ambient.widgets._plots import LossPlot
from napari_ambient.widgets._run import Message
from napari_ambient.widgets._theme import Meaning, accent_style, contrast, signal_colour
from napari_ambient.widgets._training_job import Point

READABLE = 4.5
"""Least contrast of text (W3C, Web Content Accessibility Guidelines 2.1, 1.4.3)."""
FORMS = {"train": "TrainWidget", "restore": "RestoreWidget", "sample": "SampleWidget", "batch": "BatchWidget"}
MAIN = {"train": "train", "restore": "button", "sample": "draw", "batch": "start"}


def rgb(colour: Any) -> tuple[int, int, int]:
    made = QColor(colour)
    return made.red(), made.green(), made.blue()


def grounds(theme: str) -> list[tuple[int, int, int]]:
    """Give what text stands on: the window, and boxes and tables."""
    return [rgb(getattr(get_theme(theme), name).as_hex()) for name in ("background", "foreground")]


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((255, 255, 255), (118, 118, 118)) == pytest.approx(4.54, abs=0.01)  # the standard's own example
    assert contrast((9, 9, 9), (9, 9, 9)) == 1


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("meaning", get_args(Meaning))
def test_signals_can_be_read(theme: str, meaning: Meaning) -> None:
    colour = rgb(signal_colour(meaning, theme))
    assert min(contrast(colour, ground) for ground in grounds(theme)) >= READABLE
    # the negative control: the colour for the other theme could not
    other = rgb(signal_colour(meaning, "light" if theme == "dark" else "dark"))
    assert min(contrast(other, ground) for ground in grounds(theme)) < READABLE


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("name", FORMS)
def test_the_main_button_can_be_read_and_follows_the_theme(name: str, theme: str, viewer: Any, qtbot: Any) -> None:
    before = set(_run._running)
    form = getattr(importlib.import_module(f"napari_ambient.widgets.{name}"), FORMS[name])(viewer)
    viewer.window.add_dock_widget(form, name=name)
    viewer.theme = theme
    style = getattr(form, MAIN[name]).styleSheet()
    assert style == accent_style(theme)
    ground, text = (tuple(int(n) for n in part.split(")")[0].split(",")) for part in style.split("rgb(")[1:])
    assert contrast(ground, text) >= READABLE
    assert ground == rgb(get_theme(theme).current.as_hex())
    qtbot.waitUntil(lambda: _run._running <= before, timeout=30_000)


def test_the_shortcut_changes_the_windows_theme_alone(viewer: Any, qtbot: Any) -> None:
    """Ctrl+Shift+T of napari leaves its settings as they are; sentences must be read all the same."""
    message = Message()
    viewer.window.add_dock_widget(message, name="words")
    message.warn("dim")
    settings = get_settings().appearance.theme
    for _ in range(2):
        toggle_theme(viewer)
        assert get_settings().appearance.theme == settings
        assert signal_colour("warning", viewer.theme) in message.styleSheet()
    assert viewer.theme == settings  # it was the other one in between


def test_sentences_and_states_change_with_the_theme(qtbot: Any) -> None:
    window, table = QWidget(), FileTable()
    message = Message(window)
    qtbot.addWidget(window)
    table.add([Path("a.tif")])
    table.update(Path("a.tif"), state="failed")
    settings = get_settings().appearance
    before = settings.theme
    try:
        for theme in ("light", "dark"):
            message.warn("dim")
            settings.theme = theme
            window.setStyleSheet(f"QWidget {{ font-size: {9 if theme == 'light' else 10}pt; }}")  # as napari does
            assert signal_colour("warning", theme) in message.styleSheet()
            brush = table.index(0, STATE).data(Qt.ItemDataRole.ForegroundRole)
            assert rgb(brush.color()) == rgb(signal_colour("bad", theme))
    finally:
        settings.theme = before
    message.say("fine")
    assert message.styleSheet() == ""


@pytest.mark.parametrize("name", FORMS)
def test_nothing_is_cut_at_the_side(name: str, viewer: Any, qtbot: Any) -> None:
    """With all folds open, all of a form lies between its sides; and no word of a button or a label is cut."""
    counts = np.random.default_rng(0).poisson(4, (4, 48, 48)).astype(np.uint16)
    viewer.add_image(counts, name="cells of a name that is much longer than usual", axis_labels=("t", "y", "x"))
    before = set(_run._running)
    form = getattr(importlib.import_module(f"napari_ambient.widgets.{name}"), FORMS[name])(viewer)
    dock = viewer.window.add_dock_widget(form, name=name)
    viewer.window._qt_window.resize(1200, 700)
    viewer.window._qt_window.show()
    for fold in form.findChildren(_Fold):
        fold.button.setChecked(True)
    if name == "train":
        form.noise.set_models((NoiseModel(gain=2.0, intercept=-200.0, photons=6.0),))
    qtbot.wait(200)
    area = form.findChild(QScrollArea)
    assert area.widget().width() <= area.viewport().width()
    assert dock.width() < 480  # beside the image there must be room for it
    for part in form.findChildren(QWidget):
        if part.isVisible() and isinstance(part, (QPushButton, QLabel)):
            place = QRect(part.mapTo(area.widget(), part.rect().topLeft()), part.size())
            assert place.left() >= 0
            assert place.right() <= area.widget().width(), part
            wraps = isinstance(part, QLabel) and part.wordWrap()
            if not wraps and part.text():
                wanted = part.fontMetrics().horizontalAdvance(part.text().replace("&", ""))
                assert part.width() >= wanted, part.text()
    qtbot.waitUntil(lambda: _run._running <= before, timeout=30_000)
    viewer.window._qt_window.hide()


def test_an_empty_plot_shows_no_fractions_of_steps(qtbot: Any) -> None:
    plot = LossPlot()
    qtbot.addWidget(plot)
    plot.clear(100)
    assert not plot.axes["bottom"].style["showValues"]
    plot.add([Point(5, {"ambient": -1.0}, None)])
    assert plot.axes["bottom"].style["showValues"]
