"""A run as one page: a self-contained HTML file that needs no network and trusts no text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guidefold.charts import Chart, bars, curves
from guidefold.config import dump_toml, load_settings, without_paths
from guidefold.document import content_policy, fill, read_parts
from guidefold.exhibits import (
    NAMES,
    optional_json,
    pictures_by_prompt,
    pictures_by_step,
    pictures_by_strength,
)
from guidefold.lora.dial import Dial
from guidefold.progress import plural
from guidefold.record.trajectory_files import read_round
from guidefold.run.folder import RunFolder, require_run
from guidefold.runs import read_lines, readable_size, write_text
from guidefold.settings import KINDS, Settings

PROBE_AGAIN = "Remove it: the next command that opens the pipeline probes it again."
EXPORT_AGAIN = "Write it again with 'guidefold export RUN'."
MEASURES = {
    "alignment": "alignment",
    "clip_score": "CLIP score",
    "frechet_distance": "Fréchet distance",
    "recall": "recall",
    "saturation": "saturation",
}
RESULTS = (
    *KINDS,
    *("residual_guidance", "relative_distance", "guidance", "strength", "prompts", "steps"),
    *("trained_steps", "adapter_bytes", "denoiser_bytes", "versions", "machine"),
)


def report(settings: Settings) -> Path:
    """Write a run's page, from whatever the run has come to so far.

    Args:
        settings: The run's.

    Returns:
        ``RUN/report.html``.

    Raises:
        RunError: No run has begun there.
        CorruptFileError: A file of the run is damaged, or a picture is missing.
    """
    run = require_run(settings.run)
    write_text(run.page, render(gather(run)))
    return run.page


def gather(run: RunFolder) -> dict[str, Any]:
    """Everything that a run's page shows.

    Args:
        run: The run's folder.

    Returns:
        The template's variables; what is not there yet is None or empty.
    """
    settings = load_settings(run.config)
    results = optional_json(run.results, RESULTS)
    index = optional_json(run.index, ("pictures", "dial"))
    findings = optional_json(run.probe, remedy=PROBE_AGAIN)
    log = read_lines(run.log)
    adapter = optional_json(run.metadata, remedy=EXPORT_AGAIN)
    dial = pictures_by_strength(run, index) if index else []
    return {
        "name": run.name,
        "state": _state(run, settings, log, results),
        "headline": _headline(results) if results else [],
        "table": _table(results) if results else None,
        "results": results,
        "pictures": pictures_by_prompt(run, index) if index else [],
        "categories": list((results or {}).get("categories", {})),
        "prompts": len(index["pictures"]) if index else 0,
        "dial": dial,
        "dial_start": max((k for k, step in enumerate(dial) if step["strength"] <= 1), default=0),
        "dial_trained": settings.adapter.dial,
        "previews": pictures_by_step(run),
        "charts": _charts(log, results, adapter),
        "costs": _costs(run, settings, log, results),
        "adapter": adapter,
        "findings": findings,
        "settings": dump_toml(without_paths(settings)),
        "names": NAMES,
        "kinds": KINDS,
    }


def render(page: Mapping[str, Any]) -> str:
    """The page as HTML; every value is escaped, and nothing runs but the page's own script.

    Args:
        page: What :func:`gather` returned.

    Returns:
        The document.
    """
    style, script = read_parts("page.css"), read_parts("wipe.js", "page.js")
    policy = content_policy(style, script, "img-src data:")
    return fill("page.html", style, script, policy, **page)


def _state(
    run: RunFolder, settings: Settings, log: Sequence[Mapping[str, Any]], results: Any
) -> str:
    """How far the run has come, in words."""
    step = max((line["step"] for line in log), default=0)
    if results:
        measured = results["trained_steps"]
        since = f" at step {measured}, trained to step {step} since" if step > measured else ""
        return f"measured{since}"
    if step >= settings.distill.steps:
        return "trained; 'guidefold evaluate' measures it"
    if step:
        return f"training: step {step} of {settings.distill.steps}"
    recorded = len(_trajectories(run))
    return f"recording: {recorded} trajectories so far" if recorded else "begun"


def _headline(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Two or three figures that say what came out, each with its meaning."""
    student, teacher = results["student"], results["teacher"]
    figures = [
        (
            f"{student['passes_per_image']:g} passes",
            f"a picture, where the guided teacher makes {teacher['passes_per_image']:g}",
        )
    ]
    if teacher["alignment"]:
        ratio = student["alignment"] / teacher["alignment"]
        meaning = f"of the teacher's alignment, over {plural(results['prompts'], 'paired prompt')}"
        bounds = student.get("alignment_over_teacher_95")
        if bounds:
            meaning += f" (95% interval {bounds[0]:.0%} to {bounds[1]:.0%})"
        figures.append((f"{ratio:.1%}", meaning))
    folded = 1 - results["residual_guidance"]["teacher_states"]["mean"]
    figures.append((f"{folded:.0%}", "of the guidance signal folded, at the teacher's states"))
    return figures


def _table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: a row a kind; what nobody measured has no column."""
    student = results["student"]
    names = {n: title for n, title in MEASURES.items() if student.get(n) is not None}
    rows = []
    for kind in KINDS:
        its = results[kind]
        passes, seconds = its["passes_per_image"], its["denoiser_seconds_per_image"]
        measures = [_number(its.get(name)) for name in names]
        rows.append([NAMES[kind], f"{passes:g}", f"{seconds:.3f}", *measures])
    fused = f"{student['denoiser_seconds_per_image_fused']:.3f}"
    blank = [""] * len(names)
    rows.append(["student, fused", f"{student['passes_per_image']:g}", fused, *blank])
    return ["who", "passes", "seconds", *names.values()], rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _charts(log: Sequence[Mapping[str, Any]], results: Any, adapter: Any) -> list[Chart]:
    """Every chart that there are numbers for."""
    charts = []
    loss = [(line["step"], line["loss"]) for line in log if line.get("loss") is not None]
    held_out = [(x["step"], x["residual_guidance"]) for x in log if "residual_guidance" in x]
    training = {"training loss": _smooth(loss), "residual guidance, held out": held_out}
    training = {name: points for name, points in training.items() if points}
    if training:
        charts.append(curves("Training", training, "step", "loss"))
    levels = _levels(log, results)
    if levels:
        title = "Residual guidance by noise level"
        charts.append(curves(title, levels, "timestep", "residual guidance", falling=True))
    if results and results.get("categories"):
        groups = {
            name: {NAMES[kind]: shares[kind] for kind in KINDS}
            for name, shares in results["categories"].items()
        }
        charts.append(bars("Alignment by category", groups, "aligned"))
    return charts + _dial_charts(adapter)


def _dial_charts(adapter: Any) -> list[Chart]:
    """Which strength serves which guidance scale, and what is left there."""
    if not (adapter or {}).get("dial_table"):
        return []
    dial = Dial.from_json(adapter)
    strengths = {
        "nearest to the teacher": [(m.guidance, m.strength) for m in dial.marks],
        "as the dial stands": [(m.guidance, dial.nominal_strength(m.guidance)) for m in dial.marks],
    }
    left = {"on held-out states": [(m.guidance, m.residual) for m in dial.marks]}
    return [
        curves("The dial, measured", strengths, "guidance scale", "strength"),
        curves("Residual guidance by scale", left, "guidance scale", "residual guidance"),
    ]


def _levels(log: Sequence[Mapping[str, Any]], results: Any) -> dict[str, list[tuple[float, float]]]:
    """Residual guidance over timesteps: as measured, else as last validated."""
    if results:
        residual = results["residual_guidance"]
        found = {
            "at the teacher's states": residual["teacher_states"]["levels"],
            "at the student's states": residual["student_states"]["levels"],
        }
    else:
        validations = [line for line in log if "levels" in line]
        if not validations:
            return {}
        found = {"held out, teacher's states": validations[-1]["levels"]}
    return {
        name: [((level["low"] + level["high"]) / 2, level["residual"]) for level in levels]
        for name, levels in found.items()
    }


def _smooth(points: Sequence[tuple[float, float]], most: int = 100) -> list[tuple[float, float]]:
    """Means of neighbours, so that at most so many points are left."""
    size = -(-len(points) // most) or 1
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _costs(
    run: RunFolder, settings: Settings, log: Sequence[Mapping[str, Any]], results: Any
) -> list[tuple[str, str]]:
    """What the run has cost so far: seconds, memory, bytes."""
    costs = []
    lines = _trajectories(run)
    if lines:
        size = readable_size(sum(line["size"] for line in lines))
        costs.append(("trajectories", f"{len(lines)} recorded, {size} on disk"))
    recording = sum(line.get("seconds", 0.0) for line in lines)
    if recording:
        costs.append(("recording", _duration(recording)))
    training = [line for line in log if "training_seconds" in line]
    if training:
        steps, batch = training[-1]["step"], settings.distill.batch_size
        spent = _duration(training[-1]["training_seconds"])
        costs.append(("training", f"{spent} for {steps} steps of {batch} states"))
    memory = [line["peak_memory"] for line in log if "peak_memory" in line]
    if memory:
        peak = max(memory, key=lambda entry: entry["bytes"])
        where = {"resident": "resident, the whole process", "allocated": "allocated on the device"}
        costs.append(("peak memory", f"{readable_size(peak['bytes'])} {where[peak['kind']]}"))
    if results:
        adapter, denoiser = results["adapter_bytes"], results["denoiser_bytes"]
        part = f"{adapter / denoiser:.1%} of the denoiser's {readable_size(denoiser)}"
        costs.append(("adapter", f"{readable_size(adapter)}, {part}"))
        costs.append(("measured on", results["machine"]))
    return costs


def _duration(seconds: float) -> str:
    """Seconds for people: ``'48 s'``, ``'9 min 5 s'``, ``'2 h 3 min'``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _trajectories(run: RunFolder) -> list[dict[str, Any]]:
    return [line for folder in run.rounds() for line in read_round(folder, verify=False)]
