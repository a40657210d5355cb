"""Residual guidance along whole trajectories, at the teacher's states and at the student's.

Of a student that takes fewer steps than the teacher it is the step residual: the target is the
output with which the student's step ends where the teacher's steps end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import torch

from guidefold.ground import Task, planned_steps
from guidefold.judge.trained_weights import StudentWeights
from guidefold.listen import (
    SolverProbe,
    Step,
    StepGrid,
    coarse_steps,
    drive,
    fit_rows,
    follow,
    restart,
    run_inputs,
)
from guidefold.pipeline import Prompt
from guidefold.run import NoiseLevel, Residual, ResidualGuidance
from guidefold.session import Session
from guidefold.train import mean_residual, residual_by_level, squared_error

Result = TypeVar("Result")
Errors = tuple[float, float, float]
"""``(timestep, student's error, unguided teacher's error)`` of one step."""
RUNS = 3  # of the pipeline at each side's states: target, unguided and student


def steps_per_prompt(session: Session) -> int:
    """The number of denoising steps that measure one prompt."""
    grid, steps = session.findings.steps, session.settings.evaluate.steps
    return 2 * (RUNS * steps if grid is None else grid.teacher + (RUNS - 1) * grid.student)


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
    runs = _Runs(session, prompt, seed, progress)
    if session.findings.steps is not None:
        return _few_step_errors(runs, weights, session.findings.steps)
    with weights.off(session.denoiser):
        target = runs.drive(runs.on)
        unguided = runs.follow(runs.off, target)
    at_teachers = _errors(runs.follow(runs.off, target), unguided, _outputs(target))
    student = runs.drive(runs.off)
    with weights.off(session.denoiser):
        target, unguided = runs.follow(runs.on, student), runs.follow(runs.off, student)
    return at_teachers, _errors(student, unguided, _outputs(target))


def _few_step_errors(
    runs: _Runs, weights: StudentWeights, grid: StepGrid
) -> tuple[list[Errors], list[Errors]]:
    """:func:`_trajectory_errors` of a student that takes fewer steps."""
    denoiser, solver = runs.session.denoiser, SolverProbe()
    with weights.off(denoiser):
        states = coarse_steps(runs.drive(runs.on), grid.indices)
        unguided = runs.follow(runs.off, states, before_step=solver)
    target = solver.outputs_that_reach(states)
    at_teachers = _errors(runs.follow(runs.off, states), unguided, target)
    student = runs.drive(runs.off)
    with weights.off(denoiser):
        led = runs.restart(runs.on, student, grid.indices)
        unguided = runs.follow(runs.off, student, before_step=solver)
    return at_teachers, _errors(student, unguided, solver.outputs_that_reach(led))


class _Runs:
    """Runs of one prompt: the arguments of the guided and the unguided call, and progress.

    Args:
        session: The session.
        prompt: The prompt.
        seed: The seed of the first state.
        progress: Advances by one for each denoising step.
    """

    def __init__(self, session: Session, prompt: Prompt, seed: int, progress: Task) -> None:
        self.session, self.seed, self.progress = session, seed, progress
        settings, grid, findings = session.settings, session.findings.steps, session.findings
        steps = settings.evaluate.steps
        fine, coarse = (steps, steps) if grid is None else (grid.teacher, grid.student)
        call = session.pipeline, findings, settings.pipeline, [prompt]
        self.on = run_inputs(*call, session.compared.guidance, fine)
        self.off = run_inputs(*call, findings.off, coarse)

    def drive(self, inputs: dict[str, Any]) -> list[Step]:
        """A run that goes its own way."""
        return self._run(drive, inputs)

    def follow(
        self, inputs: dict[str, Any], states: Sequence[Step], **listening: Any
    ) -> list[Step]:
        """A run along given states."""
        return self._run(follow, inputs, states, **listening)

    def restart(
        self, inputs: dict[str, Any], states: Sequence[Step], indices: Sequence[int]
    ) -> list[Step]:
        """A fine run that is restarted at each of a coarse run's states."""
        return self._run(restart, inputs, states, indices)

    def _run(
        self, run: Callable[..., Result], inputs: dict[str, Any], *args: Any, **listening: Any
    ) -> Result:
        call = self.session.pipeline, inputs, [self.seed], self.session.denoisers
        with planned_steps(inputs["num_inference_steps"], self.progress.advance) as on_step:
            return run(*call, *args, on_step=on_step, **listening)


def _outputs(steps: Sequence[Step]) -> list[torch.Tensor]:
    return [step.model_output for step in steps]


def _errors(
    student: Sequence[Step], unguided: Sequence[Step], target: Sequence[torch.Tensor]
) -> list[Errors]:
    """The errors of each step."""
    return [
        (s.timestep, _error(s, t), _error(u, t))
        for s, u, t in zip(student, unguided, target, strict=True)
    ]


def _error(one: Step, target: torch.Tensor) -> float:
    """Mean squared error of one picture; ``target`` takes the rows of its model output."""
    output = one.model_output
    return float(squared_error(output, fit_rows(target, len(output))).mean())


def by_level(errors: Sequence[Errors]) -> Residual:
    """Residual guidance per noise level, and its mean."""
    timesteps, student_errors, unguided_errors = zip(*errors, strict=True)
    levels = residual_by_level(timesteps, student_errors, unguided_errors)
    records = [NoiseLevel(**asdict(level)) for level in levels]
    return Residual(mean=mean_residual(levels), levels=records)
