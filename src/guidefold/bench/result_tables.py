"""Library versions and terminal tables, for the results of all benches."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from importlib.metadata import version

from rich.table import Table

LIBRARIES = ("guidefold", "torch", "diffusers", "transformers", "peft")


def versions() -> dict[str, str]:
    """Versions of the libraries that results depend on, by name."""
    return {name: version(name) for name in LIBRARIES}


def rich_table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    left: Collection[str],
    width: int | None = None,
) -> Table:
    """Make a table for a terminal.

    Args:
        title: The line above the table.
        headings: The columns' headings.
        rows: Cells, a sequence for each row.
        left: Headings of the columns that are aligned to the left.
        width: Characters, never wrapped; None takes the terminal's, with wrapped cells.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, width=width)
    for heading in headings:
        side = "left" if heading in left else "right"
        table.add_column(heading, justify=side, no_wrap=width is not None)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*row)
    return table
