"""Which voxels are holes: a mask, which of its voxels they are, and in words how much of the image that leaves out.

    mask layer, "painted" | "0" → `_layers.mask_from_layer` → Through.measured
                                → "3.2 % of the voxels are taken as missing."

The library's `operators.Mask` is True where something was measured, as the masks of cameras and scanners are. Who works
in napari paints what is missing. So both forms begin with the painted voxels, and say at once what comes of it.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
from napari.layers import Labels
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QComboBox, QWidget

from napari_ambient.volumes import Volume
from napari_ambient.widgets._forms import Followed, LayerBox, make_narrow
from napari_ambient.widgets._layers import mask_from_layer
from napari_ambient.widgets._run import Job, Message, run

WAIT = 300
"""Milliseconds without a stroke or a choice until the voxels are counted."""
MOST = 0.5
"""Share of missing voxels from which the mask is likely meant the other way round."""
NO_NAN = (
    "No voxel of this image is NaN, for it holds whole numbers: paint what is missing on a new Labels layer (the label "
    "button above the layer list), and choose that layer here."
)


def holes_box() -> QComboBox:
    """Make a box that says which voxels of a mask are the holes; its data is whether they are the painted ones."""
    box = QComboBox()
    for text, value, tip in (
        ("where it is painted", True, "The holes have any label, or any value but 0"),
        ("where it is 0", False, "A mask of what was measured: 0 where nothing was, more than 0 elsewhere"),
    ):
        box.addItem(text, value)
        box.setItemData(box.count() - 1, tip, Qt.ItemDataRole.ToolTipRole)
    box.setToolTip("Which voxels of this layer are missing in the image")
    make_narrow(box)
    return box


class MissingWords(Message):
    """Says how many voxels are taken as missing, whenever mask, choice or paint change.

    Parameters
    ----------
    mask : LayerBox
        The mask.
    holes : QComboBox
        Of `holes_box`.
    parent : QWidget or None
        Where it lies.
    """

    def __init__(self, mask: LayerBox, holes: QComboBox, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._mask, self._holes = mask, holes
        self._volume: Volume | None = None
        self._wanted = False
        self._job: Job | None = None
        self._followed: Followed | None = None
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(WAIT)
        self._timer.timeout.connect(self._count)
        mask.changed.connect(self._follow)
        holes.currentIndexChanged.connect(self._ask)

    def set_volume(self, volume: Volume | None) -> None:
        """Say which image has the holes; None for none."""
        self._volume = volume
        self._ask()

    def set_wanted(self, wanted: bool) -> None:
        """Say whether holes matter; until then nothing is counted or said."""
        if wanted != self._wanted:
            self._wanted = wanted
            self._ask()

    def _follow(self) -> None:
        if self._followed is not None:
            self._followed.disconnect()
            self._followed = None
        layer = self._mask.layer
        if layer is not None:
            events = [layer.events.data]
            if isinstance(layer, Labels):
                events += [layer.events.paint, layer.events.set_data]  # a stroke, and its being undone
            self._followed = Followed(self, events, self._painted)
        self._ask()

    def _painted(self) -> None:
        """Count anew; the old count stays until then."""
        if self._wanted and self._volume is not None:
            self._timer.start()

    def _ask(self, _: object = None) -> None:
        if self._job is not None:
            self._job.cancel()
            self._job = None
        self._timer.stop()
        self.say("")
        if self._mask.layer is not None:
            self._painted()
        elif self._wanted and self._volume is not None and self._volume.dtype.kind not in "fc":
            self.warn(NO_NAN)

    def _count(self) -> None:
        layer, volume, painted = self._mask.layer, self._volume, bool(self._holes.currentData())
        if layer is None or volume is None or not self._wanted:
            return

        def work(job: Job) -> Generator[None, None, float]:
            yield
            return 1.0 - float(np.mean(mask_from_layer(layer, volume, painted=painted)))

        if self._job is not None:
            self._job.cancel()
        job = run(work, self, title="counting the missing voxels")
        self._job = job
        job.succeeded.connect(lambda share: self._say(share) if job is self._job else None)
        job.failed.connect(lambda error: self.warn(str(error)) if job is self._job else None)
        job.start()

    def _say(self, share: float) -> None:
        words = f"{_percent(share)} of the voxels are taken as missing."
        if share > MOST:
            self.warn(f"{words} If only the rest is missing, choose otherwise above.")
        else:
            self.say(words)


def _percent(share: float) -> str:
    """Say a share with two digits, and never "0 %" or "100 %" of what is not."""
    percent = 100 * share
    if percent < 0.01:
        return "Less than 0.01 %"
    return f"{percent:.2g} %" if percent < 99.5 else f"{min(percent, 99.99):.2f} %"


__all__ = ["MissingWords", "holes_box"]
