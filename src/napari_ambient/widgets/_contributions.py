"""What napari.yaml contributes besides the widgets: readers, writers and sample data.

    file → open_volume → layer → save_volume → file
    *.prior dropped on the window → the session's priors

The files are opened and written by the same functions as everywhere else; only the layers are made here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_ambient.samples import sample_folder

if TYPE_CHECKING:
    from napari import Viewer

    from napari_ambient.volumes import Volume

LayerData = tuple[Any, dict[str, Any], str]
Reader = Callable[[str], list[Any]]


# --------------------------------------------------------------------------------------------- priors


def get_prior_reader(path: str | list[str]) -> Reader | None:
    """Give a reader of prior bundles.

    Parameters
    ----------
    path : str or list of str
        What was dropped or opened.

    Returns
    -------
    callable or None
        None where this is no prior bundle.
    """
    paths = [path] if isinstance(path, str) else path
    if not all((Path(each) / "prior.json").is_file() for each in paths):
        return None
    return lambda _: _read_priors([Path(each) for each in paths])


def _read_priors(paths: list[Path]) -> list[Any]:
    import napari

    viewer = napari.current_viewer()
    if viewer is None:
        raise ValueError("a prior is opened in a napari window; in a script use napari_ambient.load_prior(path)")
    for path in paths:
        add_prior(viewer, path)
    return [(None,)]  # napari's sign for "read, and there is no layer"


def add_prior(viewer: Viewer, path: Path) -> None:
    """Put a bundle on the list of the session's priors, and say so.

    Parameters
    ----------
    viewer : napari.Viewer
        The window.
    path : Path
        The bundle; the network itself is read when it is chosen.

    Raises
    ------
    ValueError
        If the bundle's description cannot be read, or is of another program.
    """
    from napari.utils.notifications import show_info

    from napari_ambient.widgets._session import priors_of

    try:
        described = json.loads((path / "prior.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a prior, or damaged: {error}; copy the bundle again") from error
    if not isinstance(described, Mapping) or described.get("program") != "napari-ambient":
        raise ValueError(f"{path} was not written by napari-ambient; it cannot be used as a prior")
    priors_of(viewer).add(path)
    show_info(f"{path.name} can be used now, in Layers > Filter > Restore")


def open_prior(viewer: Viewer) -> None:
    """Ask for a bundle and put it on the list of the session's priors.

    Parameters
    ----------
    viewer : napari.Viewer
        The window.
    """
    from qtpy.QtWidgets import QFileDialog

    name = QFileDialog.getExistingDirectory(None, "Open a prior (a folder *.prior)")
    if name:
        add_prior(viewer, Path(name))


# --------------------------------------------------------------------------------------------- images


def get_zarr_reader(path: str | list[str]) -> Reader | None:
    """Give a reader of OME-Zarr images.

    Parameters
    ----------
    path : str or list of str
        What was dropped or opened.

    Returns
    -------
    callable or None
        None where this is no zarr folder, or several.
    """
    if not isinstance(path, str):
        if len(path) != 1:
            return None
        path = path[0]
    names = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
    if not any((Path(path) / name).is_file() for name in names):
        return None
    return read_zarr


def read_zarr(path: str) -> list[LayerData]:
    """Read an OME-Zarr image lazily, as one layer per channel.

    Parameters
    ----------
    path : str
        The folder.

    Returns
    -------
    list of layer data
        A pyramid where the file has one; scale, units, axis labels and history as the file says.
    """
    from napari_ambient.volumes import open_volume

    levels = [open_volume(path)]
    while True:
        try:
            coarser = open_volume(path, level=len(levels))
        except ValueError:  # there is no such level
            break
        if coarser.shape == levels[-1].shape:
            break
        levels.append(coarser)
    return _layers(levels, levels[0].name or Path(path).stem)


def _layers(levels: list[Volume], name: str) -> list[LayerData]:
    """Give one layer per channel, as napari shows channels."""
    from napari_ambient.widgets._layers import METADATA, layer_arguments

    count = levels[0].sizes.get("C", 1)
    layers: list[LayerData] = []
    for c in range(count):
        parts = [level.channel(c) if "C" in level.axes else level for level in levels]
        names = levels[0].channel_names
        title = name if count == 1 else f"{name} {names[c] if names else f'channel {c}'}"
        data, arguments = layer_arguments(parts[0], None, name=title)
        if len(parts) > 1:
            data = [part.data for part in parts]
            arguments["multiscale"] = True
        if count > 1:
            arguments["metadata"][METADATA]["first_channel"] = parts[0].first_channel
            arguments |= {"blending": "additive", "colormap": ("cyan", "magenta", "yellow", "green", "red")[c % 5]}
        layers.append((data, arguments, "image"))
    return layers


def write_zarr(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Save an image layer as OME-Zarr, block by block.

    Parameters
    ----------
    path : str
        The folder to write.
    data : array or list of arrays
        The layer's data.
    attributes : dict
        The layer's attributes.

    Returns
    -------
    list of str
        What was written; empty where the user cancelled.
    """
    return _write(path, data, attributes)


def write_tiff(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Save an image layer as OME-TIFF with its axes and voxel size.

    Parameters
    ----------
    path : str
        The file to write.
    data : array or list of arrays
        The layer's data.
    attributes : dict
        The layer's attributes.

    Returns
    -------
    list of str
        What was written; empty where the user cancelled.
    """
    return _write(path, data, attributes)


def _write(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    from napari.layers import Image
    from qtpy.QtWidgets import QApplication

    from napari_ambient.volumes import iter_save_volume
    from napari_ambient.widgets._layers import known_axes, volume_from_layer

    layer = Image(data, **attributes)
    window = QApplication.activeWindow() if QApplication.instance() else None
    axes = known_axes(layer)
    if axes is None and window is not None:
        axes = _ask_axes(layer, window)
        if axes is None:
            return []
    volume = volume_from_layer(layer, axes=axes)
    # napari's own dialog has asked whether to replace what is there
    blocks = iter_save_volume(path, volume, overwrite=True)
    if window is None:
        for _ in blocks:
            pass
        return [path]
    return [path] if _save_in_dialog(blocks, Path(path).name, window) else []


def _ask_axes(layer: Any, window: Any) -> str | None:
    from qtpy.QtWidgets import QInputDialog

    from napari_ambient.widgets._layers import possible_axes

    sizes = " × ".join(str(n) for n in layer.data.shape)
    question = f"What are the axes of {layer.name} ({sizes})?"
    axes, given = QInputDialog.getItem(window, "Axes", question, possible_axes(layer), 0, False)
    return str(axes) if given else None


def _save_in_dialog(blocks: Generator[Any, None, None], name: str, window: Any) -> bool:
    """Save in a job behind a dialog with a Cancel button; napari waits here, its window lives on."""
    from qtpy.QtCore import QEventLoop, Qt
    from qtpy.QtWidgets import QProgressDialog

    from napari_ambient.widgets._run import Job, run

    def work(job: Job) -> Generator[tuple[int, int], None, None]:
        try:
            for block in blocks:
                yield block.index, block.total
        finally:
            blocks.close()

    ended: list[Exception | None] = []
    loop = QEventLoop()
    dialog = QProgressDialog(f"Saving {name}…", "Cancel", 0, 0, window)
    dialog.setWindowModality(Qt.WindowModality.WindowModal)
    dialog.setMinimumDuration(300)
    job = run(work, None, title=f"saving {name}")

    def show(progress: tuple[int, int]) -> None:
        dialog.setMaximum(progress[1])
        dialog.setValue(min(progress[0] + 1, progress[1] - 1))

    job.yielded.connect(show)
    job.succeeded.connect(lambda _: ended.append(None))
    job.failed.connect(ended.append)
    job.ended.connect(loop.quit)
    dialog.canceled.connect(job.cancel)
    job.start()
    loop.exec()
    dialog.canceled.disconnect(job.cancel)
    dialog.close()
    dialog.deleteLater()
    if ended and ended[0] is not None:
        raise ended[0]
    return bool(ended)


# --------------------------------------------------------------------------------------------- samples


def sample_series() -> list[LayerData]:
    """Sixteen noisy fields of cells, 2D.

    Returns
    -------
    list of layer data
    """
    return [_sample("filaments_2d", "cells (noisy)")]


def sample_stack() -> list[LayerData]:
    """Give a noisy confocal stack of mitochondria.

    Returns
    -------
    list of layer data
    """
    return [_sample("mitochondria_3d", "mitochondria (noisy)")]


def sample_blurred() -> list[LayerData]:
    """Give a blurred widefield stack of mitochondria, and the PSF that blurred it.

    Returns
    -------
    list of layer data
        The PSF is hidden at first.
    """
    from napari_ambient.widgets._layers import METADATA

    psf = _sample("psf_widefield", "PSF")
    psf[1]["visible"] = False
    psf[1]["metadata"][METADATA]["kind"] = "psf"
    return [psf, _sample("mitochondria_3d_blurred", "mitochondria (blurred)")]


def _sample(file: str, name: str) -> LayerData:
    from napari_ambient.volumes import open_volume
    from napari_ambient.widgets._layers import contrast_of, layer_arguments

    volume = open_volume(sample_folder() / f"{file}.tif")
    data, arguments = layer_arguments(volume, None, name=name)
    values = data.compute()
    return values, arguments | {"contrast_limits": contrast_of(values)}, "image"
