"""Results of ``bench fidelity`` as tables, JSON, a grid of pictures and a chart."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from statistics import mean, stdev
from textwrap import fill
from typing import Any

from rich.table import Table as RichTable

from guidefold.bench.fidelity.compare import MethodResult
from guidefold.bench.fidelity.methods import Method
from guidefold.bench.fidelity.trials import Trial, Trials
from guidefold.bench.result_tables import rich_table
from guidefold.draw import Picture, grid, png, read_picture
from guidefold.pipeline import load_prompts, split_prompts
from guidefold.run import write_bytes
from guidefold.show import curves

Table = tuple[list[str], list[list[str]]]
"""Headings, and rows of cells."""
DEFINED_DISTANCES = {"teacher": "0", "unguided": "1"}  # others are measured on this scale


def to_json(found: Sequence[MethodResult]) -> list[dict[str, Any]]:
    """One object for each method and seed."""
    return [entry.to_json() for entry in found]


def overview(found: Sequence[MethodResult]) -> Table:
    """Each method's means over seeds, with the deviation between them."""
    rows = []
    for name, entries in _by_method(found).items():
        trained = [f.residual for f in entries if f.residual]
        rows.append(
            [
                entries[0].title,
                f"{len(entries)}",
                f"{mean(f.training_passes for f in entries) / 1000:.1f} k" if trained else "-",
                f"{entries[0].passes:g}",
                cell([f.alignment for f in entries]),
                cell(alignment_ratios(found, name)),
                DEFINED_DISTANCES.get(name) or cell([f.distance for f in entries]),
                cell([r["teacher_states"].mean for r in trained]),
                cell([r["student_states"].mean for r in trained]),
                cell([f.frechet_distance for f in entries]),
                cell([f.recall for f in entries]),
            ]
        )
    headings = ["method", "seeds", "training passes", "passes per picture", "alignment"]
    headings += ["alignment / CFG's", "distance", "residual, teacher's states"]
    return [*headings, "residual, student's states", "Frechet distance", "recall"], rows


def alignment_ratios(found: Sequence[MethodResult], method: str) -> list[float]:
    """A method's alignment over the teacher's, seed by seed; without a judge, none."""
    teachers = {f.seed: f.alignment for f in found if f.method == "teacher"}
    own = {f.seed: f.alignment for f in found if f.method == method}
    return [a / b for seed, a in own.items() if a is not None and (b := teachers.get(seed))]


def categories(found: Sequence[MethodResult]) -> Table:
    """Alignment by category of prompt."""
    names = list(dict.fromkeys(name for f in found for name in f.categories))
    rows = [
        [entries[0].title, *(cell([f.categories.get(name) for f in entries]) for name in names)]
        for entries in _by_method(found).values()
    ]
    return ["method", *names], rows


def levels(found: Sequence[MethodResult], states: str) -> Table:
    """Residual guidance by noise level, from the least noise to the most.

    Args:
        found: Results of all methods.
        states: ``teacher_states`` or ``student_states``.
    """
    rows, headings = [], ["method"]
    for entries in _by_method(found).values():
        trained = [f.residual[states].levels for f in entries if f.residual]
        if trained:
            bounds = [f"t = {level.low:g} to {level.high:g}" for level in trained[0]]
            headings = ["method", *bounds]
            columns = zip(*trained, strict=True)
            cells = [cell([level.residual for level in column]) for column in columns]
            rows.append([entries[0].title, *cells])
    return headings, rows


def to_rich(title: str, table: Table) -> RichTable:
    """A table for a terminal."""
    headings, rows = table
    return rich_table(title, headings, rows, left=("method",))


def markdown(table: Table) -> str:
    """A table as Markdown."""
    headings, rows = table
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(values: Sequence[float | None]) -> str:
    """A mean, with the standard deviation of more than one; a dash for what was not measured."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {stdev(known):.3f}" if len(known) > 1 else ""
    return f"{mean(known):.3f}{spread}"


def curve_svg(found: Sequence[MethodResult]) -> bytes | None:
    """Chart residual guidance while training, means over seeds; None where nothing is trained."""
    lines = {
        entries[0].title: [
            (passes / 1000, mean(f.curve[k][1] for f in entries))
            for k, (passes, _) in enumerate(entries[0].curve)
        ]
        for entries in _by_method(found).values()
        if entries[0].curve
    }
    if not lines:
        return None
    title = "Residual guidance on held-out states, each method's own"
    chart = curves(title, lines, "thousand denoiser passes", "residual guidance")
    return base64.b64decode(chart.light.split(",", 1)[1])


def write_pictures(
    trials: Trials, methods: Sequence[Method], found: Sequence[MethodResult]
) -> None:
    """Write ``grid.png`` and ``curves.svg`` beside the trials, where anything was trained."""
    chart = curve_svg(found)
    if chart is not None:
        write_bytes(trials.out / "curves.svg", chart)
        write_bytes(trials.out / "grid.png", png(picture_grid(trials, methods, found[0].seed)))


def picture_grid(trials: Trials, methods: Sequence[Method], seed: int) -> Picture:
    """Make a grid of the same prompts and noise, a column a method: the paper's figure 2."""
    settings = trials.settings(Trial((), seed))
    every_prompt = load_prompts(settings.prompts.path)
    _, held_out = split_prompts(every_prompt, settings.prompts.held_out_share)
    prompts = [p.text for p in held_out[: settings.evaluate.grid_prompts]]
    first = next(m for m in methods if m.trained).trial(settings, seed)
    columns = {"CFG teacher": (first, "teacher"), "unguided": (first, "unguided")}
    columns |= {method.title: (method.trial(settings, seed), "student") for method in methods}
    rows = [
        [
            read_picture(trials.pictures(trial) / f"{kind}-{k:03d}.png")
            for trial, kind in columns.values()
        ]
        for k in range(len(prompts))
    ]
    return grid(rows, [fill(title, 20) for title in columns], prompts)


def _by_method(found: Sequence[MethodResult]) -> dict[str, list[MethodResult]]:
    names = dict.fromkeys(f.method for f in found)
    return {name: [f for f in found if f.method == name] for name in names}
