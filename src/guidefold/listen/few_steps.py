"""A student's coarse steps along a teacher's fine ones. Equations: docs/method.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from guidefold.ground import CaptureError, UnfoldableError
from guidefold.listen.capture import drive, follow
from guidefold.listen.dry_run import RandomStub
from guidefold.listen.listener import Step
from guidefold.listen.output_map import fit_rows
from guidefold.listen.parts import pack, unpack
from guidefold.listen.refusal import explained_failure
from guidefold.listen.solver_step import GUIDANCE_ALONE, SolverProbe, single_step_remedy
from guidefold.listen.step_grid import StepGrid, find_fine_steps
from guidefold.pipeline import install_scheduler

SIGMAS = ("karras", "exponential", "beta")
"""Spacings of noise levels that a scheduler's configuration switches on by ``use_..._sigmas``."""


@dataclass
class GridSearch:
    """Finds teachers' numbers of steps for students', and checks the solver.

    The denoiser is stubbed: the pipeline's own runs give the grids.

    Attributes:
        pipeline: The pipeline.
        inputs: The student's call arguments.
        listened: The denoisers.
        seed: The seed of the runs.
    """

    pipeline: DiffusionPipeline
    inputs: Mapping[str, Any]
    listened: Mapping[str, nn.Module]
    seed: int
    _visited: dict[int, tuple[list[float], torch.Tensor]] = field(default_factory=dict)
    _last: tuple[int, list[Step]] = (0, [])

    def find(self, student: int, least: int) -> StepGrid:
        """Find the teacher's number of steps for a student's.

        Args:
            student: The student's number of steps.
            least: The least number of the teacher's steps.

        Raises:
            UnfoldableError: The solver does not serve a few-step student, or no grid holds its
                steps.
            PipelineError: The pipeline fails with its solver, or at a number of steps.
        """
        with explained_failure(self.pipeline, GUIDANCE_ALONE):
            return self._find(student, least)

    def _find(self, student: int, least: int) -> StepGrid:
        scheduler = self.pipeline.scheduler
        name, config = type(scheduler).__name__, scheduler.config
        timesteps, first = self._visit(student, before_step=SolverProbe())
        teacher, indices = find_fine_steps(lambda n: self._visit(n)[0], student, least, name)
        # Equal timesteps may stand for other noise: the first states must be the same as well.
        if not torch.equal(first, self._visit(teacher)[1]):
            raise UnfoldableError(
                f"{name}: runs of {student} and of {teacher} steps begin at other states",
                single_step_remedy(scheduler),
            )
        self._walk(student, teacher, indices, name)
        return StepGrid(
            student=student,
            teacher=teacher,
            indices=indices,
            solver=name,
            spacing=config.get("timestep_spacing"),
            shift=None if config.get("use_dynamic_shifting") else config.get("shift"),
            clip_sample=config.get("clip_sample"),
            sigmas=next((name for name in SIGMAS if config.get(f"use_{name}_sigmas")), None),
            timesteps=tuple(timesteps),
        )

    def _visit(self, count: int, **listening: Any) -> tuple[list[float], torch.Tensor]:
        """The timesteps of a run of some steps, and its first state."""
        if listening or count not in self._visited:
            steps = drive(*self._call(count), stub=RandomStub(self.seed), **listening)
            self._last = count, steps
            self._visited[count] = [step.timestep for step in steps], steps[0].state
        return self._visited[count]

    def _walk(self, student: int, teacher: int, indices: tuple[int, ...], name: str) -> None:
        """Check that a student's run passes through a teacher's states."""
        if self._last[0] != teacher:  # whole runs are large: only the last one is kept
            self._visited.pop(teacher)
            self._visit(teacher)
        led, probe = coarse_steps(self._last[1], indices), SolverProbe()
        try:
            stub = RandomStub(self.seed)
            follow(*self._call(student), led, stub=stub, before_step=probe)
            probe.outputs_that_reach(led)
        except CaptureError as error:
            raise UnfoldableError(
                f"{name}: {student} steps do not pass through the states of {teacher}: "
                f"{error.message}",
                GUIDANCE_ALONE,
            ) from error

    def _call(
        self, count: int
    ) -> tuple[DiffusionPipeline, dict[str, Any], list[int], Mapping[str, nn.Module]]:
        call = {**self.inputs, "num_inference_steps": count}
        return self.pipeline, call, [self.seed], self.listened


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
    install_scheduler(pipeline, kind.from_config(config, timestep_spacing="trailing"))
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
) -> list[Step]:
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
        The fine run's steps at the coarse states, each leading to where it stands at the next
        one's index.

    Raises:
        CaptureError: The fine run begins at another state than the coarse one.
    """
    ends: dict[int, list[torch.Tensor]] = {}
    place = {index: k for k, index in enumerate(indices)}

    def visited(index: int, part: int, like: torch.Tensor) -> torch.Tensor:
        step = driven[place[index]]
        return fit_rows(unpack(step.state, step.shapes)[part], len(like)).to(like)

    def redirect(
        index: int, state: torch.Tensor, next_state: torch.Tensor, part: int = 0
    ) -> torch.Tensor:
        if index == 0 and not torch.equal(state, visited(0, part, state)):
            raise CaptureError("the teacher's first state is not the student's")
        if index + 1 not in place:
            return next_state
        ends.setdefault(index + 1, []).append(next_state.detach().clone())
        return visited(index + 1, part, next_state)

    steps = drive(pipeline, inputs, seeds, listened, redirect=redirect, **listening)
    led = [
        replace(steps[first], next_state=pack(ends[end]) if steps[first].shapes else ends[end][0])
        for first, end in pairwise(indices)
    ]
    return [*led, replace(steps[indices[-1]], next_state=steps[-1].next_state)]
