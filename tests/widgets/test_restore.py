"""The Restore form, driven as a user would, with a tiny prior of small random weights and small images."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from napari.layers import Image, _layer_actions
from qtpy.QtCore import Qt

from napari_ambient import open_volume, psf_fit, restore, train
from napari_ambient.choices import ObjectiveName
from napari_ambient.denoiser import Denoiser, Scale
from napari_ambient.measurement import computed_psf
from napari_ambient.moments import Moments
from napari_ambient.networks.unet import UNet, UNetArguments
from napari_ambient.noise import NoiseModel
from napari_ambient.operators import Blur, Mask, Operator
from napari_ambient.prior import Prior, Record
from napari_ambient.recalibration import measure_spread
from napari_ambient.restoration import restore_part, take_output
from napari_ambient.restorer import RestorationError
from napari_ambient.train_config import TrainConfig
from napari_ambient.volumes import Volume
from napari_ambient.widgets import _psf
from napari_ambient.widgets import restore as module
from napari_ambient.widgets._layers import METADATA, layer_arguments, volume_from_layer
from napari_ambient.widgets._session import priors_of
from napari_ambient.widgets._settings import Settings
from napari_ambient.widgets.restore import RestoreWidget

NOISE = NoiseModel(gain=2.0, intercept=-200.0, photons=6.0)
WAIT = 60_000
"""Milliseconds; torch alone takes seconds to load on a busy machine."""
BELOW = {"steps": 3, "below": "virtual_exposures", "below_steps": 3}


def make_prior(*, below: bool = True) -> Prior:
    """Give a network random weights, small so that the answers stay near the data."""
    torch.manual_seed(0)
    network = UNet(UNetArguments(widths=(8, 8, 8)))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    denoiser = Denoiser(network, [Scale(4.9, 1.5)])
    denoiser.eval().requires_grad_(False)
    config = BELOW if below else {"steps": 6, "below": "none", "below_steps": 0}
    return Prior(denoiser, (NOISE,), Record("ambient", "thinning", "TYX", {"Y": 0.1, "X": 0.1}, config=config, step=6))


@pytest.fixture(scope="module")
def prior() -> Prior:
    torch.set_num_threads(1)
    return make_prior()


def noisy(shape: tuple[int, ...] = (3, 64, 64), gain: float = 2.0) -> np.ndarray[Any, Any]:
    """Waves of about 6 photo-electrons on a camera of offset 100."""
    rng = np.random.default_rng(0)
    grid = np.meshgrid(*(np.linspace(0, 3 * np.pi, n) for n in shape[-2:]), indexing="ij")
    clean = np.broadcast_to(6 * (1 + np.sin(grid[0]) * np.sin(grid[1])), shape)
    return (100 + gain * rng.poisson(clean)).astype(np.uint16)


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sets the plugin's settings; the form compares and computes at once."""
    monkeypatch.setattr(module, "WAIT", 0)
    monkeypatch.setattr(_psf, "WAIT", 0)

    def choose(memory_mb: int = 2000) -> None:
        made = Settings(device="cpu", memory_mb=memory_mb, cache_folder=tmp_path)
        monkeypatch.setattr(module, "settings", lambda: made)

    choose()
    return choose


@pytest.fixture
def form(viewer: Any, prior: Prior, chosen: Callable[..., None]) -> RestoreWidget:
    """Return the form in a window, with a series of 3 × 64² open and a prior in the session."""
    viewer.add_image(noisy(), name="waves", scale=(1, 0.1, 0.1), axis_labels="tyx", units=("s", "um", "um"))
    priors_of(viewer).add("tiny", prior)
    widget = RestoreWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Restore")
    return widget


@pytest.fixture
def press(qtbot: Any) -> Callable[..., list[Any]]:
    """Return a function that presses Restore, waits for the end, and gives the new layers."""

    def press(form: RestoreWidget) -> list[Any]:
        assert form.button.isEnabled()
        before = list(form.viewer.layers)
        qtbot.mouseClick(form.button, Qt.MouseButton.LeftButton)
        qtbot.waitUntil(lambda: not form.running, timeout=WAIT)
        return [layer for layer in form.viewer.layers if layer not in before]

    return press


def choose(box: Any, value: Any) -> None:
    box.setCurrentIndex(box.findData(value))


def test_mean_in_one_click(form: RestoreWidget, press: Callable[..., list[Any]], prior: Prior) -> None:
    """The layer holds what the library gives, lies on its source, and says how it was made."""
    (layer,) = press(form)
    source = form.viewer.layers["waves"]
    expected = restore(volume_from_layer(source), prior, device="cpu").data.compute(scheduler="synchronous")
    np.testing.assert_allclose(layer.data, expected, rtol=1e-6)
    assert layer.name == "waves restored"
    assert layer.axis_labels == source.axis_labels
    assert layer.units == source.units
    np.testing.assert_allclose(layer.extent.world, source.extent.world)
    record = layer.metadata[METADATA]["provenance"]
    assert (record["method"], record["prior_sha256"]) == ("mean", prior.sha256)
    assert "Restored in" in form.message.text()
    assert form.button.isEnabled()
    form.error_bars.click()  # another restoration is asked for: what was said of this one goes
    assert form.message.text() == ""


def test_draws_come_with_an_error_bar_and_a_slider(form: RestoreWidget, press: Callable[..., list[Any]]) -> None:
    form.error_bars.click()
    form.keep.click()
    form.draws.setValue(3)
    form.steps.setValue(3)
    draws, error, mean = press(form)
    assert [layer.name for layer in (draws, error, mean)] == ["waves draws", "waves error bar", "waves restored"]
    assert draws.data.shape == (3, 3, 64, 64)
    assert draws.axis_labels == ("draw", "t", "y", "x")
    for at in range(3):  # each time point is an image of its own
        moments = Moments()
        for draw in draws.data[:, at]:
            moments.add(draw)
        np.testing.assert_allclose(moments.mean(), mean.data[at], rtol=1e-5)
        np.testing.assert_allclose(moments.std(), error.data[at], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(draws.extent.world[:, 1:], mean.extent.world)
    low, high = error.contrast_limits
    assert low == 0
    assert np.mean(error.data > high) == pytest.approx(0.005, abs=2e-3)  # what the quantile leaves out
    form.viewer.dims.set_current_step(0, 2)
    assert mean.metadata[METADATA]["provenance"]["draws"] == 3


@pytest.mark.parametrize(("limits", "kept"), [((95.0, 130.0), True), ((0.0, 4095.0), False)])
def test_the_contrast_is_the_sources_unless_the_result_would_be_dark(
    form: RestoreWidget, press: Callable[..., list[Any]], viewer: Any, limits: tuple[float, float], kept: bool
) -> None:
    viewer.layers["waves"].contrast_limits = limits
    (layer,) = press(form)
    assert (tuple(layer.contrast_limits) == limits) == kept
    low, high = layer.contrast_limits
    assert np.mean((layer.data >= low) & (layer.data <= high)) > 0.99


@pytest.mark.parametrize(("by", "repeats"), [("photons", ()), ("frames", (0, 1))])
def test_error_bars_are_checked_as_the_library_does(
    form: RestoreWidget,
    press: Callable[..., list[Any]],
    prior: Prior,
    viewer: Any,
    by: str,
    repeats: tuple[int, ...],
) -> None:
    """The draws are widened by what the library measures, at the time point that is restored; the record says it."""
    assert form.recalibrate.isHidden()  # there is no error bar
    form.error_bars.click()
    assert not form.recalibrate.isHidden()
    form.draws.setValue(3)
    form.steps.setValue(3)
    choose(form.where, "slice")
    viewer.dims.set_point(0, 2.0)
    bar, mean = press(form)
    plain = np.array(bar.data)
    choose(form.recalibrate, by)
    assert press(form) == []  # a preview of the same slice takes the place of the one before
    volume = volume_from_layer(viewer.layers["waves"])
    found = measure_spread(volume, prior, time=2, repeats=repeats, device="cpu")
    expected = restore_part(
        volume, prior, {"T": slice(2, 3)}, method="samples", draws=3, steps=3, spread=found, device="cpu"
    )
    np.testing.assert_allclose(bar.data, take_output(expected, "std").data.compute(), rtol=1e-4, atol=1e-4)
    assert abs(np.mean(bar.data) / np.mean(plain) - 1) > 0.05  # else nothing is shown by this
    record = mean.metadata[METADATA]["provenance"]["spread"]
    assert record == found.to_dict()
    assert record["source"] == ("2 other time points" if repeats else "held-out photons")
    assert f"error bars multiplied by {found.factor:.3f}" in form.message.text()
    # behind a blur or holes they are not checked
    choose(form.task, "holes")
    assert form.recalibrate.isHidden()
    task = form._task()
    assert task is not None
    assert not task.recalibrate
    assert not task.still


def test_photons_are_held_out_where_light_is_counted(form: RestoreWidget, prior: Prior, viewer: Any) -> None:
    form.error_bars.click()
    choose(form.recalibrate, "photons")
    priors_of(viewer).add("gaussian", replace(prior, record=replace(prior.record, form="gaussian")))
    assert form.prior.name == "gaussian"
    assert not form.recalibrate.isEnabled()
    assert "counted light" in form.recalibrate.toolTip()
    task = form._task()
    assert task is not None
    assert not task.recalibrate


def enabled(box: Any, value: Any) -> bool:
    return bool(box.model().item(box.findData(value)).isEnabled())


def tip(box: Any, value: Any) -> str:
    return str(box.itemData(box.findData(value), Qt.ItemDataRole.ToolTipRole))


def test_other_time_points_are_needed_to_check_by_them(form: RestoreWidget, viewer: Any, qtbot: Any) -> None:
    form.error_bars.click()
    assert enabled(form.recalibrate, "frames")
    assert "nothing moves or bleaches" in tip(form.recalibrate, "frames")
    choose(form.recalibrate, "frames")
    # a second image, of one time point, is refused before anything is restored
    plane = viewer.add_image(noisy((64, 64)), name="plane", scale=(0.1, 0.1), axis_labels="yx", units=("um", "um"))
    viewer.layers.selection = {viewer.layers["waves"], plane}
    form.others.setChecked(True)
    qtbot.mouseClick(form.button, Qt.MouseButton.LeftButton)
    assert not form.running
    assert "plane has one time point" in form.message.text()
    assert "held-out photons" in form.message.text()
    form.others.setChecked(False)
    # alone it greys the choice out, and says why
    form.source.box.choose(plane)
    assert form.recalibrate.isEnabled()
    assert form.recalibrate.currentData() == "nothing"
    assert not enabled(form.recalibrate, "frames")
    assert "one time point" in tip(form.recalibrate, "frames")
    assert enabled(form.recalibrate, "photons")
    form.source.box.choose(viewer.layers["waves"])
    assert enabled(form.recalibrate, "frames")
    assert "one time point" not in tip(form.recalibrate, "frames")


def test_several_channels_are_not_checked_at_once(form: RestoreWidget, viewer: Any, qtbot: Any) -> None:
    form.error_bars.click()
    choose(form.recalibrate, "photons")
    both = viewer.add_image(noisy((2, 64, 64)), name="both", scale=(1, 0.1, 0.1), axis_labels="cyx")
    viewer.layers.selection = {viewer.layers["waves"], both}
    form.others.setChecked(True)
    qtbot.mouseClick(form.button, Qt.MouseButton.LeftButton)
    assert not form.running
    assert "both has 2 channels" in form.message.text()


@pytest.mark.parametrize("turns", [2, 8])
def test_the_mean_is_averaged_over_turns_as_the_library_does(
    form: RestoreWidget, press: Callable[..., list[Any]], prior: Prior, turns: int
) -> None:
    choose(form.turns, turns)
    (layer,) = press(form)
    volume = volume_from_layer(form.viewer.layers["waves"])
    plain, expected = (
        restore(volume, prior, turns=n, device="cpu").data.compute(scheduler="synchronous") for n in (1, turns)
    )
    np.testing.assert_allclose(layer.data, expected, rtol=1e-5)
    assert np.abs(expected - plain).max() > 0.1  # else nothing is shown by this
    assert layer.metadata[METADATA]["provenance"]["turns"] == turns
    # draws are averages already: the choice waits for the next mean
    form.error_bars.click()
    form.draws.setValue(2)
    form.steps.setValue(2)
    assert not form.turns.isEnabled()
    assert "averages already" in form.turns.toolTip()
    _, mean = press(form)
    assert "turns" not in mean.metadata[METADATA]["provenance"]
    form.mean.click()
    assert form.turns.isEnabled()
    assert form.turns.currentData() == turns
    choose(form.task, "holes")  # whose mean is that of draws
    assert not form.turns.isEnabled()


def test_quarter_turns_need_square_pixels(form: RestoreWidget, press: Callable[..., list[Any]], viewer: Any) -> None:
    assert enabled(form.turns, 8)
    choose(form.turns, 8)
    square, oblong = (
        viewer.add_image(noisy(), name=name, scale=(1, step, 0.1), axis_labels="tyx", units=("s", "um", "um"))
        for name, step in (("square", 0.1), ("oblong", 0.2))
    )
    form.source.box.choose(oblong)
    assert form.turns.currentData() == 1
    assert not enabled(form.turns, 8)
    assert "same size along Y and X (they are 0.2 and 0.1 µm)" in tip(form.turns, 8)
    assert enabled(form.turns, 4)
    # as the second of several images it is refused by the library, in the form's words
    form.source.box.choose(square)
    assert enabled(form.turns, 8)
    assert "same size" not in tip(form.turns, 8)
    choose(form.turns, 8)
    viewer.layers.selection = {square, oblong}
    form.others.setChecked(True)
    press(form)
    assert "“Average over” is 8 turns" in form.message.text()


def test_results_are_not_offered_as_what_is_to_be_restored(
    form: RestoreWidget, press: Callable[..., list[Any]], viewer: Any
) -> None:
    """A form that is opened afterwards is about the measurement, not about a result, an error bar or a preview."""
    form.error_bars.click()
    form.draws.setValue(2)
    form.steps.setValue(2)
    press(form)
    viewer.add_image(noisy(), name="preview", axis_labels="tyx", metadata={METADATA: {"preview": True}})
    later = RestoreWidget(viewer)
    viewer.window.add_dock_widget(later, name="Restore 2")
    assert later.source.layer is viewer.layers["waves"]
    assert [later.source.box.itemText(i) for i in range(3)] == ["preview", "waves restored", "waves error bar"]
    # without the measurement nothing is chosen, and the form says so
    viewer.layers.remove("waves")
    assert later.source.layer is None
    assert not later.button.isEnabled()
    assert later.button.toolTip() == "First choose an image"


def test_what_the_prior_cannot_do_is_greyed_out_with_the_reason(form: RestoreWidget, viewer: Any) -> None:
    assert form.error_bars.isEnabled()
    form.error_bars.click()
    priors_of(viewer).add("shallow", make_prior(below=False))
    assert form.prior.name == "shallow"
    assert not form.error_bars.isEnabled()
    assert form.mean.isChecked()
    assert not form.task.model().item(1).isEnabled()
    assert "below the noise" in form.below.text()
    assert not form.below.isHidden()


@pytest.mark.parametrize("where", ["slice", "region slice", "region"])
def test_a_part_is_what_the_whole_gives_there(
    form: RestoreWidget, press: Callable[..., list[Any]], where: str, viewer: Any
) -> None:
    source = viewer.layers["waves"]
    (whole,) = press(form)
    shapes = viewer.add_shapes([np.array([[1, 20.2, 10], [1, 20.2, 41], [1, 39.4, 41], [1, 39.4, 10]]) * 0.1])
    shapes.scale = (1, 1, 1)
    viewer.dims.set_point(0, 2.0)
    choose(form.where, where)
    form.region.choose(shapes)
    (part,) = press(form)
    low = part.data_to_world((0,) * part.ndim)
    start = np.rint(source.world_to_data(low)).astype(int)
    box = tuple(slice(a, a + n) for a, n in zip(start, part.data.shape, strict=True))
    assert part.data.shape == {"slice": (1, 64, 64), "region slice": (1, 20, 32), "region": (3, 20, 32)}[where]
    np.testing.assert_allclose(part.data, whole.data[box], rtol=1e-4)
    assert part.name.endswith("(preview)") == ("slice" in where)


def test_a_turned_stretched_and_sheared_layer(
    form: RestoreWidget, press: Callable[..., list[Any]], viewer: Any
) -> None:
    """Every voxel of mean, error bar and draws lies where its source's does."""
    turn = np.deg2rad(30)
    rotate = np.eye(3)
    rotate[1:, 1:] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine = np.eye(4)
    affine[:3, 3] = (0, 2, -1)
    affine[1, 2] = 0.2
    source = viewer.add_image(
        noisy((2, 40, 48)),
        name="odd",
        scale=(3.0, 0.2, 0.1),
        translate=(0, 5, 7),
        rotate=rotate,
        shear=(0, 0, 0.3),
        affine=affine,
        axis_labels="zyx",
        units=("um", "um", "um"),
    )
    form.source.box.choose(source)
    form.error_bars.click()
    form.keep.click()
    form.draws.setValue(2)
    form.steps.setValue(2)
    choose(form.where, "slice")
    viewer.dims.set_point(0, 3.0)
    draws, error, mean = press(form)
    for voxel in ((0, 0, 0), (0, 39, 47), (0, 11, 30)):
        wanted = np.array(source.data_to_world((1, *voxel[1:])))
        for layer in (mean, error):
            np.testing.assert_allclose(layer.data_to_world(voxel), wanted, atol=1e-9)
        np.testing.assert_allclose(draws.data_to_world((1, *voxel))[1:], wanted, atol=1e-9)


def test_cancel_within_a_second(
    form: RestoreWidget, qtbot: Any, viewer: Any, largest_gap: Callable[..., float]
) -> None:
    """No layer is left, the form can be used again, and the window never stands still for long."""
    form.error_bars.click()
    form.draws.setValue(200)
    before = list(viewer.layers)
    qtbot.mouseClick(form.button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: form.bar.bar.value() > 0, timeout=WAIT)
    begin = time.perf_counter()
    qtbot.mouseClick(form.bar.button, Qt.MouseButton.LeftButton)
    gap = largest_gap(lambda: not form.running)
    assert gap < 0.25  # 0.05 s on a machine that does nothing else
    assert time.perf_counter() - begin < 1.0
    assert list(viewer.layers) == before
    assert "Cancelled" in form.message.text()
    assert form.button.isEnabled()


def test_an_error_is_shown_and_the_form_stays_usable(
    form: RestoreWidget, press: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch, viewer: Any
) -> None:
    from napari_ambient import restoration
    from napari_ambient.widgets import _run

    told: list[Any] = []
    monkeypatch.setattr(_run.notification_manager, "receive_error", lambda *given: told.append(given[1]))

    def fail(*_: Any, **__: Any) -> None:
        raise RestorationError("the prior is for another planet; choose one of this")

    with monkeypatch.context() as broken:
        broken.setattr(restoration, "restore", fail)
        assert press(form) == []
    assert "another planet" in form.message.text()
    assert told == []  # the line of the form says it; a fault of the program is reported too
    with monkeypatch.context() as broken:
        broken.setattr(restoration, "restore", lambda *_, **__: {}["prior"])
        assert press(form) == []
    assert [type(error) for error in told] == [KeyError]
    assert "prior" in form.message.text()
    (layer,) = press(form)
    assert layer.name == "waves restored"


def test_large_results_go_to_disk_and_are_seen_while_they_grow(
    form: RestoreWidget,
    press: Callable[..., list[Any]],
    chosen: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    viewer: Any,
) -> None:
    from napari_ambient.widgets import _restoring_job

    monkeypatch.setattr(_restoring_job, "SHOW_EVERY", 0.0)
    viewer.add_image(noisy((40, 96, 96)), name="long", axis_labels="tyx", scale=(1, 0.1, 0.1), units=("s", "um", "um"))
    seen: list[str] = []
    viewer.layers.events.inserted.connect(lambda event: seen.append(event.value.name))
    chosen(memory_mb=1)
    form.source.box.choose(viewer.layers["long"])
    assert not form.target.isHidden()
    path = Path(form.output.text())
    assert path == tmp_path / "long_restored.ome.zarr"
    (layer,) = press(form)
    assert seen[0] == "long restored (growing)"
    assert layer.name == "long restored"
    volume = open_volume(path)
    assert volume.history[-1]["action"] == "restore"
    np.testing.assert_array_equal(np.asarray(layer.data), volume.data.compute())
    assert float(np.asarray(layer.data[-1]).mean()) > 100
    # the next one gets another name
    assert form._task(checked=False).items[0].path != path  # type: ignore[union-attr]


def test_cancelling_a_large_result_leaves_no_file_and_no_layer(
    form: RestoreWidget, qtbot: Any, chosen: Callable[..., None], tmp_path: Path, viewer: Any
) -> None:
    viewer.add_image(noisy((400, 64, 64)), name="long", axis_labels="tyx", units=("s", "um", "um"))
    chosen(memory_mb=1)
    form.source.box.choose(viewer.layers["long"])
    form.error_bars.click()
    form.steps.setValue(3)
    before = list(viewer.layers)
    qtbot.mouseClick(form.button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: "long restored (growing)" in viewer.layers, timeout=WAIT)
    qtbot.mouseClick(form.bar.button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: not form.running, timeout=WAIT)
    assert list(viewer.layers) == before
    assert list(tmp_path.iterdir()) == []


def test_a_prior_of_several_channels(form: RestoreWidget, press: Callable[..., list[Any]], prior: Prior) -> None:
    """For an image of one it is asked which."""
    assert form.channels.isHidden()
    denoiser = Denoiser(UNet(prior.denoiser.arguments), [Scale(4.9, 1.5)] * 2)
    state = dict(prior.denoiser.state_dict())
    denoiser.load_state_dict({**state, "scales": state["scales"].repeat(2, 1)})
    denoiser.eval().requires_grad_(False)
    two = replace(
        prior, denoiser=denoiser, noise=prior.noise * 2, record=replace(prior.record, channel_names=("dna", "actin"))
    )
    (alone,) = press(form)
    priors_of(form.viewer).add("two", two)
    assert not form.channels.isHidden()
    assert form.channel.currentText() == "dna"
    assert "does not say which channel it is: it is taken for “dna”" in form.which.text()
    form.channel.setCurrentText("actin")
    form.channel.activated.emit(1)  # as a click does
    assert form.which.text() == ""
    form.refit.click()
    assert form.channel.currentText() == "actin"  # what was chosen stays
    form.refit.click()
    (layer,) = press(form)
    np.testing.assert_allclose(layer.data, alone.data, rtol=1e-5)


def test_the_parts_of_a_split_stack_are_the_channels_they_were(
    form: RestoreWidget, press: Callable[..., list[Any]], viewer: Any
) -> None:
    """Split Stack forgets the channel; it is told by what was noted in the stack, and each has its own noise."""
    two = make_prior()
    denoiser = Denoiser(UNet(two.denoiser.arguments), [Scale(4.9, 1.5), Scale(20.0, 3.0)])
    denoiser.load_state_dict({**two.denoiser.state_dict(), "scales": denoiser.state_dict()["scales"]})
    denoiser.eval().requires_grad_(False)
    noise = NOISE, NoiseModel(gain=4.0, intercept=-400.0, photons=6.0)
    two = replace(two, denoiser=denoiser, noise=noise, record=replace(two.record, channel_names=("dna", "actin")))
    counts = np.stack([noisy(), noisy(gain=4.0)])
    volume = Volume.from_array(counts, "CZYX", channel_names=("dna", "actin"), name="cell")
    data, arguments = layer_arguments(volume, None, name="cell")
    stack = viewer.add_image(np.asarray(data), **arguments)
    viewer.layers.selection = {stack}
    _layer_actions._split_stack(viewer.layers)  # what the menu calls
    priors_of(viewer).add("two", two)
    dna, actin = viewer.layers["cell layer 0"], viewer.layers["cell layer 1"]
    form.source.box.choose(actin)
    assert form.source.axes == "ZYX"
    assert form.channel.currentText() == "actin"
    assert form.which.text() == ""
    form.source.box.choose(dna)
    assert form.channel.currentText() == "dna"
    form.others.click()
    made = {layer.name: layer for layer in press(form)}
    assert "cell layer 0 as “dna”; cell layer 1 as “actin”" in form.message.text()
    for c, layer in enumerate((dna, actin)):
        expected = restore(volume.channel(c), two.channel(c), device="cpu").data.compute()
        np.testing.assert_allclose(made[f"{layer.name} restored"].data, expected, rtol=1e-5)
    # negative control: as the other channel it would be another image
    wrong = restore(volume.channel(1), two.channel(0), device="cpu").data.compute()
    assert np.abs(made["cell layer 1 restored"].data - wrong).max() > 1
    # one that was renamed before anybody looked is asked for
    actin.metadata[METADATA] = dict(stack.metadata[METADATA])
    actin.name = "fibres"
    form.source.box.choose(actin)
    assert form.source.axes is None


@pytest.mark.filterwarnings("default::napari_ambient.restoration.RestorationWarning")
def test_what_the_library_warns_of_is_said_in_the_form(
    form: RestoreWidget, press: Callable[..., list[Any]], prior: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hot pixels of another chip; with the noise fitted anew there is nothing to be said."""
    monkeypatch.setattr(warnings, "showwarning", lambda *_: None)
    priors_of(form.viewer).add("hot", replace(prior, noise=(replace(NOISE, hot_pixels=np.ones((8, 8), bool)),)))
    press(form)
    done, warning = form.message.text().splitlines()
    assert done.startswith("Restored in")
    assert warning.startswith("⚠ 64 hot pixels are known")
    assert warning.endswith("(by a click on “Fit the noise anew”, or noise “fitted to each file”)")
    form.refit.click()
    press(form)
    assert "hot pixels" not in form.message.text()
    assert "⚠" not in form.message.text()


def test_it_says_where_prior_and_data_do_not_fit(form: RestoreWidget, qtbot: Any, viewer: Any) -> None:
    """Another gain is found; fitting the noise anew takes the sentence away. The right data are not complained of."""
    where = {"axis_labels": "tyx", "units": ("s", "um", "um")}
    good = viewer.add_image(noisy((6, 128, 128)), name="good", scale=(1, 0.1, 0.1), **where)
    form.source.box.choose(good)
    qtbot.waitUntil(lambda: form._look is not None, timeout=WAIT)
    qtbot.waitUntil(lambda: form._look is None and not form._timer.isActive(), timeout=WAIT)
    assert form.fit.text() == ""
    bad = viewer.add_image(noisy((6, 128, 128), gain=8.0), name="bad", scale=(1, 0.3, 0.3), **where)
    form.source.box.choose(bad)
    qtbot.waitUntil(lambda: "Noise" in form.fit.text(), timeout=WAIT)
    assert "gain 8" in form.fit.text() or "gain 7.9" in form.fit.text()
    assert "Voxel size: 0.3" in form.fit.text()
    form.refit.click()
    qtbot.waitUntil(lambda: form._look is not None, timeout=WAIT)
    qtbot.waitUntil(lambda: form._look is None and not form._timer.isActive(), timeout=WAIT)
    assert "gain" not in form.fit.text()
    assert "Voxel size: 0.3" in form.fit.text()


def test_deconvolve_with_the_optics(form: RestoreWidget, press: Callable[..., list[Any]], qtbot: Any) -> None:
    choose(form.task, "psf")
    qtbot.waitUntil(lambda: form.psf.psf is not None, timeout=WAIT)
    assert not form.psf.picture.isHidden()
    assert form.psf.across.value() == pytest.approx(100.0)
    # Airy disk: 0.51 wavelengths/NA = 190 nm, a little more on pixels of 100 nm
    assert "nm across" in form.psf.words.text()
    width = float(form.psf.words.text().split(": ")[1].split(" nm")[0])
    assert 185 < width < 260
    form.psf.na.setValue(0.7)
    assert not form.button.isEnabled()  # until the new one is there
    qtbot.waitUntil(lambda: form.psf.psf is not None, timeout=WAIT)
    assert float(form.psf.words.text().split(": ")[1].split(" nm")[0]) > 1.5 * width
    choose(form.where, "slice")
    form.draws.setValue(2)
    form.steps.setValue(3)
    (layer,) = press(form)
    assert layer.metadata[METADATA]["provenance"]["operator"]["operator"] == "blur"


def test_a_layer_that_is_known_to_be_a_psf_is_taken(form: RestoreWidget, qtbot: Any, viewer: Any) -> None:
    """As that of the sample data; what the optics are is otherwise said to be a guess until one is given."""
    psf = np.outer(*2 * (np.hanning(9),)).astype(np.float32)
    layer = viewer.add_image(psf / psf.sum(), name="PSF", metadata={METADATA: {"kind": "psf"}})
    assert form.source.layer is viewer.layers["waves"]
    choose(form.task, "psf")
    assert form.button.toolTip() == module.NEEDS_PSF
    qtbot.waitUntil(lambda: form.psf.psf is not None, timeout=WAIT)
    assert (form.psf.source.currentText(), form.psf.kind.currentText()) == ("a layer", "PSF")
    assert form.psf.layer.layer is layer
    assert form.psf.psf.shape[-1] <= 9
    choose(form.psf.source, "optics")
    qtbot.waitUntil(lambda: form.psf.psf is not None, timeout=WAIT)
    assert "usual optics" in form.psf.words.text()
    form.psf.na.setValue(0.9)
    qtbot.waitUntil(lambda: form.psf.psf is not None, timeout=WAIT)
    assert "usual optics" not in form.psf.words.text()


def test_a_psf_fitted_to_the_image_becomes_a_layer(
    form: RestoreWidget, qtbot: Any, viewer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the optics in the fields; a change of the form ends a fit, and a stack's PSF has a layer of its own."""
    monkeypatch.setattr(psf_fit, "EVALUATIONS", 6)
    y = np.linspace(0, np.pi, 64)
    light = np.broadcast_to(2 + 80 * np.sin(y) * np.sin(y)[:, None], (9, 64, 64)).copy()
    light[4, 20:30, 20:30] += 300
    stack = np.random.default_rng(0).poisson(light).astype(np.uint16)
    step = (0.4, 0.2, 0.2)
    image = viewer.add_image(stack, name="beads", scale=step, axis_labels="zyx", units=("um", "um", "um"))
    form.source.box.choose(image)
    choose(form.task, "psf")
    choose(form.psf.source, "optics")
    qtbot.waitUntil(lambda: form.psf.psf is not None, timeout=WAIT)
    form.psf.na.setValue(1.0)
    form.psf.fit.click()
    assert form.psf.psf is None
    assert not form.psf.fit.isEnabled()
    qtbot.waitUntil(lambda: "tried" in form.psf.message.text(), timeout=WAIT)
    form.psf.na.setValue(1.1)  # ends it
    qtbot.waitUntil(lambda: form.psf.fit.isEnabled() and form.psf.psf is not None, timeout=WAIT)
    assert "PSF of beads" not in viewer.layers
    form.psf.fit.click()
    qtbot.waitUntil(lambda: "PSF of beads" in viewer.layers and form.psf.psf is not None, timeout=WAIT)
    layer = viewer.layers["PSF of beads"]
    assert form.psf.layer.layer is layer
    assert (form.psf.source.currentText(), form.psf.kind.currentText()) == ("a layer", "PSF")
    assert form.source.layer is image
    assert "held-out photons" in form.psf.message.text()
    assert volume_from_layer(layer).history[-1]["action"] == "fit PSF"


def test_the_image_is_not_its_own_psf(form: RestoreWidget, qtbot: Any, viewer: Any) -> None:
    """A layer of the image's own name and size is refused, and one that is wider than its box is doubted."""
    choose(form.task, "psf")
    choose(form.psf.source, "layer")
    form.psf.layer.choose(form.source.layer)
    qtbot.waitUntil(lambda: "is the image itself" in form.psf.message.text(), timeout=WAIT)
    assert form.psf.psf is None
    y, x = np.mgrid[-4:5, -4:5]
    broad = viewer.add_image(np.exp(-(x**2 + y**2) / 500).astype(np.float32), name="broad", axis_labels=("y", "x"))
    choose(form.psf.kind, "computed")
    form.psf.layer.choose(broad)
    qtbot.waitUntil(lambda: "Is this the PSF?" in form.psf.message.text(), timeout=WAIT)


def test_a_psf_is_that_of_the_library_to_the_last_digit(form: RestoreWidget, qtbot: Any, viewer: Any) -> None:
    """A prior knows its PSF by a hash: the fields, which round, must not change it; a corrected one does."""
    step = 0.108337
    fine = viewer.add_image(noisy(), name="fine", scale=(1, step, step), axis_labels="tyx", units=("s", "um", "um"))
    form.source.box.choose(fine)
    choose(form.task, "psf")
    qtbot.waitUntil(lambda: form.psf.psf is not None, timeout=WAIT)
    assert form.psf.across.value() == pytest.approx(108.3)
    expected = computed_psf(volume_from_layer(fine), form.psf.optics)
    np.testing.assert_array_equal(form.psf.psf, expected)
    form.psf.across.setValue(109.0)
    qtbot.waitUntil(lambda: form.psf.psf is not None, timeout=WAIT)
    assert not np.array_equal(form.psf.psf, expected)


def test_psf_of_a_layer_and_an_impossible_one(form: RestoreWidget, qtbot: Any, viewer: Any) -> None:
    y, x = np.mgrid[-7:8, -7:8]
    bead = viewer.add_image(1000 * np.exp(-(y**2 + x**2) / 8) + 10, name="bead")
    form.source.box.choose(viewer.layers["waves"])
    choose(form.task, "psf")
    choose(form.psf.source, "layer")
    form.psf.layer.choose(bead)
    qtbot.waitUntil(lambda: form.psf.psf is not None, timeout=WAIT)
    assert form.psf.psf is not None
    assert form.psf.psf.sum() == pytest.approx(1)
    choose(form.psf.source, "optics")
    form.psf.na.setValue(1.69)  # above the index of oil
    qtbot.waitUntil(lambda: "aperture" in form.psf.message.text(), timeout=WAIT)
    assert not form.button.isEnabled()


def test_holes_painted_and_nan(form: RestoreWidget, press: Callable[..., list[Any]], viewer: Any) -> None:
    labels = np.zeros((64, 64), dtype=np.uint8)
    labels[20:30, 20:30] = 1
    painted = viewer.add_labels(labels, name="holes")
    choose(form.task, "holes")
    form.holes.choose(painted)
    choose(form.where, "slice")
    form.draws.setValue(2)
    form.steps.setValue(3)
    (layer,) = press(form)
    assert np.isfinite(layer.data).all()
    assert layer.metadata[METADATA]["provenance"]["operator"]["operator"] == "mask"


Y, X = np.mgrid[-3:4, -3:4]
PSF = np.exp(-(Y**2 + X**2) / 2) / np.exp(-(Y**2 + X**2) / 2).sum()
MEASURED = np.ones((64, 64), bool)
MEASURED[20:30, 20:30] = False


@pytest.fixture(scope="module")
def learned() -> Callable[[Operator, ObjectiveName], Prior]:
    """Return a function that trains a prior through an operator, in a few steps, once."""
    torch.set_num_threads(1)
    tiny = TrainConfig(steps=3, batch=2, patch=(32, 32), validations=1, precision="float32")
    volume = volume_from_layer(Image(noisy(), axis_labels=tuple("tyx"), scale=(1, 0.1, 0.1), units=("s", "um", "um")))
    kept: dict[str, Prior] = {}

    def learn(operator: Operator, objective: ObjectiveName) -> Prior:
        key = f"{objective} {operator.describe()}"
        if key not in kept:
            kept[key] = train(volume, NOISE, operator=operator, objective=objective, config=tiny, device="cpu")
        return kept[key]

    return learn


def give_psf(form: RestoreWidget, qtbot: Any) -> None:
    if "psf" not in form.viewer.layers:
        form.viewer.add_image(PSF, name="psf")
    form.source.box.choose(form.viewer.layers["waves"])
    choose(form.psf.source, "layer")
    choose(form.psf.kind, "computed")
    form.psf.layer.choose(form.viewer.layers["psf"])
    qtbot.waitUntil(lambda: form.psf.psf is not None, timeout=WAIT)


def test_the_priors_own_posterior(
    form: RestoreWidget, press: Callable[..., list[Any]], qtbot: Any, viewer: Any, learned: Any
) -> None:
    """Offered for the task of the training alone; what comes is what the library gives."""
    choose(form.task, "psf")
    assert form.by.isHidden()  # of a prior that was trained on noise alone
    prior = learned(Blur(PSF), "auto")
    assert (prior.record.objective, prior.posterior is None) == ("flow_diff", False)
    priors_of(viewer).add("sharp", prior)
    assert "through blur" in form.prior.words.text()
    give_psf(form, qtbot)
    assert not form.by.isHidden()
    assert form.by.currentData() == "samples"  # the draws, unless the user chooses
    choose(form.by, "amortised")
    assert not form.steps.isEnabled()
    form.error_bars.click()
    form.draws.setValue(3)
    choose(form.where, "slice")
    viewer.dims.set_point(0, 1.0)
    error, mean = press(form)
    record = mean.metadata[METADATA]["provenance"]
    assert (record["method"], record["draws"]) == ("amortised", 3)
    expected = restore_part(
        volume_from_layer(viewer.layers["waves"]),
        prior,
        {"T": slice(1, 2)},
        operator=Blur(PSF),
        method="amortised",
        draws=3,
        device="cpu",
    )
    for layer, output in ((mean, "mean"), (error, "std")):
        values = take_output(expected, output).data.compute(scheduler="synchronous")
        np.testing.assert_allclose(layer.data, values, rtol=1e-5, atol=1e-4)
    # the other tasks know only draws
    for other in ("nothing", "holes", "both"):
        choose(form.task, other)
        assert form.by.isHidden()
        task = form._task(checked=False)
        assert task is not None
        assert task.method == ("samples" if other != "nothing" or form.error_bars.isChecked() else "mean")


def test_another_psf_than_that_of_the_training_is_refused(
    form: RestoreWidget, press: Callable[..., list[Any]], qtbot: Any, viewer: Any, learned: Any
) -> None:
    priors_of(viewer).add("sharp", learned(Blur(PSF), "auto"))
    viewer.add_image(PSF**2, name="psf")
    choose(form.task, "psf")
    give_psf(form, qtbot)
    choose(form.by, "amortised")
    assert press(form) == []
    assert "was trained for another operator" in form.message.text()
    choose(form.by, "samples")
    assert form.button.isEnabled()


def test_a_prior_without_a_flow_gives_the_mean_alone(
    form: RestoreWidget, press: Callable[..., list[Any]], qtbot: Any, viewer: Any, learned: Any
) -> None:
    prior = learned(Blur(PSF), "sure_score")
    assert prior.posterior is None
    priors_of(viewer).add("sharp", prior)
    choose(form.task, "psf")
    give_psf(form, qtbot)
    form.error_bars.click()
    assert form.below.isHidden()
    choose(form.by, "amortised")
    assert form.mean.isChecked()
    assert not form.error_bars.isEnabled()
    assert form.below.text() == module.MEAN_ALONE
    assert form.drawing.isHidden()
    (layer,) = press(form)
    record = layer.metadata[METADATA]["provenance"]
    assert (record["method"], record["outputs"]) == ("amortised", ["mean"])
    # its draws have error bars as before
    choose(form.by, "samples")
    assert form.error_bars.isEnabled()
    assert form.below.isHidden()


@pytest.mark.parametrize("painted", [True, False])
def test_a_prior_of_holed_images_fills_in(
    form: RestoreWidget, press: Callable[..., list[Any]], viewer: Any, learned: Any, painted: bool
) -> None:
    """It knows nothing below the noise, so that nothing but its own answers is offered; also for NaN alone."""
    prior = learned(Mask(MEASURED), "auto")
    assert not prior.knows_below
    priors_of(viewer).add("whole", prior)
    tasks = {form.task.itemData(i): form.task.model().item(i).isEnabled() for i in range(form.task.count())}
    assert tasks == {"nothing": True, "psf": False, "holes": True, "both": False}
    choose(form.task, "holes")
    assert form.by.currentData() == "amortised"
    assert not form.by.model().item(0).isEnabled()
    assert "“Fill in holes”" in form.below.text()
    holed = np.where(MEASURED, noisy(), np.nan).astype(np.float32)
    values = holed if painted else np.nan_to_num(holed, nan=60000.0)
    where = {"scale": (1, 0.1, 0.1), "axis_labels": "tyx", "units": ("s", "um", "um")}
    form.source.box.choose(viewer.add_image(values, name="holed", **where))
    if not painted:  # a mask, 0 where nothing was measured
        form.holes.choose(viewer.add_image(MEASURED.astype(np.uint8), name="mask"))
        assert not form.holes_are.isHidden()
        choose(form.holes_are, False)
    (layer,) = press(form)
    assert np.isfinite(layer.data).all()
    # what the holes held is not looked at, and the rest is the same either way
    assert layer.data[:, ~MEASURED].max() < 200
    volume = volume_from_layer(viewer.layers["holed"])
    expected = restore(volume, prior, operator=Mask(MEASURED), method="amortised", outputs=["mean"], device="cpu")
    np.testing.assert_allclose(layer.data, expected.data.compute(scheduler="synchronous")[:, 0], rtol=1e-5)


def test_blur_and_holes_together(form: RestoreWidget, press: Callable[..., list[Any]], qtbot: Any, viewer: Any) -> None:
    choose(form.task, "both")
    assert not form.button.isEnabled()  # without a PSF
    give_psf(form, qtbot)
    form.holes.choose(viewer.add_labels((~MEASURED).astype(np.uint8), name="holes"))
    choose(form.where, "slice")
    form.draws.setValue(2)
    form.steps.setValue(2)
    (layer,) = press(form)
    record = layer.metadata[METADATA]["provenance"]
    assert record["operator"] == (Mask(MEASURED) @ Blur(PSF)).to_dict()


def test_several_selected_layers(form: RestoreWidget, press: Callable[..., list[Any]], viewer: Any) -> None:
    viewer.add_image(noisy((2, 40, 40)), name="second", axis_labels="tyx", units=("s", "um", "um"), scale=(1, 0.1, 0.1))
    assert form.others.isHidden()
    form.source.box.choose(viewer.layers["waves"])
    viewer.layers.selection = {viewer.layers["waves"], viewer.layers["second"]}
    assert not form.others.isHidden()
    form.others.click()
    names = [layer.name for layer in press(form)]
    assert names == ["waves restored", "second restored"]


def test_two_forms_share_nothing(form: RestoreWidget, viewer: Any) -> None:
    other = RestoreWidget(viewer)
    viewer.window.add_dock_widget(other, name="Restore 2")
    other.error_bars.click()
    other.draws.setValue(3)
    choose(other.where, "slice")
    assert form.mean.isChecked()
    assert (form.draws.value(), form.where.currentData()) == (8, "whole")
