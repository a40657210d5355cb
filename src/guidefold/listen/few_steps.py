"""A student's coarse steps along a teacher's fine ones. Equations: docs/method.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from guidefold.ground import CaptureError, UnfoldableError
from guidefold.listen.capture import drive
from guidefold.listen.dry_run import RandomStub
from guidefold.listen.listener import Step
from guidefold.listen.output_map import fit_rows
from guidefold.listen.solver_step import SINGLE_STEP, SolverProbe
from guidefold.listen.step_grid import StepGrid, find_fine_steps


def find_step_grid(
    pipeline: DiffusionPipeline,
    inputs: Mapping[str, Any],
    listened: Mapping[str, nn.Module],
    student: int,
    least: int,
    seed: int,
) -> StepGrid:
    """Find the teacher's number of steps for a student's, and check the solver.

    The denoiser is stubbed: the pipeline's own runs give the grids.

    Args:
        pipeline: The pipeline.
        inputs: The student's call arguments.
        listened: The denoisers.
        student: The student's number of steps.
        least: The least number of the teacher's steps.
        seed: The seed of the runs.

    Raises:
        UnfoldableError: The solver does not serve a few-step student, or no grid holds its steps.
    """
    stub, scheduler = RandomStub(seed), pipeline.scheduler
    name = type(scheduler).__name__

    def visit(steps: int, **listening: Any) -> list[Step]:
        stub.clear()
        call = {**inputs, "num_inference_steps": steps}
        return drive(pipeline, call, [seed], listened, stub=stub, **listening)

    visited = {student: visit(student, before_step=SolverProbe())}

    def grid(steps: int) -> list[float]:
        if steps not in visited:
            visited[steps] = visit(steps)
        return [step.timestep for step in visited[steps]]

    teacher, indices = find_fine_steps(grid, student, least, name)
    # Equal timesteps may stand for other noise: the first states must be the same as well.
    if not torch.equal(visited[student][0].state, visited[teacher][0].state):
        raise UnfoldableError(
            f"{name}: runs of {student} and of {teacher} steps begin at other states", SINGLE_STEP
        )
    config = scheduler.config
    return StepGrid(
        student=student,
        teacher=teacher,
        indices=indices,
        solver=name,
        spacing=config.get("timestep_spacing"),
        shift=config.get("shift"),
    )


def space_trailing(pipeline: DiffusionPipeline) -> bool:
    """Give a pipeline's scheduler trailing timesteps where it has leading ones.

    Leading grids of fewer steps begin at less noise, so that no grid holds another.

    Returns:
        Whether the scheduler was replaced.
    """
    config = pipeline.scheduler.config
    if config.get("timestep_spacing") != "leading":
        return False
    kind = type(pipeline.scheduler)
    pipeline.scheduler = kind.from_config(config, timestep_spacing="trailing")
    return True


def coarse_steps(fine: Sequence[Step], indices: Sequence[int]) -> list[Step]:
    """The steps of a fine run that are a coarse run's: each leads to the next coarse state.

    Args:
        fine: The fine run.
        indices: The indices of the coarse states in it.
    """
    ends = [*indices[1:], len(fine)]
    return [
        replace(fine[first], next_state=fine[end - 1].next_state)
        for first, end in zip(indices, ends, strict=True)
    ]


def restart(
    pipeline: DiffusionPipeline,
    inputs: Mapping[str, Any],
    seeds: Sequence[int],
    listened: Mapping[str, nn.Module],
    driven: Sequence[Step],
    indices: Sequence[int],
    **listening: Any,
) -> list[torch.Tensor]:
    """Restart a fine run at each state of a coarse run.

    Args:
        pipeline: The pipeline.
        inputs: The fine run's call arguments.
        seeds: The coarse run's seeds.
        listened: The denoisers.
        driven: The coarse run.
        indices: The indices of the coarse states in the fine run.
        **listening: Further arguments of :class:`~guidefold.listen.listener.Listener`.

    Returns:
        For each coarse state, where the fine run stands at the next one's index.

    Raises:
        CaptureError: The fine run begins at another state than the coarse one.
    """
    ends: list[torch.Tensor] = []
    place = {index: k for k, index in enumerate(indices)}

    def redirect(index: int, state: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        first = fit_rows(driven[0].state, len(state))
        if index == 0 and not torch.equal(state, first):
            raise CaptureError("the teacher's first state is not the student's")
        if index + 1 not in place:
            return next_state
        ends.append(next_state.detach().clone())
        return fit_rows(driven[place[index + 1]].state, len(next_state)).to(next_state)

    steps = drive(pipeline, inputs, seeds, listened, redirect=redirect, **listening)
    return [*ends, steps[-1].next_state]
