"""A form's column of parts, which scrolls up and down where the window is low, and is never cut at its sides."""

from __future__ import annotations

from qtpy.QtCore import QEvent, QObject, QSize, Qt
from qtpy.QtWidgets import QFrame, QScrollArea, QVBoxLayout, QWidget


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
    return QVBoxLayout(inside)


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
        return QSize(width + (0 if bar is None else bar.sizeHint().width()), 200)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Follow what is in it: styles and texts that come later make it wider."""
        if event.type() in (QEvent.Type.LayoutRequest, QEvent.Type.Show, QEvent.Type.StyleChange):
            self.setMinimumWidth(self.minimumSizeHint().width())
        return bool(super().eventFilter(watched, event))

    def sizeHint(self) -> QSize:
        """As wide as needed, as high as there is room."""
        inside = self.widget()
        return self.minimumSizeHint() if inside is None else self.minimumSizeHint().expandedTo(inside.sizeHint())
