"""``guidefold export``, ``verify`` and ``convert``; torch is imported when one of them runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from guidefold.cli.options import AsJson, Run, loading, settings_of_run
from guidefold.ground import InputError, console, plural
from guidefold.run import Format, Layers, LoraFormat, Precision

if TYPE_CHECKING:
    from guidefold.deliver import Reading, Verdict


def export(
    run: Run,
    kind: Annotated[
        Literal[Format, "all"] | None,
        typer.Option("--format", help="Format to write; all writes every one that fits."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Output folder; each format gets a sub-folder. Default: RUN/export."),
    ] = None,
    dtype: Annotated[
        Precision | None,
        typer.Option(help="Precision of the file. Default: fp32; fused weights keep the base's."),
    ] = None,
    strength: Annotated[
        float, typer.Option(help="Adapter strength to bake in as the file's strength 1.")
    ] = 1.0,
    guidance: Annotated[
        float | None,
        typer.Option(help="Guidance scale to bake in, instead of --strength (by the dial)."),
    ] = None,
    layers: Annotated[
        Layers,
        typer.Option(help="Layers to write; portable leaves out what some clients do not read."),
    ] = "all",
    merged: Annotated[
        bool,
        typer.Option(
            "--merged",
            help="Single file for the guidance and the steps LoRA, for one scale.",
        ),
    ] = False,
) -> None:
    """Write the last checkpoint as an adapter, and check it.

    The check loads the file as a client would, and compares it with the trained student. --format
    writes a client's format; with --guidance 6 as well, strength 1 of the file is guidance 6.
    """
    with loading():
        from guidefold import api

    settings = settings_of_run(run)
    if kind is None:
        given = (out, dtype, strength, guidance, layers, merged)
        if given != (None, None, 1.0, None, "all", False):
            raise InputError(
                "--out, --dtype, --strength, --guidance, --layers and --merged are for a format",
                "Add --format NAME, or all.",
            )
        console.print(f"Written and checked: {api.export(settings)}")
        return
    if guidance is not None and strength != 1.0:
        raise InputError("--guidance and --strength exclude each other", "Give one of them.")
    made = api.deliver(settings, kind, out, dtype, strength, guidance, layers, merged=merged)
    for verdict in made.verdicts:
        _print_verdict(verdict, others=False)
    for name, reason in made.unfit.items():
        console.print(f"Not written as {name}: {reason}.")


def verify(
    path: Annotated[Path, typer.Argument(help="Safetensors file, or a folder of such files.")],
    run: Annotated[
        Path | None, typer.Option(help="Run that wrote the file; compares predictions with it.")
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option(help="Base pipeline of the file, in place of --run.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check exported files as their clients read them.

    Which layers each client would ignore, and whether the weights match the run.
    """
    with loading():
        from guidefold import api

    verdicts = api.verify(path, run, pipeline)
    if as_json:
        typer.echo(json.dumps([verdict.to_json() for verdict in verdicts], indent=2))
    else:
        for verdict in verdicts:
            _print_verdict(verdict, with_run=run is not None)
    if any(verdict.problems for verdict in verdicts):
        raise typer.Exit(1)


def convert(
    file: Annotated[
        Path, typer.Argument(help="LoRA to convert: a .safetensors file, or a peft folder.")
    ],
    to: Annotated[LoraFormat, typer.Option(help="Format to write.")],
    pipeline: Annotated[str, typer.Option(help="Base pipeline of the LoRA.")],
    out: Annotated[Path, typer.Option(help="Output file (.safetensors); a folder for peft.")],
) -> None:
    """Convert a LoRA to another format; fixes key names and alpha."""
    with loading():
        from guidefold import api

    _print_verdict(api.convert(file, to, pipeline, out))


def _print_verdict(verdict: Verdict, *, with_run: bool = False, others: bool = True) -> None:
    """Print the result of checking a file: which clients it is for, what each ignores, problems.

    Args:
        verdict: The result.
        with_run: Whether the file was compared with a run.
        others: Whether to name the clients that the file is not meant for.
    """
    console.print(f"{verdict.path}  {verdict.kind}, {plural(verdict.keys, 'key')}")
    for line in _clients_lines(verdict.readings, verdict.keys, others=others):
        console.print(f"  {line}")
    if verdict.difference is not None:
        console.print(
            f"  loaded by {verdict.loaded_by}: {verdict.difference:.1g} off the trained student"
        )
    elif verdict.loaded_by and not with_run:
        console.print(f"  {verdict.loaded_by} can load it; values are compared with --run RUN")
    elif not verdict.loaded_by:
        console.print("  no library here loads it onto this pipeline")
    for problem in verdict.problems:
        console.print(f"  FAILED: {problem}")


def _clients_lines(readings: Sequence[Reading], keys: int, *, others: bool) -> Iterator[str]:
    """How clients read a file: those that it is for come first."""
    whole = [r.client for r in readings if r.meant and not r.dropped]
    if whole:
        yield f"for {', '.join(whole)}: every key is read"
    in_part: dict[str, list[str]] = {}
    for reading in readings:
        if reading.failed or reading.gap:
            in_part.setdefault(reading.loss(keys), []).append(reading.client)
    for how, clients in in_part.items():
        yield f"{', '.join(clients)}: {how}"
    if any(reading.gap and not reading.note for reading in readings):
        yield "  (export --layers portable leaves out the layers that some do not read)"
    unsuited = [r.client for r in readings if r.dropped and not (r.meant or r.gap)]
    unknown = [reading.client for reading in readings if reading.dropped is None]
    if others and unsuited:
        yield f"not for {', '.join(unsuited)}: other formats are"
    if others and unknown:
        yield f"not known to load onto this denoiser: {', '.join(unknown)}"
