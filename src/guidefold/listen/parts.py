"""What several schedulers step at one call of the denoiser, such as a film and its sound: parts.

A step's parts are packed into one tensor, so that states, targets and errors are single tensors
whatever the number of schedulers. A single scheduler's tensors stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from guidefold.ground import UnfoldableError

Shapes = tuple[tuple[int, ...], ...]
"""The shapes of a step's parts, without their rows; empty for a single scheduler."""


def shapes_of(parts: Sequence[torch.Tensor]) -> Shapes:
    """The shapes of parts that are to be packed."""
    return tuple(tuple(part.shape[1:]) for part in parts)


def pack(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join parts of shapes (rows, ...) into one tensor of shape (rows, elements of all parts).

    Raises:
        UnfoldableError: They have different numbers of rows.
    """
    if len({len(part) for part in parts}) > 1:
        rows = " and ".join(str(len(part)) for part in parts)
        raise UnfoldableError(
            f"its schedulers step {rows} rows at one denoiser call",
            "Guidefold joins what several schedulers step row by row.",
        )
    return torch.cat([part.flatten(1) for part in parts], 1)


def unpack(packed: torch.Tensor, shapes: Shapes) -> list[torch.Tensor]:
    """The parts of a packed tensor; the tensor itself where there are no shapes."""
    if not shapes:
        return [packed]
    sizes = [math.prod(shape) for shape in shapes]
    return [
        part.reshape(len(packed), *shape)
        for part, shape in zip(torch.split(packed, sizes, 1), shapes, strict=True)
    ]
