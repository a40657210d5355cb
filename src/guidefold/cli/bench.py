"""``guidefold bench``, ``reproduce`` and ``plan``; torch is imported when one of them runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from guidefold.cli.options import AsJson, Overrides, loading, progress_on_stderr
from guidefold.ground import InputError, console
from guidefold.run import Precision, Preset, check_place, check_source, load_settings

if TYPE_CHECKING:
    from guidefold.bench.speed import Options, Row, TimedModel

WIDE = 160  # characters in a line of a table that is written to a file
bench = typer.Typer(
    help="Measure claims of the paper (Golnari 2023, arXiv 2312.06899).",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@bench.command()
def memory(
    *,
    arch: Annotated[
        str, typer.Option(help="Architecture: sd15, sd21, sdxl, sd3, or a .toml file.")
    ] = "sd15",
    how: Annotated[
        Literal["estimate", "cpu", "cuda"],
        typer.Option(help="Way to the figures: an estimate without weights, or a device."),
    ] = "estimate",
    batch: Annotated[int, typer.Option(help="Samples per step.")] = 4,
    size: Annotated[
        int | None, typer.Option(help="Side of the pictures in pixels. Default: the model's own.")
    ] = None,
    dtype: Annotated[Precision, typer.Option(help="Precision of the weights.")] = "fp32",
    rank: Annotated[int, typer.Option(help="Rank of the adapter.")] = 4,
    targets: Annotated[Preset, typer.Option(help="Layers that the adapter changes.")] = "attention",
    case: Annotated[
        list[str] | None, typer.Option(help="Case to measure; repeatable. Default: all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate or measure the peak memory of a training step.

    The cases of the paper's Table 1, then a ladder of further savings, one by one.
    """
    with loading():
        from guidefold.bench.choices import select
        from guidefold.bench.memory import (
            CASES,
            ArchitectureWorkload,
            bench_memory,
            check_device,
            load_architecture,
            to_json,
            to_table,
        )

    chosen, architecture = select(CASES, case or [], "case"), load_architecture(arch)
    check_device(how)
    pixels = architecture.size if size is None else size
    workload = ArchitectureWorkload(architecture, batch, pixels, dtype, rank, targets)
    with progress_on_stderr(as_json):
        rows = bench_memory(chosen, workload, how)
    if as_json:
        typer.echo(json.dumps(to_json(rows, workload, how), indent=2))
    else:
        console.print(to_table(rows, workload, how))


@bench.command()
def speed(
    *,
    pipeline: Annotated[
        str | None,
        typer.Argument(help="Pipeline: bundled (the default), folder, file or hub id."),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(help="Denoiser to time alone, with random weights: sd15, ... or .toml."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Pictures per call; repeatable. Default: 1 and 4.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps per picture.")] = 20,
    size: Annotated[
        int | None, typer.Option(help="Side of the pictures in pixels. Default: the model's own.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Number of times that each method is timed.")] = 5,
    dtype: Annotated[Precision, typer.Option(help="Precision of the weights.")] = "fp32",
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, ...")] = "auto",
    rank: Annotated[int, typer.Option(help="Rank of the random adapter.")] = 32,
    targets: Annotated[Preset, typer.Option(help="Layers of the random adapter.")] = "all",
    adapter: Annotated[
        Path | None, typer.Option(help="Run folder whose adapter replaces the random one.")
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option("--compile/--no-compile", help="Timing with torch.compile too, if it works."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Time teacher, student and Selective Guidance.

    The methods take turns; the unguided teacher is the lower bound.
    """
    if arch is not None and pipeline is not None:
        raise InputError(f"{pipeline} and --arch {arch}: two things to measure", "Name one.")
    with loading():
        from guidefold.bench.speed import Options, bench_speed, find_device, make_rows, to_json

    options = Options(
        batches=tuple(batch or (1, 4)),
        steps=steps,
        rounds=rounds,
        size=size,
        dtype=dtype,
        device=find_device(device),
        rank=rank,
        targets=targets,
        adapter=adapter,
        compiled=compiled,
    )
    with progress_on_stderr(as_json):
        model = _timed_model(pipeline, arch, options)
        rows = make_rows(bench_speed(model, options), model.clocks)
    if as_json:
        typer.echo(json.dumps(to_json(rows, model, options), indent=2))
    else:
        _print_speed(rows, model, options)


def _timed_model(pipeline: str | None, arch: str | None, options: Options) -> TimedModel:
    """The pipeline or the denoiser that is timed."""
    from guidefold.bench.memory import load_architecture
    from guidefold.bench.speed import DenoiserAlone, WholePipeline

    if arch is None:
        return WholePipeline.open(pipeline or "bundled", options)
    return DenoiserAlone(load_architecture(arch), options)


def _print_speed(rows: Sequence[Row], model: TimedModel, options: Options) -> None:
    from guidefold.bench.speed import describe, to_tables

    console.print(describe(model, options))
    for table in to_tables(rows):
        console.print()
        console.print(table)
    for note in model.notes:
        console.print(note)


@bench.command()
def fidelity(
    *,
    config: Annotated[str, typer.Argument(help="Preset or TOML file.")] = "demo",
    overrides: Overrides = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the runs; finished ones are not repeated.")
    ] = Path("runs/fidelity"),
    method: Annotated[
        list[str] | None, typer.Option(help="Method to compare; repeatable. Default: all.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Compare methods by alignment and distance from the CFG picture.

    The paper's methods and Guidefold's default, at about equal denoiser passes.
    """
    check_place(out)
    with loading():
        from guidefold.bench.choices import select
        from guidefold.bench.fidelity import (
            METHODS,
            Trials,
            bench_fidelity,
            categories,
            levels,
            overview,
            to_json,
            to_rich,
            write_pictures,
        )

    methods = select(METHODS, method or [], "method")
    trials = Trials(out, config, tuple(overrides or []))
    with progress_on_stderr(as_json):
        found = bench_fidelity(trials, methods, range(seeds))
    write_pictures(trials, methods, found)
    if as_json:
        typer.echo(json.dumps(to_json(found), indent=2))
        return
    tables = {"Means over seeds": overview(found), "Alignment by category": categories(found)}
    for states in ("teacher", "student"):
        title = f"Residual guidance by noise level, at the {states}'s states"
        tables[title] = levels(found, f"{states}_states")
    for title, table in tables.items():
        console.print(to_rich(title, table), width=None if console.is_terminal else WIDE)


def reproduce(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings of the fidelity runs, as section.key=value."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Output folder; a stopped reproduction continues in it.")
    ] = Path("runs/paper"),
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds of the fidelity runs.")] = 3,
    part: Annotated[
        list[str] | None, typer.Option(help="Part to run; repeatable. Default: all.")
    ] = None,
) -> None:
    """Measure every claim of the source paper; write paper.md with its figures beside ours."""
    check_place(out)
    with loading():
        from guidefold.bench.choices import select
        from guidefold.bench.reproduce import PARTS, fidelity_part
        from guidefold.bench.reproduce import reproduce as run

    parts = (*PARTS, fidelity_part(out, seeds, overrides or []))
    page = run(out, select(parts, part or [], "part"))
    console.print(f"Written: {page}")


def plan(
    config: Annotated[str, typer.Argument(help="Preset, TOML file or run folder.")],
    overrides: Overrides = None,
    memory: Annotated[
        float | None,
        typer.Option(min=0, help="Memory to compare with, in GiB. Default: the device's."),
    ] = None,
    cards: Annotated[
        bool, typer.Option("--cards", help="Fastest settings that fit cards of 8 to 80 GiB.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check whether a run fits into memory, before any weight is downloaded or read.

    With --memory, the fastest settings that fit are printed too, as section.key=value.
    """
    settings = load_settings(config, overrides)
    check_source(settings.pipeline.source)
    with loading():
        from guidefold.bench.memory import (
            CARDS,
            GIB,
            Choices,
            cards_to_table,
            describe,
            describe_fit,
            fit_to_json,
            make_plan,
        )

    with progress_on_stderr(as_json):
        if cards:
            choices = Choices(settings)
            fits = {card: choices.fastest(card * GIB) for card in CARDS}
            found = {str(card): fit_to_json(fit, settings) for card, fit in fits.items()}
            text = cards_to_table(fits, settings)
        else:
            given = None if memory is None else int(memory * GIB)
            planned = make_plan(settings, given)
            found, text = planned.to_json(), describe(planned, settings)
            if given is not None:
                fit = Choices(settings).fastest(given)
                found["fastest"] = fit_to_json(fit, settings)
                text += f"\n\n{describe_fit(fit, settings)}"
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        console.print(text)
