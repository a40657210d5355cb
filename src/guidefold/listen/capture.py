"""Drive a pipeline and record its steps; follow a driven run with other settings.

Two calls carry all that matters in every diffusers pipeline: ``scheduler.step`` gets the guided
prediction, whatever arithmetic made it, and the denoiser's ``forward`` gets the exact arguments
that a stock pipeline will use. A :class:`Listener` intercepts both and changes neither: a driven
run equals an undriven one bit for bit.
"""

from __future__ import annotations

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
    plural,
)
from guidefold.listen.listener import Listener, Step
from guidefold.listen.output_map import fit_rows
from guidefold.listen.parts import unpack
from guidefold.listen.refusal import explained_call, parameters_of

GUIDER = "guider"
"""Some pipelines have a component that guides; a run's argument ``guider.NAME`` sets its NAME."""


def drive(
    pipeline: DiffusionPipeline,
    inputs: Mapping[str, Any],
    seeds: Sequence[int],
    listened: Mapping[str, nn.Module],
    **listening: Any,
) -> list[Step]:
    """Run a pipeline to its last latents and record its steps.

    Args:
        pipeline: The pipeline.
        inputs: Arguments of its call, without generator and output type.
        seeds: One seed per prompt, for a fresh generator.
        listened: Modules to listen at.
        **listening: Further arguments of :class:`Listener`.

    Returns:
        One entry per ``scheduler.step``.

    Raises:
        UnfoldableError: The pipeline does not step its own scheduler, does not scale the denoiser's
            input as it asks for, or takes no generator.
    """
    with Listener(pipeline, listened, **listening) as listener:
        run(pipeline, inputs, seeds, output_type=_cheapest_output_type(pipeline))
    if not listener.steps:
        raise UnfoldableError(
            f"{type(pipeline).__name__}: never steps its scheduler "
            f"({type(pipeline.scheduler).__name__})",
            "Guidefold listens at scheduler.step, which this pipeline does not use.",
        )
    if not getattr(pipeline.scheduler, "is_scale_input_called", True):
        raise UnfoldableError(
            f"{type(pipeline).__name__}: never scales the denoiser's input, as "
            f"{type(pipeline.scheduler).__name__} asks for",
            "Set pipeline.scheduler to one that takes the input as it is, such as DDIMScheduler.",
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
    """Run a pipeline with other settings through the states of a driven run.

    Args:
        pipeline: The same pipeline.
        inputs: Arguments of its call, which may differ in guidance.
        seeds: The driven run's seeds.
        listened: Modules to listen at.
        driven: The states to visit.
        **listening: Further arguments of :class:`Listener`.

    Returns:
        One entry per step, with the pipeline's model output at the driven state.

    Raises:
        CaptureError: The pipeline reaches another state, or takes another number of steps.
    """

    def redirect(
        index: int, state: torch.Tensor, next_state: torch.Tensor, part: int = 0
    ) -> torch.Tensor:
        if index >= len(driven):
            raise CaptureError(
                f"the pipeline takes more than the {plural(len(driven), 'step')} it took before"
            )
        if not bool(state.isfinite().all()):
            raise NonFiniteError(
                f"step {index}: the pipeline's latents are not finite",
                "Its weights are damaged, or overflow in this precision: try pipeline.dtype=fp32.",
            )
        visited, following = (
            unpack(tensor, driven[index].shapes)[part]
            for tensor in (driven[index].state, driven[index].next_state)
        )
        if not torch.equal(state, fit_rows(visited, _rows(state)).to(state)):
            raise CaptureError(
                f"step {index}: the pipeline does not stand at the recorded state",
                "Its latents depend on more than prompt, seed and the steps before, such as a "
                "callback with a memory.",
            )
        return fit_rows(following, _rows(next_state)).to(next_state)

    steps = drive(pipeline, inputs, seeds, listened, redirect=redirect, **listening)
    if len(steps) != len(driven):
        raise CaptureError(
            f"the pipeline takes {plural(len(steps), 'step')} where it took {len(driven)} before"
        )
    return steps


def run(
    pipeline: DiffusionPipeline, inputs: Mapping[str, Any], seeds: Sequence[int], output_type: str
) -> Any:
    """Call a pipeline with fresh generators.

    Raises:
        UnfoldableError: The call takes no generator, so that no run can be repeated.
        CallError: The pipeline refuses the arguments, or fails with them.
        PipelineError: It needs a library that is not installed.
    """
    parameters = parameters_of(pipeline)
    if "generator" not in parameters:
        raise UnfoldableError(f"{type(pipeline).__name__}: its call takes no generator")
    # One prompt gets a plain generator, as from users: some solvers take no list.
    generators = [generator(seed) for seed in seeds]
    optional = {"output_type": output_type} if "output_type" in parameters else {}
    call = {name: value for name, value in inputs.items() if "." not in name}
    guider_settings = {n: v for n, v in inputs.items() if "." in n}
    with (
        _guiders_set(pipeline, guider_settings),
        _torch_seeded(seeds),
        explained_call(pipeline, call),
    ):
        return pipeline(
            **call, generator=generators[0] if len(generators) == 1 else generators, **optional
        )


@contextmanager
def _torch_seeded(seeds: Sequence[int]) -> Iterator[None]:
    """Seed torch's global generators within the context: some pipelines ignore their generator."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(derive_seed(seeds[0], "torch"))
        yield


def _cheapest_output_type(pipeline: DiffusionPipeline) -> str:
    """``latent`` skips the autoencoder; pipelines without it would complain only after the run."""
    return "latent" if compat.names_latents(pipeline) else "pt"


@contextmanager
def _guiders_set(pipeline: DiffusionPipeline, settings: Mapping[str, Any]) -> Iterator[None]:
    """Replace the guiders within the context by new ones: a used guider keeps state."""
    values = {name.removeprefix(f"{GUIDER}."): value for name, value in settings.items()}
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
    """The names of the components that are called last before a step, in order of appearance.

    Encoders are called only before the first step, control networks before the denoiser.
    """
    return tuple(dict.fromkeys(step.calls[-1].denoiser for step in steps if step.calls))


def passes_of(steps: Sequence[Step]) -> float:
    """The number of samples through the listened denoisers per step."""
    return sum(step.rows for step in steps) / len(steps)


def _rows(tensor: torch.Tensor) -> int:
    return tensor.shape[0] if tensor.ndim else 1
