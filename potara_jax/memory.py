"""Memory of the device and of this process, in bytes."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import jax

_STATM, _STATUS = Path("/proc/self/statm"), Path("/proc/self/status")
_MEMINFO = Path("/proc/meminfo")
_SHARE = 0.9  # of what an accelerator has free


def of_device() -> int:
    """The device's memory, or the host's if that is the device."""
    return _of_accelerator("bytes_limit") or _of_host()


def free_on_device() -> int:
    """What is free on the device; of a host, a quarter of its memory."""
    limit = _of_accelerator("bytes_limit")
    if limit is None:
        return _of_host() // 4
    return int(_SHARE * (limit - (_of_accelerator("bytes_in_use") or 0)))


def of_process() -> int:
    """What this process uses, or its peak if that is unknown."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return _peak_of_process()


def free_on_host() -> int:
    """What the host can give without writing to its swap space."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _entry(_MEMINFO, "MemAvailable") or free


def peak() -> dict[str, int]:
    """The peak so far: of this process, and of its first accelerator."""
    device = _of_accelerator("peak_bytes_in_use")
    of_device = {} if device is None else {"device": device}
    return {"process": _peak_of_process(), **of_device}


def _peak_of_process() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return _entry(_STATUS, "VmHWM") or peak  # on Linux, `peak` may be the parent's


def _entry(path: Path, name: str) -> int | None:
    """An entry of a file of Linux that has lines `NAME: NUMBER kB`, in bytes."""
    lines = path.read_text().splitlines() if path.exists() else ()
    found = [line.split() for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(found[0][1]) if found else None


def _of_host() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_accelerator(name: str) -> int | None:
    """A statistic of the first device; None where there are none, as on a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get(name)
