"""The parts that every form has: which images, with which axes and voxel size, and which prior.

    viewer, files → SourceForm.volumes() → public function
    session, disk → PriorBox.prior       → public function

They say in words what was understood, and let the user correct it; they never guess silently.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from napari.layers import Image, Labels, Layer, Shapes
from qtpy.compat import isalive
from qtpy.QtCore import QLocale, QSignalBlocker, Qt, Signal
from qtpy.QtGui import QDoubleValidator, QPaintEvent
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QGridLayout,
    QHBoxLayout,
    QInputDialog,
    QLabel,
    QLineEdit,
    QMenu,
    QPushButton,
    QSizePolicy,
    QStyle,
    QStyleOptionComboBox,
    QStylePainter,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_ambient.widgets._column import labelled_rows
from napari_ambient.widgets._layers import (
    LayerError,
    describe_axes,
    known_axes,
    layer_to_start_with,
    possible_axes,
    remember_axes,
    settle,
    volume_from_layer,
    voxel_size_of,
)
from napari_ambient.widgets._run import Job, Message, run
from napari_ambient.widgets._session import KnownPrior, priors_of

if TYPE_CHECKING:
    from napari import Viewer

    from napari_ambient.prior import Prior
    from napari_ambient.volumes import Volume

Kind = Literal["image", "shapes", "labels", "mask"]
_KINDS: dict[Kind, tuple[type[Layer], ...]] = {
    "image": (Image,),
    "shapes": (Shapes,),
    "labels": (Labels,),
    "mask": (Labels, Image),
}
GAP = 4
"""Pixels between a combo box's text and its field."""
_FILE_AXES = ("ZYX", "TYX", "CYX", "TZYX", "CZYX", "TCYX", "TCZYX")
_PATTERNS = "Images (*.tif *.tiff *.btf *.npy);;All files (*)"


class LayerBox(QComboBox):
    """The viewer's layers of one kind, whatever comes, goes or is renamed.

    Parameters
    ----------
    viewer : napari.Viewer
        Whose layers.
    kind : {"image", "shapes", "labels", "mask"}
        Which; a mask is a Labels or an Image layer.
    none : str
        Text of a first entry that means no layer, and is chosen at first. Without it: of images the measurement that
        is selected, or the newest (no preview or result of ours), else the newest layer.
    parent : QWidget or None
        Where it lies.
    """

    changed = Signal()
    """Another layer is chosen, or the chosen one is gone."""

    def __init__(self, viewer: Viewer, kind: Kind = "image", *, none: str = "", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._types = _KINDS[kind]
        self._none = none
        self._layers: list[Any] = []
        self._chosen: Any = None
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(8)
        events = viewer.layers.events
        # napari holds methods weakly
        self._emitters = (events.inserted, events.removed, events.reordered, events.renamed)
        for emitter in self._emitters:
            emitter.connect(self._list)
        self.currentIndexChanged.connect(self._pick)
        self._list()

    @property
    def layer(self) -> Any:
        """The chosen layer, or None."""
        return self._chosen

    def choose(self, layer: Layer | None) -> None:
        """Choose a layer of the viewer, or none.

        Raises
        ------
        ValueError
            If the layer is not in the list.
        """
        if layer is None and not self._none:
            self.setCurrentIndex(-1)
            return
        self.setCurrentIndex(self._entries().index(layer))

    def _entries(self) -> list[Any]:
        return [None, *self._layers] if self._none else list(self._layers)

    def _list(self, event: object = None) -> None:
        if not isalive(self):  # deleted with its window, while Python still knows it
            for emitter in self._emitters:
                emitter.disconnect(self._list)
            return
        before = self._chosen
        self._layers = [layer for layer in self._viewer.layers if isinstance(layer, self._types)][::-1]
        entries = self._entries()
        kind = " or ".join(each.__name__ for each in self._types)
        self.setPlaceholderText(f"choose the {kind} layer" if entries else f"no {kind} layer")
        with QSignalBlocker(self):
            self.clear()
            for layer in entries:
                self.addItem(self._none if layer is None else layer.name)
                self.setItemData(self.count() - 1, "" if layer is None else layer.name, Qt.ItemDataRole.ToolTipRole)
            stays = before is None or any(before == layer for layer in self._layers)
            if before is not None and stays:
                self.setCurrentIndex(entries.index(before))
            else:
                self.setCurrentIndex(self._default(entries))
        self._pick()

    def paintEvent(self, event: QPaintEvent | None) -> None:
        """Show a long name without its middle: what tells layers apart stands at their ends."""
        painter, option = QStylePainter(self), QStyleOptionComboBox()
        self.initStyleOption(option)
        style = self.style()
        assert style is not None
        room = style.subControlRect(
            QStyle.ComplexControl.CC_ComboBox, option, QStyle.SubControl.SC_ComboBoxEditField, self
        )
        text = self.currentText() or self.placeholderText()
        option.currentText = self.fontMetrics().elidedText(text, Qt.TextElideMode.ElideMiddle, room.width() - GAP)
        painter.drawComplexControl(QStyle.ComplexControl.CC_ComboBox, option)
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)

    def _default(self, entries: list[Any]) -> int:
        if self._none or self._types != (Image,):
            return 0 if entries else -1
        start = layer_to_start_with(self._viewer)
        return next((i for i, layer in enumerate(entries) if layer is start), -1)

    def _pick(self, index: int = -1) -> None:
        entries, at = self._entries(), self.currentIndex()
        chosen = entries[at] if 0 <= at < len(entries) else None
        same = chosen is self._chosen or (chosen is not None and chosen == self._chosen)
        self._chosen = chosen
        if not same:
            self.changed.emit()


class SourceForm(QWidget):
    """A layer, or files; then what was understood, in words, and the fields to correct it.

    Parameters
    ----------
    viewer : napari.Viewer
        Whose layers.
    files : bool
        Whether files can be chosen too.
    parent : QWidget or None
        Where it lies.
    """

    changed = Signal()
    """`volumes` would give something else now."""

    def __init__(self, viewer: Viewer, *, files: bool = True, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._patterns: list[str] = []
        self._opened: list[Volume] = []
        self._failure: Exception | None = None
        self._job: Job | None = None
        self._shown: Any = None

        self.box = LayerBox(viewer)
        self.box.setToolTip("The noisy image")
        self.files_label = QLabel()
        self.files_label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.back = QToolButton()
        self.back.setText("✕")
        self.back.setToolTip("Back to the layers")
        self.files_button = QPushButton("Files")
        self.files_button.setToolTip("Images on disk instead of a layer: they need not fit into memory")
        menu = QMenu(self.files_button)
        menu.addAction("Files…", self._ask_files)
        menu.addAction("Folder or OME-Zarr…", self._ask_folder)
        menu.addAction("Pattern…", self._ask_pattern)
        self.files_button.setMenu(menu)
        self.files_button.setVisible(files)

        self.words = QLabel()
        self.words.setWordWrap(True)
        self.words.setMinimumWidth(150)
        self.words.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.edit = QPushButton("Edit")
        self.edit.setCheckable(True)
        self.edit.setToolTip("Correct the axes and the voxel size")
        self.axes_box = QComboBox()
        self.axes_box.setPlaceholderText("choose the axes")
        self.axes_box.setToolTip("T time, C channels, Z depth; in the order of the sliders, Y and X last")
        self.sizes = {axis: _step_field(axis) for axis in "ZYX"}
        self.message = Message()
        self._lay_out()

        self.box.changed.connect(self._source_changed)
        self.back.clicked.connect(lambda: self.set_files([]))
        self.edit.toggled.connect(self._show_fields)
        self.axes_box.currentIndexChanged.connect(self._axes_changed)
        for field in self.sizes.values():
            field.editingFinished.connect(self._sizes_changed)
        self._source_changed()

    def _lay_out(self) -> None:
        source = QHBoxLayout()
        source.addWidget(self.box, 1)
        source.addWidget(self.files_label, 1)
        source.addWidget(self.back)
        source.addWidget(self.files_button)
        understood = QHBoxLayout()
        understood.addWidget(self.words, 1)
        understood.addWidget(self.edit, 0, Qt.AlignmentFlag.AlignVCenter)
        self.fields = QWidget()
        self._form = form = labelled_rows(self.fields)
        form.setContentsMargins(0, 0, 0, 0)
        form.addRow("Axes", self.axes_box)
        self.steps = QWidget()
        steps = QGridLayout(self.steps)
        steps.setContentsMargins(0, 0, 0, 0)
        for column, (axis, field) in enumerate(self.sizes.items()):
            steps.addWidget(field, 0, column)
            steps.setColumnStretch(column, 1)
            field.setObjectName(axis)
        form.addRow("Voxel (µm)", self.steps)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(source)
        column.addLayout(understood)
        column.addWidget(self.fields)
        column.addWidget(self.message)

    # ------------------------------------------------------------------------------ what others ask

    @property
    def layer(self) -> Any:
        """The chosen layer; None if files are chosen, or nothing."""
        return None if self._patterns else self.box.layer

    @property
    def files(self) -> list[str]:
        """The chosen files, folders or patterns; empty if a layer is chosen."""
        return list(self._patterns)

    @property
    def axes(self) -> str | None:
        """The axes as shown; None where they are not known yet."""
        text = self.axes_box.currentData()
        return str(text) if text else None

    @property
    def reading(self) -> bool:
        """Whether the files are still being looked at."""
        return self._job is not None

    @property
    def ready(self) -> bool:
        """Whether `volumes` gives something."""
        if self._patterns:
            return bool(self._opened)
        return self.box.layer is not None and self.axes is not None

    def volumes(self) -> list[Volume]:
        """Give the chosen images, lazily.

        Returns
        -------
        list of Volume
            Empty if nothing is chosen.

        Raises
        ------
        LayerError, VolumeError, OSError
            If they cannot be used as they are, or are still being looked at.
        """
        if self._patterns:
            if self._job is not None:
                raise LayerError("the files are still being looked at; wait a moment")
            if self._failure is not None:
                raise self._failure
            return list(self._opened)
        layer = self.box.layer
        if layer is None:
            return []
        return [volume_from_layer(layer, axes=self.axes, voxel_size=self._voxel_size())]

    def set_files(self, patterns: Sequence[str | Path]) -> None:
        """Choose files, folders or patterns instead of a layer; none: back to the layers.

        Parameters
        ----------
        patterns : sequence of str or Path
            Files, folders, globs.
        """
        self._patterns = [str(pattern) for pattern in patterns]
        self._source_changed()

    # ------------------------------------------------------------------------------ files

    def _ask_files(self) -> None:
        names, _ = QFileDialog.getOpenFileNames(self, "Noisy images", "", _PATTERNS)
        if names:
            self.set_files(names)

    def _ask_folder(self) -> None:
        name = QFileDialog.getExistingDirectory(self, "A folder of noisy images, or an OME-Zarr image")
        if name:
            self.set_files([name])

    def _ask_pattern(self) -> None:
        text, given = QInputDialog.getText(self, "Pattern", "Files such as /data/day1/*.tif (** for all folders below)")
        if given and text.strip():
            self.set_files([text.strip()])

    def _look_at_files(self, axes: str | None, size: Mapping[str, float | None] | None) -> None:
        """Read the headers, in a job: a folder on a server may take a while."""
        if self._job is not None:
            self._job.cancel()
        patterns = tuple(self._patterns)
        self._opened, self._failure = [], None
        self.words.setText("Reading…")
        self.message.say("")
        job = run(lambda job: _open_all(job, patterns, axes, size), self, title="reading files")
        self._job = job
        job.succeeded.connect(lambda volumes: self._files_opened(job, volumes, None))
        job.failed.connect(lambda error: self._files_opened(job, [], error))
        job.start()

    def _files_opened(self, job: Job, volumes: list[Volume], failure: Exception | None) -> None:
        if job is not self._job:
            return
        self._job, self._opened, self._failure = None, volumes, failure
        if failure is not None:
            self.words.setText("")
            self.message.warn(str(failure))
            self.edit.setChecked(True)
        else:
            self._fill_fields(list(dict.fromkeys((volumes[0].axes, *_FILE_AXES))), volumes[0].axes, volumes)
        self.changed.emit()

    # ------------------------------------------------------------------------------ what was understood

    def _source_changed(self) -> None:
        files = bool(self._patterns)
        self.box.setVisible(not files)
        self.files_label.setVisible(files)
        self.back.setVisible(files)
        self.files_label.setText(_files_in_words(self._patterns))
        self.files_label.setToolTip("\n".join(self._patterns))
        self.message.say("")
        if self._shown is not None:
            self._shown.disconnect()
            self._shown = None
        if files:
            self._fill_axes(list(_FILE_AXES), None)
            self._look_at_files(None, None)
        else:
            if self._job is not None:
                self._job.cancel()
                self._job = None
            self._show_layer()
        self.changed.emit()

    def _show_layer(self) -> None:
        layer = self.box.layer
        self.edit.setEnabled(layer is not None)
        if layer is None:
            self.words.setText("Open an image, or choose files." if self.files_button.menu() else "Open an image.")
            self._fill_axes([], None)
            self._show_fields()
            return
        settle(layer)
        events = layer.events
        self._shown = Followed(
            self, (events.scale, events.units, events.axis_labels, events.data), self._show_layer_again
        )
        try:
            possible, known = possible_axes(layer), known_axes(layer)
            volumes = [] if known is None else [volume_from_layer(layer, axes=known)]
        except LayerError as error:
            self.words.setText("")
            self.message.warn(str(error))
            self._fill_axes([], None)
            self._show_fields()
            return
        self._fill_fields(possible, known, volumes)

    def _show_layer_again(self) -> None:
        """Follow a change of the layer's scale, units or labels."""
        if not self._patterns:
            if self._shown is not None:
                self._shown.disconnect()
            self._show_layer()
            self.changed.emit()

    def _fill_fields(self, possible: list[str], known: str | None, volumes: Sequence[Volume]) -> None:
        self._fill_axes(possible, known)
        self._fill_sizes(volumes[0].voxel_size if volumes else {})
        self._say(volumes)

    def _fill_axes(self, possible: list[str], known: str | None) -> None:
        with QSignalBlocker(self.axes_box):
            self.axes_box.clear()
            for axes in possible:
                self.axes_box.addItem(_axes_in_words(axes), axes)
            self.axes_box.setCurrentIndex(-1 if known is None else possible.index(known))

    def _fill_sizes(self, size: Mapping[str, float | None]) -> None:
        for axis, field in self.sizes.items():
            step = size.get(axis)
            field.setText("" if step is None else f"{step:.6g}")
            field.setVisible(axis in size)
            field.setModified(False)
        self._form.setRowVisible(self.steps, bool(size))

    def _say(self, volumes: Sequence[Volume]) -> None:
        if not volumes:
            self.words.setText("What are the axes of this image?" if self.axes is None else "")
        else:
            first = describe_axes(volumes[0])
            others = sum(volume.shape != volumes[0].shape for volume in volumes)
            self.words.setText(first + (f" (and {others} of other size)" if others else ""))
        self._show_fields()

    def _show_fields(self) -> None:
        asks = bool(self.axes_box.count()) and self.axes is None and not self._job
        self.edit.setVisible(not asks)
        self.fields.setVisible((asks or self.edit.isChecked()) and bool(self.axes_box.count()))

    def _voxel_size(self) -> dict[str, float | None]:
        axes = self.axes or ""
        return {axis: _number(field.text()) for axis, field in self.sizes.items() if axis in axes}

    def _axes_changed(self) -> None:
        axes = self.axes
        if axes is None:
            return
        if self._patterns:
            self._look_at_files(axes, None)
        else:
            layer = self.box.layer
            remember_axes(layer, axes)
            self._fill_sizes(voxel_size_of(layer, axes))
            self._say(self.volumes())
        self.changed.emit()

    def _sizes_changed(self) -> None:
        if not any(field.isModified() for field in self.sizes.values()):
            return
        for field in self.sizes.values():
            field.setModified(False)
        if self._patterns:
            self._look_at_files(self.axes, self._voxel_size())
        else:
            self._say(self.volumes())
        self.changed.emit()


class PriorBox(QWidget):
    """The priors of this session, and those on disk.

    A prior is read from the disk when it is chosen, off the Qt thread.

    Parameters
    ----------
    viewer : napari.Viewer
        Whose session.
    none : str
        Text of a first entry that means no prior, and is chosen at first; empty: the newest prior is chosen until the
        user chooses.
    parent : QWidget or None
        Where it lies.
    """

    changed = Signal()
    """Another prior is there, or none."""

    def __init__(self, viewer: Viewer, *, none: str = "", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._none = none
        self._list = priors_of(viewer)
        self._known: KnownPrior | None = None
        self._prior: Prior | None = None
        self._job: Job | None = None
        self._by_user = False

        self.box = QComboBox()
        self.box.setPlaceholderText("train or open a prior")
        self.box.setToolTip("What the structures look like: trained here, opened, or dropped on the window")
        self.box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.box.setMinimumContentsLength(8)
        self.browse = QPushButton("Browse…")
        self.browse.setToolTip("Open a prior from disk: a folder *.prior")
        self.words = Message()
        row = QHBoxLayout()
        row.addWidget(self.box, 1)
        row.addWidget(self.browse)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(row)
        column.addWidget(self.words)

        self._list.changed.connect(self._refresh)
        self.box.activated.connect(self._picked)
        self.browse.clicked.connect(self._ask)
        self._refresh()

    @property
    def prior(self) -> Prior | None:
        """The chosen prior; None while there is none, or it is being read."""
        return self._prior

    @property
    def path(self) -> Path | None:
        """Where the chosen prior lies on disk; None if it has not been saved."""
        return None if self._known is None else self._known.path

    @property
    def name(self) -> str:
        """What the chosen prior is called."""
        return "" if self._known is None else self._known.name

    @property
    def loading(self) -> bool:
        """Whether a prior is being read."""
        return self._job is not None

    def open(self, path: str | Path) -> None:
        """Choose a prior on disk.

        Parameters
        ----------
        path : str or Path
            The bundle.
        """
        self._by_user = True
        self._choose(self._list.add(Path(path)))

    def choose(self, known: KnownPrior) -> None:
        """Choose one of the session's priors."""
        self._by_user = True
        self._choose(known)

    def _ask(self) -> None:
        name = QFileDialog.getExistingDirectory(self, "Open a prior (a folder *.prior)")
        if name:
            self.open(name)

    def _picked(self, index: int) -> None:
        known = self.box.itemData(index)
        self._by_user = True
        self._choose(known)

    def _refresh(self) -> None:
        """Show the session's list; the newest is chosen until the user chooses."""
        known = list(self._list)
        with QSignalBlocker(self.box):
            self.box.clear()
            if self._none:
                self.box.addItem(self._none, None)
            for each in known:
                self.box.addItem(each.name, each)
                self.box.setItemData(
                    self.box.count() - 1, str(each.path or "not saved yet"), Qt.ItemDataRole.ToolTipRole
                )
            same = [each for each in known if self._known is not None and _same(each, self._known)]
            self.box.setCurrentIndex(self._place(known.index(same[0]) if same else None))
        if same and (self._by_user or self._none or same[0] is known[-1]):
            if same[0] is not self._known:
                self._choose(same[0])  # trained on, or written again
        elif known and not self._none:
            self._by_user = False
            self._choose(known[-1])
        else:
            self._choose(None)

    def _place(self, number: int | None) -> int:
        """Give the entry of a prior of the list; of none, the first one or no entry."""
        if self._none:
            return 0 if number is None else number + 1
        return -1 if number is None else number

    def _choose(self, known: KnownPrior | None) -> None:
        if known is self._known and (known is None or self._prior is not None):
            return
        if self._job is not None:
            self._job.cancel()
            self._job = None
        self._known, self._prior = known, None
        with QSignalBlocker(self.box):
            self.box.setCurrentIndex(self._place(None if known is None else list(self._list).index(known)))
        if known is None:
            self.words.say("")
        elif known.prior is not None:
            self._take(known.prior)
        else:
            self._load(known)
        self.changed.emit()

    def _load(self, known: KnownPrior) -> None:
        path = known.path
        if path is None:
            raise AssertionError("a prior without a path is there from the start")
        self.words.say(f"Opening {known.name}…")
        job = run(lambda job: _load_prior(path), self, title=f"opening {known.name}")
        self._job = job
        job.succeeded.connect(lambda prior: self._loaded(job, prior))
        job.failed.connect(lambda error: self._not_loaded(job, error))
        job.start()

    def _loaded(self, job: Job, prior: Prior) -> None:
        if job is self._job:
            self._job = None
            self._take(prior)
            self.changed.emit()

    def _not_loaded(self, job: Job, error: Exception) -> None:
        if job is self._job:
            self._job = None
            self.words.error(error)
            self.changed.emit()

    def _take(self, prior: Prior) -> None:
        self._prior = prior
        self.words.say(describe_prior(prior))


def describe_prior(prior: Prior) -> str:
    """Say what a prior is: "2D · thinning · 3000 steps · error bars: yes"."""
    arguments = prior.denoiser.arguments
    kind = "3D" if arguments.dims == 3 else "2D" if arguments.channels == 1 else "2.5D"
    parts = [kind, prior.record.form, f"{prior.record.step} steps"]
    if len(prior.noise) > 1:
        parts.append(f"{len(prior.noise)} channels")
    through = prior.record.operator
    if through:
        parts.append("through " + " and ".join(str(each["operator"]) for each in through.get("applied", [through])))
    parts.append(f"error bars: {'yes' if prior.knows_below else 'no'}")
    return " · ".join(parts)


def fold(title: str, content: QWidget, *, open: bool = False) -> QWidget:
    """Put a widget below a title that hides and shows it.

    Parameters
    ----------
    title : str
        Such as "Advanced".
    content : QWidget
        What is hidden at first.
    open : bool
        Show it at first.

    Returns
    -------
    QWidget
        With the attributes `button` (checkable) and `content`.
    """
    return _Fold(title, content, open)


class _Fold(QWidget):
    # superqt's QCollapsible fixes the height of its content, which cuts lines that wrap.
    def __init__(self, title: str, content: QWidget, open: bool) -> None:
        super().__init__()
        self.button = QToolButton()
        self.button.setText(title)
        self.button.setCheckable(True)
        self.button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextOnly)
        self.button.setStyleSheet("QToolButton { border: none; background: transparent; padding: 2px; }")
        self.content = content
        self._title = title
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        column.addWidget(self.button)
        column.addWidget(content)
        self.button.toggled.connect(self._show)
        self.button.setChecked(open)
        self._show(open)

    def _show(self, open: bool) -> None:
        self.button.setText(f"{'▾' if open else '▸'} {self._title}")
        self.content.setVisible(open)


def make_narrow(box: QComboBox) -> None:
    """Let a box be narrower than its longest entry, so that the form fits beside the image."""
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    box.setMinimumContentsLength(6)


# --------------------------------------------------------------------------------------- small pieces


class Followed:
    """The events of one layer that change what a form says.

    Parameters
    ----------
    widget : QWidget
        The form; it is not kept alive.
    emitters : sequence of napari event emitters
        What is followed.
    slot : method of the form
        Called at each event, without arguments.
    """

    def __init__(self, widget: QWidget, emitters: Sequence[Any], slot: Callable[[], None]) -> None:
        self._widget = weakref.ref(widget)
        self._slot = weakref.WeakMethod(slot)
        self._emitters: tuple[Any, ...] = tuple(emitters)
        for emitter in self._emitters:
            emitter.connect(self._changed)

    def _changed(self, event: object = None) -> None:
        widget, slot = self._widget(), self._slot()
        if widget is None or slot is None or not isalive(widget):
            self.disconnect()
        else:
            slot()

    def disconnect(self) -> None:
        """Stop following."""
        for emitter in self._emitters:
            emitter.disconnect(self._changed)
        self._emitters = ()


def _step_field(axis: str) -> QLineEdit:
    field = QLineEdit()
    field.setPlaceholderText(f"{axis} ?")
    field.setToolTip(f"Voxel size along {axis} in µm; empty if it is not known")
    validator = QDoubleValidator(1e-6, 1e6, 6, field)
    validator.setLocale(QLocale.c())
    field.setValidator(validator)
    return field


def _number(text: str) -> float | None:
    return float(text) if text.strip() else None


def _axes_in_words(axes: str) -> str:
    words = {"T": "time", "C": "channels", "Z": "depth"}
    return f"{axes}  ({', '.join(words[axis] for axis in axes if axis in words) or 'one plane'})"


def _files_in_words(patterns: Sequence[str]) -> str:
    if not patterns:
        return ""
    return Path(patterns[0]).name if len(patterns) == 1 else f"{len(patterns)} files"


def _open_all(
    job: Job, patterns: Sequence[str], axes: str | None, size: Mapping[str, float | None] | None
) -> Generator[None, None, list[Volume]]:
    from napari_ambient.batch import find_files
    from napari_ambient.volumes import open_volume

    volumes = []
    for path in find_files(patterns):
        yield
        volumes.append(open_volume(path, axes=axes, voxel_size=size))
    return volumes


def _load_prior(path: Path) -> Generator[None, None, Prior]:
    from napari_ambient.prior import load_prior

    yield
    return load_prior(path)


def _same(one: KnownPrior, other: KnownPrior) -> bool:
    return (
        one is other
        or (one.path is not None and one.path == other.path)
        or (one.path is None and other.path is None and one.name == other.name)
    )
