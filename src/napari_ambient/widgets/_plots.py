"""The two plots of the Train form: the losses as they fall, and the photon-transfer line with its points.

    training.Step → LossPlot          noise.NoiseModel → TransferPlot

Both take napari's colours, on the dark and on the light theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyqtgraph
from napari.utils.theme import get_theme
from numpy.typing import NDArray
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QSizePolicy, QVBoxLayout, QWidget

from napari_ambient.widgets._theme import is_dark

if TYPE_CHECKING:
    from napari_ambient.noise import NoiseModel
    from napari_ambient.widgets._training_job import Point

HELD_OUT = "held-out"
# Told apart also by the colour-blind, on dark and on light grounds (Okabe & Ito 2008, without black and yellow).
COLOURS = ("#e69f00", "#56b4e9", "#cc79a7", "#009e73", "#d55e00", "#0072b2")
HELD_OUT_COLOUR = {True: "#ffffff", False: "#000000"}
SMOOTH = 0.02
"""Share of the training over which the shown losses are averaged."""
SHOWN = 800
"""Points of a curve that are drawn at most."""


class _Plot(QWidget):
    """A plot in napari's colours, with a line of text above it."""

    def __init__(self, height: int, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.words = QLabel()
        self.words.setWordWrap(True)
        self.words.setTextFormat(Qt.TextFormat.RichText)
        self.words.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        # Not a PlotWidget, whose context menus are windows of their own and outlive it.
        self.plot = pyqtgraph.GraphicsLayoutWidget()
        self.plot.setFixedHeight(height)
        self.plot.ci.layout.setContentsMargins(0, 4, 4, 4)
        self.view = pyqtgraph.ViewBox(enableMenu=False, enableMouse=False)
        self.axes = {side: pyqtgraph.AxisItem(side) for side in ("left", "bottom")}
        self.plot.addItem(self.axes["left"], 0, 0)
        self.plot.addItem(self.view, 0, 1)
        self.plot.addItem(self.axes["bottom"], 1, 1)
        for axis in self.axes.values():
            axis.linkToView(self.view)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        column.addWidget(self.words)
        column.addWidget(self.plot)
        self.dark = True

    def set_theme(self, name: str) -> None:
        """Take the colours of a napari theme.

        Parameters
        ----------
        name : str
            "dark", "light" or one of the user's.
        """
        theme = get_theme(name)
        self.dark = is_dark(name)
        self.plot.setBackground(theme.background.as_hex())
        text = theme.text.as_hex()
        for axis in self.axes.values():
            axis.setPen(theme.secondary.as_hex())
            axis.setTextPen(text)
        self._recolour()

    def _recolour(self) -> None:
        raise NotImplementedError


class LossPlot(_Plot):
    """The losses of a training: each term and the held-out loss, every curve over its own range.

    The terms have no common scale (a log-likelihood near -2 beside an error of 0.004), and only their course matters:
    so each curve fills the height, and the numbers stand above.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(146, parent)
        self.axes["left"].setStyle(showValues=False)
        self.axes["left"].setLabel("loss")
        self.axes["bottom"].setLabel("step")
        self.plot.setToolTip(
            "Each term of the loss and the held-out loss, each over its own range; lower is better. The held-out loss, "
            "of image parts that are not trained on, is the one to watch."
        )
        self._steps: dict[str, list[int]] = {}
        self._values: dict[str, list[float]] = {}
        self._curves: dict[str, pyqtgraph.PlotDataItem] = {}
        self._total = 1
        self.view.setYRange(0, 1, padding=0.08)

    def clear(self, total: int) -> None:
        """Begin anew, for a training of `total` steps."""
        self._total = max(total, 1)
        self._steps, self._values = {}, {}
        for curve in self._curves.values():
            self.view.removeItem(curve)
        self._curves = {}
        self.words.setText("")
        self.axes["bottom"].setStyle(showValues=False)  # there are no fractions of steps, which an empty plot shows

    @property
    def names(self) -> list[str]:
        """The curves that there are."""
        return list(self._values)

    def add(self, points: Sequence[Point]) -> None:
        """Add steps and draw.

        Parameters
        ----------
        points : sequence of Point
            The newest last.
        """
        for point in points:
            for name, value in point.losses.items():
                before = self._values.setdefault(name, [])
                steps = self._steps.setdefault(name, [])
                share = max(1 / (len(before) + 1), 1 / max(10.0, SMOOTH * self._total))
                before.append(value if not before else before[-1] + share * (value - before[-1]))
                steps.append(point.index)
            if point.validation is not None:
                self._values.setdefault(HELD_OUT, []).append(point.validation)
                self._steps.setdefault(HELD_OUT, []).append(point.index)
        for name, values in self._values.items():
            every = -(-len(values) // SHOWN)
            x = np.asarray(self._steps[name][::-1][::every][::-1])
            shown = np.asarray(values[::-1][::every][::-1])
            low, high = _range(shown)
            self._curve(name).setData(x, (shown - low) / (high - low))
        self.axes["bottom"].setStyle(showValues=bool(self._values))
        self._say()

    def _curve(self, name: str) -> pyqtgraph.PlotDataItem:
        if name not in self._curves:
            self._curves[name] = pyqtgraph.PlotDataItem()
            self.view.addItem(self._curves[name])
            self._recolour()
        return self._curves[name]

    def _colour(self, name: str) -> str:
        if name == HELD_OUT:
            return HELD_OUT_COLOUR[self.dark]
        terms = [other for other in self._values if other != HELD_OUT]
        return COLOURS[terms.index(name) % len(COLOURS)]

    def _recolour(self) -> None:
        for name, curve in self._curves.items():
            if name == HELD_OUT:
                curve.setPen(self._colour(name), width=2)
                curve.setSymbol("o")
                curve.setSymbolSize(5)
                curve.setSymbolBrush(self._colour(name))
                curve.setSymbolPen(None)
                curve.setZValue(10)
            else:
                curve.setPen(self._colour(name), width=1.5)
        self._say()

    def _say(self) -> None:
        parts = [
            f"<span style='color:{self._colour(name)}'>{'●' if name == HELD_OUT else '━'}</span>&nbsp;{name}&nbsp;"
            f"{values[-1]:.3g}".replace("e-0", "e-").replace(name, name.replace(" ", "&nbsp;"))
            for name, values in sorted(self._values.items(), key=lambda item: item[0] != HELD_OUT)
        ]
        self.words.setText(" &nbsp; ".join(parts))


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    """Lowest value, and the highest but for the first steps, whose fall would flatten all that follows."""
    later = values[len(values) // 20 :]
    low, high = float(later.min()), float(later.max())
    return low, high if high > low else low + 1.0


class TransferPlot(_Plot):
    """The photon-transfer plot: variance against mean, the measured points and the line."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(154, parent)
        self.axes["bottom"].setLabel("mean (counts)")
        self.axes["left"].setLabel("variance (counts²)")
        self.plot.setToolTip(
            "Each point: voxels of one brightness. Where light is counted, the variance rises with the mean in a "
            "straight line; its slope is the gain, and where it meets zero there is no light."
        )
        self._points = pyqtgraph.ScatterPlotItem(pxMode=True)
        self._line = pyqtgraph.PlotDataItem()
        self.view.addItem(self._points)
        self.view.addItem(self._line)
        self.words.hide()

    def show_noise(self, noise: NoiseModel) -> None:
        """Draw a noise model.

        Parameters
        ----------
        noise : NoiseModel
            With its points, where it was fitted.
        """
        mean, variance, count = noise.transfer
        gain, zero = float(np.median(noise.gain)), float(np.median(noise.zero))
        size = 4 + 6 * np.sqrt(count / count.max()) if count.size else count
        self._points.setData(mean, variance, size=size)
        end = float(mean.max()) if mean.size else zero + 1
        ends = np.array([zero, max(end, zero)])
        self._line.setData(ends, gain * (ends - zero))
        self._recolour()
        self.view.autoRange(padding=0.05)

    def _recolour(self) -> None:
        self._points.setPen(None)
        self._points.setBrush(pyqtgraph.mkBrush(86, 180, 233, 180))
        self._line.setPen(COLOURS[0], width=2)
