"""Grids of timesteps: a teacher's number of steps whose grid holds the student's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from guidefold.ground import UnfoldableError, plural

Grid = Callable[[int], Sequence[float]]
"""The timesteps of a run with a number of steps."""
# The largest difference of two equal timesteps, as a share of the first: grids are rounded.
SAME = 1e-5


@dataclass(frozen=True)
class StepGrid:
    """The student's steps within the teacher's, and the solver that both take.

    Attributes:
        student: The student's number of steps.
        teacher: The teacher's number of steps.
        indices: The index of each of the student's timesteps among the teacher's.
        solver: The scheduler's class.
        spacing: Its ``timestep_spacing``; None if it has none.
        shift: Its ``shift``; None if it has none, or shifts with the picture's size.
        clip_sample: Its ``clip_sample``; None if it has none.
        sigmas: ``karras``, ``exponential`` or ``beta``, if it spaces its noise levels so.
        timesteps: The student's timesteps.
    """

    student: int
    teacher: int
    indices: tuple[int, ...]
    solver: str
    spacing: str | None = None
    shift: float | None = None
    clip_sample: bool | None = None
    sigmas: str | None = None
    timesteps: tuple[float, ...] = field(default=(), compare=False)  # rounded otherwise elsewhere

    @property
    def usage(self) -> str:
        """What a client must set, in words: ``5 steps, DDIMScheduler, trailing spacing``."""
        spacing = f", {self.spacing} spacing" if self.spacing else ""
        sigmas = f", {self.sigmas} sigmas" if self.sigmas else ""
        shift = f", shift {self.shift:g}" if self.shift is not None else ""
        return f"{plural(self.student, 'step')}, {self.solver}{spacing}{sigmas}{shift}"

    @property
    def scheduler_settings(self) -> dict[str, Any]:
        """The settings of the scheduler that decide how it steps, by name."""
        settings = {
            "timestep_spacing": self.spacing,
            "shift": self.shift,
            "clip_sample": self.clip_sample,
            **({f"use_{self.sigmas}_sigmas": True} if self.sigmas else {}),
        }
        return {name: value for name, value in settings.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        lists = {"indices": list(self.indices), "timesteps": list(self.timesteps)}
        return {**asdict(self), **lists}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> StepGrid:
        """From JSON."""
        lists = {name: tuple(values.get(name, ())) for name in ("indices", "timesteps")}
        return StepGrid(**{**values, **lists})


def find_fine_steps(grid: Grid, coarse: int, least: int, name: str) -> tuple[int, tuple[int, ...]]:
    """Find a number of fine steps whose grid holds the grid of a number of coarse steps.

    The number is tried, never assumed: grids are compared. Tried are the multiples of ``coarse``,
    as in trailing spacing, and ``m (coarse - 1) + 1``, as in grids that hold both ends.

    Args:
        grid: Gives the timesteps of a number of steps.
        coarse: The number of coarse steps.
        least: The least number of fine steps, and more than ``coarse``.
        name: The scheduler's class, for messages.

    Returns:
        ``(number of fine steps, index of each coarse timestep among the fine ones)``.

    Raises:
        UnfoldableError: No number that was tried holds the coarse grid.
    """
    inner, least = list(grid(coarse)), max(least, coarse + 1)
    multiple = coarse * -(-least // coarse)
    both_ends = (coarse - 1) * -(-(least - 1) // max(coarse - 1, 1)) + 1
    tried = sorted({multiple, both_ends} - {coarse, 1})
    outer: list[float] = []
    for count in tried:
        outer = list(grid(count))
        indices = indices_within(inner, outer)
        if indices is not None:
            return count, indices
    starts = ""
    steps = plural(coarse, "step")
    if not _same(inner[0], outer[0], outer[0]):
        begin = "begins" if coarse == 1 else "begin"
        starts = f" ({steps} {begin} at timestep {inner[0]:g}, {tried[-1]} at {outer[0]:g})"
    raise UnfoldableError(
        f"{name}: none of {', '.join(map(str, tried))} steps visits the timesteps of {steps}"
        f"{starts}",
        "Choose another student.steps, such as an even number, or another least number of the "
        "teacher's steps (record.steps); a call that begins part-way (strength) must leave whole "
        'numbers of steps. Where the scheduler has a timestep_spacing, "trailing" fits most.',
    )


def indices_within(coarse: Sequence[float], fine: Sequence[float]) -> tuple[int, ...] | None:
    """The index of each coarse timestep among the fine ones.

    Returns:
        Rising indices from 0; None if a timestep is missing, or the grids begin elsewhere.
    """
    indices: list[int] = []
    for timestep in coarse:
        first = indices[-1] + 1 if indices else 0
        found = next(
            (k for k in range(first, len(fine)) if _same(fine[k], timestep, fine[0])), None
        )
        if found is None:
            return None
        indices.append(found)
    return tuple(indices) if indices and indices[0] == 0 else None


def _same(one: float, other: float, largest: float) -> bool:
    return abs(one - other) <= SAME * abs(largest)
