"""The forms: what they understand, what they ask, and that they follow the viewer and the session."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.layers import Image
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel

from napari_ambient.samples import sample_folder
from napari_ambient.widgets._forms import LayerBox, PriorBox, SourceForm, describe_prior, fold
from napari_ambient.widgets._layers import LayerError
from napari_ambient.widgets._session import PriorList, priors_of


def texts(box: Any) -> list[str]:
    """Read the entries of a combo box."""
    return [box.itemText(i) for i in range(box.count())]


@pytest.fixture
def heard() -> list[int]:
    return []


@pytest.fixture
def model() -> Any:
    """Return a viewer without a window: the forms need its layers alone."""
    from napari.components import ViewerModel

    return ViewerModel()


# ------------------------------------------------------------------------------------------- layers


def test_layers_come_go_and_are_renamed(model: Any, qtbot: Any, heard: list[int]) -> None:
    box = LayerBox(model)
    qtbot.addWidget(box)
    box.changed.connect(lambda: heard.append(1))
    assert box.layer is None
    first = model.add_image(np.zeros((8, 8)), name="a")
    assert (box.layer, texts(box), heard) == (first, ["a"], [1])
    second = model.add_image(np.zeros((8, 8)), name="b")
    model.add_labels(np.zeros((8, 8), int))
    assert texts(box) == ["b", "a"]  # the newest first
    assert box.layer is first  # what was chosen stays
    assert heard == [1]
    first.name = "cells"
    assert (texts(box), box.currentText()) == (["b", "cells"], "cells")
    model.layers.remove(first)
    assert (box.layer, heard) == (second, [1, 1])
    model.layers.clear()
    assert (box.layer, box.count(), heard) == (None, 0, [1, 1, 1])


def test_images_of_our_own_are_not_chosen_by_themselves(model: Any, qtbot: Any) -> None:
    """The selected measurement, else the newest; never a result or a preview, though both are in the list."""
    made = {"history": [{"action": "restore"}], "axes": "YX"}
    box = LayerBox(model)
    qtbot.addWidget(box)
    result = model.add_image(np.zeros((8, 8)), name="restored", metadata={"napari_ambient": made})
    model.add_image(np.zeros((8, 8)), name="preview", metadata={"napari_ambient": {"preview": True}})
    assert (box.layer, texts(box), box.placeholderText()) == (None, ["preview", "restored"], "choose the Image layer")
    old = model.add_image(np.zeros((8, 8)), name="old")
    assert box.layer is old
    new = model.add_image(np.zeros((8, 8)), name="new", metadata={"napari_ambient": {"axes": "YX"}})
    for active, expected in ((old, old), (result, new), (None, new)):
        model.layers.selection.active = active
        later = LayerBox(model)
        qtbot.addWidget(later)
        assert later.layer is expected
    # the user may choose otherwise
    box.choose(result)
    assert box.layer is result


def test_an_optional_layer_is_none_at_first(model: Any, qtbot: Any) -> None:
    shapes = model.add_shapes([[[1, 1], [1, 4], [4, 4], [4, 1]]], name="region")
    box = LayerBox(model, "shapes", none="whole image")
    qtbot.addWidget(box)
    assert (texts(box), box.layer) == (["whole image", "region"], None)
    box.choose(shapes)
    assert box.layer is shapes
    model.add_shapes(name="other")
    assert box.layer is shapes
    box.choose(None)
    assert box.layer is None


def test_a_box_lets_the_viewer_go(model: Any, qtbot: Any) -> None:
    emitter = model.layers.events.inserted
    before = len(emitter.callbacks)
    box = LayerBox(model)
    assert len(emitter.callbacks) == before + 1
    box.deleteLater()
    qtbot.wait(10)
    model.add_image(np.zeros((8, 8)))  # the Python half still lives
    assert len(emitter.callbacks) == before
    del box


def test_two_boxes_share_nothing(model: Any, qtbot: Any) -> None:
    one, two = LayerBox(model), LayerBox(model)
    for box in (one, two):
        qtbot.addWidget(box)
    a, b = model.add_image(np.zeros((8, 8))), model.add_image(np.zeros((8, 8)))
    one.choose(b)
    assert (one.layer, two.layer) == (b, a)


# ------------------------------------------------------------------------------------------- source


@pytest.fixture
def form(model: Any, qtbot: Any) -> SourceForm:
    form = SourceForm(model)
    qtbot.addWidget(form)
    form.show()
    return form


def test_nothing_is_chosen_at_first(form: SourceForm) -> None:
    assert form.volumes() == []
    assert not form.ready
    assert "Open an image" in form.words.text()


def test_a_layer_that_says_its_axes_is_described_in_words(form: SourceForm, model: Any) -> None:
    layer = model.add_image(
        np.zeros((3, 4, 16, 12)),
        axis_labels=("t", "z", "y", "x"),
        scale=(1, 0.2, 0.1, 0.1),
        units=("s", "um", "um", "um"),
    )
    assert form.words.text() == "T = 3, Z = 4, 16 × 12, 0.2 × 0.1 × 0.1 µm"
    assert form.layer is layer
    assert form.ready
    assert not form.fields.isVisible()
    (volume,) = form.volumes()
    assert volume.voxel_size == {"Z": 0.2, "Y": 0.1, "X": 0.1}
    assert volume.scale["T"] == 1


def test_axes_that_are_not_known_are_asked_for(form: SourceForm, model: Any, qtbot: Any) -> None:
    layer = model.add_image(np.zeros((4, 16, 12)), name="stack")
    assert "axes" in form.words.text()
    assert form.fields.isVisible()  # without a click
    assert not form.ready
    with pytest.raises(LayerError, match="does not say what its axes are"):
        form.volumes()
    form.axes_box.setCurrentIndex([text[:3] for text in texts(form.axes_box)].index("TYX"))
    assert form.ready
    assert form.volumes()[0].axes == "TYX"
    assert form.words.text() == "T = 4, 16 × 12, voxel size unknown"
    # another form does not ask again
    other = SourceForm(model)
    qtbot.addWidget(other)
    assert other.axes == "TYX"
    assert other.layer is layer


def test_the_voxel_size_is_edited_in_micrometres(form: SourceForm, model: Any, qtbot: Any, heard: list[int]) -> None:
    model.add_image(np.zeros((4, 16, 12)), axis_labels=("z", "y", "x"))
    form.edit.click()
    assert form.fields.isVisible()
    form.changed.connect(lambda: heard.append(1))
    for axis, text in (("Z", "0.3"), ("Y", "0.1"), ("X", "0.1")):
        form.sizes[axis].clear()
        qtbot.keyClicks(form.sizes[axis], text)
        qtbot.keyClick(form.sizes[axis], Qt.Key.Key_Return)
    assert form.words.text() == "Z = 4, 16 × 12, 0.3 × 0.1 × 0.1 µm"
    assert form.volumes()[0].voxel_size == {"Z": 0.3, "Y": 0.1, "X": 0.1}
    assert len(heard) == 3
    qtbot.keyClicks(form.sizes["Z"], "x-")  # no number: not taken
    assert form.sizes["Z"].text() == "0.3"


def test_a_plane_has_no_depth_field(form: SourceForm, model: Any) -> None:
    model.add_image(np.zeros((16, 12)))
    form.edit.click()
    assert not form.sizes["Z"].isVisible()
    assert form.sizes["Y"].isVisible()


def test_a_colour_picture_is_refused_with_the_reason(form: SourceForm, model: Any) -> None:
    model.add_image(np.zeros((16, 12, 3), np.uint8), rgb=True)
    assert not form.ready
    with pytest.raises(LayerError, match="colour picture"):
        form.volumes()


def test_a_change_of_the_layer_is_seen(form: SourceForm, model: Any, heard: list[int]) -> None:
    layer = model.add_image(np.zeros((16, 12)))
    form.changed.connect(lambda: heard.append(1))
    layer.scale = (0.2, 0.1)
    assert form.words.text() == "16 × 12, 0.2 × 0.1 µm"
    assert heard


def test_files_are_looked_at_off_the_qt_thread(form: SourceForm, model: Any, qtbot: Any) -> None:
    layer = model.add_image(np.zeros((16, 12)))
    form.set_files([sample_folder() / "filaments_2d*.tif"])
    assert form.reading
    assert form.layer is None
    with pytest.raises(LayerError, match="wait a moment"):
        form.volumes()
    qtbot.waitUntil(lambda: form.ready, timeout=5000)
    assert [volume.shape for volume in form.volumes()] == [(16, 256, 256)] * 2
    assert form.words.text() == "T = 16, 256 × 256, 0.065 × 0.065 µm"
    assert form.axes == "TYX"
    form.back.click()
    assert (form.layer, form.files) == (layer, [])
    assert form.ready


def test_files_without_axes_are_asked_for(form: SourceForm, qtbot: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 16, 12), np.uint16))
    form.set_files([tmp_path / "a.npy"])
    qtbot.waitUntil(lambda: not form.reading, timeout=5000)
    assert "Possible axes" in form.message.text()
    assert form.fields.isVisible()
    with pytest.raises(ValueError, match="Possible axes"):
        form.volumes()
    form.axes_box.setCurrentIndex([text[:3] for text in texts(form.axes_box)].index("ZYX"))
    qtbot.waitUntil(lambda: form.ready, timeout=5000)
    assert form.volumes()[0].axes == "ZYX"
    assert not form.message.isVisible()
    form.sizes["Z"].setText("0.5")
    form.sizes["Z"].setModified(True)
    form.sizes["Z"].editingFinished.emit()
    qtbot.waitUntil(lambda: form.ready, timeout=5000)
    assert form.volumes()[0].voxel_size["Z"] == 0.5


def test_files_that_are_not_there(form: SourceForm, qtbot: Any, tmp_path: Path) -> None:
    form.set_files([tmp_path / "*.tif"])
    qtbot.waitUntil(lambda: not form.reading, timeout=5000)
    assert "no image found" in form.message.text()
    assert not form.ready


# ------------------------------------------------------------------------------------------- priors


@pytest.fixture(scope="module")
def small_prior() -> Any:
    """Return a prior that was never trained: what it says of itself is enough."""
    from napari_ambient.denoiser import Denoiser, Scale
    from napari_ambient.networks.unet import UNet, UNetArguments
    from napari_ambient.noise import NoiseModel
    from napari_ambient.prior import Prior, Record

    network = UNet(UNetArguments(widths=(8,), strides=((2, 2),)))
    record = Record("ambient", "thinning", "TYX", {"Y": 0.1, "X": 0.1}, step=3000)
    return Prior(Denoiser(network, [Scale(0.0, 1.0)]), (NoiseModel(gain=2.0, intercept=-200.0),), record)


@pytest.fixture
def priors(model: Any, qtbot: Any) -> PriorBox:
    box = PriorBox(model)
    qtbot.addWidget(box)
    return box


def test_a_trained_prior_is_there_at_once(priors: PriorBox, model: Any, small_prior: Any, heard: list[int]) -> None:
    assert priors.prior is None
    priors.changed.connect(lambda: heard.append(1))
    priors_of(model).add("filaments", small_prior)
    assert priors.prior is small_prior
    assert (priors.name, priors.path) == ("filaments", None)
    assert priors.words.text() == describe_prior(small_prior) == "2D · thinning · 3000 steps · error bars: no"
    assert heard == [1]


def test_a_prior_on_disk_is_read_off_the_qt_thread(
    priors: PriorBox, small_prior: Any, qtbot: Any, tmp_path: Path, largest_gap: Callable[..., float]
) -> None:
    path = small_prior.save(tmp_path / "cells.prior")
    priors.open(path)
    assert priors.loading
    assert priors.prior is None
    qtbot.waitUntil(lambda: priors.prior is not None, timeout=10_000)
    assert priors.prior.sha256 == small_prior.sha256
    assert priors.path == path
    assert "2D · thinning" in priors.words.text()


def test_a_damaged_prior_is_refused_with_the_reason(
    priors: PriorBox, small_prior: Any, qtbot: Any, tmp_path: Path
) -> None:
    path = small_prior.save(tmp_path / "cells.prior")
    (path / "weights.safetensors").write_bytes(b"0")
    priors.open(path)
    qtbot.waitUntil(lambda: not priors.loading, timeout=10_000)
    assert priors.prior is None
    assert "damaged" in priors.words.text()


def test_the_newest_is_chosen_until_the_user_chooses(priors: PriorBox, model: Any, small_prior: Any) -> None:
    known = priors_of(model)
    known.add("a", small_prior)
    known.add("b", small_prior)
    assert priors.name == "b"
    priors.box.activated.emit(0)
    assert priors.name == "a"
    known.add("c", small_prior)
    assert priors.name == "a"
    assert texts(priors.box) == ["a", "b", "c"]


def test_a_prior_trained_further_takes_its_own_place(priors: PriorBox, model: Any, small_prior: Any) -> None:
    from dataclasses import replace

    known = priors_of(model)
    known.add("a", small_prior)
    further = replace(small_prior, record=replace(small_prior.record, step=5000))
    known.add("a", further)
    assert len(known) == 1
    assert priors.prior is further
    assert "5000 steps" in priors.words.text()


def test_each_viewer_has_its_own_priors(model: Any, small_prior: Any) -> None:
    from napari.components import ViewerModel

    other = ViewerModel()
    priors_of(model).add("a", small_prior)
    assert (len(priors_of(model)), len(priors_of(other))) == (1, 0)
    assert priors_of(model) is priors_of(model)


def test_a_proxy_of_the_viewer_has_the_same_list(make_napari_viewer_proxy: Any, small_prior: Any) -> None:
    viewer = make_napari_viewer_proxy(show=False)
    priors_of(viewer).add("a", small_prior)
    assert [each.name for each in priors_of(viewer.__wrapped__)] == ["a"]


def test_the_list_goes_with_the_viewer(small_prior: Any) -> None:
    import weakref

    from napari.components import ViewerModel

    viewer = ViewerModel()
    known: Any = weakref.ref(priors_of(viewer))
    assert isinstance(known(), PriorList)
    del viewer
    gc.collect()
    assert known() is None


def test_a_name_alone_is_no_prior(model: Any) -> None:
    with pytest.raises(ValueError, match="no prior bundle"):
        priors_of(model).add("nowhere")


# ------------------------------------------------------------------------------------------- fold


def test_fold(qtbot: Any) -> None:
    inside = QLabel("inside")
    folded = fold("Advanced", inside)
    qtbot.addWidget(folded)
    folded.show()
    assert not inside.isVisible()
    qtbot.mouseClick(folded.button, Qt.MouseButton.LeftButton)
    assert inside.isVisible()
    assert "Advanced" in folded.button.text()


def test_layers_of_a_proxied_viewer(make_napari_viewer_proxy: Any, qtbot: Any) -> None:
    # what a plugin is given by napari
    viewer = make_napari_viewer_proxy(show=False)
    form = SourceForm(viewer)
    qtbot.addWidget(form)
    layer = viewer.add_image(np.zeros((16, 12)), name="cells")
    assert form.layer == layer
    assert isinstance(form.layer, Image)
    viewer.add_image(np.zeros((16, 12)), name="more")
    assert form.layer == layer
    assert form.ready
    assert form.volumes()[0].shape == (16, 12)
