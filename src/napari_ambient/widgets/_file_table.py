"""A table of files: one row each, with what it is and what has become of it.

    waiting → working 40 % → finished | skipped | failed: reason

`FileTable` holds the rows (plain Qt model, no viewer), `FileView` shows them, takes files that are dropped on it, and
says which row was opened. `batch.py` fills the rows from the reports of `napari_ambient.batch`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qtpy.QtCore import QAbstractTableModel, QModelIndex, QObject, QRect, Qt, Signal
from qtpy.QtGui import (
    QBrush,
    QColor,
    QDragEnterEvent,
    QDragMoveEvent,
    QDropEvent,
    QKeyEvent,
    QPainter,
    QPaintEvent,
)
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QTableView,
    QWidget,
)

from ._theme import Meaning, signal_colour

State = Literal["waiting", "working", "finished", "skipped", "failed"]
COLUMNS = ("File", "Image", "State")
FILE, IMAGE, STATE = range(3)
FRACTION = Qt.ItemDataRole.UserRole
"""Role under which the State column gives how much of a file is done, 0 to 1, or None."""

_MEANINGS: dict[str, Meaning] = {"finished": "good", "failed": "bad", "skipped": "neutral"}
_BAR = QColor(47, 128, 237, 110)


@dataclass
class Row:
    """One file.

    Parameters
    ----------
    source : Path
        The file.
    target : Path or None
        Its result, once that is known.
    image : str
        What it is, in words; why it cannot be opened.
    fault : bool
        Whether `image` says why it cannot be opened.
    state : str
        Waiting, working, finished, skipped or failed.
    fraction : float
        How much is done while working, 0 to 1.
    message : str
        Why it was skipped or failed, or what to know of the result.
    """

    source: Path
    target: Path | None = None
    image: str = "…"
    fault: bool = False
    state: State = "waiting"
    fraction: float = 0.0
    message: str = ""

    def words(self) -> str:
        """Say the state in words."""
        if self.state == "working":
            return f"working {100 * self.fraction:.0f} %"
        if self.state == "waiting" or not self.message:
            return self.state
        return f"{self.state}: {self.message}"


class FileTable(QAbstractTableModel):
    """The rows, each file once.

    Parameters
    ----------
    parent : QObject or None
        What it belongs to.
    """

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._rows: list[Row] = []

    @property
    def rows(self) -> Sequence[Row]:
        """All rows, as shown."""
        return tuple(self._rows)

    def add(self, sources: Iterable[Path]) -> list[Path]:
        """Add files that are not there yet.

        Returns
        -------
        list of Path
            Those that were added.
        """
        known = {row.source for row in self._rows}
        new = [path for path in dict.fromkeys(sources) if path not in known]
        if new:
            first = len(self._rows)
            self.beginInsertRows(QModelIndex(), first, first + len(new) - 1)
            self._rows.extend(Row(path) for path in new)
            self.endInsertRows()
        return new

    def remove(self, numbers: Iterable[int]) -> None:
        """Take rows out."""
        for number in sorted(set(numbers), reverse=True):
            self.beginRemoveRows(QModelIndex(), number, number)
            del self._rows[number]
            self.endRemoveRows()

    def clear(self) -> None:
        """Take all rows out."""
        self.beginResetModel()
        self._rows.clear()
        self.endResetModel()

    def update(self, source: Path, **changes: Any) -> Row | None:
        """Change what is known of a file; None if it was taken out."""
        for number, row in enumerate(self._rows):
            if row.source == source:
                for name, value in changes.items():
                    setattr(row, name, value)
                self.dataChanged.emit(self.index(number, 0), self.index(number, len(COLUMNS) - 1))
                return row
        return None

    def count(self, state: State) -> int:
        """Count the files in a state."""
        return sum(row.state == state for row in self._rows)

    # ------------------------------------------------------------------------------------- what Qt asks

    def rowCount(self, parent: QModelIndex | None = None) -> int:
        """Count the rows."""
        return 0 if parent is not None and parent.isValid() else len(self._rows)

    def columnCount(self, parent: QModelIndex | None = None) -> int:
        """Count the columns."""
        return 0 if parent is not None and parent.isValid() else len(COLUMNS)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Name the columns."""
        if role == Qt.ItemDataRole.DisplayRole and orientation == Qt.Orientation.Horizontal:
            return COLUMNS[section]
        return None

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Give a cell's text, tooltip, colour, or (State) the fraction that is done."""
        if not index.isValid():
            return None
        row, column = self._rows[index.row()], index.column()
        if role == Qt.ItemDataRole.DisplayRole:
            return (row.source.name, row.image, row.words())[column]
        if role == Qt.ItemDataRole.ToolTipRole:
            if column == FILE:
                return str(row.source)
            return row.image if column == IMAGE else "\n".join(filter(None, (row.words(), _opens(row))))
        if role == Qt.ItemDataRole.ForegroundRole:
            name = "failed" if column == IMAGE and row.fault else row.state if column == STATE else ""
            return QBrush(QColor(signal_colour(_MEANINGS[name]))) if name in _MEANINGS else None
        if role == FRACTION and column == STATE and row.state == "working":
            return row.fraction
        return None


class FileView(QTableView):
    """The table on the screen.

    Parameters
    ----------
    model : FileTable
        The rows.
    parent : QWidget or None
        Where it lies.
    """

    dropped = Signal(list)
    """Paths (str) of files and folders that were dropped on it."""
    opened = Signal(object)
    """The `Row` that was double-clicked, or chosen by Enter."""
    removed = Signal()
    """Delete was pressed."""

    def __init__(self, model: FileTable, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setModel(model)
        self._table = model
        self.setAcceptDrops(True)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.setWordWrap(False)
        self.setShowGrid(False)
        self.setAlternatingRowColors(False)
        self.setItemDelegateForColumn(IMAGE, _EndCut(self))
        self.setItemDelegateForColumn(STATE, _Bar(self))
        self.setMinimumHeight(150)
        for header in (self.verticalHeader(), self.horizontalHeader()):
            assert header is not None
        self.verticalHeader().setVisible(False)
        self.verticalHeader().setDefaultSectionSize(24)
        columns = self.horizontalHeader()
        columns.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        columns.setHighlightSections(False)
        for column in (FILE, IMAGE, STATE):
            columns.setSectionResizeMode(column, QHeaderView.ResizeMode.Stretch)
        self.doubleClicked.connect(self._open)

    def chosen(self) -> list[int]:
        """Give the numbers of the selected rows."""
        return sorted({index.row() for index in self.selectionModel().selectedRows()})

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Delete takes the selected rows out, Enter opens."""
        if event.key() in (Qt.Key.Key_Delete, Qt.Key.Key_Backspace):
            self.removed.emit()
        elif event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and self.currentIndex().isValid():
            self._open(self.currentIndex())
        else:
            super().keyPressEvent(event)

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        """Take files."""
        self._take(event)

    def dragMoveEvent(self, event: QDragMoveEvent) -> None:
        """Take files."""
        self._take(event)

    def dropEvent(self, event: QDropEvent) -> None:
        """Say which files were dropped."""
        paths = [url.toLocalFile() for url in event.mimeData().urls() if url.isLocalFile()]
        if paths:
            event.setDropAction(Qt.DropAction.CopyAction)
            event.accept()
            self.dropped.emit([os.path.normpath(path) for path in paths])

    def paintEvent(self, event: QPaintEvent) -> None:
        """Invite to drop files while there are none."""
        super().paintEvent(event)
        if self._table.rowCount():
            return
        painter = QPainter(self.viewport())
        painter.setPen(self.palette().color(self.foregroundRole()))
        painter.setOpacity(0.6)
        painter.drawText(
            self.viewport().rect(),
            Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap,
            "Drop files or folders here\n(TIFF, OME-Zarr, .npy)",
        )
        painter.end()

    def _take(self, event: QDragMoveEvent) -> None:
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.setDropAction(Qt.DropAction.CopyAction)
            event.accept()

    def _open(self, index: QModelIndex) -> None:
        self.opened.emit(self._table.rows[index.row()])


class _EndCut(QStyledItemDelegate):
    """Keeps the beginning of a text that is too long."""

    def initStyleOption(self, option: QStyleOptionViewItem, index: QModelIndex) -> None:
        super().initStyleOption(option, index)
        option.textElideMode = Qt.TextElideMode.ElideRight


class _Bar(_EndCut):
    """Draws how much of a file is done, behind the words."""

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex) -> None:
        fraction = index.data(FRACTION)
        if fraction is not None:
            box: QRect = option.rect.adjusted(1, 3, -1, -3)
            painter.fillRect(QRect(box.left(), box.top(), round(box.width() * fraction), box.height()), _BAR)
        super().paint(painter, option, index)


def _opens(row: Row) -> str:
    return "double click opens the result" if row.state in ("finished", "skipped") else "double click opens the file"
