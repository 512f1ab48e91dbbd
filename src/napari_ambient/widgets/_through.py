"""What the images of a training went through besides noise: blur, with its PSF, and holes, with their mask.

form → `ThroughForm.through` → `_operator.Through` → iter_train(operator=…), audit_prior(operator=…)
"""

from __future__ import annotations

import functools
from typing import cast

from napari.viewer import Viewer
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QComboBox, QVBoxLayout, QWidget

from napari_ambient.choices import Border
from napari_ambient.volumes import Volume
from napari_ambient.widgets._column import labelled_rows
from napari_ambient.widgets._forms import LayerBox, make_narrow
from napari_ambient.widgets._holes import MissingWords, holes_box
from napari_ambient.widgets._layers import mask_from_layer
from napari_ambient.widgets._operator import Through, Undone
from napari_ambient.widgets._psf import PsfForm

KINDS: dict[Undone, tuple[str, str]] = {
    "nothing": ("only noisy", "The prior is one of the structures as the camera sees them, blur and all"),
    "psf": ("blurred by a microscope too", "The prior is one of the structures before the blur of this PSF"),
    "holes": ("with holes too", "Some voxels were not measured; the prior is one of whole images"),
    "both": ("blurred and with holes too", "The prior is one of the sharp and whole structures"),
}
NO_PSF = "First give the PSF of the blurred images (Advanced)"
NO_MASK = "First choose the layer that says where the images have holes (Advanced)"


class ThroughForm(QWidget):
    """What the microscope did to the light of the images.

    Parameters
    ----------
    viewer : napari.Viewer
        Whose layers may be a PSF or a mask.
    parent : QWidget or None
        Where it lies.
    """

    changed = Signal()
    """`through` would give something else now."""

    def __init__(self, viewer: Viewer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.box = QComboBox()
        for value, (text, tip) in KINDS.items():
            self.box.addItem(text, value)
            self.box.setItemData(self.box.count() - 1, tip, Qt.ItemDataRole.ToolTipRole)
        self.box.setToolTip("What happened to the light before it was counted, and is to be undone by the prior")
        self.psf = PsfForm(viewer)
        self.mask = LayerBox(viewer, "mask", none="choose the mask")
        self.mask.setToolTip("Image or Labels layer of one image's size, which says where nothing was measured")
        self.holes = holes_box()
        self.words = MissingWords(self.mask, self.holes)
        make_narrow(self.box)
        self.rows = labelled_rows()
        self.rows.setContentsMargins(0, 0, 0, 0)
        for title, field in (("Images are", self.box), ("Mask", self.mask), ("Holes are", self.holes)):
            self.rows.addRow(title, field)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(self.rows)
        column.addWidget(self.words)
        column.addWidget(self.psf)
        self.box.currentIndexChanged.connect(self._changed)
        self.holes.currentIndexChanged.connect(self._changed)
        self.mask.changed.connect(self._changed)
        self.psf.changed.connect(self.changed)
        self._show_rows()

    # ------------------------------------------------------------------------------ what others ask

    @property
    def kind(self) -> Undone:
        """What the images are besides noisy."""
        return cast(Undone, self.box.currentData())

    @property
    def blurred(self) -> bool:
        """Whether a PSF takes part."""
        return self.kind in ("psf", "both")

    @property
    def holed(self) -> bool:
        """Whether a mask takes part."""
        return self.kind in ("holes", "both")

    @property
    def missing(self) -> str:
        """What must be given before anything can be done, as a sentence; empty where nothing lacks."""
        if self.blurred and self.psf.psf is None:
            return NO_PSF
        return NO_MASK if self.holed and self.mask.layer is None else ""

    def ask_for(self, kind: Undone, border: Border) -> None:
        """Ask for the parts of what is known to have happened to the images, and for nothing else.

        Parameters
        ----------
        kind : {"nothing", "psf", "holes", "both"}
            What a prior was trained through, of `undone_by`.
        border : {"reflect", "open"}
            And with what beyond the images, of `border_of`.
        """
        self.psf.choose_border(border)
        self.box.setCurrentIndex(self.box.findData(kind))
        self.rows.setRowVisible(self.box, False)

    def through(self, volume: Volume) -> Through:
        """Give it in plain values; the mask is read only where they are used.

        Parameters
        ----------
        volume : Volume
            The image, whole.

        Returns
        -------
        Through

        Raises
        ------
        ValueError
            If something is missing.
        """
        if self.missing:
            raise ValueError(self.missing)
        measured = None
        if self.holed:
            measured = functools.partial(
                mask_from_layer, self.mask.layer, volume, painted=bool(self.holes.currentData())
            )
        return Through(self.psf.psf if self.blurred else None, measured, self.psf.chosen_border)

    def set_volume(self, volume: Volume | None) -> None:
        """Say which image it is about: the PSF is made on its voxels."""
        self.words.set_volume(volume)
        self.psf.set_volume(volume)

    # ------------------------------------------------------------------------------ at work

    def _changed(self, _: object = None) -> None:
        self._show_rows()
        self.changed.emit()

    def _show_rows(self) -> None:
        for field in (self.mask, self.holes):
            self.rows.setRowVisible(field, self.holed)
        self.words.set_wanted(self.holed)
        self.psf.setVisible(self.blurred)
        self.psf.set_wanted(self.blurred)


__all__ = ["KINDS", "NO_MASK", "NO_PSF", "ThroughForm"]
