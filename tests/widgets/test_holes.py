"""What is taken as missing: the painted voxels in both forms, and in words how many they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_ambient.widgets import _holes, _run, restore, train
from napari_ambient.widgets._settings import Settings

WAIT = 10_000
"""Milliseconds."""
PAINTED = np.zeros((64, 64), np.uint8)
PAINTED[20:28, 20:36] = 3  # 128 of 4096 voxels


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimate and compare nothing, keep to the test's folder."""
    for module in (train, restore):
        monkeypatch.setattr(module, "WAIT", 10**8)
        monkeypatch.setattr(module, "settings", lambda: Settings(device="cpu", cache_folder=tmp_path))
    monkeypatch.setattr(_holes, "WAIT", 20)


def forms(viewer: Any, kind: str) -> tuple[Any, Any, Any, Any]:
    """Give a form, its mask box, its box of holes and its words, with the task of holes chosen."""
    viewer.add_image(np.random.default_rng(0).poisson(6, (3, 64, 64)), name="cells", axis_labels=("t", "y", "x"))
    if kind == "train":
        form = train.TrainWidget(viewer)
        form.through.box.setCurrentIndex(form.through.box.findData("holes"))
        parts = form.through.mask, form.through.holes, form.through.words
    else:
        form = restore.RestoreWidget(viewer)
        form.task.setCurrentIndex(form.task.findData("holes"))
        parts = form.holes, form.holes_are, form.missing
    viewer.window.add_dock_widget(form, name=kind)
    return form, *parts


@pytest.mark.parametrize("kind", ["train", "restore"])
def test_what_is_painted_is_missing_in_both_forms(viewer: Any, qtbot: Any, kind: str) -> None:
    """And what comes of it is said at once, of the wrong way round as a warning."""
    form, mask, holes, words = forms(viewer, kind)
    labels = viewer.add_labels(PAINTED, name="holes")
    mask.choose(labels)
    qtbot.waitUntil(lambda: words.text() == "3.1 % of the voxels are taken as missing.", timeout=WAIT)
    if kind == "train":
        measured = form.through.through(form.source.volumes()[0]).measured
    else:
        form.holes.choose(labels)
        measured = _measured(form)
    np.testing.assert_array_equal(measured(), PAINTED == 0)
    # the other way round nearly all would be missing
    holes.setCurrentIndex(holes.findData(False))
    assert words.text() == ""
    qtbot.waitUntil(lambda: "97 % of the voxels are taken as missing" in words.text(), timeout=WAIT)
    assert words.property("kind") == "warning"


def _measured(form: Any) -> Any:
    """Give what the Restore form would read; it needs a prior, of which only the record is looked at."""
    from napari_ambient.widgets._session import priors_of

    from .test_closing import make_prior

    priors_of(form.viewer).add("tiny", make_prior())
    return form._task().items[0].measured


def test_strokes_and_their_undoing_are_counted(viewer: Any, qtbot: Any) -> None:
    _, mask, _, words = forms(viewer, "restore")
    labels = viewer.add_labels(PAINTED.copy(), name="holes")
    mask.choose(labels)
    qtbot.waitUntil(lambda: words.text().startswith("3.1 %"), timeout=WAIT)
    labels.data_setitem(np.nonzero(np.arange(64)[:, None] + np.zeros((1, 64)) < 8), 1)  # 512 more
    qtbot.waitUntil(lambda: words.text().startswith("16 %"), timeout=WAIT)
    labels.undo()
    qtbot.waitUntil(lambda: words.text().startswith("3.1 %"), timeout=WAIT)


@pytest.mark.parametrize("kind", ["train", "restore"])
def test_a_mask_that_is_none_is_said(viewer: Any, qtbot: Any, kind: str) -> None:
    form, mask, _, words = forms(viewer, kind)
    mask.choose(viewer.add_labels(np.zeros((64, 64), np.uint8), name="empty"))
    qtbot.waitUntil(lambda: "empty has no holes" in words.text(), timeout=WAIT)
    mask.choose(viewer.add_labels(np.zeros((32, 64), np.uint8), name="small"))
    qtbot.waitUntil(lambda: "small has 32 × 64 voxels, the image 64 × 64" in words.text(), timeout=WAIT)
    # nothing is said of holes where there are none
    task = form.through.box if kind == "train" else form.task
    task.setCurrentIndex(0)
    assert words.isHidden()
    qtbot.waitUntil(lambda: not any(job.title.startswith("counting") for job in _run._running), timeout=WAIT)
    assert words.isHidden()


@pytest.mark.parametrize("kind", ["train", "restore"])
def test_whole_numbers_have_no_nan(viewer: Any, qtbot: Any, kind: str) -> None:
    """Without a mask nothing would be filled in; it says what to do, and nothing of an image that may have NaN."""
    _, mask, _, words = forms(viewer, kind)
    assert "paint what is missing on a new Labels layer" in words.text()
    assert not words.isHidden()
    labels = viewer.add_labels(PAINTED, name="holes")
    mask.choose(labels)
    qtbot.waitUntil(lambda: words.text().startswith("3.1 %"), timeout=WAIT)
    mask.setCurrentIndex(0)
    assert "paint what is missing" in words.text()
    viewer.layers["cells"].data = np.full((3, 64, 64), np.nan, np.float32)
    assert words.text() == ""


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.032, "3.2 %"), (0.5, "50 %"), (1e-6, "Less than 0.01 %"), (0.97, "97 %"), (0.999, "99.90 %"), (1.0, "99.99 %")],
)
def test_shares_are_never_nothing_or_all(share: float, words: str) -> None:
    assert _holes._percent(share) == words
