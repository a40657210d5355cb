"""Ask, at no cost, what a pipeline asks its denoiser at given states, and does with the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from guidefold.arguments import Tree
from guidefold.capture import Step, follow
from guidefold.denoisers import COMPONENT
from guidefold.errors import CaptureError, UnfoldableError
from guidefold.outputs import OutputMap, Scaling, find_output_map, find_scaling, fit_rows
from guidefold.stub import RandomStub


@dataclass(frozen=True)
class Asked:
    """What was heard at each state.

    Attributes:
        arguments: ``(args, kwargs)`` of the denoiser's call at each step.
        timesteps: Of each step.
        output_map: What happens to the denoiser's raw output, the same at every step.
        scalings: Of each step, where the map is scaled; else None.
        rows: Of the model output at each step.
    """

    arguments: list[Tree]
    timesteps: list[float]
    output_map: OutputMap
    scalings: list[Scaling | None]
    rows: list[int]

    def learnt(self, index: int, model_output: torch.Tensor) -> torch.Tensor:
        """What the student has to say at a step for a model output."""
        scaling = self.scalings[index]
        model_output = fit_rows(model_output, self.rows[index])
        return model_output if scaling is None else scaling.learnt(model_output)

    def model_output(self, index: int, raw: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """What becomes of a raw output at a step."""
        learnt, scaling = self.output_map(raw, shape), self.scalings[index]
        return learnt if scaling is None else scaling.model_output(learnt)


def ask(
    pipeline: DiffusionPipeline,
    inputs: Mapping[str, Any],
    seeds: Sequence[int],
    listened: Mapping[str, nn.Module],
    driven: Sequence[Step],
    stub: RandomStub,
) -> Asked:
    """Follow a driven run with the denoiser stubbed.

    Args:
        pipeline: The pipeline.
        inputs: The student's call arguments.
        seeds: The driven run's.
        listened: The denoisers.
        driven: The states to visit.
        stub: Answers in the denoisers' place.

    Returns:
        What was heard.

    Raises:
        UnfoldableError: Calls and steps do not pair, or the output map is unknown.
        CaptureError: The map changes between steps.
    """

    def heard(draw: int) -> tuple[list[Step], list[torch.Tensor]]:
        stub.clear(draw)
        steps = follow(pipeline, inputs, seeds, listened, driven, stub=stub, keep_arguments=True)
        check_pairs(pipeline, steps)
        return steps, list(stub.answers)

    steps, raws = heard(0)
    arguments = [arguments_of(step, several=len(listened) > 1) for step in steps]
    timesteps = [step.timestep for step in steps]
    try:
        maps = [find_output_map(r, s.model_output) for r, s in zip(raws, steps, strict=True)]
        scalings: list[Scaling | None] = [None] * len(steps)
    except UnfoldableError:
        others, other_raws = heard(1)
        pairs = zip(
            zip(raws, other_raws, strict=True), zip(steps, others, strict=True), strict=True
        )
        found = [find_scaling(r, (s.model_output, o.model_output)) for r, (s, o) in pairs]
        maps, scalings = [m for m, _ in found], [s for _, s in found]
    for index, output_map in enumerate(maps):
        if output_map != maps[0]:
            raise CaptureError(f"step {index}: output map '{output_map}' instead of '{maps[0]}'")
    rows = [len(step.model_output) for step in steps]
    return Asked(arguments, timesteps, maps[0], scalings, rows)


def check_pairs(pipeline: DiffusionPipeline, steps: Sequence[Step]) -> None:
    """Each step of the scheduler must belong to one call of a denoiser.

    Raises:
        UnfoldableError: It does not; says which does not.
    """
    for index, step in enumerate(steps):
        if len(step.calls) != 1:
            raise UnfoldableError(
                f"{type(pipeline).__name__}: {len(step.calls)} denoiser calls before scheduler "
                f"step {index + 1} with guidance off",
                "Guidefold pairs one denoiser call with one scheduler step.",
            )


def arguments_of(step: Step, *, several: bool) -> Tree:
    """The arguments of a step's only call; of several denoisers they say which is called."""
    (call,) = step.calls
    args, kwargs = call.arguments
    return args, {**kwargs, COMPONENT: call.denoiser} if several else kwargs
