"""Entries by the names that the command line gives: cases, methods, parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from guidefold.ground import ConfigError


class Named(Protocol):
    """An entry with a name."""

    @property
    def name(self) -> str:
        """The name on the command line."""


Entry = TypeVar("Entry", bound=Named)


def select(entries: Sequence[Entry], names: Sequence[str], option: str) -> list[Entry]:
    """Select entries by name, in their own order; all without a name.

    Args:
        entries: The known ones.
        names: The wanted ones.
        option: The command line's option, without dashes.

    Raises:
        ConfigError: A name is unknown.
    """
    known = [entry.name for entry in entries]
    for name in names:
        if name not in known:
            raise ConfigError(f"--{option} {name}: no such {option}", f"Use {', '.join(known)}.")
    return [entry for entry in entries if not names or entry.name in names]
