"""A form's column of parts, which scrolls up and down where the window is low, and is never cut at its sides.

And what the parts are grouped by: titled boxes, and rows of a label and a field.
"""

from __future__ import annotations

from qtpy.compat import isalive
from qtpy.QtCore import QEvent, QObject, QSize, Qt, QTimer
from qtpy.QtWidgets import QFormLayout, QFrame, QGroupBox, QLabel, QScrollArea, QVBoxLayout, QWidget


def scrolled_column(widget: QWidget) -> QVBoxLayout:
    """Give a widget a column that scrolls where the window is low.

    Parameters
    ----------
    widget : QWidget
        Without a layout yet.

    Returns
    -------
    QVBoxLayout
        For the widget's parts.
    """
    area, inside = _Upright(), QWidget()
    area.setWidget(inside)
    outer = QVBoxLayout(widget)
    outer.setContentsMargins(0, 0, 0, 0)
    outer.addWidget(area)
    column = QVBoxLayout(inside)
    column.setContentsMargins(6, 6, 6, 6)
    return column


def scroll_to(part: QWidget) -> None:
    """Scroll a column until one of its parts is seen, once it has been laid out.

    Parameters
    ----------
    part : QWidget
        Inside a column; it may have been hidden until now.
    """

    def scroll() -> None:
        if not isalive(part):
            return
        area = part.parentWidget()
        while area is not None and not isinstance(area, QScrollArea):
            area = area.parentWidget()
        if area is not None:
            area.ensureWidgetVisible(part)

    QTimer.singleShot(50, scroll)


def group(title: str, *parts: QWidget) -> tuple[QGroupBox, QVBoxLayout]:
    """Put parts below each other into a titled box.

    Parameters
    ----------
    title : str
        Of the box.
    *parts : QWidget
        What is in it.

    Returns
    -------
    tuple of (QGroupBox, QVBoxLayout)
        The box, and its column, for more parts.
    """
    box = QGroupBox(title)
    column = QVBoxLayout(box)
    for part in parts:
        column.addWidget(part)
    return box, column


def labelled_rows(parent: QWidget | None = None) -> QFormLayout:
    """Give rows of a label and a field, which takes the rest of the width.

    Parameters
    ----------
    parent : QWidget or None
        Whose layout it is to be.

    Returns
    -------
    QFormLayout
    """
    rows = _Rows() if parent is None else _Rows(parent)
    rows.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    return rows


WIDEST = "… error bars"
"""Label as wide as which all are, so that the fields of one form stand below each other."""


class _Label(QLabel):
    def sizeHint(self) -> QSize:
        """As wide as the widest, in the font that it has by then."""
        return super().sizeHint().expandedTo(QSize(self.fontMetrics().horizontalAdvance(WIDEST), 0))

    minimumSizeHint = sizeHint


class _Rows(QFormLayout):
    def addRow(self, *row: object) -> None:
        """Add a row; a label in words is as wide as those of all other rows."""
        if row and isinstance(row[0], str):
            row = (_Label(row[0]), *row[1:])
        super().addRow(*row)


MARGIN = 4
"""Pixels around a scroll bar."""


class _Upright(QScrollArea):
    """Scrolls up and down only: never narrower than what is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)

    def minimumSizeHint(self) -> QSize:
        """Leave room for what is in it, and for the scroll bar."""
        inside, bar = self.widget(), self.verticalScrollBar()
        width = 0 if inside is None else inside.minimumSizeHint().width()
        # a bar that is shown is wider than its hint by the margins of napari's style sheet
        return QSize(width + (0 if bar is None else max(bar.sizeHint().width(), bar.width())) + MARGIN, 200)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Follow what is in it: styles and texts that come later make it wider."""
        if event.type() in (QEvent.Type.LayoutRequest, QEvent.Type.Show, QEvent.Type.StyleChange):
            self.setMinimumWidth(self.minimumSizeHint().width())
        return bool(super().eventFilter(watched, event))

    def sizeHint(self) -> QSize:
        """As wide as needed, as high as there is room."""
        inside = self.widget()
        return self.minimumSizeHint() if inside is None else self.minimumSizeHint().expandedTo(inside.sizeHint())
