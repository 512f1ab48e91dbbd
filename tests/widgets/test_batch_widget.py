"""Batch as a user drives it: files dropped, states in the table, errors, skipping, cancelling, opening results."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from qtpy.QtCore import QMimeData, QPointF, Qt, QUrl
from qtpy.QtGui import QDropEvent

from napari_ambient import restore
from napari_ambient.denoiser import Denoiser, Scale
from napari_ambient.networks.unet import UNet, UNetArguments
from napari_ambient.noise import NoiseModel
from napari_ambient.prior import Prior, Record
from napari_ambient.recalibration import measure_spread
from napari_ambient.volumes import open_volume
from napari_ambient.widgets._file_table import FRACTION, IMAGE, STATE, FileTable, FileView
from napari_ambient.widgets._session import priors_of
from napari_ambient.widgets.batch import BatchWidget, Reading

LEFT = Qt.MouseButton.LeftButton
WAIT = 30_000
"""Milliseconds; torch alone takes seconds to load on a busy machine."""


def make_prior(*, below: str = "virtual_exposures") -> Prior:
    torch.manual_seed(0)
    network = UNet(UNetArguments(widths=(8, 8, 8)))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    denoiser = Denoiser(network, [Scale(3.5, 1.2)])
    denoiser.requires_grad_(False)
    config = {"steps": 3, "below": below, "below_steps": 3}
    noise = NoiseModel(gain=2.0, intercept=-200.0, photons=4.0)
    return Prior(denoiser, (noise,), Record("ambient", "thinning", "TYX", {}, config=config, step=6))


def make_stack(path: Path, shape: tuple[int, ...] = (3, 32, 32), seed: int = 0) -> Path:
    clean = 8 * (1 + np.sin(np.linspace(0, 6, shape[-1]))) + np.zeros(shape)
    counts = (100 + 2 * np.random.default_rng(seed).poisson(clean)).astype(np.uint16)
    tifffile.imwrite(
        path, counts, imagej=True, resolution=(10, 10), metadata={"axes": "TYX", "unit": "um", "finterval": 1}
    )
    return path


def drop(view: FileView, paths: list[Path]) -> None:
    """Drop files on the table, as the window system does."""
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    view.dropEvent(QDropEvent(QPointF(5, 5), Qt.DropAction.CopyAction, data, LEFT, Qt.KeyboardModifier.NoModifier))


@pytest.fixture
def batch(viewer: Any, qtbot: Any) -> BatchWidget:
    """Return a Batch form with a prior chosen."""
    widget = BatchWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Batch")
    priors_of(viewer).add("cells.prior", make_prior())
    qtbot.waitUntil(lambda: widget.prior.prior is not None, timeout=WAIT)
    return widget


def states(widget: BatchWidget) -> dict[str, str]:
    return {row.source.name: row.state for row in widget.table.rows}


def listed(widget: BatchWidget, count: int) -> bool:
    return len(widget.table.rows) == count and widget._reading is None and widget._finding is not None


# ------------------------------------------------------------------------------------------------ table


def test_the_table_keeps_qt_s_rules(qtmodeltester: Any, tmp_path: Path) -> None:
    table = FileTable()
    qtmodeltester.check(table)
    a, b = tmp_path / "a.tif", tmp_path / "b.tif"
    assert table.add([a, b, a]) == [a, b]
    assert table.add([b]) == []
    table.update(a, state="working", fraction=0.4)
    table.update(b, state="failed", message="damaged")
    assert [table.index(row, STATE).data() for row in (0, 1)] == ["working 40 %", "failed: damaged"]
    assert table.index(0, STATE).data(FRACTION) == 0.4
    assert table.index(1, STATE).data(FRACTION) is None
    table.remove([0])
    assert table.update(a, state="finished") is None
    assert [row.source for row in table.rows] == [b]
    table.clear()
    assert table.rowCount() == 0


# ------------------------------------------------------------------------------------------- the batch


def test_drop_restore_skip_open(batch: BatchWidget, viewer: Any, qtbot: Any, tmp_path: Path) -> None:
    """Four clicks: drop a folder, Restore, again (all skipped), and a double click on a result."""
    for number in range(2):
        make_stack(tmp_path / f"cells_{number}.tif", seed=number)
    (tmp_path / "broken.tif").write_bytes(b"II*\0abc")
    assert not batch.start.isEnabled()
    drop(batch.view, [tmp_path])
    qtbot.waitUntil(lambda: listed(batch, 3), timeout=WAIT)
    images = {row.source.name: row.image for row in batch.table.rows}
    assert images["cells_0.tif"] == "T = 3, 32 × 32, 0.1 × 0.1 µm"
    assert [row.fault for row in batch.table.rows] == [True, False, False]
    assert batch.folder.text() == str(tmp_path / "restored")
    assert batch.start.text() == "Restore 3 files"

    qtbot.mouseClick(batch.start, LEFT)
    qtbot.waitUntil(lambda: batch._job is None, timeout=WAIT)
    assert states(batch) == {"broken.tif": "failed", "cells_0.tif": "finished", "cells_1.tif": "finished"}
    assert "cannot be read" in batch.table.rows[0].message
    assert str(tmp_path) not in batch.table.rows[0].message  # the row says which file
    assert batch.message.text().startswith("⚠ 1 of 3 files failed")
    result = tmp_path / "restored" / "cells_1_restored.ome.tif"
    expected = restore(open_volume(tmp_path / "cells_1.tif"), make_prior()).data.compute()
    np.testing.assert_allclose(open_volume(result).data.compute(), expected, rtol=1e-6)

    qtbot.mouseClick(batch.start, LEFT)
    qtbot.waitUntil(lambda: batch._job is None, timeout=WAIT)
    assert states(batch) == {"broken.tif": "failed", "cells_0.tif": "skipped", "cells_1.tif": "skipped"}

    centre = batch.view.visualRect(batch.table.index(2, 0)).center()
    qtbot.mouseClick(batch.view.viewport(), LEFT, pos=centre)
    qtbot.mouseDClick(batch.view.viewport(), LEFT, pos=centre)
    qtbot.waitUntil(lambda: len(viewer.layers) == 1, timeout=WAIT)
    layer = viewer.layers[0]
    assert hasattr(layer.data, "dask")  # lazily
    np.testing.assert_allclose(layer.scale, [1, 0.1, 0.1])
    assert layer.axis_labels == ("t", "y", "x")
    assert layer.metadata["napari_ambient"]["provenance"]["action"] == "restore"


def test_draws_to_zarr(batch: BatchWidget, viewer: Any, qtbot: Any, tmp_path: Path) -> None:
    """Mean and error bars, OME-Zarr, noise fitted to each file; a result opens as one layer per channel."""
    source = make_stack(tmp_path / "cells.tif", (3, 64, 64))
    batch.add([str(source)])
    qtbot.waitUntil(lambda: listed(batch, 1), timeout=WAIT)
    batch.method.setCurrentIndex(batch.method.findData("samples"))
    batch.noise.setCurrentIndex(batch.noise.findData("fit"))
    batch.format.setCurrentIndex(batch.format.findData("ome-zarr"))
    batch.draws.setValue(2)
    batch.steps.setValue(3)
    qtbot.mouseClick(batch.start, LEFT)
    qtbot.waitUntil(lambda: batch._job is None, timeout=WAIT)
    assert states(batch) == {"cells.tif": "finished"}, batch.table.rows[0].message
    assert [p.name for p in (tmp_path / "restored").iterdir()] == ["cells_restored.ome.zarr"]
    volume = open_volume(tmp_path / "restored" / "cells_restored.ome.zarr")
    assert volume.channel_names == ("mean", "std")
    assert volume.history[-1]["noise"][0]["fitted"] != "given"
    batch.open_row(batch.table.rows[0])
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=WAIT)
    assert [layer.name for layer in viewer.layers] == ["cells_restored std", "cells_restored mean"]


def choose(box: Any, value: Any) -> None:
    box.setCurrentIndex(box.findData(value))


def start(batch: BatchWidget, qtbot: Any) -> None:
    qtbot.mouseClick(batch.start, LEFT)
    qtbot.waitUntil(lambda: batch._job is None, timeout=WAIT)


def test_averages_over_turns(batch: BatchWidget, qtbot: Any, tmp_path: Path) -> None:
    """As the library gives them; pixels that are not square, and results made otherwise, are said in the row."""
    source, oblong = make_stack(tmp_path / "cells.tif"), make_stack(tmp_path / "oblong.tif")
    batch.add([str(source)])
    qtbot.waitUntil(lambda: listed(batch, 1), timeout=WAIT)
    choose(batch.turns, 8)
    start(batch, qtbot)
    assert states(batch) == {"cells.tif": "finished"}
    result = open_volume(batch.table.rows[0].target)  # type: ignore[arg-type]
    plain, expected = (restore(open_volume(source), make_prior(), turns=n).data.compute() for n in (1, 8))
    np.testing.assert_allclose(result.data.compute(), expected, rtol=1e-5)
    assert np.abs(expected - plain).max() > 0.1  # else nothing is shown by this
    assert result.history[-1]["turns"] == 8
    choose(batch.turns, 1)
    start(batch, qtbot)
    assert "flips and quarter turns 8 instead of 1" in batch.table.rows[0].message
    choose(batch.turns, 8)
    batch.take_out.click()
    batch.voxel_size.setText("0.2 0.1")
    batch.add([str(oblong)])
    qtbot.waitUntil(lambda: listed(batch, 1), timeout=WAIT)
    start(batch, qtbot)
    assert "“Average over” is 8 turns, and quarter turns need" in batch.table.rows[0].message
    # draws are averages already
    choose(batch.method, "samples")
    assert not batch.turns.isEnabled()
    assert batch.options().restoration["turns"] == 1


def test_error_bars_checked_by_other_time_points(batch: BatchWidget, qtbot: Any, tmp_path: Path) -> None:
    """As the library gives them; a file of one time point says that it has no others."""
    assert batch.recalibrate.isHidden()  # there is no error bar
    choose(batch.recalibrate, "frames")
    source = make_stack(tmp_path / "cells.tif", (4, 64, 64))
    single = make_stack(tmp_path / "single.tif", (1, 64, 64))
    batch.add([str(source), str(single)])
    qtbot.waitUntil(lambda: listed(batch, 2), timeout=WAIT)
    assert not batch.options().restoration["recalibrate"]
    assert not batch.options().restoration["still"]
    choose(batch.method, "samples")
    assert not batch.recalibrate.isHidden()
    batch.draws.setValue(3)
    batch.steps.setValue(3)
    start(batch, qtbot)
    assert states(batch) == {"cells.tif": "finished", "single.tif": "failed"}
    volume, prior = open_volume(source), make_prior()
    found = measure_spread(volume, prior, repeats=(1, 2, 3))
    result = open_volume(batch.table.rows[0].target)  # type: ignore[arg-type]
    record, wanted = dict(result.history[-1]["spread"]), found.to_dict()
    np.testing.assert_allclose(record.pop("bend"), wanted.pop("bend"), rtol=1e-4)
    assert record == pytest.approx(wanted)
    expected = restore(volume, prior, method="samples", draws=3, steps=3, spread=found).data.compute()
    np.testing.assert_allclose(result.data.compute(), expected, rtol=1e-4, atol=1e-3)
    assert "by 3 other time points" in batch.table.rows[0].message
    assert "one time point" in batch.table.rows[1].message
    assert "checked by held-out photons, or name the axes (“Axes” TYX)" in batch.table.rows[1].message
    # by photons it is another result
    choose(batch.recalibrate, "photons")
    start(batch, qtbot)
    assert "recalibrated by 3 other time points" in batch.table.rows[0].message
    assert states(batch)["single.tif"] == "finished"


def test_cancel_within_a_second_inside_one_file(batch: BatchWidget, qtbot: Any, tmp_path: Path) -> None:
    """Nothing is left of the file in work, its row waits again, and Restore goes on with it."""
    batch.add([str(make_stack(tmp_path / f"{name}.tif", (4, 48, 48))) for name in "ab"])
    qtbot.waitUntil(lambda: listed(batch, 2), timeout=WAIT)
    batch.method.setCurrentIndex(batch.method.findData("samples"))
    batch.draws.setValue(500)
    qtbot.mouseClick(batch.start, LEFT)
    qtbot.waitUntil(lambda: batch.table.rows[0].fraction > 0, timeout=WAIT)
    assert batch.table.rows[0].words().startswith("working")
    begin = time.perf_counter()
    qtbot.mouseClick(batch.bar.button, LEFT)
    qtbot.waitUntil(lambda: batch._job is None, timeout=WAIT)
    assert time.perf_counter() - begin < 1.0
    assert states(batch) == {"a.tif": "waiting", "b.tif": "waiting"}
    assert [p.name for p in (tmp_path / "restored").iterdir()] == [".a_restored.ome.tif.work"]  # draws of the next run
    assert "Cancelled" in batch.message.text()
    batch.method.setCurrentIndex(batch.method.findData("mean"))
    qtbot.mouseClick(batch.start, LEFT)
    qtbot.waitUntil(lambda: batch._job is None, timeout=WAIT)
    assert set(states(batch).values()) == {"finished"}


def test_axes_are_asked_for(batch: BatchWidget, qtbot: Any, tmp_path: Path) -> None:
    """Files that do not name their axes say so before the start; the answer is taken for all."""
    np.save(tmp_path / "plain.npy", (100 + np.random.default_rng(0).poisson(4, (3, 32, 32))).astype(np.uint16))
    batch.add([str(tmp_path / "*.npy")])
    qtbot.waitUntil(lambda: listed(batch, 1), timeout=WAIT)
    assert batch.table.index(0, IMAGE).data().startswith("axes?")
    assert "A file does not name its axes" in batch.message.text()
    batch.axes.setText("tyx")
    batch.voxel_size.setText("0.2 x 0.2")
    batch.axes.editingFinished.emit()
    qtbot.waitUntil(lambda: batch.table.rows[0].image == "T = 3, 32 × 32, 0.2 × 0.2 µm", timeout=WAIT)
    assert not batch.table.rows[0].fault
    qtbot.mouseClick(batch.start, LEFT)
    qtbot.waitUntil(lambda: batch._job is None, timeout=WAIT)
    assert states(batch) == {"plain.npy": "finished"}
    assert open_volume(batch.table.rows[0].target).voxel_size == {"Y": 0.2, "X": 0.2}  # type: ignore[arg-type]


def test_what_cannot_be_done_is_said(batch: BatchWidget, viewer: Any, qtbot: Any, tmp_path: Path) -> None:
    """Error bars from a prior that has none, a pattern without files, a voxel size that is no number."""
    batch.add([str(make_stack(tmp_path / "a.tif"))])
    qtbot.waitUntil(lambda: listed(batch, 1), timeout=WAIT)
    priors_of(viewer).add("ambient.prior", make_prior(below="none"))
    batch.prior.choose(list(priors_of(viewer))[-1])
    batch.method.setCurrentIndex(batch.method.findData("samples"))
    assert not batch.start.isEnabled()
    assert "tick “Error bars too”" in batch.message.text()
    batch.method.setCurrentIndex(batch.method.findData("mean"))
    assert batch.start.isEnabled()
    assert batch.message.text() == ""
    with pytest.raises(ValueError, match="give µm as"):
        batch.voxel_size.setText("thick")
        batch.options()
    batch.voxel_size.setText("")
    batch.folder.setText("")
    assert not batch.start.isEnabled()
    with pytest.raises(ValueError, match="no folder for the results"):
        batch.options()
    batch.pattern.setText(str(tmp_path / "*.czi"))
    qtbot.keyClick(batch.pattern, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: "no image found" in batch.message.text(), timeout=WAIT)


def test_deconvolution_of_a_folder(batch: BatchWidget, qtbot: Any, tmp_path: Path) -> None:
    """A PSF turns the draws into deconvolution; both kinds of PSF at once, or no draws, are refused in words."""
    batch.add([str(make_stack(tmp_path / "a.tif", (1, 32, 32)))])
    qtbot.waitUntil(lambda: listed(batch, 1), timeout=WAIT)
    bead = np.zeros((5, 5), np.float32)
    bead[1:4, 1:4] = 1
    tifffile.imwrite(tmp_path / "psf.tif", bead)
    batch.psf.setText(str(tmp_path / "psf.tif"))
    with pytest.raises(ValueError, match="deconvolution works with draws"):
        batch.options()
    batch.method.setCurrentIndex(batch.method.findData("samples"))
    batch.na.setText("1.4")
    with pytest.raises(ValueError, match="choose one"):
        batch.options()
    batch.psf.setText("")
    shown = batch.optics.isRowVisible
    for microscope, field in (("confocal", batch.excitation), ("light-sheet", batch.sheet)):
        assert not shown(field)
        choose(batch.microscope, microscope)
        assert shown(field)
        blur = batch.options().restoration["operator"](open_volume(batch.table.rows[0].source))
        assert np.asarray(blur.psf).sum() == pytest.approx(1)
    choose(batch.microscope, "widefield")
    batch.psf.setText(str(tmp_path / "psf.tif"))
    batch.na.setText("")
    batch.draws.setValue(2)
    batch.steps.setValue(2)
    qtbot.mouseClick(batch.start, LEFT)
    qtbot.waitUntil(lambda: batch._job is None, timeout=WAIT)
    assert states(batch) == {"a.tif": "finished"}, batch.table.rows[0].message
    history = open_volume(batch.table.rows[0].target).history[-1]  # type: ignore[arg-type]
    assert "blur" in str(history["operator"]).lower()


def test_rows_are_taken_out(batch: BatchWidget, qtbot: Any, tmp_path: Path) -> None:
    batch.add([str(make_stack(tmp_path / f"{name}.tif")) for name in "abc"])
    qtbot.waitUntil(lambda: listed(batch, 3), timeout=WAIT)
    batch.view.selectRow(1)
    qtbot.keyClick(batch.view, Qt.Key.Key_Delete)
    assert [row.source.name for row in batch.table.rows] == ["a.tif", "c.tif"]
    batch.view.clearSelection()
    qtbot.mouseClick(batch.take_out, LEFT)
    assert batch.table.rows == ()


def test_reading_is_what_the_form_says(tmp_path: Path) -> None:
    path = make_stack(tmp_path / "a.tif")
    assert Reading().open(path).voxel_size == {"Y": pytest.approx(0.1), "X": pytest.approx(0.1)}
    assert Reading(voxel_size={"Z": 0.5, "Y": 0.3, "X": 0.3}).open(path).voxel_size == {"Y": 0.3, "X": 0.3}
