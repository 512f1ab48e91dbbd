"""Restore: a prior and an image in, a denoised, deconvolved or filled-in layer out, with error bars where asked for.

    form → Task → `_restoring_job.restore_job` (restoration.restore, restore_part) → `_layers.layer_arguments` → layers

The result lies exactly on its source, and its metadata say how it was made. Results above the memory cap go to an
OME-Zarr folder, block by block, and can be looked at while they grow.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from napari.layers import Image
from napari.viewer import Viewer
from numpy.typing import NDArray
from qtpy.compat import isalive
from qtpy.QtCore import QObject, QSignalBlocker, Qt, QTimer, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLineEdit,
    QPushButton,
    QRadioButton,
    QSizePolicy,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_ambient.volumes import Volume
from napari_ambient.volumes.volume import file_stem
from napari_ambient.widgets._accuracy import (
    CHECKED,
    FRAMES,
    ONE_FRAME,
    ONLY_THE_MEAN,
    TURNS,
    CheckedBy,
    checks_box,
    enable_entry,
    offer,
    offer_quarter_turns,
    turns_box,
)
from napari_ambient.widgets._channels import channel_titles, find_channel
from napari_ambient.widgets._closing import AskFirst
from napari_ambient.widgets._column import group, labelled_rows, scroll_to, scrolled_column
from napari_ambient.widgets._forms import LayerBox, PriorBox, SourceForm, fold, make_narrow
from napari_ambient.widgets._holes import MissingWords, holes_box
from napari_ambient.widgets._layers import (
    METADATA,
    LayerError,
    known_axes,
    layer_arguments,
    mask_from_layer,
    rectangle,
    show_in,
    volume_from_layer,
)
from napari_ambient.widgets._operator import Undone, border_of, undone_by
from napari_ambient.widgets._psf import PsfForm
from napari_ambient.widgets._restoring_job import Growing, Grown, Item, Made, Task, look_job, restore_job
from napari_ambient.widgets._run import Job, Message, RunBar, duration, run
from napari_ambient.widgets._settings import settings
from napari_ambient.widgets._theme import accent_style
from napari_ambient.widgets._through import ThroughForm

if TYPE_CHECKING:
    import dask.array as da

    from napari_ambient.compatibility import Misfit
    from napari_ambient.prior import Prior

WAIT = 300
"""Milliseconds without a change of prior or image until they are compared."""
FILLS_IN = (
    "This prior knows nothing below the noise of its data, so it gives no error bars; what it was trained for (“{}”) "
    "it does in one call, the mean alone."
)
NEEDS_PSF = "First give the PSF of the blur"
RESTORES = "A restoration runs: Cancel ends it"
MEAN_ALONE = "This prior's own posterior gives the mean alone; error bars need draws."
NEEDS_BELOW = (
    "This prior knows nothing below the noise of its data, so it gives no error bars and undoes no blur: train it on "
    "with “Error bars too”."
)
ERROR_COLOURS = "inferno"
SHOWN_AS: dict[str, str] = {"draws": "draws", "error bar": "error bar", "mean": "restored"}
TOO_WIDE = 2.0
"""Contrast limits of the source, in those of the result, from which the result takes its own."""


class RestoreWidget(QWidget):
    """The Restore form.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        Where the images are and the results go. (napari hands it over by this name.)
    """

    restored = Signal(list)
    """The layers of a finished restoration."""

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self._job: Job | None = None
        self._look: Job | None = None
        self._misfits: list[Misfit] = []
        self._items: tuple[Item, ...] = ()
        self._sources: list[tuple[Image | None, str]] = []
        self._growing: dict[int, Image] = {}
        self._previews: dict[str, Image] = {}
        self._fresh: dict[str, Image] = {}
        self._layers: list[Image] = []
        self._notes: list[str] = []
        self._others_shown: list[Image] = []
        self._progress = _Progress()
        self._paired: tuple[Any, ...] | None = None
        self._make_parts()
        self._lay_out()
        self._connect()
        self.set_theme()
        self._source_changed()

    # ------------------------------------------------------------------------------------- the form

    def _make_parts(self) -> None:
        self.prior = PriorBox(self.viewer)
        self.source = SourceForm(self.viewer)
        self.others = QCheckBox()
        self.others.setToolTip("Restore all image layers that are selected in the layer list, one after another")
        self.channel = QComboBox()
        self.channel.setToolTip("The prior was trained on several channels: which of them is this image?")
        self.which = Message()
        self.fit = Message()
        self.refit = QCheckBox("Fit the noise anew to this image")
        self.refit.setToolTip(
            "For another camera, gain or offset than in training; without, the noise is that of the prior's own data"
        )
        self.task = QComboBox()
        for text, value, tip in (
            ("Denoise", "nothing", "Take the noise away"),
            ("Deconvolve", "psf", "Undo the blur of the microscope too; for priors of sharp structures"),
            ("Fill in holes", "holes", "Fill in voxels that were not measured: painted ones, and NaN"),
            ("Deconvolve and fill in", "both", "Undo the blur, and fill in what was not measured"),
        ):
            self.task.addItem(text, value)
            self.task.setItemData(self.task.count() - 1, tip, Qt.ItemDataRole.ToolTipRole)
        self.by = QComboBox()
        for text, value, tip in (
            ("draws, step by step", "samples", "Whatever the PSF and the holes are; many network calls per draw"),
            (
                "its own posterior (fast)",
                "amortised",
                "The prior was trained for this task: one network call per draw; with the PSF of the training alone",
            ),
        ):
            self.by.addItem(text, value)
            self.by.setItemData(self.by.count() - 1, tip, Qt.ItemDataRole.ToolTipRole)
        self.by.setToolTip("How the prior undoes what happened to the light")
        self.psf = PsfForm(self.viewer)
        self.holes = LayerBox(self.viewer, "mask", none="NaN voxels alone")
        self.holes.setToolTip("Labels layer on which the holes are painted, or a mask; NaN are holes too")
        self.holes_are = holes_box()
        self.missing = MissingWords(self.holes, self.holes_are)
        self.mean = QRadioButton("Mean")
        self.mean.setToolTip("The best estimate of every voxel")
        self.error_bars = QRadioButton("Mean and error bar")
        self.error_bars.setToolTip(
            "Draw several images that the measurement could have come from; they differ by what is not known"
        )
        self.mean.setChecked(True)
        self.draws = _count_box(8, 2, 256, "Images to draw; the time grows with them")
        self.keep = QCheckBox("keep them")
        self.keep.setToolTip("A layer with all draws, to flick through with a slider")
        self.recalibrate = checks_box()
        self.below = Message()
        self.where = QComboBox()
        for text, value in (
            ("whole image", "whole"),
            ("current slice (preview)", "slice"),
            ("region, current slice (preview)", "region slice"),
            ("region", "region"),
        ):
            self.where.addItem(text, value)
        self.where.setToolTip("Try a slice or a region first: it comes out as it will in the whole")
        self.region = LayerBox(self.viewer, "shapes")
        self.region.setToolTip("Shapes layer; the rectangle around the selected, or last, shape counts")
        self.output = QLineEdit()
        self.output.setToolTip("The result is larger than the memory cap of the settings and is written here")
        self.browse = QPushButton("Browse…")
        self.disk = Message()
        self.steps = _count_box(18, 2, 200, "Network calls per draw; stages where blur or holes are undone")
        self.seed = _count_box(0, 0, 2**31 - 1, "The same seed gives the same draws")
        self.turns = turns_box()
        self.dtype = QComboBox()
        for text, value in (("float32", "float32"), ("that of the image (rounded)", "input")):
            self.dtype.addItem(text, value)
        for box in (self.channel, self.task, self.by, self.where, self.dtype):
            make_narrow(box)
        self.button = QPushButton("Restore")
        self.bar = RunBar()
        self.message = Message()
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(WAIT)

    def _lay_out(self) -> None:
        self.rows = labelled_rows()
        result = QHBoxLayout()
        result.addWidget(self.mean)
        result.addWidget(self.error_bars)
        result.addStretch(1)
        self.drawing = QWidget()
        drawing = QHBoxLayout(self.drawing)
        drawing.setContentsMargins(0, 0, 0, 0)
        drawing.addWidget(self.draws, 1)
        drawing.addWidget(self.keep)
        for title, field in (
            ("Task", self.task),
            ("Holes", self.holes),
            ("Holes are", self.holes_are),
        ):
            self.rows.addRow(title, field)
        self.rows.addRow(self.missing)
        self.rows.addRow(self.psf)
        self.rows.addRow("By", self.by)
        self.rows.addRow("Result", result)
        self.rows.addRow("Draws", self.drawing)
        self.rows.addRow("Error bars", self.recalibrate)
        self.rows.addRow(self.below)
        self.rows.addRow("Where", self.where)
        self.rows.addRow("Region", self.region)
        self.target = QWidget()
        target = QVBoxLayout(self.target)
        target.setContentsMargins(0, 0, 0, 0)
        file = QHBoxLayout()
        file.addWidget(self.output, 1)
        file.addWidget(self.browse)
        target.addWidget(self.disk)
        target.addLayout(file)
        advanced = QWidget()
        more = labelled_rows(advanced)
        more.setContentsMargins(8, 0, 0, 0)
        for title, field in (
            ("Average over", self.turns),
            ("Steps", self.steps),
            ("Seed", self.seed),
            ("Type", self.dtype),
        ):
            more.addRow(title, field)
        how, inside = group("Restore")
        inside.addLayout(self.rows)
        inside.addWidget(fold("Advanced", advanced))
        self.channels = QWidget()
        channels = labelled_rows(self.channels)
        channels.setContentsMargins(0, 0, 0, 0)
        channels.addRow("Its channel", self.channel)
        channels.addRow(self.which)
        column = scrolled_column(self)
        column.addWidget(group("Prior", self.prior, self.channels)[0])
        column.addWidget(group("Image", self.source, self.others, self.fit, self.refit)[0])
        column.addWidget(how)
        column.addWidget(self.target)
        column.addWidget(self.button)
        column.addWidget(self.bar)
        column.addWidget(self.message)
        column.addStretch(1)

    def _connect(self) -> None:
        self.prior.changed.connect(self._pair_changed)
        self.prior.changed.connect(self._take_border)
        self.source.changed.connect(self._source_changed)
        self.refit.toggled.connect(self._pair_changed)
        self.channel.currentIndexChanged.connect(self._pair_changed)
        self.channel.activated.connect(lambda _: self.which.say(""))  # the user has said it
        for box in (self.task, self.by, self.holes_are, self.where, self.dtype, self.recalibrate, self.turns):
            box.currentIndexChanged.connect(self._refresh)
        for choice in (self.mean, self.error_bars, self.keep, self.others):
            choice.toggled.connect(self._refresh)
        for box in (self.task, self.by, self.holes_are, self.where, self.recalibrate, self.turns):
            box.activated.connect(self._forget)
        for choice in (self.mean, self.error_bars):
            choice.clicked.connect(self._forget)
        self.draws.valueChanged.connect(self._refresh)
        for part in (self.psf, self.region, self.holes):
            part.changed.connect(self._refresh)
        self.browse.clicked.connect(self._ask_target)
        self.button.clicked.connect(self.start)
        self.bar.button.clicked.connect(self._drop_growing)
        self._timer.timeout.connect(self._compare)
        self._progress.moved.connect(self._show_progress)
        selection, theme = self.viewer.layers.selection.events.changed, self.viewer.events.theme
        selection.connect(self._selection_changed)
        theme.connect(self.set_theme)
        self.destroyed.connect(
            lambda *_, a=selection, b=theme, one=self._selection_changed, two=self.set_theme: (
                a.disconnect(one),
                b.disconnect(two),
            )
        )
        self.closing = AskFirst(self, self._at_work, self.cancel)

    def set_theme(self, event: object = None) -> None:
        """Take the colours of napari's theme."""
        if isalive(self):
            self.button.setStyleSheet(accent_style(self.viewer.theme))

    @property
    def running(self) -> bool:
        """Whether a restoration runs."""
        return self._job is not None

    # ------------------------------------------------------------------------------------- what changed

    def _source_changed(self) -> None:
        volumes = self._volumes()
        if not self.running:
            self.message.say("")
        first = volumes[0] if volumes else None
        self.psf.set_volume(first)
        self.missing.set_volume(first)
        self.output.setModified(False)
        self._pair_changed()

    def _volumes(self) -> list[Volume]:
        """Read the source; empty while it cannot be read, and the source form says why."""
        try:
            return self.source.volumes() if self.source.ready else []
        except (ValueError, OSError):  # shown in the form
            return []

    def _pair_changed(self, _: object = None) -> None:
        """Prior, image or noise are others: compare them a moment later."""
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self._misfits = []
        self._list_channels()
        if self.prior.prior is not None and self.source.ready and not self.running:
            self._timer.start()
        else:
            self._timer.stop()
        self._refresh()

    def _take_border(self) -> None:
        """Take what a prior that was trained through a blur took to lie beyond its images."""
        prior = self.prior.prior
        if prior is not None and self._learned in ("psf", "both"):
            self.psf.choose_border(border_of(prior.record.operator))

    def _list_channels(self) -> None:
        """Offer the channels of a prior of several, for an image of one: the image's own, as far as it is known."""
        prior, volumes = self.prior.prior, self._volumes()
        asked = prior is not None and bool(volumes) and volumes[0].sizes.get("C", 1) == 1 < len(prior.noise)
        self.channels.setVisible(asked)
        if prior is None or not asked:
            self._paired = None
            with QSignalBlocker(self.channel):
                self.channel.clear()
            return
        source = self.source.layer if self.source.layer is not None else self.source.files
        pair = (prior, source, volumes[0].channel_names)
        if pair == self._paired:
            return  # what the user has chosen since then stays
        self._paired = pair
        number, words = find_channel(prior, volumes[0], self.source.layer)
        with QSignalBlocker(self.channel):
            self.channel.clear()
            self.channel.addItems(channel_titles(prior))
            self.channel.setCurrentIndex(number)
        self.which.warn(words) if words else self.which.say("")

    @property
    def _channel(self) -> int | None:
        return self.channel.currentIndex() if self.channel.count() else None

    def _channel_of(self, prior: Prior, volume: Volume, layer: Image | None) -> int | None:
        """Give the prior's channel for one of the images: the chosen one, but for another layer that is known."""
        if len(prior.noise) == 1 or volume.sizes.get("C", 1) > 1:
            return None
        if layer is self.source.layer:
            return self._channel
        number, doubt = find_channel(prior, volume, layer)
        return self._channel if doubt else number

    def _compare(self) -> None:
        volumes, prior = self._volumes(), self.prior.prior
        if not volumes or prior is None:
            return
        refit, channel = self.refit.isChecked(), self._channel
        job = run(
            lambda job: look_job(volumes[0], prior, channel, refit, job.check), self, title="comparing prior and image"
        )
        self._look = job

        def found(misfits: list[Misfit]) -> None:
            if job is self._look:
                self._look, self._misfits = None, misfits
                self._refresh()

        def failed(error: Exception) -> None:
            if job is self._look:
                self._look = None
                self.fit.warn(str(error))

        job.succeeded.connect(found)
        job.failed.connect(failed)
        job.start()

    def _refresh(self, _: object = None) -> None:
        """Show and enable what makes sense now."""
        if not isalive(self):
            return
        prior = self.prior.prior
        knows = prior is None or prior.knows_below
        learned = self._learned
        for row in range(1, self.task.count()):
            enable_entry(self.task, row, knows or self.task.itemData(row) == learned)
        if not knows and self.task.currentData() != learned:
            self.task.setCurrentIndex(0)
        task, where = self.task.currentData(), self.where.currentData()
        own = task == learned != "nothing"
        enable_entry(self.by, 0, knows)
        if own and not knows:
            self.by.setCurrentIndex(1)
        alone = self._amortised and prior is not None and prior.posterior is None
        self.error_bars.setEnabled(knows and not alone and not self.running)
        if not knows or alone:
            self.mean.setChecked(True)
        words = MEAN_ALONE if alone else ""
        if not knows:
            at = self.task.findData(learned)
            words = NEEDS_BELOW if learned == "nothing" else FILLS_IN.format(self.task.itemText(at))
        self.below.say(words)
        drawn = (self.error_bars.isChecked() or task != "nothing") and not alone
        blurred = task in ("psf", "both")
        visible = self.rows.setRowVisible
        visible(self.below, bool(words))
        visible(self.by, own)
        visible(self.psf, blurred)
        self.psf.set_wanted(blurred)
        visible(self.holes, task in ("holes", "both"))
        visible(self.holes_are, task in ("holes", "both") and self.holes.layer is not None)
        self.missing.set_wanted(task in ("holes", "both"))
        visible(self.drawing, drawn)
        visible(self.recalibrate, self.error_bars.isChecked() and task == "nothing")
        self._show_accuracy()
        visible(self.region, where in ("region", "region slice"))
        self.keep.setVisible(self.error_bars.isChecked())
        self.steps.setEnabled(drawn and not self._amortised)
        self.seed.setEnabled(drawn)
        self._show_others()
        self._show_misfits()
        self._show_target()
        ready = prior is not None and self.source.ready and not self.running
        self.button.setEnabled(ready and (not blurred or self.psf.psf is not None))
        whole = where in ("whole", "region")
        missing = [
            word for word, there in (("a prior", prior is not None), ("an image", self.source.ready)) if not there
        ]
        waits = NEEDS_PSF if blurred and self.psf.psf is None else ""
        if missing:
            waits = f"First choose {' and '.join(missing)}"
        self.button.setToolTip(RESTORES if self.running else waits)
        self.button.setText("Restoring…" if self.running else "Restore" if whole else "Preview")
        fixed = (self.prior, self.channels, self.source, self.refit, self.others, self.task, self.psf, self.holes)
        for part in (*fixed, self.by, self.holes_are, self.where, self.region, self.mean, self.drawing):
            part.setEnabled(not self.running)

    def _forget(self, _: object = None) -> None:
        """Take back what was said of the last restoration: the user now asks for another one."""
        if not self.running:
            self.message.say("")

    def follow(self, through: ThroughForm) -> None:
        """Choose the task of a training, with its PSF and its mask.

        Parameters
        ----------
        through : ThroughForm
            Of the Train form.
        """
        self.task.setCurrentIndex(self.task.findData(through.kind))
        if through.blurred:
            self.psf.copy_from(through.psf)
        if through.holed:
            self.holes.choose(through.mask.layer)
            self.holes_are.setCurrentIndex(through.holes.currentIndex())

    @property
    def _learned(self) -> Undone:
        """The task that the prior was trained for, besides denoising."""
        return "nothing" if self.prior.prior is None else undone_by(self.prior.prior.record.operator)

    @property
    def _amortised(self) -> bool:
        """Whether the prior's own posterior is to do it."""
        return bool(self.task.currentData() == self._learned != "nothing" and self.by.currentData() == "amortised")

    def _show_accuracy(self) -> None:
        """Offer turns for the mean, and checks of the error bars; what cannot be is greyed out, with the reason."""
        prior, volumes = self.prior.prior, self._volumes()
        mean = self.mean.isChecked() and self.task.currentData() == "nothing"
        self.turns.setEnabled(mean and not self.running)
        self.turns.setToolTip(TURNS if mean else ONLY_THE_MEAN)
        offer_quarter_turns(self.turns, volumes[0] if volumes else None, prior)
        reason = ""
        if prior is not None and prior.record.form != "thinning":
            reason = "Photons cannot be held out from images whose noise is not that of counted light"
        elif volumes and volumes[0].sizes.get("C", 1) > 1:
            reason = "One channel at a time: split the channels first (right click on the layer)"
        self.recalibrate.setEnabled(not reason and not self.running)
        self.recalibrate.setToolTip(reason or CHECKED)
        alone = bool(volumes) and volumes[0].sizes.get("T", 1) == 1
        offer(self.recalibrate, "frames", FRAMES, ONE_FRAME if alone else "")

    @property
    def _checked_by(self) -> CheckedBy:
        """By what the error bars are to be checked, where there are any."""
        possible = self.recalibrate.isEnabled() and self.error_bars.isChecked() and self.task.currentData() == "nothing"
        return cast(CheckedBy, self.recalibrate.currentData()) if possible else "nothing"

    def _refuse_check(self, volumes: Sequence[Volume]) -> None:
        """Refuse images whose error bars cannot be checked as the form says, before any of them is restored."""
        for volume in volumes if self._checked_by != "nothing" else ():
            if volume.sizes.get("C", 1) > 1:
                raise LayerError(
                    f"{volume.name} has {volume.sizes['C']} channels, and error bars are checked for one at a time; "
                    "split the channels first (right click on the layer), or choose error bars “not checked”"
                )
            if self._checked_by == "frames" and volume.sizes.get("T", 1) == 1:
                raise LayerError(
                    f"{volume.name} has one time point, and no others to check its error bars by; have them checked by "
                    "held-out photons, or correct the axes (“Edit”)"
                )

    def _selection_changed(self, _: object = None) -> None:
        """Look at the form again only if it matters: napari tells of every layer that comes or goes, several times."""
        if isalive(self) and self._other_layers() != self._others_shown:
            self._refresh()

    def _show_others(self) -> None:
        self._others_shown = others = self._other_layers()
        self.others.setVisible(bool(others))
        count = f"{len(others)} other selected layers" if len(others) > 1 else "the other selected layer"
        self.others.setText(f"and {count}")

    def _other_layers(self) -> list[Image]:
        """Give the image layers that are selected together with the chosen one, in the list's order."""
        chosen, selected = self.source.layer, self.viewer.layers.selection
        if chosen is None or chosen not in selected:
            return []
        return [
            layer for layer in self.viewer.layers if layer in selected and layer != chosen and isinstance(layer, Image)
        ]

    def _show_misfits(self) -> None:
        told = [misfit for misfit in self._misfits if not (self.refit.isChecked() and misfit.about == "noise")]
        self.refit.setVisible(self.source.ready)
        if told:
            self.fit.warn("\n⚠ ".join(misfit.sentence for misfit in told))
        else:
            self.fit.say("")

    def _show_target(self) -> None:
        """Say where a result goes that is larger than the memory cap."""
        task = self._task(checked=False)
        need = 0 if task is None else max(task.size(item) for item in task.items)
        large = task is not None and need > task.memory
        self.target.setVisible(large)
        if task is None or not large:
            return
        if not self.output.isModified():
            self.output.setText(str(self._free_path(task.items[0].volume, self.source.layer, set())))
        self.disk.say(
            f"The result takes {need / 1e9:.2g} GB, above the memory cap of {task.memory / 1e9:.2g} GB: it is written "
            "to this OME-Zarr folder, and shown while it grows."
        )

    def _ask_target(self) -> None:
        name, _ = QFileDialog.getSaveFileName(
            self, "Where to write the result", self.output.text(), "OME-Zarr (*.zarr)"
        )
        if name:
            self.output.setText(name if name.endswith(".zarr") else f"{name}.ome.zarr")
            self.output.setModified(True)

    # ------------------------------------------------------------------------------------- the task

    def _task(self, *, checked: bool = True) -> Task | None:
        """Read the form.

        Parameters
        ----------
        checked : bool
            Whether regions, masks and files must be there; without, they are left out, and so are paths.

        Raises
        ------
        LayerError
            If something that was chosen cannot be used.
        """
        prior, volumes = self.prior.prior, self._volumes()
        if prior is None or not volumes:
            return None
        chosen, through = settings(), self.task.currentData()
        layers: list[Image | None] = [self.source.layer] * len(volumes)
        if self.others.isChecked() and checked:
            for layer in self._other_layers():
                axes = known_axes(layer) or (self.source.axes if layer.ndim == len(self.source.axes or "") else None)
                layers.append(layer)
                volumes.append(volume_from_layer(layer, axes=axes))
        if checked:
            self._refuse_check(volumes)
        items: list[Item] = []
        sources = []
        taken: set[Path] = set()
        for layer, volume in zip(layers, volumes, strict=True):
            axes = volume.axes if layer is None else (known_axes(layer) or self.source.axes or volume.axes)
            part = self._part(layer, volume, axes) if checked or self.where.currentData() == "slice" else {}
            measured = None
            if through in ("holes", "both") and self.holes.layer is not None and checked:
                painted = bool(self.holes_are.currentData())
                measured = functools.partial(mask_from_layer, self.holes.layer, volume, painted=painted)
            # without a look at the disk, which may be far away, as long as nobody asks
            path = self._free_path(volume, layer, taken) if checked else Path()
            if checked and self.output.isModified() and not items:
                path = Path(self.output.text()).expanduser()
            taken.add(path)
            items.append(Item(volume, part, path, measured, self._channel_of(prior, volume, layer)))
            sources.append((layer, axes))
        if checked:
            self._sources = sources
        return Task(
            prior=prior,
            items=tuple(items),
            refit=self.refit.isChecked(),
            through=through,
            psf=self.psf.psf if through in ("psf", "both") else None,
            border=self.psf.chosen_border,
            amortised=self._amortised,
            result="draws" if self.error_bars.isChecked() else "mean",
            keep=self.keep.isChecked() and self.error_bars.isChecked(),
            draws=self.draws.value(),
            steps=self.steps.value(),
            seed=self.seed.value(),
            recalibrate=self._checked_by != "nothing",
            still=self._checked_by == "frames",
            turns=self.turns.currentData(),
            dtype=self.dtype.currentData(),
            device=chosen.device,
            memory=chosen.memory_mb * 10**6,
        )

    def _part(self, layer: Image | None, volume: Volume, axes: str) -> Mapping[str, slice]:
        where = self.where.currentData()
        if where == "whole":
            return {}
        if layer is None:
            raise LayerError(
                "a slice or a region is chosen on a layer; open the file in napari first, or take it whole"
            )
        part: dict[str, slice] = {}
        if where in ("slice", "region slice"):
            here = layer.world_to_data(self.viewer.dims.point)
            displayed = [i - (self.viewer.dims.ndim - layer.ndim) for i in self.viewer.dims.displayed]
            for i, axis in enumerate(axes):
                if axis in "TZ" and i not in displayed:
                    at = int(np.clip(round(float(here[i])), 0, volume.sizes[axis] - 1))
                    part[axis] = slice(at, at + 1)
        if where in ("region", "region slice"):
            if self.region.layer is None:
                raise LayerError("there is no region: add a Shapes layer (the polygon button above the layer list)")
            part["Y"], part["X"] = rectangle(self.region.layer, layer, volume)
        return part

    def _free_path(self, volume: Volume, layer: Image | None, taken: set[Path]) -> Path:
        folder = settings().cache_folder
        source = volume.source or (None if layer is None else layer.source.path)
        if source is not None and Path(source).parent.is_dir():
            folder = Path(source).parent
        stem = file_stem(volume.name.replace("/", "_").replace("\\", "_") or "image")
        path, number = folder / f"{stem}_restored.ome.zarr", 1
        while path.exists() or path in taken:
            number += 1
            path = folder / f"{stem}_restored_{number}.ome.zarr"
        return path

    # ------------------------------------------------------------------------------------- at work

    def start(self) -> None:
        """Restore what the form says."""
        if self.running:
            return
        try:
            task = self._task()
        except (ValueError, OSError) as error:
            self.message.error(error)
            return
        if task is None:
            self.message.warn("Choose a prior and an image.")
            return
        self.message.say("")
        self._items, self._layers, self._notes, self._fresh = task.items, [], [], {}
        self._timer.stop()
        progress = self._progress
        progress.number += 1
        number = progress.number

        def report(done: int, total: int, text: str) -> None:
            progress.moved.emit(number, done, total, text)

        job = run(
            lambda job: restore_job(task, job.check, report), self, title=f"restoring {task.items[0].volume.name}"
        )
        self._job = job
        job.yielded.connect(self._show)
        job.succeeded.connect(self._succeeded)
        job.failed.connect(self.message.error)
        job.cancelled.connect(lambda: self.message.say("Cancelled; nothing was kept of what was not finished."))
        job.ended.connect(self._ended)
        self.message.follow(job)
        self.bar.bind(job)
        scroll_to(self.bar)
        self._refresh()
        job.start()

    def cancel(self) -> None:
        """Stop the restoration."""
        if self._job is not None:
            self._job.cancel()
            self._drop_growing()

    def _at_work(self) -> tuple[str, str] | None:
        if not self.running:
            return None
        names = [item.volume.name for item in self._items]
        what = f"{names[0]} is" if len(names) == 1 else f"{len(names)} images are"
        return f"{what} being restored.", "Nothing is kept of an image that is not finished."

    def _show_progress(self, number: int, done: int, total: int, text: str) -> None:
        if self.running and number == self._progress.number:
            self.bar.show_progress(done, total, text)

    def _show(self, event: Growing | Grown | Made) -> None:
        if isinstance(event, Grown):
            if event.number in self._growing:
                self._growing[event.number].refresh()
        elif isinstance(event, Growing):
            data, arguments = self._arguments(event.number, event.mean, "restored (growing)")
            # nothing is kept of what is not there yet
            self._growing[event.number] = self.viewer.add_image(data, cache=False, **arguments)
        else:
            self._show_made(event)

    def _show_made(self, made: Made) -> None:
        self._drop_growing(made.number)
        preview = self.where.currentData() in ("slice", "region slice")
        what = f"{SHOWN_AS[made.what]}{' (preview)' if preview else ''}"
        if made.what == "error bar":
            data, arguments = self._arguments(made.number, made.volume, what, made.values)
            arguments |= {"colormap": ERROR_COLOURS, "contrast_limits": made.limits}
        else:
            data, arguments = self._mean_arguments(made, what)
        arguments["metadata"][METADATA]["prior"] = self.prior.name
        layer = self._show_in_preview(made.what, data, arguments) if preview else None
        if layer is None:
            layer = self.viewer.add_image(data, **arguments)
        if preview:
            self._previews[made.what] = self._fresh[made.what] = layer
            for other in [other for other in self._previews if made.what == "mean" and other not in self._fresh]:
                self._remove(self._previews.pop(other))  # of a preview before, and not asked for now
        self._layers.append(layer)
        self._notes += list(made.notes)
        if made.path is not None and made.what == "mean":
            self._notes.append(f"written to {made.path}")

    def _show_in_preview(self, what: str, data: Any, arguments: dict[str, Any]) -> Image | None:
        """Show it in the layer of the preview before, if that will do; else that layer goes."""
        layer = None if what in self._fresh else self._previews.pop(what, None)
        if layer is None or layer not in self.viewer.layers:
            return None
        if not show_in(layer, data, arguments):
            self._remove(layer)
            return None
        layer.contrast_limits = arguments["contrast_limits"]
        return layer

    def _remove(self, layer: Image | None) -> None:
        if layer is not None and layer in self.viewer.layers:
            self.viewer.layers.remove(layer)

    def _mean_arguments(self, made: Made, what: str) -> tuple[Any, dict[str, Any]]:
        """Say how to show a mean, or the draws behind it."""
        drawn = made.what == "draws"
        data, arguments = self._arguments(made.number, made.volume, what, None if drawn else made.values)
        low, high = made.limits
        seen = arguments.get("contrast_limits", (low, high))
        # the source's limits, so that the two can be compared; but not where bright noise made them too wide
        if made.moved or seen[1] - seen[0] > TOO_WIDE * (high - low) or self._sources[made.number][0] is None:
            arguments["contrast_limits"] = low, high
        if drawn:
            draws = made.draws if made.values is None else made.values
            assert draws is not None
            return _with_draws(draws, made.volume.axes, data.shape, arguments)
        return data, arguments

    def _arguments(
        self, number: int, volume: Volume, what: str, values: NDArray[Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Say how to show a result of one of the images."""
        layer, axes = self._sources[number]
        name = f"{volume.name} {what}" if layer is None else f"{layer.name} {what}"
        part = self._items[number].part
        return layer_arguments(
            volume, layer, name=name, region=part, axes=None if layer is None else axes, values=values
        )

    def _drop_growing(self, number: int | bool | None = None) -> None:
        """Take the layers of unfinished files away: of one image, or of all."""
        wanted = [number] if isinstance(number, int) and not isinstance(number, bool) else list(self._growing)
        for each in wanted:
            layer = self._growing.pop(each, None)
            self._remove(layer)

    def _succeeded(self, seconds: float) -> None:
        parts = [f"Restored in {duration(seconds)}", *self._said_of_channels(), *self._notes]
        if len(self._layers) > len(self._items):
            parts.append("hide the upper layers to see those below, or show all side by side with Ctrl+G")
        self.message.say("; ".join(parts) + ".")
        self.restored.emit(self._layers)

    def _said_of_channels(self) -> list[str]:
        """Say which of the prior's channels several images were taken for."""
        prior = self.prior.prior
        if prior is None or len(self._items) == 1:
            return []
        titles = channel_titles(prior)
        return [f"{one.volume.name} as “{titles[one.channel]}”" for one in self._items if one.channel is not None]

    def _ended(self) -> None:
        self._drop_growing()
        self._job = None
        self._refresh()
        scroll_to(self.message)


class _Progress(QObject):
    """Brings progress from the working thread to the form."""

    moved = Signal(int, int, int, str)
    """Number of the run, done, total, what is being done."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0


def _with_draws(
    draws: da.Array | NDArray[Any], axes: str, shape: tuple[int, ...], arguments: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Put an axis of draws before those of the mean, in the order and at the place of the mean's layer."""
    own = dict(arguments["metadata"][METADATA])
    order = [1 + axes.index(axis) for axis in own.pop("axes") if axis in axes]
    ndim = len(shape)
    data = draws.transpose([0, *order]).reshape((len(draws), *shape))
    labels = arguments.get("axis_labels") or [str(i - ndim) for i in range(ndim)]
    changes: dict[str, Any] = {"axis_labels": ["draw", *labels], "metadata": {METADATA: own}}
    changes["scale"] = [1.0, *arguments["scale"]]
    changes["units"] = ["pixel", *arguments["units"]]
    if "translate" in arguments:
        changes["translate"] = [0.0, *arguments["translate"]]
    for name in ("rotate", "shear", "affine"):
        if name in arguments:
            matrix = np.asarray(arguments[name])
            block = np.eye(len(matrix) + 1)
            block[1:, 1:] = matrix
            changes[name] = block
    return data, {**arguments, **changes}


def _count_box(value: int, low: int, high: int, tip: str) -> QSpinBox:
    box = QSpinBox()
    box.setRange(low, high)
    box.setValue(value)
    box.setToolTip(tip)
    box.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return box
