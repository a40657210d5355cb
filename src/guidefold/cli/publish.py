"""``guidefold pack`` and ``push``; heavy imports wait until one of them runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guidefold.cli.export import settings_of_run
from guidefold.cli.options import Run
from guidefold.ground import InputError, console, plural

if TYPE_CHECKING:
    from guidefold.show import Upload

Licence = Annotated[
    str | None,
    typer.Option(
        "--license", help="The base's, as the hub spells it, where its own card is not here."
    ),
]


def pack(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="The folder; by default RUN/hub.")] = None,
    licence: Licence = None,
) -> None:
    """Write a folder that a hub repository can be made of.

    Adapter, a file for other clients, model card, pictures, ComfyUI workflow.
    """
    from guidefold import api

    packed = api.pack(settings_of_run(run), out, licence)
    console.print(f"Packed: {packed.folder}", markup=False)
    _print_remarks(packed.remarks)
    console.print(
        f"Next: look at its README.md, then guidefold push {run} OWNER/NAME", markup=False
    )


def push(
    run: Run,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="On the hub.")],
    private: Annotated[bool, typer.Option("--private", help="Seen by its owner alone.")] = False,
    licence: Licence = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Upload a run's adapter to the hub; shows it first, and asks."""
    from guidefold import api

    def agree(upload: Upload) -> bool:
        _print_upload(upload)
        if yes:
            return True
        if not sys.stdin.isatty():
            raise InputError("push asks before it uploads, and nobody is there", "Say --yes.")
        return typer.confirm("Upload?")

    settings = settings_of_run(run)
    address = api.push(settings, repository, agree, private=private, licence=licence)
    console.print(f"Uploaded: {address}" if address else "Nothing was uploaded.", markup=False)


def _print_upload(upload: Upload) -> None:
    from guidefold.run import readable_size

    for name, size in upload.files.items():
        console.print(f"  {readable_size(size):>10}  {name}", markup=False)
    whole = f"{plural(len(upload.files), 'file')}, {readable_size(sum(upload.files.values()))}"
    seen = "private" if upload.private else "public"
    state = "there already; files of these names are replaced" if upload.exists else "new"
    console.print(f"{whole} to {upload.repository} ({seen}, {state})", markup=False)
    _print_remarks(upload.remarks)


def _print_remarks(remarks: tuple[str, ...]) -> None:
    for remark in remarks:
        console.print(f"  {remark}", markup=False)
