"""``guidefold pack`` and ``push``; torch is imported when one of them runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guidefold.cli.options import Run, loading, settings_of_run
from guidefold.ground import InputError, console, plural
from guidefold.run import readable_size

if TYPE_CHECKING:
    from guidefold.show import Upload

Licence = Annotated[
    str | None,
    typer.Option(
        "--license",
        help="License id of the base model (as on the Hub), if its model card is not at hand.",
    ),
]


def pack(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="Output folder. Default: RUN/hub.")] = None,
    licence: Licence = None,
) -> None:
    """Write a folder in the layout of a Hub repository.

    It holds the adapter, a file for other clients, model card, pictures and a ComfyUI workflow.
    """
    with loading():
        from guidefold import api

    packed = api.pack(settings_of_run(run), out, licence)
    console.print(f"Packed: {packed.folder}")
    _print_remarks(packed.remarks)
    console.print(f"Next: look at its README.md, then guidefold push {run} OWNER/NAME")


def push(
    run: Run,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Private repository.")] = False,
    licence: Licence = None,
    yes: Annotated[bool, typer.Option("--yes", help="Upload without confirmation.")] = False,
) -> None:
    """Upload a run's adapter to the Hub, after confirmation."""
    with loading():
        from guidefold import api

    def agree(upload: Upload) -> bool:
        _print_upload(upload)
        if yes:
            return True
        if not sys.stdin.isatty():
            raise InputError("push needs confirmation, but there is no terminal", "Pass --yes.")
        return typer.confirm("Upload?")

    settings = settings_of_run(run)
    address = api.push(settings, repository, agree, private=private, licence=licence)
    console.print(f"Uploaded: {address}" if address else "Nothing was uploaded.")


def _print_upload(upload: Upload) -> None:
    for name, size in upload.files.items():
        console.print(f"  {readable_size(size):>10}  {name}")
    total = f"{plural(len(upload.files), 'file')}, {readable_size(sum(upload.files.values()))}"
    access = "private" if upload.private else "public"
    state = "there already; files of these names are replaced" if upload.exists else "new"
    console.print(f"{total} to {upload.repository} ({access}, {state})")
    _print_remarks(upload.remarks)


def _print_remarks(remarks: tuple[str, ...]) -> None:
    for remark in remarks:
        console.print(f"  {remark}")
