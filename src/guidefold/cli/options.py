"""Arguments and options that several commands share."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from guidefold.ground import LARGEST_SEED, InputError, console
from guidefold.run import Settings, load_settings

Run = Annotated[Path, typer.Argument(help="Run folder.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as section.key=value.", show_default=False)
]
Seeds = Annotated[
    list[int] | None,
    typer.Option("--seed", "-s", min=0, max=LARGEST_SEED, help="Seed; repeatable. Default: 0."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


_in_use: ContextVar[Settings | None] = ContextVar("settings", default=None)


def read_settings(source: str | Path, overrides: list[str] | None = None) -> Settings:
    """The settings of a command, which :func:`settings_in_use` gives again when it has failed."""
    settings = load_settings(source, overrides)
    _in_use.set(settings)
    return settings


def settings_in_use() -> Settings | None:
    """The settings that the command has read; None where it reads none."""
    return _in_use.get()


def settings_of_run(run: Path, overrides: list[str] | None = None) -> Settings:
    """Read the settings of a run folder; a preset's name is refused."""
    empty = run.is_dir() and {path.name for path in run.iterdir()} <= {".lock"}
    if empty or not run.exists():
        raise InputError(f"{run}: no such run", "Begin one with 'guidefold distill'.")
    return read_settings(run, overrides)


@contextmanager
def progress_on_stderr(needed: bool) -> Iterator[None]:
    """Print progress on standard error if needed, so that standard output holds JSON alone."""
    before = console.stderr
    console.stderr = needed or before
    try:
        yield
    finally:
        console.stderr = before


@contextmanager
def loading() -> Iterator[None]:
    """Say on a terminal, on standard error, that libraries are imported: that takes seconds."""
    with Console(stderr=True, quiet=console.quiet).status("Loading torch and diffusers"):
        yield
