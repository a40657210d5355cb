"""Arguments and options that several commands share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from guidefold.ground import InputError, console
from guidefold.run import Settings, load_settings

Run = Annotated[Path, typer.Argument(help="Run folder.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as section.key=value.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def settings_of_run(run: Path, overrides: list[str] | None = None) -> Settings:
    """Read the settings of a run folder; a preset's name is refused."""
    refused = run.is_dir() and {path.name for path in run.iterdir()} <= {".lock"}
    if refused or not run.exists():  # a command that was refused leaves its lock behind
        raise InputError(f"{run}: no such run", "Begin one with 'guidefold distill'.")
    return load_settings(run, overrides)


@contextmanager
def progress_on_stderr(needed: bool) -> Iterator[None]:
    """Print progress on standard error if needed, so that standard output holds JSON alone."""
    before = console.stderr
    console.stderr = needed or before
    try:
        yield
    finally:
        console.stderr = before
