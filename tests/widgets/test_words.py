"""What the library says to callers is said to users of the forms in the forms' words, whichever message it is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import napari_ambient
from napari_ambient.train_config import TrainingError
from napari_ambient.widgets._run import Message
from napari_ambient.widgets._words import error_in_forms, in_forms

OPTIONS = re.compile(
    r"--[a-z]|in Python |\b(?:dims|axes|low_rank|below|method|noise|start|dark|maps|overwrite|operator|form|config"
    r"|turns|still|spread|recalibrate)=\S"
)
"""What only callers know."""
ELSEWHERE = ("cli.py", "demo.py", "progress.py", "__main__.py", "sample_sheet.py")
"""Modules that no form calls."""


def messages() -> Iterator[tuple[str, str]]:
    """Give all texts of the library that name options, but docstrings; what is filled in reads "TYX"."""
    folder = Path(napari_ambient.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        if path.name in ELSEWHERE or "widgets" in path.parts:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)} - {
            id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
        }
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) in docstrings | inside:
                continue
            text = ""
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(v.value) if isinstance(v, ast.Constant) else "TYX" for v in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            if " " in text and OPTIONS.search(text):
                yield f"{path.relative_to(folder)}:{node.lineno}", text


def test_no_message_names_an_option() -> None:
    """Also those to come: a rule in `_words.py` is missing where this fails."""
    found = list(messages())
    assert len(found) > 20  # else nothing was looked at
    left = {where: in_forms(text) for where, text in found if OPTIONS.search(in_forms(text))}
    assert left == {}
    assert not [text for _, text in found if "()" in in_forms(text) and "()" not in text]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name the axes (--axes ZYX, in Python axes='ZYX')", "name the axes (“Axes” ZYX)"),
        ("fit it (--noise fit, in Python noise=fit_noise(volume)); then", "fit it (by a click on “Fit the noise anew”, "
         "or noise “fitted to each file”); then"),
        ("of the training (--psf or --na, --mask, --finer as for train, in Python operator=)",
         "of the training (“PSF” and “Mask”)"),
        ("or its maps (in Python maps=).", "or its maps (in a notebook)."),
        ('in the order of the shape: axes="TYX" (on the command line --axes TYX)', "in the order of the shape: TYX"),
        ("by draws (--method samples, in Python method='samples')", "by draws"),
        ("turns is 8, and quarter turns need", "“Average over” is 8 turns, and quarter turns need"),
        ("take more draws, or leave turns at 1", "take more draws, or leave “Average over” at no turns"),
        ("check its error bars by; leave out --still (in Python still), or name the axes (--axes TYX)",
         "check its error bars by; have them checked by held-out photons, or name the axes (“Axes” TYX)"),
        ("16 of 20 files (x = 3) are read-only", "16 of 20 files (x = 3) are read-only"),
    ],
)  # fmt: skip
def test_words(text: str, words: str) -> None:
    assert in_forms(text) == words


def test_errors_and_warnings_of_a_form_are_in_its_words(qtbot: object, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Exception] = []
    monkeypatch.setattr(
        "napari_ambient.widgets._run.notification_manager.receive_error", lambda kind, error, trace: told.append(error)
    )
    message, error = Message(), TrainingError("no Z to see; use dims='2D'")
    message.error(error)
    assert message.text() == "✖ no Z to see; use “Network” 2D"
    assert told == []  # nothing but the line of the form
    assert str(error).endswith("dims='2D'")
    message.warn(str(error))
    assert message.text() == "⚠ no Z to see; use “Network” 2D"
    # nothing is copied that says it already
    plain = OSError(2, "no such file", "--axes")
    assert error_in_forms(plain) is plain
    message.deleteLater()
