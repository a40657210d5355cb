"""Measure teacher, unguided teacher and student on the same held-out prompts and seeds."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from guidefold.adapter import adapter_off, fuse_adapter
from guidefold.capture import Step, drive, follow
from guidefold.export import open_adapter
from guidefold.gallery import Gallery
from guidefold.objective import mean_residual, residual_by_level, squared_error
from guidefold.pipelines import call_inputs
from guidefold.progress import Task, task
from guidefold.runs import write_bytes, write_json
from guidefold.sample import (
    Drawn,
    Picture,
    draw_session,
    grid,
    heading,
    picture_seeds,
    png,
)
from guidefold.session import Session, open_session, require_run
from guidefold.settings import KINDS, Kind, Settings

Errors = tuple[float, float, float]
Judge = Callable[[Sequence[Picture], Sequence[str]], Sequence[bool]]
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
    state_prompts = prompts[: asked.state_prompts]
    few = prompts[: max(asked.batch_size, asked.state_prompts)]
    total = (len(KINDS) * len(prompts) + 6 * len(state_prompts) + len(few)) * asked.steps
    with task("Measuring", total) as progress:
        seeds = picture_seeds(session.settings.seed, len(prompts))
        drawn: dict[Kind, Drawn] = {}
        gallery = Gallery(session)
        for kind in KINDS:  # the student last: it loads the adapter
            if kind == "student":
                open_adapter(session, session.strength)
            drawn[kind] = gallery.draw(kind, prompts, seeds, progress)
        residual = _residual(session, state_prompts, progress)
        fuse_adapter(session.denoiser)
        fused = draw_session(session, few, seeds[: len(few)], False, progress)
    results = _results(session, prompts, drawn, residual, judge)
    results["student"]["denoiser_seconds_per_image_fused"] = fused.denoiser_seconds_per_image
    write_json(session.run / "results.json", results)
    rows = min(asked.grid_prompts, len(prompts))
    triples = [[drawn[kind].pictures[k] for kind in KINDS] for k in range(rows)]
    headings = [heading(kind, drawn[kind]) for kind in KINDS]
    write_bytes(session.run / "grid.png", png(grid(triples, headings, prompts[:rows])))
    return results


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
    judge: Judge | None,
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for kind in KINDS:
        right = judge(drawn[kind].pictures, prompts) if judge is not None else None
        results[kind] = {
            "alignment": None if right is None else sum(right) / len(right),
            "passes_per_image": drawn[kind].passes_per_image,
            "denoiser_seconds_per_image": drawn[kind].denoiser_seconds_per_image,
        }
    return {
        **results,
        "residual_guidance": residual,
        "relative_distance": relative_distance(drawn),
        "guidance": session.guidance,
        "strength": session.strength,
        "prompts": len(prompts),
        "steps": session.settings.evaluate.steps,
        "versions": {name: version(name) for name in LIBRARIES},
        "machine": f"{platform.machine()}, device {session.pipeline.device}",
    }


def _pixels(pictures: Sequence[Picture]) -> np.ndarray:
    return np.stack([np.asarray(p.convert("RGB"), dtype=np.float32) / 255 for p in pictures])
