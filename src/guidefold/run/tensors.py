"""Safetensors files: written whole or not at all, read whole, with JSON under one metadata key."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guidefold.ground import (
    CorruptFileError,
    NonFiniteError,
    check_regular,
    out_of_memory,
    parse_json,
)
from guidefold.run.files import finished_file, sha256

if TYPE_CHECKING:
    import torch


METADATA_KEY = "guidefold"  # one key holding JSON: several keys come out in random order


def write_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: object = None,
    labels: Mapping[str, str] | None = None,
) -> str:
    """Write a safetensors file that is finished or absent.

    Args:
        path: Where to.
        tensors: Named tensors of any shape; made contiguous, moved to the CPU.
        metadata: Anything JSON can hold; stored under one key.
        labels: Further keys, for readers of other programs; the file's bytes then differ each time.

    Returns:
        The file's SHA-256.

    Raises:
        NonFiniteError: A tensor holds a NaN or an infinity, or there is no tensor.
        FailedError: It cannot be written there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if not tensors:
        raise NonFiniteError(f"{path}: refused to write a file without tensors")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise NonFiniteError(f"{path}: refused to write '{name}', which is not finite")
    ready = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    header = {"format": "pt"}
    if metadata is not None:
        header = {METADATA_KEY: json.dumps(metadata, allow_nan=False)}
    if labels is not None:
        header |= {"format": "pt", **labels}
    with finished_file(path) as temporary:
        try:
            save_file(ready, temporary, header)
        except SafetensorError as error:  # a full disk too
            reason = re.search(r"I/O error: (.+) \(os error", str(error))
            raise OSError(reason[1] if reason else str(error)) from error
        temporary.chmod(0o666 & ~_umask())  # safetensors leaves 0600
    return sha256(path)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of a safetensors file, on the CPU.

    Raises:
        CorruptFileError: The file is truncated, or is no safetensors file.
    """
    return read_safetensors(path)[0]


def read_metadata(path: Path) -> Any:
    """The JSON stored with :func:`write_tensors`; None where there is none.

    Raises:
        CorruptFileError: The file is truncated, or what stands under the key is no JSON.
    """
    return parse_metadata(read_labels(path), path)


def parse_metadata(header: Mapping[str, str], path: Path, remedy: str = "") -> Any:
    """:func:`read_metadata` of a header that is read already."""
    if METADATA_KEY not in header:
        return None
    return parse_json(header[METADATA_KEY], f"{path}, its metadata", CorruptFileError, remedy)


def read_labels(path: Path) -> dict[str, str]:
    """Every key of a safetensors file's metadata, as it stands there."""
    with mapped(path) as file:
        return dict(file.metadata() or {})


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """:func:`read_tensors` and :func:`read_labels` at once: the file is opened once."""
    with mapped(path) as file:
        # no mapping: only keys() names the tensors
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, dict(file.metadata() or {})


@contextmanager
def mapped(path: Path) -> Iterator[Any]:
    """A safetensors file, mapped into memory."""
    from safetensors import SafetensorError, safe_open

    check_regular(path, CorruptFileError)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        if out_of_memory(error):
            raise
        raise CorruptFileError(f"{path}: not a whole safetensors file ({error})") from error
