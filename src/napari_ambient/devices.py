"""Where the work runs, how much memory there is, and what to say when it is not enough."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import psutil
import torch

from .choices import Precision


def choose_device(device: torch.device | str | None = None) -> torch.device:
    """Choose where to run: what was asked for, else CUDA, else Apple's MPS, else the CPU.

    Raises
    ------
    ValueError
        If the device that was asked for is not there.
    """
    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} is not available here ({error}); choose cpu, cuda or mps") from error
    return chosen


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """Run convolutions in bfloat16 where that pays: on CUDA, and on CPUs that compute in it."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision is {precision!r}; choose auto, float32 or bfloat16")
    if precision == "auto":
        pays = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        pays = pays or (device.type == "cpu" and torch.backends.mkldnn.is_available() and _cpu_has_bfloat16())
    else:
        pays = precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16) if pays else contextlib.nullcontext()


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device (for MPS and the CPU: of the machine, or of its container's limit)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn every way in which torch and numpy report a lack of memory into `MemoryError`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise MemoryError(str(error)) from error
    except RuntimeError as error:
        text = str(error).lower()
        if "not enough memory" in text or "out of memory" in text or "can't allocate memory" in text:
            raise MemoryError(str(error)) from error
        raise


def _cpu_has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and _cpu_flag("avx512_bf16", "amx_bf16", "bf16")


def _cpu_flag(*names: str) -> bool:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return any(name in line.split() for name in names)
    except FileNotFoundError:  # not Linux: emulated bfloat16 is slower than float32, so never assume it
        return False
    return False
