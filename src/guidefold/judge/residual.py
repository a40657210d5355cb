"""judge.residual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from guidefold.ground import Task, in_all
from guidefold.judge.trained_weights import StudentWeights
from guidefold.listen import Step, drive, fit_rows, follow, run_inputs
from guidefold.pipeline import Prompt
from guidefold.run import NoiseLevel, Residual, ResidualGuidance
from guidefold.session import Session
from guidefold.train import mean_residual, residual_by_level, squared_error

Errors = tuple[float, float, float]


RUNS_PER_PROMPT = 6  # of the pipeline, to measure residual guidance


def measure_residual(
    session: Session,
    weights: StudentWeights,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    progress: Task,
) -> ResidualGuidance:
    """Residual guidance at the teacher's states and at the student's, adapter loaded."""
    at_teachers: list[Errors] = []
    at_students: list[Errors] = []
    for prompt, seed in zip(prompts, seeds, strict=False):
        of_teacher, of_student = _along(session, weights, prompt, seed, progress)
        at_teachers += of_teacher
        at_students += of_student
    return ResidualGuidance(
        teacher_states=by_level(at_teachers), student_states=by_level(at_students)
    )


def _along(
    session: Session, weights: StudentWeights, prompt: Prompt, seed: int, progress: Task
) -> tuple[list[Errors], list[Errors]]:
    """Errors at the states that the teacher visits, and at those that the student visits."""
    findings, pipeline, steps = session.findings, session.pipeline, session.settings.evaluate.steps
    asked = session.settings.pipeline
    on, off = (
        run_inputs(pipeline, findings, asked, [prompt], guidance, steps)
        for guidance in (session.compared.guidance, findings.off)
    )
    listened = session.denoisers

    def go(inputs: dict[str, Any], states: Sequence[Step] | None = None) -> list[Step]:
        with in_all(steps, progress.advance) as told:
            if states is None:
                return drive(pipeline, inputs, [seed], listened, on_step=told)
            return follow(pipeline, inputs, [seed], listened, states, on_step=told)

    with weights.off(session.denoiser):
        target = go(on)
        unguided = go(off, target)
    at_teachers = _errors(go(off, target), unguided, target)
    student = go(off)
    with weights.off(session.denoiser):
        target, unguided = go(on, student), go(off, student)
    return at_teachers, _errors(student, unguided, target)


def _errors(
    student: Sequence[Step], unguided: Sequence[Step], target: Sequence[Step]
) -> list[Errors]:
    """``(timestep, student's error, unguided teacher's error)`` of each step."""
    return [
        (
            t.timestep,
            _error(s, t),
            _error(u, t),
        )
        for s, u, t in zip(student, unguided, target, strict=True)
    ]


def _error(one: Step, target: Step) -> float:
    """Mean squared error of one picture, whatever rows its model output has."""
    rows = len(one.model_output)
    return float(squared_error(one.model_output, fit_rows(target.model_output, rows)).mean())


def by_level(errors: Sequence[Errors]) -> Residual:
    """Residual guidance per noise level, and its mean."""
    timesteps, student_errors, unguided_errors = zip(*errors, strict=True)
    levels = residual_by_level(timesteps, student_errors, unguided_errors)
    named = [NoiseLevel(**asdict(level)) for level in levels]
    return Residual(mean=mean_residual(levels), levels=named)
