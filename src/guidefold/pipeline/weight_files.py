"""Safetensors files of a pipeline: whole, and what they say they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from guidefold.ground import PipelineError

# How files of other formats begin.
BEGINNINGS = {
    b"PK\x03\x04": "a pickle of torch, or another zip archive",
    b"\x80": "a pickle",
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
    b"version https://git-lfs": "a pointer of Git LFS: the file itself was not downloaded",
    b"<": "a page of HTML or XML, as a failed download leaves it",
}
LENGTH_BYTES = 8  # of the header's length, which a safetensors file begins with


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, mapped into memory.

    Raises:
        PipelineError: It is truncated, or of another format; the error says which.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise _not_whole(path, error) from error


def check_whole(paths: Iterable[Path]) -> None:
    """Refuse files that are no whole safetensors files; only their headers are read.

    Raises:
        PipelineError: Names the first such file.
    """
    for path in paths:
        with opened(path):
            pass


def _not_whole(path: Path, error: Exception) -> PipelineError:
    try:
        with path.open("rb") as file:
            begins = file.read(max(map(len, BEGINNINGS)))
        size = path.stat().st_size
    except OSError as unreadable:
        return PipelineError(f"{path}: cannot be read: {unreadable.strerror}")
    named = begins[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{"  # a header: the length may say anything
    for beginning, kind in BEGINNINGS.items():
        if begins.startswith(beginning) and not named:
            return PipelineError(
                f"{path}: not a safetensors file but {kind}",
                "Renaming does not convert a file, and Guidefold reads no pickles: download the "
                "safetensors version, or convert it once, where you trust it.",
            )
    header = int.from_bytes(begins[:LENGTH_BYTES], "little")
    short = not size or "not fully covered" in str(error) or LENGTH_BYTES + header > size
    what = f"truncated: it ends after {size:,} bytes" if short else f"damaged ({error})"
    return PipelineError(
        f"{path}: not a whole safetensors file, {what}", "Download it, or copy it, once more."
    )
