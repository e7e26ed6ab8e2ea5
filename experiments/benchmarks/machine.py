"""The machine: its processor, its memory, and how much of it one call takes at the most."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jepa.errors import UserError

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_MEMINFO = Path("/proc/meminfo")


def describe() -> dict[str, Any]:
    """Processor, cores, memory and system, for a report."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "system": platform.system(),
    }


def available_memory() -> int:
    """Bytes that a new program can have without others being swapped out.

    Raises:
        UserError: The system does not say (it is not Linux).
    """
    return _field(_MEMINFO, "MemAvailable")


def peak_memory(call: Callable[[], object]) -> int:
    """Bytes of memory that a call takes at its peak, above what the process held before.

    It is the highest resident size during the call less the resident size before it. Memory that
    was freed but kept by the allocator is given back to the system first: the call could reuse it
    and seem to need none. Run it in a process that does nothing else, and only once: the second
    call finds the memory of the first.

    Raises:
        UserError: The system cannot reset its record of the peak (it is not Linux, or this file
            may not be written), or the allocator cannot be told to give back.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        raise UserError("peak memory needs the GNU C library, which this system does not use")
    trim(0)
    try:
        _CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError as error:
        raise UserError(
            f"peak memory needs to write {_CLEAR_REFS}, which fails here ({error.strerror}); "
            "run on a Linux that allows it"
        ) from error
    before = _field(_STATUS, "VmRSS")
    call()
    return _field(_STATUS, "VmHWM") - before


def _field(path: Path, name: str) -> int:
    """A field in kB of a file of /proc, in bytes."""
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    raise UserError(f"{path} has no {name}; this measurement needs Linux")


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
