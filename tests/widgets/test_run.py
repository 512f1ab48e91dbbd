"""Jobs: every end is heard, cancelling is quick, closing stops the work, and the Qt thread never stands still."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.layers import Labels
from napari.utils.notifications import notification_manager
from qtpy.compat import isalive
from qtpy.QtCore import QEvent, QTimer
from qtpy.QtWidgets import QApplication, QPushButton, QVBoxLayout, QWidget

from napari_ambient.sample_sheet import contrast, lay_out
from napari_ambient.volumes import Volume
from napari_ambient.widgets import _run
from napari_ambient.widgets._column import scrolled_column
from napari_ambient.widgets._layers import mask_from_layer
from napari_ambient.widgets._run import (
    MEMORY_REMEDY,
    Cancelled,
    Job,
    Message,
    RunBar,
    Turn,
    _Worker,
    duration,
    is_expected,
    readable,
    run,
)

Finished = Callable[..., dict[str, list[Any]]]
PLANE = Volume.from_array(np.zeros((8, 8), np.float32), "YX")


def counting(job: Job) -> Generator[int, None, str]:
    """Work that ends by itself."""
    yield from range(5)
    return "done"


def endless(job: Job) -> Generator[int, None, None]:
    """Work in short steps that never ends."""
    while True:
        time.sleep(0.01)
        yield 0


def test_values_come_in_order_and_the_result_last(finished: Finished) -> None:
    heard = finished(run(counting, None))
    assert heard["yielded"] == [0, 1, 2, 3, 4]
    assert heard["succeeded"] == ["done"]
    assert heard["order"] == ["yielded"] * 5 + ["succeeded", "ended"]


def test_work_is_done_in_another_thread_and_heard_in_the_qt_thread(finished: Finished) -> None:
    places = []

    def work(job: Job) -> Generator[int, None, int]:
        yield threading.get_ident()
        return threading.get_ident()

    job = run(work)
    job.yielded.connect(lambda _: places.append(threading.get_ident()))
    heard = finished(job)
    assert places == [threading.get_ident()]
    assert heard["yielded"] == heard["succeeded"] != places


@pytest.mark.parametrize("error", [RuntimeError("no kernel"), ValueError("halo"), KeyError("x"), StopIteration("odd")])
@pytest.mark.parametrize("when", ["at once", "after a step"])
def test_every_exception_reaches_failed(error: Exception, when: str, finished: Finished) -> None:
    # superqt's own loop reports no RuntimeError of a generator; StopIteration becomes one inside of it
    def work(job: Job) -> Generator[int, None, None]:
        if when == "after a step":
            yield 1
        raise error

    heard = finished(run(work))
    (failure,) = heard["failed"]
    assert failure is error or failure.__cause__ is error
    assert heard["order"][-2:] == ["failed", "ended"]


def test_an_exception_before_the_generator_reaches_failed(finished: Finished) -> None:
    def work(job: Job) -> Generator[int, None, None]:
        raise OSError("no such file")

    def make(job: Job) -> Generator[int, None, None]:
        if job is not None:
            raise OSError("no such file")
        return work(job)

    assert isinstance(finished(run(make))["failed"][0], OSError)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"), MemoryError("1 TiB")]
)
def test_a_lack_of_memory_comes_with_the_remedy(error: Exception, finished: Finished) -> None:
    def work(job: Job) -> Generator[int, None, None]:
        yield 1
        raise error

    (failure,) = finished(run(work))["failed"]
    assert isinstance(failure, MemoryError)
    assert str(failure).startswith(MEMORY_REMEDY)
    assert str(error) in str(failure)


def test_an_exit_inside_the_work_is_heard(finished: Finished) -> None:
    def work(job: Job) -> Generator[int, None, None]:
        yield 1
        raise SystemExit(3)

    assert "SystemExit" in str(finished(run(work))["failed"][0])


def test_cancel_ends_within_a_second_and_closes_the_generator(finished: Finished, qtbot: Any) -> None:
    closed = []

    def work(job: Job) -> Generator[int, None, None]:
        try:
            yield from endless(job)
        finally:
            closed.append(threading.get_ident())

    job = run(work)
    job.start()
    qtbot.wait(100)
    assert job.running
    begin = time.perf_counter()
    job.cancel()
    heard = finished(job, start=False)
    assert time.perf_counter() - begin < 1
    assert heard["order"][-2:] == ["cancelled", "ended"]
    assert not heard["failed"]
    assert closed
    assert closed[0] != threading.get_ident()  # in the thread of the work
    assert not job.running
    assert job.done


def test_cancel_reaches_into_a_long_call(finished: Finished, qtbot: Any) -> None:
    def long_call(check: Callable[[], None]) -> None:
        for _ in range(10_000):
            time.sleep(0.005)
            check()

    def work(job: Job) -> Generator[int, None, None]:
        try:
            long_call(job.check)
        except Cancelled as error:
            raise ValueError("a library that wraps what it meets") from error
        yield 1

    job = run(work)
    job.start()
    qtbot.wait(50)
    begin = time.perf_counter()
    job.cancel()
    heard = finished(job, start=False)
    assert time.perf_counter() - begin < 1
    assert heard["order"] == ["cancelled", "ended"]


def test_cancel_before_the_start_does_no_work(finished: Finished) -> None:
    begun = []
    job = run(lambda job: begun.append(1) or counting(job))  # type: ignore[func-returns-value]
    job.cancel()
    assert finished(job)["order"] == ["cancelled", "ended"]
    assert not begun


def test_work_that_catches_the_cancel_keeps_what_it_has(finished: Finished, qtbot: Any) -> None:
    def work(job: Job) -> Generator[int, None, str]:
        try:
            while True:
                time.sleep(0.01)
                job.check()
                yield 0
        except Cancelled:
            return "half"

    # the cancel is found either inside, where it can be caught, or at a yield
    job = run(work)
    job.start()
    qtbot.wait(40)
    job.cancel()
    heard = finished(job, start=False)
    assert heard["succeeded"] in (["half"], [])
    assert heard["order"][-1] == "ended"


def test_an_error_while_cancelling_is_not_hidden(finished: Finished, qtbot: Any) -> None:
    def work(job: Job) -> Generator[int, None, None]:
        try:
            yield from endless(job)
        except GeneratorExit:
            raise OSError("disk full") from None

    job = run(work)
    job.start()
    qtbot.wait(40)
    job.cancel()
    assert isinstance(finished(job, start=False)["failed"][0], OSError)


def test_a_job_starts_once(finished: Finished) -> None:
    job = run(counting)
    finished(job)
    with pytest.raises(RuntimeError, match="started before"):
        job.start()


def test_many_jobs_run_at_the_same_time(qtbot: Any) -> None:
    # more than the pool of a machine with two cores would run
    meeting = threading.Barrier(6, timeout=8)

    def work(job: Job) -> Generator[None, None, int]:
        yield
        return meeting.wait()

    jobs = [run(work) for _ in range(6)]
    results: list[int] = []
    for job in jobs:
        job.succeeded.connect(results.append)
        job.start()
    qtbot.waitUntil(lambda: len(results) == 6, timeout=10_000)
    assert sorted(results) == list(range(6))


def test_warnings_are_as_before_after_two_overlapping_jobs(finished: Finished, qtbot: Any) -> None:
    # superqt's own loop swaps the process's warning filters per worker; overlapping workers leave them swapped
    before = (warnings.showwarning, list(warnings.filters))
    first, second = run(endless), run(endless)
    first.start()
    qtbot.wait(30)
    second.start()
    qtbot.wait(30)
    for job in (first, second):
        job.cancel()
        finished(job, start=False)
    assert (warnings.showwarning, list(warnings.filters)) == before


def test_a_flood_of_values_does_not_pile_up(qtbot: Any, finished: Finished) -> None:
    ahead: list[int] = []
    made, heard = 0, 0

    def work(job: Job) -> Generator[int, None, None]:
        nonlocal made
        for i in range(2000):
            made += 1
            yield i

    def hear(_: int) -> None:
        nonlocal heard
        heard += 1
        ahead.append(made - heard)

    job = run(work)
    job.yielded.connect(hear)
    finished(job)
    assert heard == 2000
    assert max(ahead) < 100


@pytest.mark.parametrize("turns", [True, False])
def test_the_window_has_a_turn_between_values_that_take_long_to_show(
    turns: bool, finished: Finished, qtbot: Any
) -> None:
    """Without it, values that wait together are shown without a beat in between, which is the control."""
    told: list[str] = []
    beat = QTimer()
    beat.setInterval(1)
    beat.timeout.connect(lambda: told.append("beat"))

    def work(job: Job) -> Generator[Any, None, None]:
        for name in ("one", "two", "three"):
            yield name
            if turns:
                yield Turn()

    def show(name: str) -> None:
        told.append(name)
        time.sleep(0.1)  # so long that the next one is there

    job = run(work)
    job.yielded.connect(show)
    beat.start()
    heard = finished(job)
    beat.stop()
    assert heard["yielded"] == ["one", "two", "three"]  # a turn is no value
    between = [told[told.index(a) + 1 : told.index(b)] for a, b in (("one", "two"), ("two", "three"))]
    assert all("beat" in each for each in between) == turns


def test_work_that_waits_for_the_window_can_be_cancelled(finished: Finished, qtbot: Any) -> None:
    def work(job: Job) -> Generator[Any, None, None]:
        while True:
            yield Turn()

    job = run(work)
    job.start()
    qtbot.wait(50)
    job.cancel()
    assert finished(job, start=False, timeout=1000)["order"] == ["cancelled", "ended"]


# ------------------------------------------------------------------------------------------- closing


def test_deleting_the_widget_stops_the_work(qtbot: Any) -> None:
    stopped = threading.Event()

    def work(job: Job) -> Generator[int, None, None]:
        try:
            yield from endless(job)
        finally:
            stopped.set()

    widget = QWidget()
    job = run(work, widget)
    job.start()
    qtbot.wait(50)
    widget.deleteLater()
    del widget
    qtbot.waitUntil(stopped.is_set, timeout=1000)


@pytest.mark.parametrize("when", ["while it works", "before the window hears of the end"])
def test_no_job_stays_behind_a_deleted_widget(when: str, qtbot: Any) -> None:
    """Its end reaches nobody then; it must not stay in the list of jobs at work for as long as the program runs."""
    went = threading.Event()

    def work(job: Job) -> Generator[int, None, None]:
        try:
            yield from endless(job) if when == "while it works" else ()
        finally:
            went.set()

    widget = QWidget()
    job = run(work, widget)
    job.start()
    if when == "while it works":
        qtbot.wait(50)
    else:
        # the Qt thread sleeps: what the worker tells it waits until the widget is gone
        assert went.wait(5)
        (worker,) = (each for each in _Worker._worker_set if getattr(each, "_task", None) is job._task)
        while worker.is_running:
            time.sleep(0.01)
        time.sleep(0.05)
    widget.deleteLater()
    QApplication.sendPostedEvents(widget, QEvent.Type.DeferredDelete)
    assert not isalive(job)
    assert job in _run._running
    del widget
    qtbot.waitUntil(lambda: job not in _run._running, timeout=2000)


def test_closing_a_window_stops_the_work(qtbot: Any, finished: Finished) -> None:
    widget = QWidget()
    qtbot.addWidget(widget)
    widget.show()
    job = run(endless, widget)
    job.start()
    qtbot.wait(50)
    widget.close()
    assert finished(job, start=False, timeout=1000)["cancelled"]


def test_a_widget_that_refuses_to_close_goes_on_working(qtbot: Any, finished: Finished) -> None:
    class Stays(QWidget):
        def closeEvent(self, event: Any) -> None:
            event.ignore()

    widget = Stays()
    widget.show()
    job = run(endless, widget)
    job.start()
    qtbot.wait(50)
    widget.close()
    qtbot.wait(100)
    assert job.running
    assert not job.cancelling
    job.cancel()
    finished(job, start=False)
    widget.deleteLater()


def test_closing_the_dock_stops_the_work_of_an_inner_form(viewer: Any, qtbot: Any, finished: Finished) -> None:
    outer, inner = QWidget(), QWidget()
    QVBoxLayout(outer).addWidget(inner)
    dock = viewer.window.add_dock_widget(outer, name="test")
    job = run(endless, inner, title="counting sheep")
    job.start()
    qtbot.wait(50)
    assert job.running
    dock.destroyOnClose()  # what the dock's cross does
    assert finished(job, start=False, timeout=1000)["cancelled"]
    outer.deleteLater()
    qtbot.wait(10)


def test_napari_names_the_work_when_it_asks_and_stops_it(viewer: Any, qtbot: Any, finished: Finished) -> None:
    job = run(endless, None, title="training mito.prior")
    job.start()
    qtbot.wait(50)
    manager = viewer.window._task_status_manager
    assert any("training mito.prior" in line for line in manager.get_status())
    manager.cancel_all()  # what the window does when it is closed
    assert finished(job, start=False, timeout=1000)["cancelled"]
    assert not manager.is_busy()


def test_ended_work_is_let_go(finished: Finished, qtbot: Any) -> None:
    import gc
    import weakref

    class Large:
        pass

    large = Large()
    watch = weakref.ref(large)

    def make(job: Job, large: Large = large) -> Generator[int, None, None]:
        yield id(large)

    job = run(make)
    del make, large
    finished(job)
    qtbot.wait(20)
    gc.collect()
    assert watch() is None


# ------------------------------------------------------------------------------------------- the Qt thread


def compute(check: Callable[[], None]) -> None:
    """Half a second of numpy: large operations that release the GIL, and small ones that do not."""
    rng = np.random.default_rng(0)
    end = time.perf_counter() + 0.5
    while time.perf_counter() < end:
        image = rng.standard_normal((512, 512))
        np.fft.irfft2(np.fft.rfft2(image) * 0.5)
        sum(float(v) for v in image[0])
        check()


def test_the_qt_thread_never_stands_still(qtbot: Any, largest_gap: Callable[..., float]) -> None:
    def work(job: Job) -> Generator[int, None, None]:
        yield 1
        compute(job.check)

    gaps = []
    for _ in range(5):  # on a machine that is busy with other programs, one of five must show it
        job = run(work)
        job.start()
        gaps.append(largest_gap(lambda job=job: job.done))
        if gaps[-1] < 0.05:
            break
    assert min(gaps) < 0.05, gaps


def test_the_watch_would_see_a_standstill(qtbot: Any, largest_gap: Callable[..., float]) -> None:
    done = []
    QTimer.singleShot(20, lambda: (compute(lambda: None), done.append(1)))
    assert largest_gap(lambda: bool(done)) > 0.4


# ------------------------------------------------------------------------------------------- the bar


@pytest.fixture
def bar(qtbot: Any) -> RunBar:
    bar = RunBar()
    qtbot.addWidget(bar)
    return bar


def test_the_bar_cancels_with_a_click(bar: RunBar, qtbot: Any, finished: Finished) -> None:
    from qtpy.QtCore import Qt

    job = run(endless)
    bar.bind(job)
    job.start()
    qtbot.wait(30)
    assert bar.isVisible()
    qtbot.mouseClick(bar.button, Qt.MouseButton.LeftButton)
    assert bar.button.text() == "Cancelling…"
    assert not bar.button.isEnabled()
    finished(job, start=False, timeout=1000)
    assert not bar.isVisible()


def test_the_bar_says_the_time_left(bar: RunBar, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 20.0, 30.0, 30.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    bar.show_progress(0, 100, "tile 1")
    assert bar.label.text() == "tile 1"
    bar.show_progress(10, 100, "tile 2")
    assert bar.label.text() == "tile 2 · 2 min left"  # 90 more at 1 per second
    assert bar.bar.value() == 100
    bar.show_progress(70, 100)
    assert bar.label.text() == "9 s left"  # 30 more at 3.5 per second
    bar.show_progress(1, 0, "counting")
    assert (bar.bar.maximum(), bar.label.text()) == (0, "counting")


def test_the_bar_keeps_what_the_widget_says_at_the_end(bar: RunBar, finished: Finished) -> None:
    job = run(counting)
    bar.bind(job)
    job.succeeded.connect(lambda _: bar.idle("5 images, 3 s"))
    finished(job)
    assert bar.label.text() == "5 images, 3 s"
    assert not bar.isHidden()
    assert not bar.button.isEnabled()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (40, "40 s"), (200, "3 min"), (7800, "2 h 10 min"), (3600 * 26, "26 h 00 min")]
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# ------------------------------------------------------------------------------------------- the message


def test_a_fault_is_shown_and_notified_in_full(qtbot: Any) -> None:
    message = Message()
    qtbot.addWidget(message)
    told = []
    notification_manager.notification_ready.connect(told.append)
    try:
        message.error(KeyError("halo (4, 8, 8)"))
    finally:
        notification_manager.notification_ready.disconnect(told.append)
    assert "halo (4, 8, 8)" in message.text()
    assert not message.isHidden()
    assert any("halo (4, 8, 8)" in str(each.message) for each in told)
    message.say("")
    assert message.isHidden()
    QApplication.processEvents()


def lack_memory() -> None:
    raise MemoryError("8 GiB")


def refuse() -> None:
    raise ValueError("another library says no")


MISTAKES: dict[str, Callable[[], object]] = {
    "the mask as a layer has 16 voxels": lambda: mask_from_layer(Labels(np.ones((4, 4), int)), PLANE),
    "a ValueError of the package without a kind of its own": lambda: lay_out(0, (8, 8)),
    "no such file": lambda: Path("nowhere.prior").read_bytes(),
    "no memory": lack_memory,
}
FAULTS: dict[str, Callable[[], object]] = {
    "numpy's ValueError, at a line of the package": lambda: contrast([]),
    "a ValueError of another package": refuse,
    "a ValueError of Python": lambda: int("x"),
    "no ValueError": lambda: {}["key"],
}


@pytest.mark.parametrize("name", [*MISTAKES, *FAULTS])
def test_a_mistake_is_said_in_the_form_alone(name: str, finished: Finished, qtbot: Any, monkeypatch: Any) -> None:
    """What the user can mend needs no traceback in a window of its own; a fault of the program is reported with it."""
    told: list[Exception] = []
    monkeypatch.setattr(notification_manager, "receive_error", lambda *given: told.append(given[1]))

    def work(job: Job) -> Generator[None, None, None]:
        yield
        (MISTAKES | FAULTS)[name]()

    message = Message()
    qtbot.addWidget(message)
    job = run(work, None)
    job.failed.connect(message.error)
    (error,) = finished(job)["failed"]
    assert str(error) in message.text()
    assert told == ([] if name in MISTAKES else [error])
    assert is_expected(error) == (name in MISTAKES)


def test_an_error_is_seen_where_the_form_is_higher_than_the_window(qtbot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notification_manager, "receive_error", lambda *_: None)  # it raises in tests
    form = QWidget()
    column = scrolled_column(form)
    tall, message = QWidget(), Message()
    tall.setFixedHeight(2000)
    column.addWidget(tall)
    column.addWidget(message)
    qtbot.addWidget(form)
    form.resize(300, 300)
    form.show()
    message.say("far below")
    qtbot.wait(80)
    assert message.visibleRegion().isEmpty()  # what is only said moves nothing
    message.error(ValueError("halo"))
    qtbot.waitUntil(lambda: not message.visibleRegion().isEmpty(), timeout=2000)


def test_a_readable_error_is_the_error_itself() -> None:
    error = ValueError("x")
    assert readable(error) is error
    runtime = RuntimeError("no memory of this")
    assert readable(runtime) is runtime


def test_the_bar_has_one_button(bar: RunBar) -> None:
    assert [button.text() for button in bar.findChildren(QPushButton)] == ["Cancel"]
