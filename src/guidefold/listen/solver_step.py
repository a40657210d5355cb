"""A scheduler's step as a function of the model output, found by probing the scheduler."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from guidefold.ground import UnfoldableError, generator
from guidefold.listen.listener import next_state_of
from guidefold.listen.output_map import fit_rows

SINGLE_STEP = (
    "A few-step student needs a single-step solver without noise: DDIMScheduler "
    "(clip_sample=False), EulerDiscreteScheduler, or FlowMatchEulerDiscreteScheduler for flow "
    "matching. Make it with from_config(pipeline.scheduler.config), and save the pipeline with it "
    "by save_pretrained."
)
# The largest error of an affine step, relative to its answer: some solvers compute in float32.
AFFINE = 1e-4
# A slope this much smaller than the largest one is rounding: the output has no effect there.
FLAT = 1e-7


@dataclass(frozen=True)
class AffineStep:
    """One step of a solver: ``next state = offset + slope * model output``, elementwise.

    Attributes:
        offset: The next state for a model output of zeros, float64, shape of the state.
        slope: Its change with the model output, float64, the same shape; nowhere zero.
    """

    offset: torch.Tensor
    slope: torch.Tensor

    def __call__(self, model_output: torch.Tensor) -> torch.Tensor:
        """The next state for a model output, in float64."""
        return self.offset + self.slope * model_output.double()

    def output_that_reaches(self, state: torch.Tensor) -> torch.Tensor:
        """The model output with which the step ends at a state, in float64.

        Args:
            state: Shape of the step's state, or with copies of its rows.
        """
        return (fit_rows(state, len(self.offset)).double() - self.offset) / self.slope


@dataclass
class SolverProbe:
    """Probes each step of a run on copies of its scheduler, which leave the run unchanged.

    Given as ``before_step`` to a :class:`~guidefold.listen.listener.Listener`.

    Attributes:
        steps: The run's steps, by index.
    """

    steps: dict[int, AffineStep] = field(default_factory=dict)
    _first: Any = None
    _other: Any = None

    def __call__(self, index: int, scheduler: Any, call: inspect.BoundArguments) -> None:
        """Probe the step that a scheduler is about to take.

        Args:
            index: The step's index in the run.
            scheduler: The scheduler.
            call: The arguments of its ``step``.

        Raises:
            UnfoldableError: The step draws noise, depends on earlier model outputs, is not affine
                in the model output, or is another scheduler's than the first.
        """
        if index == 0:
            # A second scheduler, which goes the same way with other model outputs.
            self._first, self._other = scheduler, copy.deepcopy(scheduler)
        if scheduler is not self._first:
            raise UnfoldableError(
                f"{type(scheduler).__name__}: the pipeline steps several of them side by side",
                "Fold its guidance alone: leave student.steps out.",
            )
        zeros = torch.zeros(call.arguments["model_output"].shape, dtype=torch.float64)
        zeros = zeros.to(call.arguments["model_output"].device)
        at_zero = _answer(copy.deepcopy(scheduler), call, zeros)
        here = f"{type(scheduler).__name__}, step {index + 1}"
        if not torch.equal(at_zero, _answer(copy.deepcopy(scheduler), call, zeros, seed=1)):
            raise UnfoldableError(f"{here}: the solver draws noise", SINGLE_STEP)
        if not torch.equal(at_zero, _answer(self._other, call, zeros)):
            raise UnfoldableError(f"{here}: the solver uses earlier model outputs", SINGLE_STEP)
        slope = _answer(copy.deepcopy(scheduler), call, zeros + 1) - at_zero
        step = AffineStep(at_zero, slope)
        noise = torch.randn(zeros.shape, generator=generator(0, "solver", index)).to(zeros)
        _check_affine(step, noise, _answer(copy.deepcopy(scheduler), call, noise), here)
        self.steps[index] = step

    def outputs_that_reach(self, states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The model output of each of the run's steps with which it ends at a given state."""
        return [self.steps[k].output_that_reaches(state) for k, state in enumerate(states)]


def _check_affine(step: AffineStep, output: torch.Tensor, answer: torch.Tensor, here: str) -> None:
    if output.shape != answer.shape:
        raise UnfoldableError(
            f"{here}: model output and state differ in shape "
            f"({tuple(output.shape)} and {tuple(answer.shape)})",
            SINGLE_STEP,
        )
    error = (step(output) - answer).abs().max()
    if not error <= AFFINE * answer.abs().max():
        raise UnfoldableError(
            f"{here}: the next state is not affine in the model output (clip_sample, thresholding, "
            "or a step of higher order)",
            SINGLE_STEP,
        )
    if not step.slope.abs().min() > FLAT * step.slope.abs().max():
        raise UnfoldableError(
            f"{here}: a part of the state does not move with the model output",
            "Fold its guidance alone: leave student.steps out.",
        )


def _answer(
    scheduler: Any, call: inspect.BoundArguments, output: torch.Tensor, seed: int = 0
) -> torch.Tensor:
    """The next state that a scheduler gives for a model output, in float64 where it allows it."""
    values = {**call.arguments, "model_output": output}
    values["sample"] = call.arguments["sample"].double()
    given = values.get("generator")
    if given is not None:
        fresh = [torch.Generator(g.device).manual_seed(seed) for g in _listed(given)]
        values["generator"] = fresh if isinstance(given, list) else fresh[0]
    bound = inspect.BoundArguments(call.signature, values)
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        # The class's own: the instance's `step` is the listener's.
        result = type(scheduler).step(scheduler, *bound.args, **bound.kwargs)
    return next_state_of(result).double()


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
