"""What the library warns of while a job works: to the form that started it, in the words of the forms.

    warnings.warn (worker thread) → warnings.showwarning → the job of that thread, and whoever showed warnings before

A warning is not an error: the work goes on, and the line under the form says at its end what to know. napari shows it
too, for a moment. Python has one place for the whole process where warnings are shown; ours stands in it while jobs
work, gives everything on to the one before, and changes nothing but the words of this package's own warnings.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from napari_ambient.widgets._words import error_in_forms

PACKAGE = __name__.partition(".")[0]


class _Shown:
    """In the place of `warnings.showwarning` while jobs work.

    Somebody's ``catch_warnings`` may put it back there after the last job: it then hears for nobody, and gives on.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.hearing: dict[int, Callable[[str], None]] = {}
        self.before: Callable[..., Any] | None = None

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if isinstance(message, Warning) and category.__module__.partition(".")[0] == PACKAGE:
            told = error_in_forms(message)
            hear = self.hearing.get(threading.get_ident())
            if hear is not None:
                hear(str(told))
            assert isinstance(told, Warning)
            message = told
        if self.before is not None:
            self.before(message, category, filename, lineno, file, line)

    def begin(self, hear: Callable[[str], None]) -> None:
        with self.lock:
            self.hearing[threading.get_ident()] = hear
            if warnings.showwarning is not self:
                self.before = warnings.showwarning
                warnings.showwarning = self

    def end(self) -> None:
        with self.lock:
            del self.hearing[threading.get_ident()]
            if not self.hearing and warnings.showwarning is self and self.before is not None:
                warnings.showwarning = self.before


_shown = _Shown()


@contextmanager
def heard(hear: Callable[[str], None]) -> Iterator[None]:
    """Hear what this package warns of in this thread, in the words of the forms.

    Parameters
    ----------
    hear : callable
        Called in this thread with the text of each warning.
    """
    # Python shows the same sentence once; whoever restores a second image must be told again
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == PACKAGE:
            getattr(module, "__warningregistry__", {}).clear()
    _shown.begin(hear)
    try:
        yield
    finally:
        _shown.end()


__all__ = ["heard"]
