"""What the user chose in napari's preferences for this plugin: device, memory cap, cache folder.

Preferences → settings() → every job that loads a network or writes large results
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import platformdirs

PLUGIN = "napari-ambient"
TEMPORARY = Path(tempfile.gettempdir()) / PLUGIN
SECTION = "compute"
Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class Settings:
    """The plugin's settings.

    Parameters
    ----------
    device : str
        Where networks run: "auto", "cpu", "cuda" or "mps".
    memory_mb : int
        Results larger than this many MB go to an OME-Zarr folder on disk instead of memory.
    cache_folder : Path
        Where such results, of images that come from no file, and unfinished trainings are kept. By default results are
        kept in the system's temporary folder, and trainings, which are to outlive it, in the user's data folder.
    """

    device: Device = "auto"
    memory_mb: int = 2000
    cache_folder: Path = TEMPORARY

    @property
    def trainings(self) -> Path:
        """Folder of unfinished trainings."""
        kept = self.cache_folder != TEMPORARY
        return (self.cache_folder if kept else platformdirs.user_data_path(PLUGIN, appauthor=False)) / "trainings"


def settings() -> Settings:
    """Read the settings.

    Returns
    -------
    Settings
        The defaults where the plugin is not registered with napari, as in a script.

    Raises
    ------
    ValueError
        If a setting has a value that is not allowed.
    """
    values = _stored()
    default = Settings()
    device = values.get("device", default.device)
    if device not in get_args(Device):
        raise ValueError(f"the plugin's device is {device!r}; choose one of {', '.join(get_args(Device))}")
    memory = int(values.get("memory_mb", default.memory_mb))
    if memory < 1:
        raise ValueError(f"the plugin's memory cap is {memory} MB; choose 1 or more")
    folder = str(values.get("cache_folder", "")).strip()
    return Settings(
        device=cast(Device, device),
        memory_mb=memory,
        cache_folder=Path(folder).expanduser() if folder else default.cache_folder,
    )


def _stored() -> dict[str, Any]:
    """Give what napari has stored, by name; empty where it knows no settings of plugins, or not this plugin."""
    import napari.settings

    # before napari 0.9 the preferences show no plugin's configuration
    if not hasattr(napari.settings, "get_plugin_settings"):
        return {}
    known = napari.settings.get_plugin_settings()
    if PLUGIN not in known:
        return {}
    section = getattr(known[PLUGIN], SECTION)
    return {name: getattr(section, name) for name in ("device", "memory_mb", "cache_folder")}
