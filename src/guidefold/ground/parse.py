"""Read text, JSON and TOML that anybody may have written; whatever is wrong is one sentence.

The parsers of Python's library fail in more ways than they document: on nesting that exhausts the
stack, on integers of thousands of digits. Opening a pipe waits for a writer, and reading a device
never ends. Everything that Guidefold parses comes through here, so that each is an error with a
place.
"""

from __future__ import annotations

import errno
import json
import re
import stat
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from guidefold.ground.errors import GuidefoldError

DEEPEST = 100
"""Levels of lists and tables within each other; more would exhaust the stack of what reads them."""
KINDS_OF_VALUES: dict[type, str] = {
    type(None): "nothing",
    dict: "a table",
    list: "a list",
    tuple: "a list",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
}
OVERWRITTEN, TWICE = "Cannot overwrite a value", "a name that stands twice"  # tomllib's, ours
LONGEST_NAME = 120  # characters of a path in a message
KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

Error = type[GuidefoldError]


def check_regular(path: Path, error: Error, remedy: str = "") -> None:
    """Refuse a path that is no regular file: opening it would fail, or never return.

    Args:
        path: The path; a link counts as what it leads to.
        error: What to raise.
        remedy: What to do instead.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as problem:  # ValueError: a NUL within the name
        reason = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise error(f"{shown(path)}: cannot be read ({reason})", remedy) from problem
    if not stat.S_ISREG(mode):
        kind = next((name for fits, name in KINDS if fits(mode)), "something else")
        raise error(f"{shown(path)}: not a file, but {kind}", remedy)


def is_there(path: Path) -> bool:
    """Whether a path exists; one that no file system can hold does not."""
    try:
        return path.exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def read_text(path: Path, error: Error, remedy: str = "") -> str:
    """Read a UTF-8 file; a byte order mark is dropped.

    Args:
        path: The file.
        error: What to raise where it is no regular file, not readable, or not UTF-8.
        remedy: What to do instead; by default, of a file in another encoding, to save it anew.
    """
    check_regular(path, error, remedy)
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror})", remedy) from problem
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        column = problem.start - (data.rfind(b"\n", 0, problem.start) + 1)
        raise error(
            f"{path}:{line}: not valid UTF-8 at byte {column}", remedy or "Save the file as UTF-8."
        ) from problem


def parse_json(
    text: str, place: Path | str, error: Error, remedy: str = "", *, line: int | None = None
) -> Any:
    """Parse JSON.

    Args:
        text: The JSON.
        place: Its file, for messages.
        error: What to raise where it is no JSON.
        remedy: What to do instead.
        line: The line of the file that the text is, where it is not the whole file.
    """
    where = place if line is None else f"{place}:{line}"
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_table)
        return _checked_depth(value)
    except _RepeatedError as problem:
        raise error(f"{where}: {problem}", remedy) from problem
    except json.JSONDecodeError as problem:
        at = "" if line else f"line {problem.lineno}, "
        reason = f"{problem.msg.removesuffix(' at')} at {at}column {problem.colno}"
        raise error(f"{where}: not valid JSON ({reason})", remedy) from problem
    except (RecursionError, ValueError) as problem:
        number, reason = _beyond_limits(text, problem)
        reason += "" if line else f", in line {number}"
        raise error(f"{where}: not valid JSON ({reason})", remedy) from problem


def read_json(path: Path, error: Error, remedy: str = "") -> Any:
    """:func:`parse_json` of a whole file."""
    return parse_json(read_text(path, error, remedy), path, error, remedy)


def parse_toml(text: str, place: Path | str, error: Error, remedy: str = "") -> dict[str, Any]:
    """Parse TOML.

    Args:
        text: The TOML.
        place: Its file, for messages.
        error: What to raise where it is no TOML.
        remedy: What to do instead.
    """
    try:
        values: dict[str, Any] = _checked_depth(tomllib.loads(text))
    except tomllib.TOMLDecodeError as problem:
        reason, _, position = str(problem).replace(OVERWRITTEN, TWICE).partition(" (at ")
        found = re.search(r"line (\d+), column (\d+)", position)
        line = int(found[1]) if found else text.rstrip().count("\n") + 1  # the end
        column = f" at column {found[2]}" if found else ""
        raise error(f"{place}:{line}: not a TOML file: {reason}{column}", remedy) from problem
    except (RecursionError, ValueError) as problem:
        number, reason = _beyond_limits(text, problem)
        raise error(f"{place}: not a TOML file: {reason}, in line {number}", remedy) from problem
    return values


def kind_of(value: object) -> str:
    """What a value of JSON or TOML is, in words: ``a table``; of any other, its class."""
    return KINDS_OF_VALUES.get(type(value), type(value).__name__)


def in_words(value: object) -> str:
    """A value as people write it in TOML; ``not set`` where there is none."""
    if value is None:
        return "not set"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(in_words, value))}]"
    return repr(value).lower() if isinstance(value, bool) else repr(value)


def too_deep(value: object) -> bool:
    """Whether lists and tables lie within each other beyond :data:`DEEPEST` levels."""
    level = _tables([value])
    for _ in range(DEEPEST):
        level = [table for outer in level for table in _tables(_within(outer))]
        if not level:
            return False
    return True


def unencodable(text: str) -> str:
    """Why no tokenizer, no terminal and no file system takes a text; empty where all do."""
    if "\0" in text:
        return "holds a NUL character"
    surrogate = any("\ud800" <= character <= "\udfff" for character in text)
    return "holds half of a surrogate pair, which is not valid Unicode" if surrogate else ""


def shown(path: Path | str) -> str:
    """A path as messages show it: a very long one shortened, control characters escaped."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 30]}...{text[-27:]}"


def kind_of_file(path: Path) -> str:
    """A file's kind by its name, in words: ``a '.bin' file``."""
    return f"a '{path.suffix}' file" if path.suffix else "a file without an ending"


def _within(table: Any) -> Iterable[object]:
    values: Iterable[object] = table.values() if isinstance(table, dict) else table
    return values


def _tables(values: Iterable[object]) -> list[object]:
    return [value for value in values if isinstance(value, dict | list | tuple)]


def _checked_depth(value: Any) -> Any:
    if too_deep(value):
        raise RecursionError
    return value


def _refuse_constant(constant: str) -> NoReturn:
    raise _ConstantError(f"{constant} is no number")


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's table; of two values under one name Python's parser keeps the last alone."""
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _RepeatedError(f"'{shown(twice)}' stands twice in one object")
    return table


class _RepeatedError(ValueError):
    """A name that stands twice in one object."""


class _ConstantError(ValueError):
    """``NaN`` or ``Infinity``, which Python's parser takes and JSON does not have."""


def _beyond_limits(text: str, problem: Exception) -> tuple[int, str]:
    """The line of what a parser gave up on, and why: a long integer, else the deepest nesting."""
    if isinstance(problem, _ConstantError):
        return text.count("\n", 0, text.index(str(problem).split()[0])) + 1, str(problem)
    digits = sys.get_int_max_str_digits()
    number = re.search(rf"\d{{{digits + 1},}}", text) if digits else None
    if number is not None:
        length = len(number.group())
        return text.count("\n", 0, number.start()) + 1, f"a whole number of {length:,} digits"
    depths, depth = [], 0
    for line in text.split("\n"):
        depth += sum(map(line.count, "[{")) - sum(map(line.count, "]}"))
        depths.append(max(depth, sum(map(line.count, "[{."))))
    return depths.index(max(depths)) + 1, f"nested more than {DEEPEST} levels deep"
