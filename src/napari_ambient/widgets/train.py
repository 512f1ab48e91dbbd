"""Train: from a noisy layer, or files, to a prior.

    SourceForm, NoisePanel, preset → Plan → `_training_job.train_job` (training.iter_train) → losses, preview → prior

The prior is in every prior box of the window as soon as it is finished or stopped. An unfinished training stays in the
cache folder, and is offered again when its images are, also after a crash.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Generator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from napari.viewer import Viewer
from qtpy.compat import isalive
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QMainWindow,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_ambient.choices import Dims, ObjectiveName, PresetName, Size
from napari_ambient.train_config import PRESETS, TrainConfig, TrainingError, preset
from napari_ambient.volumes.volume import file_stem
from napari_ambient.widgets._closing import AskFirst
from napari_ambient.widgets._column import group, labelled_rows, scroll_to, scrolled_column
from napari_ambient.widgets._forms import LayerBox, PriorBox, SourceForm, fold, make_narrow
from napari_ambient.widgets._layers import rectangle
from napari_ambient.widgets._noise_panel import NoisePanel
from napari_ambient.widgets._operator import Through, Undone, undone_by
from napari_ambient.widgets._plots import LossPlot
from napari_ambient.widgets._preview import PreviewLayer, preview_part
from napari_ambient.widgets._run import Job, Message, duration, run
from napari_ambient.widgets._session import KnownPrior, priors_of
from napari_ambient.widgets._settings import settings
from napari_ambient.widgets._theme import accent_style
from napari_ambient.widgets._through import ThroughForm
from napari_ambient.widgets._training_job import (
    Controls,
    Fitted,
    NoPreview,
    Outcome,
    Plan,
    Seen,
    Stage,
    Told,
    fit_job,
    train_job,
)

if TYPE_CHECKING:
    from napari_ambient.prior import Prior
    from napari_ambient.training_time import TrainingTime
    from napari_ambient.unfinished import Training
    from napari_ambient.volumes import Volume

RESTORE = "Restore (Ambient restoration)"
"""Folder of the unfinished trainings, in the cache folder."""
TRAIN = "Learn what the clean structures look like, from these images alone"
SAVE = "Save the prior as a folder *.prior, once there is one"
NO_IMAGE = "First choose an image, and its axes where they are not known"
TRAINS = "A training runs: Stop ends it, and keeps what was learned"
LOADS = "The prior to start from is being loaded"
TIMING = "Timing a few steps on this machine…"
SECOND_STAGE = (
    "A second stage teaches what lies below the noise: needed for error bars, draws, deconvolution and new images"
)
ALL_LEVELS: tuple[ObjectiveName, ...] = ("flow_diff", "ambient_flow", "sure_score", "em")
"""Objectives that teach all noise levels themselves (`prior.WHOLE`, which loads torch)."""
REPEATS: tuple[ObjectiveName, ...] = ("ambient", "ambient_mask")
"""Objectives that learn from other exposures of the same field where there are such (`Objective.repeats`)."""
STILL = (
    "Tick this if the specimen neither moves nor bleaches much: what one time point shows is then learned by the "
    "others too, which is sharper"
)
NO_STAGE_NEEDED = "The objective {} teaches all noise levels: error bars need no second stage."
NO_STAGE = "The second stage follows the objective ambient alone: with {} there will be no error bars."
AUTOMATIC: dict[Undone, ObjectiveName] = {
    "nothing": "ambient",
    "psf": "flow_diff",
    "holes": "ambient_mask",
    "both": "flow_diff",
}
"""What `training.choose_objective` chooses."""
OBJECTIVES: dict[ObjectiveName, str] = {
    "auto": "ambient for images that are only noisy, ambient_mask for holes, flow_diff for blur",
    "ambient": "Adds noise to the noisy images and learns what they still tell; for images that are only noisy",
    "ambient_mask": "Hides more of the voxels than are missing and learns to predict them; for images with holes",
    "flow_diff": "A flow guesses the clean image behind each measurement, a diffusion model learns the guesses and "
    "judges them in turn; for blur and holes, and the prior can draw from its own posterior at once",
    "ambient_flow": "As flow_diff, with a second flow in the diffusion model's place; for blur and holes",
    "sure_score": "Judges its own answers by an unbiased estimate of their error, and learns them as if they were "
    "clean: smooth, but quick; for blur and holes",
    "em": "Draws clean images with the prior so far, learns from them, and begins again: slow; for blur and holes",
    "blind_spot": "Predicts voxels from their neighbours (Noise2Void), to compare with; the mean alone",
    "noise2noise": "Predicts one time point of a field that does not move from another, to compare with; the mean "
    "alone",
}
"""Those that a form without clean images can train by, and what they do."""
LOSES_BELOW = "The prior to start from gives error bars; what comes of it will not, unless “Error bars too” is ticked."
WAIT = 400
"""Milliseconds without a change of the form until the time is estimated."""
DIMS: dict[Dims, str] = {
    "auto": "automatic",
    "2D": "2D: planes alone",
    "2.5D": "2.5D: planes with their neighbours",
    "3D": "3D: volumes",
}
DIMS_TIP = "Volumes from 8 planes on, planes with their neighbours from 3, unless you choose"
SIZE_TIP = "Larger networks learn more and take longer; small is for computers without a GPU"
NETWORK_OF_START = "The network is that of the prior to start from"


class TrainWidget(QWidget):
    """The Train form.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        Where the images are, and where the preview is shown. (napari hands it over by this name.)
    config : TrainConfig, optional
        Settings that go before those of the presets.
    timing : float
        Seconds that the time estimate may take, about.
    """

    def __init__(self, napari_viewer: Viewer, *, config: TrainConfig | None = None, timing: float = 2.0) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self._base, self._timing = config, timing
        self._job: Job | None = None
        self._fit: Job | None = None
        self._estimate: Job | None = None
        self._saving: Job | None = None
        self._controls = Controls()
        self._preview: PreviewLayer | None = None
        self._unfinished: Training | None = None
        self._prior: Prior | None = None
        self._known: KnownPrior | None = None
        self._times: dict[tuple[Any, ...], TrainingTime] = {}
        self._shown_source: tuple[Any, ...] = ()
        self._time_points = 1
        self._make_parts()
        self._lay_out()
        self._connect()
        self.set_theme()
        self._source_changed()

    # ------------------------------------------------------------------------------------- the form

    def _make_parts(self) -> None:
        self.source = SourceForm(self.viewer)
        self.region = LayerBox(self.viewer, "shapes", none="whole frame")
        self.region.setToolTip("Train on a part of the frames only: the rectangle around the shape drawn on this layer")
        self.noise = NoisePanel()
        self.preset = QComboBox()
        for name, each in PRESETS.items():
            self.preset.addItem(name, name)
            self.preset.setItemData(self.preset.count() - 1, each.summary, Qt.ItemDataRole.ToolTipRole)
        self.preset.setCurrentText("balanced")
        self.error_bars = QCheckBox("Error bars too")
        self.error_bars.setToolTip(SECOND_STAGE)
        self.time = Message()
        self.keeps = Message()
        self.preview = LayerBox(self.viewer, "shapes", none="middle of the view")
        self.preview.setToolTip("The part that is restored every few seconds while the training runs")
        self.here = QPushButton("Here")
        self.here.setToolTip("Show the preview in the middle of what you see now, or in the shape as it is drawn now")
        self.name = QLineEdit()
        self.name.setToolTip("What the prior is called")
        self.dims = QComboBox()
        for value, text in DIMS.items():
            self.dims.addItem(text, value)
        self.size = QComboBox()
        for text, size in (("of the preset", None), ("small", "small"), ("medium", "medium"), ("large", "large")):
            self.size.addItem(text, size)
        self.steps = _count_box(0, 10**7, "of the preset", "Training steps; the stage for error bars has its own")
        self.below_steps = _count_box(0, 10**7, "of the preset", "Steps of the stage that teaches error bars")
        self.batch = _count_box(0, 4096, "of the preset", "Image crops per step; fewer need less memory")
        self.seed = _count_box(0, 2**31 - 1, "", "The same seed gives the same prior")
        self.origin = PriorBox(self.viewer, none="nothing")
        self.origin.setToolTip(
            "Begin with what a prior has learned from similar images: it then takes far fewer steps (fine-tuning)"
        )
        self.low_rank = _count_box(
            0,
            64,
            "all weights",
            "What may change of the prior to start from: all weights, or only changes of this rank, which keep more of "
            "it where there are few images; 8 is a good start",
        )
        self.still = QCheckBox("show the same field")
        self.still.setToolTip(STILL)
        self.through = ThroughForm(self.viewer)
        self.objective = QComboBox()
        for objective, tip in OBJECTIVES.items():
            self.objective.addItem("automatic" if objective == "auto" else objective, objective)
            self.objective.setItemData(self.objective.count() - 1, tip, Qt.ItemDataRole.ToolTipRole)
        self.objective.setToolTip("What the training minimises; automatic: by what the images are")
        for box in (self.preset, self.dims, self.size, self.objective):
            make_narrow(box)
        self.train = QPushButton("Train")
        self.train.setToolTip(TRAIN)
        self.stop = QPushButton("Stop")
        self.stop.setToolTip("Stop, and keep what was learned so far")
        self.resume = QPushButton("Resume")
        self.save = QPushButton("Save…")
        self.save.setToolTip(SAVE)
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.progress = QLabel()
        self.progress.setWordWrap(True)
        self.losses = LossPlot()
        self.message = Message()
        self.restore = QPushButton("Restore with this prior")
        self.restore.setToolTip("Open the Restore form; the prior is chosen there already")
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(WAIT)

    def _lay_out(self) -> None:
        images, inside = group("Noisy images", self.source)
        rows = labelled_rows()
        rows.addRow("Train on", self.region)
        inside.addLayout(rows)
        noise, _ = group("Noise", self.noise)
        how, inside = group("Training")
        rows = labelled_rows()
        choice = QHBoxLayout()
        choice.addWidget(self.preset, 1)
        choice.addWidget(self.error_bars)
        rows.addRow("Preset", choice)
        see = QHBoxLayout()
        see.addWidget(self.preview, 1)
        see.addWidget(self.here)
        rows.addRow("Preview", see)
        inside.addLayout(rows)
        inside.addWidget(self.keeps)
        inside.addWidget(self.time)
        advanced = QWidget()
        self.more = more = labelled_rows(advanced)
        more.setContentsMargins(8, 0, 0, 0)
        for title, field in (
            ("Name", self.name),
            ("Network", self.dims),
            ("Size", self.size),
            ("Steps", self.steps),
            ("… error bars", self.below_steps),
            ("Batch", self.batch),
            ("Seed", self.seed),
            ("Start from", self.origin),
            ("Change", self.low_rank),
            ("Time points", self.still),
        ):
            more.addRow(title, field)
        more.addRow(self.through)
        more.addRow("Objective", self.objective)
        self.advanced = fold("Advanced", advanced)
        inside.addWidget(self.advanced)
        buttons = QHBoxLayout()
        buttons.addWidget(self.train, 2)
        buttons.addWidget(self.stop, 1)
        buttons.addWidget(self.resume, 1)
        buttons.addWidget(self.save, 1)
        self.running = QWidget()
        under = QVBoxLayout(self.running)
        under.setContentsMargins(0, 0, 0, 0)
        under.addWidget(self.bar)
        under.addWidget(self.progress)
        under.addWidget(self.losses)
        self.running.hide()
        column = scrolled_column(self)
        column.addWidget(images)
        column.addWidget(noise)
        column.addWidget(how)
        column.addLayout(buttons)
        column.addWidget(self.message)
        column.addWidget(self.restore)
        column.addWidget(self.running)
        column.addStretch(1)

    def _connect(self) -> None:
        self.source.changed.connect(self._source_changed)
        self.region.changed.connect(self._form_changed)
        self.noise.estimate.clicked.connect(self.estimate_noise)
        for box in (self.preset, self.dims, self.size, self.noise.form, self.objective):
            box.currentIndexChanged.connect(self._form_changed)
        for number in (self.steps, self.below_steps, self.batch, self.low_rank):
            number.valueChanged.connect(self._form_changed)
        self.origin.changed.connect(self._form_changed)
        self.through.changed.connect(self._form_changed)
        self.error_bars.toggled.connect(self._form_changed)
        self.still.toggled.connect(self._form_changed)
        self.here.clicked.connect(self.move_preview)
        self.train.clicked.connect(self.start)
        self.stop.clicked.connect(self.ask_to_stop)
        self.resume.clicked.connect(self.go_on)
        self.save.clicked.connect(self.ask_where_to_save)
        self.restore.clicked.connect(self.open_restore)
        self._timer.timeout.connect(self._estimate_time)
        self.viewer.events.theme.connect(self.set_theme)  # napari holds methods weakly
        self.closing = AskFirst(self, self._at_work, self._stop_work)

    def set_theme(self, event: object = None) -> None:
        """Take the colours of napari's theme."""
        if not isalive(self):  # deleted with its window, while Python still knows it
            self.viewer.events.theme.disconnect(self.set_theme)
            return
        theme = self.viewer.theme
        self.losses.set_theme(theme)
        self.noise.set_theme(theme)
        self.train.setStyleSheet(accent_style(theme))

    @property
    def training(self) -> bool:
        """Whether a training runs."""
        return self._job is not None

    def config(self) -> TrainConfig:
        """Read the form.

        Returns
        -------
        TrainConfig
            Of the preset, with what was chosen besides.
        """
        changes: dict[str, Any] = {}
        if self._base is not None:
            default = TrainConfig()
            named = {field.name: getattr(self._base, field.name) for field in fields(TrainConfig)}
            changes |= {name: value for name, value in named.items() if value != getattr(default, name)}
        changes |= {"dims": self.dims.currentData(), "form": self.noise.chosen_form, "seed": self.seed.value()}
        if self.size.currentData() is not None:
            changes["size"] = cast(Size, self.size.currentData())
        numbers = {"steps": self.steps, "below_steps": self.below_steps, "batch": self.batch}
        changes |= {name: box.value() for name, box in numbers.items() if box.value()}
        second = self.chosen_objective == "ambient" and self.error_bars.isChecked()
        changes["below"] = "auto" if second else "none"
        changes["still"] = self._may_be_still and self.still.isChecked()
        if self.origin.prior is not None:
            changes |= {"low_rank": self.low_rank.value(), **_network_of(self.origin.prior)}
        return preset(cast(PresetName, self.preset.currentData()), **changes)

    @property
    def chosen_objective(self) -> ObjectiveName:
        """What will be minimised, also where it is chosen by what the images are."""
        return AUTOMATIC[self.through.kind] if self._objective == "auto" else self._objective

    @property
    def _may_be_still(self) -> bool:
        """Whether there are time points, and an objective that learns from repeats."""
        return self._time_points > 1 and self.chosen_objective in REPEATS

    # ------------------------------------------------------------------------------------- what changed

    def _source_changed(self) -> None:
        layer = self.source.layer
        shown = (layer, None if layer is None else id(layer.data), self.source.files, self.source.axes)
        if shown != self._shown_source:  # a corrected voxel size leaves the noise as it is
            self._shown_source = shown
            self.noise.clear()
            self.message.say("")  # what was said of other images
        first = self._first()
        self._time_points = 1 if first is None else first.sizes.get("T", 1)
        self.through.set_volume(first)
        if not self.name.isModified():
            self.name.setText(self._free_name())
        self._look_for_unfinished()
        self._form_changed()

    def _form_changed(self) -> None:
        if self._estimate is not None:
            self._estimate.cancel()
        if self.source.ready and not self.training:
            missing = self.through.missing
            self.time.say(missing or TIMING)  # the time of other settings must not stand there
            if missing:
                self._timer.stop()
            else:
                self._timer.start()
        else:
            self._timer.stop()
            self.time.say("")
        self._refresh()

    def _refresh(self) -> None:
        """Enable what can be pressed now."""
        free = self.source.ready and not self.training and not self.origin.loading
        missing = self.through.missing
        self.train.setEnabled(free and not missing)
        lacks = missing or ("" if self.source.ready else NO_IMAGE)
        waits = TRAINS if self.training else LOADS if self.origin.loading else ""
        self.train.setToolTip(waits or lacks or TRAIN)
        self.train.setText("Training…" if self.training else "Train")
        self.stop.setVisible(self.training)
        self.resume.setVisible(not self.training and self._unfinished is not None)
        self.resume.setEnabled(free)
        self.save.setToolTip(f"Save {self._known.name} as a folder *.prior" if self._known else SAVE)
        self.save.setEnabled(self._prior is not None and self._saving is None and not self.training)
        self.restore.setVisible(self._prior is not None and not self.training)
        self.noise.estimate.setEnabled(free and self._fit is None)
        self.noise.estimate.setText("Estimate noise" if self._fit is None else "Estimating…")
        self.here.setVisible(self.training)
        self.region.setEnabled(not self.training and self.source.layer is not None)
        for part in (self.source, self.preset, self.through, self.objective, self.steps):
            part.setEnabled(not self.training)
        for other in (self.batch, self.seed, self.name, self.noise.found, self.origin, self.low_rank):
            other.setEnabled(not self.training)
        self.more.setRowVisible(self.still, self._may_be_still)
        self.still.setEnabled(not self.training)
        begins = self.origin.prior
        self.more.setRowVisible(self.low_rank, begins is not None)
        for box, tip in ((self.dims, DIMS_TIP), (self.size, SIZE_TIP)):
            box.setToolTip(tip if begins is None else NETWORK_OF_START)
            box.setEnabled(begins is None and not self.training)
        name = self.chosen_objective
        reason = "" if name == "ambient" else (NO_STAGE_NEEDED if name in ALL_LEVELS else NO_STAGE).format(name)
        self.error_bars.setEnabled(not self.training and not reason)
        self.error_bars.setToolTip(reason or SECOND_STAGE)
        self.below_steps.setEnabled(self.error_bars.isEnabled() and self.error_bars.isChecked())
        loses = begins is not None and begins.knows_below and not self.error_bars.isChecked()
        self.keeps.say(reason or (LOSES_BELOW if loses else ""))

    def _free_name(self) -> str:
        layer, files = self.source.layer, self.source.files
        stem = layer.name if layer is not None else file_stem(Path(files[0]).name) if files else "prior"
        # it will be the name of a folder
        stem = re.sub(r"\s+", " ", re.sub(r"[^\w .+-]", "", stem)).strip(" .") or "prior"
        taken = {known.name for known in priors_of(self.viewer)}
        name, number = stem, 1
        while f"{name}.prior" in taken:
            number += 1
            name = f"{stem} {number}"
        return name

    def _first(self) -> Volume | None:
        """Give the first image; None where there is none, or the source form says what is wrong with it."""
        try:
            volumes = self.source.volumes() if self.source.ready else []
        except (ValueError, OSError):  # shown in the form
            return None
        return volumes[0] if volumes else None

    def _volumes(self) -> list[Volume]:
        """Read the source; what is wrong with it is shown. Empty: nothing can be done."""
        try:
            volumes = self.source.volumes()
        except (ValueError, OSError) as error:
            self.message.error(error)
            return []
        if not volumes:
            self.message.warn("Open a noisy image, or choose files.")
        return volumes

    # ------------------------------------------------------------------------------------- time and noise

    def _estimate_time(self) -> None:
        """Time some steps, in a job, and say how long the training will take."""
        try:
            config, volumes = self.config(), self.source.volumes()
        except (ValueError, OSError) as error:
            self.time.warn(str(error))
            return
        if not volumes:
            return
        if self.through.missing:
            self.time.say(self.through.missing)
            return
        device, objective = settings().device, self._objective
        through = self.through.through(volumes[0])
        key = self._time_key(config, volumes, through)
        if key in self._times:
            self._say_time(self._times[key])
            return
        noise, start = self.noise.models[0] if self.noise.models else None, self.origin.prior
        self.time.say(TIMING)
        budget = self._timing

        def work(job: Job) -> Generator[TrainingTime, None, None]:
            from napari_ambient.training_time import iter_estimate_time

            yield from iter_estimate_time(
                volumes,
                noise,
                objective=objective,
                operator=through.operator(),
                start=start,
                config=config,
                device=device,
                budget=budget,
            )

        job = run(work, self, title="estimating the training time")
        self._estimate = job

        def show(found: TrainingTime) -> None:
            if job is self._estimate:
                self._say_time(found)
                if found.final:
                    self._times[key] = found

        def failed(error: Exception) -> None:
            if job is self._estimate:
                self.time.warn(str(error))

        job.yielded.connect(show)
        job.failed.connect(failed)
        job.ended.connect(lambda: setattr(self, "_estimate", None) if job is self._estimate else None)
        job.start()

    @property
    def _objective(self) -> ObjectiveName:
        return cast(ObjectiveName, self.objective.currentData())

    def _time_key(self, config: TrainConfig, volumes: list[Volume], through: Through) -> tuple[Any, ...]:
        blur = None if through.psf is None else through.psf.shape
        start = None if self.origin.prior is None else self.origin.prior.denoiser.arguments
        what = self.chosen_objective, blur, through.measured is None, start
        return replace(config, seed=0), settings().device, volumes[0].axes, volumes[0].shape, what

    def _say_time(self, found: TrainingTime) -> None:
        words = found.describe()
        self.time.say(words[0].upper() + words[1:] + ("." if found.final else " …"))

    def estimate_noise(self) -> None:
        """Fit the noise of the images, and show it."""
        volumes = self._volumes()
        if not volumes or self._fit is not None:
            return
        self.message.say("")
        job = run(lambda job: fit_job(job, volumes[0]), self, title="estimating the noise")
        self._fit = job
        self.message.follow(job)
        source = (self.source.layer, self.source.files, self.source.axes)

        def fitted(models: Any) -> None:
            if source == (self.source.layer, self.source.files, self.source.axes):
                self.noise.set_models(models)
                if len(volumes) > 1:
                    self.noise.message.say(
                        f"Of the first of {len(volumes)} stacks. Each gets its own estimate in training, unless you "
                        "change this one."
                    )

        def ended() -> None:
            self._fit = None
            self._refresh()

        job.succeeded.connect(fitted)
        job.failed.connect(lambda error: self._not_fitted(error, volumes))
        job.ended.connect(ended)
        self._refresh()
        job.start()

    def _not_fitted(self, error: Exception, volumes: Sequence[Volume]) -> None:
        """Say why; where the images do not tell their noise, the user may."""
        from napari_ambient.noise_planes import NoiseFitError

        self.message.error(error)
        if isinstance(error, NoiseFitError) and not self.noise.models:
            self.noise.ask(volumes[0].sizes.get("C", 1))

    # ------------------------------------------------------------------------------------- training

    def start(self) -> None:
        """Train from the beginning."""
        volumes = self._volumes()
        if not volumes or self.training:
            return
        try:
            region = None
            if self.region.layer is not None and self.source.layer is not None:
                region = rectangle(self.region.layer, self.source.layer, volumes[0])
            config, through = self.config(), self.through.through(volumes[0])
            estimate = self._times.get(self._time_key(config, volumes, through))
            plan = Plan(
                tuple(volumes),
                config,
                settings().device,
                settings().trainings,
                self.name.text().strip() or "prior",
                region,
                self.noise.models,
                self.noise.given,
                below_seconds=None if estimate is None else estimate.below_seconds,
                start=self.origin.prior,
                objective=self._objective,
                through=through,
            )
            self._run(plan)
        except (ValueError, OSError) as error:
            self.message.error(error)

    def go_on(self) -> None:
        """Go on with the unfinished training of these images."""
        volumes = self._volumes()
        begun = self._unfinished
        if not volumes or begun is None or self.training:
            return
        try:
            progress = begun.progress()
            if progress is None:
                raise TrainingError("the unfinished training is gone from the cache folder; train anew")
            plan = Plan(
                tuple(volumes), progress.config, settings().device, begun.entry.parent, begun.bundle.stem, resume=begun
            )
            self._run(plan)
        except (ValueError, OSError) as error:
            self.message.error(error)

    def _run(self, plan: Plan) -> None:
        if self._estimate is not None:
            self._estimate.cancel()
        self._timer.stop()
        layer, axes = self.source.layer, self.source.axes
        part = preview_part(self.viewer, plan.volumes[0], layer, axes, self.preview.layer)
        controls = Controls(part)
        self._controls, self._plan = controls, plan
        self._preview = PreviewLayer(self.viewer, f"{plan.name} (preview)", layer, axes, self._preview)
        self.message.say("")
        self.progress.setText("Starting…")
        self.bar.setRange(0, 0)
        self.bar.show()
        self.progress.show()
        self.losses.clear(plan.config.total)
        self.running.show()
        scroll_to(self.losses)
        if self.time.text().endswith("…"):
            self.time.say("")
        job = run(lambda job: train_job(job, plan, controls), self, title=f"training {plan.name}")
        self._job = job
        self.message.follow(job)
        job.yielded.connect(self._told)
        job.succeeded.connect(self._done)
        job.failed.connect(self._failed)
        job.cancelled.connect(lambda: self.message.say("Stopped."))
        job.ended.connect(self._ended)
        self._refresh()
        job.start()

    def _told(self, message: object) -> None:
        if isinstance(message, Told):
            self.bar.setRange(0, message.total)
            self.bar.setValue(message.step)
            self.losses.add(message.points)
            if not self._controls.stop.is_set():
                self.progress.setText(_progress_words(message))
        elif isinstance(message, Seen):
            if self._preview is not None and not self._preview.show(message):
                self._controls.part = None  # the user has removed the layer
        elif isinstance(message, Stage):
            self.progress.setText(message.text)
        elif isinstance(message, Fitted):
            self.noise.set_models(message.noise)
        elif isinstance(message, NoPreview):
            self.message.warn(message.reason)

    def ask_to_stop(self) -> None:
        """Stop after the current step, and keep what was learned."""
        if self.training:
            self._controls.stop.set()
            self.stop.setEnabled(False)
            self.progress.setText("Stopping…")

    def move_preview(self) -> None:
        """Show the preview at another place from now on."""
        volumes = self._plan.volumes
        try:
            part = preview_part(self.viewer, volumes[0], self.source.layer, self.source.axes, self.preview.layer)
        except ValueError as error:
            self.message.warn(str(error))
            return
        if self._preview is not None and self._preview.layer is not None:
            if self._preview.layer not in self.viewer.layers:
                self._preview = PreviewLayer(
                    self.viewer, f"{self._plan.name} (preview)", self.source.layer, self.source.axes
                )
        self._controls.part = part

    def _done(self, outcome: Outcome) -> None:
        self._prior = outcome.prior
        name = outcome.training.bundle.name
        self._known = priors_of(self.viewer).add(name, outcome.prior)
        took = duration(outcome.seconds)
        if outcome.finished:
            self.message.say(f"{name} is trained ({outcome.total} steps, {took}). Save it to keep it.")
        else:
            asked = outcome.prior.record.config.get("below", "none") != "none"
            lacks = asked and not outcome.prior.knows_below
            usable = "denoises, but gives no error bars and no deconvolution yet" if lacks else "can be used as it is"
            self.message.say(f"Stopped after {outcome.step} of {outcome.total} steps. {name} {usable}; Resume goes on.")

    def _failed(self, error: Exception) -> None:
        self._not_fitted(error, self._plan.volumes)

    def _ended(self) -> None:
        self._job = None
        self.stop.setEnabled(True)
        self.bar.hide()
        self.progress.hide()
        self.running.setVisible(bool(self.losses.names))
        if not self.name.isModified():
            self.name.setText(self._free_name())
        self._look_for_unfinished(quietly=True)
        self._form_changed()
        scroll_to(self.message)

    def _look_for_unfinished(self, *, quietly: bool = False) -> None:
        """Offer to go on with a training of these images that was stopped, or cut short by a crash."""
        from napari_ambient.unfinished import known

        self._unfinished = None
        try:
            volumes = self.source.volumes() if self.source.ready else []
            for training in known(settings().trainings):
                if not volumes or not training.fits(volumes) or training.running:
                    continue
                progress = training.progress()
                if progress is None:
                    continue
                self._unfinished = training
                done = f"{progress.step} of {progress.config.total} steps"
                when = time.strftime("%d %b %H:%M", time.localtime(training.entry.stat().st_mtime))
                self.resume.setToolTip(f"Go on with {training.bundle.stem}: {done} are done ({when})")
                if not quietly:
                    self.message.say(f"An unfinished training of this image is there ({done}): Resume goes on with it.")
                return
        except (ValueError, OSError) as error:
            if not quietly:
                self.message.warn(str(error))

    # ------------------------------------------------------------------------------------- afterwards

    def ask_where_to_save(self) -> None:
        """Ask where, and save the prior."""
        if self._prior is None or self._known is None:
            return
        name, _ = QFileDialog.getSaveFileName(self, "Save the prior", self._known.name, "Priors (*.prior)")
        if name:
            self.save_prior(Path(name))

    def save_prior(self, path: Path) -> None:
        """Save the prior, in a job.

        Parameters
        ----------
        path : Path
            The folder to write; ".prior" is added where it lacks.
        """
        prior, before = self._prior, self._known
        if prior is None or self._saving is not None:
            return
        path = path if path.suffix == ".prior" else path.with_name(path.name + ".prior")

        def work(job: Job) -> Generator[None, None, Path]:
            yield
            return prior.save(path)

        def saved(where: Path) -> None:
            known = priors_of(self.viewer)
            if before is not None and before in list(known) and before.path is None:
                known.remove(before)
            self._known = known.add(where, prior)
            self.message.say(f"Saved {where}")

        def ended() -> None:
            self._saving = None
            self._refresh()

        job = run(work, self, title=f"saving {path.name}")
        self._saving = job
        job.succeeded.connect(saved)
        job.failed.connect(self.message.error)
        job.ended.connect(ended)
        self._refresh()
        job.start()

    def open_restore(self) -> None:
        """Open the Restore form, or bring the one that is open to the front, for the image that was trained on."""
        from napari_ambient.widgets.restore import RestoreWidget

        window: Any = self.window()
        while window is not None and not isinstance(window, QMainWindow):  # of a floating form
            window = window.parentWidget()
        opened = [] if window is None else window.findChildren(RestoreWidget)
        free = [form for form in opened if not form.running]
        form = free[0] if free else RestoreWidget(self.viewer)
        if not free:
            # as its menu names it, so that the menu hides and shows the same form
            name = RESTORE if not opened else f"{RESTORE} {len(opened) + 1}"
            self.viewer.window.add_dock_widget(form, name=name, tabify=True)
        dock: Any = form.parentWidget()
        dock.show()
        dock.raise_()
        if self.source.layer is not None:
            form.source.box.choose(self.source.layer)
        if self._known is not None and self._known in list(priors_of(self.viewer)):
            form.prior.choose(self._known)
            if self._prior is not None and undone_by(self._prior.record.operator) == self.through.kind != "nothing":
                form.follow(self.through)

    # ------------------------------------------------------------------------------------- closing

    def _at_work(self) -> tuple[str, str] | None:
        if self.training:
            kept = "What was learned so far is kept: Resume goes on when the same image is chosen again."
            return f"{self._plan.name} is being trained.", kept
        if self._saving is not None:
            return f"{self._saving.title[0].upper()}{self._saving.title[1:]}.", "The prior may not be saved then."
        return None

    def _stop_work(self) -> None:
        for job in (self._job, self._saving):
            if job is not None:
                job.cancel()


def _network_of(prior: Prior) -> dict[str, Any]:
    """Give the settings that ask for a network such as a prior's, which is to be trained on."""
    network = prior.denoiser.arguments
    if network.dims == 3:
        return {"dims": "3D"}
    return {"dims": "2D"} if network.channels == 1 else {"dims": "2.5D", "slices": network.channels}


def _progress_words(told: Told) -> str:
    parts = [f"{told.step} of {told.total} steps"]
    if told.rate:
        parts.append(f"{told.rate:.1f} steps/s" if told.rate >= 1 else f"{1 / told.rate:.1f} s per step")
    if math.isfinite(told.left) and told.step < told.total:
        parts.append(f"{duration(told.left)} left{'' if told.whole else ' of the first stage'}")
    return " · ".join(parts)


def _count_box(low: int, high: int, none: str, tip: str) -> QSpinBox:
    box = QSpinBox()
    box.setRange(low, high)
    box.setSpecialValueText(none)
    box.setToolTip(tip)
    box.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return box
