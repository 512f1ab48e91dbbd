"""The notebooks: each runs from start to end at a tiny budget, and is kept without outputs.

Every notebook is executed in a kernel of its own, in an empty folder, on one thread, with as few training steps and
draws as it can do with. A warning of this package is an error, and nothing of any package may warn the reader.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = ("first_steps.ipynb", "error_bars.ipynb", "deconvolution_3d.ipynb", "batch.ipynb")
# Enough for a figure of every kind, and for the second stage to count as learned.
BUDGET = {"NAPARI_AMBIENT_STEPS": "2", "NAPARI_AMBIENT_DRAWS": "2", "NAPARI_AMBIENT_STAGES": "2"}
YOUR_DATA = "# ← YOUR DATA"
# Run before the first cell: whatever the package warns of stops the notebook.
STRICT = """
import warnings
warnings.filterwarnings("error", module=r"napari_ambient(\\.|$)")
"""


def read(name: str) -> Any:
    """Read a notebook and check it against the format's schema."""
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook: Any, folder: Path, budget: dict[str, str]) -> Any:
    """Run all cells in `folder`, and give the notebook with its outputs."""
    notebook.cells.insert(0, nbformat.v4.new_code_cell(STRICT))
    environment = {
        **os.environ,
        **budget,
        # Pictures as a reader's Jupyter makes them, not the tests' Agg, which warns when a figure is shown.
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "NAPARI_APPLICATION_IPY_INTERACTIVE": "0",
        "IPYTHONDIR": str(folder / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    client = NotebookClient(
        notebook,
        timeout=120,
        startup_timeout=60,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        force_raise_errors=True,
    )
    return client.execute(env=environment)


def warned(notebook: Any) -> list[str]:
    """Collect what was written to stderr, without progress bars."""
    text = [
        output.text
        for cell in code(notebook)
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stderr"
    ]
    return [line for line in "".join(text).splitlines() if "Warning" in line]


def test_all_are_there() -> None:
    """The four of the README, no more and no fewer."""
    assert sorted(path.name for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert name in text


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", NAMES)
def test_runs(name: str, tmp_path: Path) -> None:
    """From start to end at a tiny budget, without a warning, with a picture and a progress bar."""
    done = execute(read(name), tmp_path, BUDGET)
    assert warned(done) == []
    outputs = [output for cell in code(done) for output in cell.outputs]
    pictures = [o for o in outputs if o.output_type == "display_data" and "image/png" in o.data]
    bars = [o for o in outputs if "widget-view" in str(o.get("data", "")) or "/s]" in str(o.get("text", ""))]
    assert len(pictures) >= 2
    assert bars
    assert any(tmp_path.glob("*_results/*"))


def test_warnings_of_the_package_stop_a_notebook(tmp_path: Path) -> None:
    """The negative control of `test_runs`: one warning in the package's name, and the run fails."""
    warn = 'warnings.warn_explicit("too few photons", UserWarning, "x.py", 1, "napari_ambient.noise_fit")'
    text = f"import warnings\n{warn}"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text)])
    with pytest.raises(CellExecutionError, match="too few photons"):
        execute(notebook, tmp_path, {})


@pytest.mark.parametrize("name", NAMES)
def test_is_kept_without_outputs(name: str) -> None:
    """No output, no execution count, no trace of a machine: what nbstripout leaves."""
    notebook = read(name)
    for cell in code(notebook):
        assert cell.outputs == [], f"{name} holds outputs: run nbstripout on it, or `pre-commit install` once"
        assert cell.execution_count is None
    for cell in notebook.cells:
        assert not cell.get("attachments")
        assert set(cell.metadata) <= {"tags"}
    assert set(notebook.metadata) <= {"kernelspec"}  # neither a Python version nor the state of progress bars


def test_pre_commit_strips_outputs() -> None:
    """The hook is there, so that nobody commits an output by accident."""
    text = (FOLDER.parent / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert "nbstripout" in text


@pytest.mark.parametrize("name", NAMES)
def test_says_what_to_change_and_reads_the_budget(name: str) -> None:
    """Marked lines for one's own data, the sample as the start, the budget from the environment, and no napari."""
    notebook = read(name)
    source = "\n".join(cell.source for cell in code(notebook))
    assert source.count(YOUR_DATA) >= 3
    assert "sample_folder()" in source
    assert 'os.environ.get("NAPARI_AMBIENT_STEPS"' in source
    assert not re.search(r"^\s*(import|from) (napari|qtpy|magicgui)\b(?!_)", source, flags=re.MULTILINE)
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ") and YOUR_DATA in first.source


def test_what_the_notebooks_import_loads_no_window() -> None:
    """Notebooks run on machines without a screen: neither napari nor Qt is loaded."""
    modules = ", ".join(f"napari_ambient.{name}" for name in ("progress", "batch", "recalibration", "demo"))
    text = f"import sys, {modules}"
    check = "\nprint(sorted({name.partition('.')[0] for name in sys.modules} & {'napari', 'qtpy', 'PyQt6', 'PySide6'}))"
    result = subprocess.run([sys.executable, "-c", text + check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
