"""What makes a result a little better for more time: averages over turns, and error bars that are checked.

    “Average over” → restore(turns=), restore_files(turns=)
    “Error bars”   → recalibration.measure_spread(repeats=), restore_files(recalibrate=, still=)

Restore and Batch ask for both in the same words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from qtpy.QtCore import Qt
from qtpy.QtGui import QStandardItemModel
from qtpy.QtWidgets import QComboBox

from ._forms import make_narrow
from ._words import in_forms

if TYPE_CHECKING:
    from napari_ambient.prior import Prior
    from napari_ambient.volumes import Volume

CheckedBy = Literal["nothing", "photons", "frames"]
"""By what error bars are checked."""

TURNS = (
    "Restores flipped and turned copies of the image too, and averages them: a little sharper, and as many times slower"
)
QUARTERS = "And turned by a quarter; for pixels that are square in the plane"
ONLY_THE_MEAN = "For the mean alone: draws are averages already, and more of them do the same"
CHECKED = "Measures how wide the error bars should be, and corrects them; takes about as long as the draws of one image"
PHOTONS = "By photons that the draws do not see; for any image"
FRAMES = (
    "By the other time points of the same field, where nothing moves or bleaches; much sharper than held-out photons"
)
ONE_FRAME = "This image has one time point, and no others to check its error bars by"


def turns_box() -> QComboBox:
    """Give a box of the numbers of turns to average over; its data are those of `restore`."""
    box = QComboBox()
    for text, value, tip in (
        ("no turns (fast)", 1, "The image as it is"),
        ("2 turns (2 × slower)", 2, "The image as it is, and turned by half"),
        ("4 turns (4 × slower)", 4, "And their mirror images"),
        ("8 turns (8 × slower)", 8, QUARTERS),
    ):
        _add(box, text, value, tip)
    box.setToolTip(TURNS)
    make_narrow(box)
    return box


def checks_box() -> QComboBox:
    """Give a box that says by what the error bars are checked; its data are those of `CheckedBy`."""
    box = QComboBox()
    _add(box, "not checked", "nothing", "As the prior gives them")
    _add(box, "checked by held-out photons", "photons", PHOTONS)
    _add(box, "checked by other time points (still field)", "frames", FRAMES)
    box.setToolTip(CHECKED)
    make_narrow(box)
    return box


def enable_entry(box: QComboBox, row: int, enabled: bool) -> None:
    """Let an entry of a box be chosen, or grey it out."""
    item = cast(QStandardItemModel, box.model()).item(row)
    assert item is not None
    item.setEnabled(enabled)


def offer(box: QComboBox, value: object, tip: str, reason: str) -> None:
    """Offer an entry with its tip; or grey it out, say the reason, and choose the first one instead of it.

    Parameters
    ----------
    box : QComboBox
        The box.
    value : object
        Data of the entry.
    tip : str
        What the entry is.
    reason : str
        Why it cannot be chosen now; empty: it can.
    """
    row = box.findData(value)
    enable_entry(box, row, not reason)
    box.setItemData(row, reason or tip, Qt.ItemDataRole.ToolTipRole)
    if reason and box.currentIndex() == row:
        box.setCurrentIndex(0)


def offer_quarter_turns(box: QComboBox, volume: Volume | None, prior: Prior | None) -> None:
    """Grey 8 turns out, with the library's reason, where image or prior do not allow them; offer them elsewhere."""
    reason = ""
    if volume is not None and prior is not None:
        # loads torch, which is there where a prior is
        from napari_ambient.restoration import RestorationError, check_turns

        try:
            check_turns(8, "mean", volume, prior)
        except RestorationError as error:
            reason = in_forms(str(error))
    offer(box, 8, QUARTERS, reason)


def _add(box: QComboBox, text: str, value: object, tip: str) -> None:
    box.addItem(text, value)
    box.setItemData(box.count() - 1, tip, Qt.ItemDataRole.ToolTipRole)


__all__ = [
    "CHECKED",
    "FRAMES",
    "ONE_FRAME",
    "ONLY_THE_MEAN",
    "TURNS",
    "CheckedBy",
    "checks_box",
    "enable_entry",
    "offer",
    "offer_quarter_turns",
    "turns_box",
]
