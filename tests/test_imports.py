"""Who may import whom: the floors of the house, and what `import napari_ambient` must not load.

The law is read from the source with `ast`, so that imports inside functions and under TYPE_CHECKING count
too. Imports go downwards only; on the ground floor the rooms do not see each other, except for what the fit
and the forms of the noise are made of; and no imports run in a circle.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

import napari_ambient

PACKAGE = "napari_ambient"
SOURCE = Path(napari_ambient.__file__).parent

# Every module or folder of the package, by floor, the lowest first. A new file needs a place here.
FLOORS = (
    {"choices", "samples"},
    {
        "noise",
        "photon_transfer",
        "noise_fit",
        "noise_planes",
        "noise_text",
        "recorruption",
        "simulate",
        "splitting",
        "operators",
        "point_spread",
        "networks",
        "devices",
        "muon",
        "volumes",
    },
    {"denoiser", "samplers", "measurement", "opening"},
    {"amortised", "posterior", "psf_fit"},
    {"objectives"},
    {"moments", "sampling"},
    {"prior", "train_config"},
    {"restorer"},
    {"uncertainty"},
    {"training", "restoration", "report", "audit"},
    {
        "batch",
        "compatibility",
        "prior_audit",
        "progress",
        "recalibration",
        "sample_sheet",
        "training_time",
        "unfinished",
    },
    {"demo"},
    {"cli", "widgets"},
    {"__main__"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# On the ground floor a room sees no other, save these.
GROUND_FLOOR = FLOOR_OF["noise"]
GROUND_FLOOR_SEES = {
    "noise_fit": {"noise", "noise_planes", "noise_text", "photon_transfer"},
    "noise_text": {"noise"},
    "operators": {"point_spread"},
    "recorruption": {"noise", "splitting"},
    "simulate": {"noise"},
    "splitting": {"noise"},
}
WINDOW_LIBRARIES = {"PyQt6", "PySide6", "magicgui", "napari", "pyqtgraph", "qtpy", "superqt"}

PUBLIC_NAMES = {
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
}


# --- reading the imports --------------------------------------------------------------------------


def modules_of(source: Path) -> dict[str, Path]:
    """Map the dotted name of every module under `source`, the package's folder, to its file."""
    modules = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        modules[".".join((PACKAGE, *parts))] = path
    return modules


def written_imports(module: str, path: Path) -> Iterator[tuple[int, str, str | None]]:
    """Yield (line, module, name) for every import in a file; name None: the module itself."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                above = package.split(".")[: len(package.split(".")) - (node.level - 1)]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                yield node.lineno, base, alias.name
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value, None


def public_home(source: Path) -> dict[str, str]:
    """Map each public name to the module it is imported from, as the package's `__init__` states it."""
    path = source / "__init__.py"
    return {
        name: module
        for _, module, name in written_imports(PACKAGE, path)
        if name is not None and module.startswith(PACKAGE + ".")
    }


def import_graph(source: Path) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]]]:
    """Return, for each module, the own modules and the other top-level packages it imports, with lines."""
    modules, home = modules_of(source), public_home(source)
    own: dict[str, dict[str, int]] = {module: {} for module in modules}
    other: dict[str, dict[str, int]] = {module: {} for module in modules}
    for module, path in modules.items():
        for line, base, name in written_imports(module, path):
            if base != PACKAGE and not base.startswith(PACKAGE + "."):
                other[module].setdefault(base.partition(".")[0], line)
                continue
            target = base
            if name is not None and f"{base}.{name}" in modules:
                target = f"{base}.{name}"
            elif base == PACKAGE and name in home:
                target = home[name]  # `from napari_ambient import train` needs what train's own module needs
            elif base == PACKAGE and name == "__version__":
                continue  # a plain string, which loads nothing
            own[module].setdefault(target, line)
    return own, other


# --- the law --------------------------------------------------------------------------------------


def room_of(module: str) -> str:
    """Return the module's name directly under the package; '' for the package itself."""
    return module.removeprefix(PACKAGE).lstrip(".").partition(".")[0]


def violations(source: Path) -> list[str]:
    """State every import under `source` that the law forbids, one sentence each."""
    own, other = import_graph(source)
    found = []
    for module in own:
        room = room_of(module)
        if not room:
            continue  # the package itself names everything, lazily: see the tests of loading below
        if room not in FLOOR_OF:
            found.append(f"{module} has no floor: give {room!r} a place in FLOORS")
            continue
        for target, line in own[module].items():
            found += [f"{module}:{line} {why}" for why in own_violations(room, target)]
        for library, line in other[module].items():
            if library in WINDOW_LIBRARIES and room != "widgets":
                found.append(f"{module}:{line} imports {library}, which only widgets may")
            if library == "torch" and room == "volumes":
                found.append(f"{module}:{line} imports torch, which volumes may not")
    # A circle over several floors goes upwards somewhere, and is named above.
    floor = {module: FLOOR_OF.get(room_of(module)) for module in own}
    level = {
        module: [target for target in targets if floor.get(target) == floor[module]]
        for module, targets in own.items()
        if floor[module] is not None
    }
    return found + [f"circle of imports: {' ↔ '.join(circle)}" for circle in circles(level)]


def own_violations(room: str, target: str) -> Iterator[str]:
    """Say what is wrong with a module of `room` importing `target`, a module of the package."""
    aim = room_of(target)
    if not aim:
        yield f"imports the whole of {PACKAGE}: import from the module that defines the name"
    elif aim == room:
        return
    elif aim not in FLOOR_OF:
        yield f"imports {target}, which has no floor"
    elif FLOOR_OF[aim] > FLOOR_OF[room]:
        yield f"imports {target} from a floor above"
    elif FLOOR_OF[aim] == FLOOR_OF[room] == GROUND_FLOOR and aim not in GROUND_FLOOR_SEES.get(room, ()):
        yield f"imports {target}: the ground floor's rooms do not import each other"


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the groups of modules that can reach each other, or themselves (strongly connected)."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += graph.get(module, ())
        reach[start] = seen
    groups = {frozenset(b for b in reach[a] if a in reach.get(b, ())) for a in graph if a in reach[a]}
    return sorted(sorted(group) for group in groups)


def test_imports_go_downwards() -> None:
    assert violations(SOURCE) == []


def test_every_floor_is_read() -> None:
    # Should the scan ever look at the wrong folder, the test above would pass on nothing.
    own, other = import_graph(SOURCE)
    assert {"volumes", "noise", "training", "cli"} <= {room_of(module) for module in own}
    assert any("torch" in libraries for libraries in other.values())
    assert any(room_of(target) == "volumes" for targets in own.values() for target in targets)


# --- the law must bite: each small house below breaks it once -------------------------------------

SOUND = {
    "__init__.py": "if True:\n    from napari_ambient.training import train\n__version__ = '1'",
    "noise.py": "import numpy\ndef tensor():\n    import torch",
    "noise_fit.py": "from napari_ambient.noise import NoiseModel",
    "volumes/__init__.py": "from napari_ambient.volumes.volume import Volume",
    "volumes/volume.py": "import dask.array",
    "denoiser.py": "import torch\nfrom napari_ambient.noise import NoiseModel",
    "objectives/__init__.py": "from . import base",
    "objectives/base.py": "from ..denoiser import Denoiser",
    "prior.py": "from napari_ambient import __version__, denoiser",
    "training.py": "from napari_ambient.prior import Prior\nfrom napari_ambient.objectives import base",
    "cli.py": "from napari_ambient import train",
    "widgets/train.py": "import napari\nfrom napari_ambient.training import train",
}

BROKEN = {
    "upwards": (
        {"denoiser.py": "from napari_ambient.prior import Prior"},
        "denoiser:1 imports napari_ambient.prior from a floor above",
    ),
    "upwards in a function": (
        {"prior.py": "def load():\n    from napari_ambient.training import train"},
        "prior:2 imports napari_ambient.training from a floor above",
    ),
    "upwards for types only": (
        {"prior.py": "import typing\nif typing.TYPE_CHECKING:\n    from napari_ambient import cli"},
        "prior:3 imports napari_ambient.cli from a floor above",
    ),
    "upwards through a public name": (
        {"prior.py": "from napari_ambient import train"},
        "prior:1 imports napari_ambient.training from a floor above",
    ),
    "upwards by a relative import": (
        {"objectives/base.py": "from ..training import train"},
        "objectives.base:1 imports napari_ambient.training from a floor above",
    ),
    "upwards by name": (
        {"prior.py": "import importlib\ntraining = importlib.import_module('napari_ambient.training')"},
        "prior:2 imports napari_ambient.training from a floor above",
    ),
    "the whole package": (
        {"prior.py": "import napari_ambient"},
        "prior:1 imports the whole of napari_ambient",
    ),
    "sideways on the ground floor": (
        {"noise_fit.py": "from napari_ambient.volumes import Volume"},
        "noise_fit:1 imports napari_ambient.volumes: the ground floor's",
    ),
    "the exception reversed": (
        {"noise.py": "from napari_ambient.noise_fit import fit_noise", "noise_fit.py": ""},
        "noise:1 imports napari_ambient.noise_fit: the ground floor's",
    ),
    "torch in volumes": (
        {"volumes/volume.py": "def tensor():\n    import torch.nn"},
        "volumes.volume:2 imports torch, which volumes may not",
    ),
    "a window outside widgets": (
        {"cli.py": "from qtpy.QtCore import Qt"},
        "cli:1 imports qtpy, which only widgets may",
    ),
    "napari below": ({"prior.py": "import napari"}, "prior:1 imports napari, which only widgets may"),
    "a module without a floor": ({"utils.py": ""}, "utils has no floor"),
    "a circle inside a folder": (
        {"volumes/volume.py": "def save():\n    from napari_ambient.volumes import save_volume"},
        "circle of imports: napari_ambient.volumes ↔ napari_ambient.volumes.volume",
    ),
    "a circle on a floor": (
        {"training.py": "import napari_ambient.restoration", "restoration.py": "import napari_ambient.training"},
        "circle of imports: napari_ambient.restoration ↔ napari_ambient.training",
    ),
}


def build(folder: Path, files: Mapping[str, str]) -> Path:
    """Write a small package and return its folder."""
    source = folder / PACKAGE
    for name, text in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text, encoding="utf-8")
    return source


def test_sound_house_passes(tmp_path: Path) -> None:
    assert violations(build(tmp_path, SOUND)) == []


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_house_is_found(fault: str, tmp_path: Path) -> None:
    change, expected = BROKEN[fault]
    found = violations(build(tmp_path, {**SOUND, **change}))
    assert any(expected in sentence for sentence in found), found
    # One fault, one sentence: a rule that fires on everything would pass the line above.
    assert len(found) == 1, found


# --- what loading loads ---------------------------------------------------------------------------

HEAVY = WINDOW_LIBRARIES | {"matplotlib", "torch", "torchvision"}


def loaded_by(statement: str, *, folder: Path | None = None) -> set[str]:
    """Return the top-level packages that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return {module.partition(".")[0] for module in json.loads(done.stdout.splitlines()[-1])}


def test_importing_the_package_is_light() -> None:
    loaded = loaded_by("import napari_ambient; dir(napari_ambient); napari_ambient.__version__")
    assert PACKAGE in loaded
    assert not loaded & (HEAVY | {"dask", "numpy", "scipy", "zarr"})


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("from napari_ambient import Volume, iter_save_volume, open_volume, save_volume", "dask"),
        ("from napari_ambient import NoiseModel, TrainConfig, fit_noise", "scipy"),
        ("from napari_ambient.cli import main", "cyclopts"),
    ],
    ids=["volumes", "noise", "cli"],
)
def test_what_needs_no_network_loads_no_torch(statement: str, expected: str) -> None:
    loaded = loaded_by(statement)
    assert expected in loaded
    assert not loaded & HEAVY


def test_a_heavy_import_would_be_seen(tmp_path: Path) -> None:
    build(tmp_path, {"__init__.py": "import torch"})
    (tmp_path / "torch.py").touch()
    assert "torch" in loaded_by("import napari_ambient", folder=tmp_path)


# --- the public names -----------------------------------------------------------------------------


def test_public_names_are_complete() -> None:
    assert set(napari_ambient.__all__) == PUBLIC_NAMES
    assert set(dir(napari_ambient)) >= PUBLIC_NAMES
    # The types that checkers see and the modules that are loaded come from two tables: they must agree.
    typed = {name: module.removeprefix(f"{PACKAGE}.") for name, module in public_home(SOURCE).items()}
    assert typed == napari_ambient._MODULE_OF
    assert set(typed) | {"__version__"} == PUBLIC_NAMES


@pytest.mark.parametrize("name", sorted(PUBLIC_NAMES - {"__version__"}))
def test_public_name_is_the_thing_itself(name: str) -> None:
    thing = getattr(napari_ambient, name)
    assert callable(thing)
    assert thing.__name__ == name
    assert thing.__module__.startswith(f"{PACKAGE}.")


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'denoise'; it has .*restore"):
        napari_ambient.denoise  # noqa: B018
