"""Intercept a pipeline's calls of ``scheduler.step`` and of its denoisers, changing neither."""

from __future__ import annotations

import functools
import inspect
import time
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline
from torch import nn

from guidefold.ground import UnfoldableError, compat
from guidefold.listen.arguments import Tree
from guidefold.listen.memory import Kept, Memory, clone
from guidefold.listen.output_map import rows_of
from guidefold.listen.parts import Shapes, pack, shapes_of

MISSING = object()
NO_ACCELERATOR = ("cpu", "meta")


@dataclass(frozen=True)
class Call:
    """One call of a denoiser.

    Attributes:
        denoiser: The component's name.
        arguments: ``(args, kwargs)``; empty unless the listener keeps arguments.
        output: The denoiser's output; None unless the listener keeps arguments.
        rows: Samples through the denoiser: the leading size of the output.
        seconds: Time inside the denoiser, the device's queue included.
        earlier: Calls that have written into the arguments' objects, each as the called component's
            name and its arguments; empty unless the listener keeps arguments.
    """

    denoiser: str
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    output: Any
    rows: int
    seconds: float
    earlier: tuple[tuple[str, Tree], ...] = ()


@dataclass(frozen=True)
class Step:
    """One call of ``scheduler.step``. Keyed by index: some solvers repeat timesteps.

    If copies of the scheduler step at the same denoiser call (a film's sound), all are one step,
    whose tensors are packed (:mod:`guidefold.listen.parts`).

    Attributes:
        timestep: The pipeline's timestep, as a float.
        state: The pipeline's latents before the step.
        model_output: The prediction after all guidance arithmetic, of the same shape as the state.
        next_state: The latents that the pipeline got back.
        calls: The denoiser calls since the step before.
        shapes: The shapes of the packed parts; empty for a single scheduler.
    """

    timestep: float
    state: torch.Tensor
    model_output: torch.Tensor
    next_state: torch.Tensor
    calls: tuple[Call, ...]
    shapes: Shapes = ()

    @property
    def rows(self) -> int:
        """The number of samples through the denoiser at this step."""
        return sum(call.rows for call in self.calls)


Stub = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class Redirect(Protocol):
    """Maps a part's state and next state at a step to the next state that the pipeline gets."""

    def __call__(
        self, index: int, state: torch.Tensor, next_state: torch.Tensor, part: int = 0, /
    ) -> torch.Tensor:
        """The next state; ``part`` is the number of the scheduler that steps."""
        ...


BeforeStep = Callable[[int, Any, inspect.BoundArguments, int], None]
"""Called with a step's index, the scheduler, the arguments of its ``step``, and its part."""


@dataclass
class Listener:
    """Intercepts ``scheduler.step`` and the denoisers while a pipeline runs.

    Args:
        pipeline: The pipeline.
        listened: Modules to listen at, by component name.
        keep_arguments: Whether to keep each call's arguments and output.
        stub: Called in the denoisers' place.
        redirect: Maps states to the next states that the pipeline gets.
        before_step: Called before every step; it may change nothing that it is given.
        on_step: Called at the end of every step.
    """

    pipeline: DiffusionPipeline
    listened: Mapping[str, nn.Module]
    keep_arguments: bool = False
    stub: Stub | None = None
    redirect: Redirect | None = None
    before_step: BeforeStep | None = None
    on_step: Callable[[], None] | None = None
    steps: list[Step] = field(default_factory=list)
    _parts: list[Step] = field(default_factory=list)
    _stepped: list[Any] = field(default_factory=list)
    _calls: list[Call] = field(default_factory=list)
    _memory: Memory = field(default_factory=Memory)
    _restore: list[tuple[Any, str, Any]] = field(default_factory=list)
    _originals: dict[str, Callable[..., Any]] = field(default_factory=dict)
    _device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __enter__(self) -> Listener:
        if torch.accelerator.is_available():  # to tell, diffusers walks over every module
            self._device = compat.execution_device(self.pipeline)
        self._replace(self.pipeline.scheduler, "step", self._listening_step())
        for name, module in self.listened.items():
            self._replace(module, "forward", self._listening_forward(name, module))
        return self

    def __exit__(self, *exception: object) -> None:
        while self._restore:
            owner, name, before = self._restore.pop()
            if before is MISSING:
                delattr(owner, name)
            else:
                # The instance had its own (an offload hook, a compiled forward): put it back.
                setattr(owner, name, before)

    def _replace(self, owner: Any, name: str, value: object) -> None:
        self._restore.append((owner, name, vars(owner).get(name, MISSING)))
        setattr(owner, name, value)

    def _listening_step(self) -> types.MethodType:
        """The replacement of ``scheduler.step``; pipelines must not see a difference."""
        scheduler = self.pipeline.scheduler
        original = scheduler.step
        signature = inspect.signature(original)

        def step(this: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._restore:  # a copy that the pipeline has kept longer than its call
                return own_step(this)(*args, **kwargs)
            for owner in (this, scheduler):
                if getattr(vars(owner).get("step"), "__self__", None) is not owner:
                    raise UnfoldableError(
                        f"{type(self.pipeline).__name__}: steps a copy of its scheduler",
                        "It swaps its scheduler's state for that of a copy at its steps.",
                    )
            call = signature.bind(*args, **kwargs)
            given = call.arguments
            # Cloned before the call: some solvers write into the tensors that they are given.
            received = {n: clone(given.get(n)) for n in ("timestep", "sample", "model_output")}
            part = self._part_of(this)
            if self.before_step is not None:
                self.before_step(len(self.steps) - bool(part), this, call, part)
            return self._record_step(this, part, received, own_step(this)(*args, **kwargs))

        def own_step(this: Any) -> Any:
            # A deep copy that the pipeline made during the call steps by itself.
            return original if this is scheduler else types.MethodType(original.__func__, this)

        functools.update_wrapper(step, original)
        # Pipelines read this signature to see whether the solver takes ``eta`` and ``generator``:
        # without them, a stochastic solver would draw from the global random state. The signature
        # of a bound method leaves out its first parameter, so one is put before the original's.
        # It is positional-only unless the next is not, as the order of kinds demands.
        this = inspect.Parameter("this", inspect.Parameter.POSITIONAL_ONLY)
        parameters = [this, *signature.parameters.values()]
        if parameters[1].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            parameters[0] = this.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
        step.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        # A method, not a function: in a deep copy of the scheduler ``this`` is then the copy.
        return types.MethodType(step, scheduler)

    def _part_of(self, scheduler: Any) -> int:
        """The number of a scheduler among those that step at the last call of a denoiser."""
        before = self._stepped if not self._calls else []
        return 0 if any(scheduler is other for other in before) else len(before)

    def _record_step(self, scheduler: Any, part: int, received: dict[str, Any], result: Any) -> Any:
        state, next_state = received["sample"], next_state_of(result)
        if self.redirect is not None:
            index = len(self.steps) - bool(part)
            next_state = self.redirect(index, state, next_state, *([part] if part else []))
            result = _with_next_state(result, next_state)
        step = Step(
            timestep=float(torch.as_tensor(received["timestep"]).flatten()[0]),
            state=state,
            model_output=received["model_output"],
            next_state=next_state.detach().clone(),
            calls=tuple(self._calls),
        )
        self._keep_step(scheduler, step, part)
        if self.on_step is not None and not part:
            self.on_step()
        return result

    def _keep_step(self, scheduler: Any, step: Step, part: int) -> None:
        """Keep a scheduler's step as a step of its own, or as a further part of the last one."""
        if part:
            self._parts.append(step)
            self._stepped.append(scheduler)
            self.steps[-1] = _packed(self._parts)
        else:
            self._parts, self._stepped = [step], [scheduler]
            self.steps.append(step)
        self._calls.clear()

    def _listening_forward(self, name: str, module: nn.Module) -> Callable[..., Any]:
        """The replacement of a denoiser's ``forward``.

        A module that is compiled in place traces it, so the listening parts stay uncompiled.
        """
        original = self._originals[name] = module.forward
        uncompiled: Any = torch.compiler.disable

        @uncompiled  # type: ignore[untyped-decorator]
        def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Kept, float]:
            kept = self._memory.keep((args, kwargs)) if self.keep_arguments else Kept(((), {}))
            return kept, _now(self._device)

        @uncompiled  # type: ignore[untyped-decorator]
        def after(kept: Kept, start: float, output: Any) -> None:
            seconds = _now(self._device) - start
            kept_output = output if self.keep_arguments else None
            self._memory.note(name, kept)
            call = Call(name, kept.arguments, kept_output, rows_of(output), seconds, kept.earlier)
            self._calls.append(call)

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            kept, start = before(args, kwargs)
            standing = self._originals[name]
            if self.stub is None:
                output = standing(*args, **kwargs)
            else:
                output = self.stub(name, standing, args, kwargs)
            self._stay(name, module, listening)
            after(kept, start, output)
            return output

        listening: Callable[..., Any] = uncompiled(forward, recursive=False)
        return listening

    def _stay(self, name: str, module: nn.Module, listening: object) -> None:
        """Listen on where a call has changed ``forward``: some hooks remove themselves in one."""
        found = vars(module).get("forward", MISSING)
        if found is listening or not self._restore:
            return
        self._originals[name] = module.forward
        for place, (owner, attribute, _) in enumerate(self._restore):
            if owner is module and attribute == "forward":
                self._restore[place] = (owner, attribute, found)
        setattr(module, "forward", listening)  # noqa: B010


def _packed(parts: list[Step]) -> Step:
    """The parts of a step as one."""
    return replace(
        parts[0],
        state=pack([part.state for part in parts]),
        model_output=pack([part.model_output for part in parts]),
        next_state=pack([part.next_state for part in parts]),
        shapes=shapes_of([part.model_output for part in parts]),
    )


def next_state_of(result: Any) -> torch.Tensor:
    """The next state within what ``scheduler.step`` returns."""
    state: torch.Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return state


def _with_next_state(result: Any, state: torch.Tensor) -> Any:
    if isinstance(result, tuple):
        return (state, *result[1:])
    result.prev_sample = state
    return result


def _now(device: torch.device) -> float:
    """The time in seconds, after a device has finished its queue."""
    if device.type not in NO_ACCELERATOR:
        torch.accelerator.synchronize(device)
    return time.perf_counter()
