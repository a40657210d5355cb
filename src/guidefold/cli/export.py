"""``guidefold export``, ``verify`` and ``convert``; torch waits until one of them runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from guidefold.cli.options import AsJson, Run
from guidefold.ground import InputError, console, plural
from guidefold.run import Format, LoraFormat, Precision

if TYPE_CHECKING:
    from guidefold.deliver import Reading, Verdict
    from guidefold.run import Settings


def export(
    run: Run,
    kind: Annotated[
        Literal[Format, "all"] | None,
        typer.Option("--format", help="Whose format; all writes every one that fits."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder, one in it for each format; by default RUN/export.")
    ] = None,
    dtype: Annotated[
        Precision | None, typer.Option(help="By default fp32, of fused weights the base's.")
    ] = None,
    strength: Annotated[
        float, typer.Option(help="What the run's strength is that becomes strength 1.")
    ] = 1.0,
    guidance: Annotated[
        float | None, typer.Option(help="In its place: the guidance that strength 1 stands for.")
    ] = None,
) -> None:
    """Write the last checkpoint as an adapter, and check it.

    It is loaded again as a client would, and compared with what was trained. With --format, in the
    format that a client reads; with --guidance 6 as well, so that strength 1 is guidance 6.
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
        raise InputError("--guidance and --strength say the same twice", "Give one of them.")
    made = api.deliver(settings, kind, out, dtype, strength, guidance)
    for verdict in made.verdicts:
        _print_verdict(verdict)
    for name, reason in made.unfit.items():
        console.print(f"Not written as {name}: {reason}.", markup=False)


def verify(
    path: Annotated[Path, typer.Argument(help="A .safetensors file, or a folder of some.")],
    run: Annotated[
        Path | None, typer.Option(help="The run that it comes from: predictions are compared.")
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option(help="Without a run: the pipeline that it is for.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read written files as their clients do.

    What diffusers, ComfyUI, Forge, A1111, InvokeAI and sd-scripts would drop, and what comes out.
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
    file: Annotated[Path, typer.Argument(help="A LoRA's .safetensors file, or a peft folder.")],
    to: Annotated[LoraFormat, typer.Option(help="The format to write.")],
    pipeline: Annotated[str, typer.Option(help="What the file was made for.")],
    out: Annotated[Path, typer.Option(help="A .safetensors file; for peft a folder.")],
) -> None:
    """Write somebody's LoRA in another format, mended."""
    from guidefold import api

    _print_verdict(api.convert(file, to, pipeline, out))


def settings_of_run(run: Path, overrides: Sequence[str] | None = None) -> Settings:
    """The settings of a run that has begun; no preset stands for one."""
    refused = run.is_dir() and {path.name for path in run.iterdir()} <= {".lock"}
    if refused or not run.exists():  # a command that was refused leaves its lock behind
        raise InputError(f"{run}: no such run", "Begin one with 'guidefold distill'.")
    from guidefold.run import load_settings

    return load_settings(run, list(overrides or []))


def _print_verdict(verdict: Verdict, *, with_run: bool = False) -> None:
    """A file, and what each client reads of it."""
    console.print(f"{verdict.path}  {verdict.kind}, {plural(verdict.keys, 'key')}", markup=False)
    others = [r.client for r in verdict.readings if _reads_nothing(r, verdict.keys)]
    for reading in verdict.readings:
        if reading.dropped is not None and reading.client not in others:
            console.print(f"  {reading.client:12}{_told(reading, verdict.keys)}", markup=False)
    if others:
        console.print(f"  not for {', '.join(others)}: there is a format for each", markup=False)
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
    """Whether the format is another client's altogether."""
    return not reading.meant and len(reading.dropped or ()) == keys


def _told(reading: Reading, keys: int) -> str:
    """What a client makes of a file, in words."""
    dropped = reading.dropped or ()
    lost = sorted({key.partition(".lora_")[0].removesuffix(".alpha") for key in dropped})
    if len(dropped) == keys:
        return "does not read this format"
    if not lost:
        return "reads every key"
    names = ", ".join(lost[:3]) + (" ..." if len(lost) > 3 else "")
    beside = "" if reading.meant else "; the format is not meant for it"
    return f"drops {plural(len(lost), 'layer')}: {names}{beside}"
