"""What a form says of the microscope, in plain values: the operator it makes, the file it is kept in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from napari_ambient.choices import Border
from napari_ambient.operators import Blur, Downsample, Identity, Mask
from napari_ambient.widgets._operator import Through, border_of, load_through, undone_by

PSF = np.full((3, 5), 1 / 15)
MEASURED = np.random.default_rng(0).random((6, 7)) > 0.2


@pytest.mark.parametrize("psf", [None, PSF])
@pytest.mark.parametrize("holed", [False, True])
@pytest.mark.parametrize("border", ["reflect", "open"])
def test_it_comes_back_from_its_file(tmp_path: Path, psf: np.ndarray | None, holed: bool, border: Border) -> None:
    expected = (Mask(MEASURED) if holed else Identity()) @ (Identity() if psf is None else Blur(psf, border))
    through = Through(psf, (lambda: MEASURED) if holed else None, border)
    assert through.read().operator().to_dict() == expected.to_dict()
    assert border_of(expected.to_dict()) == (border if psf is not None else "reflect")
    assert through.operator().to_dict() == expected.to_dict()
    through.save(tmp_path / "through.npz")
    assert load_through(tmp_path / "through.npz").operator().to_dict() == expected.to_dict()


def test_without_a_file_nothing_was_in_the_way(tmp_path: Path) -> None:
    assert load_through(tmp_path / "through.npz") == Through()


def test_what_is_read_cannot_be_painted_on_any_more() -> None:
    painted = MEASURED.copy()
    live = Through(None, lambda: painted)
    read = live.read()
    painted[:] = True
    assert read.operator().to_dict() == Mask(MEASURED).to_dict()
    assert live.operator().to_dict() != Mask(MEASURED).to_dict()


def test_tasks_of_priors() -> None:
    """A prior's task is offered only where the form has the whole operator."""
    blur, mask, coarse = Blur(PSF), Mask(MEASURED), Downsample(2)
    assert undone_by({}) == "nothing"
    assert undone_by(blur.to_dict()) == "psf"
    assert undone_by(mask.to_dict()) == "holes"
    assert undone_by((mask @ blur).to_dict()) == "both"
    for other in (coarse, coarse @ blur, blur @ mask):
        assert undone_by(other.to_dict()) == "nothing"
