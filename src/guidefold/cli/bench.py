"""``guidefold bench`` and ``guidefold plan``; torch waits until one of them runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from guidefold.cli.options import AsJson, Overrides
from guidefold.ground import InputError, console
from guidefold.run import Precision, Preset

if TYPE_CHECKING:
    from guidefold.bench.speed import Options, Row, TimedModel

WIDE = 160  # characters; of tables that go to a file
bench = typer.Typer(
    help="Measure what the paper (Golnari 2023, arXiv 2312.06899) claims.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@bench.command()
def memory(
    *,
    arch: Annotated[
        str, typer.Option(help="sd15, sd21, sdxl, sd3, or a .toml file like theirs.")
    ] = "sd15",
    how: Annotated[
        Literal["estimate", "cpu", "cuda"],
        typer.Option(help="Estimate it without device or weights, or measure it on a device."),
    ] = "estimate",
    batch: Annotated[int, typer.Option(help="Samples in a step.")] = 4,
    size: Annotated[
        int | None, typer.Option(help="Side of the pictures, pixels; by default the model's own.")
    ] = None,
    dtype: Annotated[Precision, typer.Option(help="Precision of the weights.")] = "fp32",
    rank: Annotated[int, typer.Option(help="Of the adapter.")] = 4,
    targets: Annotated[Preset, typer.Option(help="Layers that the adapter takes.")] = "attention",
    case: Annotated[
        list[str] | None, typer.Option(help="One case; repeatable; all by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Peak memory of a training step: the paper's Table 1.

    Then the method down from there, rung by rung.
    """
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
    with _progress_aside(as_json):
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
        typer.Argument(help="bundled (the default), a folder, a single file or a hub id."),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(help="A published denoiser alone, random weights: sd15, ... or a .toml file."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Pictures in a call; repeatable; 1 and 4 by default.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps of a picture.")] = 20,
    size: Annotated[
        int | None, typer.Option(help="Side of the pictures, pixels; by default the model's own.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often every method is timed.")] = 5,
    dtype: Annotated[Precision, typer.Option(help="Precision of the weights.")] = "fp32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    rank: Annotated[int, typer.Option(help="Of the random adapter.")] = 32,
    targets: Annotated[Preset, typer.Option(help="Layers that the random adapter takes.")] = "all",
    adapter: Annotated[
        Path | None, typer.Option(help="A run's folder: its adapter, not a random one.")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Also with torch.compile, if it works.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Time of teacher, student and Selective Guidance.

    Runs are interleaved, and the unguided teacher is the bound.
    """
    if arch is not None and pipeline is not None:
        raise InputError(f"{pipeline} and --arch {arch}: two things to measure", "Name one.")
    from guidefold.bench.speed import Options

    options = Options(
        batches=tuple(batch or (1, 4)),
        steps=steps,
        rounds=rounds,
        size=size,
        dtype=dtype,
        rank=rank,
        targets=targets,
        adapter=adapter,
        compiled=compiled,
    )
    from guidefold.bench.speed import bench_speed, find_device, make_rows, to_json

    options = replace(options, device=find_device(device))
    with _progress_aside(as_json):
        model = _timed_model(pipeline, arch, options)
        rows = make_rows(bench_speed(model, options), model.clocks)
    if as_json:
        typer.echo(json.dumps(to_json(rows, model, options), indent=2))
    else:
        _print_speed(rows, model, options)


def _timed_model(pipeline: str | None, arch: str | None, options: Options) -> TimedModel:
    """What is timed: a whole pipeline, or a published denoiser alone."""
    from guidefold.bench.memory import load_architecture
    from guidefold.bench.speed import DenoiserAlone, WholePipeline

    if arch is None:
        return WholePipeline.open(pipeline or "bundled", options)
    return DenoiserAlone(load_architecture(arch), options)


def _print_speed(rows: Sequence[Row], model: TimedModel, options: Options) -> None:
    from guidefold.bench.speed import describe, to_tables

    console.print(describe(model, options), markup=False)
    for table in to_tables(rows):
        console.print()
        console.print(table)
    for note in model.notes:
        console.print(note, markup=False)


@bench.command()
def fidelity(
    *,
    config: Annotated[str, typer.Argument(help="A preset or a TOML file.")] = "demo",
    overrides: Overrides = None,
    out: Annotated[
        Path, typer.Option(help="Where runs are kept; what is finished there is not run again.")
    ] = Path("runs/fidelity"),
    method: Annotated[
        list[str] | None, typer.Option(help="One method; repeatable; all by default.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 0.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Alignment and distance from the CFG picture, by method.

    The paper's methods beside Guidefold's default, at about equal denoiser passes.
    """
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
    with _progress_aside(as_json):
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
        typer.Argument(help="Settings of the fidelity runs as section.key=value."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Where to; a stopped reproduction goes on there.")
    ] = Path("runs/paper"),
    seeds: Annotated[int, typer.Option(min=1, help="Of the fidelity runs.")] = 3,
    part: Annotated[
        list[str] | None, typer.Option(help="One part; repeatable; all by default.")
    ] = None,
) -> None:
    """Run every claim of the source paper, and write paper.md: its figures beside ours."""
    from guidefold.bench.choices import select
    from guidefold.bench.reproduce import PARTS, fidelity_part
    from guidefold.bench.reproduce import reproduce as run

    parts = (*PARTS, fidelity_part(out, seeds, overrides or []))
    page = run(out, select(parts, part or [], "part"))
    console.print(f"Written: {page}", markup=False)


def plan(
    config: Annotated[str, typer.Argument(help="A preset, a TOML file, or a run folder.")],
    overrides: Overrides = None,
    memory: Annotated[
        float | None, typer.Option(min=0, help="GiB to compare with; by default the device's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a run's training step fits, before a weight is downloaded or read."""
    from guidefold.run import load_settings

    settings = load_settings(config, list(overrides or []))
    from guidefold.bench.memory import GIB, describe, make_plan

    found = make_plan(settings, None if memory is None else int(memory * GIB))
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        console.print(describe(found, settings), markup=False)


@contextmanager
def _progress_aside(aside: bool) -> Iterator[None]:
    """Show progress on standard error for a while, so that standard output is JSON alone."""
    before = console.stderr
    console.stderr = aside or before
    try:
        yield
    finally:
        console.stderr = before
