"""The peak memory of this process, and the memory of devices."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import psutil
import torch

STATUS = Path("/proc/self/status")
USAGE_UNIT = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere


def peak_memory(device: torch.device) -> dict[str, str | int]:
    """The most memory that this process has held since it began.

    Args:
        device: The denoiser's device.

    Returns:
        ``{"kind": "allocated", "bytes": ...}``: torch's tensors on an accelerator that counts them;
        else ``{"kind": "resident", "bytes": ...}``: the process's main memory, libraries included.
    """
    measure = getattr(torch.get_device_module(device), "max_memory_allocated", None)
    if measure is not None:
        return {"kind": "allocated", "bytes": int(measure(device))}
    return {"kind": "resident", "bytes": _peak_resident_bytes()}


def device_memory(device: torch.device) -> tuple[int, int] | None:
    """Free and total memory of a device, in bytes; None where it is not known."""
    if device.type == "cpu":
        memory = psutil.virtual_memory()
        return int(memory.available), int(memory.total)
    measure = getattr(torch.get_device_module(device), "mem_get_info", None)
    if measure is None:
        return None
    free, total = measure(device)
    return int(free), int(total)


def _peak_resident_bytes() -> int:
    """The high-water mark; on Linux the process's own, since getrusage's includes its parent's."""
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
    if found is not None:
        return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # on Windows, whose own count has the name peak_wset
        used = psutil.Process().memory_info()
        return int(getattr(used, "peak_wset", used.rss))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * USAGE_UNIT
