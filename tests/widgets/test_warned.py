"""What the library warns of in a job reaches the form in its words, and whoever shows warnings as before."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest

from napari_ambient.noise import NoiseModel
from napari_ambient.restoration import RestorationWarning, fit_to_frame
from napari_ambient.training import TrainingWarning
from napari_ambient.uncertainty import SLICES_THROUGH
from napari_ambient.widgets._run import MOST_WARNINGS, Job, Message, run
from napari_ambient.widgets._warned import heard

Finished = Callable[..., dict[str, list[Any]]]
HOT = NoiseModel(gain=2.0, intercept=-200.0, hot_pixels=np.ones((8, 8), bool))
IN_WORDS = (
    "64 hot pixels are known for frames of (8, 8) pixels, the volume has (16, 16): they are not masked; fit the noise "
    "of this volume to find its own (by a click on “Fit the noise anew”, or noise “fitted to each file”)"
)

pytestmark = pytest.mark.filterwarnings("default::UserWarning")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, type[Warning]]]:
    """Return what is shown as napari shows it: by `warnings.showwarning`."""
    seen: list[tuple[str, type[Warning]]] = []
    monkeypatch.setattr(warnings, "showwarning", lambda text, kind, *_: seen.append((str(text), kind)))
    return seen


def warning_job(text: str | None = None, kind: type[Warning] = RestorationWarning) -> Job:
    """Give work that warns as the library does: of hot pixels, or of what is said."""

    def work(job: Job) -> Generator[None, None, None]:
        yield
        if text is None:
            fit_to_frame(HOT, (16, 16))
        else:
            warnings.warn(text, kind, stacklevel=1)

    return run(work)


def test_a_warning_of_the_library_is_in_the_words_of_the_forms(finished: Finished, shown: list[Any]) -> None:
    before = warnings.showwarning
    told: list[str] = []
    for _ in range(2):  # Python by itself would show it once
        job = warning_job()
        job.warned.connect(told.append)
        heard = finished(job)
        assert heard["order"] == ["yielded", "succeeded", "ended"]
    assert told == [IN_WORDS] * 2
    assert shown == [(IN_WORDS, RestorationWarning)] * 2
    assert warnings.showwarning is before


def test_outside_of_jobs_the_library_speaks_to_callers(shown: list[Any]) -> None:
    fit_to_frame(HOT, (16, 16))
    assert "--noise fit" in shown[0][0]


def test_warnings_of_others_stay_as_they_are(finished: Finished, shown: list[Any]) -> None:
    """What torch or numpy say is not for the form."""
    job = warning_job("pass overwrite=True, or --steps", UserWarning)
    told: list[str] = []
    job.warned.connect(told.append)
    finished(job)
    assert told == []
    assert shown == [("pass overwrite=True, or --steps", UserWarning)]


def test_each_job_hears_its_own(shown: list[Any]) -> None:
    """Two at a time; the place of Python is given back when the last one ends."""
    before, first, second = warnings.showwarning, [], []  # type: ignore[var-annotated]
    here, there = threading.Event(), threading.Event()

    def other() -> None:
        with heard(second.append):
            here.set()
            there.wait(10)
            warnings.warn(SLICES_THROUGH, RestorationWarning, stacklevel=1)

    thread = threading.Thread(target=other)
    with heard(first.append):
        thread.start()
        assert here.wait(10)
        fit_to_frame(HOT, (16, 16))
    assert warnings.showwarning is not before
    there.set()
    thread.join(10)
    assert warnings.showwarning is before
    assert first == [IN_WORDS]
    assert len(second) == 1
    assert second[0].endswith("(“Network” 2D or 3D)")
    assert [text for text, _ in shown] == first + second


def test_put_back_by_somebody_it_gives_on(shown: list[Any]) -> None:
    """`catch_warnings` of another thread may end after the last job: nothing is lost, nothing doubled."""
    before, told = warnings.showwarning, []  # type: ignore[var-annotated]
    with heard(told.append):
        ours = warnings.showwarning
    warnings.showwarning = ours
    warnings.warn("a word", RestorationWarning, stacklevel=1)
    with heard(told.append):
        fit_to_frame(HOT, (16, 16))
    assert told == [IN_WORDS]
    assert [text for text, _ in shown] == ["a word", IN_WORDS]
    warnings.showwarning = before


def test_an_error_of_warnings_fails_the_work(finished: Finished) -> None:
    """Where the user's filters make errors of warnings, they are errors of the work."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RestorationWarning)
        job = warning_job()
        result = finished(job)
    assert result["order"][-2:] == ["failed", "ended"]


def test_the_line_of_the_form_keeps_them(finished: Finished, shown: list[Any]) -> None:
    message = Message()
    for text in (
        "the stage below the noise moved the one-call answers by 0.30 of the noise, and the held-out loss rose from "
        "0.1 to 0.2; train longer (--steps), or keep a prior without it for means",
    ):
        job = warning_job(text, TrainingWarning)
        message.follow(job)
        job.succeeded.connect(lambda _: message.say("mito is trained."))
        finished(job)
    assert message.text() == (
        "mito is trained.\n⚠ the training of the error bars moved the one-call answers by 0.30 of the noise, and the "
        "held-out loss rose from 0.1 to 0.2; train longer (“Steps”), or for means keep a prior without “Error bars too”"
    )
    assert message.property("kind") == "warning"
    message.say("Saved.")  # what is to be known of the prior is true still
    assert message.text().startswith("Saved.\n⚠ the training")
    message.say("")  # the next one begins
    assert message.isHidden()
    message.say("Nothing was warned of.")
    assert message.text() == "Nothing was warned of."
    assert message.property("kind") == ""
    message.deleteLater()


def test_many_files_do_not_fill_the_form(finished: Finished, shown: list[Any]) -> None:
    def work(job: Job) -> Generator[None, None, None]:
        for number in (*range(5), 0, 1):
            warnings.warn(f"file {number} is odd", RestorationWarning, stacklevel=1)
            yield

    message, job = Message(), run(work)
    message.follow(job)
    finished(job)
    assert message.text().splitlines() == [
        *(f"⚠ file {number} is odd" for number in range(MOST_WARNINGS)),
        "⚠ and 2 more warnings of this kind",
    ]
    message.deleteLater()
