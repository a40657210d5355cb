"""The command line. torch is imported when a command runs, so that ``--help`` is quick."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from guidefold import __version__
from guidefold.cli.bench import bench, plan, reproduce
from guidefold.cli.compare import compare
from guidefold.cli.doctor import doctor
from guidefold.cli.export import convert, export, verify
from guidefold.cli.fit import fitting
from guidefold.cli.options import Overrides, Run, Seeds, loading, read_settings, settings_of_run
from guidefold.cli.outcome import distill_and_export, show_results
from guidefold.cli.probe import probe
from guidefold.cli.publish import pack, push
from guidefold.cli.shortage import describe_shortage
from guidefold.ground import (
    CONSOLE_SETTINGS,
    ConfigError,
    GuidefoldError,
    InputError,
    Stopped,
    console,
    out_of_memory,
    read_text,
    shown,
)
from guidefold.run import KINDS, RunFolder, Settings, check_source, find_config, presets

app = typer.Typer(
    name="guidefold",
    help="Fold a diffusion pipeline's guidance into an ordinary LoRA: one pass a step, not two.",
    epilog="Start with 'guidefold demo', then 'guidefold probe PIPELINE' on your own.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(bench, name="bench")  # shown after the commands, which follow the order of use

Config = Annotated[
    str,
    typer.Argument(
        help="Preset (sd15, sdxl, demo ...), TOML file, or run folder to continue.",
        autocompletion=presets,
    ),
]
errors = Console(stderr=True, **CONSOLE_SETTINGS)


def main() -> None:
    """Run the command line; a foreseen mistake ends in a message, never in a traceback."""
    _quiet()
    try:
        app()
    except GuidefoldError as error:
        _fail(str(error), error.exit_code)
    except Stopped as stopped:
        errors.print(f"{stopped}\nThe same command goes on from there.")
        raise SystemExit(stopped.exit_code) from None
    except SystemExit as ended:  # typer turns a KeyboardInterrupt into this
        if ended.code == 128 + signal.SIGINT:
            errors.print("Stopped. What was saved stands; the same command goes on from there.")
        raise
    except Exception as error:
        _explain(error)
        raise


def _explain(error: Exception) -> None:
    """End with a sentence where memory ran out, or a file cannot be had."""
    if out_of_memory(error):
        _fail(describe_shortage(error), 1)
    if isinstance(error, OSError):
        too_long = error.errno == errno.ENAMETOOLONG  # a path on the command line
        place = shown(error.filename) if error.filename else "input/output"
        _fail(f"{place}: {error.strerror or error}", 2 if too_long else 1)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"guidefold {__version__}")
        raise typer.Exit


@app.command()
def demo(overrides: Overrides = None) -> None:
    """Fold the bundled teacher's guidance on a CPU, then its steps.

    The same as distill and evaluate with the preset 'demo'. A second run beside it then folds its
    steps: it trains a LoRA for five steps, with the guidance LoRA of the first.
    """
    with loading():
        from guidefold.demo import with_fewer_steps

    settings = read_settings("demo", overrides)
    _fold_and_measure(settings)
    if settings.student.steps is None and settings.adapter.dial:
        few = with_fewer_steps(settings)
        console.print(f"\nThe same guidance in {few.student.steps} steps: {few.run}")
        _fold_and_measure(few)


def _fold_and_measure(settings: Settings) -> None:
    """Bring a run of the demo to its end, and show its results."""
    with loading():
        from guidefold import api
        from guidefold.demo import judge_of

    with api.open_run(settings) as run:
        distill_and_export(run)
        results = run.evaluate(judge_of(settings.pipeline.source)) if run.main else None
    if results is not None:
        show_results(results, settings)


app.command()(doctor)
app.command()(probe)
app.command(short_help="Check whether a run's training step fits into memory.")(plan)


@app.command()
def config(
    preset: Annotated[str, typer.Argument(help="Name of a preset.", autocompletion=presets)],
) -> None:
    """Print a commented preset, to save and to change."""
    typer.echo(read_text(find_config(preset), ConfigError), nl=False)


@app.command()
def record(
    config: Config,
    overrides: Overrides = None,
    shard: Annotated[
        str, typer.Option(help="Part to record, as I/N; 'gather' brings the N parts together.")
    ] = "1/1",
) -> None:
    """Record the teacher's trajectories; continues where it stopped."""
    number, count = _shard(shard)
    settings = read_settings(config, overrides)
    check_source(settings.pipeline.source)
    with loading():
        from guidefold import api

    run = api.record(settings, (number, count))
    if count > 1:
        console.print(
            f"Recorded {shard}. When all parts are recorded: guidefold gather RUN {run} ..."
        )
    else:
        console.print(f"Recorded. Next: guidefold distill {run}")


@app.command()
def gather(
    run: Annotated[Path, typer.Argument(help="Run folder that receives the trajectories.")],
    parts: Annotated[list[Path], typer.Argument(help="Run folders recorded with --shard.")],
) -> None:
    """Collect in one run what several machines recorded."""
    with loading():
        from guidefold import api

    count = api.gather(run, parts)
    console.print(f"Trajectories copied: {count}.")
    console.print(f"Next: guidefold distill {run} (it records what is still missing)")


@app.command()
def distill(
    config: Config,
    overrides: Overrides = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Fastest settings that fit the device's free memory.")
    ] = False,
) -> None:
    """Record what is missing, train, write and check the adapter.

    Continues where it stopped. Example:

    guidefold distill sd15 pipeline.source=FOLDER run=runs/mine
    """
    settings = read_settings(config, overrides)
    check_source(settings.pipeline.source)
    if fit:
        settings = read_settings(config, [*(overrides or []), *fitting(settings)])
    with loading():
        from guidefold import api

    with api.open_run(settings) as run:
        distill_and_export(run)


@app.command()
def sample(
    *,
    run: Run,
    overrides: Overrides = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="Prompt to draw; repeatable.")
    ] = None,
    inputs: Annotated[
        str | None, typer.Option(help="Prompt file, or a .jsonl file of call arguments.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            *("--kind", "-k"),
            help="Kind of picture; repeatable. Default: all.",
            metavar=f"<{'|'.join(KINDS)}>",
            autocompletion=lambda: list(KINDS),
        ),
    ] = None,
    seed: Seeds = None,
    strength: Annotated[
        float | None,
        typer.Option(help="Adapter strength. Default: 1, or the strength measured for --guidance."),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", "-g", help="Teacher's guidance scale; the dial sets strength."),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="Adapter folder. Default: the run's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder. Default: RUN/samples.")] = None,
    more: Annotated[  # the older way to pass settings, of this command alone
        list[str] | None, typer.Option("--set", hidden=True)
    ] = None,
) -> None:
    """Draw prompts with teacher, unguided and student, side by side."""
    for name in kind or ():
        if name not in KINDS:
            raise InputError(f"--kind {name}: no such kind", f"Use {', '.join(KINDS)}.")
    if not prompt and inputs is None:
        raise typer.BadParameter("name a prompt", param_hint="--prompt or --inputs")
    with loading():
        from guidefold import api
        from guidefold.pipeline import read_prompts

    files = api.sample(
        settings_of_run(run, [*(overrides or []), *(more or [])]),
        [*(prompt or []), *(read_prompts(inputs) if inputs else [])],
        out or RunFolder(run).samples,
        kinds=[name for name in KINDS if name in (kind or KINDS)],
        seeds=seed or [0],
        strength=strength,
        guidance=guidance,
        adapter=adapter,
    )
    console.print(f"Written: {files[0]}")
    for file in files[1:]:
        console.print(f"  {file.name}")


@app.command()
def evaluate(run: Run, overrides: Overrides = None) -> None:
    """Measure teacher, unguided and student on held-out prompts."""
    with loading():
        from guidefold import api
        from guidefold.demo import judge_of

    settings = settings_of_run(run, overrides)
    results = api.evaluate(settings, judge_of(settings.pipeline.source))
    show_results(results, settings)


app.command()(export)
app.command()(verify)
app.command()(convert)
app.command()(pack)
app.command()(push)


@app.command()
def report(run: Run) -> None:
    """Write a run's page, report.html, also while it trains.

    The page shows pictures, dial, curves and costs.
    """
    with loading():
        from guidefold import api

    console.print(f"Written: {api.report(settings_of_run(run))}")


app.command()(compare)
app.command(short_help="Measure the source paper's claims; write paper.md.")(reproduce)


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InputError(
            f"--shard {text}: there is no such part", "Write 2/4 for the second of four."
        )
    return int(number), int(count)


def _fail(message: str, exit_code: int) -> None:
    errors.print(f"Error: {message}")
    raise SystemExit(exit_code)


def _main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _quiet() -> None:
    """Silence the other processes of a launch, and the warnings of libraries.

    Their notes are kept away wherever Guidefold is imported (``quiet_libraries``).
    """
    console.quiet = not _main_process()
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")
