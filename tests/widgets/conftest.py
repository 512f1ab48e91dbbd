"""What the tests of the plugin share: no window on the screen, no settings of the user, and strict Qt."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

# Without napari (extra `all`) there is no plugin to test; the rest of the package must work all the same.
MISSING = [name for name in ("napari", "qtpy", "superqt", "pyqtgraph") if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []

if sys.platform == "linux" and "DISPLAY" not in os.environ and "WAYLAND_DISPLAY" not in os.environ:
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
# napari reads and writes no settings of the user
os.environ["NAPARI_CONFIG"] = ""


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep unfinished trainings out of the user's data folder."""
    monkeypatch.setattr("platformdirs.user_data_path", lambda *_, **__: tmp_path_factory.getbasetemp() / "user data")


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., Any]) -> Iterator[Any]:
    """Return a hidden viewer; a widget that outlives it fails the test."""
    yield make_napari_viewer(show=False, strict_qt="raise")
    gc.collect()


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Return a function that says which button of every question is pressed; it gives the questions as they come."""
    from qtpy.QtWidgets import QMessageBox

    def press(text: str) -> list[str]:
        asked: list[str] = []

        def choose(box: Any) -> int:
            asked.append(box.text())
            (button,) = (each for each in box.buttons() if each.text() == text)
            button.click()
            return 0

        monkeypatch.setattr(QMessageBox, "exec", choose)
        return asked

    return press


@pytest.fixture
def from_menu() -> Callable[..., None]:
    """Return a function that chooses from a menu of napari, title by title."""

    def choose(menu: Any, *titles: str) -> None:
        menu.aboutToShow.emit()
        (action,) = (each for each in menu.actions() if each.text() == titles[0])
        assert action.isEnabled()
        if len(titles) > 1:
            choose(action.menu(), *titles[1:])
        else:
            action.trigger()

    return choose


@pytest.fixture
def finished(qtbot: Any) -> Callable[..., dict[str, list[Any]]]:
    """Return a function that starts a job, waits for its end, and gives what each signal brought."""

    def run_to_the_end(job: Any, *, timeout: int = 10_000, start: bool = True) -> dict[str, list[Any]]:
        heard: dict[str, list[Any]] = {"order": []}
        for name in ("yielded", "succeeded", "failed", "cancelled", "ended"):
            heard[name] = []

            def hear(*values: Any, name: str = name) -> None:
                heard[name].append(values[0] if values else None)
                heard["order"].append(name)

            getattr(job, name).connect(hear)
        if start:
            job.start()
        qtbot.waitUntil(lambda: bool(heard["ended"]), timeout=timeout)
        return heard

    return run_to_the_end


@pytest.fixture
def longest_work(qtbot: Any) -> Callable[..., float]:
    """Return a function that starts something in the Qt thread and gives the longest work of it between heartbeats, s.

    Work is the thread's own CPU time: what it waits for a core on a busy machine is not counted.
    """
    from qtpy.QtCore import QTimer

    def watch(start: Callable[[], object], until: Callable[[], bool], timeout: int = 60_000) -> float:
        begun: list[bool] = []
        ticks: list[float] = [time.thread_time()]
        timer = QTimer()
        timer.setInterval(2)
        timer.timeout.connect(lambda: ticks.append(time.thread_time()))
        timer.start()
        QTimer.singleShot(20, lambda: (start(), begun.append(True)))
        qtbot.waitUntil(lambda: bool(begun) and until(), timeout=timeout)
        timer.stop()
        ticks.append(time.thread_time())
        return max(later - earlier for earlier, later in itertools.pairwise(ticks))

    return watch


@pytest.fixture
def largest_gap(qtbot: Any) -> Callable[[Callable[[], bool]], float]:
    """Return a function that watches the Qt thread until something is true, and gives its longest standstill in s."""
    from qtpy.QtCore import QTimer

    def watch(until: Callable[[], bool], timeout: int = 20_000) -> float:
        ticks: list[float] = [time.perf_counter()]
        timer = QTimer()
        timer.setInterval(2)
        timer.timeout.connect(lambda: ticks.append(time.perf_counter()))
        timer.start()
        qtbot.waitUntil(until, timeout=timeout)
        timer.stop()
        ticks.append(time.perf_counter())
        return max(later - earlier for earlier, later in itertools.pairwise(ticks))

    return watch
