"""Drive a pipeline and listen; follow what was driven: the only file that knows diffusers' seam.

Every diffusers pipeline has two places where all that matters passes: ``scheduler.step``, where the
guided prediction arrives whatever arithmetic made it, and the denoiser's ``forward``, where the
exact arguments arrive that a stock pipeline will use. A :class:`Listener` stands at both and
disturbs neither: a driven run equals an undriven one bit for bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from guidefold.ground import (
    CaptureError,
    NonFiniteError,
    UnfoldableError,
    compat,
    derive_seed,
    generator,
)
from guidefold.listen.listener import Listener, Step
from guidefold.listen.output_map import fit_rows

GUIDER = "guider"
"""Some pipelines are guided by a component; ``guider.NAME`` in a run's arguments sets it."""


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
