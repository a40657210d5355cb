"""A scheduler's step as a function of the model output, found by probing the scheduler."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from guidefold.ground import CaptureError, UnfoldableError, generator
from guidefold.listen.listener import Step, next_state_of
from guidefold.listen.output_map import fit_rows
from guidefold.listen.parts import pack, unpack
from guidefold.pipeline import single_step_solvers

# The largest error of an affine step, relative to its answer: some solvers compute in float32.
AFFINE = 1e-4
# A slope this much smaller than the largest one is rounding: the output has no effect there.
FLAT = 1e-7


GUIDANCE_ALONE = "Fold its guidance alone: leave student.steps out."


def single_step_remedy(scheduler: Any) -> str:
    """What to set where a scheduler does not serve a few-step student."""
    names = " or ".join(f"pipeline.scheduler={name}" for name in single_step_solvers(scheduler))
    if names:
        return f"A few-step student needs a single-step solver without noise: set {names}."
    return (
        "A few-step student needs a single-step solver without noise, and no other fits "
        f"{type(scheduler).__name__}. {GUIDANCE_ALONE}"
    )


@dataclass(frozen=True)
class AffineStep:
    """One step of a solver: ``next state = offset + slope * model output``, elementwise.

    Attributes:
        offset: The next state for a model output of zeros, float64, shape of the state.
        slope: Its change with the model output, float64, the same shape; zero where a step leaves
            the state as it is, such as the given frames of a film.
    """

    offset: torch.Tensor
    slope: torch.Tensor

    def __call__(self, model_output: torch.Tensor) -> torch.Tensor:
        """The next state for a model output, in float64."""
        return self.offset + self.slope * model_output.double()

    def output_that_reaches(self, state: torch.Tensor, elsewhere: torch.Tensor) -> torch.Tensor:
        """The model output with which the step ends at a state, in float64.

        Args:
            state: Shape of the step's state, or with copies of its rows.
            elsewhere: The output where it moves nothing, of the same shape.

        Raises:
            CaptureError: The state differs where no output moves it.
        """
        state, elsewhere = (fit_rows(t, len(self.offset)).double() for t in (state, elsewhere))
        moved = self.slope.abs() > FLAT * self.slope.abs().max()
        missed = (state - self.offset)[~moved].abs()
        if len(missed) and not missed.max() <= AFFINE * state.abs().max():
            raise CaptureError(
                "the teacher's fine steps move a part of the state that the student's step does not"
            )
        return torch.where(moved, (state - self.offset) / self.slope, elsewhere)


@dataclass
class SolverProbe:
    """Probes each step of a run on copies of its scheduler, which leave the run unchanged.

    Given as ``before_step`` to a :class:`~guidefold.listen.listener.Listener`.

    Attributes:
        steps: The run's steps, by index and part of the state.
    """

    steps: dict[int, dict[int, AffineStep]] = field(default_factory=dict)
    # By part, the scheduler, and a second one that goes the same way with other model outputs.
    _known: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def __call__(
        self, index: int, scheduler: Any, call: inspect.BoundArguments, part: int = 0
    ) -> None:
        """Probe the step that a scheduler is about to take.

        Args:
            index: The step's index in the run.
            scheduler: The scheduler.
            call: The arguments of its ``step``.
            part: The number of the scheduler, if several step side by side.

        Raises:
            UnfoldableError: The step draws noise, depends on earlier model outputs, is not affine
                in the model output, or is another scheduler's than the first.
        """
        here = f"{type(scheduler).__name__}, step {index + 1}"
        if index == 0:
            self._known[part] = scheduler, copy.deepcopy(scheduler)
        first, other = self._known.get(part, (None, None))
        if scheduler is not first:
            raise UnfoldableError(f"{here}: not the scheduler of the first step", GUIDANCE_ALONE)
        given = call.arguments["model_output"]
        zeros = torch.zeros(given.shape, dtype=torch.float64, device=given.device)
        noise = torch.randn(zeros.shape, generator=generator(0, "solver", index)).to(zeros)

        def answer(output: torch.Tensor, seed: int = 0) -> torch.Tensor:
            return _answer(copy.deepcopy(scheduler), call, output, seed)

        at_zero, remedy = answer(zeros), partial(single_step_remedy, scheduler)
        if not torch.equal(at_zero, answer(zeros, seed=1)):
            raise UnfoldableError(f"{here}: the solver draws noise", remedy())
        if not torch.equal(at_zero, _answer(other, call, zeros)):
            raise UnfoldableError(f"{here}: the solver uses earlier model outputs", remedy())
        step = AffineStep(at_zero, answer(zeros + 1) - at_zero)
        _check_affine(step, noise, answer(noise), here, scheduler)
        self.steps.setdefault(index, {})[part] = step

    def outputs_that_reach(self, led: Sequence[Step]) -> list[torch.Tensor]:
        """The model output of each of the run's steps with which it ends where others lead.

        Args:
            led: The teacher's steps from the same states.

        Raises:
            CaptureError: A state differs where no output moves it.
        """
        return [_output([*self.steps[k].values()], step) for k, step in enumerate(led)]


def _output(parts: Sequence[AffineStep], led: Step) -> torch.Tensor:
    ends, given = (unpack(t, led.shapes) for t in (led.next_state, led.model_output))
    reached = zip(parts, ends, given, strict=True)
    outputs = [step.output_that_reaches(end, output) for step, end, output in reached]
    return pack(outputs) if led.shapes else outputs[0]


def _check_affine(
    step: AffineStep, output: torch.Tensor, answer: torch.Tensor, here: str, scheduler: Any
) -> None:
    if output.shape != answer.shape:
        raise UnfoldableError(
            f"{here}: model output and state differ in shape "
            f"({tuple(output.shape)} and {tuple(answer.shape)})",
            single_step_remedy(scheduler),
        )
    error = (step(output) - answer).abs().max()
    if not error <= AFFINE * answer.abs().max():
        raise UnfoldableError(
            f"{here}: the next state is not affine in the model output (clip_sample, thresholding, "
            "or a step of higher order)",
            f"{single_step_remedy(scheduler)} If its states are latents, they need neither: save "
            "the pipeline with both false in scheduler/scheduler_config.json.",
        )
    if not step.slope.any():
        raise UnfoldableError(f"{here}: the model output moves nothing", GUIDANCE_ALONE)


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
