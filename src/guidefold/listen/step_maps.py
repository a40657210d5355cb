"""The output map of a run's steps, for each scheduler that steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from guidefold.ground import CaptureError, UnfoldableError
from guidefold.listen.listener import Step
from guidefold.listen.output_map import (
    OutputMap,
    Scaling,
    find_output_map,
    find_scaling,
    one_map,
    output_tensor,
    output_tensors,
)
from guidefold.listen.parts import pack, unpack

Pair = tuple[torch.Tensor, torch.Tensor]
"""A raw output of the denoiser, and the model output that it became."""


def outputs_by_part(steps: Sequence[Step], outputs: Sequence[Any]) -> list[list[Pair]]:
    """For each scheduler that steps, its pairs, one for each step.

    Raises:
        UnfoldableError: The denoiser does not return a tensor for each scheduler.
    """
    shapes = steps[0].shapes
    raws = [output_tensors(o, len(shapes)) if shapes else [output_tensor(o)] for o in outputs]
    arrived = [unpack(step.model_output, shapes) for step in steps]
    return [
        [(raw[k], model[k]) for raw, model in zip(raws, arrived, strict=True)]
        for k in range(max(1, len(shapes)))
    ]


def find_maps(
    pairs: Sequence[Pair], another: Callable[[], Sequence[Pair]]
) -> tuple[OutputMap, list[Scaling | None]]:
    """Find one scheduler's output map, and its affine part at each step.

    Args:
        pairs: One for each step.
        another: Gives the pairs of another draw of noise at the same states.

    Raises:
        UnfoldableError: The map is unknown.
        CaptureError: The map changes between steps.
    """
    scalings: list[Scaling | None]
    try:
        maps = one_map([find_output_map(*pair) for pair in pairs], pairs)
        scalings = [None] * len(pairs)
    except UnfoldableError:
        # The map is not exact as it stands, so the pipeline may mix the state in: compare two
        # draws of noise at the same states, in whose difference the state cancels.
        scaled = [
            find_scaling((raw, other_raw), (arrived, other))
            for (raw, arrived), (other_raw, other) in zip(pairs, another(), strict=True)
        ]
        maps, scalings = [m for m, _ in scaled], [s for _, s in scaled]
    for index, output_map in enumerate(maps):
        if output_map != maps[0]:
            raise CaptureError(f"step {index}: output map '{output_map}' instead of '{maps[0]}'")
    return maps[0], scalings


def joined(
    found: Sequence[tuple[OutputMap, list[Scaling | None]]], steps: Sequence[Step]
) -> tuple[OutputMap, list[Scaling | None]]:
    """The schedulers' maps as one, and at each step their affine parts as one."""
    if len(found) == 1:
        return found[0]
    output_map = OutputMap("parts", parts=tuple(part for part, _ in found))
    by_step = zip(*(scalings for _, scalings in found), strict=True)
    return output_map, [
        _packed(scalings, unpack(step.model_output, step.shapes))
        for scalings, step in zip(by_step, steps, strict=True)
    ]


def _packed(scalings: Sequence[Scaling | None], parts: Sequence[torch.Tensor]) -> Scaling | None:
    if all(scaling is None for scaling in scalings):
        return None
    whole = [
        s or Scaling(1.0, torch.zeros_like(part)) for s, part in zip(scalings, parts, strict=True)
    ]
    factors = [torch.full_like(s.b, 1.0, dtype=torch.float64) * s.a for s in whole]
    return Scaling(pack(factors), pack([s.b for s in whole]))
