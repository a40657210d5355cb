"""What a denoiser returns, and what a pipeline does to it before the scheduler sees it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import torch

from guidefold.ground import CaptureError, UnfoldableError
from guidefold.listen.arguments import describe, tensors_of


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
            after the given ones). Dimensions are merged and parted as the model output's are.
        dim: The dimension of a part, in the model output.
        negated: The sign changes.
        scaled: At each step the pipeline goes on to ``a * selected + b``.
        order: Where dimensions change places (tokens become a picture, frames become rows), the
            order that they come in; else empty.
    """

    select: str
    dim: int = 0
    negated: bool = False
    scaled: bool = False
    order: tuple[int, ...] = ()

    def __call__(self, raw: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Turn a raw output into what is learnt: the model output, but for ``a`` and ``b``.

        Args:
            raw: What the denoiser returned.
            shape: The model output's.
        """
        chosen = raw.permute(self.order) if self.order else raw
        if self.select != "whole":
            size = shape[self.dim]
            others = math.prod(shape) // size
            chosen = chosen.reshape(*shape[: self.dim], -1, *shape[self.dim + 1 :])
            length = raw.numel() // others
            chosen = chosen.narrow(self.dim, 0 if self.select == "first" else length - size, size)
        chosen = chosen.reshape(tuple(shape))
        return -chosen if self.negated else chosen

    def __str__(self) -> str:
        text = "whole" if self.select == "whole" else f"{self.select} along dimension {self.dim}"
        order = f", dimensions {' '.join(map(str, self.order))}" if self.order else ""
        return f"{text}{order}{', negated' * self.negated}{', scaled' * self.scaled}"


@dataclass(frozen=True)
class Scaling:
    """The affine rest of a scaled map at one step: ``model output = a * selected + b``.

    Attributes:
        a: One number.
        b: Of the model output's shape.
    """

    a: float
    b: torch.Tensor

    def invert(self, model_output: torch.Tensor) -> torch.Tensor:
        """The selected output that gives a model output: the student's target."""
        return ((model_output.double() - self.b) / self.a).to(model_output)

    def apply(self, selected: torch.Tensor) -> torch.Tensor:
        """The model output that a selected output gives."""
        return (self.a * selected.double() + self.b).to(selected)


def fit_rows(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """The same with another number of rows.

    Some pipelines step the scheduler with a copy of the latents for each pass: equal rows twice.

    Args:
        tensor: Of one step, shape (rows, ...).
        rows: As many as another run of the pipeline has there.

    Raises:
        CaptureError: The rows are no copies, or do not divide.
    """
    if tensor.ndim == 0 or tensor.shape[0] == rows:
        return tensor
    if tensor.shape[0] % rows == 0:
        first, *copies = tensor.tensor_split(tensor.shape[0] // rows)
        if all(torch.equal(first, copy) for copy in copies):
            return first
    elif rows % tensor.shape[0] == 0:
        return torch.cat([tensor] * (rows // tensor.shape[0]))
    raise CaptureError(
        f"the scheduler is stepped with {tensor.shape[0]} rows in one run and {rows} in another"
    )


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
            guess = replace(found, negated=negated)
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
            return replace(found, scaled=True), Scaling(a, b)
    raise _unknown(raw, arrived)


def _candidates(raw: torch.Tensor, model_output: torch.Tensor) -> Iterator[OutputMap]:
    """The maps whose shapes fit; the plainest first."""
    if _squeezed(raw) == _squeezed(model_output):
        yield OutputMap("whole")
    longer = raw.numel() > model_output.numel() and raw.shape[0] == model_output.shape[0]
    for order in ((), *_orders(raw.ndim)):
        if order and raw.numel() == model_output.numel():
            yield OutputMap("whole", order=order)
        if not longer or not (order or raw.ndim == model_output.ndim):
            continue
        for dim in range(1, model_output.ndim):
            others = model_output.numel() // model_output.shape[dim]
            if raw.numel() % others == 0:
                yield OutputMap("first", dim, order=order)
                yield OutputMap("last", dim, order=order)


def _orders(count: int) -> Iterator[tuple[int, ...]]:
    """Every order of dimensions but the plain one; rows stay first."""
    plain = tuple(range(count))
    yield from ((0, *rest) for rest in permutations(plain[1:]) if rest != plain[1:])


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
