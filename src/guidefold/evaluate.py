"""Measure teacher, unguided teacher and student on the same held-out prompts and seeds."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from guidefold import dial
from guidefold.adapter import adapter_off, fuse_adapter
from guidefold.alignment import Judge, by_category, ratio_interval, share
from guidefold.capture import Step, drive, follow
from guidefold.export import open_adapter
from guidefold.gallery import Gallery
from guidefold.objective import mean_residual, residual_by_level, squared_error
from guidefold.pipelines import call_inputs
from guidefold.progress import Task, task
from guidefold.runs import require_run, write_bytes, write_json
from guidefold.sample import (
    Drawn,
    Picture,
    draw_session,
    grid,
    heading,
    picture_seeds,
    png,
)
from guidefold.session import Session, open_session
from guidefold.settings import KINDS, Kind, Settings

Errors = tuple[float, float, float]
INDEX = "index.json"
LIBRARIES = ("guidefold", "torch", "diffusers", "peft", "transformers")


def evaluate(settings: Settings, judge: Judge | None = None) -> dict[str, Any]:
    """Measure a run's adapter; write ``results.json`` and ``grid.png`` into its folder.

    Pictures that were drawn before, by the same pipeline and the same adapter, are not drawn again.

    Args:
        settings: The run's.
        judge: Tells of each picture whether it shows what its prompt says; None measures no
            alignment.

    Returns:
        What ``results.json`` holds.

    Raises:
        RunError: There is no adapter yet.
        MismatchError: The adapter belongs to another base.
    """
    require_run(Path(settings.run))
    with open_session(settings) as session:
        return measure(session, judge)


def measure(session: Session, judge: Judge | None = None) -> dict[str, Any]:
    """:func:`evaluate` within an open session; its pipeline is left with the adapter fused."""
    asked = session.settings.evaluate
    prompts = [p.text for p in session.held_out[: asked.prompts]]
    seeds = picture_seeds(session.settings.seed, len(prompts))
    rows = min(asked.dial_prompts, len(prompts))
    few = prompts[: max(asked.batch_size, asked.state_prompts)]
    drawn: dict[Kind, Drawn] = {}
    columns: dict[str, list[list[str]]] = {"teacher": [], "student": []}
    with task("Measuring", _steps_in_all(session, len(prompts), rows, len(few))) as progress:
        gallery = Gallery(session)
        for kind in KINDS:  # the student last: it loads the adapter
            if kind == "student":
                if rows:
                    columns["teacher"] = dial.draw_teacher(
                        gallery, prompts[:rows], seeds[:rows], progress
                    )
                open_adapter(session, session.strength)
            drawn[kind] = gallery.draw(kind, prompts, seeds, progress)
        if rows:
            columns["student"] = dial.draw_student(gallery, prompts[:rows], seeds[:rows], progress)
        residual = _residual(session, prompts[: asked.state_prompts], progress)
        fuse_adapter(session.denoiser)
        off = session.findings.off
        fused = draw_session(session, few, seeds[: len(few)], off, progress)
    verdicts = _verdicts(prompts, drawn, judge)
    results = _results(session, prompts, drawn, residual, verdicts, judge)
    results["student"]["denoiser_seconds_per_image_fused"] = fused.denoiser_seconds_per_image
    write_json(gallery.folder / INDEX, _index(session, prompts, drawn, columns, verdicts, judge))
    write_json(session.run / "results.json", results)
    _write_grid(session, prompts, drawn)
    return results


def _steps_in_all(session: Session, prompts: int, rows: int, fused: int) -> int:
    """Denoising steps of a measurement, picture by picture."""
    asked = session.settings.evaluate
    states = 6 * min(asked.state_prompts, prompts)
    drawn = len(KINDS) * prompts + 2 * rows * len(dial.STRENGTHS)
    return (drawn + states + fused) * asked.steps


def _verdicts(
    prompts: list[str], drawn: dict[Kind, Drawn], judge: Judge | None
) -> dict[Kind, list[bool]]:
    """What the judge says of every picture; empty without a judge."""
    if judge is None:
        return {}
    return {kind: list(judge.aligned(drawn[kind].pictures, prompts)) for kind in KINDS}


def _write_grid(session: Session, prompts: list[str], drawn: dict[Kind, Drawn]) -> None:
    rows = min(session.settings.evaluate.grid_prompts, len(prompts))
    triples = [[drawn[kind].pictures[k] for kind in KINDS] for k in range(rows)]
    headings = [heading(kind, drawn[kind]) for kind in KINDS]
    write_bytes(session.run / "grid.png", png(grid(triples, headings, prompts[:rows])))


def _index(
    session: Session,
    prompts: list[str],
    drawn: dict[Kind, Drawn],
    columns: dict[str, list[list[str]]],
    verdicts: dict[Kind, list[bool]],
    judge: Judge | None,
) -> dict[str, Any]:
    """Which kept picture shows what: prompt by prompt, and strength by strength."""
    seeds = picture_seeds(session.settings.seed, len(prompts))
    off, g_ref = session.findings.off, session.settings.adapter.g_ref
    pictures = [
        {
            "prompt": prompt,
            "seed": seeds[k],
            "category": judge.category(prompt) if judge else None,
            "files": {kind: drawn[kind].files[k] for kind in KINDS},
            "aligned": {kind: given[k] for kind, given in verdicts.items()},
        }
        for k, prompt in enumerate(prompts)
    ]
    steps = [
        {"strength": s, "guidance": dial.guidance_at(s, off, g_ref), "teacher": t, "student": own}
        for s, t, own in zip(dial.STRENGTHS, columns["teacher"], columns["student"], strict=False)
    ]
    return {"pictures": pictures, "dial": steps}


def relative_distance(drawn: dict[Kind, Drawn]) -> float:
    """``E|student - teacher|^2 / E|unguided - teacher|^2`` over pixels: 0 is the CFG picture."""
    pixels = {kind: _pixels(drawn[kind].pictures) for kind in KINDS}
    student = np.square(pixels["student"] - pixels["teacher"]).mean()
    unguided = np.square(pixels["unguided"] - pixels["teacher"]).mean()
    return float(student / max(unguided, 1e-12))


def _residual(session: Session, prompts: Sequence[str], progress: Task) -> dict[str, Any]:
    """Residual guidance at the teacher's states and at the student's, adapter loaded."""
    settings, findings = session.settings, session.findings
    listened = {findings.denoiser: session.denoiser}
    argument = findings.guidance_argument
    rows: dict[str, list[Errors]] = {"teacher_states": [], "student_states": []}
    for prompt, seed in zip(prompts, picture_seeds(settings.seed, len(prompts)), strict=True):
        call, negative = settings.pipeline.call, settings.pipeline.negative_prompt
        inputs = call_inputs(session.pipeline, [prompt], call, negative)
        off = {**inputs, argument: findings.off, "num_inference_steps": settings.evaluate.steps}
        on = {**off, argument: session.guidance}
        run = (session.pipeline, [seed], listened)
        with adapter_off(session.denoiser):
            target = _go(run, on, None, progress)
            unguided = _go(run, off, target, progress)
        rows["teacher_states"] += _errors(_go(run, off, target, progress), unguided, target)
        student = _go(run, off, None, progress)
        with adapter_off(session.denoiser):
            target = _go(run, on, student, progress)
            unguided = _go(run, off, student, progress)
        rows["student_states"] += _errors(student, unguided, target)
    found = {}
    for name, errors in rows.items():
        timesteps, student_errors, unguided_errors = zip(*errors, strict=True)
        levels = residual_by_level(timesteps, student_errors, unguided_errors)
        found[name] = {"mean": mean_residual(levels), "levels": [asdict(x) for x in levels]}
    return found


def _go(
    run: tuple[Any, list[int], Any], inputs: dict[str, Any], states: Any, progress: Task
) -> list[Step]:
    """Drive, or follow given states."""
    pipeline, seeds, listened = run
    if states is None:
        return drive(pipeline, inputs, seeds, listened, on_step=progress.advance)
    return follow(pipeline, inputs, seeds, listened, states, on_step=progress.advance)


def _errors(
    student: Sequence[Step], unguided: Sequence[Step], target: Sequence[Step]
) -> list[Errors]:
    """``(timestep, student's error, unguided teacher's error)`` of each step."""
    return [
        (
            t.timestep,
            float(squared_error(s.model_output, t.model_output)[0]),
            float(squared_error(u.model_output, t.model_output)[0]),
        )
        for s, u, t in zip(student, unguided, target, strict=True)
    ]


def _results(
    session: Session,
    prompts: list[str],
    drawn: dict[Kind, Drawn],
    residual: dict[str, Any],
    verdicts: dict[Kind, list[bool]],
    judge: Judge | None,
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for kind in KINDS:
        results[kind] = {
            "alignment": share(verdicts[kind]) if verdicts else None,
            "passes_per_image": drawn[kind].passes_per_image,
            "denoiser_seconds_per_image": drawn[kind].denoiser_seconds_per_image,
        }
    if verdicts and judge is not None:
        bounds = ratio_interval(verdicts["student"], verdicts["teacher"])
        results["student"]["alignment_over_teacher_95"] = bounds
        results["categories"] = by_category(verdicts, [judge.category(p) for p in prompts])
    weights = [*session.denoiser.parameters(), *session.denoiser.buffers()]
    return {
        **results,
        "residual_guidance": residual,
        "relative_distance": relative_distance(drawn),
        "guidance": session.guidance,
        "strength": session.strength,
        "prompts": len(prompts),
        "steps": session.settings.evaluate.steps,
        "adapter_bytes": sum(
            path.stat().st_size for path in (session.run / "adapter").glob("*.safetensors")
        ),
        "denoiser_bytes": sum(w.numel() * w.element_size() for w in weights),
        "versions": {name: version(name) for name in LIBRARIES},
        "machine": f"{platform.machine()}, device {session.pipeline.device}",
    }


def _pixels(pictures: Sequence[Picture]) -> np.ndarray:
    return np.stack([np.asarray(p.convert("RGB"), dtype=np.float32) / 255 for p in pictures])
