"""Files that are finished or absent: the only module that writes into run folders.

A file is finished or absent. It is written under a temporary name, flushed to the disk, renamed,
and the folder's entry is flushed too. A checkpoint is a folder that appears whole, with a manifest
of sizes and SHA-256 sums; nothing old goes before the new stands. Only safetensors and JSON.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from guidefold.ground import (
    CorruptFileError,
    FailedError,
    NonFiniteError,
    check_regular,
    parse_json,
    read_text,
)
from guidefold.run.digests import DIGEST, checked, with_digest
from guidefold.run.paths import refuse_link, within

MANIFEST = "MANIFEST.json"
LINE_REMEDY = "Remove the damaged line."
PAUSES = (0.1, 0.5, 2.0)
"""Seconds between attempts to rename what Windows does not let go of."""


def reached(point: str) -> None:
    """A named place within a write; tests stop the process here."""


def write_text(path: Path, text: str) -> None:
    """Write a text file that is finished or absent."""
    write_bytes(path, text.encode())  # as bytes: one file has one content on every system


def write_record(path: Path, table: Mapping[str, Any]) -> None:
    """Write a table of a run, with its digest, as a JSON file that is finished or absent.

    Raises:
        NonFiniteError: The table holds a NaN or an infinity.
    """
    try:
        written = with_digest(table)
    except ValueError as error:
        raise NonFiniteError(f"{path}: a number in this file is not finite") from error
    write_json(path, written)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file that other programs read, which is finished or absent.

    Raises:
        NonFiniteError: The value holds a NaN or an infinity.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError as error:
        raise NonFiniteError(f"{path}: a number in this file is not finite") from error
    write_text(path, text + "\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a binary file (a picture) that is finished or absent."""
    with finished_file(path) as temporary:
        temporary.write_bytes(data)


def read_json(path: Path, remedy: str = "") -> Any:
    """Read a JSON file; a table that carries a digest is compared with it and given without.

    Args:
        path: The file.
        remedy: What to do where it is damaged.

    Raises:
        CorruptFileError: It is no file or not JSON, or not what was written.
    """
    text = read_text(path, CorruptFileError, remedy)
    value = parse_json(text, path, CorruptFileError, remedy)
    return checked(value, path, remedy) if isinstance(value, dict) else value


def append_line(path: Path, table: Mapping[str, Any]) -> None:
    """Add one JSON line with its digest and flush it to the disk.

    A line torn by a crash is dropped first. Lines of version 0.1.0 get their digests, so that a
    file's lines carry all of them or none.
    """
    text = json.dumps(with_digest(table)) + "\n"
    refuse_link(path)
    if any(DIGEST not in line for line in _lines_as_written(path, 1)):
        write_lines(path, read_lines(path))
    with explained(path), path.open("ab+") as file:
        file.truncate(_end_of_last_line(file))
        reached("line: before")
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    reached("line: after")


def write_lines(path: Path, tables: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file with its digests, which is finished or absent."""
    write_text(path, "".join(json.dumps(with_digest(table)) + "\n" for table in tables))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The finished lines of a JSON-lines file, without digests; none where there is no file.

    Raises:
        CorruptFileError: A finished line is no table, or not what was written.
    """
    rows = _lines_as_written(path)
    if any(DIGEST in row for row in rows):
        for number, row in enumerate(rows, 1):
            if DIGEST not in row:
                raise CorruptFileError(f"{path}:{number}: its digest is missing", LINE_REMEDY)
    return [checked(row, f"{path}:{number}", LINE_REMEDY) for number, row in enumerate(rows, 1)]


def _lines_as_written(path: Path, most: int | None = None) -> list[dict[str, Any]]:
    """The finished lines, or the first ``most``, with their digests, which are not compared."""
    if not path.exists():
        return []
    check_regular(path, CorruptFileError)
    with path.open("rb") as file:
        whole = [line for line in islice(file, most) if line.endswith(b"\n")]
    rows = []
    for number, line in enumerate(whole, 1):
        text = line[:-1].decode(errors="replace")
        row = parse_json(text, path, CorruptFileError, LINE_REMEDY, line=number)
        if not isinstance(row, dict):
            raise CorruptFileError(f"{path}:{number}: holds no table", LINE_REMEDY)
        rows.append(row)
    return rows


@contextmanager
def finished_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder that appears whole, with a manifest of its files, or not at all.

    Yields:
        A temporary folder beside the target, to write into.
    """
    refuse_link(folder)
    restore_folder(folder)
    temporary = folder.with_name(f".{folder.name}.part")
    _remove(temporary)
    with explained(folder):
        temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary)
        raise
    reached("folder: before manifest")
    write_record(temporary / MANIFEST, {n: _entry(p) for n, p in _files(temporary).items()})
    _flush(temporary)
    reached("folder: before rename")
    old = folder.with_name(f".{folder.name}.old")
    _remove(old)
    if folder.exists():
        _rename(folder, old)
        reached("folder: between renames")
    _rename(temporary, folder)
    _flush(folder.parent)
    reached("folder: after rename")
    shutil.rmtree(old, ignore_errors=True)


def _remove(leftover: Path) -> None:
    """Remove a folder that a crash left; of a link the link alone."""
    if leftover.is_symlink():
        leftover.unlink()
    shutil.rmtree(leftover, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Bring back what stood before, where a crash fell between the two renames."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists() and not old.is_symlink():
        _rename(old, folder)


def check_folder(folder: Path, remedy: str = "") -> None:
    """Compare a folder with its manifest.

    Args:
        folder: The folder.
        remedy: What to do where they differ; by default, to remove it.

    Raises:
        CorruptFileError: A file is missing, truncated, altered, or not named in the manifest.
    """
    remedy = remedy or f"To go on from what stood before it: rm -r '{folder}'"
    if not (folder / MANIFEST).exists():
        raise CorruptFileError(f"{folder}: no {MANIFEST}", remedy)
    entries = _read_manifest(folder / MANIFEST, remedy)
    for name, entry in entries.items():
        place = within(folder, name, folder / MANIFEST, remedy)
        check_file(place, entry["sha256"], entry["size"], remedy)
    for name, path in _files(folder).items():
        hidden = path.name.startswith(".")  # what desktops leave behind is none of ours
        if not hidden and name not in {MANIFEST, *entries}:
            raise CorruptFileError(f"{path}: not named in {folder / MANIFEST}", remedy)


def _read_manifest(path: Path, remedy: str) -> dict[str, dict[str, Any]]:
    """A folder's files by name, each with its checksum and its size."""
    entries = read_json(path, remedy)
    if not isinstance(entries, dict) or not entries:
        raise CorruptFileError(f"{path}: damaged: it names no files", remedy)
    for name, entry in entries.items():
        if not isinstance(entry, dict) or entry.keys() != {"sha256", "size"}:
            raise CorruptFileError(f"{path}: damaged at '{name}'", remedy)
    return entries


def check_file(
    path: Path,
    digest: str,
    size: int,
    remedy: str = "",
    hashed: Callable[[Path], str] | None = None,
) -> None:
    """Compare a file with what its manifest says of it.

    Args:
        path: The file.
        digest: Its SHA-256.
        size: Its bytes.
        remedy: What to do where they differ.
        hashed: In place of :func:`sha256`, where several manifests name the file.

    Raises:
        CorruptFileError: The file is missing, truncated or altered.
    """
    if not path.exists():
        raise CorruptFileError(f"{path}: missing, but named in the manifest", remedy)
    if path.stat().st_size != size:
        raise CorruptFileError(f"{path}: {path.stat().st_size} bytes instead of {size}", remedy)
    if (hashed or sha256)(path) != digest:
        raise CorruptFileError(f"{path}: its bytes are not the ones that were written", remedy)


def sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    """Every file within a folder by its name there."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found}


def _entry(path: Path) -> dict[str, Any]:
    return {"sha256": sha256(path), "size": path.stat().st_size}


@contextmanager
def finished_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name; afterwards flush it and give it its own."""
    temporary = path.with_name(f".{path.name}.part")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # a link there would be written through
        try:
            yield temporary
            reached("file: before flush")
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            reached("file: before rename")
            _rename(temporary, path)
            _flush(path.parent)
            reached("file: after rename")
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Name what was to be written where the disk refuses it, not the file that stood in for it.

    Raises:
        FailedError: The disk is full or read-only, or there is no such place.
    """
    try:
        yield
    except OSError as error:
        shown = Path(*(re.sub(r"^\.(.+)\.part$", r"\1", part) for part in path.parts))
        room = "Make room on the disk, or write" if error.errno == errno.ENOSPC else "Write"
        said = f"{shown}: cannot be written ({error.strerror or error})"
        raise FailedError(said, f"{room} to another folder.") from error


def _rename(old: Path, new: Path) -> None:
    """Give a file or a folder its name, over a file that bears it.

    Windows refuses while somebody has a file open: a virus scanner, for a moment, or a tensor of
    ours that is mapped from it and that nobody needs any more.
    """
    for pause in PAUSES:
        try:
            old.replace(new)
        except PermissionError:
            if os.name != "nt":
                raise
            gc.collect()
            time.sleep(pause)
        else:
            return
    old.replace(new)


def _flush(folder: Path) -> None:
    """A rename lasts only when the folder that holds the name is on the disk."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folder, and keeps a journal of names
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _end_of_last_line(file: IO[bytes]) -> int:
    """Where the next line begins; all is read only where a crash has torn the last one."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - 1, 0))
    if file.read() in (b"", b"\n"):
        return end
    file.seek(0)
    return file.read().rfind(b"\n") + 1
