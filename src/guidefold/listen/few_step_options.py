"""The few-step students that a pipeline can have: with which solver, at how many steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline

from guidefold.ground import GuidefoldError, task
from guidefold.listen.call import call_inputs
from guidefold.listen.few_steps import GridSearch, space_trailing
from guidefold.listen.findings import Findings
from guidefold.listen.probe_checks import PROMPT, SEED
from guidefold.listen.solver_step import GUIDANCE_ALONE
from guidefold.listen.step_grid import StepGrid
from guidefold.pipeline import (
    Prompt,
    change_solver,
    denoisers,
    install_scheduler,
    single_step_solvers,
)

STUDENTS = (4, 5, 8, 10)
"""The numbers of a student's steps that are tried."""


@dataclass(frozen=True)
class FewStepOptions:
    """The few-step students that a pipeline can have; as text, one sentence for people.

    Attributes:
        grids: The students that can be had, each with the teacher's number of steps.
        scheduler: What ``pipeline.scheduler`` must be for them; None where the pipeline's own
            serves.
        why: The reason where there are none.
        remedy: What would help then.
    """

    grids: tuple[StepGrid, ...] = ()
    scheduler: str | None = None
    why: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        if not self.grids:
            return f"Steps cannot be folded: {self.why}."
        first, students = self.grids[0], dict[int, list[str]]()
        for grid in self.grids:
            students.setdefault(grid.teacher, []).append(str(grid.student))
        named = f"pipeline.scheduler={self.scheduler}" if self.scheduler else first.solver
        spacing = f" ({first.spacing} spacing)" if first.spacing else ""
        numbers = [f"{_listed(few)} steps for a teacher of {n}" for n, few in students.items()]
        return f"Steps can be folded with {named}{spacing}: student {', '.join(numbers)}."

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        if not self.grids:
            return {"foldable": False, "why": self.why, "remedy": self.remedy}
        first = self.grids[0]
        return {
            "foldable": True,
            "scheduler": self.scheduler,
            "solver": first.solver,
            "timestep_spacing": first.spacing,
            "teacher_steps": {str(grid.student): grid.teacher for grid in self.grids},
        }


def find_few_step_options(
    pipeline: DiffusionPipeline,
    findings: Findings,
    call: Mapping[str, Any],
    negative_prompt: str | None,
    rows: Sequence[Prompt],
    least_steps: int,
    students: Sequence[int] = STUDENTS,
) -> FewStepOptions:
    """Find out which few-step students a probed pipeline can have.

    Tried are the pipeline's own solver, then the single-step solvers that fit it. The denoiser is
    stubbed, and the pipeline's scheduler is its own again at the end.

    Args:
        pipeline: The pipeline.
        findings: What the probe found.
        call: The user's further call arguments.
        negative_prompt: The negative prompt of all pictures, if any.
        rows: Rows of the user's inputs, whose further fields the pipeline is called with.
        least_steps: The least number of the teacher's steps.
        students: The students' numbers of steps, at least one.
    """
    own = pipeline.scheduler
    prompt = rows[0] if rows else Prompt.of(PROMPT)
    inputs = {
        **call_inputs(pipeline, [prompt], call, negative_prompt),
        **findings.scale_arguments(findings.off),
    }
    listened, refused = denoisers(pipeline, findings.denoisers), list[tuple[str, GuidefoldError]]()
    solvers = [None, *single_step_solvers(own)]
    try:
        with task("Trying fewer steps", len(solvers)) as progress:
            for name in solvers:
                progress.note(f"with {name or type(own).__name__}")
                if name is not None:
                    install_scheduler(pipeline, change_solver(own, name))
                space_trailing(pipeline)
                search = GridSearch(pipeline, inputs, listened, SEED)
                grids, error = _grids(search, students, least_steps)
                if grids:
                    return FewStepOptions(grids, name)
                assert error is not None
                refused.append((f"with pipeline.scheduler={name}, " if name else "", error))
                progress.advance()
    finally:
        install_scheduler(pipeline, own)
    return FewStepOptions(
        why="; ".join(prefix + error.message for prefix, error in refused),
        remedy=refused[0][1].remedy if len(refused) == 1 else GUIDANCE_ALONE,
    )


def _grids(
    search: GridSearch, students: Sequence[int], least: int
) -> tuple[tuple[StepGrid, ...], GuidefoldError | None]:
    """The grids that are found, and the last reason against one that is not."""
    grids, refused = list[StepGrid](), None
    for student in students:
        try:
            grids.append(search.find(student, least))
        except GuidefoldError as error:
            refused = error
    return tuple(grids), refused


def _listed(numbers: Sequence[str]) -> str:
    """Numbers in words: ``4, 5 or 10``."""
    *others, last = numbers
    return f"{', '.join(others)} or {last}" if others else last
