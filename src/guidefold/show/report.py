"""A run's report: one self-contained HTML file that needs no network and escapes every text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guidefold.ground import plural
from guidefold.lora import Dial
from guidefold.run import (
    KINDS,
    MEMORY,
    Log,
    ProbeRecord,
    Record,
    Results,
    RunFolder,
    Settings,
    TrajectoryLine,
    dump_toml,
    load_settings,
    missing_lines,
    read_log,
    read_measured,
    read_trajectories,
    readable_duration,
    readable_size,
    require_run,
    without_paths,
    write_text,
)
from guidefold.show.charts import Chart, bars, curves
from guidefold.show.html import content_policy, fill, read_parts
from guidefold.show.report_pictures import (
    NAMES,
    pictures_by_prompt,
    pictures_by_step,
    pictures_by_strength,
)
from guidefold.show.summary import (
    folded_share,
    gains_kept,
    seconds_of,
    speed_in_words,
    speed_up,
    undertrained,
)
from guidefold.show.usage import usage

PROBE_AGAIN = "Remove it: the next command that opens the pipeline probes it again."
EXPORT_AGAIN = "Write it again with 'guidefold export RUN'."
MEASURES = {
    "alignment": "alignment",
    "clip_score": "CLIP score",
    "frechet_distance": "Fréchet distance",
    "recall": "recall",
    "diversity": "diversity",
    "saturation": "saturation",
}


def report(settings: Settings) -> Path:
    """Write a run's report from what the run has produced so far.

    Args:
        settings: The run's settings.

    Returns:
        ``RUN/report.html``.

    Raises:
        RunError: There is no run.
        CorruptFileError: A file of the run is damaged, or a picture is missing.
    """
    run = require_run(settings.run)
    write_text(run.page, render(gather(run)))
    return run.page


def gather(run: RunFolder) -> dict[str, Any]:
    """Collect everything that a run's report shows.

    Args:
        run: The run's folder.

    Returns:
        The template's variables; what the run does not have yet is None or empty.
    """
    settings = load_settings(run.config)
    results, index = read_measured(run)
    findings = ProbeRecord.read(run.probe, PROBE_AGAIN)
    adapter = Record.read(run.metadata, EXPORT_AGAIN)
    about = adapter.to_json() if adapter else {}
    log, trajectories = read_log(run.log), read_trajectories(run)
    dial = pictures_by_strength(run, index) if index else []
    return {
        "name": run.name,
        "state": _state(settings, trajectories, log, results) + _lost(missing_lines(run, log)),
        "headline": _headline(results) if results else [],
        "warning": _warning(settings, log, results),
        "uses": usage(settings, about),
        "table": _table(results) if results else None,
        "results": results,
        "pictures": pictures_by_prompt(run, index) if index else [],
        "categories": list(results.categories) if results else [],
        "prompts": len(index.pictures) if index else 0,
        "dial": dial,
        "dial_start": max((k for k, step in enumerate(dial) if step["strength"] <= 1), default=0),
        "dial_trained": settings.adapter.dial,
        "previews": pictures_by_step(run),
        "charts": _charts(log, results, about),
        "costs": _costs(settings, trajectories, log, results),
        "adapter": about,
        "findings": findings and findings.to_json(),
        "settings": dump_toml(without_paths(settings)),
        "names": NAMES,
        "kinds": KINDS,
    }


def render(page: Mapping[str, Any]) -> str:
    """The report as HTML.

    Args:
        page: The template's variables, from :func:`gather`.

    Returns:
        The document.
    """
    style, script = read_parts("page.css"), read_parts("wipe.js", "enlarge.js", "page.js")
    policy = content_policy(style, script, "img-src data:")
    return fill("page.html", style, script, policy, **page)


def _state(
    settings: Settings, recorded: Sequence[TrajectoryLine], log: Log, results: Results | None
) -> str:
    """The run's state in words."""
    if results:
        measured = results.trained_steps
        since = f" at step {measured}, trained to step {log.step} since"
        return f"measured{since if log.step > measured else ''}"
    if log.step >= settings.distill.steps:
        return "trained; 'guidefold evaluate' measures it"
    if log.step:
        return f"training: step {log.step} of {settings.distill.steps}"
    so_far = plural(len(recorded), "trajectory", "trajectories")
    return f"recording: {so_far} so far" if recorded else "begun"


def _warning(settings: Settings, log: Log, results: Results | None) -> str:
    """A warning where the trained adapter folds too little; empty while it trains."""
    training = log.step < settings.distill.steps
    return "" if training else undertrained(folded_share(results, log), settings)


def _lost(lines: int) -> str:
    return f"; {plural(lines, 'line')} of its log missing" if lines else ""


def _headline(results: Results) -> list[tuple[str, str]]:
    """The main results, each a figure with its meaning."""
    student, teacher = results.student, results.teacher
    passes = f"per picture; the guided teacher makes {teacher.passes_per_image:g}"
    own = float(f"{student.passes_per_image:g}")
    figures = [(plural(own, "pass", "passes"), passes)]
    if (faster := speed_up(results)) is not None:
        times = f"{teacher.denoiser_seconds_per_image:.3g} s to {seconds_of(student)[0]:.3g} s"
        slower = faster[0] < 1
        meaning = "the teacher's time" if slower else "as fast"
        meaning += f" in the denoiser with the adapter fused ({times} per picture)"
        loaded = f"with the LoRA loaded and not fused it {speed_in_words(faster[1])}"
        figures.append((f"{1 / faster[0] if slower else faster[0]:.2g}x", f"{meaning}; {loaded}"))
    if teacher.alignment and student.alignment is not None:
        ratio = student.alignment / teacher.alignment
        meaning = f"of the teacher's alignment, over {plural(results.prompts, 'paired prompt')}"
        if student.alignment_over_teacher_95:
            low, high = student.alignment_over_teacher_95
            meaning += f" (95% interval {low:.0%} to {high:.0%})"
        figures.append((f"{ratio:.1%}", meaning))
    figures += gains_kept(results)
    folded = 1 - results.residual_guidance.teacher_states.mean
    signal = "guidance signal" if results.few_steps is None else "guidance and of longer steps"
    figures.append((f"{folded:.0%}", f"of the {signal} folded, at the teacher's states"))
    return figures


def _table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row per kind; measures without a value have no column."""
    student = results.student
    names = {n: title for n, title in MEASURES.items() if getattr(student, n) is not None}
    rows = []
    for kind, steps, measured in results.rows():
        seconds = ["" if value is None else f"{value:.3f}" for value in seconds_of(measured)]
        values = [getattr(measured, name) for name in names]
        numbers = ["-" if value is None else f"{value:.3f}" for value in values]
        rows.append([NAMES[kind] + steps, f"{measured.passes_per_image:g}", *seconds, *numbers])
    return ["kind", "passes", "seconds", "seconds, LoRA not fused", *names.values()], rows


def _charts(log: Log, results: Results | None, adapter: Mapping[str, Any]) -> list[Chart]:
    """Every chart that the run has numbers for."""
    charts = []
    loss = [(float(line.step), line.loss) for line in log.training if line.loss is not None]
    held_out = [(float(line.step), line.residual_guidance) for line in log.validations]
    training = {"training loss": _smooth(loss), "residual guidance, held out": held_out}
    training = {name: points for name, points in training.items() if points}
    if training:
        charts.append(curves("Training", training, "step", "loss"))
    levels = _levels(log, results)
    if levels:
        title = "Residual guidance by noise level"
        charts.append(curves(title, levels, "timestep", "residual guidance", falling=True))
    if results and results.categories:
        groups = {
            name: {NAMES[kind]: getattr(shares, kind) for kind in KINDS}
            for name, shares in results.categories.items()
        }
        charts.append(bars("Alignment by category", groups, "aligned"))
    return charts + _dial_charts(adapter)


def _dial_charts(adapter: Mapping[str, Any]) -> list[Chart]:
    """The measured dial beside the nominal one, and the residual guidance at each mark."""
    if not adapter.get("dial_table"):
        return []
    dial = Dial.from_json(adapter)
    strengths = {
        "nearest to the teacher": [(m.guidance, m.strength) for m in dial.marks],
        "as the dial stands": [(m.guidance, dial.nominal_strength(m.guidance)) for m in dial.marks],
    }
    residual = {"on held-out states": [(m.guidance, m.residual) for m in dial.marks]}
    return [
        curves("The dial, measured", strengths, "guidance scale", "strength"),
        curves("Residual guidance by scale", residual, "guidance scale", "residual guidance"),
    ]


def _levels(log: Log, results: Results | None) -> dict[str, list[tuple[float, float]]]:
    """Residual guidance over timesteps, from the evaluation, else from the last validation."""
    lines = {}
    if results:
        residual = results.residual_guidance
        lines = {
            "at the teacher's states": residual.teacher_states.levels,
            "at the student's states": residual.student_states.levels,
        }
    elif log.validations:
        lines = {"held out, teacher's states": log.validations[-1].levels}
    return {
        name: [((level.low + level.high) / 2, level.residual) for level in levels]
        for name, levels in lines.items()
    }


def _smooth(points: Sequence[tuple[float, float]], most: int = 100) -> list[tuple[float, float]]:
    """Average neighbouring points, so that at most ``most`` are left."""
    size = -(-len(points) // most) or 1
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _costs(
    settings: Settings, recorded: Sequence[TrajectoryLine], log: Log, results: Results | None
) -> list[tuple[str, str]]:
    """The run's costs so far: seconds, memory, bytes."""
    costs = []
    if recorded:
        size = readable_size(sum(line.size for line in recorded))
        costs.append(("trajectories", f"{len(recorded)} recorded, {size} on disk"))
    seconds = sum(line.seconds for line in recorded)
    if seconds:
        costs.append(("recording", readable_duration(seconds)))
    for line in log.validations[-1:]:
        if line.training_seconds is not None:
            time, batch = readable_duration(line.training_seconds), settings.distill.batch_size
            steps, states = plural(line.step, "step"), plural(batch, "state")
            costs.append(("training", f"{time} for {steps} of {states}"))
    if log.peak_memory:
        size, where = readable_size(log.peak_memory.bytes), MEMORY[log.peak_memory.kind]
        costs.append(("peak memory", f"{size} {where}"))
    if results:
        adapter, denoiser = results.adapter_bytes, results.denoiser_bytes
        share = f"{adapter / denoiser:.1%} of the denoiser's {readable_size(denoiser)}"
        costs.append(("adapter", f"{readable_size(adapter)}, {share}"))
        costs.append(("measured on", results.machine))
    return costs
