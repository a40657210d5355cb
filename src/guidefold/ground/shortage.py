"""Recognise that memory ran out: every library has an error of its own for it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

WORDS = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory")
# oneDNN's whole message where a convolution cannot have its memory.
PRIMITIVE = "could not create a primitive"
# CUDA's, the CPU allocator's and numpy's words for what was asked for.
ASKED = re.compile(
    r"(?:tried to allocate|Unable to allocate) (?P<size>\d[\d.,]*) ?(?P<unit>[KMGT]i?B|bytes)",
    re.IGNORECASE,
)
RUNNING = "running: "


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch's, the system's, numpy's or Python's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch's CPU allocator raises a plain RuntimeError, safetensors an error of its own.
    named = isinstance(error, RuntimeError) or type(error).__name__ == "SafetensorError"
    text = str(error).strip()
    return named and (text == PRIMITIVE or any(words in text for words in WORDS))


def asked_for(error: BaseException) -> str:
    """How much memory an error says was asked for, as ``'20.00 MiB'``; empty where it does not."""
    found = ASKED.search(str(error))
    if found is None:
        return ""
    if found["unit"] != "bytes":
        return f"{found['size']} {found['unit']}"
    count = float(found["size"].replace(",", ""))
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.2f} MiB"


def running(error: BaseException) -> str:
    """The innermost work that :func:`named` names, when memory ran out; empty where none did."""
    notes = getattr(error, "__notes__", [])
    return next((n.removeprefix(RUNNING) for n in notes if n.startswith(RUNNING)), "")


@contextmanager
def named(work: str) -> Iterator[None]:
    """Note on an error that memory ran out, what was running.

    Args:
        work: The work within the context, in words.
    """
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            error.add_note(f"{RUNNING}{work}")
        raise
