"""The Train form, driven as a user would: clicks and keys on a 64² series, trainings of a few steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from napari.layers import Image
from npe2 import PluginManifest
from qtpy.compat import isalive
from qtpy.QtCore import QPoint, Qt

import napari_ambient
from napari_ambient import training_time
from napari_ambient.choices import ObjectiveName
from napari_ambient.noise import NoiseModel
from napari_ambient.objectives import OBJECTIVES
from napari_ambient.operators import Blur, Identity, Mask
from napari_ambient.prior import WHOLE, load_prior
from napari_ambient.restoration import restore_part, take_output
from napari_ambient.train_config import TrainConfig
from napari_ambient.training import choose_objective
from napari_ambient.widgets import _noise_panel, _psf, _training_job, restore, train
from napari_ambient.widgets._layers import volume_from_layer
from napari_ambient.widgets._preview import preview_part
from napari_ambient.widgets._session import priors_of
from napari_ambient.widgets._settings import Settings
from napari_ambient.widgets._through import NO_MASK, NO_PSF
from napari_ambient.widgets.train import TrainWidget

TINY = TrainConfig(steps=4, batch=2, patch=(32, 32), validations=2, precision="float32", below_steps=2)
LONG = TrainConfig(steps=5000, batch=1, patch=(16, 16), validations=2, precision="float32")
WAIT = 30_000
"""Milliseconds; torch alone takes seconds to load on a busy machine."""


def waves(shape: tuple[int, ...] = (3, 64, 64)) -> np.ndarray[Any, Any]:
    """Make waves of about 6 photo-electrons on a camera of gain 2 and offset 100, without noise."""
    grid = np.meshgrid(*(np.linspace(0, 3 * np.pi, n) for n in shape[-2:]), indexing="ij")
    return 100 + 2 * np.broadcast_to(6 * (1 + np.sin(grid[0]) * np.sin(grid[1])), shape)


def noisy(shape: tuple[int, ...] = (3, 64, 64)) -> np.ndarray[Any, Any]:
    """Count the photons of the waves."""
    return (100 + 2 * np.random.default_rng(0).poisson((waves(shape) - 100) / 2)).astype(np.uint16)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the unfinished trainings of the test apart, and show previews at once."""
    torch.set_num_threads(1)
    monkeypatch.setattr(train, "settings", lambda: Settings(device="cpu", cache_folder=tmp_path / "cache"))
    monkeypatch.setattr(_training_job, "FIRST_PREVIEW", 0.0)
    monkeypatch.setattr(_training_job, "PREVIEW_EVERY", 0.3)
    return tmp_path / "cache" / "trainings"


@pytest.fixture
def viewer(viewer: Any) -> Any:
    """Open a noisy series in the viewer."""
    scale, translate = (2.0, 0.1, 0.1), (0.0, 5.0, 7.0)
    viewer.add_image(
        noisy(), name="waves", scale=scale, translate=translate, axis_labels=("t", "y", "x"), units=("s", "um", "um")
    )
    return viewer


@pytest.fixture
def make(viewer: Any, cache: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., TrainWidget]]:
    """Make forms in docks; the time estimate waits until it is asked for."""
    monkeypatch.setattr(train, "WAIT", 10**8)
    made: list[TrainWidget] = []

    def make(config: TrainConfig = TINY, **others: Any) -> TrainWidget:
        widget = TrainWidget(viewer, config=config, **others)
        viewer.window.add_dock_widget(widget, name=f"Train {len(made)}")
        made.append(widget)
        return widget

    yield make
    for widget in made:
        if widget.training:
            widget.ask_to_stop()
            qtbot.waitUntil(lambda widget=widget: not widget.training, timeout=WAIT)


def click(qtbot: Any, button: Any) -> None:
    assert button.isEnabled()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def wait(qtbot: Any, widget: TrainWidget) -> None:
    qtbot.waitUntil(lambda: not widget.training, timeout=WAIT)


def steps_done(widget: TrainWidget, count: int) -> Callable[[], bool]:
    return lambda: widget.bar.maximum() > 1 and widget.bar.value() >= count


def test_one_click_from_a_noisy_layer_to_a_prior(make: Any, viewer: Any, cache: Path, qtbot: Any) -> None:
    widget = make()
    assert widget.source.words.text() == "T = 3, 64 × 64, 0.1 × 0.1 µm"
    click(qtbot, widget.train)
    wait(qtbot, widget)
    (known,) = priors_of(viewer)
    assert (known.name, known.path) == ("waves.prior", None)
    assert known.prior.record.step == 4
    assert not known.prior.knows_below
    # gain 2 to a fifth: three frames of 64²
    assert known.prior.noise[0].gain == pytest.approx(2.0, rel=0.2)
    assert "photo-electrons per voxel" in widget.noise.words.text()
    assert {"held-out", "ambient"} <= set(widget.losses.names)
    assert "is trained (4 steps" in widget.message.text()
    # what is in the cache is finished: nothing is offered for resuming
    (entry,) = cache.iterdir()
    assert load_prior(entry / "waves.prior").sha256 == known.prior.sha256
    assert not widget.resume.isVisibleTo(widget)
    assert widget.restore.isVisibleTo(widget)
    assert viewer.layers.selection.active.name == "waves"


def test_the_preview_lies_on_its_source(make: Any, viewer: Any, qtbot: Any) -> None:
    widget = make()
    drawn = viewer.add_shapes([[[0, 5.8, 7.8], [0, 5.8, 11.0], [0, 11.0, 11.0], [0, 11.0, 7.8]]], ndim=3, name="part")
    widget.preview.choose(drawn)
    click(qtbot, widget.train)
    wait(qtbot, widget)
    layer, source = viewer.layers["waves (preview)"], viewer.layers["waves"]
    assert layer.data.shape == (1, 53, 33)
    np.testing.assert_allclose(layer.scale, source.scale)
    # its first voxel lies where this voxel of the source lies
    time = round(viewer.dims.point[0] / 2.0)
    np.testing.assert_allclose(layer.data_to_world((0, 0, 0)), source.data_to_world((time, 8, 8)))
    assert layer.metadata["napari_ambient"]["step"] == 4
    # restored, in the units of the source: nearer to the waves than the noise is
    part = noisy()[time, 8:61, 8:41].astype(float)
    assert layer.data.std() < part.std()
    assert abs(layer.data.mean() - part.mean()) < part.std()


def test_stopped_before_the_second_stage_says_what_is_missing(make: Any, qtbot: Any) -> None:
    widget = make(LONG)
    widget.error_bars.setChecked(True)
    click(qtbot, widget.train)
    qtbot.waitUntil(steps_done(widget, 2), timeout=WAIT)
    click(qtbot, widget.stop)
    wait(qtbot, widget)
    assert "gives no error bars and no deconvolution yet; Resume goes on" in widget.message.text()


def test_stop_keeps_the_prior_and_resume_goes_on(make: Any, viewer: Any, cache: Path, qtbot: Any) -> None:
    widget = make(LONG)
    click(qtbot, widget.train)
    qtbot.waitUntil(steps_done(widget, 2), timeout=WAIT)
    assert not widget.train.isEnabled()
    assert "left" in widget.progress.text()
    click(qtbot, widget.stop)
    wait(qtbot, widget)
    (known,) = priors_of(viewer)
    first = known.prior.record.step
    assert 2 <= first < 5000
    assert f"Stopped after {first} of 5000 steps" in widget.message.text()
    # the same form, and one that is opened after a crash or another day
    assert widget.resume.isVisibleTo(widget)
    other = make()
    assert f"{first} of 5000 steps" in other.message.text()
    click(qtbot, other.resume)
    qtbot.waitUntil(steps_done(other, first + 2), timeout=WAIT)
    # while it runs, nobody else may go on with it
    assert not make().resume.isVisibleTo(widget)
    click(qtbot, other.stop)
    wait(qtbot, other)
    (known,) = priors_of(viewer)
    assert known.prior.record.step > first
    assert len(list(cache.iterdir())) == 1


def test_a_changed_stack_is_not_gone_on_with(make: Any, viewer: Any, qtbot: Any) -> None:
    widget = make(LONG)
    click(qtbot, widget.train)
    qtbot.waitUntil(steps_done(widget, 1), timeout=WAIT)
    click(qtbot, widget.stop)
    wait(qtbot, widget)
    viewer.layers["waves"].data = noisy()[::-1].copy()
    click(qtbot, widget.resume)
    wait(qtbot, widget)
    assert "changed since this training was begun" in widget.message.text()
    assert widget.train.isEnabled()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError("8 GiB")])
def test_out_of_memory_is_said_and_leaves_the_form_usable(
    make: Any, viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    widget = make()
    told: list[Exception] = []
    monkeypatch.setattr("napari_ambient.widgets._run.notification_manager.receive_error", lambda *a: told.append(a[1]))
    with monkeypatch.context() as context:

        def fail(*_: Any) -> None:
            raise error

        context.setattr("napari_ambient.objectives.ambient.Ambient.losses", fail)
        click(qtbot, widget.train)
        wait(qtbot, widget)
    assert "Out of memory. Close other programs, choose a smaller region" in widget.message.text()
    assert told == []
    assert not len(priors_of(viewer))
    click(qtbot, widget.train)
    wait(qtbot, widget)
    assert len(priors_of(viewer)) == 1


@pytest.mark.parametrize("chosen", ["Stop and close", "Go on"])
def test_closing_asks_and_stops(
    make: Any, viewer: Any, cache: Path, qtbot: Any, answer: Callable[[str], list[str]], chosen: str
) -> None:
    widget = make(LONG)
    click(qtbot, widget.train)
    qtbot.waitUntil(steps_done(widget, 1), timeout=WAIT)
    asked = answer(chosen)
    dock = widget.parent()
    qtbot.mouseClick(dock.titleBarWidget().close_button, Qt.MouseButton.LeftButton)
    assert "waves is being trained" in asked[0]
    if chosen == "Go on":
        assert widget.training
        assert widget.parent() is dock
        return
    wait(qtbot, widget)
    assert widget.parent() is not dock
    # what was learned is kept
    (entry,) = cache.iterdir()
    assert (entry / "waves.prior" / "checkpoint.safetensors").is_file()
    assert not (entry / "running.json").exists()
    # napari took it out of the window, and nobody owns it now
    widget.deleteLater()
    qtbot.waitUntil(lambda: not isalive(widget), timeout=WAIT)


def test_napari_knows_that_a_training_runs(make: Any, viewer: Any, qtbot: Any) -> None:
    """So it asks before the window is closed."""
    widget = make(LONG)
    click(qtbot, widget.train)
    qtbot.waitUntil(steps_done(widget, 1), timeout=WAIT)
    status = viewer.window._qt_window._window._task_status_manager.get_status()
    assert any("training waves" in line for line in status)


def test_noise_is_estimated_shown_and_edited(make: Any, viewer: Any, qtbot: Any) -> None:
    widget = make()
    assert widget.noise.models is None
    click(qtbot, widget.noise.estimate)
    qtbot.waitUntil(lambda: widget.noise.models is not None, timeout=WAIT)
    (fitted,) = widget.noise.models
    points, _ = widget.noise.plot._points.getData()
    np.testing.assert_array_equal(points, fitted.transfer[0])
    assert widget.noise.form.currentText() == f"automatic: {fitted.form}"
    widget.noise.gain.selectAll()
    qtbot.keyClicks(widget.noise.gain, "2.5")
    qtbot.keyClick(widget.noise.gain, Qt.Key.Key_Return)
    (edited,) = widget.noise.models
    assert (edited.gain, edited.method) == (2.5, "given")
    assert edited.photons < fitted.photons
    # an offset below the line's zero cannot be
    qtbot.keyClicks(widget.noise.offset, "1")
    qtbot.keyClick(widget.noise.offset, Qt.Key.Key_Return)
    assert "Raise the offset" in widget.noise.message.text()
    assert widget.noise.models == (edited,)
    widget.noise.form.setCurrentIndex(2)
    click(qtbot, widget.train)
    wait(qtbot, widget)
    (known,) = priors_of(viewer)
    assert known.prior.noise[0].gain == 2.5
    assert known.prior.record.form == "gaussian"


def test_noise_that_the_images_do_not_tell_is_asked_for(make: Any, viewer: Any, qtbot: Any) -> None:
    """The variance cannot be seen to rise with the light: gain and zero of the data sheet stand in."""
    dark = np.random.default_rng(0).normal(1000, 20, (3, 64, 64)).astype(np.uint16)
    viewer.layers["waves"].data = dark
    widget = make()
    click(qtbot, widget.train)
    wait(qtbot, widget)
    assert "does not rise" in widget.message.text()
    assert widget.noise.words.text() == _noise_panel.BY_HAND
    assert widget.noise.models is None
    for field, text in ((widget.noise.gain, "4"), (widget.noise.zero, "900")):
        assert field.isVisibleTo(widget)
        qtbot.keyClicks(field, text)
        qtbot.keyClick(field, Qt.Key.Key_Return)
    (given,) = widget.noise.models
    assert (given.gain, given.zero, given.method) == (4.0, 900.0, "given")
    click(qtbot, widget.train)
    wait(qtbot, widget)
    (known,) = priors_of(viewer)
    assert known.prior.noise[0].gain == 4.0
    # other images: what was given is forgotten
    viewer.layers["waves"].data = noisy()
    assert widget.noise.models is None
    assert not widget.noise.found.isVisibleTo(widget)


def test_error_bars_region_and_save(make: Any, viewer: Any, tmp_path: Path, qtbot: Any) -> None:
    widget = make()
    drawn = viewer.add_shapes([[[0, 5.0, 7.0], [0, 5.0, 11.75], [0, 8.75, 11.75], [0, 8.75, 7.0]]], ndim=3, name="part")
    widget.region.choose(drawn)
    # on its mark: the empty space beside a short text is not part of it
    qtbot.mouseClick(widget.error_bars, Qt.MouseButton.LeftButton, pos=QPoint(8, widget.error_bars.height() // 2))
    assert widget.config() == TrainConfig(**{**TINY.__dict__, "below": "auto"})
    click(qtbot, widget.train)
    wait(qtbot, widget)
    (known,) = priors_of(viewer)
    assert known.prior.knows_below
    assert len(widget.losses.names) > 3
    assert known.prior.noise[0].hot_pixels is None or known.prior.noise[0].hot_pixels.shape == (38, 48)
    assert known.name in widget.save.toolTip()
    widget.save_prior(tmp_path / "mine")
    qtbot.waitUntil(lambda: widget._saving is None, timeout=WAIT)
    assert load_prior(tmp_path / "mine.prior").sha256 == known.prior.sha256
    assert [k.path for k in priors_of(viewer)] == [(tmp_path / "mine.prior").resolve()]


def test_greyed_buttons_say_why(make: Any, viewer: Any, qtbot: Any) -> None:
    """And the steps of the stage for error bars can be set where there is one."""
    widget = make()
    assert widget.train.toolTip() == train.TRAIN
    assert widget.save.toolTip() == train.SAVE
    assert not widget.below_steps.isEnabled()
    widget.error_bars.setChecked(True)
    assert widget.below_steps.isEnabled()
    widget.below_steps.setValue(77)
    assert widget.config().below_steps == 77
    viewer.layers.clear()
    assert not widget.train.isEnabled()
    assert widget.train.toolTip() == train.NO_IMAGE
    long = make(LONG)
    viewer.add_image(noisy(), axis_labels=("t", "y", "x"))
    click(qtbot, long.train)
    assert long.train.toolTip() == train.TRAINS


def test_fields_stand_below_each_other(make: Any, qtbot: Any) -> None:
    """Whatever their labels and the box that they lie in."""
    widget = make()
    click(qtbot, widget.advanced.button)
    qtbot.wait(50)

    def left(*boxes: Any) -> set[int]:
        return {box.mapTo(widget, QPoint(0, 0)).x() for box in boxes}

    assert len(left(widget.region, widget.preset, widget.preview)) == 1
    assert len(left(widget.name, widget.seed, widget.steps)) == 1


def test_the_time_is_said_before_training(make: Any, qtbot: Any) -> None:
    widget = make(timing=0.1)
    widget._estimate_time()
    qtbot.waitUntil(lambda: widget.time.text().endswith("."), timeout=WAIT)
    assert widget.time.text().startswith("About ")
    assert "on this CPU" in widget.time.text()
    # a form that cannot be says so here, not when the training starts
    widget.batch.setValue(1)
    widget.dims.setCurrentText(train.DIMS["3D"])
    widget._estimate_time()
    qtbot.waitUntil(lambda: "no Z to see" in widget.time.text(), timeout=WAIT)


def test_what_was_said_of_another_image_goes(make: Any, viewer: Any, cache: Path, qtbot: Any) -> None:
    """An unfinished training is offered for its own image alone, and an error is about the image it came from."""
    widget = make(LONG)
    click(qtbot, widget.train)
    qtbot.waitUntil(steps_done(widget, 2), timeout=WAIT)
    click(qtbot, widget.stop)
    wait(qtbot, widget)
    assert "Resume goes on" in widget.message.text()
    other = viewer.add_image(noisy((2, 40, 40)), name="other", axis_labels=("t", "y", "x"))
    widget.source.box.choose(other)
    assert widget.message.text() == ""
    assert not widget.resume.isVisibleTo(widget)
    widget.source.box.choose(viewer.layers["waves"])
    assert "An unfinished training of this image is there" in widget.message.text()


def test_two_forms_share_nothing(make: Any, qtbot: Any) -> None:
    one, other = make(), make()
    one.error_bars.setChecked(True)
    one.preset.setCurrentText("quick")
    assert not other.error_bars.isChecked()
    assert other.preset.currentText() == "balanced"


def test_presets_and_fields_make_the_config(viewer: Any, cache: Path, qtbot: Any) -> None:
    widget = TrainWidget(viewer)
    qtbot.addWidget(widget)
    assert widget.config() == TrainConfig()
    widget.preset.setCurrentText("best")
    widget.steps.setValue(50)
    widget.size.setCurrentText("small")
    assert (widget.config().steps, widget.config().size, widget.config().below_steps) == (50, "small", 2500)
    widget.viewer.layers.clear()
    assert not widget.train.isEnabled()


def test_six_clicks_from_a_noisy_stack_to_a_denoised_layer(
    viewer: Any,
    cache: Path,
    npe2pm: Any,
    qtbot: Any,
    from_menu: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Layers, Filter, Train; Train; Restore with this prior; Restore. Nothing else is touched on the way."""
    npe2pm.register(PluginManifest.from_file(Path(napari_ambient.__file__).parent / "napari.yaml"))
    monkeypatch.setattr(train, "WAIT", 10**8)
    monkeypatch.setattr(train, "preset", lambda name, **changes: replace(TINY, steps=12, below=changes["below"]))
    monkeypatch.setattr(restore, "settings", train.settings)
    source = viewer.layers["waves"]
    clicks = ["Layers", "Filter", "Train (Ambient restoration)"]
    from_menu(viewer.window.layers_menu, *clicks[1:])
    (widget,) = viewer.window._qt_window.findChildren(TrainWidget)
    clicks += [each.text() for each in (widget.train, widget.restore)]
    click(qtbot, widget.train)
    wait(qtbot, widget)
    qtbot.waitUntil(lambda: widget.restore.isVisibleTo(widget), timeout=WAIT)
    click(qtbot, widget.restore)
    (form,) = viewer.window._qt_window.findChildren(restore.RestoreWidget)
    assert form.source.layer == source  # not the preview, which is newer
    qtbot.waitUntil(form.button.isEnabled, timeout=WAIT)
    before = set(viewer.layers)
    clicks.append(form.button.text())
    assert clicks[3:] == ["Train", "Restore with this prior", "Restore"]
    assert len(clicks) == 6
    click(qtbot, form.button)
    qtbot.waitUntil(lambda: not form.running and len(viewer.layers) > len(before), timeout=WAIT)
    (result,) = set(viewer.layers) - before
    assert result.data.shape == source.data.shape
    np.testing.assert_allclose(result.scale, source.scale)
    # denoised: nearer to the waves than what was measured
    clean, restored, measured = waves(), np.asarray(result.data), source.data
    assert np.square(restored - clean).mean() < 0.5 * np.square(measured - clean).mean()


def test_restoring_takes_the_form_that_is_open(make: Any, viewer: Any, npe2pm: Any, qtbot: Any, from_menu: Any) -> None:
    """Opened from the menu before: it comes to the front, with the image and the prior of the training."""
    npe2pm.register(PluginManifest.from_file(Path(napari_ambient.__file__).parent / "napari.yaml"))
    from_menu(viewer.window.layers_menu, "Filter", train.RESTORE)
    (form,) = viewer.window._qt_window.findChildren(restore.RestoreWidget)
    widget = make()
    for name in ("waves", "other"):
        priors_of(viewer).add(f"{name}.prior", tiny_prior())
    widget._known, widget._prior = (known := next(iter(priors_of(viewer)))), known.prior
    form.source.box.choose(viewer.add_image(noisy(), name="newer", axis_labels=("t", "y", "x")))
    widget.open_restore()
    assert viewer.window._qt_window.findChildren(restore.RestoreWidget) == [form]
    assert (form.source.layer, form.prior.name) == (viewer.layers["waves"], "waves.prior")
    # closed and asked for again, it gets the name by which the menu hides and shows it
    form.parent().destroyOnClose()
    form.deleteLater()
    qtbot.waitUntil(lambda: not isalive(form), timeout=WAIT)
    widget.open_restore()
    assert train.RESTORE in viewer.window.dock_widgets


def test_a_prior_is_named_after_its_image(make: Any, viewer: Any) -> None:
    """As a folder may be called."""
    viewer.layers["waves"].name = "cells (noisy) day 1/2.ome"
    assert make().name.text() == "cells noisy day 12.ome"


def tiny_prior(*, below: str = "none") -> Any:
    volume = volume_from_layer(Image(noisy(), axis_labels=("t", "y", "x")))
    return napari_ambient.train(volume, NoiseModel(2.0, -200.0), config=replace(TINY, below=below), device="cpu")


def test_a_training_begins_with_a_prior_and_is_resumed(
    make: Any, viewer: Any, cache: Path, qtbot: Any, tmp_path: Path
) -> None:
    """Chosen from disk; the network's size is its own, and an unfinished training goes on after a crash."""
    begin = tiny_prior(below="auto")
    begin.save(tmp_path / "begin.prior")
    widget = make(LONG)
    assert widget.origin.prior is None  # nobody begins with a prior by accident
    assert not widget.low_rank.isVisibleTo(widget)
    widget.origin.open(tmp_path / "begin.prior")
    assert not widget.train.isEnabled()  # while it is being read
    qtbot.waitUntil(widget.train.isEnabled, timeout=WAIT)
    assert not widget.size.isEnabled()
    assert "gives error bars" in widget.keeps.text()
    widget.low_rank.setValue(2)
    assert widget.config().low_rank == 2
    click(qtbot, widget.train)
    qtbot.waitUntil(steps_done(widget, 2), timeout=WAIT)
    click(qtbot, widget.stop)
    wait(qtbot, widget)
    first = widget._prior.record
    assert (first.start, first.config["low_rank"]) == (begin.sha256, 2)
    # another form, which knows nothing of the prior
    other = make(LONG)
    assert other.origin.prior is None
    click(qtbot, other.resume)
    qtbot.waitUntil(steps_done(other, first.step + 2), timeout=WAIT)
    click(qtbot, other.stop)
    wait(qtbot, other)
    assert other._prior.record.start == begin.sha256
    assert other._prior.record.step > first.step


def test_the_time_of_a_fine_tuning_is_said(make: Any, viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own network and rank; the time from scratch, which was said before, is another."""
    asked: list[dict[str, Any]] = []
    estimate = training_time.iter_estimate_time
    monkeypatch.setattr(
        training_time, "iter_estimate_time", lambda *a, **options: asked.append(options) or estimate(*a, **options)
    )
    widget = make(timing=0.1)
    widget._estimate_time()
    qtbot.waitUntil(lambda: widget.time.text().endswith("."), timeout=WAIT)
    begin = tiny_prior()
    choose(widget.dims, "3D")  # without effect: the network is the prior's
    widget.origin.choose(priors_of(viewer).add("begin.prior", begin))
    assert not widget.dims.isEnabled()
    assert widget.dims.toolTip() == widget.size.toolTip() == train.NETWORK_OF_START
    widget.low_rank.setValue(4)
    widget._estimate_time()
    qtbot.waitUntil(lambda: widget.time.text().endswith("."), timeout=WAIT)
    assert widget.time.text().startswith("About ")
    first, second = asked
    assert first["start"] is None
    assert second["start"] is begin
    assert (second["config"].low_rank, second["config"].dims) == (4, "2D")


def test_the_form_knows_what_the_library_chooses() -> None:
    """Which it may not ask, as that would load torch."""
    blur, mask = Blur(np.ones((3, 3)) / 9), Mask(np.eye(4))
    for kind, operator in (("nothing", Identity()), ("psf", blur), ("holes", mask), ("both", mask @ blur)):
        assert train.AUTOMATIC[kind] == choose_objective(operator)
    alone = {name for name, kind in OBJECTIVES.items() if kind.repeats and kind.partner == "none"}
    assert set(train.REPEATS) == alone
    assert set(train.ALL_LEVELS) == set(WHOLE) == {name for name, kind in OBJECTIVES.items() if kind.below_itself}
    # without clean images there is nothing to supervise with
    assert [*train.OBJECTIVES, "supervised"] == list(get_args(ObjectiveName))


def choose(box: Any, value: Any) -> None:
    box.setCurrentIndex(box.findData(value))


def bead() -> np.ndarray[Any, Any]:
    y, x = np.mgrid[-3:4, -3:4]
    return np.exp(-(y**2 + x**2) / 2)


def test_training_through_a_blur_and_restoring_what_was_before_it(
    make: Any, viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Advanced, blurred, the PSF of a layer; Train; Restore with this prior finds task and PSF chosen."""
    monkeypatch.setattr(_psf, "WAIT", 0)
    monkeypatch.setattr(restore, "WAIT", 10**8)
    monkeypatch.setattr(restore, "settings", train.settings)
    source = viewer.layers["waves"]
    point = viewer.add_image(bead(), name="bead")
    widget = make()
    widget.source.box.choose(source)
    widget.error_bars.setChecked(True)
    assert widget.config().below == "auto"
    click(qtbot, widget.advanced.button)
    assert widget.through.psf.isHidden()
    choose(widget.through.box, "psf")
    # flow_diff teaches all levels: no second stage, and the form says why
    assert not widget.error_bars.isEnabled()
    assert widget.keeps.text() == widget.error_bars.toolTip() == train.NO_STAGE_NEEDED.format("flow_diff")
    assert widget.config().below == "none"
    choose(widget.through.psf.source, "layer")
    assert not widget.train.isEnabled()
    assert widget.train.toolTip() == NO_PSF
    choose(widget.through.psf.kind, "computed")
    widget.through.psf.layer.choose(point)
    qtbot.waitUntil(widget.train.isEnabled, timeout=WAIT)
    psf = widget.through.psf.psf
    choose(widget.through.psf.border, "open")
    click(qtbot, widget.train)
    wait(qtbot, widget)
    (known,) = priors_of(viewer)
    record = known.prior.record
    assert (record.objective, record.operator) == ("flow_diff", Blur(psf, "open").to_dict())
    assert known.prior.posterior is not None
    assert known.prior.knows_below
    # the preview is what the prior's own posterior says of this part
    layer = viewer.layers["waves (preview)"]
    at = round(viewer.dims.point[0] / 2.0)
    whole = volume_from_layer(source)
    settings = {"operator": Blur(psf, "open"), "method": "amortised", "outputs": ["mean"], "draws": 2, "device": "cpu"}
    expected = restore_part(whole, known.prior, {"T": slice(at, at + 1)}, noise=widget.noise.models, **settings)
    values = take_output(expected, "mean").data.compute(scheduler="synchronous")
    np.testing.assert_allclose(layer.data, values, rtol=1e-4)
    click(qtbot, widget.restore)
    (form,) = viewer.window._qt_window.findChildren(restore.RestoreWidget)
    assert (form.task.currentData(), form.psf.chosen_border) == ("psf", "open")
    choose(form.psf.border, "reflect")
    form.prior.changed.emit()
    assert form.psf.chosen_border == "open"  # as the prior was trained
    qtbot.waitUntil(form.button.isEnabled, timeout=WAIT)
    choose(form.by, "amortised")
    before = set(viewer.layers)
    click(qtbot, form.button)
    qtbot.waitUntil(lambda: not form.running and len(viewer.layers) > len(before), timeout=WAIT)
    (result,) = set(viewer.layers) - before
    assert result.data.shape == source.data.shape
    assert result.metadata["napari_ambient"]["provenance"]["operator"] == Blur(psf, "open").to_dict()


def test_training_on_images_with_holes_is_resumed(make: Any, viewer: Any, cache: Path, qtbot: Any) -> None:
    """In a region, by a painted mask; gone on with by a form that knows nothing of it."""
    source = viewer.layers["waves"]
    painted = np.zeros((64, 64), np.uint8)
    painted[20:28, 20:30] = 1
    labels = viewer.add_labels(painted, name="holes")
    drawn = viewer.add_shapes([[[0, 5.0, 7.0], [0, 5.0, 11.75], [0, 8.75, 11.75], [0, 8.75, 7.0]]], ndim=3, name="part")
    widget = make(LONG, timing=0.1)
    widget.source.box.choose(source)
    widget.region.choose(drawn)
    choose(widget.through.box, "holes")
    assert widget.train.toolTip() == widget.time.text() == NO_MASK
    assert not widget.train.isEnabled()
    assert not widget.error_bars.isEnabled()
    assert "ambient_mask there will be no error bars" in widget.keeps.text()
    widget.through.mask.choose(labels)
    qtbot.waitUntil(lambda: widget.through.words.text() == "2 % of the voxels are taken as missing.", timeout=WAIT)
    widget._estimate_time()
    qtbot.waitUntil(lambda: widget.time.text().endswith("."), timeout=WAIT)
    click(qtbot, widget.train)
    qtbot.waitUntil(lambda: "waves (preview)" in viewer.layers and steps_done(widget, 2)(), timeout=WAIT)
    labels.data = np.ones_like(painted)  # too late
    click(qtbot, widget.stop)
    wait(qtbot, widget)
    first = widget._prior.record
    measured = painted == 0
    assert (first.objective, first.operator) == ("ambient_mask", Mask(measured[:38, :48]).to_dict())
    # filled in: what the holes hold is not looked at
    assert np.isfinite(viewer.layers["waves (preview)"].data).all()
    other = make(LONG)
    other.source.box.choose(source)
    assert other.through.kind == "nothing"
    click(qtbot, other.resume)
    qtbot.waitUntil(steps_done(other, first.step + 2), timeout=WAIT)
    click(qtbot, other.stop)
    wait(qtbot, other)
    assert other._prior.record.operator == first.operator
    assert other._prior.record.step > first.step


def test_the_preview_does_not_look_into_the_holes(make: Any, viewer: Any, qtbot: Any) -> None:
    measured = np.ones((64, 64), np.uint8)
    measured[30:36, 30:36] = 0
    source = viewer.layers["waves"]
    source.data = np.where(measured, noisy(), 40_000).astype(np.uint16)
    mask = viewer.add_image(measured, name="mask")
    widget = make()
    widget.source.box.choose(source)
    widget.noise.ask(1)
    for field, text in ((widget.noise.gain, "2"), (widget.noise.zero, "100")):
        qtbot.keyClicks(field, text)
        qtbot.keyClick(field, Qt.Key.Key_Return)
    choose(widget.through.box, "holes")
    widget.through.mask.choose(mask)
    choose(widget.through.holes, False)
    click(qtbot, widget.train)
    wait(qtbot, widget)
    assert "no preview" not in widget.message.text()
    assert viewer.layers["waves (preview)"].data.max() < 400


def test_what_an_objective_cannot_learn_is_said(make: Any, viewer: Any, qtbot: Any) -> None:
    source, point = viewer.layers["waves"], viewer.add_image(np.eye(64), name="mask")
    widget = make(timing=0.1)
    widget.source.box.choose(source)
    choose(widget.through.box, "holes")
    widget.through.mask.choose(point)
    choose(widget.objective, "ambient")
    assert widget.error_bars.isEnabled()
    widget._estimate_time()
    qtbot.waitUntil(lambda: "ambient cannot learn through this operator" in widget.time.text(), timeout=WAIT)
    click(qtbot, widget.train)
    wait(qtbot, widget)
    assert "choose flow_diff" in widget.message.text()
    # a mask of other images is found before anything is trained
    choose(widget.objective, "auto")
    point.data = np.eye(32)
    click(qtbot, widget.train)
    wait(qtbot, widget)
    assert "mask has 32 × 32 voxels, the image 64 × 64" in widget.message.text()
    assert widget.train.isEnabled()
    assert not len(priors_of(viewer))


def test_an_objective_besides_the_automatic_one(make: Any, viewer: Any, qtbot: Any) -> None:
    """Also for images that are only noisy; the preview is that of one call."""
    widget = make()
    choose(widget.objective, "sure_score")
    assert not widget.error_bars.isEnabled()
    click(qtbot, widget.train)
    wait(qtbot, widget)
    (known,) = priors_of(viewer)
    assert (known.prior.record.objective, known.prior.record.operator) == ("sure_score", {})
    assert "waves (preview)" in viewer.layers


def test_time_points_that_show_the_same_field(make: Any, viewer: Any, qtbot: Any) -> None:
    """Are asked about only where there are time points, and an objective that learns from them."""
    viewer.add_image(np.zeros((64, 64), np.uint16), name="one", axis_labels=("y", "x"))
    widget = make()
    asked = widget.more.isRowVisible
    widget.source.box.choose(viewer.layers["one"])
    assert not asked(widget.still)
    widget.source.box.choose(viewer.layers["waves"])
    assert asked(widget.still)
    assert not widget.config().still
    widget.still.setChecked(True)
    assert widget.config().still
    choose(widget.objective, "blind_spot")
    assert not asked(widget.still)
    assert not widget.config().still
    choose(widget.objective, "auto")
    click(qtbot, widget.train)
    assert not widget.still.isEnabled()
    wait(qtbot, widget)
    (known,) = priors_of(viewer)
    assert known.prior.record.config["still"] is True


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_plots_follow_the_theme(make: Any, viewer: Any, theme: str) -> None:
    widget = make()
    viewer.theme = theme
    assert widget.losses.dark == (theme == "dark")
    assert widget.noise.plot.dark == (theme == "dark")


def test_a_preview_part_is_in_the_middle_of_the_view(viewer: Any) -> None:
    layer = Image(np.zeros((40, 30, 400, 500), np.uint16), axis_labels=("t", "z", "y", "x"), scale=(1, 2, 0.1, 0.1))
    viewer.layers.clear()
    viewer.add_layer(layer)
    viewer.dims.set_point(0, 7)
    viewer.dims.set_point(1, 40)
    getattr(viewer, "scene", viewer).camera.center = (0, 20.0, 48.0)
    part = preview_part(viewer, volume_from_layer(layer), layer, "TZYX", None)
    assert part["T"] == slice(7, 8)
    assert part["Z"] == slice(12, 28)  # 16 planes around plane 20
    assert part["Y"] == slice(136, 264)  # 128 around 200
    assert part["X"] == slice(372, 500)  # around 480, moved into the image


def test_every_preview_model_has_the_part_of_its_maps() -> None:
    hot = np.zeros((64, 64), bool)
    hot[10, 20] = True
    noise = NoiseModel(gain=2.0, intercept=-200.0, hot_pixels=hot)
    cut = noise.crop(slice(8, 16), slice(16, 32))
    assert cut.hot_pixels is not None
    assert cut.hot_pixels.shape == (8, 16)
    assert cut.hot_pixels[2, 4]
