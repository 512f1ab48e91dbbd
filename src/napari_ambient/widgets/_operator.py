"""What the microscope did to the light, in plain values: a form says it, the worker makes the operator of it.

    form → Through → operators.Mask @ operators.Blur → training.iter_train, restoration.restore

Training and restoring make it here, so that a prior meets the very operator again that it was trained through.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from napari_ambient.choices import Border

if TYPE_CHECKING:
    from napari_ambient.operators import Operator

Undone = Literal["nothing", "psf", "holes", "both"]
"""What is to be undone besides the noise."""
PARTS: dict[Undone, tuple[str, ...]] = {"psf": ("blur",), "holes": ("mask",), "both": ("blur", "mask")}
"""Operators of the library, in the order in which they act."""


@dataclass(frozen=True)
class Through:
    """What the light went through.

    Parameters
    ----------
    psf : ndarray or None
        Shape (Y, X) or (Z, Y, X), centred, of sum 1; None for no blur.
    border : {"reflect", "open"}
        What lies beyond the image that is blurred.
    measured : callable or None
        Reads where something was measured (True), shape (Y, X) or (Z, Y, X); None: everywhere.
    """

    psf: NDArray[Any] | None = None
    measured: Callable[[], NDArray[np.bool_]] | None = None
    border: Border = "reflect"

    def operator(self) -> Operator:
        """Make the operator; loads torch and reads the mask.

        Raises
        ------
        LayerError, OperatorError
            If mask or PSF cannot be used.
        """
        from napari_ambient.operators import Blur, Identity, Mask

        operator: Operator = Identity() if self.psf is None else Blur(self.psf, self.border)
        return operator if self.measured is None else Mask(self.measured()) @ operator

    def read(self) -> Through:
        """Read the mask, so that nobody can paint on it any more."""
        return self if self.measured is None else _of_arrays(self.psf, np.array(self.measured()), self.border)

    def save(self, path: Path) -> None:
        """Keep it in a file, from which `load_through` gives it again."""
        arrays: dict[str, NDArray[Any]] = {} if self.psf is None else {"psf": self.psf, "border": np.array(self.border)}
        if self.measured is not None:
            arrays["measured"] = self.measured()
        with open(path, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)


def load_through(path: Path) -> Through:
    """Read what `Through.save` kept; nothing was in the way where there is no such file."""
    if not path.is_file():
        return Through()
    with np.load(path, allow_pickle=False) as arrays:
        border = cast(Border, str(arrays["border"]) if "border" in arrays else "reflect")
        psf, measured = (arrays[name] if name in arrays else None for name in ("psf", "measured"))
        return _of_arrays(psf, measured, border)


def _of_arrays(psf: NDArray[Any] | None, measured: NDArray[np.bool_] | None, border: Border) -> Through:
    return Through(psf, None if measured is None else functools.partial(np.asarray, measured), border)


def undone_by(record: Mapping[str, Any]) -> Undone:
    """Say which task a prior was trained for.

    Parameters
    ----------
    record : mapping
        Its `Record.operator`.

    Returns
    -------
    {"nothing", "psf", "holes", "both"}
        "nothing" also where the operator is one that the forms do not have.
    """
    parts = tuple(str(part.get("operator")) for part in _applied(record))
    return next((task for task, names in PARTS.items() if names == parts), "nothing")


def border_of(record: Mapping[str, Any]) -> Border:
    """Say what was taken to lie beyond the images of a training.

    Parameters
    ----------
    record : mapping
        Its `Record.operator`.

    Returns
    -------
    {"reflect", "open"}
        "reflect" also where there was no blur.
    """
    return "open" if any(part.get("border") == "open" for part in _applied(record)) else "reflect"


def _applied(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Give the parts of a recorded operator, in the order in which they act."""
    parts: Sequence[Mapping[str, Any]] = record.get("applied", [record] if record else [])
    return parts


__all__ = ["PARTS", "Through", "Undone", "border_of", "load_through", "undone_by"]
