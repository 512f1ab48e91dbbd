"""Sample as a user drives it: a sheet at one contrast, crops as said, the audit with its verdict and picture."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qtpy.QtCore import Qt

from napari_ambient import TrainConfig, train
from napari_ambient.denoiser import Denoiser, Scale
from napari_ambient.networks.unet import UNet, UNetArguments
from napari_ambient.noise import NoiseModel
from napari_ambient.operators import Blur, Downsample, Mask, Operator
from napari_ambient.prior import Prior, Record
from napari_ambient.sample_sheet import training_crops
from napari_ambient.widgets import _psf
from napari_ambient.widgets._layers import volume_from_layer
from napari_ambient.widgets._session import priors_of
from napari_ambient.widgets.sample import COMPUTING, MARGIN, VERDICTS, SampleWidget

LEFT = Qt.MouseButton.LeftButton
WAIT = 30_000
"""Milliseconds; torch alone takes seconds to load on a busy machine."""
FLAT = UNetArguments(widths=(8, 8, 8))
SOLID = UNetArguments(dims=3, widths=(6, 6), strides=((1, 2, 2), (2, 2, 2)))


def make_prior(arguments: UNetArguments = FLAT, *, below: str = "virtual_exposures") -> Prior:
    torch.manual_seed(0)
    network = UNet(arguments)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    denoiser = Denoiser(network, [Scale(3.5, 1.2)])
    denoiser.requires_grad_(False)
    config = {"steps": 3, "below": below, "below_steps": 3}
    noise = NoiseModel(gain=2.0, intercept=-200.0, photons=4.0)
    sizes = {"Z": 0.3, "Y": 0.1, "X": 0.1}
    return Prior(denoiser, (noise,), Record("ambient", "thinning", "TYX", sizes, config=config, step=6))


def counts(shape: tuple[int, ...]) -> np.ndarray:
    """Blobs, so that patches have structure."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape[-2:]), indexing="ij"))
    rate = np.full(shape, 1.0)
    for image in rate.reshape(-1, *shape[-2:]):
        for centre in rng.uniform(0, shape[-1], (12, 2)):
            image += 12 * np.exp(-((grid - centre[:, None, None]) ** 2).sum(0) / 18)
    return (100 + 2 * rng.poisson(rate)).astype(np.uint16)


@pytest.fixture
def sample(viewer: Any, qtbot: Any) -> SampleWidget:
    """Return a Sample form with a prior and a training layer."""
    viewer.add_image(
        counts((4, 64, 64)),
        name="cells",
        axis_labels=("t", "y", "x"),
        scale=(1, 0.1, 0.1),
        units=("second", "micrometer", "micrometer"),
    )
    widget = SampleWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Sample")
    priors_of(viewer).add("cells.prior", make_prior())
    qtbot.waitUntil(lambda: widget.draw.isEnabled() and widget.training.ready, timeout=WAIT)
    widget.count.setValue(3)
    widget.size.setValue(24)
    widget.steps.setValue(3)
    return widget


def test_a_sheet_at_one_contrast(sample: SampleWidget, viewer: Any, qtbot: Any) -> None:
    """New images as the library draws them, beside as many crops, titled, between the same linked limits."""
    qtbot.mouseClick(sample.draw, LEFT)
    qtbot.waitUntil(lambda: sample._job is None, timeout=WAIT)
    assert [layer.name for layer in viewer.layers] == [
        "cells",
        "New images from the prior",
        "Training crops, denoised",
        "titles",
    ]
    cells, new, crops, titles = viewer.layers
    assert not cells.visible
    expected = make_prior().sample((24, 24), count=3, steps=3)
    # float32 sums in another order: the network was moved to the layout that its convolutions like best
    np.testing.assert_allclose(new.data[:24, :24], expected[0], rtol=1e-5)
    assert int(np.isfinite(new.data).sum()) == int(np.isfinite(crops.data).sum()) == 3 * 24 * 24
    assert new.contrast_limits == crops.contrast_limits
    new.contrast_limits = (100.0, 120.0)
    assert tuple(crops.contrast_limits) == (100.0, 120.0)
    assert list(titles.text.string.array) == ["New images", "Training crops, denoised"]
    np.testing.assert_allclose(new.scale, [0.1, 0.1])
    # the blocks do not overlap, and both begin at the same height
    assert crops.extent.world[0][1] > new.extent.world[1][1]
    assert crops.extent.world[0][0] == new.extent.world[0][0]
    assert new.metadata["napari_ambient"]["provenance"]["action"] == "sample"
    assert "hidden, not removed" in sample.message.text()


def test_the_view_is_on_the_sheet(sample: SampleWidget, viewer: Any, qtbot: Any) -> None:
    """Not on a large layer that is hidden."""
    big = viewer.add_image(np.zeros((600, 600), np.uint8), name="big", scale=(0.1, 0.1), units="micrometer")
    viewer.reset_view()
    far = viewer.scene.camera.zoom
    sample.count.setValue(4)
    qtbot.mouseClick(sample.draw, LEFT)
    qtbot.waitUntil(lambda: sample._job is None, timeout=WAIT)
    assert not big.visible
    near, centre = viewer.scene.camera.zoom, viewer.scene.camera.center[-2:]
    assert near > 2 * far
    for layer in [layer for layer in viewer.layers if not layer.visible]:
        viewer.layers.remove(layer)
    viewer.reset_view(margin=MARGIN)  # what napari does where there is nothing else
    assert viewer.scene.camera.zoom == pytest.approx(near, rel=0.05)  # the titles are layers too
    np.testing.assert_allclose(viewer.scene.camera.center[-2:], centre, atol=0.2)


def test_drawing_again_replaces_the_sheet(sample: SampleWidget, viewer: Any, qtbot: Any) -> None:
    for value in ("denoised", "raw", None):
        sample.shown.setCurrentIndex(sample.shown.findData(value))
        qtbot.mouseClick(sample.draw, LEFT)
        qtbot.waitUntil(lambda: sample._job is None, timeout=WAIT)
        names = [layer.name for layer in viewer.layers]
        crops = [] if value is None else [f"Training crops, {value}"]
        assert names == ["cells", "New images from the prior", *crops, "titles"]


def test_another_seed_fills_the_same_layers(sample: SampleWidget, viewer: Any, qtbot: Any) -> None:
    """Layers, which take long to add, are kept where the new images fit; contrast and record follow."""
    qtbot.mouseClick(sample.draw, LEFT)
    qtbot.waitUntil(lambda: sample._job is None, timeout=WAIT)
    before, first = list(viewer.layers), viewer.layers[1].data.copy()
    sample.seed.setValue(7)
    qtbot.mouseClick(sample.draw, LEFT)
    qtbot.waitUntil(lambda: sample._job is None, timeout=WAIT)
    assert list(viewer.layers) == before
    np.testing.assert_allclose(before[1].data[:24, :24], make_prior().sample((24, 24), steps=3, seed=7)[0], rtol=1e-5)
    assert not np.array_equal(before[1].data, first, equal_nan=True)
    assert before[1].metadata["napari_ambient"]["provenance"]["seed"] == 7


def test_stacks_from_a_3d_prior(viewer: Any, qtbot: Any) -> None:
    """A 3D prior gives stacks, with planes along the slider."""
    widget = SampleWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Sample")
    priors_of(viewer).add("solid.prior", make_prior(SOLID))
    qtbot.waitUntil(lambda: widget.draw.isEnabled(), timeout=WAIT)
    assert not widget.depth.isHidden()
    for box, value in ((widget.count, 2), (widget.size, 16), (widget.depth, 8), (widget.steps, 2)):
        box.setValue(value)
    qtbot.mouseClick(widget.draw, LEFT)
    qtbot.waitUntil(lambda: widget._job is None, timeout=WAIT)
    new = viewer.layers["New images from the prior"]
    assert new.data.shape[0] == 8
    np.testing.assert_allclose(new.scale, [0.3, 0.1, 0.1])
    assert "choose the training data" in widget.message.text()


def test_a_prior_without_the_stage_below(sample: SampleWidget, viewer: Any) -> None:
    """It says why it cannot, and what to do; another prior makes it possible again."""
    good = next(iter(priors_of(viewer)))
    sample.prior.choose(priors_of(viewer).add("ambient.prior", make_prior(below="none")))
    assert not sample.draw.isEnabled()
    assert not sample.audit.isEnabled()
    assert "no new images" in sample.message.text()
    assert "tick “Error bars too”" in sample.message.text()
    sample.prior.choose(good)
    assert sample.draw.isEnabled()
    assert sample.message.text() == ""


def test_cancel_within_a_second(sample: SampleWidget, viewer: Any, qtbot: Any) -> None:
    """What was drawn stays."""
    sample.count.setValue(64)
    sample.size.setValue(64)
    sample.steps.setValue(200)
    qtbot.mouseClick(sample.draw, LEFT)
    qtbot.waitUntil(lambda: "drawing" in sample.bar.label.text(), timeout=WAIT)
    begin = time.perf_counter()
    qtbot.mouseClick(sample.bar.button, LEFT)
    qtbot.waitUntil(lambda: sample._job is None, timeout=WAIT)
    assert time.perf_counter() - begin < 1.0
    assert "New images from the prior" in [layer.name for layer in viewer.layers]
    assert sample.message.text() == "Cancelled."
    assert sample.draw.isEnabled()


def test_a_removed_layer_does_not_hurt(sample: SampleWidget, viewer: Any, qtbot: Any) -> None:
    """Layers of the sheet that the user deletes while it is drawn are left alone."""
    sample.count.setValue(6)
    qtbot.mouseClick(sample.draw, LEFT)
    qtbot.waitUntil(lambda: "titles" in [layer.name for layer in viewer.layers], timeout=WAIT)
    viewer.layers.remove("Training crops, denoised")
    qtbot.waitUntil(lambda: sample._job is None, timeout=WAIT)
    qtbot.mouseClick(sample.draw, LEFT)
    qtbot.waitUntil(lambda: sample._job is None, timeout=WAIT)
    assert len(viewer.layers) == 4


def test_the_audit_says_its_verdict(sample: SampleWidget, qtbot: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """In words and as a picture, which can be enlarged and saved."""
    qtbot.mouseClick(sample.audit, LEFT)
    qtbot.waitUntil(lambda: sample._job is None, timeout=WAIT)
    assert sample.message.text() == ""
    assert sample.verdict.title.text() in [words for words, _ in VERDICTS.values()]
    assert "nothing was held out" in sample.verdict.sentence.text()
    if not sample.verdict._png:
        pytest.fail("random images have structure: there must be pairs")
    dialog = sample.verdict.open_picture()
    monkeypatch.setattr(
        "napari_ambient.widgets.sample.QFileDialog.getSaveFileName", lambda *_: (str(tmp_path / "pairs.png"), "")
    )
    sample.verdict._save()
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")
    dialog.close()


def test_the_audit_can_be_cancelled_and_needs_data(sample: SampleWidget, viewer: Any, qtbot: Any) -> None:
    sample.steps.setValue(400)
    qtbot.mouseClick(sample.audit, LEFT)
    qtbot.waitUntil(lambda: "drawing" in sample.bar.label.text(), timeout=WAIT)
    begin = time.perf_counter()
    qtbot.mouseClick(sample.bar.button, LEFT)
    qtbot.waitUntil(lambda: sample._job is None, timeout=WAIT)
    assert time.perf_counter() - begin < 1.0
    assert sample.verdict.isHidden()
    viewer.layers.clear()
    qtbot.mouseClick(sample.audit, LEFT)
    assert "Choose the training data" in sample.message.text()


def test_held_out_data_are_other_data(sample: SampleWidget, viewer: Any, qtbot: Any) -> None:
    """What was trained on cannot stand for what the prior has not seen."""
    assert not sample.held_out.isVisibleTo(sample)
    sample.use_held_out.setCurrentIndex(1)
    sample.held_out.box.choose(viewer.layers["cells"])
    qtbot.mouseClick(sample.audit, LEFT)
    assert "must be other images" in sample.message.text()
    assert sample._job is None
    other = viewer.add_image(counts((4, 64, 64))[:, ::-1], name="other", axis_labels=("t", "y", "x"))
    sample.held_out.box.choose(other)
    qtbot.mouseClick(sample.audit, LEFT)
    qtbot.waitUntil(lambda: sample._job is None, timeout=WAIT)
    assert sample.message.text() == ""
    assert "nothing was held out" not in sample.verdict.sentence.text()


LINE = np.exp(-(np.linspace(-2, 2, 5) ** 2))
PSF = np.outer(LINE, LINE) / LINE.sum() ** 2
HOLES = np.zeros((64, 64), np.uint8)
HOLES[20:30, 20:30] = 1


def learn(sample: SampleWidget, operator: Operator) -> Prior:
    """Train through an operator in a few steps, and choose what comes of it."""
    torch.set_num_threads(1)
    config = TrainConfig(steps=2, batch=2, patch=(32, 32), validations=1, precision="float32")
    noise = NoiseModel(gain=2.0, intercept=-200.0, photons=4.0)
    volume = volume_from_layer(sample.viewer.layers["cells"])
    prior = train(volume, noise, operator=operator, objective="em", config=config, device="cpu")
    sample.prior.choose(priors_of(sample.viewer).add("learned", prior))
    return prior


@pytest.mark.parametrize(
    ("operator", "asked"),
    [(Blur(PSF), "give the PSF"), (Mask(HOLES == 0), "give the mask"), (Mask(HOLES == 0) @ Blur(PSF), "PSF and the")],
    ids=["blur", "holes", "both"],
)
def test_a_prior_learned_through_an_operator(
    sample: SampleWidget, qtbot: Any, monkeypatch: pytest.MonkeyPatch, operator: Operator, asked: str
) -> None:
    """It is asked for what the images went through; crops and audit are then those of the library through the same."""
    monkeypatch.setattr(_psf, "WAIT", 0)
    viewer, through = sample.viewer, sample.through
    assert sample.learned_through.isHidden()  # only noisy
    psf, painted = viewer.add_image(PSF, name="psf"), viewer.add_labels(HOLES, name="painted")
    sample.training.box.choose(viewer.layers["cells"])
    prior = learn(sample, operator)
    blurred, holed = through.blurred, through.holed
    assert (blurred, holed) == ("PSF" in asked, "mask" in asked or "and" in asked)
    assert not sample.learned_through.isHidden()
    assert asked in sample.learned.text()
    assert through.box.isHidden()  # what happened is known; with what is asked
    if blurred:
        through.psf.source.setCurrentIndex(through.psf.source.findData("layer"))
        through.psf.layer.choose(None)
        qtbot.waitUntil(lambda: not through.psf.computing, timeout=WAIT)
    for button in (sample.draw, sample.audit):
        qtbot.mouseClick(button, LEFT)
        assert sample._job is None
        assert "of this prior's training" in sample.message.text()
    if blurred:
        through.psf.kind.setCurrentIndex(through.psf.kind.findData("computed"))
        through.psf.layer.choose(psf)
        assert sample._lacking() == COMPUTING
        qtbot.waitUntil(lambda: through.psf.psf is not None, timeout=WAIT)
    if holed:
        through.mask.choose(painted)
    assert sample._lacking() == ""
    qtbot.mouseClick(sample.draw, LEFT)
    qtbot.waitUntil(lambda: sample._job is None, timeout=WAIT)
    crops = viewer.layers["Training crops, denoised"]
    volume = volume_from_layer(viewer.layers["cells"])
    expected = list(training_crops([volume], prior, (24, 24), count=3, operator=operator, device="cpu"))
    np.testing.assert_allclose(crops.data[:24, :24], expected[0], rtol=1e-4)
    # not what was measured: the negative control of the comparison
    raw = next(training_crops([volume], prior, (24, 24), count=1, shown="raw"))
    assert np.abs(raw - expected[0]).max() > 1.0
    qtbot.mouseClick(sample.audit, LEFT)
    qtbot.waitUntil(lambda: sample._job is None, timeout=WAIT)
    assert sample.message.text() == ""
    assert sample.verdict.title.text() in [words for words, _ in VERDICTS.values()]
    # another prior asks for nothing
    sample.prior.choose(priors_of(viewer).add("noisy", make_prior()))
    assert sample.learned_through.isHidden()
    assert sample._lacking() == ""


def test_another_psf_or_an_operator_without_fields(
    sample: SampleWidget, viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said in words: which operator it must be, and what can be done without."""
    monkeypatch.setattr(_psf, "WAIT", 0)
    through, psf = sample.through, viewer.add_image(PSF**2, name="psf")
    sample.training.box.choose(viewer.layers["cells"])
    learn(sample, Blur(PSF))
    through.psf.source.setCurrentIndex(through.psf.source.findData("layer"))
    through.psf.layer.choose(psf)
    qtbot.waitUntil(lambda: through.psf.psf is not None, timeout=WAIT)
    qtbot.mouseClick(sample.audit, LEFT)
    qtbot.waitUntil(lambda: sample._job is None, timeout=WAIT)
    assert "trained for another operator" in sample.message.text()
    learn(sample, Downsample(2))
    assert "learned through downsample" in sample.learned.text()
    assert through.isHidden()
    for button in (sample.draw, sample.audit):
        qtbot.mouseClick(button, LEFT)
        assert sample._job is None
        assert "no fields" in sample.message.text()
    sample.shown.setCurrentIndex(sample.shown.findData("raw"))
    qtbot.mouseClick(sample.draw, LEFT)
    qtbot.waitUntil(lambda: sample._job is None, timeout=WAIT)
    assert "Training crops, raw" in [layer.name for layer in viewer.layers]


def test_an_error_is_shown_and_leaves_the_form_usable(
    sample: SampleWidget, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Prior, "iter_sample", fail)
    qtbot.mouseClick(sample.draw, LEFT)
    qtbot.waitUntil(lambda: sample._job is None, timeout=WAIT)
    assert "Out of memory" in sample.message.text()
    assert sample.draw.isEnabled()
