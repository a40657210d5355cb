"""Summaries on the terminal: of a written adapter, and of a measured run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from guidefold.ground import console, plural
from guidefold.run import METADATA, Results, RunFolder, read_json, read_log

if TYPE_CHECKING:
    from guidefold import api
    from guidefold.lora import Dial
    from guidefold.run import Settings


def distill_and_export(run: api.Run) -> None:
    """Record, train, write and check the adapter; print where it is and its dial."""
    from guidefold.lora import Dial, loading_code
    from guidefold.show import folded_share

    run.distill()
    if not run.main:
        return
    folder = run.export()
    metadata = read_json(folder / METADATA)
    loader, denoisers = (metadata["findings"][name] for name in ("loader", "denoisers"))
    console.print(f"\nThe adapter: {folder}, written and checked by loading it with {loader}")
    console.print(f"  {metadata['usage_hint']}")
    dial = Dial.from_json(metadata)
    for line in _dial_lines(dial) if dial.proportional or dial.marks else []:
        console.print(f"  {line}")
    settings, log = run.session.settings, read_log(run.session.run.log)
    _print_warning(folded_share(None, log), settings)
    two = settings.steps_rank is not None
    for line in loading_code(loader, denoisers, str(folder), two=two):
        console.print(f"  {line}")


def _dial_lines(dial: Dial) -> list[str]:
    """The measured dial, a column per mark."""
    if not dial.marks:
        return ["the dial: not measured, too little is folded yet"]
    columns = dial.table(most=7)
    return [
        "the dial, measured on held-out states (residual guidance: 1 nothing folded, 0 all):",
        *(f"  {name:17}" + "".join(f"{c[name]:>7}" for c in columns) for name in columns[0]),
    ]


def show_results(results: dict[str, Any], settings: Settings) -> None:
    """Write the page of a measured run and print its results."""
    from guidefold import api
    from guidefold.show import folded_share

    page = api.report(settings)
    measured, run = Results.model_validate(results), RunFolder(settings.run)
    _print_results(measured, run, page)
    _print_warning(folded_share(measured, read_log(run.log)), settings)


def _print_warning(folded: float | None, settings: Settings) -> None:
    """Print a warning where the adapter folds too little."""
    from guidefold.show import undertrained

    if warning := undertrained(folded, settings):
        console.print(f"Beware: {warning}")


def _print_results(results: Results, run: RunFolder, page: Path) -> None:
    from guidefold.show import gains_kept, seconds_of, speed_in_words, speed_up

    table = Table(box=None, pad_edge=False)
    headings = ("", "alignment", "passes / picture", "denoiser s / picture", "LoRA not fused")
    for heading in headings:
        table.add_column(heading, justify="left" if not heading else "right")
    for kind, steps, row in results.rows():
        alignment = "-" if row.alignment is None else f"{row.alignment:.3f}"
        seconds = ["" if value is None else f"{value:.3f}" for value in seconds_of(row)]
        table.add_row(kind + steps, alignment, f"{row.passes_per_image:g}", *seconds)
    console.print()
    console.print(table)
    if (faster := speed_up(results)) is not None:
        console.print(
            f"\nThe student, its adapter fused, {speed_in_words(faster[0])}. "
            f"With the LoRA loaded and not fused it {speed_in_words(faster[1])}."
        )
    if results.teacher.alignment is None:
        console.print(
            "\nalignment is measured for captions of the bundled world alone; evaluate.clip=MODEL "
            "scores pictures of any prompt"
        )
    for share, meaning in gains_kept(results):
        console.print(f"\n{share} {meaning}", markup=False)
    residual = results.residual_guidance
    name = "residual guidance" if results.few_steps is None else "step residual"
    console.print(
        f"\n{plural(results.prompts, 'held-out prompt')}, guidance {results.guidance:g} "
        f"against strength {results.strength:g}, {plural(results.steps, 'step')}\n"
        f"{name}: {residual.teacher_states.mean:.3f} at the teacher's states, "
        f"{residual.student_states.mean:.3f} at the student's (1 nothing folded, 0 all)\n"
        f"distance to the CFG picture: {results.relative_distance:.3f} of the unguided one's\n"
        f"\nThe page: {page}\n{run.grid}  {run.results}"
    )
