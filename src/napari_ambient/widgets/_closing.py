"""Closing a form that is at work: it asks first, then stops the work.

    ✕ of the dock, or of the form's own window → AskFirst → "Stop and close" | "Go on"

napari takes a form out of its dock without a word to it; the form's jobs then cancel themselves (`_run.py`). So the
question must come before: in the dock's `destroyOnClose`, which its ✕ calls.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from qtpy.compat import isalive
from qtpy.QtCore import QEvent, QObject
from qtpy.QtWidgets import QMessageBox, QWidget

STOP, STAY = "Stop and close", "Go on"


class AskFirst(QObject):
    """Asks before a form is closed while it works.

    Parameters
    ----------
    form : QWidget
        The form; it is not kept alive.
    at_work : method of the form
        Gives two sentences, what is being done and what is kept of it: ("cells is being trained.", "What was learned
        so far is kept."). None where nothing is being done.
    stop : method of the form
        Stops the work.
    """

    def __init__(
        self, form: QWidget, at_work: Callable[[], tuple[str, str] | None], stop: Callable[[], object]
    ) -> None:
        super().__init__(form)
        self._form = weakref.ref(form)
        self._at_work, self._stop = weakref.WeakMethod(at_work), weakref.WeakMethod(stop)
        self._dock: weakref.ref[Any] | None = None
        form.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Follow the form into its dock; refuse to close its own window while it works."""
        if event.type() == QEvent.Type.ParentChange:
            self._follow_dock(watched)
        elif event.type() == QEvent.Type.Close and not self.may_close():
            event.ignore()
            return True
        return False

    def _follow_dock(self, form: QObject) -> None:
        parent: Any = form.parent()
        while parent is not None and not hasattr(parent, "destroyOnClose"):
            parent = parent.parent()
        if parent is None or (self._dock is not None and parent is self._dock()):
            return
        self._dock = weakref.ref(parent)
        its_dock, me = self._dock, weakref.ref(self)

        def ask_first() -> None:
            dock, asker = its_dock(), me()
            if dock is not None and (asker is None or asker.may_close()):
                type(dock).destroyOnClose(dock)

        parent.destroyOnClose = ask_first

    def may_close(self) -> bool:
        """Ask, if the form works; and stop the work, if it may be.

        Returns
        -------
        bool
            Whether the form may be closed.
        """
        form, at_work, stop_work = self._form(), self._at_work(), self._stop()
        told = None if form is None or at_work is None or not isalive(form) else at_work()
        if form is None or stop_work is None or told is None:
            return True
        doing, kept = told
        box = QMessageBox(QMessageBox.Icon.Question, STOP, f"{doing} Stop and close?\n\n{kept}", parent=form.window())
        stop = box.addButton(STOP, QMessageBox.ButtonRole.AcceptRole)
        stay = box.addButton(STAY, QMessageBox.ButtonRole.RejectRole)
        box.setDefaultButton(stay)
        box.exec()
        stopped = box.clickedButton() is stop
        box.deleteLater()
        if stopped:
            stop_work()
        return stopped
