"""The priors of a napari session: what was trained, opened or dropped on a viewer.

    Train → priors_of(viewer).add(…) → every prior box of this viewer offers it

Each viewer has its own list, which goes when the viewer goes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, Signal

if TYPE_CHECKING:
    from napari import Viewer

    from napari_ambient.prior import Prior


@dataclass(frozen=True, eq=False)
class KnownPrior:
    """A prior of this session.

    Parameters
    ----------
    name : str
        What to call it: "mito.prior".
    path : Path or None
        The bundle on disk; None while it has not been saved.
    prior : Prior or None
        The prior itself; None while it has not been read from the disk.
    """

    name: str
    path: Path | None
    prior: Prior | None


class PriorList(QObject):
    """The priors that one viewer knows, the newest last."""

    changed = Signal()
    """A prior came, was replaced, or went."""

    def __init__(self) -> None:
        super().__init__()
        self._known: list[KnownPrior] = []

    def add(self, path_or_name: str | Path, prior: Prior | None = None) -> KnownPrior:
        """Add a prior, or put a newer one in the place of that with the same path or name.

        Parameters
        ----------
        path_or_name : str or Path
            The bundle on disk (a `Path`, or a text that names an existing folder), or what to call a prior that was
            not saved.
        prior : Prior or None
            The prior; None where it is to be read from the disk when it is chosen.

        Returns
        -------
        KnownPrior

        Raises
        ------
        ValueError
            If there is neither a bundle nor a prior.
        """
        path = Path(path_or_name).expanduser()
        on_disk = isinstance(path_or_name, Path) or (path / "prior.json").is_file()
        if not on_disk and prior is None:
            raise ValueError(f"{path_or_name} is no prior bundle, and no prior was given; choose a folder *.prior")
        known = KnownPrior(path.name, path.resolve() if on_disk else None, prior)
        for i, other in enumerate(self._known):
            if (other.path, other.name if other.path is None else "") == (
                known.path,
                known.name if known.path is None else "",
            ):
                self._known[i] = known
                break
        else:
            self._known.append(known)
        self.changed.emit()
        return known

    def remove(self, known: KnownPrior) -> None:
        """Forget a prior of the session; the bundle on disk stays."""
        self._known.remove(known)
        self.changed.emit()

    def __iter__(self) -> Iterator[KnownPrior]:
        """Iterate over the priors, the oldest first."""
        return iter(tuple(self._known))

    def __len__(self) -> int:
        """Count the priors."""
        return len(self._known)


_lists: weakref.WeakKeyDictionary[Any, PriorList] = weakref.WeakKeyDictionary()


def priors_of(viewer: Viewer) -> PriorList:
    """Give the list of priors of a viewer.

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer, or the proxy of it that plugins are given.

    Returns
    -------
    PriorList
        The same at every call.
    """
    # napari gives plugins a new proxy each time; the viewer behind it is one.
    model = getattr(viewer, "__wrapped__", viewer)
    if model not in _lists:
        _lists[model] = PriorList()
    return _lists[model]
