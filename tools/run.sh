#!/usr/bin/env bash
# The demo, the checks and the test suite from a fresh clone; the Makefile calls it, and it runs without make too:
#
#     tools/run.sh demo [options of `napari-ambient demo`]
#     tools/run.sh test [options of pytest]
#     tools/run.sh check
#
# It needs bash and Python 3.11 or newer. It makes .venv beside this folder, installs the package into it with
# constraints.txt, and asks apt for the system packages that are missing, as root or through a sudo that wants no
# password; where it may not, it says what to install. A second run installs nothing, unless pyproject.toml or
# constraints.txt has changed. PYTHON names the interpreter to use instead of the one it would find.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
python=.venv/bin/python
torch_cpu_index=https://download.pytorch.org/whl/cpu

# Packages of another environment would hide the ones that we install.
unset PYTHONPATH PYTHONHOME

say() { printf '\n==> %s\n' "$*"; }
stop() {
    printf '\nerror: %s\n' "$*" >&2
    exit 1
}

# --- system packages -------------------------------------------------------------------------------------------------

as_root() { # prints the words that give a command root's rights, or fails
    if [ "$(id -u)" -eq 0 ]; then
        echo env
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        echo sudo -n
    else
        return 1
    fi
}

apt_install() { # apt_install REASON PACKAGE...
    local reason=$1 rights
    shift
    local command="apt-get update && apt-get install -y --no-install-recommends $*"
    command -v apt-get >/dev/null ||
        stop "$reason. Please install what Debian calls: $*"
    rights=$(as_root) ||
        stop "$reason. Please run, as root or with sudo, and then start again:
    $command"
    say "$reason; installing $*"
    # A source that cannot be reached matters only if a package is then not found, and the next line says so.
    $rights env DEBIAN_FRONTEND=noninteractive apt-get update -qq </dev/null ||
        echo "apt-get update failed; going on with the package lists that are there"
    $rights env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" </dev/null ||
        stop "apt-get could not install $*. Please install them by hand, and then start again:
    $command"
}

# What Qt's xcb platform loads, and a display for it.
display_packages="xvfb xauth libxcb-icccm4 libxcb-keysyms1 libxcb-xinerama0 libxcb-cursor0 libxkbcommon-x11-0
    libegl1 libgl1 libopengl0 libdbus-1-3 libfontconfig1"

need_display() {
    [ "$(uname -s)" = Linux ] || return 0
    if ! command -v dpkg-query >/dev/null; then
        command -v xvfb-run >/dev/null ||
            stop "xvfb-run is missing. Please install what Debian calls:" $display_packages
        return 0
    fi
    local package missing=()
    for package in $display_packages; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] || apt_install "The tests need a display, and these packages are missing" "${missing[@]}"
}

# --- the environment -------------------------------------------------------------------------------------------------

find_python() {
    local candidate candidates=(python3.11 python3 python3.12 python3.13 python3.14)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

make_environment() {
    local base version
    if [ -e .venv ] || [ -L .venv ]; then
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
            stop ".venv holds no Python 3.11 or newer that runs; delete that folder and start again."
        "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip --upgrade ||
            stop ".venv has no pip; delete that folder and start again."
        return 0
    fi
    base=$(find_python) ||
        stop "No Python 3.11 or newer was found${PYTHON:+ under PYTHON=$PYTHON}; install one, or name it: PYTHON=/path/to/python3.11 $0"
    # Debian and Ubuntu ship the module that puts pip into an environment in a package of its own.
    if ! "$base" -c 'import ensurepip, venv' 2>/dev/null; then
        version=$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        apt_install "$base cannot make environments (ensurepip is missing)" "python$version-venv"
    fi
    say "Making .venv with $("$base" --version)"
    # Half an environment must not be taken for a whole one by the next run.
    trap 'rm -rf "$root/.venv"' EXIT
    "$base" -m venv .venv
    trap - EXIT
}

torch_version() { sed -n 's/^torch==\([^ ;#]*\).*/\1/p' constraints.txt; }

# On Linux the torch of PyPI brings gigabytes of CUDA libraries: take the CPU build from wherever pip has been told to
# look, else from PyTorch's own index. A torch of the right version that is there already is kept, CUDA or not.
install_torch() {
    local version
    version=$(torch_version)
    [ "$(uname -s)" = Linux ] && [ -n "$version" ] || return 0
    "$python" - "$version" 2>/dev/null <<'PYTHON' && return 0
import sys
from importlib.metadata import version

sys.exit(version("torch").partition("+")[0] != sys.argv[1])
PYTHON
    say "Installing torch $version, CPU build"
    "$python" -m pip install --no-compile "torch==$version+cpu" >.venv/torch.log 2>&1 && return 0
    echo "pip's own sources have no CPU build (.venv/torch.log); asking $torch_cpu_index"
    "$python" -m pip install --no-compile --extra-index-url "$torch_cpu_index" "torch==$version+cpu" ||
        stop "torch $version could not be installed; the lines above say why."
}

install() { # install EXTRAS
    local extras=$1 stamp=.venv/installed${1:+-$1} wanted
    wanted=$(cat pyproject.toml constraints.txt && echo "$root")
    make_environment
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return 0
    fi
    local start=$SECONDS
    install_torch
    say "Installing napari-ambient${extras:+ with its extras: $extras}"
    "$python" -m pip install --no-compile -c constraints.txt -e ".${extras:+[$extras]}" ||
        stop "pip could not install napari-ambient; the lines above say why."
    printf '%s\n' "$wanted" >"$stamp"
    printf '%s\n' "$wanted" >.venv/installed # the extras come on top of what the demo needs
    say "Installed in $((SECONDS - start)) s"
}

# --- what a person asks for ------------------------------------------------------------------------------------------

check() { # every checker runs, so that one run shows all there is to mend
    local name
    failed_checks=""
    # As modules: the scripts in .venv/bin stop working when the folder is moved.
    for name in "ruff check --output-format concise" codespell_lib mypy; do
        say "$name"
        "$python" -m $name || failed_checks="$failed_checks${failed_checks:+, }${name%% *}"
    done
    [ -z "$failed_checks" ]
}

run_tests() {
    local display=()
    if [ "$(uname -s)" = Linux ]; then
        display=(xvfb-run -a -s "-screen 0 1600x1000x24")
    fi
    # Qt must take the virtual screen, whatever the session outside prefers.
    env -u QT_QPA_PLATFORM -u WAYLAND_DISPLAY ${display[@]+"${display[@]}"} \
        "$python" -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile "$@"
}

case ${1:-} in
    demo)
        shift
        install ""
        say "napari-ambient demo $*"
        exec .venv/bin/napari-ambient demo "$@"
        ;;
    check)
        install test
        check || stop "these checks found something: $failed_checks"
        ;;
    test)
        shift
        need_display
        install test
        checks=0 tests=0
        check || checks=1
        say "pytest, on a virtual screen"
        run_tests "$@" || tests=$?
        [ $checks -eq 0 ] || stop "these checks found something (see above pytest's output): $failed_checks"
        exit $tests
        ;;
    *)
        sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
        [ -z "${1:-}" ] || stop "unknown word: $1; choose demo, test or check."
        exit 2
        ;;
esac
