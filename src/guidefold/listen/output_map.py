"""The output map: from a denoiser's raw output to the model output that the scheduler gets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, permutations
from typing import Any

import torch

from guidefold.ground import CaptureError, UnfoldableError
from guidefold.listen.arguments import describe_value, tensors_of
from guidefold.listen.parts import Shapes, pack


def output_tensor(output: Any) -> torch.Tensor:
    """The prediction within a denoiser's output: its first entry.

    A list of tensors, one per sample, is stacked.

    Raises:
        UnfoldableError: The entry is neither a tensor nor a list of tensors of one shape.
    """
    first = output[0] if isinstance(output, list | tuple | Mapping) else output
    if isinstance(first, torch.Tensor):
        return first
    shapes = {_shape(item) for item in first} if isinstance(first, list | tuple) else set()
    if len(shapes) == 1 and shapes != {None}:
        return torch.stack(list(first))
    raise UnfoldableError(
        f"the denoiser returns {describe_value(first)} where a tensor was expected",
        "Guidefold knows denoisers that return a tensor, or a list with a tensor for each sample.",
    )


def output_tensors(output: Any, count: int) -> list[torch.Tensor]:
    """The predictions within a denoiser's output for so many schedulers: its first entries.

    Raises:
        UnfoldableError: It has fewer tensors.
    """
    entries = list(output.values()) if isinstance(output, Mapping) else output
    if isinstance(entries, list | tuple) and len(entries) >= count:
        first = list(entries[:count])
        if all(isinstance(entry, torch.Tensor) for entry in first):
            return first
    raise UnfoldableError(
        f"{count} schedulers step at one denoiser call, which returns {describe_value(output)}",
        "Guidefold knows denoisers that return a tensor for each scheduler.",
    )


def predictions(output: Any, parts: int) -> torch.Tensor:
    """The prediction within a denoiser's output, or those for several schedulers in a row.

    Args:
        output: What the denoiser returns.
        parts: The number of schedulers that step; 0 for a single one.
    """
    if not parts:
        return output_tensor(output)
    return torch.cat([part.flatten() for part in output_tensors(output, parts)])


def rows_of(output: Any) -> int:
    """The number of samples in a denoiser's output."""
    first = output[0] if isinstance(output, list | tuple | Mapping) and len(output) else None
    if isinstance(first, list | tuple):
        return len(first)
    tensor = next(iter(tensors_of(output)), None)
    return 1 if tensor is None or tensor.ndim == 0 else int(tensor.shape[0])


@dataclass(frozen=True)
class OutputMap:
    """The map from a denoiser's raw output to the model output that the scheduler gets.

    Attributes:
        select: ``"whole"``; or, along one dimension, the ``"first"`` part (before learned variance
            or the tokens of an edited picture) or the ``"last"`` part (after given frames).
            Dimensions are merged and split as in the model output. ``"parts"``: see ``parts``.
        dim: The model output's dimension along which a part is selected.
        negated: Whether the sign changes.
        scaled: Whether each step continues with ``a * selected + b``, see :class:`Scaling`.
        order: The permutation of the raw output's dimensions (tokens become a picture, frames
            become rows); empty if they keep their order.
        parts: The maps from the denoiser's outputs to those of several schedulers, packed.
    """

    select: str
    dim: int = 0
    negated: bool = False
    scaled: bool = False
    order: tuple[int, ...] = ()
    parts: tuple[OutputMap, ...] = ()

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> OutputMap:
        """From what :meth:`to_json` gave."""
        parts = tuple(map(OutputMap.from_json, values.get("parts", ())))
        return OutputMap(**{**values, "order": tuple(values["order"]), "parts": parts})

    def to_json(self) -> dict[str, Any]:
        """As JSON; without parts where there are none."""
        values = asdict(self)
        parts = [part.to_json() for part in self.parts]
        return (
            {**values, "parts": parts} if parts else {n: values[n] for n in values if n != "parts"}
        )

    def read(self, output: Any, shape: Sequence[int], shapes: Shapes = ()) -> torch.Tensor:
        """Read the model output off a denoiser's output; ``a`` and ``b`` are not applied.

        Args:
            output: What the denoiser returns.
            shape: The shape of the model output.
            shapes: The shapes of its packed parts, if there are several.
        """
        if not self.parts:
            return self(output_tensor(output), shape)
        raws = output_tensors(output, len(self.parts))
        rows = zip(self.parts, raws, shapes, strict=True)
        return pack([part(raw, (shape[0], *own)) for part, raw, own in rows])

    def __call__(self, raw: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Select the model output from a raw output; ``a`` and ``b`` are not applied.

        Args:
            raw: The denoiser's output tensor.
            shape: The shape of the model output.
        """
        chosen = raw.permute(self.order) if self.order else raw
        if self.select != "whole":
            size = shape[self.dim]
            chosen = chosen.reshape(*shape[: self.dim], -1, *shape[self.dim + 1 :])
            start = 0 if self.select == "first" else chosen.shape[self.dim] - size
            chosen = chosen.narrow(self.dim, start, size)
        chosen = chosen.reshape(tuple(shape))
        return -chosen if self.negated else chosen

    def __str__(self) -> str:
        if self.parts:
            return "; ".join(map(str, self.parts))
        text = "whole" if self.select == "whole" else f"{self.select} along dimension {self.dim}"
        order = f", dimensions {' '.join(map(str, self.order))}" if self.order else ""
        return f"{text}{order}{', negated' * self.negated}{', scaled' * self.scaled}"


@dataclass(frozen=True)
class Scaling:
    """The affine rest of a scaled map at one step: ``model output = a * selected + b``.

    Attributes:
        a: The factor; for packed parts one for each element.
        b: The offset, of the model output's shape.
    """

    a: float | torch.Tensor
    b: torch.Tensor

    def invert(self, model_output: torch.Tensor) -> torch.Tensor:
        """The selected output that gives a model output: the student's target."""
        return ((model_output.double() - self.b) / self.a).to(model_output)

    def apply(self, selected: torch.Tensor) -> torch.Tensor:
        """The model output that a selected output gives."""
        return (self.a * selected.double() + self.b).to(selected)


def fit_rows(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """Repeat or drop duplicate rows so that a tensor has ``rows`` of them.

    Some pipelines step the scheduler with one copy of the latents per pass: each row twice.

    Args:
        tensor: A tensor of one step, shape (rows, ...).
        rows: The number of rows that another run of the pipeline has at this step.

    Raises:
        CaptureError: The surplus rows are no copies, or one number does not divide the other.
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
    """Find the map from a stubbed denoiser's noise to the model output, bit for bit.

    Args:
        raw: The stub's output.
        model_output: The argument of ``scheduler.step``.

    Raises:
        UnfoldableError: No known map turns one into the other.
    """
    for candidate in _candidates(raw, model_output):
        for negated in (False, True):
            guess = replace(candidate, negated=negated)
            if _gives(guess, raw, model_output):
                return guess
    raise _unknown(raw, model_output)


def one_map(
    maps: Sequence[OutputMap], pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> list[OutputMap]:
    """The first of the steps' maps that holds at every step, for each step; else the maps.

    A denoiser that leaves out, at later steps, what the pipeline drops at the first one gives the
    whole model output there, which is also its last part.

    Args:
        maps: One for each step.
        pairs: Each step's raw output and model output.
    """
    for candidate in dict.fromkeys(maps):
        if all(_gives(candidate, *pair) for pair in pairs):
            return [candidate] * len(maps)
    return list(maps)


def find_scaling(
    raws: tuple[torch.Tensor, torch.Tensor], model_outputs: tuple[torch.Tensor, torch.Tensor]
) -> tuple[OutputMap, Scaling]:
    """Find the scaled map ``a * selected + b`` from two draws of noise at one state.

    ``b`` depends on the state alone and cancels in the difference, which leaves ``a`` by least
    squares: ``a = <selected difference, arrived difference> / |selected difference|^2``.

    Args:
        raws: The stub's outputs.
        model_outputs: The arguments of ``scheduler.step``.

    Raises:
        UnfoldableError: No known map turns one into the other.
    """
    (raw, other), (arrived, arrived_other) = raws, model_outputs
    change = arrived.double() - arrived_other.double()
    for candidate in _candidates(raw, arrived):
        part = candidate(raw.double() - other.double(), arrived.shape)
        a = float((part * change).sum() / part.square().sum())
        error = (change - a * part).abs().max()
        if a and error <= 1e-3 * change.abs().max():
            b = arrived.double() - a * candidate(raw.double(), arrived.shape)
            return replace(candidate, scaled=True), Scaling(a, b)
    raise _unknown(raw, arrived)


def _gives(output_map: OutputMap, raw: torch.Tensor, model_output: torch.Tensor) -> bool:
    """Whether a map turns a raw output into the model output, bit for bit."""
    wanted = model_output.numel()
    fits = raw.numel() == wanted or (output_map.select != "whole" and raw.numel() > wanted)
    if not fits:
        return False
    return torch.equal(output_map(raw, model_output.shape).to(model_output), model_output)


def _candidates(raw: torch.Tensor, model_output: torch.Tensor) -> Iterator[OutputMap]:
    """The maps whose shapes fit, the simplest first: the first that fits is taken as the truth."""
    # Dimensions of size 1 come and go (one frame of a film), which a reshape undoes.
    if _squeezed(raw) == _squeezed(model_output):
        yield OutputMap("whole")
    # A part is selected only within rows: another number of rows would be another batch.
    longer = raw.numel() > model_output.numel() and raw.shape[0] == model_output.shape[0]
    for order in ((), *_orders(raw.ndim)):
        if order and raw.numel() == model_output.numel():
            yield OutputMap("whole", order=order)
        if not longer or not (order or raw.ndim == model_output.ndim):
            continue
        for dim in range(1, model_output.ndim):
            # All sizes but this dimension's must divide the raw output, whose own shape may still
            # be another: tokens of (height * width) become two dimensions.
            others = model_output.numel() // model_output.shape[dim]
            if raw.numel() % others == 0:
                yield OutputMap("first", dim, order=order)
                yield OutputMap("last", dim, order=order)


def _orders(count: int) -> Iterator[tuple[int, ...]]:
    """Every permutation of dimensions but the identity; rows stay first."""
    yield from islice(((0, *rest) for rest in permutations(range(1, count))), 1, None)


def _squeezed(tensor: torch.Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def _shape(item: object) -> object:
    return tuple(item.shape) if isinstance(item, torch.Tensor) else None


def _unknown(raw: torch.Tensor, model_output: torch.Tensor) -> UnfoldableError:
    return UnfoldableError(
        "this pipeline turns the denoiser's output into the model output in a way Guidefold does "
        f"not know ({describe_value(raw)} becomes {describe_value(model_output)})",
        "Please report the pipeline's class.",
    )
