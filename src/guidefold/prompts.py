"""Prompts from a text file, a table, JSON lines or a folder of captioned pictures.

Everything is read and checked before any model is loaded, and every complaint names its line.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from guidefold.errors import PromptError
from guidefold.randomness import derive_seed

BUNDLED = {"general": "prompts.txt", "world": "demo/prompts.txt"}
COLUMNS = ("prompt", "text", "caption")
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Prompt:
    """A prompt and where it came from.

    Attributes:
        text: What the pipeline is asked for; never empty.
        source: ``file:line`` or a caption's path, for messages.
    """

    text: str
    source: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text, 64 hexadecimal digits; names the prompt on disk."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def load_prompts(path: str | Path) -> list[Prompt]:
    """Read prompts; the same text twice is kept once.

    Args:
        path: A ``.txt`` file (a prompt a line), a ``.csv`` or ``.jsonl`` file with a column
            ``prompt``, ``text`` or ``caption``, a folder of pictures with a ``.txt`` caption
            beside each; or a bundled list: ``"general"``, or ``"world"`` of the bundled teacher.

    Returns:
        The prompts in the order of the file; at least two.

    Raises:
        PromptError: Not found, not UTF-8, an empty or malformed line, or too few prompts.
    """
    source = _locate(path)
    first: dict[str, Prompt] = {}
    for prompt in _read(source):
        first.setdefault(prompt.text, prompt)
    prompts = list(first.values())
    if len(prompts) < 2:
        raise PromptError(
            f"{source}: too few prompts ({len(prompts)})",
            "Give at least two different prompts: some are held out to measure with.",
        )
    return prompts


def count_duplicates(path: str | Path) -> int:
    """How many prompts :func:`load_prompts` leaves out because their text came before."""
    texts = [prompt.text for prompt in _read(_locate(path))]
    return len(texts) - len(set(texts))


def split_prompts(
    prompts: list[Prompt], held_out_share: float
) -> tuple[list[Prompt], list[Prompt]]:
    """Split by hash, so that a prompt stays on its side when the list grows.

    Args:
        prompts: At least two prompts.
        held_out_share: The share held out, in (0, 1).

    Returns:
        ``(training, held_out)``, neither of them empty.
    """
    # The hash is salted: a list that was itself chosen by a plain hash would fall on one side.
    ranked = sorted(prompts, key=_place)
    held_out = {p.digest for p in ranked if _place(p) < held_out_share}
    held_out = held_out or {ranked[0].digest}
    if len(held_out) == len(prompts):
        held_out.discard(ranked[-1].digest)
    return (
        [p for p in prompts if p.digest not in held_out],
        [p for p in prompts if p.digest in held_out],
    )


def _locate(path: str | Path) -> Path:
    bundled = BUNDLED.get(str(path))
    return Path(path) if bundled is None else Path(str(files("guidefold") / bundled))


def _place(prompt: Prompt) -> float:
    """A prompt's place in [0, 1) for splitting."""
    return derive_seed(0, "held-out", prompt.text) / 2**63


def _read(source: Path) -> Iterator[Prompt]:
    if source.is_dir():
        return _read_folder(source)
    readers = {".txt": _read_text, ".csv": _read_csv, ".jsonl": _read_jsonl}
    if not source.exists():
        raise PromptError(f"{source}: no such file or folder", "Check prompts.path.")
    if source.suffix.lower() not in readers:
        raise PromptError(
            f"{source}: prompts cannot be read from a '{source.suffix}' file",
            "Use a .txt, .csv or .jsonl file, or a folder of pictures with .txt captions.",
        )
    return readers[source.suffix.lower()](source)


def _decode(source: Path) -> str:
    """The file as text; a byte order mark is dropped, bad bytes are reported by line."""
    try:
        data = source.read_bytes()
    except OSError as error:
        raise PromptError(f"{source}: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1)
        raise PromptError(
            f"{source}:{line}: not valid UTF-8 at byte {column}", "Save the file as UTF-8."
        ) from error


def _prompt(text: object, where: str) -> Prompt:
    if not isinstance(text, str):
        raise PromptError(f"{where}: the prompt is {type(text).__name__}, not text")
    text = text.strip()
    if not text:
        raise PromptError(f"{where}: empty prompt", "Remove the line, or write a prompt there.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise PromptError(f"{where}: not valid Unicode (half of a surrogate pair)")
    if "\0" in text:
        raise PromptError(f"{where}: NUL character in the prompt", "Save the file as UTF-8.")
    return Prompt(text, where)


def _read_text(source: Path) -> Iterator[Prompt]:
    for number, line in enumerate(_decode(source).split("\n"), 1):
        if line.strip():  # blank lines separate groups
            yield _prompt(line, f"{source}:{number}")


def _read_csv(source: Path) -> Iterator[Prompt]:
    reader = csv.DictReader(io.StringIO(_decode(source), newline=""), strict=True)
    try:
        column = _column(reader.fieldnames or [], source)
        for row in reader:
            yield _prompt(row[column] or "", f"{source}:{reader.line_num}")
    except csv.Error as error:
        # The inner reader counts the line it fails on, the outer one only those before it.
        line = reader.reader.line_num
        raise PromptError(f"{source}:{line}: not a CSV line: {error}") from error


def _column(names: object, source: Path) -> str:
    found = [name for name in COLUMNS if name in list(names)]  # type: ignore[call-overload]
    if not found:
        raise PromptError(
            f"{source}:1: no column named {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}",
            "Name the column of prompts in the first line.",
        )
    return str(found[0])


def _read_jsonl(source: Path) -> Iterator[Prompt]:
    for number, line in enumerate(_decode(source).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{source}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise PromptError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
        if isinstance(row, str):
            row = {"prompt": row}
        found = [name for name in COLUMNS if isinstance(row, dict) and name in row]
        if not found:
            raise PromptError(f"{where}: no field named {', '.join(COLUMNS)}")
        yield _prompt(row[found[0]], where)


def _read_folder(source: Path) -> Iterator[Prompt]:
    pictures = sorted(p for p in source.iterdir() if p.suffix.lower() in PICTURES)
    if not pictures:
        raise PromptError(
            f"{source}: no pictures in this folder",
            f"A folder of prompts holds pictures ({', '.join(sorted(PICTURES))}) with captions.",
        )
    for picture in pictures:
        caption = picture.with_suffix(".txt")
        if not caption.exists():
            raise PromptError(f"{picture}: no caption", f"Write one to {caption.name} beside it.")
        yield _prompt(" ".join(_decode(caption).split()), str(caption))
