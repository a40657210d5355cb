"""``guidefold bench`` and ``guidefold plan``; torch waits until one of them runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from guidefold.progress import console

bench = typer.Typer(
    help="Measure what the paper claims, one command a claim.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@bench.callback()
def _root() -> None:
    """Keep ``memory`` a command of its own while it is the only one."""


@bench.command()
def memory(
    *,
    arch: Annotated[
        str, typer.Option(help="sd15, sd21, sdxl, sd3, or a .toml file like theirs.")
    ] = "sd15",
    how: Annotated[
        str, typer.Option(help="estimate (no device, no weights), or measured on: cpu, cuda.")
    ] = "estimate",
    batch: Annotated[int, typer.Option(help="Samples in a step.")] = 4,
    size: Annotated[
        int | None, typer.Option(help="Side of the pictures, pixels; by default the model's own.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    rank: Annotated[int, typer.Option(help="Of the adapter.")] = 4,
    targets: Annotated[
        str, typer.Option(help="The adapter's layers: attention, linear or all.")
    ] = "attention",
    case: Annotated[
        list[str] | None, typer.Option(help="One case; repeatable; all by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Peak memory of a training step: the paper's Table 1, and the way down from there."""
    from guidefold.bench.architectures import load_architecture
    from guidefold.bench.cases import find_cases, make_load
    from guidefold.bench.report import bench_memory, check_how, to_json, to_table

    chosen, way = find_cases(case or []), check_how(how)
    load = make_load(load_architecture(arch), batch, size, dtype, rank, targets)
    with _progress_aside(as_json):
        rows = bench_memory(chosen, load, way)
    if as_json:
        typer.echo(json.dumps(to_json(rows, load, way), indent=2))
    else:
        console.print(to_table(rows, load, way))


def plan(
    config: Annotated[str, typer.Argument(help="A preset, a TOML file, or a run folder.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as section.key=value.", show_default=False)
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=0, help="GiB to compare with; by default the device's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether a run's training step fits, before a weight is downloaded or read."""
    from guidefold.config import load_settings

    settings = load_settings(config, list(overrides or []))
    from guidefold.bench.plan import GIB, describe, make_plan

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
