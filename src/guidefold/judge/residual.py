"""Residual guidance along whole trajectories, at the teacher's states and at the student's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from guidefold.ground import Task, planned_steps
from guidefold.judge.trained_weights import StudentWeights
from guidefold.listen import Step, drive, fit_rows, follow, run_inputs
from guidefold.pipeline import Prompt
from guidefold.run import NoiseLevel, Residual, ResidualGuidance
from guidefold.session import Session
from guidefold.train import mean_residual, residual_by_level, squared_error

Errors = tuple[float, float, float]
"""``(timestep, student's error, unguided teacher's error)`` of one step."""
RUNS_PER_PROMPT = 6  # runs of the pipeline per prompt: three at each side's states


def measure_residual_guidance(
    session: Session,
    weights: StudentWeights,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    progress: Task,
) -> ResidualGuidance:
    """Measure residual guidance at the states that the teacher visits, and at the student's.

    Args:
        session: The session, with the student's weights loaded.
        weights: The student's weights, which are switched off for the teacher.
        prompts: The prompts of the trajectories.
        seeds: A seed per prompt, at least.
        progress: Advances by one for each denoising step.
    """
    at_teachers: list[Errors] = []
    at_students: list[Errors] = []
    for prompt, seed in zip(prompts, seeds, strict=False):
        teacher_errors, student_errors = _trajectory_errors(
            session, weights, prompt, seed, progress
        )
        at_teachers += teacher_errors
        at_students += student_errors
    return ResidualGuidance(
        teacher_states=by_level(at_teachers), student_states=by_level(at_students)
    )


def _trajectory_errors(
    session: Session, weights: StudentWeights, prompt: Prompt, seed: int, progress: Task
) -> tuple[list[Errors], list[Errors]]:
    """Errors at the states that the teacher visits, and at those that the student visits."""
    findings, pipeline, steps = session.findings, session.pipeline, session.settings.evaluate.steps
    on, off = (
        run_inputs(pipeline, findings, session.settings.pipeline, [prompt], guidance, steps)
        for guidance in (session.compared.guidance, findings.off)
    )

    def visit(inputs: dict[str, Any], states: Sequence[Step] | None = None) -> list[Step]:
        """Run the pipeline along given states; None lets it choose its own."""
        call = pipeline, inputs, [seed], session.denoisers
        with planned_steps(steps, progress.advance) as on_step:
            if states is None:
                return drive(*call, on_step=on_step)
            return follow(*call, states, on_step=on_step)

    with weights.off(session.denoiser):
        target = visit(on)
        unguided = visit(off, target)
    at_teachers = _errors(visit(off, target), unguided, target)
    student = visit(off)
    with weights.off(session.denoiser):
        target, unguided = visit(on, student), visit(off, student)
    return at_teachers, _errors(student, unguided, target)


def _errors(
    student: Sequence[Step], unguided: Sequence[Step], target: Sequence[Step]
) -> list[Errors]:
    """The errors of each step."""
    return [
        (t.timestep, _error(s, t), _error(u, t))
        for s, u, t in zip(student, unguided, target, strict=True)
    ]


def _error(one: Step, target: Step) -> float:
    """Mean squared error of one picture; ``target`` takes the rows of its model output."""
    rows = len(one.model_output)
    return float(squared_error(one.model_output, fit_rows(target.model_output, rows)).mean())


def by_level(errors: Sequence[Errors]) -> Residual:
    """Residual guidance per noise level, and its mean."""
    timesteps, student_errors, unguided_errors = zip(*errors, strict=True)
    levels = residual_by_level(timesteps, student_errors, unguided_errors)
    records = [NoiseLevel(**asdict(level)) for level in levels]
    return Residual(mean=mean_residual(levels), levels=records)
