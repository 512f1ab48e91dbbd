"""Diffusion priors learned from noisy microscopy alone.

The public names, each loaded from its own module the first time it is used: ``import napari_ambient`` loads
neither torch nor Qt, so that napari's menu need not wait for them. The flow is

    open_volume → fit_noise → train → restore → save_volume
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_ambient.noise import NoiseModel
    from napari_ambient.noise_fit import fit_noise
    from napari_ambient.prior import Prior, load_prior
    from napari_ambient.restoration import restore
    from napari_ambient.train_config import TrainConfig
    from napari_ambient.training import iter_train, train
    from napari_ambient.volumes import Volume, iter_save_volume, open_volume, save_volume

__version__ = "0.1.0.dev0"

__all__ = [
    "NoiseModel",
    "Prior",
    "TrainConfig",
    "Volume",
    "__version__",
    "fit_noise",
    "iter_save_volume",
    "iter_train",
    "load_prior",
    "open_volume",
    "restore",
    "save_volume",
    "train",
]

# The module in which each public name lives; the same as the imports above, which only type checkers read.
_MODULE_OF = {
    "NoiseModel": "noise",
    "Prior": "prior",
    "TrainConfig": "train_config",
    "Volume": "volumes",
    "fit_noise": "noise_fit",
    "iter_save_volume": "volumes",
    "iter_train": "training",
    "load_prior": "prior",
    "open_volume": "volumes",
    "restore": "restoration",
    "save_volume": "volumes",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use, and keep it."""
    module = _MODULE_OF.get(name)
    if module is None:
        names = ", ".join(__all__)
        raise AttributeError(f"module 'napari_ambient' has no attribute {name!r}; it has {names}.")
    value = getattr(import_module(f"napari_ambient.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, also those that are not loaded yet."""
    return sorted({*globals(), *__all__})
