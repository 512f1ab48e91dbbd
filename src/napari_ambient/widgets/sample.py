"""Sample: new images from a prior beside crops of its training data, and whether it memorised them.

    prior → `Prior.iter_sample`, `sample_sheet.training_crops` → a sheet of two blocks → layers with titles
    prior, training data → `prior_audit.audit_prior` → a verdict in words and the closest pairs as a picture

A prior that was learned through blur or holes restores its training data through them: the form then asks for the PSF
and the mask of the training (`ThroughForm`). Both blocks are shown between the same limits, and stay so: their layers
are linked.
"""

from __future__ import annotations

import importlib
import io
import threading
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import dask.array as da
import numpy as np
from napari.experimental import link_layers
from napari.layers import Image, Layer
from napari.viewer import Viewer
from numpy.typing import NDArray
from qtpy.compat import isalive
from qtpy.QtCore import QSize, Qt, QTimer
from qtpy.QtGui import QPixmap, QResizeEvent
from qtpy.QtWidgets import (
    QComboBox,
    QDialog,
    QFileDialog,
    QLabel,
    QPushButton,
    QScrollArea,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_ambient import __version__
from napari_ambient.sample_sheet import Block, Shown, cell_shape, contrast, lay_out, training_crops
from napari_ambient.volumes import Volume
from napari_ambient.widgets._closing import AskFirst
from napari_ambient.widgets._column import group, labelled_rows, scroll_to, scrolled_column
from napari_ambient.widgets._forms import PriorBox, SourceForm, fold
from napari_ambient.widgets._layers import METADATA, layer_arguments
from napari_ambient.widgets._operator import Through, Undone, border_of, undone_by
from napari_ambient.widgets._run import Job, Message, RunBar, run
from napari_ambient.widgets._settings import settings
from napari_ambient.widgets._theme import Meaning, accent_style, signal_colour
from napari_ambient.widgets._through import ThroughForm
from napari_ambient.widgets.batch import NEEDS_BELOW

if TYPE_CHECKING:
    from napari_ambient.audit import Audit
    from napari_ambient.prior import Prior

TITLE_COLOUR = "#4a9fe0"
"""Read on the dark and on the light canvas."""
MARGIN = 0.12
"""Share of the canvas around a sheet, which its titles need."""

VERDICTS: dict[str, tuple[str, Meaning]] = {
    "healthy": ("✔ healthy", "good"),
    "suspicious": ("⚠ suspicious", "warning"),
    "memorised": ("✖ memorised", "bad"),
    "undecided": ("? undecided", "neutral"),
}
DRAWING, CHECKING = "drawing new images", "checking for memorisation"
DRAW = "Images that the prior makes up, beside crops of the training data"
AUDIT = (
    "Are the new images copies of training patches? Every position, turn and flip of the training data is searched; "
    "takes a few minutes"
)
PARTS: dict[Undone, str] = {"psf": "the PSF", "holes": "the mask", "both": "the PSF and the mask"}
LEARNED = (
    "This prior was learned through {}. Its training images are restored through the same: give {} of its training."
)
COMPUTING = "The PSF is still being computed; wait a moment."
NO_FIELDS = (
    "This prior was learned through {}, for which this form has no fields: choose raw crops or none, and check for "
    "memorisation on the command line (napari-ambient audit)."
)
Side = Literal["sample", "crop"]


@dataclass(frozen=True)
class SampleOptions:
    """What the form says, all plain values.

    Parameters
    ----------
    count : int
        New images, and crops.
    size, depth : int
        Voxels along Y and X, and along Z (3D priors).
    steps : int
        Network calls per image.
    seed : int
        Of the images and of the crops' places.
    channel : int
        Image channel of the prior.
    shown : {"denoised", "raw"} or None
        What crops to show; None for none.
    """

    count: int
    size: int
    depth: int
    steps: int
    seed: int
    channel: int
    shown: Shown | None


@dataclass(frozen=True)
class Begun:
    """The work has begun: the sheet's blocks are known."""

    samples: Block
    crops: Block | None
    shown: Shown | None
    voxel_size: dict[str, float | None]
    record: dict[str, Any]


@dataclass(frozen=True)
class Placed:
    """One more image is there."""

    side: Side
    index: int
    image: NDArray[np.float32]
    limits: tuple[float, float]


class SampleWidget(QWidget):
    """The Sample form.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        Where the sheet is shown. (napari hands it over by this name.)
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.viewer = viewer = napari_viewer
        self.prior = PriorBox(viewer)
        self.count = _number_box(6, 1, 64, "How many new images, and as many training crops")
        self.size = _number_box(128, 16, 1024, "Pixels along Y and X")
        self.depth = _number_box(16, 8, 256, "Planes along Z")
        self.seed = _number_box(0, 0, 2**31 - 1, "The same seed gives the same images and the same crops")
        self.steps = _number_box(32, 2, 500, "Network calls per image")
        self.channel = _number_box(0, 0, 0, "Image channel of the prior")
        self.shown = QComboBox()
        for text, value in (("denoised by the prior", "denoised"), ("raw, as measured", "raw"), ("none", None)):
            self.shown.addItem(text, value)
        self.shown.setToolTip("Crops of the training data, beside the new images")
        self.training = SourceForm(viewer)
        self.held_out = SourceForm(viewer)
        self.learned = Message()
        self.through = ThroughForm(viewer)
        self.draw = QPushButton("Draw new images")
        self.audit = QPushButton("Check for memorisation")
        self.bar = RunBar()
        self.message = Message()
        self.verdict = VerdictPanel()
        self._sheet: _Sheet | None = None
        self._job: Job | None = None
        self._title = ""
        self._watched = _Watched()
        self._timer = QTimer(self, interval=150)
        self._timer.timeout.connect(self._show_progress)
        self._lay_out()
        self.draw.clicked.connect(self.draw_images)
        self.audit.clicked.connect(self.check_memory)
        self.prior.changed.connect(self._prior_changed)
        self.training.changed.connect(self._training_changed)
        self.through.changed.connect(self._refresh)
        self.shown.currentIndexChanged.connect(self._refresh)
        viewer.events.theme.connect(self.set_theme)  # napari holds methods weakly
        self.closing = AskFirst(self, self._at_work, self._stop_work)
        self.set_theme()
        self._prior_changed()
        self._training_changed()

    def _lay_out(self) -> None:
        self.form = labelled_rows()
        self.form.addRow("Number", self.count)
        self.form.addRow("Size (pixels)", self.size)
        self.form.addRow("Planes", self.depth)
        self.form.addRow("Seed", self.seed)
        self.form.addRow("Channel", self.channel)
        self.form.addRow("Training crops", self.shown)
        training, _ = group("Training data", self.training)
        training.setToolTip("What the prior was trained on: crops are cut from it, and the check searches it")
        self.learned_through = group("Learned through", self.learned, self.through)[0]
        advanced = QWidget()
        more = labelled_rows(advanced)
        more.setContentsMargins(8, 0, 0, 0)
        more.addRow("Calls per image", self.steps)
        unseen = QWidget()
        inside = QVBoxLayout(unseen)
        hint = QLabel("Other fields of view of the same kind, which the prior was not trained on.")
        hint.setWordWrap(True)
        inside.addWidget(hint)
        self.use_held_out = QComboBox()
        self.use_held_out.addItem("a quarter of the training data stands in", False)
        self.use_held_out.addItem("held-out data below", True)
        self.use_held_out.currentIndexChanged.connect(self._refresh)
        inside.addWidget(self.use_held_out)
        inside.addWidget(self.held_out)
        column = scrolled_column(self)
        column.addWidget(group("Prior", self.prior)[0])
        column.addLayout(self.form)
        column.addWidget(training)
        column.addWidget(self.learned_through)
        column.addWidget(fold("Advanced", advanced))
        column.addWidget(self.draw)
        column.addWidget(fold("Held-out data (sharper check)", unseen))
        column.addWidget(self.audit)
        column.addWidget(self.bar)
        column.addWidget(self.message)
        column.addWidget(self.verdict)
        column.addStretch(1)

    def set_theme(self, event: object = None) -> None:
        """Take the colours of napari's theme."""
        if not isalive(self):  # deleted with its window, while Python still knows it
            self.viewer.events.theme.disconnect(self.set_theme)
            return
        self.draw.setStyleSheet(accent_style(self.viewer.theme))
        self.verdict.recolour()

    def options(self) -> SampleOptions:
        """Read the form."""
        return SampleOptions(
            count=self.count.value(),
            size=self.size.value(),
            depth=self.depth.value(),
            steps=self.steps.value(),
            seed=self.seed.value(),
            channel=self.channel.value(),
            shown=cast("Shown | None", self.shown.currentData()),
        )

    def _prior_changed(self) -> None:
        """Ask for what the prior was learned through, if for anything."""
        prior = self.prior.prior
        record = {} if prior is None else prior.record.operator
        kind = undone_by(record)
        self.through.ask_for(kind, border_of(record))
        self.through.setVisible(kind != "nothing")
        self.learned_through.setVisible(bool(record))
        if record:
            names = " and ".join(str(part["operator"]) for part in record.get("applied", [record]))
            self.learned.say(NO_FIELDS.format(names) if kind == "nothing" else LEARNED.format(names, PARTS[kind]))
        self._refresh()

    def _training_changed(self) -> None:
        """Say which images a PSF and a mask are about."""
        try:
            volumes = self.training.volumes() if self.training.ready else []
        except (ValueError, OSError):  # shown in the form
            volumes = []
        self.through.set_volume(volumes[0] if volumes else None)
        self._refresh()

    def _lacking(self) -> str:
        """Say what must be given before training images can be restored; empty where nothing lacks."""
        prior = self.prior.prior
        if prior is None or not prior.record.operator:
            return ""
        if self.through.kind == "nothing":
            return str(self.learned.text())
        if self.through.blurred and self.through.psf.computing:
            return COMPUTING
        return f"First give {PARTS[self.through.kind]} of this prior's training." if self.through.missing else ""

    def _given(self, volumes: Sequence[Volume]) -> Through:
        """Give what the training images went through; nothing where the prior knows of nothing."""
        return Through() if self.through.kind == "nothing" else self.through.through(volumes[0])

    def _refresh(self) -> None:
        """Show what the choices leave open, and whether the work can start."""
        prior = self.prior.prior
        lacks = prior is not None and not prior.knows_below
        ready = prior is not None and not lacks and self._job is None
        if prior is not None:
            self.channel.setMaximum(len(prior.noise) - 1)
            self.form.setRowVisible(self.depth, prior.denoiser.arguments.dims == 3)
        else:
            self.form.setRowVisible(self.depth, False)
        self.form.setRowVisible(self.channel, self.channel.maximum() > 0)
        self.held_out.setVisible(bool(self.use_held_out.currentData()))
        self.draw.setEnabled(ready)
        self.audit.setEnabled(ready)
        for button, tip in ((self.draw, DRAW), (self.audit, AUDIT)):
            button.setToolTip(tip if prior is not None else "First choose a prior")
        if lacks:
            self.message.warn(NEEDS_BELOW)
        elif self.message.said.endswith(NEEDS_BELOW):
            self.message.say("")

    # ------------------------------------------------------------------------------------- new images

    def draw_images(self) -> None:
        """Draw new images and cut crops; they appear in the viewer as they come."""
        prior, options = self.prior.prior, self.options()
        if prior is None or self._job is not None:
            return
        volumes: list[Volume] = []
        if options.shown is not None:
            try:
                volumes = self.training.volumes()
            except (ValueError, OSError) as error:
                self.message.error(error)
                return
        through = Through()
        if volumes and options.shown == "denoised":
            if lacking := self._lacking():
                self.message.warn(lacking)
                return
            through = self._given(volumes)
        self._start(_draw(prior, options, volumes, through, self._new_watch()), DRAWING)
        assert self._job is not None
        self._job.yielded.connect(self._drawn)
        self._job.succeeded.connect(lambda _: self._say_what_is_shown(options, bool(volumes)))
        self._job.start()

    def _drawn(self, told: Begun | Placed) -> None:
        if isinstance(told, Begun):
            if self._sheet is not None and self._sheet.take(told):
                return
            if self._sheet is not None:
                self._sheet.remove()
            self._sheet = _Sheet(self.viewer, told)
        elif self._sheet is not None:
            self._sheet.place(told)

    def _say_what_is_shown(self, options: SampleOptions, with_crops: bool) -> None:
        crops = ", alone"
        if with_crops:
            crops = f" beside crops of the training data ({options.shown}, from random places)"
        elif options.shown is not None:
            crops = ", alone: choose the training data to see crops beside them"
        self.message.say(
            f"{options.count} new images{crops}, at the same contrast. Other layers are hidden, not removed: the eye "
            "in the layer list brings them back."
        )

    # ------------------------------------------------------------------------------------- memorisation

    def check_memory(self) -> None:
        """Look for training patches in what the prior generates and restores."""
        prior, options = self.prior.prior, self.options()
        if prior is None or self._job is not None:
            return
        try:
            volumes = self.training.volumes()
            unseen = self.held_out.volumes() if self.use_held_out.currentData() else None
        except (ValueError, OSError) as error:
            self.message.error(error)
            return
        if not volumes:
            self.message.warn("Choose the training data first: the layer or the files that the prior was trained on.")
            return
        if unseen is not None and self._same_data():
            self.message.warn("Held-out data must be other images than the training data; choose others, or none.")
            return
        if lacking := self._lacking():
            self.message.warn(lacking)
            return
        self.verdict.clear()
        work = _audit(prior, options, volumes, unseen, self._given(volumes), self._new_watch())
        self._start(work, CHECKING)
        assert self._job is not None
        self._job.succeeded.connect(self._judged)
        self._job.start()

    def _same_data(self) -> bool:
        seen, unseen = ((form.layer, form.files) for form in (self.training, self.held_out))
        return seen == unseen

    def _judged(self, told: tuple[Audit, bytes]) -> None:
        self.verdict.show_audit(*told)

    # ------------------------------------------------------------------------------------------ the job

    def _new_watch(self) -> _Watched:
        self._watched = _Watched()
        return self._watched

    def _start(self, work: Callable[[Job], Generator[Any, None, Any]], title: str) -> None:
        self.message.say("")
        self._job = run(work, self, title=title)
        self._job.failed.connect(self.message.error)
        self._job.cancelled.connect(lambda: self.message.say("Cancelled."))
        self._job.ended.connect(self._ended)
        self._title = title
        self.message.follow(self._job)
        self.bar.bind(self._job)
        scroll_to(self.bar)
        self._timer.start()
        self._refresh()

    def _at_work(self) -> tuple[str, str] | None:
        if self._job is None:
            return None
        doing = {DRAWING: "New images are being drawn.", CHECKING: "The prior is being checked for memorisation."}
        kept = {DRAWING: "The images that are there stay.", CHECKING: "Nothing is kept of it."}
        return doing[self._title], kept[self._title]

    def _stop_work(self) -> None:
        if self._job is not None:
            self._job.cancel()

    def _show_progress(self) -> None:
        stage, done, total = self._watched.read()
        if stage:
            self.bar.show_progress(done, total, stage)

    def _ended(self) -> None:
        self._timer.stop()
        self._job = None
        self._refresh()
        scroll_to(self.message)


class VerdictPanel(QWidget):
    """The audit's verdict, its sentence, and the closest pairs as a picture."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.title = QLabel()
        self.sentence = QLabel()
        self.sentence.setWordWrap(True)
        self.sentence.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.picture = _Picture()
        self.enlarge = QPushButton("Show the closest pairs…")
        self._png = b""
        self._meaning: Meaning = "neutral"
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for part in (self.title, self.sentence, self.enlarge, self.picture):
            column.addWidget(part)
        self.enlarge.clicked.connect(self.open_picture)
        self.clear()

    def clear(self) -> None:
        """Forget the last audit."""
        self._png = b""
        self.setVisible(False)

    def show_audit(self, audit: Audit, png: bytes) -> None:
        """Show an audit.

        Parameters
        ----------
        audit : Audit
            What it found.
        png : bytes
            Its picture; empty if there are no pairs.
        """
        words, self._meaning = VERDICTS[audit.verdict]
        self.title.setText(words)
        self.recolour()
        self.sentence.setText("\n".join([audit.sentence, *(f"Note: {note}" for note in audit.notes)]))
        self._png = png
        pixmap = QPixmap()
        if png:
            pixmap.loadFromData(png)
        self.picture.show_pixmap(pixmap)
        for part in (self.picture, self.enlarge):
            part.setVisible(bool(png))
        self.setVisible(True)

    def recolour(self) -> None:
        """Take the colours of napari's theme."""
        colour = signal_colour(self._meaning)
        self.title.setStyleSheet(f"QLabel {{ color: {colour}; font-size: 13pt; font-weight: bold; }}")

    def open_picture(self) -> QDialog:
        """Show the picture at its full size, with a button to save it."""
        dialog = QDialog(self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.setWindowTitle("Closest pairs")
        pixmap = QPixmap()
        pixmap.loadFromData(self._png)
        label = QLabel()
        label.setPixmap(pixmap)
        area = QScrollArea()
        area.setWidget(label)
        save = QPushButton("Save picture…")
        save.clicked.connect(self._save)
        column = QVBoxLayout(dialog)
        column.addWidget(area)
        column.addWidget(save)
        dialog.resize(min(pixmap.width() + 60, 1000), 800)
        dialog.show()
        return dialog

    def _save(self) -> None:
        name, _ = QFileDialog.getSaveFileName(self, "Save the closest pairs", "pairs.png", "PNG (*.png)")
        if name:
            Path(name).write_bytes(self._png)


class _Picture(QLabel):
    """A picture as wide as there is room, never wider than it is."""

    def __init__(self) -> None:
        super().__init__()
        self._pixmap = QPixmap()
        self.setMinimumWidth(50)
        self.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignHCenter)

    def show_pixmap(self, pixmap: QPixmap) -> None:
        self._pixmap = pixmap
        self._fit()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        if self._pixmap.isNull():
            self.clear()
            return
        wanted = QSize(min(self.width(), self._pixmap.width()), self._pixmap.height())
        scaled = self._pixmap.scaled(
            wanted, Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
        )
        self.setPixmap(scaled)


class _Sheet:
    """The layers of one sheet in a viewer: new images, crops, and titles over them."""

    def __init__(self, viewer: Viewer, begun: Begun) -> None:
        self._viewer = weakref.ref(viewer)
        self._begun = begun
        self._blocks: dict[Side, Block] = {"sample": begun.samples}
        if begun.crops is not None:
            self._blocks["crop"] = begun.crops
        names = {"sample": "New images from the prior", "crop": f"Training crops, {begun.shown}"}
        solid = len(begun.samples.cell) == 3
        axes = "ZYX" if solid else "YX"
        # napari draws layers together only in one unit
        pixels = any(str(unit) == "pixel" for layer in viewer.layers for unit in layer.units[-2:])
        self._sizes = None if pixels else {axis: begun.voxel_size.get(axis) for axis in axes}
        self._axes, self._names = axes, names
        self._hidden = [layer for layer in viewer.layers if layer.visible]
        self.layers: list[Layer] = []
        self._images: dict[str, Image] = {}
        self._left = 0
        self._titles: dict[str, tuple[float, float]] = {}
        # At once: napari has been seen to crash where it painted a sheet that takes another's place half built.
        for side in self._blocks:
            self._add_block(viewer, side)
        self._add_titles(viewer)

    def _add_block(self, viewer: Viewer, side: Side) -> None:
        begun, block, axes, name = self._begun, self._blocks[side], self._axes, self._names[side]
        empty = block.empty()
        # without a name of its own dask would read all of it to make one
        lazy = da.from_array(empty, chunks=-1, name=False)
        volume = Volume.from_array(lazy, axes, voxel_size=self._sizes, name=name, history=(begun.record,))
        _, arguments = layer_arguments(volume, None, name=name)
        scale = np.asarray(arguments.get("scale", (1.0,) * len(axes)), dtype=float)
        arguments["translate"] = (*(0.0,) * (len(axes) - 1), self._left * scale[-1])
        arguments |= {"contrast_limits": (0.0, 1.0), "colormap": "gray"}
        layer = viewer.add_image(empty, **arguments)
        self._images[side] = layer
        self.layers.append(layer)
        self._titles[name.removesuffix(" from the prior")] = (
            -0.02 * block.shape[-2] * scale[-2],
            self._left * scale[-1],
        )
        self._left += block.shape[-1] + 4 * block.gap
        for other in self._hidden:
            other.visible = False
        self._hidden = []
        viewer.layers.selection.active = self._images["sample"]

    def _add_titles(self, viewer: Viewer) -> None:
        images = list(self._images.values())
        text = viewer.add_points(
            np.array(list(self._titles.values())),
            name="titles",
            size=0.01,
            face_color="transparent",
            border_color="transparent",
            text={"string": list(self._titles), "size": 10, "color": TITLE_COLOUR, "anchor": "upper_left"},
            units=tuple(str(unit) for unit in images[0].units[-2:]),
        )
        self.layers.append(text)
        if len(images) > 1:
            link_layers(images, ("contrast_limits", "gamma", "colormap"))
        viewer.layers.selection.active = images[0]
        samples = self._begun.samples
        if len(samples.cell) == 3:
            viewer.dims.set_current_step(viewer.dims.ndim - 3, samples.cell[0] // 2)
        _look_at(viewer, images)

    def take(self, begun: Begun) -> bool:
        """Empty the sheet for new images, if they fit and all its layers are there; adding layers takes time."""
        viewer, old = self._viewer(), self._begun
        same = (begun.samples, begun.crops, begun.shown) == (old.samples, old.crops, old.shown)
        same = same and begun.voxel_size == old.voxel_size
        if viewer is None or not same or any(layer not in viewer.layers for layer in self.layers):
            return False
        self._begun = begun
        for side, block in self._blocks.items():
            layer = self._images[side]
            layer.data = block.empty()
            layer.metadata[METADATA] |= {"history": [begun.record], "provenance": begun.record}
            layer.visible = True
        return True

    def place(self, told: Placed) -> None:
        """Show one more image."""
        layer = self._images[told.side]
        if layer not in self.layers:
            return
        data = cast("NDArray[np.float32]", layer.data)
        self._blocks[told.side].place(data, told.index, told.image)
        layer.contrast_limits_range = told.limits
        layer.contrast_limits = told.limits
        layer.refresh()

    def remove(self) -> None:
        """Take the sheet's layers out of the viewer, if they are still there."""
        viewer = self._viewer()
        for layer in self.layers:
            if viewer is not None and layer in viewer.layers:
                viewer.layers.remove(layer)
        self.layers, self._images = [], {}


def _look_at(viewer: Viewer, images: Sequence[Image]) -> None:
    """Fill the view with images: among large hidden layers they would be small, and their titles would overlap."""
    viewer.reset_view()
    canvas, scene = getattr(viewer, "canvas", None), getattr(viewer, "scene", None)  # since napari 0.9
    if canvas is None or scene is None or viewer.dims.ndisplay != 2 or canvas.grid.enabled:
        return
    # napari's own way to fit some layers fails where all of them have fewer axes than the viewer
    low, high = (np.array([image.extent.world[end, -2:] for image in images]) for end in (0, 1))
    top, bottom = low.min(axis=0), high.max(axis=0)
    scene.camera.center = tuple((top + bottom) / 2)
    scene.camera.zoom = (1 - MARGIN) * float(np.min(np.array(canvas.size) / (bottom - top)))


class _Watched:
    """How far the work is: written by the worker, read by the window."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state: tuple[str, int, int] = ("", 0, 0)

    def reach(self, stage: str, done: int, total: int) -> None:
        with self._lock:
            self._state = (stage, done, total)

    def read(self) -> tuple[str, int, int]:
        with self._lock:
            return self._state


def _draw(
    prior: Prior, options: SampleOptions, volumes: Sequence[Volume], through: Through, watched: _Watched
) -> Callable[[Job], Generator[Begun | Placed, None, None]]:
    """Make the work of drawing: the blocks first, then a new image and a crop in turn."""

    def work(job: Job) -> Generator[Begun | Placed, None, None]:
        from napari_ambient.devices import choose_device
        from napari_ambient.prior import place

        # napari's titles (Points) need it; imported by them it would hold the window up for a second
        importlib.import_module("pandas")
        device = choose_device(settings().device)
        used = place(prior, device)
        operator = through.operator() if used.record.operator and options.shown == "denoised" and volumes else None
        shape = cell_shape(used, options.size, options.depth)
        block = lay_out(options.count, shape)
        record = {
            "action": "sample",
            "prior_sha256": used.sha256,
            "steps": options.steps,
            "seed": options.seed,
            "program": "napari-ambient",
            "version": __version__,
        }
        sizes = dict(used.record.voxel_size)
        if volumes and not any(sizes.values()):
            sizes = volumes[0].voxel_size
        yield Begun(block, block if volumes else None, options.shown, sizes, record)

        def watch(done: int, total: int) -> None:
            job.check()
            watched.reach("drawing new images", done, total)

        images: list[NDArray[np.float32]] = []
        if volumes and options.shown is not None:
            watched.reach("cutting training crops", 0, 0)
            crops = training_crops(
                volumes,
                used,
                shape,
                count=options.count,
                shown=options.shown,
                operator=operator,
                channel=options.channel,
                seed=options.seed,
                device=device,
                watch=job.check,
            )
            for index, crop in enumerate(crops):
                images.append(crop)
                yield Placed("crop", index, crop, contrast(images))
        drawn = used.iter_sample(
            shape, count=options.count, steps=options.steps, seed=options.seed, channel=options.channel, watch=watch
        )
        for index, image in enumerate(drawn):
            images.append(image)
            yield Placed("sample", index, image, contrast(images))

    return work


def _audit(
    prior: Prior,
    options: SampleOptions,
    training: Sequence[Volume],
    held_out: Sequence[Volume] | None,
    through: Through,
    watched: _Watched,
) -> Callable[[Job], Generator[None, None, tuple[Audit, bytes]]]:
    """Make the work of the audit; the result comes with its picture."""

    def work(job: Job) -> Generator[None, None, tuple[Audit, bytes]]:
        from napari_ambient.devices import choose_device
        from napari_ambient.prior import place
        from napari_ambient.prior_audit import audit_prior

        yield

        def watch(stage: str, done: int, total: int) -> None:
            job.check()
            watched.reach(stage, done, total)

        result = audit_prior(
            place(prior, choose_device(settings().device)),
            training,
            held_out,
            operator=through.operator() if prior.record.operator else None,
            channel=options.channel,
            steps=options.steps,
            seed=options.seed,
            watch=watch,
        )
        picture = io.BytesIO()
        if result.pairs:
            result.figure(picture, title=False)
        return result, picture.getvalue()

    return work


def _number_box(value: int, low: int, high: int, tooltip: str) -> QSpinBox:
    box = QSpinBox(minimum=low, maximum=high, value=value)
    box.setToolTip(tooltip)
    return box
