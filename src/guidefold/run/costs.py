"""Time, disk and memory in words: what a run took, and what it is going to take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MEMORY = {"resident": "resident, the whole process", "allocated": "allocated on the device"}
"""What each kind of peak memory counts."""


def readable_size(count: float) -> str:
    """Bytes for people: ``'3.4 MiB'``; 1 MiB = 2**20."""
    power = min(3, int(math.log(max(count, 1), 1024)))
    return f"{count / 1024**power:.{1 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def readable_duration(seconds: float) -> str:
    """A readable duration: ``'48 s'``, ``'9 min 5 s'``, ``'2 h 3 min'``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def describe_costs(seconds: float, disk_bytes: float, peak: Mapping[str, Any]) -> str:
    """The expected costs of a piece of work, on one line.

    Args:
        seconds: Time.
        disk_bytes: Size of its files.
        peak: The process's peak memory so far: its ``kind`` and its ``bytes``.
    """
    memory = f"{readable_size(peak['bytes'])} ({MEMORY[peak['kind']]})"
    time, disk = readable_duration(seconds), readable_size(disk_bytes)
    return f"about {time}, {disk} on disk, peak memory so far {memory}"
