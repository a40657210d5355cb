"""What a denoiser returns, and what a pipeline does to it before the scheduler sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from guidefold.arguments import describe, tensors_of
from guidefold.errors import UnfoldableError


def output_tensor(output: Any) -> torch.Tensor:
    """The prediction within what a denoiser returns: its first entry.

    A list of tensors, one a sample, is stacked.

    Raises:
        UnfoldableError: There is neither a tensor nor a list of tensors of one shape.
    """
    first = output[0] if isinstance(output, list | tuple | Mapping) else output
    if isinstance(first, torch.Tensor):
        return first
    shapes = {_shape(item) for item in first} if isinstance(first, list | tuple) else set()
    if len(shapes) == 1 and shapes != {None}:
        return torch.stack(list(first))
    raise UnfoldableError(
        f"the denoiser returns {describe(first)} where a tensor was expected",
        "Guidefold knows denoisers that return a tensor, or a list with a tensor for each sample.",
    )


def rows_of(output: Any) -> int:
    """Samples in a denoiser's output."""
    first = output[0] if isinstance(output, list | tuple | Mapping) and len(output) else None
    if isinstance(first, list | tuple):
        return len(first)
    tensor = next(iter(tensors_of(output)), None)
    return 1 if tensor is None or tensor.ndim == 0 else int(tensor.shape[0])


@dataclass(frozen=True)
class OutputMap:
    """What a pipeline does to a denoiser's raw output before it hands it to its scheduler.

    Attributes:
        select: ``"whole"``; or, along one dimension, the ``"first"`` part (learned variance, a
            picture's tokens before those of what it is edited from) or the ``"last"`` one (frames
            after the given ones). Dimensions of size one come and go.
        dim: The dimension of a part.
        negated: The sign changes.
        scaled: At each step the pipeline goes on to ``a * selected + b``.
    """

    select: str
    dim: int = 0
    negated: bool = False
    scaled: bool = False

    def __call__(self, raw: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Turn a raw output into what is learnt: the model output, but for ``a`` and ``b``.

        Args:
            raw: What the denoiser returned.
            shape: The model output's.
        """
        chosen = raw
        if self.select != "whole":
            size, length = shape[self.dim], raw.shape[self.dim]
            chosen = raw.narrow(self.dim, 0 if self.select == "first" else length - size, size)
        chosen = chosen.reshape(tuple(shape))
        return -chosen if self.negated else chosen

    def __str__(self) -> str:
        text = "whole" if self.select == "whole" else f"{self.select} along dimension {self.dim}"
        return f"{text}{', negated' * self.negated}{', scaled' * self.scaled}"


@dataclass(frozen=True)
class Scaling:
    """The rest of a scaled map at one step: ``model output = a * learnt + b``.

    Attributes:
        a: One number.
        b: Of the model output's shape.
    """

    a: float
    b: torch.Tensor

    def learnt(self, model_output: torch.Tensor) -> torch.Tensor:
        """What the student has to say for a model output."""
        return ((model_output.double() - self.b) / self.a).to(model_output)

    def model_output(self, learnt: torch.Tensor) -> torch.Tensor:
        """What becomes of what the student says."""
        return (self.a * learnt.double() + self.b).to(learnt)


def find_output_map(raw: torch.Tensor, model_output: torch.Tensor) -> OutputMap:
    """Compare noise that a stubbed denoiser gave with what arrived at the scheduler.

    Args:
        raw: The stub's answer.
        model_output: What reached ``scheduler.step``.

    Raises:
        UnfoldableError: No known map turns the one into the other, bit for bit.
    """
    for found in _candidates(raw, model_output):
        for negated in (False, True):
            guess = OutputMap(found.select, found.dim, negated)
            if torch.equal(guess(raw, model_output.shape).to(model_output), model_output):
                return guess
    raise _unknown(raw, model_output)


def find_scaling(
    raws: tuple[torch.Tensor, torch.Tensor], model_outputs: tuple[torch.Tensor, torch.Tensor]
) -> tuple[OutputMap, Scaling]:
    """Two noises at one state, and what arrived for each: their differences are free of ``b``.

    Args:
        raws: The stub's answers.
        model_outputs: What reached ``scheduler.step``.

    Raises:
        UnfoldableError: No known map turns the one into the other.
    """
    (raw, other), (arrived, arrived_other) = raws, model_outputs
    change = arrived.double() - arrived_other.double()
    for found in _candidates(raw, arrived):
        part = found(raw.double() - other.double(), arrived.shape)
        a = float((part * change).sum() / part.square().sum())
        error = (change - a * part).abs().max()
        if a and error <= 1e-3 * change.abs().max():
            b = arrived.double() - a * found(raw.double(), arrived.shape)
            return OutputMap(found.select, found.dim, scaled=True), Scaling(a, b)
    raise _unknown(raw, arrived)


def _candidates(raw: torch.Tensor, model_output: torch.Tensor) -> Iterator[OutputMap]:
    """The maps whose shapes fit."""
    if _squeezed(raw) == _squeezed(model_output):
        yield OutputMap("whole")
    if raw.ndim == model_output.ndim:
        longer = [d for d in range(raw.ndim) if raw.shape[d] != model_output.shape[d]]
        if len(longer) == 1 and raw.shape[longer[0]] > model_output.shape[longer[0]]:
            yield OutputMap("first", longer[0])
            yield OutputMap("last", longer[0])


def _squeezed(tensor: torch.Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def _shape(item: object) -> object:
    return tuple(item.shape) if isinstance(item, torch.Tensor) else None


def _unknown(raw: torch.Tensor, model_output: torch.Tensor) -> UnfoldableError:
    return UnfoldableError(
        "this pipeline turns the denoiser's output into the model output in a way Guidefold does "
        f"not know ({describe(raw)} becomes {describe(model_output)})",
        "Please report the pipeline's class.",
    )
