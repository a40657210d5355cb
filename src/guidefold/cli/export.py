"""``guidefold export``, ``verify`` and ``convert``; torch is imported when one of them runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from guidefold.cli.options import AsJson, Run, settings_of_run
from guidefold.ground import InputError, console, plural
from guidefold.run import Format, LoraFormat, Precision

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
) -> None:
    """Write the last checkpoint as an adapter, and check it.

    The check loads the file as a client would, and compares it with the trained student. --format
    writes a client's format; with --guidance 6 as well, strength 1 of the file is guidance 6.
    """
    from guidefold import api

    settings = settings_of_run(run)
    if kind is None:
        if out is not None or dtype is not None or strength != 1.0 or guidance is not None:
            raise InputError(
                "--out, --dtype, --strength and --guidance are for a format",
                "Add --format NAME, or all.",
            )
        console.print(f"Written and checked: {api.export(settings)}", markup=False)
        return
    if guidance is not None and strength != 1.0:
        raise InputError("--guidance and --strength exclude each other", "Give one of them.")
    made = api.deliver(settings, kind, out, dtype, strength, guidance)
    for verdict in made.verdicts:
        _print_verdict(verdict)
    for name, reason in made.unfit.items():
        console.print(f"Not written as {name}: {reason}.", markup=False)


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

    Which keys diffusers, ComfyUI, Forge, A1111, InvokeAI and sd-scripts would ignore, and whether
    the weights match the run.
    """
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
    from guidefold import api

    _print_verdict(api.convert(file, to, pipeline, out))


def _print_verdict(verdict: Verdict, *, with_run: bool = False) -> None:
    """Print the result of checking a file: what each client ignores, and the problems."""
    console.print(f"{verdict.path}  {verdict.kind}, {plural(verdict.keys, 'key')}", markup=False)
    unsuited = [r.client for r in verdict.readings if _reads_nothing(r, verdict.keys)]
    for reading in verdict.readings:
        if reading.dropped is not None and reading.client not in unsuited:
            console.print(f"  {reading.client:12}{_describe(reading, verdict.keys)}", markup=False)
    if unsuited:
        console.print(f"  not for {', '.join(unsuited)}: other formats are", markup=False)
    unknown = [reading.client for reading in verdict.readings if reading.dropped is None]
    if unknown:
        console.print(f"  not known to load onto this denoiser: {', '.join(unknown)}", markup=False)
    if verdict.difference is not None:
        console.print(
            f"  loaded by {verdict.loaded_by}: {verdict.difference:.1g} off the trained student",
            markup=False,
        )
    elif verdict.loaded_by and not with_run:
        console.print(
            f"  {verdict.loaded_by} can load it; values are compared with --run RUN", markup=False
        )
    elif not verdict.loaded_by:
        console.print("  no library here loads it onto this pipeline", markup=False)
    for problem in verdict.problems:
        console.print(f"  FAILED: {problem}", markup=False)


def _reads_nothing(reading: Reading, keys: int) -> bool:
    """Whether a client reads no key of a file that is not meant for it."""
    return not reading.meant and len(reading.dropped or ()) == keys


def _describe(reading: Reading, keys: int) -> str:
    """The layers that a client ignores, in words."""
    dropped = reading.dropped or ()
    lost = sorted({key.partition(".lora_")[0].removesuffix(".alpha") for key in dropped})
    if len(dropped) == keys:
        return "does not read this format"
    if not lost:
        return "reads every key"
    names = ", ".join(lost[:3]) + (" ..." if len(lost) > 3 else "")
    unsuited = "" if reading.meant else "; the format is not meant for it"
    return f"drops {plural(len(lost), 'layer')}: {names}{unsuited}"
