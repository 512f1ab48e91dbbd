"""What the microscope did to the light, in plain values: a form says it, the worker makes the operator of it.

    form → Through → operators.Mask @ operators.Blur → training.iter_train, restoration.restore

Training and restoring make it here, so that a prior meets the very operator again that it was trained through.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

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
    measured : callable or None
        Reads where something was measured (True), shape (Y, X) or (Z, Y, X); None: everywhere.
    """

    psf: NDArray[Any] | None = None
    measured: Callable[[], NDArray[np.bool_]] | None = None

    def operator(self) -> Operator:
        """Make the operator; loads torch and reads the mask.

        Raises
        ------
        LayerError, OperatorError
            If mask or PSF cannot be used.
        """
        from napari_ambient.operators import Blur, Identity, Mask

        operator: Operator = Identity() if self.psf is None else Blur(self.psf)
        return operator if self.measured is None else Mask(self.measured()) @ operator

    def read(self) -> Through:
        """Read the mask, so that nobody can paint on it any more."""
        return self if self.measured is None else _of_arrays(self.psf, np.array(self.measured()))

    def save(self, path: Path) -> None:
        """Keep it in a file, from which `load_through` gives it again."""
        arrays = {} if self.psf is None else {"psf": self.psf}
        if self.measured is not None:
            arrays["measured"] = self.measured()
        with open(path, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)


def load_through(path: Path) -> Through:
    """Read what `Through.save` kept; nothing was in the way where there is no such file."""
    if not path.is_file():
        return Through()
    with np.load(path, allow_pickle=False) as arrays:
        return _of_arrays(*(arrays[name] if name in arrays else None for name in ("psf", "measured")))


def _of_arrays(psf: NDArray[Any] | None, measured: NDArray[np.bool_] | None) -> Through:
    return Through(psf, None if measured is None else functools.partial(np.asarray, measured))


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
    parts = tuple(str(part.get("operator")) for part in record.get("applied", [record] if record else []))
    return next((task for task, names in PARTS.items() if names == parts), "nothing")


__all__ = ["PARTS", "Through", "Undone", "load_through", "undone_by"]
