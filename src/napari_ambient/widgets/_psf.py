"""The PSF of a deconvolution: from the microscope's optics in nm, from a layer, or from a file; always shown.

    form → `measurement.computed_psf`, or `measurement.operator_for` (bead) → psf, `point_spread.full_widths` → picture

It is computed in a job a moment after the last change; what is shown is what the restoration uses.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from napari.utils.colormaps import ensure_colormap
from napari.viewer import Viewer
from numpy.typing import NDArray
from qtpy.QtCore import QRectF, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QColor, QImage, QPainter, QPaintEvent
from qtpy.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_ambient.choices import Border
from napari_ambient.measurement import Optics
from napari_ambient.volumes import Volume
from napari_ambient.volumes.units import MICROMETERS
from napari_ambient.widgets._column import labelled_rows
from napari_ambient.widgets._forms import LayerBox, make_narrow
from napari_ambient.widgets._layers import METADATA, is_psf, known_axes, layer_arguments, volume_from_layer
from napari_ambient.widgets._run import Job, Message, run

if TYPE_CHECKING:
    from napari.layers import Image

    from napari_ambient.psf_fit import FittedPsf

WAIT = 300
"""Milliseconds without a change of the form until the PSF is computed."""
SHOWN = (2.0, 3.0)
"""Full widths to each side that the picture shows, along Z and across."""
ROUNDING = 0.06
"""nm that a field's rounding may change."""
FIT = "Fit to this image"
USUAL = "These are usual optics: check them against your microscope."
BARS = (50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
"""Scale bars, nm."""
BORDERS: dict[Border, tuple[str, str]] = {
    "reflect": ("mirrored", "Around the image lies its mirror image: right for most, and for images of one plane"),
    "open": (
        "unknown",
        "Nobody knows what lies around the image, but its light is seen: right for widefield stacks, whose PSF reaches "
        "through all planes",
    ),
}
MEDIA = {"oil": 1.515, "glycerol": 1.47, "silicone": 1.40, "water": 1.33, "air": 1.0}
MICROSCOPES = {"widefield": "widefield", "confocal": "confocal", "light sheet": "light-sheet"}


class PsfForm(QWidget):
    """Where the PSF comes from, and what it looks like.

    Parameters
    ----------
    viewer : napari.Viewer
        Whose layers may be a PSF.
    parent : QWidget or None
        Where it lies.
    """

    changed = Signal()
    """`psf` is another now, or is being computed."""
    tried = Signal(object)
    """The best PSF so far of a fit (`FittedPsf`)."""

    def __init__(self, viewer: Viewer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self.psf: NDArray[Any] | None = None
        """The PSF, odd-sized, centred, of sum 1; None while there is none."""
        self._volume: Volume | None = None
        self._wanted = False
        self._touched = False
        self._fitted = ""
        self._job: Job | None = None

        self.source = QComboBox()
        for text, value in (("from the optics", "optics"), ("a layer", "layer"), ("a file", "file")):
            self.source.addItem(text, value)
        self.source.setToolTip("Where the image of a single point comes from")
        self.microscope = QComboBox()
        for text, value in MICROSCOPES.items():
            self.microscope.addItem(text, value)
        self.microscope.setToolTip("A spinning disk is confocal")
        self.na = _box(1.4, 0.05, 1.7, 2, "", "Numerical aperture, written on the objective")
        self.medium = QComboBox()
        for text, index in MEDIA.items():
            self.medium.addItem(f"{text} ({index:g})", index)
        self.medium.setToolTip("Immersion of the objective, with its refractive index")
        self.emission = _box(520, 200, 2000, 0, " nm", "Wavelength of the light that is collected")
        self.excitation = _box(488, 200, 2000, 0, " nm", "Wavelength of the laser")
        self.sheet = _box(3000, 100, 100_000, 0, " nm", "Thickness of the light sheet (full width at half maximum)")
        self.across = _box(0, 0, 30_000, 1, " nm", "Size of a pixel in the specimen, along Y and X")
        self.across.setSpecialValueText("unknown")
        self.along = _box(0, 0, 30_000, 1, " nm", "Distance between planes")
        self.along.setSpecialValueText("unknown")
        self.layer = LayerBox(viewer)
        self.path = QLineEdit()
        self.path.setPlaceholderText("image of a bead, or a PSF")
        self.browse = QPushButton("Browse…")
        self.kind = QComboBox()
        for text, value in (("image of a bead", "bead"), ("PSF", "computed")):
            self.kind.addItem(text, value)
        self.kind.setToolTip("The background of a bead's image is taken away; a PSF has none")
        self.border = QComboBox()
        for border, (text, tip) in BORDERS.items():
            self.border.addItem(text, border)
            self.border.setItemData(self.border.count() - 1, tip, Qt.ItemDataRole.ToolTipRole)
        self.border.setToolTip("What the PSF sees where nothing was measured: above and below a stack, and around it")
        self.fit = QPushButton(FIT)
        self.fit.setToolTip(
            "Find the aperture and the aberration that explain this image best; it takes up to a quarter of an hour, "
            "and begins with the optics above"
        )
        self.picture = PsfPicture()
        self.words = QLabel()
        self.words.setWordWrap(True)
        self.words.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        self.message = Message()
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(WAIT)
        for box in (self.source, self.microscope, self.medium, self.kind, self.border):
            make_narrow(box)
        self._lay_out()
        self._connect()
        self._show_rows()

    def _lay_out(self) -> None:
        self.rows = labelled_rows()
        self.rows.setContentsMargins(0, 0, 0, 0)
        self.file = QWidget()
        file = QHBoxLayout(self.file)
        file.setContentsMargins(0, 0, 0, 0)
        file.addWidget(self.path, 1)
        file.addWidget(self.browse)
        for title, field in (
            ("PSF", self.source),
            ("Microscope", self.microscope),
            ("NA", self.na),
            ("Immersion", self.medium),
            ("Emission", self.emission),
            ("Excitation", self.excitation),
            ("Sheet", self.sheet),
            ("Pixel", self.across),
            ("Z step", self.along),
            ("Layer", self.layer),
            ("File", self.file),
            ("It is", self.kind),
            ("Around it", self.border),
        ):
            self.rows.addRow(title, field)
        self.rows.addRow(self.fit)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(self.rows)
        column.addWidget(self.picture)
        column.addWidget(self.words)
        column.addWidget(self.message)

    def _connect(self) -> None:
        for box in (self.source, self.microscope):
            box.currentIndexChanged.connect(self._show_rows)
        for box in (self.microscope, self.medium):
            box.currentIndexChanged.connect(self._touch)
        for number in (self.na, self.emission, self.excitation, self.sheet):
            number.valueChanged.connect(self._touch)
        for box in (self.source, self.microscope, self.medium, self.kind):
            box.currentIndexChanged.connect(self._ask)
        for number in (self.na, self.emission, self.excitation, self.sheet, self.across, self.along):
            number.valueChanged.connect(self._ask)
        self.border.currentIndexChanged.connect(self.changed)
        self.layer.changed.connect(self._ask)
        self.path.editingFinished.connect(self._ask)
        self.browse.clicked.connect(self._ask_file)
        self.fit.clicked.connect(self.fit_to_image)
        self.tried.connect(self._say_tried)
        self._timer.timeout.connect(self._compute)

    # ------------------------------------------------------------------------------ what others ask

    @property
    def computing(self) -> bool:
        """Whether the PSF is about to change."""
        return self._timer.isActive() or self._job is not None

    @property
    def optics(self) -> Optics:
        """The microscope as the form has it."""
        microscope = self.microscope.currentData()
        return Optics(
            na=self.na.value(),
            wavelength=self.emission.value(),
            microscope=microscope,
            refractive_index=self.medium.currentData(),
            excitation=self.excitation.value() if microscope == "confocal" else None,
            sheet_thickness=self.sheet.value() / 1000 if microscope == "light-sheet" else None,
        )

    @property
    def chosen_border(self) -> Border:
        """What lies beyond the image."""
        return cast(Border, self.border.currentData())

    def choose_border(self, border: Border) -> None:
        """Choose what lies beyond the image, as a prior was trained.

        Parameters
        ----------
        border : {"reflect", "open"}
            What.
        """
        self.border.setCurrentIndex(self.border.findData(border))

    def copy_from(self, other: PsfForm) -> None:
        """Choose what is chosen in another form of the same viewer."""
        for name in ("source", "microscope", "medium", "kind", "border"):
            getattr(self, name).setCurrentIndex(getattr(other, name).currentIndex())
        for name in ("na", "emission", "excitation", "sheet", "across", "along"):
            getattr(self, name).setValue(getattr(other, name).value())
        self.layer.choose(other.layer.layer)
        self.path.setText(other.path.text())
        self._ask()

    def set_wanted(self, wanted: bool) -> None:
        """Say whether a PSF is needed; until then none is computed. A layer known to be a PSF is taken first."""
        began, self._wanted = wanted and not self._wanted, wanted
        known = [layer for layer in list(self._viewer.layers)[::-1] if is_psf(layer)]
        if began and known and not self._touched and self.source.currentData() == "optics":
            self.source.setCurrentIndex(self.source.findData("layer"))
            self.kind.setCurrentIndex(self.kind.findData("computed"))
            self.layer.choose(known[0])
        if began and self.psf is None and not self.computing:
            self._timer.start()

    def set_volume(self, volume: Volume | None) -> None:
        """Say which image is to be deconvolved: the PSF is made on its voxels.

        Parameters
        ----------
        volume : Volume or None
            The image.
        """
        self._volume = volume
        size = {} if volume is None else volume.voxel_size
        for field, axis in ((self.across, "X"), (self.along, "Z")):
            step = size.get(axis)
            before = field.blockSignals(True)
            field.setValue(0 if step is None else 1000 * step)
            field.blockSignals(before)
        self._show_rows()
        self._ask()

    # ------------------------------------------------------------------------------ at work

    def _show_rows(self, _: int = 0) -> None:
        source, microscope = self.source.currentData(), self.microscope.currentData()
        computed = source == "optics"
        solid = self._volume is not None and self._volume.sizes.get("Z", 1) > 1
        for field in (self.microscope, self.na, self.medium, self.emission, self.across):
            self.rows.setRowVisible(field, computed)
        self.rows.setRowVisible(self.excitation, computed and microscope == "confocal")
        self.rows.setRowVisible(self.sheet, computed and microscope == "light-sheet")
        self.rows.setRowVisible(self.along, computed and solid)
        self.rows.setRowVisible(self.fit, computed and solid and microscope == "widefield")
        self.rows.setRowVisible(self.layer, source == "layer")
        self.rows.setRowVisible(self.file, source == "file")
        self.rows.setRowVisible(self.kind, not computed)

    def _ask_file(self) -> None:
        name, _ = QFileDialog.getOpenFileName(self, "Image of a bead, or PSF", "", "Images (*.tif *.tiff *.npy)")
        if name:
            self.path.setText(name)
            self._ask()

    def _touch(self, _: object = None) -> None:
        self._touched = True

    def _ask(self, _: object = None) -> None:
        if self._job is not None:
            self._job.cancel()
            self._job = None
        self.psf = None
        self._timer.start()
        self.changed.emit()

    def _compute(self) -> None:
        volume = self._volume
        if volume is None or not self._wanted:
            return
        source = self.source.currentData()
        try:
            given = self._given()
        except ValueError as error:
            self._fail(error)
            return
        if given is None and source != "optics":
            self._nothing("Choose the layer that is a PSF." if source == "layer" else "Choose the file of a PSF.")
            return
        if not (given is None or isinstance(given, Path)) and (given.name, given.shape) == (volume.name, volume.shape):
            self._nothing("This layer is the image itself: choose the layer that holds the PSF.", warn=True)
            return
        measured = self._measured(volume) if source == "optics" else volume
        if measured is None:
            return
        volume = measured
        optics, kind = self.optics, self.kind.currentData()

        def work(job: Job) -> Generator[None, None, tuple[NDArray[Any], tuple[float, ...]]]:
            from napari_ambient.measurement import computed_psf, operator_for
            from napari_ambient.operators import Blur
            from napari_ambient.point_spread import full_widths

            yield
            if given is None:
                psf = computed_psf(volume, optics)
            else:
                blur = operator_for(volume, psf=given, psf_is=kind)
                assert isinstance(blur, Blur)
                psf = blur.psf
            return psf, full_widths(psf)

        job = run(work, self, title="computing the PSF")
        self._job = job
        self.message.say("Computing the PSF…")
        job.succeeded.connect(lambda result: self._show(job, *result))
        job.failed.connect(lambda error: self._fail(error) if job is self._job else None)
        job.start()

    def _measured(self, volume: Volume) -> Volume | None:
        """Give the image on the voxels that the fields say; None, and say what lacks, where they are not known."""
        steps = {"X": self.across.value(), "Y": self.across.value(), "Z": self.along.value()}
        unknown = [axis for axis, n in volume.sizes.items() if axis in "ZX" and n > 1 and not steps[axis]]
        if unknown:
            missing = " and ".join("pixel size" if axis == "X" else "Z step" for axis in unknown)
            self._nothing(f"The {missing} of this image is not known: give it above.", warn=True)
            return None
        # of what was not corrected here, the image's own step, not what the field has rounded it to
        known = {
            axis: steps[axis] / 1000
            for axis, own in volume.voxel_size.items()
            if steps[axis] and (own is None or abs(steps[axis] - 1000 * own) > ROUNDING)
        }
        return _on_voxels(volume, known)

    def fit_to_image(self) -> None:
        """Fit the PSF to the image, in a job; it becomes a layer and is chosen. A change of the form ends it."""
        volume = None if self._volume is None else self._measured(self._volume)
        if volume is None:
            return
        self._ask()
        self._timer.stop()
        optics = self.optics
        if "T" in volume.axes:
            volume = volume.replace(data=volume.data[0], axes=volume.axes[1:])

        def work(job: Job) -> Generator[None, None, tuple[Volume, str]]:
            from napari_ambient.noise_fit import fit_noise
            from napari_ambient.psf_fit import fit_psf

            def watch(best: FittedPsf) -> None:
                job.check()
                self.tried.emit(best)

            yield
            found = fit_psf(volume, fit_noise(volume), optics, watch=watch)
            return found.volume(volume), found.describe()

        job = run(work, self, title="fitting the PSF")
        self._job = job
        self.fit.setEnabled(False)
        self.message.say("Fitting the PSF…")
        job.succeeded.connect(lambda result: self._take(job, *result))
        job.failed.connect(lambda error: self._fail(error) if job is self._job else None)
        job.ended.connect(lambda: self.fit.setEnabled(True))
        job.start()

    def _say_tried(self, best: FittedPsf) -> None:
        if self._job is not None:
            self.message.say(f"Fitting the PSF… {best.evaluations} tried: {best.describe()}")

    def _take(self, job: Job, psf: Volume, words: str) -> None:
        """Make a layer of a fitted PSF, and choose it."""
        if job is not self._job:
            return
        self._job = None
        data, arguments = layer_arguments(psf, None, name=psf.name)
        arguments["metadata"][METADATA]["kind"] = "psf"
        active = self._viewer.layers.selection.active
        layer = self._viewer.add_image(data.compute(), **arguments, visible=False)
        self._viewer.layers.selection.active = active
        self.source.setCurrentIndex(self.source.findData("layer"))
        self.kind.setCurrentIndex(self.kind.findData("computed"))
        self.layer.choose(layer)
        self._fitted = words
        self._ask()

    def _given(self) -> Path | Volume | None:
        """Give the image of a point; None where it is computed, or not chosen yet."""
        if self.source.currentData() == "file":
            text = self.path.text().strip()
            return Path(text).expanduser() if text else None
        layer: Image | None = self.layer.layer
        if self.source.currentData() == "layer" and layer is not None:
            return volume_from_layer(layer, axes=known_axes(layer) or ("ZYX" if layer.ndim == 3 else None))
        return None

    def _show(self, job: Job, psf: NDArray[Any], widths: tuple[float, ...]) -> None:
        if job is not self._job:
            return
        self._job = None
        self.psf = psf
        steps = self._steps(psf.ndim)
        self.message.say("")
        self.picture.show_psf(psf, steps, widths)
        size = " × ".join(map(str, psf.shape))
        if self._fitted:
            self.message.say(self._fitted)
            self._fitted = ""
        usual = "" if self._touched or self.source.currentData() != "optics" else f" {USUAL}"
        self.words.setText(f"Full width at half maximum: {_say(widths, steps)}. {size} voxels.{usual}")
        if not all(math.isfinite(width) for width in widths):
            self.message.warn("Its light does not fall to half of its peak within the box. Is this the PSF?")
        self.changed.emit()

    def _steps(self, ndim: int) -> tuple[float, ...] | None:
        """Voxel size in nm, as far as it is known."""
        if self.source.currentData() == "optics":
            across, along = self.across.value(), self.along.value()
        else:
            size = {} if self._volume is None else self._volume.voxel_size
            across, along = (1000 * (size.get(axis) or 0.0) for axis in "XZ")
        steps = (along, across, across)[-ndim:]
        return steps if all(steps) else None

    def _fail(self, error: Exception) -> None:
        self._job = None
        self._nothing(str(error), warn=True)

    def _nothing(self, text: str, *, warn: bool = False) -> None:
        self.picture.clear()
        self.words.setText("")
        if warn:
            self.message.warn(text)
        else:
            self.message.say(text)
        self.changed.emit()


class PsfPicture(QWidget):
    """A PSF from above and from the side, in true proportions; brightness by its square root, so that its rim shows."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._panels: list[tuple[str, QImage, float, float]] = []
        self._bar: float = 0.0
        self.hide()

    def clear(self) -> None:
        """Show nothing."""
        self._panels = []
        self.hide()

    def show_psf(self, psf: NDArray[Any], steps: tuple[float, ...] | None, widths: tuple[float, ...]) -> None:
        """Show a PSF.

        Parameters
        ----------
        psf : ndarray, shape (Y, X) or (Z, Y, X)
            Its middle voxel is its origin.
        steps : tuple of float or None
            Voxel size in nm; None where it is unknown, voxels are then taken for cubes.
        widths : tuple of float
            Full widths at half maximum, voxels.
        """
        sides = steps or (1.0,) * psf.ndim
        middle = [n // 2 for n in psf.shape]
        wanted = [SHOWN[0 if psf.ndim - axis > 2 else 1] * width for axis, width in enumerate(widths)]
        half = [min(m, math.ceil(w)) if math.isfinite(w) else m for m, w in zip(middle, wanted, strict=True)]
        near = psf[tuple(slice(m - h, m + h + 1) for m, h in zip(middle, half, strict=True))]
        self._panels = []
        views = [("XY", near if psf.ndim == 2 else near[half[0]], -2)]
        if psf.ndim == 3:
            views.append(("XZ", near[:, half[1]], 0))
        for title, plane, axis in views:
            self._panels.append((title, _image(plane), plane.shape[1] * sides[-1], plane.shape[0] * sides[axis]))
        widest = max(width for _, _, width, _ in self._panels)
        self._bar = 0.0 if steps is None else max((b for b in BARS if b <= widest / 2.2), default=0.0)
        self.show()
        self.updateGeometry()
        self.update()

    def sizeHint(self) -> QSize:
        """Wide enough for both views."""
        return QSize(260, 150)

    def paintEvent(self, event: QPaintEvent | None) -> None:
        """Draw the views side by side, on one scale."""
        if not self._panels:
            return
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
        gap, title = 10.0, float(painter.fontMetrics().height())
        scale = min(
            (self.width() - gap * (len(self._panels) - 1)) / sum(width for _, _, width, _ in self._panels),
            (self.height() - title) / max(height for _, _, _, height in self._panels),
        )
        left = 0.0
        painter.setPen(self.palette().color(self.foregroundRole()))
        for number, (name, image, width, height) in enumerate(self._panels):
            box = QRectF(left, title, width * scale, height * scale)
            painter.drawText(QRectF(left, 0, max(box.width(), 30.0), title), Qt.AlignmentFlag.AlignLeft, name)
            painter.drawImage(box, image)
            if number == 0 and self._bar:
                painter.fillRect(QRectF(left + 5, box.bottom() - 8, self._bar * scale, 3), QColor("white"))
                painter.setPen(QColor("white"))
                painter.drawText(
                    QRectF(left + 5, box.bottom() - 10 - title, box.width(), title),
                    Qt.AlignmentFlag.AlignLeft,
                    f"{self._bar:g} nm",
                )
                painter.setPen(self.palette().color(self.foregroundRole()))
            left += box.width() + gap
        painter.end()


def _image(plane: NDArray[Any]) -> QImage:
    """Colour a section, brightness by the square root."""
    values = np.sqrt(np.maximum(plane, 0) / max(float(plane.max()), 1e-30))
    colours = ensure_colormap("inferno").map(values.ravel()).reshape(*plane.shape, 4)
    pixels = np.ascontiguousarray(np.rint(255 * colours).astype(np.uint8))
    height, width = plane.shape
    return QImage(pixels.tobytes(), width, height, 4 * width, QImage.Format.Format_RGBA8888).copy()


def _say(widths: tuple[float, ...], steps: tuple[float, ...] | None) -> str:
    def length(axis: int) -> str:
        if not math.isfinite(widths[axis]):
            return "beyond the box"
        return f"{widths[axis]:.1f} voxels" if steps is None else f"{widths[axis] * steps[axis]:.0f} nm"

    across = f"{length(-1)} across"
    return f"{across}, {length(0)} along Z" if len(widths) == 3 else across


def _on_voxels(volume: Volume, size: dict[str, float]) -> Volume:
    """Give the volume with another voxel size, µm."""
    unit = "micrometer"
    assert MICROMETERS[unit] == 1
    return volume.replace(scale={**volume.scale, **size}, units={**volume.units, **dict.fromkeys(size, unit)})


def _box(value: float, low: float, high: float, decimals: int, suffix: str, tip: str) -> QDoubleSpinBox:
    box = QDoubleSpinBox()
    box.setDecimals(decimals)
    box.setRange(low, high)
    box.setSingleStep(10 ** -min(decimals, 2) if high < 10 else 10)
    box.setValue(value)
    box.setSuffix(suffix)
    box.setToolTip(tip)
    box.setKeyboardTracking(False)
    box.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return box
