"""Batch: restore many files with a prior, one after another.

    files, folders, patterns → `batch.find_files` → one row each → `batch.restore_files` → states → results

A bad file is reported in its row and the others go on; what is finished is skipped, so the same list can be started
again after a cancel or a crash. The science is in `restore_files`, the same function that notebooks call.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from napari.viewer import Viewer
from qtpy.compat import isalive
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLineEdit,
    QPushButton,
    QSpinBox,
    QWidget,
)

from napari_ambient.batch import Report, find_files, output_path, restore_files
from napari_ambient.choices import Border, Microscope, OutputType
from napari_ambient.measurement import Optics, check_optics, operator_for
from napari_ambient.volumes import AxesError, Volume, open_volume
from napari_ambient.volumes.volume import file_stem

from ._accuracy import ONLY_THE_MEAN, TURNS, CheckedBy, checks_box, turns_box
from ._closing import AskFirst
from ._column import group, labelled_rows, scroll_to, scrolled_column
from ._file_table import FileTable, FileView, Row
from ._forms import PriorBox, fold, make_narrow
from ._layers import describe_axes, layer_arguments
from ._psf import BORDERS
from ._run import Job, Message, RunBar, duration, run
from ._settings import settings
from ._theme import accent_style
from ._words import in_forms
from .restore import ERROR_COLOURS

if TYPE_CHECKING:
    from napari_ambient.operators import Operator
    from napari_ambient.prior import Prior

NEEDS_BELOW = (
    "This prior was trained without the stage below the noise, so it can give no error bars and no new images. In "
    "Train, choose it under “Start from” and tick “Error bars too”, or choose another prior."
)
"""What to say and do where a prior knows nothing below the noise of its data."""

Method = Literal["mean", "samples"]


@dataclass(frozen=True)
class Reading:
    """How to read files that do not say everything; all plain values, so that the work never reads a widget.

    Parameters
    ----------
    channel : str or None
        Channel by name or number; None for all.
    axes : str or None
        Axes, where the files do not name them.
    voxel_size : dict or None
        µm per axis, where the files do not say.
    """

    channel: str | None = None
    axes: str | None = None
    voxel_size: dict[str, float] | None = None

    def which(self) -> int | str:
        """Give the channel as a number, or else as a name."""
        assert self.channel is not None
        return int(self.channel) if self.channel.isdecimal() else self.channel

    def open(self, path: Path) -> Volume:
        """Open a file, lazily."""
        channel = None if self.channel is None else self.which()
        opened = open_volume(path, axes=self.axes, channel=channel)
        if self.voxel_size is None:
            return opened
        known = {axis: step for axis, step in self.voxel_size.items() if axis in opened.axes}
        return open_volume(path, axes=self.axes, channel=channel, voxel_size=known)


@dataclass(frozen=True)
class BatchOptions:
    """What the form says.

    Parameters
    ----------
    folder : Path
        Where the results go.
    format : {"same", "tiff", "ome-zarr"}
        Format of the results.
    suffix : str
        Added to the names.
    overwrite : bool
        Do again what is finished.
    reading : Reading
        How to read the files.
    restoration : dict
        Keyword arguments of `batch.restore_files`.
    """

    folder: Path
    format: Literal["same", "tiff", "ome-zarr"]
    suffix: str
    overwrite: bool
    reading: Reading
    restoration: dict[str, Any]


class BatchWidget(QWidget):
    """The Batch form and its table.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        Where results are opened. (napari hands it over by this name.)
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.prior = PriorBox(napari_viewer)
        self.table = FileTable(self)
        self.view = FileView(self.table)
        self.add_files = QPushButton("Add files…")
        self.add_folder = QPushButton("Add folder…")
        self.take_out = QPushButton("Remove")
        self.take_out.setToolTip("Take the selected rows out of the list (all, if none is selected)")
        self.pattern = QLineEdit(placeholderText="or a pattern, such as /data/*/cells*.tif, and Enter")
        self.folder = QLineEdit(placeholderText="where the results go")
        self.browse = QPushButton("Browse…")
        self.format = _choices({"as the input": "same", "OME-TIFF": "tiff", "OME-Zarr": "ome-zarr"})
        self.method = _choices({"clean image (fast)": "mean", "clean image and error bars (draws)": "samples"})
        self.draws = _number_box(8, 1, 1000, "Draws from the posterior per image: more make the error bars smoother")
        self.recalibrate = checks_box()
        self.noise = _choices({"of the prior": "prior", "fitted to each file": "fit"})
        self.noise.setToolTip("Fit it to each file when the camera, its gain or its offset differ from the training")
        self.skip = QCheckBox("skip files whose result is there", checked=True)
        self.start = QPushButton("Restore")
        self.bar = RunBar()
        self.message = Message()
        self._advanced()
        for box in (self.format, self.method, self.noise, self.psf_is, self.microscope, self.dtype):
            make_narrow(box)
        self._lay_out()
        self._job: Job | None = None
        self._finding: Job | None = None
        self._reading: Job | None = None
        self._unread: list[Path] = []
        self._progress = _Progress()
        self._timer = QTimer(self, interval=150)
        self._connect()
        self.set_theme()
        self._refresh()

    # ------------------------------------------------------------------------------------------ the form

    def _advanced(self) -> None:
        self.steps = _number_box(18, 2, 500, "Network calls per draw")
        self.seed = _number_box(0, 0, 2**31 - 1, "The same seed gives the same draws")
        self.turns = turns_box()
        self.psf = QLineEdit(placeholderText="image of a bead, or computed")
        self.browse_psf = QPushButton("Browse…")
        self.psf_is = _choices({"image of a bead": "bead", "computed": "computed"})
        self.border = _choices({text: border for border, (text, _) in BORDERS.items()})
        for at, (_, tip) in enumerate(BORDERS.values()):
            self.border.setItemData(at, tip, Qt.ItemDataRole.ToolTipRole)
        self.na = QLineEdit(placeholderText="instead of an image of the PSF")
        self.na.setToolTip("Numerical aperture: the PSF is computed from it and what follows")
        self.wavelength = _number_box(520, 200, 2000, "Emission wavelength")
        self.index = QLineEdit("1.515")
        self.index.setToolTip("Of the immersion: oil 1.515, glycerol 1.47, silicone 1.40, water 1.33, air 1.0")
        self.microscope = _choices({name: name for name in get_args(Microscope)})
        self.excitation = _number_box(488, 200, 2000, "Wavelength of the laser")
        self.sheet = _number_box(3000, 100, 100_000, "Thickness of the light sheet (full width at half maximum)")
        self.outputs = QLineEdit("mean std")
        self.outputs.setToolTip("Channels of the result: mean, std, quantiles such as q05 and q95, draws")
        self.suffix = QLineEdit("_restored")
        self.suffix.setToolTip("Added to the names of the results")
        self.dtype = _choices({"float32": "float32", "as the input (rounded)": "input"})
        self.channel = QLineEdit(placeholderText="all")
        self.channel.setToolTip("Restore this channel only: its name, or its number from 0")
        self.axes = QLineEdit(placeholderText="as the files say")
        self.axes.setToolTip("Such as TYX or ZYX, for files that do not name their axes")
        self.voxel_size = QLineEdit(placeholderText="as the files say")
        self.voxel_size.setToolTip("In µm, Z Y X: “0.3 0.1 0.1”; or Y X: “0.1 0.1”")

    def _lay_out(self) -> None:
        buttons = _row(self.add_files, self.add_folder, self.take_out)
        self.form = labelled_rows()
        self.form.addRow("Results in", _row(self.folder, self.browse))
        self.form.addRow("Format", self.format)
        self.form.addRow("Result", self.method)
        self.form.addRow("Draws", self.draws)
        self.form.addRow("Error bars", self.recalibrate)
        self.form.addRow("Noise", self.noise)
        self.form.addRow("", self.skip)
        advanced = QWidget()
        more = labelled_rows(advanced)
        more.setContentsMargins(8, 0, 0, 0)
        for label, field in (
            ("Axes", self.axes),
            ("Voxel size (µm)", self.voxel_size),
            ("Channel", self.channel),
            ("Suffix", self.suffix),
            ("Data type", self.dtype),
            ("Average over", self.turns),
            ("Outputs of draws", self.outputs),
            ("Calls per draw", self.steps),
            ("Seed", self.seed),
        ):
            more.addRow(label, field)
        blur = QWidget()
        self.optics = optics = labelled_rows(blur)
        optics.setContentsMargins(8, 0, 0, 0)
        optics.addRow("PSF", _row(self.psf, self.browse_psf))
        for label, field in (
            ("PSF is", self.psf_is),
            ("or NA", self.na),
            ("Wavelength (nm)", self.wavelength),
            ("Refractive index", self.index),
            ("Microscope", self.microscope),
            ("Excitation (nm)", self.excitation),
            ("Sheet (nm)", self.sheet),
            ("Around it", self.border),
        ):
            optics.addRow(label, field)
        column = scrolled_column(self)
        column.addWidget(group("Prior", self.prior)[0])
        column.addLayout(buttons)
        column.addWidget(self.pattern)
        column.addWidget(self.view, 1)
        column.addLayout(self.form)
        column.addWidget(fold("Blur (deconvolution)", blur))
        column.addWidget(fold("Advanced", advanced))
        column.addWidget(self.start)
        column.addWidget(self.bar)
        column.addWidget(self.message)

    def _connect(self) -> None:
        self.add_files.clicked.connect(self._ask_files)
        self.add_folder.clicked.connect(self._ask_folder)
        self.take_out.clicked.connect(self._take_out)
        self.pattern.returnPressed.connect(self._add_pattern)
        self.browse.clicked.connect(self._ask_output)
        self.browse_psf.clicked.connect(self._ask_psf)
        self.view.dropped.connect(self.add)
        self.view.opened.connect(self.open_row)
        self.view.removed.connect(self._take_out)
        self.start.clicked.connect(self.restore)
        self._timer.timeout.connect(self._show_progress)
        self.prior.changed.connect(self._refresh)
        for box in (self.method, self.format, self.noise, self.microscope):
            box.currentIndexChanged.connect(self._refresh)
        self.folder.textChanged.connect(self._refresh)
        for field in (self.axes, self.voxel_size, self.channel):
            field.editingFinished.connect(self._read_again)
        for signal in (self.table.rowsInserted, self.table.rowsRemoved, self.table.modelReset):
            signal.connect(self._refresh)
        self.viewer.events.theme.connect(self.set_theme)  # napari holds methods weakly
        self.closing = AskFirst(self, self._at_work, self._stop_work)

    def set_theme(self, event: object = None) -> None:
        """Take the colours of napari's theme."""
        if not isalive(self):  # deleted with its window, while Python still knows it
            self.viewer.events.theme.disconnect(self.set_theme)
            return
        self.start.setStyleSheet(accent_style(self.viewer.theme))

    def options(self) -> BatchOptions:
        """Read the form.

        Raises
        ------
        ValueError
            If something is missing or cannot be read; the message says what to do.
        """
        folder = self.folder.text().strip()
        if not folder:
            raise ValueError("no folder for the results; choose one beside “Results in”")
        method = cast(Method, self.method.currentData())
        checked_by: CheckedBy = self.recalibrate.currentData() if method == "samples" else "nothing"
        restoration: dict[str, Any] = {
            "noise": self.noise.currentData(),
            "method": method,
            "draws": self.draws.value(),
            "steps": self.steps.value(),
            "seed": self.seed.value(),
            "outputs": tuple(re.split(r"[\s,]+", self.outputs.text().strip())),
            "dtype": cast(OutputType, self.dtype.currentData()),
            "recalibrate": checked_by != "nothing",
            "still": checked_by == "frames",
            "turns": self.turns.currentData() if method == "mean" else 1,
            "operator": self._operator(),
        }
        return BatchOptions(
            folder=Path(folder).expanduser(),
            format=self.format.currentData(),
            suffix=self.suffix.text(),
            overwrite=not self.skip.isChecked(),
            reading=self.reading(),
            restoration=restoration,
        )

    def _operator(self) -> Callable[[Volume], Operator] | None:
        psf, na = self.psf.text().strip(), self.na.text().strip()
        if not psf and not na:
            return None
        optics = Optics()
        if na:
            microscope = cast(Microscope, self.microscope.currentData())
            optics = Optics(
                na=_positive(na, "the numerical aperture"),
                wavelength=float(self.wavelength.value()),
                microscope=microscope,
                refractive_index=_positive(self.index.text(), "the refractive index"),
                excitation=float(self.excitation.value()) if microscope == "confocal" else None,
                sheet_thickness=self.sheet.value() / 1000 if microscope == "light-sheet" else None,
            )
        check_optics(bool(psf), optics)
        if self.method.currentData() == "mean":
            raise ValueError("deconvolution works with draws; choose the result “clean image and error bars”")
        path = Path(psf).expanduser() if psf else None
        return functools.partial(
            operator_for,
            psf=path,
            psf_is=self.psf_is.currentData(),
            optics=optics,
            border=cast(Border, self.border.currentData()),
        )

    def reading(self) -> Reading:
        """Read from the form how to read files.

        Raises
        ------
        ValueError
            If the voxel size cannot be read.
        """
        return Reading(
            channel=self.channel.text().strip() or None,
            axes=self.axes.text().strip().upper() or None,
            voxel_size=_steps(self.voxel_size.text()),
        )

    def _refresh(self) -> None:
        """Show what the choices leave open: which fields count, and whether the work can start."""
        microscope = self.microscope.currentData()
        self.optics.setRowVisible(self.excitation, microscope == "confocal")
        self.optics.setRowVisible(self.sheet, microscope == "light-sheet")
        samples = self.method.currentData() == "samples"
        for field in (self.draws, self.recalibrate):
            self.form.setRowVisible(field, samples)
        for field in (self.outputs, self.steps, self.seed):
            field.setEnabled(samples)
        self.turns.setEnabled(not samples)
        self.turns.setToolTip(ONLY_THE_MEAN if samples else TURNS)
        working = self._job is not None
        waiting = len(self.table.rows)
        self.start.setText(f"Restore {waiting} file{'' if waiting == 1 else 's'}" if waiting else "Restore")
        prior = self.prior.prior
        lacks = samples and prior is not None and not prior.knows_below
        missing = [
            text
            for text, absent in (
                ("a prior", prior is None),
                ("files", not waiting),
                ("a folder for the results", not self.folder.text().strip()),
            )
            if absent
        ]
        self.start.setEnabled(not working and not missing and not lacks)
        self.start.setToolTip(f"First choose {', '.join(missing)}" if missing else "")
        for field in (self.take_out, self.add_files, self.add_folder, self.pattern):
            field.setEnabled(not working)
        if lacks:
            self.message.warn(NEEDS_BELOW)
        elif self.message.said.endswith(NEEDS_BELOW):
            self.message.say("")

    # ----------------------------------------------------------------------------------------- the files

    def add(self, patterns: Sequence[str]) -> None:
        """Add files, folders or patterns; they are looked for off the Qt thread.

        Parameters
        ----------
        patterns : sequence of str
            As for `batch.find_files`.
        """
        if self._job is not None:
            self.message.warn("Files can be added when the batch has ended, or was cancelled.")
            return

        def find(job: Job) -> Generator[None, None, list[Path]]:
            yield
            return find_files([Path(pattern).expanduser() for pattern in patterns])

        job = run(find, self, title="looking for files")
        job.succeeded.connect(self._found)
        job.failed.connect(self.message.error)
        self._finding = job
        job.start()

    def _found(self, paths: list[Path]) -> None:
        new = self.table.add(paths)
        self.message.say("" if new else "These files are in the list already.")
        if new and not self.folder.text().strip():
            self.folder.setText(str(new[0].parent / "restored"))
        self._read(new)

    def _read_again(self) -> None:
        if self._job is None:
            self._read([row.source for row in self.table.rows])

    def _read(self, paths: Sequence[Path]) -> None:
        """Say of each file what it is, off the Qt thread."""
        self._unread += paths
        if not self._unread or self._reading is not None:
            return
        todo, self._unread = self._unread, []
        try:
            form = self.reading()
        except ValueError as error:
            self.message.error(error)
            return

        def read(job: Job) -> Generator[tuple[Path, str, bool], None, None]:
            for path in todo:
                try:
                    yield path, describe_axes(form.open(path)), False
                except AxesError as error:
                    yield path, f"axes? {_without(path, error)}", True
                except (ValueError, OSError) as error:  # shown in the row, as at the start of a batch
                    yield path, _without(path, error), True

        job = run(read, self, title="reading file headers")
        job.yielded.connect(lambda told: self.table.update(told[0], image=told[1], fault=told[2]))
        job.failed.connect(self.message.error)
        job.ended.connect(self._has_read)
        self._reading = job
        job.start()

    def _has_read(self) -> None:
        self._reading = None
        nameless = sum(row.fault and row.image.startswith("axes?") for row in self.table.rows)
        if nameless:
            who = "A file does not name its axes" if nameless == 1 else f"{nameless} files do not name their axes"
            self.message.warn(
                f"{who}; give them under Advanced, such as TYX or ZYX. They hold for all files of the list."
            )
        self._read([])

    def _take_out(self) -> None:
        if self._job is None:
            chosen = self.view.chosen()
            self.table.remove(chosen or range(len(self.table.rows)))

    def _ask_files(self) -> None:
        names, _ = QFileDialog.getOpenFileNames(
            self, "Images to restore", "", "Images (*.tif *.tiff *.npy);;All files (*)"
        )
        if names:
            self.add(names)

    def _ask_folder(self) -> None:
        name = QFileDialog.getExistingDirectory(self, "Folder of images, or an OME-Zarr image")
        if name:
            self.add([name])

    def _add_pattern(self) -> None:
        if self.pattern.text().strip():
            self.add([self.pattern.text().strip()])

    def _ask_output(self) -> None:
        name = QFileDialog.getExistingDirectory(self, "Folder for the results", self.folder.text())
        if name:
            self.folder.setText(name)

    def _ask_psf(self) -> None:
        name, _ = QFileDialog.getOpenFileName(
            self, "Image of the PSF", "", "Images (*.tif *.tiff *.npy);;All files (*)"
        )
        if name:
            self.psf.setText(name)

    # ------------------------------------------------------------------------------------------ the work

    def restore(self) -> None:
        """Restore all files of the table."""
        prior = self.prior.prior
        try:
            options = self.options()
        except ValueError as error:
            self.message.error(error)
            return
        if prior is None or self._job is not None:
            return
        jobs = []
        for row in self.table.rows:
            target = output_path(row.source, options.folder, options.suffix, options.format)
            self.table.update(row.source, target=target, state="waiting", fraction=0.0, message="")
            jobs.append((row.source, target))
        self._progress = _Progress()
        work = _work(jobs, prior, options, self._progress)
        self._job = run(work, self, title=f"restoring {len(jobs)} files")
        self._job.yielded.connect(self._reported)
        self._job.failed.connect(self._failed)
        self._job.cancelled.connect(self._cancelled)
        self._job.ended.connect(self._ended)
        self.message.say("")
        self.message.follow(self._job)
        self.bar.bind(self._job)
        scroll_to(self.bar)
        self._timer.start()
        self._refresh()
        self._job.start()

    def _reported(self, report: Report) -> None:
        if report.state in ("started", "working"):
            row = self.table.update(report.source, state="working")
            if row is not None and report.state == "started":
                self.view.scrollTo(self.table.index(self.table.rows.index(row), 0))
            return
        message = "the result is there" if report.state == "skipped" else _without(report.source, report.message)
        self.table.update(report.source, state=report.state, message=message, fraction=1.0)

    def _show_progress(self) -> None:
        source, fraction = self._progress.read()
        ended = sum(row.state in ("finished", "skipped", "failed") for row in self.table.rows)
        if source is None or self._job is None:
            return
        row = next((row for row in self.table.rows if row.source == source), None)
        if row is None or row.state not in ("waiting", "working"):
            return
        self.table.update(source, state="working", fraction=fraction)
        total = len(self.table.rows)
        self.bar.show_progress(ended + fraction, total, f"{source.name}, file {ended + 1} of {total}")

    def _failed(self, error: Exception) -> None:
        for row in self.table.rows:
            if row.state == "working":
                self.table.update(row.source, state="failed", message=str(error) or type(error).__name__)
        self.message.error(error)

    def _cancelled(self) -> None:
        for row in self.table.rows:
            if row.state == "working":
                self.table.update(row.source, state="waiting", fraction=0.0)
        self.message.say("Cancelled. What is finished is kept; Restore goes on with the rest.")

    def _ended(self) -> None:
        self._timer.stop()
        self._job = None
        finished, skipped, failed = (self.table.count(s) for s in ("finished", "skipped", "failed"))
        if finished + skipped + failed == len(self.table.rows):
            words = [f"{finished} finished"]
            words += [f"{skipped} skipped"] if skipped else []
            text = f"{', '.join(words)} in {duration(self._progress.seconds())}. Double click opens a result."
            scroll_to(self.message)
            if failed:
                self.message.warn(f"{failed} of {len(self.table.rows)} files failed: see the table; {text}")
            else:
                self.message.say(text)
        self._refresh()

    def _at_work(self) -> tuple[str, str] | None:
        if self._job is None:
            return None
        count = len(self.table.rows)
        what = "A file is" if count == 1 else f"{count} files are"
        return f"{what} being restored.", "What is finished is kept; the same list can be started again."

    def _stop_work(self) -> None:
        if self._job is not None:
            self._job.cancel()

    # --------------------------------------------------------------------------------------- the results

    def open_row(self, row: Row) -> None:
        """Open a result lazily, or the file itself while there is none.

        Parameters
        ----------
        row : Row
            Row of the table.
        """
        done = row.state in ("finished", "skipped") and row.target is not None
        path = row.target if done and row.target is not None else row.source
        try:
            form = Reading() if done else self.reading()
        except ValueError as error:
            self.message.error(error)
            return

        def open_(job: Job) -> Generator[None, None, list[tuple[Volume, tuple[float, float]]]]:
            yield
            return [(part, _limits(part)) for part in _channels(form.open(path))]

        job = run(open_, self, title=f"opening {path.name}")
        job.succeeded.connect(lambda parts: self._show(file_stem(str(path)), parts))
        job.failed.connect(self.message.error)
        job.start()

    def _show(self, stem: str, parts: list[tuple[Volume, tuple[float, float]]]) -> None:
        # the clean image above its error bar
        for volume, limits in reversed(parts):
            name = " ".join([stem, *(volume.channel_names if len(parts) > 1 else ())])
            data, arguments = layer_arguments(volume, None, name=name)
            arguments["contrast_limits"] = limits
            if volume.channel_names and volume.channel_names[0].endswith("std"):
                arguments["colormap"] = ERROR_COLOURS
            first = self.viewer.add_image(data, **arguments)
        self.viewer.reset_view()
        # another image may have more time points or planes: go to where this one is
        low, high = first.extent.world
        for axis, (begin, end) in enumerate(zip(low, high, strict=True), self.viewer.dims.ndim - first.ndim):
            if not begin <= self.viewer.dims.point[axis] <= end:
                self.viewer.dims.set_point(axis, (begin + end) / 2)


class _Progress:
    """How far the file in work is: written by the worker, read by the window."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._source: Path | None = None
        self._fraction = 0.0
        self._begin = time.monotonic()

    def begin(self, source: Path) -> None:
        with self._lock:
            self._source, self._fraction = source, 0.0

    def reach(self, fraction: float) -> None:
        with self._lock:
            self._fraction = max(self._fraction, fraction)

    def read(self) -> tuple[Path | None, float]:
        with self._lock:
            return self._source, self._fraction

    def seconds(self) -> float:
        return time.monotonic() - self._begin


def _work(
    jobs: Sequence[tuple[Path, Path]], prior: Prior, options: BatchOptions, progress: _Progress
) -> Callable[[Job], Generator[Report, None, None]]:
    """Make the work of a batch: reports of files that begin and end; in between `progress` tells."""

    def work(job: Job) -> Generator[Report, None, None]:
        def watch(done: int, total: int) -> None:
            job.check()
            progress.reach(done / max(total, 1))

        chosen = prior
        if options.reading.channel is not None and len(prior.noise) > 1:
            chosen = prior.channel(options.reading.which())
        for report in restore_files(
            jobs,
            chosen,
            open_=options.reading.open,
            overwrite=options.overwrite,
            device=settings().device,
            watch=watch,
            **options.restoration,
        ):
            job.check()
            if report.state == "working":
                progress.reach(report.done / max(report.total, 1))
                continue
            if report.state == "started":
                progress.begin(report.source)
            yield report

    return work


def _without(path: Path, error: object) -> str:
    """Give a message without the path that it begins with, as its row says the file, and in the form's words."""
    return in_forms(str(error).removeprefix(str(path)).lstrip(": "))


def _channels(volume: Volume) -> list[Volume]:
    return [volume.channel(c) for c in range(volume.sizes["C"])] if "C" in volume.axes else [volume]


def _limits(volume: Volume) -> tuple[float, float]:
    """Give contrast limits from the middle plane, so that opening a large file reads no more than that."""
    from napari_ambient.sample_sheet import contrast

    middle = tuple(slice(None) if axis in "YX" else n // 2 for axis, n in volume.sizes.items())
    return contrast([volume.data[middle].compute(scheduler="synchronous")])


def _steps(text: str) -> dict[str, float] | None:
    """Read a voxel size, "0.3 0.1 0.1" (Z Y X) or "0.1 0.1" (Y X)."""
    words = re.split(r"[\s,;×x]+", text.strip()) if text.strip() else []
    if not words:
        return None
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise ValueError(f"the voxel size {text!r} cannot be read; give µm as “0.3 0.1 0.1” (Z Y X)") from error
    if len(values) not in (2, 3) or min(values) <= 0:
        raise ValueError(f"the voxel size {text!r} is not understood; give 2 (Y X) or 3 (Z Y X) numbers above 0, in µm")
    return dict(zip("ZYX"[-len(values) :], values, strict=True))


def _positive(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"{what} {text!r} is no number") from error
    if not value > 0:
        raise ValueError(f"{what} is {value:g}; give a number above 0")
    return value


def _choices(values: dict[str, str]) -> QComboBox:
    box = QComboBox()
    for text, value in values.items():
        box.addItem(text, value)
    return box


def _number_box(value: int, low: int, high: int, tooltip: str) -> QSpinBox:
    box = QSpinBox(minimum=low, maximum=high, value=value)
    box.setToolTip(tooltip)
    return box


def _row(*fields: QWidget) -> QHBoxLayout:
    row = QHBoxLayout()
    row.setContentsMargins(0, 0, 0, 0)
    for field in fields:
        row.addWidget(field)
    return row
