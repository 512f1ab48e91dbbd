"""The noise in the Train form: estimated on request, shown as a photon-transfer plot and in words, and editable.

volume → noise_fit.fit_channels (as a job) → the panel → NoisePanel.models → training
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from qtpy.QtCore import QLocale, Qt, Signal
from qtpy.QtGui import QDoubleValidator
from qtpy.QtWidgets import (
    QComboBox,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_ambient.choices import Form
from napari_ambient.widgets._plots import TransferPlot
from napari_ambient.widgets._run import Message

if TYPE_CHECKING:
    from napari_ambient.noise import NoiseModel

BY_HAND = "Give the camera's gain and zero instead, from its data sheet or from other images of it:"
NOT_YET = "Estimated from the images when the training starts, or now:"
FORMS: dict[Form, str] = {"auto": "automatic", "thinning": "thinning (photon counts)", "gaussian": "Gaussian"}


class NoisePanel(QWidget):
    """The noise of what is trained on.

    Parameters
    ----------
    parent : QWidget or None
        Where it lies.
    """

    changed = Signal()
    """Another model, or another form."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.words = QLabel(NOT_YET)
        self.words.setWordWrap(True)
        self.words.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        self.estimate = QPushButton("Estimate noise")
        self.estimate.setToolTip("Fit the camera's noise to the images: gain, zero level, photons per voxel")
        self.channel = QComboBox()
        self.channel.setToolTip("Which channel's noise is shown")
        self.plot = TransferPlot()
        self.gain = _number_field("Counts (ADU) per photo-electron: the slope of the line")
        self.zero = _number_field("Counts at which the line meets zero: where there is no light, less the read noise")
        self.offset = _number_field(
            "The camera's counts without light, from dark frames or its data sheet; empty if it is not known. Only the "
            "number of photons depends on it."
        )
        self.offset.setPlaceholderText("?")
        self.form = QComboBox()
        for value, text in FORMS.items():
            self.form.addItem(text, value)
        self.form.setToolTip(
            "How the images are made noisier for training: by thinning the photons, or by adding Gaussian noise"
        )
        self.message = Message()
        self._models: list[NoiseModel] = []
        self._given = False
        self._asked = 0
        self._lay_out()
        self.channel.currentIndexChanged.connect(self._show)
        self.form.currentIndexChanged.connect(self._form_changed)
        for field in (self.gain, self.zero, self.offset):
            field.editingFinished.connect(self._edited)
        self.clear()

    def _lay_out(self) -> None:
        top = QHBoxLayout()
        top.addWidget(self.words, 1)
        top.addWidget(self.estimate)
        line = QHBoxLayout()
        for title, field in (("Gain", self.gain), ("Zero", self.zero), ("Offset", self.offset)):
            label = QLabel(title)
            label.setToolTip(field.toolTip())
            line.addWidget(label)
            line.addWidget(field, 1)
        self.found = QWidget()
        inside = QVBoxLayout(self.found)
        inside.setContentsMargins(0, 0, 0, 0)
        inside.addWidget(self.channel)
        inside.addWidget(self.plot)
        inside.addLayout(line)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Form", self.form)
        inside.addLayout(form)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(top)
        column.addWidget(self.found)
        column.addWidget(self.message)

    @property
    def models(self) -> tuple[NoiseModel, ...] | None:
        """The noise, one model per channel, as estimated or edited; None while it is not known."""
        return tuple(self._models) or None

    @property
    def given(self) -> bool:
        """Whether the user changed it."""
        return self._given

    @property
    def chosen_form(self) -> Form:
        """The form that was chosen; "auto" follows the noise."""
        return cast(Form, self.form.currentData())

    def clear(self) -> None:
        """Forget the noise: other images are chosen."""
        self._models, self._given, self._asked = [], False, 0
        self.found.hide()
        self.words.setText(NOT_YET)
        self.message.say("")
        self.form.setItemText(0, FORMS["auto"])

    def ask(self, channels: int) -> None:
        """Ask the user for the noise, which the images do not tell.

        Parameters
        ----------
        channels : int
            Of the images; all get the same noise.
        """
        self.clear()
        self._asked = channels
        self.words.setText(BY_HAND)
        for field in (self.gain, self.zero, self.offset):
            field.setText("")
        self.channel.hide()
        self.plot.hide()
        self.found.show()

    def set_models(self, models: tuple[NoiseModel, ...]) -> None:
        """Show what was fitted.

        Parameters
        ----------
        models : tuple of NoiseModel
            One per channel.
        """
        self._models, self._given = list(models), False
        self.channel.blockSignals(True)
        self.channel.clear()
        self.channel.addItems([f"Channel {i}" for i in range(len(models))])
        self.channel.blockSignals(False)
        self.channel.setVisible(len(models) > 1)
        self.message.say("")
        self.found.show()
        self.plot.show()
        self._show()
        self.changed.emit()

    def _show(self) -> None:
        if not self._models:
            return
        model = self._models[max(self.channel.currentIndex(), 0)]
        light = "" if model.offset is not None else " (read noise counts as light while the offset is unknown)"
        if np.isfinite(model.photons):
            self.words.setText(f"{model.photons:.3g} photo-electrons per voxel")
            self.words.setToolTip(f"{model.photons:.4g} photo-electrons per voxel on average{light}")
        else:
            self.words.setText("The noise is as you gave it.")
            self.words.setToolTip("")
        self.plot.show_noise(model)
        for field, value in ((self.gain, model.gain), (self.zero, model.zero), (self.offset, model.offset)):
            field.setText("" if value is None else f"{float(np.median(value)):.4g}")
            field.setModified(False)
        self.form.setItemText(0, f"automatic: {model.form}")
        self.form.setItemData(0, model.reason, Qt.ItemDataRole.ToolTipRole)
        # what the fit did follows in the tooltip: a form must not be longer than the screen
        self.plot.setToolTip("\n".join((model.reason, *model.notes)))

    def _edited(self) -> None:
        fields = (self.gain, self.zero, self.offset)
        if not any(field.isModified() for field in fields):
            return
        if self._asked and not self._models:
            self._take_what_was_given()
            return
        if not self._models:
            return
        for field in fields:
            field.setModified(False)
        index = max(self.channel.currentIndex(), 0)
        try:
            offset = float(self.offset.text()) if self.offset.text().strip() else None
            model = self._models[index].with_line(float(self.gain.text()), float(self.zero.text()), offset)
        except ValueError as error:
            self.message.warn(str(error))
            return
        self._models[index], self._given = model, True
        self.message.say("As you set it; Estimate noise fits it anew.")
        self._show()
        self.changed.emit()

    def _take_what_was_given(self) -> None:
        """Make the noise of gain and zero, once both are there."""
        from napari_ambient.noise import NoiseModel

        if not (self.gain.text().strip() and self.zero.text().strip()):
            return
        gain, zero = float(self.gain.text()), float(self.zero.text())
        offset = float(self.offset.text()) if self.offset.text().strip() else None
        try:
            model = NoiseModel(gain, -gain * zero).with_line(gain, zero, offset)
        except ValueError as error:
            self.message.warn(str(error))
            return
        self._models, self._given = [model] * self._asked, True
        self.message.say("")
        self._show()
        self.changed.emit()

    def _form_changed(self) -> None:
        self.changed.emit()

    def set_theme(self, name: str) -> None:
        """Take the colours of a napari theme."""
        self.plot.set_theme(name)


def _number_field(tip: str) -> QLineEdit:
    field = QLineEdit()
    field.setToolTip(tip)
    field.setMinimumWidth(40)
    validator = QDoubleValidator(field)
    validator.setLocale(QLocale.c())
    field.setValidator(validator)
    return field
