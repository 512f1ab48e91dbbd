"""The manifest is valid and complete, and what it contributes works in napari's own way of calling it."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from npe2 import PluginManager, PluginManifest
from qtpy.compat import isalive
from qtpy.QtWidgets import QWidget

import napari_ambient
from napari_ambient.samples import sample_folder
from napari_ambient.volumes import Volume, open_volume, save_volume
from napari_ambient.widgets._contributions import add_prior, get_prior_reader, get_zarr_reader
from napari_ambient.widgets._forms import SourceForm
from napari_ambient.widgets._layers import known_axes, layer_to_start_with, volume_from_layer
from napari_ambient.widgets._session import priors_of
from napari_ambient.widgets._settings import PLUGIN, Settings, settings

PACKAGE = Path(napari_ambient.__file__).parent
MANIFEST = PACKAGE / "napari.yaml"


@pytest.fixture
def manifest() -> PluginManifest:
    return PluginManifest.from_file(MANIFEST)


@pytest.fixture
def plugin(npe2pm: Any, manifest: PluginManifest) -> Any:
    """Register this plugin alone, as napari would."""
    npe2pm.register(manifest)
    return npe2pm


def fake_prior(folder: Path) -> Path:
    folder.mkdir()
    (folder / "prior.json").write_text('{"program": "napari-ambient", "format": 1}', encoding="utf-8")
    return folder


# ------------------------------------------------------------------------------------------- manifest


def test_the_manifest_says_what_the_plugin_is(manifest: PluginManifest) -> None:
    assert manifest.name == PLUGIN
    assert [str(each) for each in manifest.categories] == ["Image Processing"]
    assert [widget.display_name for widget in manifest.contributions.widgets] == ["Train", "Restore", "Sample", "Batch"]
    menus = {name: [item.command for item in items] for name, items in manifest.contributions.menus.items()}
    assert f"{PLUGIN}.restore" in menus["napari/layers/filter"]
    assert f"{PLUGIN}.batch" in menus["napari/file/io_utilities"]


def test_every_command_names_something_that_is_there(manifest: PluginManifest) -> None:
    # read, not imported: this must hold for every widget, also while one of them is broken
    for command in manifest.contributions.commands:
        module, name = command.python_name.split(":")
        path = PACKAGE.parent / (module.replace(".", "/") + ".py")
        assert path.is_file(), command.python_name
        defined = {node.name for node in ast.parse(path.read_text()).body if hasattr(node, "name")}
        assert name in defined, command.python_name


def test_every_contribution_has_a_command(manifest: PluginManifest) -> None:
    ids = {command.id for command in manifest.contributions.commands}
    parts = manifest.contributions
    used = [each.command for each in (*parts.widgets, *parts.readers, *parts.writers, *parts.sample_data)]
    used += [item.command for items in parts.menus.values() for item in items]
    assert set(used) <= ids


def test_the_widgets_can_be_imported(plugin: Any, manifest: PluginManifest) -> None:
    for widget in manifest.contributions.widgets:
        assert callable(plugin.commands.get(widget.command))


def test_what_is_installed_finds_the_manifest_and_the_samples() -> None:
    project = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["entry-points"]["napari.manifest"] == {PLUGIN: "napari_ambient:napari.yaml"}
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    inside = {Path(source).name for source in wheel["force-include"]}
    opened = {"filaments_2d.tif", "mitochondria_3d.tif", "mitochondria_3d_blurred.tif", "psf_widefield.tif"}
    assert opened <= inside
    assert all((sample_folder() / name).is_file() for name in opened)


def test_the_installed_plugin_is_found_by_its_entry_point() -> None:
    manager = PluginManager()
    manager.discover()
    assert PLUGIN in manager._manifests


# ------------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize(
    ("key", "shapes", "axes"),
    [
        ("series", [(16, 256, 256)], "TYX"),
        ("stack", [(32, 128, 128)], "ZYX"),
        ("blurred", [(31, 31, 31), (32, 128, 128)], "ZYX"),
    ],
)
def test_samples_open_at_once(
    key: str, shapes: list[tuple[int, ...]], axes: str, plugin: Any, make_napari_viewer: Any
) -> None:
    viewer = make_napari_viewer(show=False)
    layers = viewer.open_sample(PLUGIN, key)
    assert [layer.data.shape for layer in layers] == shapes
    for layer in layers:
        assert isinstance(layer.data, np.ndarray)
        assert known_axes(layer) == axes  # nobody is asked
        assert (
            0.001 < np.mean(layer.data > layer.contrast_limits[1]) < 0.01
        )  # single bright voxels do not leave the rest dark
        assert volume_from_layer(layer).voxel_size["X"] in (0.065, 0.1)
    assert layers[-1].visible
    if key == "blurred":
        assert not layers[0].visible
        assert layers[0].data.sum() == pytest.approx(1, abs=1e-4)
        viewer.layers.selection = {layers[0]}  # a form that is opened now is about the stack all the same
        assert layer_to_start_with(viewer) is layers[1]


# ------------------------------------------------------------------------------------------- OME-Zarr


@pytest.fixture
def stack() -> Volume:
    values = np.random.default_rng(0).integers(0, 4000, (3, 2, 5, 40, 30)).astype(np.uint16)
    volume = Volume.from_array(
        values,
        "TCZYX",
        voxel_size={"Z": 0.3, "Y": 0.1, "X": 0.1},
        channel_names=("actin", "dna"),
        history=({"action": "restore"},),
    )
    return volume.replace(scale={**volume.scale, "T": 2.0}, units={**volume.units, "T": "second"})


def test_ome_zarr_opens_as_one_layer_per_channel(
    stack: Volume, tmp_path: Path, plugin: Any, make_napari_viewer: Any
) -> None:
    path = save_volume(tmp_path / "cells.ome.zarr", stack)
    viewer = make_napari_viewer(show=False)
    layers = viewer.open(str(path), plugin=PLUGIN)
    assert [layer.name.split()[-1] for layer in layers] == ["actin", "dna"]
    for c, layer in enumerate(layers):
        assert layer.scale.tolist() == [2.0, 0.3, 0.1, 0.1]
        assert [str(unit) for unit in layer.units] == ["second", *["micrometer"] * 3]
        assert layer.axis_labels == ("t", "z", "y", "x")
        volume = volume_from_layer(layer)
        assert volume.axes == "TZYX"
        assert volume.history == ({"action": "restore"},)
        np.testing.assert_array_equal(np.asarray(volume.data), np.asarray(stack.data)[:, c])


def test_a_pyramid_opens_as_one(tmp_path: Path) -> None:
    path = save_volume(tmp_path / "large.ome.zarr", Volume.from_array(np.zeros((1100, 1100), np.uint8)))
    read = get_zarr_reader(str(path))
    assert read is not None
    ((data, arguments, kind),) = read(str(path))
    assert (arguments["multiscale"], kind) == (True, "image")
    assert [level.shape for level in data] == [(1100, 1100), (550, 550)]


def test_other_folders_are_not_ours(tmp_path: Path) -> None:
    assert get_zarr_reader(str(tmp_path)) is None
    assert get_prior_reader(str(tmp_path)) is None
    assert get_zarr_reader(["a.zarr", "b.zarr"]) is None


@pytest.mark.parametrize("name", ["saved.ome.zarr", "saved.ome.tif"])
def test_a_layer_is_saved_with_its_metadata(
    name: str, stack: Volume, tmp_path: Path, plugin: Any, make_napari_viewer: Any
) -> None:
    viewer = make_napari_viewer(show=False)
    layer = viewer.add_image(
        np.asarray(stack.data)[:, 0],
        scale=(2, 0.3, 0.1, 0.1),
        units=("s", "um", "um", "um"),
        axis_labels=("t", "z", "y", "x"),
        name="actin",
    )
    written = viewer.layers.save(str(tmp_path / name), plugin=PLUGIN)
    assert written == [str(tmp_path / name)]
    again = open_volume(tmp_path / name)
    assert (again.axes, again.voxel_size) == ("TZYX", {"Z": 0.3, "Y": 0.1, "X": 0.1})
    np.testing.assert_array_equal(np.asarray(again.data), layer.data)


def test_saving_goes_on_in_a_job_where_there_is_a_window(tmp_path: Path, qtbot: Any) -> None:
    from qtpy.QtWidgets import QWidget

    from napari_ambient.volumes import iter_save_volume
    from napari_ambient.widgets._contributions import _save_in_dialog

    window = QWidget()
    qtbot.addWidget(window)
    volume = Volume.from_array(np.arange(400, dtype=np.uint16).reshape(20, 20))
    assert _save_in_dialog(iter_save_volume(tmp_path / "a.ome.tif", volume), "a.ome.tif", window)
    np.testing.assert_array_equal(np.asarray(open_volume(tmp_path / "a.ome.tif").data), np.asarray(volume.data))

    def broken(block_info: Any = None) -> np.ndarray:
        raise OSError("the disk is gone")

    import dask.array as da

    lazy = da.map_blocks(broken, chunks=((20,), (20,)), dtype=np.uint16, meta=np.empty((0, 0), np.uint16))
    with pytest.raises((ValueError, OSError), match="the disk is gone"):
        _save_in_dialog(iter_save_volume(tmp_path / "b.ome.tif", Volume.from_array(lazy)), "b.ome.tif", window)
    assert not (tmp_path / "b.ome.tif").exists()


# ------------------------------------------------------------------------------------------- priors


def test_a_dropped_prior_joins_the_session(tmp_path: Path, plugin: Any, make_napari_viewer: Any) -> None:
    viewer = make_napari_viewer(show=False)
    path = fake_prior(tmp_path / "cells.prior")
    assert viewer.open(str(path), plugin=PLUGIN) == []
    (known,) = priors_of(viewer)
    assert (known.name, known.path, known.prior) == ("cells.prior", path, None)


def test_a_foreign_or_damaged_prior_is_refused(tmp_path: Path) -> None:
    from napari.components import ViewerModel

    viewer = ViewerModel()
    path = fake_prior(tmp_path / "cells.prior")
    (path / "prior.json").write_text('{"program": "other"}', encoding="utf-8")
    with pytest.raises(ValueError, match="not written by napari-ambient"):
        add_prior(viewer, path)
    (path / "prior.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="damaged"):
        add_prior(viewer, path)
    assert len(priors_of(viewer)) == 0


# ------------------------------------------------------------------------------------------- settings


def test_settings_without_the_plugin_are_the_defaults(plugin_settings: Any) -> None:
    assert settings() == Settings()


def test_settings_are_those_of_the_preferences(plugin_settings: Any, plugin: Any, tmp_path: Path) -> None:
    from napari.settings import get_plugin_settings

    assert settings() == Settings()  # the manifest and the class agree
    section = get_plugin_settings(PLUGIN).compute
    section.device = "cpu"
    section.memory_mb = 500
    section.cache_folder = str(tmp_path)
    assert settings() == Settings("cpu", 500, tmp_path)
    # by default unfinished trainings outlive the temporary folder
    assert settings().trainings == tmp_path / "trainings"
    assert not Settings().trainings.is_relative_to(Settings().cache_folder)
    with pytest.raises(ValueError, match="enum"):
        section.device = "abacus"


# ------------------------------------------------------------------------------------------- in the window


@pytest.mark.parametrize("name", ["Train", "Restore", "Sample", "Batch"])
def test_the_menu_hands_each_form_its_window(
    name: str, plugin: Any, make_napari_viewer: Any, qtbot: Any, from_menu: Any
) -> None:
    """By napari's own way: the parameter that it looks for is there, and the menu hides and shows the same form."""
    viewer = make_napari_viewer(show=False)
    from_menu(viewer.window.plugins_menu, "Ambient restoration", f"{name} (Ambient restoration)")
    (form,) = (w for w in viewer.window._qt_window.findChildren(QWidget) if type(w).__name__ == f"{name}Widget")
    assert form.viewer is viewer
    layer = viewer.add_image(np.ones((8, 8)))
    if name != "Batch":
        assert form.findChild(SourceForm).layer is layer
    viewer.window._qt_window.show()
    assert form.isVisible()
    from_menu(viewer.window.plugins_menu, "Ambient restoration", f"{name} (Ambient restoration)")
    assert not form.isVisible()
    assert [type(w) for w in viewer.window._qt_window.findChildren(type(form))] == [type(form)]
    viewer.window._qt_window.hide()
    form.parent().destroyOnClose()
    form.deleteLater()
    qtbot.waitUntil(lambda: not isalive(form), timeout=10_000)


def test_opening_a_prior_from_the_menu_asks_for_it(
    plugin: Any, make_napari_viewer: Any, tmp_path: Path, from_menu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qtpy.QtWidgets import QFileDialog

    path = fake_prior(tmp_path / "cells.prior")
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(path))
    viewer = make_napari_viewer(show=False)
    from_menu(viewer.window.file_menu, "IO Utilities", "Open a prior… (Ambient restoration)")
    assert [known.path for known in priors_of(viewer)] == [path]


def test_every_widget_opens_in_the_window_and_closes(plugin: Any, make_napari_viewer: Any, qtbot: Any) -> None:
    viewer = make_napari_viewer(show=False)
    for name in ("Train", "Restore", "Sample", "Batch"):
        dock, widget = viewer.window.add_plugin_dock_widget(PLUGIN, name)
        assert widget.isEnabled()
        dock.destroyOnClose()
        widget.deleteLater()
        del dock, widget
        qtbot.wait(10)


def test_the_commands_are_in_napari_s_menus(plugin: Any, make_napari_viewer: Any) -> None:
    from app_model import Application

    make_napari_viewer(show=False)
    app = Application.get_app("test_app")
    assert app is not None
    shown = {
        menu: " ".join(item.command.id for item in app.menus.get_menu(menu) if hasattr(item, "command"))
        for menu in ("napari/layers/filter", "napari/file/io_utilities")
    }
    for name in ("restore", "train", "sample"):
        assert f"{PLUGIN}.{name}" in shown["napari/layers/filter"] or name.capitalize() in shown["napari/layers/filter"]
    assert f"{PLUGIN}.open_prior" in shown["napari/file/io_utilities"]
