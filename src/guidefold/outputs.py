"""What a denoiser returns, and what a pipeline does to it before the scheduler sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from guidefold.arguments import describe, tensors_of
from guidefold.errors import UnfoldableError


def output_tensor(output: Any) -> torch.Tensor:
    """The prediction within what a denoiser returns: its first entry."""
    first = output[0] if isinstance(output, list | tuple | Mapping) else output
    if isinstance(first, torch.Tensor):
        return first
    raise UnfoldableError(
        f"the denoiser returns {describe(first)} where a tensor was expected",
        "Guidefold does not yet know denoisers that return lists.",
    )


def rows_of(output: Any) -> int:
    """Samples in a denoiser's output."""
    tensor = next(iter(tensors_of(output)), None)
    return 1 if tensor is None or tensor.ndim == 0 else int(tensor.shape[0])


@dataclass(frozen=True)
class OutputMap:
    """What a pipeline does to a denoiser's raw output before it hands it to its scheduler.

    Attributes:
        select: ``"whole"``, or ``"prefix"`` along one dimension (learned variance, token prefix).
        dim: The dimension of a prefix.
        negated: The sign changes.
    """

    select: str
    dim: int = 0
    negated: bool = False

    def __call__(self, raw: torch.Tensor, size: int | None = None) -> torch.Tensor:
        """Turn a raw output into a model output; ``size`` is the prefix's length."""
        chosen = raw if self.select == "whole" else raw.narrow(self.dim, 0, size or 0)
        return -chosen if self.negated else chosen

    def __str__(self) -> str:
        text = "whole" if self.select == "whole" else f"prefix along dimension {self.dim}"
        return f"{text}, negated" if self.negated else text


def find_output_map(raw: torch.Tensor, model_output: torch.Tensor) -> OutputMap:
    """Compare noise that a stubbed denoiser gave with what arrived at the scheduler.

    Args:
        raw: The stub's answer.
        model_output: What reached ``scheduler.step``.

    Raises:
        UnfoldableError: No known map turns the one into the other.
    """
    candidates = [OutputMap("whole")] if raw.shape == model_output.shape else []
    if raw.ndim == model_output.ndim:
        longer = [d for d in range(raw.ndim) if raw.shape[d] != model_output.shape[d]]
        if len(longer) == 1 and raw.shape[longer[0]] > model_output.shape[longer[0]]:
            candidates = [OutputMap("prefix", longer[0])]
    for candidate in candidates:
        for negated in (False, True):
            found = OutputMap(candidate.select, candidate.dim, negated)
            guess = found(raw, model_output.shape[candidate.dim])
            if torch.equal(guess.to(model_output), model_output):
                return found
    raise UnfoldableError(
        "this pipeline turns the denoiser's output into the model output in a way Guidefold does "
        f"not know ({describe(raw)} becomes {describe(model_output)})",
        "Please report the pipeline's class.",
    )
