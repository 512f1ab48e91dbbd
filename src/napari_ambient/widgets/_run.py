"""Work off the Qt thread: a generator becomes a `Job`, which a widget follows by signals and can cancel.

    make(job) → generator → (worker thread) → yielded … → succeeded | failed | cancelled → ended

The worker is one of `napari.qt.threading`, so napari names it when the window is closed, and waits for it when the
program ends. Its loop is our own: superqt's reports no `RuntimeError` of a generator (which a lack of CUDA memory is),
leaves a cancelled generator open, and redirects the whole process's warnings, for good if two workers overlap.

Every thread of the plugin is started here.
"""

from __future__ import annotations

import dis
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal

from napari.qt.threading import GeneratorWorker, create_worker
from napari.utils.notifications import notification_manager
from qtpy.compat import isalive
from qtpy.QtCore import QEvent, QObject, Qt, QThreadPool, QTimer, Signal
from qtpy.QtWidgets import (
    QDockWidget,
    QHBoxLayout,
    QLabel,
    QMainWindow,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_ambient.widgets._column import scroll_to
from napari_ambient.widgets._theme import Meaning, signal_colour
from napari_ambient.widgets._warned import heard
from napari_ambient.widgets._words import error_in_forms, in_forms

WAITING = 32
"""Yielded values that may wait for the Qt thread; a faster generator is slowed down, the window is not."""

MEMORY_REMEDY = (
    "Out of memory. Close other programs, choose a smaller region or the preset “quick”, or lower the memory cap in "
    "the plugin's settings; on a GPU, choose the device “cpu” there."
)
"""What a user is told where memory was not enough."""


TURN_MS = 10
"""Milliseconds that a turn of the window takes, besides what it has to do."""


class Cancelled(Exception):
    """The user asked to stop."""


class Turn:
    """Yielded by work between two values that the window takes long to show, such as layers: it waits.

    The work goes on once the window has dealt with all that was yielded so far, and has heard mouse and keys again.
    """


@dataclass(frozen=True)
class _Outcome:
    """How the work ended, brought to the Qt thread as one value."""

    state: Literal["succeeded", "failed", "cancelled"]
    value: Any = None


@dataclass(frozen=True)
class _Warned:
    """What the library warned of, on its way to the Qt thread."""

    text: str


class _Task:
    """The work as the worker thread sees it: no Qt object, so that it outlives a widget that is closed meanwhile."""

    def __init__(self, make: Callable[[Job], Generator[Any, None, Any]], title: str) -> None:
        self.make: Callable[[Job], Generator[Any, None, Any]] | None = make
        self.title = title
        self.asked = threading.Event()
        self.room = threading.Semaphore(WAITING)
        self.turned = threading.Event()

    def __str__(self) -> str:
        """Name the work in napari's question before it closes."""
        return self.title

    def check(self) -> None:
        if self.asked.is_set():
            raise Cancelled("stopped by the user")


class _Worker(GeneratorWorker):
    """A generator worker that reports every exception, and closes its generator in its own thread."""

    def __init__(self, task: _Task, job: Job) -> None:
        super().__init__(_nothing)
        self._task: _Task = task
        self._job: Job | None = job

    def quit(self) -> None:
        """Ask the work to stop; napari calls this when the window or the program is closed."""
        self._task.asked.set()

    def run(self) -> None:
        """Do the work. Called by Qt, in the worker thread."""
        self._running = True
        self.started.emit()
        with heard(lambda text: self.yielded.emit(_Warned(text))):
            outcome = self._work()
        # Whatever the work held (images, networks) must not live as long as the window, which remembers its workers.
        self._task.make = self._job = None
        self._running = False
        if isalive(self.signals):  # not where the program has ended meanwhile
            self.returned.emit(outcome)
            self.finished.emit()
            self._finished.emit(self)

    def _work(self) -> _Outcome:
        task, job = self._task, self._job
        if task.make is None or job is None:
            raise AssertionError("a worker runs once")
        try:
            job.check()
            generator = task.make(job)
        except BaseException as error:
            return self._ending(error)
        try:
            while True:
                try:
                    value = next(generator)
                except StopIteration as stop:
                    outcome = _Outcome("succeeded", stop.value)
                    break
                while not task.room.acquire(timeout=0.05):
                    job.check()
                task.turned.clear()
                self.yielded.emit(value)
                while isinstance(value, Turn) and not task.turned.wait(0.05):
                    job.check()
                job.check()
        except BaseException as error:  # also KeyboardInterrupt and SystemExit, which would end the thread unheard
            outcome = self._ending(error)
        try:
            generator.close()
        except BaseException as error:
            if outcome.state != "failed":
                outcome = _Outcome("failed", readable(error))
        return outcome

    def _ending(self, error: BaseException) -> _Outcome:
        if self._task.asked.is_set() and _stems_from(error, Cancelled):
            return _Outcome("cancelled")
        return _Outcome("failed", readable(error))


class Job(QObject):
    """One piece of work off the Qt thread.

    Parameters
    ----------
    make : callable
        Called with the job in the worker thread; returns the generator to run. A generator that catches `Cancelled`
        and returns has succeeded, with what it has so far.
    parent : QObject or None
        The widget that the work belongs to. Once it is closed, taken out of its window, or deleted, the job cancels
        itself.
    title : str
        What the work is, as napari names it when it asks before closing: "training mito".
    """

    yielded = Signal(object)
    """Every value that the generator yields, but `Turn`."""
    warned = Signal(str)
    """A warning of the library, in the words of the forms; the work goes on."""
    succeeded = Signal(object)
    """The generator's return value."""
    failed = Signal(Exception)
    """The exception; every lack of memory is a `MemoryError` that says what to do."""
    cancelled = Signal()
    """It stopped because `cancel` was called."""
    ended = Signal()
    """Always last, after one of the three above."""

    def __init__(
        self, make: Callable[[Job], Generator[Any, None, Any]], parent: QObject | None = None, title: str = ""
    ) -> None:
        super().__init__(parent)
        self._task = _Task(make, title or "napari-ambient is working")
        self._running = False
        self._started = False
        self._watched: list[QWidget] = []

    def start(self) -> None:
        """Start the work; once."""
        if self._started:
            raise RuntimeError("this job was started before; make a new one with run()")
        self._started = self._running = True
        worker = create_worker(self._task, self, _worker_class=_Worker, _start_thread=False, _ignore_errors=True)
        worker.yielded.connect(self._on_yielded)
        worker.returned.connect(self._on_returned)
        worker.finished.connect(_keeper().let_go)
        _running.add(self)
        # Each job has its thread: on two cores, a prior must load while another one trains.
        pool = QThreadPool.globalInstance()
        pool.setMaxThreadCount(max(pool.maxThreadCount(), pool.activeThreadCount() + len(_running) + 1))
        widget = self.parent()
        while isinstance(widget, QWidget) and not isinstance(widget, QDockWidget | QMainWindow):
            widget.installEventFilter(self)
            self._watched.append(widget)
            widget = widget.parentWidget()
        worker.start()

    def cancel(self) -> None:
        """Ask the work to stop. The generator is closed at its next yield, and `check` raises inside long calls."""
        self._task.asked.set()

    def check(self) -> None:
        """Call from inside long work, in any thread.

        Raises
        ------
        Cancelled
            Once `cancel` was called, or the widget is gone.
        """
        # A deleted widget takes its job's Qt half with it. It is looked at here: code on the signal `destroyed` runs
        # in the middle of the destruction, and has been seen to crash.
        if not isalive(self):
            self._task.asked.set()
        self._task.check()

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._running

    @property
    def done(self) -> bool:
        """Whether it has ended, one way or another."""
        return self._started and not self._running

    @property
    def cancelling(self) -> bool:
        """Whether it was asked to stop."""
        return self._task.asked.is_set()

    @property
    def title(self) -> str:
        """What the work is."""
        return self._task.title

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Cancel when the widget is closed, or taken out of its dock, which is how napari closes it."""
        if event.type() == QEvent.Type.ParentChange and watched.parent() is None:
            self.cancel()
        elif event.type() == QEvent.Type.Close:
            QTimer.singleShot(0, self._cancel_if_closed)  # the widget may ask, and stay
        return False

    def _cancel_if_closed(self) -> None:
        if any(not widget.isVisible() and not widget.isVisibleTo(widget.parentWidget()) for widget in self._watched):
            self.cancel()

    def _on_yielded(self, value: object) -> None:
        if isinstance(value, _Warned):
            self.warned.emit(value.text)
            return
        self._task.room.release()
        if isinstance(value, Turn):
            QTimer.singleShot(TURN_MS, self._task.turned.set)
        elif not self.cancelling:
            self.yielded.emit(value)

    def _on_returned(self, outcome: _Outcome) -> None:
        self._running = False
        _running.discard(self)
        for widget in self._watched:
            widget.removeEventFilter(self)
        self._watched.clear()
        if outcome.state == "succeeded":
            self.succeeded.emit(outcome.value)
        elif outcome.state == "failed":
            self.failed.emit(outcome.value)
        else:
            self.cancelled.emit()
        self.ended.emit()


_running: set[Job] = set()
"""Keeps the jobs at work alive where nobody else does."""


class _Keeper(QObject):
    """Lets go of jobs whose Qt half went with their widget: it may go until the very end, and hears of no end then."""

    def let_go(self) -> None:
        """Let go of them; in the Qt thread, once a job has heard of its end, or can hear of it no more."""
        _running.difference_update([job for job in _running if not isalive(job)])


@functools.cache
def _keeper() -> _Keeper:
    return _Keeper()


def run(make: Callable[[Job], Generator[Any, None, Any]], parent: QObject | None = None, *, title: str = "") -> Job:
    """Make a job; connect its signals, then `start` it.

    Parameters
    ----------
    make : callable
        Called with the job in the worker thread; returns the generator to run.
    parent : QObject or None
        The widget that the work belongs to.
    title : str
        What the work is, as napari names it when it asks before closing.

    Returns
    -------
    Job
        Not started yet.
    """
    return Job(make, parent, title)


def readable(error: BaseException) -> Exception:
    """Give the error as a user should meet it.

    Parameters
    ----------
    error : BaseException
        What was raised.

    Returns
    -------
    Exception
        A `MemoryError` with the remedy for every lack of memory; a `RuntimeError` for what is no `Exception`;
        otherwise the error itself.
    """
    if isinstance(error, RuntimeError) and "memory" in str(error).lower():
        from napari_ambient.devices import memory_errors

        try:
            with memory_errors():
                raise error
        except (MemoryError, RuntimeError) as known:
            error = known
    if isinstance(error, MemoryError) and MEMORY_REMEDY not in str(error):
        detail = str(error)
        told = MemoryError(f"{MEMORY_REMEDY} ({detail})" if detail else MEMORY_REMEDY)
        told.__cause__ = error
        return told.with_traceback(error.__traceback__)
    if isinstance(error, Exception):
        return error
    ended = RuntimeError(f"the work was ended by {type(error).__name__}: {error}")
    ended.__cause__ = error
    return ended


def is_expected(error: BaseException) -> bool:
    """Whether an error says what the user can do, so that its sentence is all that is needed.

    Parameters
    ----------
    error : BaseException
        What was raised.

    Returns
    -------
    bool
        True for lack of memory, for what files and disks refuse, and for every `ValueError` that this package raises by
        a statement of its own. A `ValueError` of numpy or another library, and all else, is a fault of the program.
    """
    if isinstance(error, MemoryError | OSError):
        return True
    if not isinstance(error, ValueError):
        return False
    package = __name__.partition(".")[0]
    if type(error).__module__.partition(".")[0] == package:
        return True
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or last.tb_frame.f_globals.get("__name__", "").partition(".")[0] != package:
        return False
    # What C code raises has no frame of its own: it seems to come from the line that called it.
    return dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"


def _nothing() -> Generator[None, None, None]:
    yield


def _stems_from(error: BaseException | None, kind: type[BaseException]) -> bool:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, kind):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


class RunBar(QWidget):
    """A progress bar with the time left and a Cancel button, for one job at a time.

    Parameters
    ----------
    parent : QWidget or None
        Where it lies.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.button = QPushButton("Cancel")
        self.label = QLabel()
        self.label.setWordWrap(True)
        row = QHBoxLayout()
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.bar, 1)
        row.addWidget(self.button)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(row)
        column.addWidget(self.label)
        self.button.clicked.connect(self._cancel)
        self._job: Job | None = None
        self._seen: deque[tuple[float, float]] = deque(maxlen=64)
        self.idle()

    def bind(self, job: Job) -> None:
        """Show a job from now until it ends; Cancel stops it.

        Parameters
        ----------
        job : Job
            The work, running or about to be started.
        """
        self._job = job
        self._seen.clear()
        job.ended.connect(self._ended)
        self.bar.setRange(0, 0)  # moves, without a length
        self.label.setText("Starting…")
        self.button.setText("Cancel")
        self.button.setEnabled(True)
        self.setVisible(True)

    def show_progress(self, done: float, total: float, text: str = "") -> None:
        """Show how far it is, and the time left.

        Parameters
        ----------
        done, total : float
            Finished and all steps, in any unit; total 0 where it is not known.
        text : str
            What is being done.
        """
        now = time.monotonic()
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()  # another piece of work began
        self._seen.append((now, done))
        if total > 0:
            self.bar.setRange(0, 1000)
            self.bar.setValue(round(1000 * min(max(done / total, 0.0), 1.0)))
        else:
            self.bar.setRange(0, 0)
        if self._job is None or not self._job.cancelling:
            left = self._time_left(total)
            self.label.setText(" · ".join(part for part in (text, f"{left} left" if left else "") if part))

    def idle(self, text: str = "") -> None:
        """Show that nothing runs.

        Parameters
        ----------
        text : str
            The result in a few words; without, the bar is hidden.
        """
        self._job = None
        self._seen.clear()
        self.bar.setRange(0, 1000)
        self.bar.setValue(0)
        self.button.setEnabled(False)
        self.label.setText(text)
        self.setVisible(bool(text))

    def _time_left(self, total: float) -> str:
        if len(self._seen) < 2 or total <= 0:
            return ""
        (begin, first), (end, last) = self._seen[0], self._seen[-1]
        if last <= first or end - begin < 0.3:
            return ""
        return duration((total - last) * (end - begin) / (last - first))

    def _cancel(self) -> None:
        if self._job is not None and self._job.running:
            self.button.setText("Cancelling…")
            self.button.setEnabled(False)
            self.label.setText("Cancelling…")
            self._job.cancel()

    def _ended(self) -> None:
        # Not so if another job has the bar by now, or the widget has said in it how the job ended.
        if self._job is not None and self._job.done:
            self.idle()


_MEANINGS: dict[str, Meaning] = {"warning": "warning", "error": "bad"}

MOST_WARNINGS = 3
"""Warnings of one job that are shown in full; of many files each may have its own."""


class Message(QLabel):
    """A word-wrapped line under a form, and below it what a job was warned of.

    Parameters
    ----------
    parent : QWidget or None
        Where it lies.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWordWrap(True)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        self._colour = ""
        self._said: tuple[str, Literal["", "warning", "error"]] = ("", "")
        self._warnings: list[str] = []
        self.say("")

    def follow(self, job: Job) -> None:
        """Show what the library warns of in a job, below all that is said until the line is emptied.

        Parameters
        ----------
        job : Job
            Not started yet.
        """
        self._warnings = []
        job.warned.connect(self._add_warning)

    def say(self, text: str) -> None:
        """Show a sentence; an empty one hides the line, with the warnings of the job before."""
        if not text:
            self._warnings = []
        self._show(text, "")

    def warn(self, text: str) -> None:
        """Show a sentence that the user should not miss."""
        self._show(f"⚠ {in_forms(text)}", "warning")

    def error(self, error: Exception) -> None:
        """Show an error where it is seen; of what is a fault of the program napari is notified too, with its traceback.

        Parameters
        ----------
        error : Exception
            From `Job.failed`, or caught in the form.
        """
        error = error_in_forms(error)
        self._show(f"✖ {str(error) or type(error).__name__}", "error")
        scroll_to(self)
        if not is_expected(error):
            notification_manager.receive_error(type(error), error, error.__traceback__)

    @property
    def said(self) -> str:
        """What the form said last, without the warnings of the job."""
        return self._said[0]

    def _add_warning(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)
            self._show(*self._said)

    def _show(self, text: str, kind: Literal["", "warning", "error"]) -> None:
        self._said = text, kind
        lines = [text] if text else []
        lines += [f"⚠ {warning}" for warning in self._warnings[:MOST_WARNINGS]]
        if len(self._warnings) > MOST_WARNINGS:
            lines.append(f"⚠ and {len(self._warnings) - MOST_WARNINGS} more warnings of this kind")
        self.setProperty("kind", kind or ("warning" if self._warnings else ""))
        self._recolour()
        self.setText("\n".join(lines))
        self.setVisible(bool(lines))

    def changeEvent(self, event: QEvent | None) -> None:
        """Follow napari's theme."""
        super().changeEvent(event)
        if event is not None and event.type() == QEvent.Type.StyleChange:
            self._recolour()

    def _recolour(self) -> None:
        kind = self.property("kind")
        colour = signal_colour(_MEANINGS[kind]) if kind else ""
        if colour != self._colour:  # else its own style sheet would call it again
            self._colour = colour
            self.setStyleSheet(f"QLabel {{ color: {colour}; }}" if colour else "")


def duration(seconds: float) -> str:
    """Say a time in words: "40 s", "3 min", "2 h 10 min"."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
