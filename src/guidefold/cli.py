"""The command line. Heavy imports wait until a command runs, so that ``--help`` answers at once."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from guidefold import __version__
from guidefold.bench.command import bench, plan, reproduce
from guidefold.errors import GuidefoldError, InputError, UnfoldableError
from guidefold.progress import Stopped, console, plural
from guidefold.settings import KINDS

if TYPE_CHECKING:
    from guidefold.settings import Settings
    from guidefold.verify import Verdict

app = typer.Typer(
    name="guidefold",
    help="Fold a diffusion pipeline's guidance into an ordinary LoRA: one pass a step, not two.",
    epilog="Start with 'guidefold demo', then 'guidefold probe PIPELINE' on your own.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(bench, name="bench")  # shown after the commands, which stand in a user's order

Config = Annotated[
    str,
    typer.Argument(
        help="A preset (sd15, sdxl, sd3, demo), a TOML file, or a run folder to go on with."
    ),
]
Run = Annotated[Path, typer.Argument(help="The run's folder.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as section.key=value.", show_default=False)
]
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; every foreseen mistake ends in a message, never in a traceback."""
    _quiet()
    try:
        app()
    except GuidefoldError as error:
        _fail(str(error), error.exit_code)
    except Stopped as stopped:
        errors.print(f"{stopped}\nThe same command goes on from there.", markup=False)
        raise SystemExit(stopped.exit_code) from None
    except SystemExit as ended:  # typer turns a KeyboardInterrupt into this
        if ended.code == 128 + signal.SIGINT:
            errors.print("Stopped. What was saved stands; the same command goes on from there.")
        raise
    except OSError as error:
        _fail(f"{error.filename or 'input/output'}: {error.strerror or error}", 1)
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        _fail(
            f"out of memory: {str(error).splitlines()[0]}\nTry pipeline.dtype=bf16, "
            "distill.gradient_checkpointing=true, a smaller distill.batch_size, a larger "
            "distill.accumulation, or distill.preview_prompts=0.",
            1,
        )


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"guidefold {__version__}")
        raise typer.Exit


@app.command()
def demo(overrides: Overrides = None) -> None:
    """Fold the bundled teacher's guidance on a CPU, in minutes.

    From recording to pictures: the same as distill and evaluate with the preset 'demo'.
    """
    settings = _settings("demo", overrides)
    _teach(settings)
    _measure(settings)


@app.command()
def probe(
    pipeline: Annotated[str, typer.Argument(help="A folder, a .safetensors file, or a hub id.")],
    overrides: Overrides = None,
    config: Annotated[
        str | None, typer.Option(help="A diffusers folder that describes a single file.")
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(help="Prompts, or a .jsonl file whose fields are its call's arguments."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find out whether a pipeline's guidance can be folded.

    What was found and what follows from it; where it cannot be folded, why, and what would help.
    A pipeline that needs more than a prompt is given the first rows of its inputs.
    """
    from guidefold.config import make_settings

    values: dict[str, Any] = {"run": "unused", "pipeline": {"source": pipeline}}
    if inputs is not None:
        values["prompts"] = {"path": inputs}
    described = [] if config is None else [f"pipeline.config={config}"]
    settings = make_settings(values, [*described, *(overrides or [])], "guidefold probe")
    from guidefold import api
    from guidefold.findings import describe
    from guidefold.inputs import check_rows
    from guidefold.pipelines import DTYPES, pipeline_class, resolve_device

    asked, rows = settings.pipeline, []
    if inputs is not None:
        rows = [row for row in api.load_prompts(inputs) if row.columns]
        kind = pipeline_class(asked.source)
        if kind is not None:
            check_rows(kind, rows)
    opened = api.open_pipeline(
        asked.source,
        config=asked.config,
        dtype=DTYPES[asked.dtype],
        device=resolve_device(asked.device),
    )
    guidance = settings.adapter.g_ref
    try:
        findings = api.probe(
            opened, asked.call, guidance, asked.negative_prompt, asked.guided_share, rows
        )
    except UnfoldableError as error:
        if as_json:
            why = {"foldable": False, "why": error.message, "remedy": error.remedy}
            typer.echo(json.dumps(why, indent=2))
        raise
    if as_json:
        typer.echo(json.dumps({"foldable": True, **findings.to_json()}, indent=2))
    else:
        console.print("\n".join(describe(findings)), markup=False)


app.command(short_help="Say whether a run's training step fits into memory.")(plan)


@app.command()
def config(preset: Annotated[str, typer.Argument(help="A preset's name.")]) -> None:
    """Print a commented preset, to save and to change."""
    from guidefold.config import find_config

    typer.echo(find_config(preset).read_text(encoding="utf-8"), nl=False)


@app.command()
def record(
    config: Config,
    overrides: Overrides = None,
    shard: Annotated[
        str, typer.Option(help="I/N: this machine's part of N, brought together by 'gather'.")
    ] = "1/1",
) -> None:
    """Record the teacher's trajectories; goes on where it stopped."""
    number, count = _shard(shard)
    from guidefold import api

    run = api.record(_settings(config, overrides), (number, count))
    if count > 1:
        console.print(f"Recorded {shard}. When all stand: guidefold gather RUN {run} ...")
    else:
        console.print(f"Recorded. Next: guidefold distill {run}", markup=False)


@app.command()
def gather(
    run: Annotated[Path, typer.Argument(help="The folder to bring them together in.")],
    parts: Annotated[list[Path], typer.Argument(help="Runs that were recorded with --shard.")],
) -> None:
    """Bring together what several machines have recorded of one run."""
    from guidefold import api

    count = api.gather(run, parts)
    console.print(f"Trajectories copied: {count}.")
    console.print(f"Next: guidefold distill {run}", markup=False)


@app.command()
def distill(config: Config, overrides: Overrides = None) -> None:
    """Record what is missing, train, write and check the adapter.

    Goes on where it stopped. Example:

    guidefold distill sd15 pipeline.source=FOLDER run=runs/mine
    """
    _teach(_settings(config, overrides))


@app.command()
def sample(
    *,
    run: Run,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="What to draw; repeatable.")
    ] = None,
    inputs: Annotated[
        str | None, typer.Option(help="Prompts from a file, or the rows of a .jsonl file.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", "-k", help="Who draws; repeatable; all by default."),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", "-s", min=0, help="Repeatable.")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="Of the adapter; by default what stands for the teacher's guidance."),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="An adapter folder; by default the run's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; by default RUN/samples.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="A setting as section.key=value.")
    ] = None,
) -> None:
    """Draw prompts with teacher, unguided and student, side by side."""
    for name in kind or ():
        if name not in KINDS:
            raise InputError(f"--kind {name}: no such kind", f"Use {', '.join(KINDS)}.")
    if not prompt and inputs is None:
        raise typer.BadParameter("say what to draw", param_hint="--prompt or --inputs")
    from guidefold import api
    from guidefold.prompts import read_prompts

    files = api.sample(
        _settings_of(run, override),
        [*(prompt or []), *(read_prompts(inputs) if inputs else [])],
        out or run / "samples",
        kinds=[name for name in KINDS if name in (kind or KINDS)],
        seeds=seed or [0],
        strength=strength,
        adapter=adapter,
    )
    beside = plural(len(files) - 1, "file")
    console.print(f"Written: {files[0]} and {beside} beside it", markup=False)


@app.command()
def evaluate(run: Run, overrides: Overrides = None) -> None:
    """Measure teacher, unguided and student on held-out prompts."""
    _measure(_settings_of(run, overrides))


@app.command()
def export(
    run: Run,
    kind: Annotated[
        str | None,
        typer.Option("--format", help="diffusers, kohya, transformer, peft, fused, or all."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder, one in it for each format; by default RUN/export.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="fp32, fp16 or bf16; by default fp32, of fused the base's.")
    ] = None,
    strength: Annotated[float, typer.Option(help="Of the adapter in fused weights.")] = 1.0,
) -> None:
    """Write the last checkpoint as an adapter, and check it.

    It is loaded again as a client would, and compared with what was trained. With --format, in the
    format that a client reads.
    """
    from guidefold import api

    settings = _settings_of(run)
    if kind is None:
        if out is not None or dtype is not None or strength != 1.0:
            raise InputError(
                "--out, --dtype and --strength are for a format", "Add --format NAME, or all."
            )
        console.print(f"Written and checked: {api.export(settings)}", markup=False)
        return
    made = api.deliver(settings, kind, out, dtype, strength)
    for verdict in made.verdicts:
        _print_verdict(verdict)
    for name, reason in made.unfit.items():
        console.print(f"Not written as {name}: {reason}.", markup=False)


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="A .safetensors file, or a folder of some.")],
    run: Annotated[
        Path | None, typer.Option(help="The run that it comes from: predictions are compared.")
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option(help="Without a run: the pipeline that it is for.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
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
            _print_verdict(verdict)
    if any(verdict.problems for verdict in verdicts):
        raise typer.Exit(1)


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="A LoRA's .safetensors file, or a peft folder.")],
    to: Annotated[str, typer.Option(help="diffusers, kohya, transformer or peft.")],
    pipeline: Annotated[str, typer.Option(help="What the file was made for.")],
    out: Annotated[Path, typer.Option(help="A .safetensors file; for peft a folder.")],
) -> None:
    """Write somebody's LoRA in another format, mended."""
    from guidefold import api

    _print_verdict(api.convert(file, to, pipeline, out))


@app.command()
def report(run: Run) -> None:
    """Write a run's page, report.html, also while it trains.

    Pictures, dial, curves and costs.
    """
    from guidefold import api

    console.print(f"Written: {api.report(_settings_of(run))}", markup=False)


app.command(short_help="Run the source paper's claims, and write paper.md.")(reproduce)


def _settings(source: str | Path, overrides: Sequence[str] | None = None) -> Settings:
    from guidefold.config import load_settings

    return load_settings(source, list(overrides or []))


def _settings_of(run: Path, overrides: Sequence[str] | None = None) -> Settings:
    """The settings of a run that has begun; no preset stands for one."""
    refused = run.is_dir() and {path.name for path in run.iterdir()} <= {".lock"}
    if refused or not run.exists():  # a command that was refused leaves its lock behind
        raise InputError(f"{run}: no such run", "Begin one with 'guidefold distill'.")
    return _settings(run, overrides)


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InputError(
            f"--shard {text}: there is no such part", "Write 2/4 for the second of four."
        )
    return int(number), int(count)


def _print_verdict(verdict: Verdict) -> None:
    """A file, and what each client reads of it."""
    console.print(f"{verdict.path}  {verdict.kind}, {plural(verdict.keys, 'key')}", markup=False)
    for reading in verdict.readings:
        if reading.dropped is None:
            continue
        lost = sorted(
            {key.partition(".lora_")[0].removesuffix(".alpha") for key in reading.dropped}
        )
        if len(reading.dropped) == verdict.keys:
            told = "does not read this format"
        elif lost:
            told = f"drops {plural(len(lost), 'layer')}: {', '.join(lost[:6])}"
            told += " ..." if len(lost) > 6 else ""
        else:
            told = "reads every key"
        console.print(f"  {reading.client:12}{told}", markup=False)
    unknown = [reading.client for reading in verdict.readings if reading.dropped is None]
    if unknown:
        console.print(f"  not known to load onto this denoiser: {', '.join(unknown)}", markup=False)
    if verdict.difference is not None:
        console.print(
            f"  loaded by {verdict.loaded_by}: {verdict.difference:.1g} off the trained student",
            markup=False,
        )
    elif not verdict.loaded_by:
        console.print("  no library here loads it onto this pipeline", markup=False)
    for problem in verdict.problems:
        console.print(f"  FAILED: {problem}", markup=False)


def _teach(settings: Settings) -> None:
    """Record, train, write, check."""
    from guidefold import api

    api.distill(settings)
    if not _main_process():
        return
    folder = api.export(settings)
    about = json.loads((folder / "guidefold.json").read_text(encoding="utf-8"))
    loader = about["findings"]["loader"]
    console.print(f"\nThe adapter: {folder}, written and checked by loading it with {loader}")
    console.print(f"  {about['usage_hint']}", markup=False)
    if loader == "diffusers":
        console.print(f'  pipeline.load_lora_weights("{folder}")', markup=False)


def _measure(settings: Settings) -> None:
    """Measure, write the page, print the table."""
    from guidefold import api
    from guidefold.demo.judge import judge_of

    results = api.evaluate(settings, judge_of(settings.pipeline.source))
    _print_results(results, Path(settings.run), api.report(settings))


def _print_results(results: dict[str, Any], run: Path, page: Path) -> None:
    """The table that a measurement ends with."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "alignment", "passes / picture", "denoiser s / picture"):
        table.add_column(heading, justify="left" if not heading else "right")
    for kind in ("teacher", "unguided", "student"):
        row = results[kind]
        alignment = "-" if row["alignment"] is None else f"{row['alignment']:.3f}"
        seconds = f"{row['denoiser_seconds_per_image']:.3f}"
        table.add_row(kind, alignment, f"{row['passes_per_image']:g}", seconds)
    fused = f"{results['student']['denoiser_seconds_per_image_fused']:.3f}"
    table.add_row("student, fused", "", "", fused)
    console.print()
    console.print(table)
    residual = results["residual_guidance"]
    console.print(
        f"\n{plural(results['prompts'], 'held-out prompt')}, guidance {results['guidance']:g} "
        f"against strength {results['strength']:g}, {results['steps']} steps\n"
        f"residual guidance: {residual['teacher_states']['mean']:.3f} at the teacher's states, "
        f"{residual['student_states']['mean']:.3f} at the student's (1 nothing folded, 0 all)\n"
        f"distance to the CFG picture: {results['relative_distance']:.3f} of the unguided one's\n"
        f"\nThe page: {page}\n{run / 'grid.png'}  {run / 'results.json'}",
        markup=False,
    )


def _fail(message: str, exit_code: int) -> None:
    errors.print(f"Error: {message}", markup=False)
    raise SystemExit(exit_code)


def _main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _quiet() -> None:
    """Libraries keep their notes to themselves; set their variables to hear them."""
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # peft imports bitsandbytes where it is, which then speaks of kernels that nobody asked for
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    console.quiet = not _main_process()
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")
