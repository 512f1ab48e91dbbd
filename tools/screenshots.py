"""Pictures of the plugin for the README and the docs: the real window, driven as a user would, on both themes.

    xvfb-run -a -s "-screen 0 1600x1000x24" python tools/screenshots.py

Everything shown is real: the sample stacks, short trainings on them, their draws. With the usual numbers it takes about
ten minutes on two cores; `--priors FOLDER` keeps the trained prior, so that the next run needs two. Each picture is
written to docs/images as NAME-dark.png and NAME-light.png, with few enough colours to stay below 300 kB.
"""

# ruff: noqa: E402  (napari reads the environment when it is imported)
from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# neither the settings of the person who runs this nor the unfinished trainings in the cache are touched
os.environ["NAPARI_CONFIG"] = ""
PRIVATE = tempfile.mkdtemp(prefix="screenshots_")
os.environ["TMPDIR"] = os.environ["HOME"] = tempfile.tempdir = PRIVATE

import napari
import numpy as np
from napari.settings import get_settings
from PIL import Image
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QScrollArea, QWidget

from napari_ambient import TrainConfig, load_prior, open_volume, save_volume
from napari_ambient.widgets._layers import layer_arguments
from napari_ambient.widgets._session import priors_of

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "sample_data"
WINDOW = (1440, 900)
LARGEST = 300_000  # bytes
THEMES = ("dark", "light")
LEFT = Qt.MouseButton.LeftButton


def main(
    folder: Path = ROOT / "docs" / "images",
    *,
    steps: int = 600,
    below_steps: int = 300,
    draws: int = 8,
    priors: Path | None = None,
    themes: tuple[str, ...] = THEMES,
    only: tuple[str, ...] = ("train", "restore", "sample", "batch"),
) -> list[Path]:
    """Drive the window through the four forms and write the pictures.

    Parameters
    ----------
    folder : Path
        Where the pictures go.
    steps, below_steps : int
        Training steps of the two stages.
    draws : int
        Posterior draws behind the error bars.
    priors : Path, optional
        Folder that keeps the trained prior for the next run.
    themes : tuple of str
        Napari's themes.
    only : tuple of str
        Which forms.

    Returns
    -------
    list of Path
        The pictures.
    """
    import torch

    torch.set_num_threads(max(torch.get_num_threads(), 1))
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with tempfile.TemporaryDirectory() as temporary:
        kept = Path(temporary) if priors is None else priors
        config = TrainConfig(steps=steps, below_steps=below_steps, batch=8, patch=(64, 64))
        for theme in themes:
            get_settings().appearance.theme = theme
            for name in only:
                with window() as viewer:
                    scene = SCENES[name]
                    for label in scene(viewer, Scene(folder, theme, kept, config, draws, written)):
                        path = folder / f"{label}-{theme}.png"
                        take(viewer, path)
                        written.append(path)
                        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)
    return written


class Scene:
    """What the scenes need to know."""

    def __init__(
        self, folder: Path, theme: str, priors: Path, config: TrainConfig, draws: int, written: list[Path]
    ) -> None:
        self.folder, self.theme, self.priors, self.config, self.draws = folder, theme, priors, config, draws
        self.written = written

    @property
    def bundle(self) -> Path:
        """Where the prior of the sample stack lies."""
        return self.priors / "filaments_2d.prior"


# ----------------------------------------------------------------------------------------------- scenes


def train(viewer: napari.Viewer, scene: Scene) -> Iterator[str]:
    """Show the estimated noise, and a training under way; the first time it runs to its end."""
    from napari_ambient.widgets.train import TrainWidget

    open_sample(viewer, "filaments_2d.tif")
    form = TrainWidget(viewer, config=scene.config)
    dock(viewer, form, "Train")
    form.error_bars.setChecked(True)
    wait(lambda: form.source.ready)
    click(form.noise.estimate)
    wait(lambda: form._fit is None)
    wait(lambda: form._estimate is None and not form._timer.isActive(), 120)
    yield "train-noise"
    click(form.train)
    wait(lambda: form.training)
    finish = not scene.bundle.exists()
    share = 0.6 if finish else 0.12
    wait(lambda: form.bar.value() > share * form.bar.maximum() > 0, 1800)
    scroll_down(form)
    yield "train"
    if finish:
        wait(lambda: not form.training, 3600)
        known = list(priors_of(viewer))[-1]
        assert known.prior is not None
        known.prior.save(scene.bundle)
    else:
        click(form.stop)
        wait(lambda: not form.training, 120)


def restore(viewer: napari.Viewer, scene: Scene) -> Iterator[str]:
    """Show the denoised image and its error bars beside the noisy one."""
    from napari_ambient.widgets.restore import RestoreWidget

    open_sample(viewer, "filaments_2d.tif")
    form = RestoreWidget(viewer)
    dock(viewer, form, "Restore")
    choose_prior(viewer, form, scene)
    viewer.dims.set_current_step(0, 3)
    form.error_bars.setChecked(True)
    form.keep.setChecked(True)
    form.draws.setValue(scene.draws)
    form.where.setCurrentIndex(form.where.findData("slice"))
    wait(lambda: form.source.ready and form.button.isEnabled())
    settle(1.0)
    click(form.button)
    wait(lambda: form.running)
    wait(lambda: not form.running, 600)
    grid = viewer.canvas.grid
    grid.enabled, grid.shape = True, (2, 2)
    viewer.reset_view()
    yield "restore"


def sample(viewer: napari.Viewer, scene: Scene) -> Iterator[str]:
    """Show new images beside training crops, and the audit's verdict."""
    from napari_ambient.widgets.sample import SampleWidget

    open_sample(viewer, "filaments_2d.tif")
    form = SampleWidget(viewer)
    dock(viewer, form, "Sample")
    choose_prior(viewer, form, scene)
    wait(lambda: form.draw.isEnabled() and form.training.ready)
    click(form.draw)
    wait(lambda: form._job is None, 600)
    click(form.audit)
    wait(lambda: form._job is None, 1200)
    yield "sample"


def batch(viewer: napari.Viewer, scene: Scene) -> Iterator[str]:
    """Show a folder under way, one file of it damaged."""
    from napari_ambient.widgets.batch import BatchWidget

    with tempfile.TemporaryDirectory(prefix="experiment_") as temporary:
        source = Path(temporary) / "day1"
        source.mkdir()
        stack = open_volume(SAMPLES / "filaments_2d.tif")
        for number in range(7):
            part = stack.replace(data=stack.data[2 * number : 2 * number + 2])
            save_volume(source / f"cells_{number + 1:02d}.ome.tif", part)
        damaged = source / "cells_04.ome.tif"
        damaged.write_bytes(damaged.read_bytes()[:40])
        form = BatchWidget(viewer)
        dock(viewer, form, "Batch")
        choose_prior(viewer, form, scene)
        form.add([str(source)])
        wait(lambda: len(form.table.rows) == 7 and form._reading is None and not form.table.rows[-1].image == "…")
        form.folder.setText("~/day1/restored")
        form.method.setCurrentIndex(form.method.findData("samples"))
        form.draws.setValue(scene.draws)
        click(form.start)
        wait(lambda: form.table.count("finished") >= 1, 600)
        form.open_row(form.table.rows[0])
        wait(lambda: len(viewer.layers) == 2)
        wait(lambda: form.table.count("finished") >= 4 and any(0.3 < r.fraction < 0.9 for r in form.table.rows), 600)
        yield "batch"
        form.bar.button.click()
        wait(lambda: form._job is None)


SCENES: dict[str, Callable[[napari.Viewer, Scene], Iterator[str]]] = {
    "train": train,
    "restore": restore,
    "sample": sample,
    "batch": batch,
}


# ------------------------------------------------------------------------------------------- the window


@contextmanager
def window() -> Iterator[napari.Viewer]:
    """Open a window of the usual size, and close it."""
    viewer = napari.Viewer()
    viewer.window._qt_window.resize(*WINDOW)
    try:
        yield viewer
    finally:
        viewer.window._qt_window.hide()
        settle(0.2)
        viewer.close()
        settle(0.2)


def open_sample(viewer: napari.Viewer, name: str) -> Any:
    """Open a sample stack as a layer."""
    volume = open_volume(SAMPLES / name)
    data, arguments = layer_arguments(volume, None, name=Path(name).stem)
    values = np.asarray(data)
    low, high = np.percentile(values, (0.5, 99.8))
    layer = viewer.add_image(values, **(arguments | {"contrast_limits": (float(low), float(high))}))
    viewer.reset_view()
    settle(0.3)
    return layer


def choose_prior(viewer: napari.Viewer, form: Any, scene: Scene) -> None:
    """Give the session the trained prior."""
    if not scene.bundle.exists():
        raise SystemExit(f"{scene.bundle} is not there; run the scene “train” first")
    priors_of(viewer).add(scene.bundle, load_prior(scene.bundle))
    wait(lambda: form.prior.prior is not None)


def dock(viewer: napari.Viewer, form: QWidget, name: str) -> None:
    """Dock a form at the right, wide enough to be read."""
    docked = viewer.window.add_dock_widget(form, name=f"{name} (Ambient restoration)", area="right")  # as its menu does
    settle(0.2)
    viewer.window._qt_window.resizeDocks([docked], [430], Qt.Orientation.Horizontal)
    settle(0.3)


def click(button: QWidget) -> None:
    """Press a button as a user does."""
    QTest.mouseClick(button, LEFT, Qt.KeyboardModifier.NoModifier, QPoint(8, 8))


def scroll_down(form: Any) -> None:
    """Show the lower end of a form that is higher than the window."""
    bar = form.findChild(QScrollArea).verticalScrollBar()
    bar.setValue(bar.maximum())
    settle(0.2)


def wait(until: Callable[[], bool], seconds: float = 30.0) -> None:
    """Let the window live until something is true."""
    end = time.monotonic() + seconds
    while not until():
        settle(0.02)
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s in vain")


def settle(seconds: float) -> None:
    """Let the window live for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.005)


def take(viewer: napari.Viewer, path: Path) -> None:
    """Write a picture of the window, in as many colours as fit below the largest size."""
    settle(0.4)
    pixels = viewer.window.screenshot(flash=False, canvas_only=False)
    picture = Image.fromarray(pixels).convert("RGB")
    for colours in (256, 128, 64, 32):
        picture.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size < LARGEST:
            return
    raise SystemExit(f"{path} has {path.stat().st_size} bytes; make the window smaller")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--below-steps", type=int, default=300)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--priors", type=Path, help="keeps the trained prior for the next run")
    parser.add_argument("--themes", nargs="+", default=list(THEMES))
    parser.add_argument("--only", nargs="+", default=list(SCENES), choices=list(SCENES))
    given = vars(parser.parse_args())
    main(given.pop("folder"), **(given | {"themes": tuple(given["themes"]), "only": tuple(given["only"])}))
    shutil.rmtree(PRIVATE)
