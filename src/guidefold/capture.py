"""Drive a pipeline and listen; follow what was driven: the only file that knows diffusers' seam.

Every diffusers pipeline has two places where all that matters passes: ``scheduler.step``, where the
guided prediction arrives whatever arithmetic made it, and the denoiser's ``forward``, where the
exact arguments arrive that a stock pipeline will use. A :class:`Listener` stands at both and
disturbs neither: a driven run equals an undriven one bit for bit.
"""

from __future__ import annotations

import functools
import inspect
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from guidefold import compat
from guidefold.arguments import Tree, tree_map
from guidefold.errors import CaptureError, NonFiniteError, UnfoldableError
from guidefold.outputs import fit_rows, rows_of
from guidefold.randomness import derive_seed, generator

MISSING = object()
NO_ACCELERATOR = ("cpu", "meta")
GUIDER = "guider"
"""Some pipelines are guided by a component; ``guider.NAME`` in a run's arguments sets it."""


@dataclass(frozen=True)
class Call:
    """One call of a denoiser.

    Attributes:
        denoiser: The component's name.
        arguments: ``(args, kwargs)``; empty unless the listener keeps arguments.
        output: What it returned; None unless the listener keeps arguments.
        rows: Samples through the denoiser: the leading size of the output.
        seconds: Time inside the denoiser, the device's queue included.
    """

    denoiser: str
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    output: Any
    rows: int
    seconds: float


@dataclass(frozen=True)
class Step:
    """One call of ``scheduler.step``. Keyed by index: some solvers repeat timesteps.

    Attributes:
        timestep: As the pipeline gave it, as a float.
        state: The pipeline's latents before the step.
        model_output: The prediction after all guidance arithmetic, of the same shape as the state.
        next_state: The latents that the pipeline was given back.
        calls: The denoiser calls since the step before.
    """

    timestep: float
    state: torch.Tensor
    model_output: torch.Tensor
    next_state: torch.Tensor
    calls: tuple[Call, ...]

    @property
    def rows(self) -> int:
        """Samples through the denoiser at this step."""
        return sum(call.rows for call in self.calls)


Stub = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
Redirect = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Listener:
    """Stands at ``scheduler.step`` and at the denoisers while a pipeline runs.

    Args:
        pipeline: Whose scheduler.
        listened: Modules to listen at, by component name.
        keep_arguments: Keep each call's arguments and output.
        stub: Answers in the denoisers' place.
        redirect: Given ``(index, state, next_state)``, decides the next state.
        on_step: Told of every step as it ends.
    """

    pipeline: DiffusionPipeline
    listened: Mapping[str, nn.Module]
    keep_arguments: bool = False
    stub: Stub | None = None
    redirect: Redirect | None = None
    on_step: Callable[[], None] | None = None
    steps: list[Step] = field(default_factory=list)
    _calls: list[Call] = field(default_factory=list)
    _restore: list[tuple[Any, str, Any]] = field(default_factory=list)

    def __enter__(self) -> Listener:
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
                # What stood on the instance (an offload hook, a compiled forward) stands again.
                setattr(owner, name, before)

    def _replace(self, owner: Any, name: str, value: object) -> None:
        self._restore.append((owner, name, vars(owner).get(name, MISSING)))
        setattr(owner, name, value)

    def _listening_step(self) -> types.MethodType:
        """A method, not a function: a deep copy of the scheduler then shows itself as ``self``."""
        scheduler = self.pipeline.scheduler
        original = scheduler.step
        signature = inspect.signature(original)

        def step(this: Any, *args: Any, **kwargs: Any) -> Any:
            if this is not scheduler:
                raise UnfoldableError(
                    f"{type(self.pipeline).__name__}: steps a copy of its scheduler",
                    "Guidefold listens at the pipeline's own scheduler component.",
                )
            given = signature.bind(*args, **kwargs).arguments
            heard = {n: _clone(given.get(n)) for n in ("timestep", "sample", "model_output")}
            return self._hear_step(heard, original(*args, **kwargs))

        functools.update_wrapper(step, original)
        # Pipelines ask this signature whether the solver takes ``eta`` and ``generator``.
        this = inspect.Parameter("this", inspect.Parameter.POSITIONAL_ONLY)
        parameters = [this, *signature.parameters.values()]
        if parameters[1].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            parameters[0] = this.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
        step.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return types.MethodType(step, scheduler)

    def _hear_step(self, heard: dict[str, Any], result: Any) -> Any:
        state, next_state = heard["sample"], _next_state(result)
        if self.redirect is not None:
            next_state = self.redirect(len(self.steps), state, next_state)
            result = _with_next_state(result, next_state)
        step = Step(
            timestep=float(torch.as_tensor(heard["timestep"]).flatten()[0]),
            state=state,
            model_output=heard["model_output"],
            next_state=next_state.detach().clone(),
            calls=tuple(self._calls),
        )
        self.steps.append(step)
        self._calls.clear()
        if self.on_step is not None:
            self.on_step()
        return result

    def _listening_forward(self, name: str, module: nn.Module) -> Callable[..., Any]:
        """Where the module is compiled in place, its call reaches here: what listens is not."""
        original = module.forward
        uncompiled: Any = torch.compiler.disable

        @uncompiled  # type: ignore[untyped-decorator]
        def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, float]:
            return (_clone((args, kwargs)) if self.keep_arguments else ((), {})), _now(module)

        @uncompiled  # type: ignore[untyped-decorator]
        def after(kept: Any, start: float, output: Any) -> None:
            seconds = _now(module) - start
            answer = output if self.keep_arguments else None
            self._calls.append(Call(name, kept, answer, rows_of(output), seconds))

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            kept, start = before(args, kwargs)
            if self.stub is None:
                output = original(*args, **kwargs)
            else:
                output = self.stub(name, original, args, kwargs)
            after(kept, start, output)
            return output

        return uncompiled(forward, recursive=False)  # type: ignore[no-any-return]


def drive(
    pipeline: DiffusionPipeline,
    inputs: Mapping[str, Any],
    seeds: Sequence[int],
    listened: Mapping[str, nn.Module],
    **listening: Any,
) -> list[Step]:
    """Run a pipeline to its last latents and record what passes.

    Args:
        pipeline: The pipeline.
        inputs: Arguments of its call, without generator and output type.
        seeds: One per prompt; fresh generators are built from them.
        listened: Modules to listen at.
        **listening: Further arguments of :class:`Listener`.

    Returns:
        One entry per ``scheduler.step``.

    Raises:
        UnfoldableError: The pipeline does not step its own scheduler, or takes no generator.
    """
    with Listener(pipeline, listened, **listening) as listener:
        run(pipeline, inputs, seeds, output_type=_undecoded(pipeline))
    if not listener.steps:
        raise UnfoldableError(
            f"{type(pipeline).__name__}: never steps its scheduler "
            f"({type(pipeline.scheduler).__name__})",
            "Guidefold listens at scheduler.step, which this pipeline does not use.",
        )
    return listener.steps


def follow(
    pipeline: DiffusionPipeline,
    inputs: Mapping[str, Any],
    seeds: Sequence[int],
    listened: Mapping[str, nn.Module],
    driven: Sequence[Step],
    **listening: Any,
) -> list[Step]:
    """Run a pipeline with other settings along the states of a driven run.

    Args:
        pipeline: The same pipeline.
        inputs: Arguments of its call, which may differ in guidance.
        seeds: The driven run's.
        listened: Modules to listen at.
        driven: The states to visit.
        **listening: Further arguments of :class:`Listener`.

    Returns:
        What the pipeline would have said at each of the driven states.

    Raises:
        CaptureError: It stands at another state, or takes another number of steps.
    """

    def redirect(index: int, state: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        if index >= len(driven):
            raise CaptureError(
                f"the pipeline takes more than the {len(driven)} steps it took before"
            )
        if not bool(state.isfinite().all()):
            raise NonFiniteError(
                f"step {index}: the pipeline's latents are not finite",
                "Its weights are damaged, or overflow in this precision: try pipeline.dtype=fp32.",
            )
        if not torch.equal(state, fit_rows(driven[index].state, _rows(state))):
            raise CaptureError(
                f"step {index}: the pipeline does not stand at the recorded state",
                "Its latents depend on more than prompt, seed and the steps before, such as a "
                "callback with a memory.",
            )
        return fit_rows(driven[index].next_state, _rows(next_state)).to(next_state)

    steps = drive(pipeline, inputs, seeds, listened, redirect=redirect, **listening)
    if len(steps) != len(driven):
        raise CaptureError(
            f"the pipeline takes {len(steps)} steps where it took {len(driven)} before"
        )
    return steps


def run(
    pipeline: DiffusionPipeline, inputs: Mapping[str, Any], seeds: Sequence[int], output_type: str
) -> Any:
    """Call a pipeline with fresh generators.

    Raises:
        UnfoldableError: Its call takes no generator, so that no run can be repeated.
    """
    parameters = inspect.signature(type(pipeline).__call__).parameters
    if "generator" not in parameters:
        raise UnfoldableError(f"{type(pipeline).__name__}: its call takes no generator")
    # With one prompt a plain generator, as users do: some solvers take no list.
    generators = [generator(seed) for seed in seeds]
    optional = {"output_type": output_type} if "output_type" in parameters else {}
    call = {name: value for name, value in inputs.items() if "." not in name}
    guided = _guided(pipeline, {n: v for n, v in inputs.items() if "." in n})
    with guided, _own_randomness(seeds):
        return pipeline(
            **call, generator=generators[0] if len(generators) == 1 else generators, **optional
        )


@contextmanager
def _own_randomness(seeds: Sequence[int]) -> Iterator[None]:
    """Seed torch's own states for a while: some pipelines draw from them, generator or not."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(derive_seed(seeds[0], "torch"))
        yield


def _undecoded(pipeline: DiffusionPipeline) -> str:
    """The output type that costs least; that they know no latents is said only after the run."""
    return "latent" if compat.names_latents(pipeline) else "pt"


@contextmanager
def _guided(pipeline: DiffusionPipeline, asked: Mapping[str, Any]) -> Iterator[None]:
    """The pipeline's guiders set for a while; each is made afresh, so that none remembers."""
    values = {name.removeprefix(f"{GUIDER}."): value for name, value in asked.items()}
    before = guiders(pipeline) if values else {}
    try:
        for name, guider in before.items():
            setattr(pipeline, name, guider.new(**values))
        yield
    finally:
        for name, guider in before.items():
            setattr(pipeline, name, guider)


def guiders(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """The components that guide, by name."""
    kind = compat.guidance_class()
    return {n: c for n, c in pipeline.components.items() if isinstance(c, kind)}


def denoisers_of(steps: Iterable[Step]) -> tuple[str, ...]:
    """The components called last before a step, in order of appearance.

    Encoders are called before the first step only, control networks before the denoiser.
    """
    return tuple(dict.fromkeys(step.calls[-1].denoiser for step in steps if step.calls))


def passes_of(steps: Sequence[Step]) -> float:
    """Samples through the listened denoisers per step."""
    return sum(step.rows for step in steps) / len(steps)


def _rows(tensor: torch.Tensor) -> int:
    return tensor.shape[0] if tensor.ndim else 1


def _clone(tree: Tree) -> Tree:
    return tree_map(lambda tensor: tensor.detach().clone(), tree)


def _next_state(result: Any) -> torch.Tensor:
    state: torch.Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return state


def _with_next_state(result: Any, state: torch.Tensor) -> Any:
    if isinstance(result, tuple):
        return (state, *result[1:])
    result.prev_sample = state
    return result


def _now(module: nn.Module) -> float:
    """A clock that waits for the module's device."""
    parameter = next(module.parameters(), None)
    if parameter is not None and parameter.device.type not in NO_ACCELERATOR:
        torch.accelerator.synchronize(parameter.device)
    return time.perf_counter()
