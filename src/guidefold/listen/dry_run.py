"""Follow a driven run with a stub as denoiser: the denoiser's arguments and the output map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from guidefold.ground import CaptureError, UnfoldableError, generator
from guidefold.listen.arguments import Tree, objects_of, tensors_of, tree_map
from guidefold.listen.capture import follow
from guidefold.listen.listener import Step
from guidefold.listen.memory import EARLIER
from guidefold.listen.output_map import OutputMap, Scaling, fit_rows, output_tensor
from guidefold.listen.parts import Shapes
from guidefold.listen.step_maps import Pair, find_maps, joined, outputs_by_part
from guidefold.pipeline import COMPONENT


@dataclass(frozen=True)
class DryRun:
    """The result of :func:`follow_stubbed`, with one entry per step.

    Attributes:
        arguments: ``(args, kwargs)`` of the denoiser's call.
        timesteps: The scheduler's timesteps.
        output_map: The map from the denoiser's raw output to the model output; one for all steps.
        scalings: The affine part of the map, if it is scaled; else None.
        rows: The number of the model output's rows.
        shapes: The shapes of the model output's packed parts; one for all steps.
    """

    arguments: list[Tree]
    timesteps: list[float]
    output_map: OutputMap
    scalings: list[Scaling | None]
    rows: list[int]
    shapes: Shapes = ()

    def training_target(self, index: int, model_output: torch.Tensor) -> torch.Tensor:
        """The output of :attr:`output_map` that the student must give for a model output."""
        scaling = self.scalings[index]
        model_output = fit_rows(model_output, self.rows[index])
        return model_output if scaling is None else scaling.invert(model_output)

    def model_output(self, index: int, output: Any, shape: Sequence[int]) -> torch.Tensor:
        """The model output that a denoiser's output becomes at a step."""
        selected = self.output_map.read(output, shape, self.shapes)
        scaling = self.scalings[index]
        return selected if scaling is None else scaling.apply(selected)


def follow_stubbed(
    pipeline: DiffusionPipeline,
    inputs: Mapping[str, Any],
    seeds: Sequence[int],
    listened: Mapping[str, nn.Module],
    driven: Sequence[Step],
    stub: RandomStub,
    **listening: Any,
) -> DryRun:
    """Follow a driven run with the denoiser stubbed.

    Args:
        pipeline: The pipeline.
        inputs: The student's call arguments.
        seeds: The driven run's seeds.
        listened: The denoisers.
        driven: The states to visit.
        stub: The stub that replaces the denoisers.
        **listening: Further arguments of :class:`~guidefold.listen.listener.Listener`.

    Returns:
        Arguments and output map.

    Raises:
        UnfoldableError: Calls and steps do not pair, or the output map is unknown.
        CaptureError: The map changes between steps.
    """

    def follow_with(draw: int) -> tuple[list[Step], list[Any]]:
        stub.clear(draw)
        listening.update(stub=stub, keep_arguments=True)
        steps = follow(pipeline, inputs, seeds, listened, driven, **listening)
        check_pairs(pipeline, steps)
        return steps, list(stub.outputs)

    steps, outputs = follow_with(0)
    if len({step.shapes for step in steps}) > 1:
        raise CaptureError("its schedulers step parts of other shapes at other steps")
    draws = [outputs_by_part(steps, outputs)]

    def another(part: int) -> list[Pair]:
        if len(draws) == 1:
            draws.append(outputs_by_part(*follow_with(1)))
        return draws[1][part]

    found = [find_maps(pairs, partial(another, part)) for part, pairs in enumerate(draws[0])]
    output_map, scalings = joined(found, steps)
    return DryRun(
        arguments=[arguments_of(step, several=len(listened) > 1) for step in steps],
        timesteps=[step.timestep for step in steps],
        output_map=output_map,
        scalings=scalings,
        rows=[len(step.model_output) for step in steps],
        shapes=steps[0].shapes,
    )


def check_pairs(pipeline: DiffusionPipeline, steps: Sequence[Step]) -> None:
    """Each step of the scheduler must belong to one call of a denoiser.

    Raises:
        UnfoldableError: A step has none, or several; the error names it.
    """
    for index, step in enumerate(steps):
        if len(step.calls) != 1:
            raise UnfoldableError(
                f"{type(pipeline).__name__}: {len(step.calls)} denoiser calls before scheduler "
                f"step {index + 1} with guidance off",
                "Guidefold pairs one denoiser call with one scheduler step.",
            )


def arguments_of(step: Step, *, several: bool) -> Tree:
    """The arguments of a step's only call, and of the calls that must be made before it.

    With several denoisers, each call's also hold the called one's name.
    """
    (call,) = step.calls

    def named(name: str, arguments: Tree) -> Tree:
        args, kwargs = arguments
        return args, {**kwargs, COMPONENT: name} if several else kwargs

    args, kwargs = named(call.denoiser, call.arguments)
    earlier = [named(*before) for before in call.earlier]
    return args, {**kwargs, EARLIER: earlier} if earlier else kwargs


def fullest(arguments: Sequence[Tree]) -> Tree:
    """The first arguments of a run that need calls before them; if none do, the first of all."""
    return next((a for a in arguments if EARLIER in a[1]), arguments[0])


class RandomStub:
    """Replaces a denoiser: returns noise of the same form, at no cost.

    The real denoiser is called once per shape of arguments; its output is the template. One with
    objects among its arguments is called every time: it may write into them.

    Args:
        seed: The seed of the noise.

    Attributes:
        outputs: Every returned output since the last :meth:`clear`.
        real_calls: The number of calls of the real denoiser.
    """

    def __init__(self, seed: int) -> None:
        self.outputs: list[Any] = []
        self.real_calls = 0
        self._seed = seed
        self._draw_number = 0
        self._templates: dict[tuple[Any, ...], Any] = {}

    def clear(self, draw: int = 0) -> None:
        """Forget the outputs, keep the templates.

        Args:
            draw: The number of the draw; another number gives other noise.
        """
        self.outputs.clear()
        self._draw_number = draw

    @property
    def answers(self) -> list[torch.Tensor]:
        """The first tensor of every returned output."""
        return list(map(output_tensor, self.outputs))

    def __call__(
        self, name: str, denoiser: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Answer one call."""
        key = (name, *((tuple(t.shape), t.dtype) for t in tensors_of((args, kwargs))))
        if key not in self._templates or objects_of((args, kwargs)):
            self._templates[key] = denoiser(*args, **kwargs)
            self.real_calls += 1
        drawn = count()  # each tensor of an output gets noise of its own
        output = tree_map(lambda like: self._draw(like, next(drawn)), self._templates[key])
        self.outputs.append(output)
        return output

    def _draw(self, like: torch.Tensor, number: int) -> torch.Tensor:
        place = (self._seed, self._draw_number, len(self.outputs), *([number] if number else []))
        noise = torch.randn(like.shape, generator=generator(*place))
        return noise.to(like) if like.is_floating_point() else like
