"""Prompts from a text file, a table, JSON lines or a folder of captioned pictures.

Everything is read and checked before any model is loaded, and every error names its line.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from guidefold.ground import (
    PromptError,
    check_regular,
    derive_seed,
    is_there,
    kind_of,
    kind_of_file,
    parse_json,
    read_text,
    shown,
    unencodable,
)
from guidefold.pipeline.media import BESIDE, PICTURES, find_media, name_columns, show_value
from guidefold.run import leaves, lies_within, wrong_size

BUNDLED = {
    "general": "pipeline/prompts.txt",
    "world": "demo/prompts.txt",
    "world-balanced": "demo/balanced_prompts.txt",
}
COLUMNS = ("prompt", "text", "caption")


@dataclass(frozen=True)
class Prompt:
    """A prompt with the further arguments of its pipeline's call, and its source.

    Attributes:
        text: The prompt's text; may be empty if there are other columns.
        source: ``file:line`` or a caption's path, for messages.
        columns: Further arguments of the pipeline's call by name and value, files as
            :class:`~guidefold.pipeline.media.Media`.
    """

    text: str
    source: str
    columns: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no tokenizer takes, wherever the prompt came from.

        Raises:
            PromptError: The text holds NUL or half of a surrogate pair.
        """
        if reason := unencodable(self.text):
            raise PromptError(f"{self.source}: the prompt {reason}", "Save it as plain UTF-8.")

    @staticmethod
    def of(prompt: str | Prompt) -> Prompt:
        """Turn text into a prompt; a prompt stays as it is."""
        return prompt if isinstance(prompt, Prompt) else Prompt(prompt, "prompt")

    @property
    def values(self) -> dict[str, Any]:
        """The further arguments by name."""
        return dict(self.columns)

    @cached_property
    def key(self) -> str:
        """The prompt's identity: its text, and the contents of its columns."""
        return f"{self.text} {name_columns(self.values)}" if self.columns else self.text

    @property
    def label(self) -> str:
        """The prompt's name for people: its text, else its columns."""
        return self.text or ", ".join(f"{n} {show_value(v)}" for n, v in self.columns)

    @property
    def digest(self) -> str:
        """SHA-256 of the key, 64 hexadecimal digits; names the prompt on disk."""
        return hashlib.sha256(self.key.encode()).hexdigest()


def load_prompts(path: str | Path) -> list[Prompt]:
    """Read at least two prompts; duplicates are dropped.

    Args:
        path: A ``.txt`` file with one prompt per line; a ``.csv``, ``.jsonl`` or ``.parquet`` file
            with a column ``prompt``, ``text`` or ``caption``; a folder of pictures with a ``.txt``
            caption beside each; or a bundled list: ``"general"``, or of the bundled teacher
            ``"world"`` and ``"world-balanced"``. Further fields of a ``.jsonl`` line are arguments
            of the pipeline's call, see :func:`~guidefold.pipeline.media.find_media`; those that
            begin with ``_`` are left out.

    Returns:
        The prompts in the order of the file.

    Raises:
        PromptError: The file is not found or not UTF-8, a line is empty or malformed, or there are
            too few prompts.
    """
    prompts = read_prompts(path)
    if len(prompts) < 2:
        raise PromptError(
            f"{_locate(path)}: too few prompts ({len(prompts)})",
            "Give at least two different prompts: some are held out to measure with.",
        )
    return prompts


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read any number of prompts; otherwise like :func:`load_prompts`."""
    first: dict[str, Prompt] = {}
    for prompt in _read(_locate(path)):
        first.setdefault(prompt.key, prompt)
    return list(first.values())


def count_duplicates(path: str | Path) -> int:
    """The number of duplicate prompts that :func:`load_prompts` drops."""
    keys = [prompt.key for prompt in _read(_locate(path))]
    return len(keys) - len(set(keys))


def split_prompts(
    prompts: list[Prompt], held_out_share: float
) -> tuple[list[Prompt], list[Prompt]]:
    """Split by hash, so that a prompt stays on its side when the list grows.

    Args:
        prompts: At least two prompts.
        held_out_share: The share of held-out prompts, in (0, 1).

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
    """A prompt's position in [0, 1) for splitting."""
    return derive_seed(0, "held-out", prompt.key) / 2**63


def _read(source: Path) -> Iterator[Prompt]:
    if not is_there(source):
        raise PromptError(
            f"{shown(source)}: no such file or folder",
            "Check the path that was given as prompts.path or --inputs.",
        )
    if source.is_dir():
        return _read_folder(source)
    readers = {
        ".txt": _read_text,
        ".csv": _read_csv,
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
    }
    if source.suffix.lower() not in readers:
        raise PromptError(
            f"{source}: prompts cannot be read from {kind_of_file(source)}",
            "Use a .txt, .csv, .jsonl or .parquet file, or a folder of captioned pictures.",
        )
    return readers[source.suffix.lower()](source)


def _prompt(text: object, where: str) -> Prompt:
    if not isinstance(text, str):
        raise PromptError(f"{where}: the prompt is {kind_of(text)}, not text")
    text = text.strip()
    if not text:
        raise PromptError(f"{where}: empty prompt", "Remove the line, or write a prompt there.")
    return Prompt(text, where)


def _read_text(source: Path) -> Iterator[Prompt]:
    for number, line in enumerate(read_text(source, PromptError).split("\n"), 1):
        if line.strip():  # blank lines separate groups
            yield _prompt(line, f"{source}:{number}")


def _read_csv(source: Path) -> Iterator[Prompt]:
    reader = csv.DictReader(io.StringIO(read_text(source, PromptError), newline=""), strict=True)
    try:
        column = _column(reader.fieldnames or [], source)
        for row in reader:
            yield _prompt(row[column] or "", f"{source}:{reader.line_num}")
    except csv.Error as error:
        # The inner reader counts the line it fails on, the outer one only those before it.
        line = reader.reader.line_num
        raise PromptError(f"{source}:{line}: not a CSV line: {error}") from error


def _column(names: Collection[str], source: Path) -> str:
    column = next((name for name in COLUMNS if name in names), None)
    if column is None:
        raise PromptError(
            f"{source}:1: no column named {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}",
            "Name the column of prompts in the first line.",
        )
    if list(names).count(column) > 1:
        raise PromptError(f"{source}:1: '{column}' stands twice", "Name each column once.")
    return column


def _read_jsonl(source: Path) -> Iterator[Prompt]:
    for number, line in enumerate(read_text(source, PromptError).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{source}:{number}"
        row = parse_json(line, source, PromptError, line=number)
        yield _row({"prompt": row} if isinstance(row, str) else row, source.parent, where)


def _row(row: object, folder: Path, where: str) -> Prompt:
    """A prompt and the call's further arguments."""
    if not isinstance(row, dict):
        raise PromptError(f"{where}: {kind_of(row)}, where text or an object is expected")
    named = next((name for name in COLUMNS if name in row), None)
    others = {n: v for n, v in row.items() if n != named and not n.startswith("_")}
    if named is None and not others:
        raise PromptError(f"{where}: no field named {', '.join(COLUMNS)}")
    for name, value in others.items():
        _check_value(name, value, where)
    columns = tuple((n, find_media(v, folder, where)) for n, v in sorted(others.items()))
    if named is None:
        return Prompt("", where, columns)
    return replace(_prompt(row[named], where), columns=columns)


def _check_value(name: str, value: object, where: str) -> None:
    """Refuse a field of a row that no pipeline takes."""
    texts = (name, *(leaf for leaf in leaves(value) if isinstance(leaf, str)))
    wrong = next(filter(None, map(unencodable, texts)), None)
    if problem := wrong_size(name, value) or (wrong and f"'{shown(name)}' {wrong}"):
        raise PromptError(f"{where}: {problem}", "Correct the field, or leave it out.")


def _read_parquet(source: Path) -> Iterator[Prompt]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise PromptError(
            f"{source}: reading it needs pyarrow", "Install guidefold[parquet], or use .jsonl."
        ) from error
    check_regular(source, PromptError)
    try:
        file = ParquetFile(source)
        column = _column(file.schema_arrow.names, source)
        number = 0
        for batch in file.iter_batches(columns=[column]):
            for text in batch.column(0).to_pylist():
                number += 1
                yield _prompt(text, f"{source}, row {number}")
    except (ArrowException, OSError) as error:
        raise PromptError(f"{source}: not a Parquet file ({error})") from error


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
        if not lies_within(source, caption):
            raise PromptError(f"{caption}: leads out of the folder '{source}'", f"{BESIDE}.")
        yield _prompt(" ".join(read_text(caption, PromptError).split()), str(caption))
