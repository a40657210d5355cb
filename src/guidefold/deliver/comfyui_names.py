"""ComfyUI's names of a solver, and of the course on which a few-step student steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guidefold.deliver.layer_names import client_facts, fits
from guidefold.listen import StepGrid

DEFAULT = ("euler", "normal")
"""The sampler and scheduler for a solver without a certain name in ComfyUI."""
OTHER = "other"
"""The spacing of a course that is none of those that ComfyUI has a name for."""
SAME = 0.03  # the largest difference of one shift, as found at several timesteps
LEAST = 1e-3  # the lowest noise level that flow matching's schedulers of 1000 timesteps know


def comfyui_solver(scheduler: str, config: Mapping[str, Any]) -> tuple[str, str, bool]:
    """ComfyUI's sampler and scheduler for a scheduler of diffusers.

    Args:
        scheduler: Its class.
        config: Its configuration.

    Returns:
        ``(sampler, scheduler, whether they surely step alike)``.
    """
    facts = client_facts()
    for entry in facts["sampler"]:
        if entry["class"] == scheduler and fits(entry.get("when", {}), config):
            grid = next(e for e in facts["grid"] if fits(e["when"], config))
            return entry["name"], grid["name"], grid.get("sure", True)
    return *DEFAULT, False


def comfyui_steps(grid: StepGrid) -> dict[str, Any]:
    """ComfyUI's settings for a few-step student: ``sampler``, ``scheduler``, ``shift``.

    Empty where it has no certain names; ``shift`` is None but for flow matching.
    """
    sampler, scheduler, sure = comfyui_solver(grid.solver, few_steps_config(grid))
    shift = few_steps_shift(grid)
    return {"sampler": sampler, "scheduler": scheduler, "shift": shift} if sure else {}


def steps_usage(grid: StepGrid) -> str:
    """What a client must set for a few-step student, in diffusers' words and in ComfyUI's."""
    names = comfyui_steps(grid)
    if not names:
        return grid.usage
    shifted = f", shift {names['shift']:.3g}" if names["shift"] else ""
    return f"{grid.usage} (in ComfyUI {names['sampler']}, {names['scheduler']}{shifted})"


def few_steps_config(grid: StepGrid) -> dict[str, Any]:
    """The fields of a scheduler's configuration that say where a student of few steps steps.

    Pipelines of flow matching bring noise levels of their own, whatever the configuration says; so
    of these the timesteps are looked at.
    """
    spacing = grid.spacing or _course(grid)[0]
    return {"timestep_spacing": spacing, f"use_{grid.sigmas}_sigmas": True}


def few_steps_shift(grid: StepGrid) -> float | None:
    """The shift of flow matching that a student of few steps is for; None without one."""
    return None if grid.spacing else _course(grid)[1]


def _course(grid: StepGrid) -> tuple[str, float | None]:
    """The spacing of flow matching's timesteps, and their shift.

    Noise levels are ``s u / (1 + (s - 1) u)`` with the shift ``s``, where ``u`` falls evenly from
    1: to one step's length in the noise levels that pipelines bring (trailing), to the lowest
    noise level, itself shifted, in the scheduler's own (linspace).
    """
    if not grid.timesteps or grid.timesteps[0] <= 0:  # some pipelines count from noise on
        return OTHER, None
    count, shift = len(grid.timesteps), grid.shift or 1.0
    ends = {"trailing": 1 / count, "linspace": shift * LEAST / (1 + (shift - 1) * LEAST)}
    levels = [timestep / grid.timesteps[0] for timestep in grid.timesteps]
    for spacing, end in ends.items():
        even = [1 - k / max(count - 1, 1) * (1 - end) for k in range(count)]
        found = [
            level * (1 - u) / max(u * (1 - level), 1e-12)
            for level, u in zip(levels[1:], even[1:], strict=True)
        ]
        wanted = grid.shift or (sum(found) / len(found) if found else None)
        if all(abs(value - wanted) <= SAME * wanted for value in found if wanted):
            return spacing, wanted
    return OTHER, None
