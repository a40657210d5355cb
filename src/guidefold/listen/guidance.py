"""How a pipeline's guidance is set and switched off: found by trying, never by its name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from guidefold.ground import UnfoldableError, compat
from guidefold.listen.capture import GUIDER, drive, follow, passes_of
from guidefold.listen.listener import Step
from guidefold.listen.output_map import fit_rows

SCALE = f"{GUIDER}.guidance_scale"
OFF_VALUES = (1.0, 0.0)  # 0 in pipelines that write guidance as cond + s * (cond - uncond)
NEAR = 0.05
STRAIGHT = 1e-2


def scale_arguments(argument: str, guidance: float, off: float) -> dict[str, Any]:
    """Call arguments that set a guidance scale.

    Args:
        argument: What scales guidance.
        guidance: To what.
        off: The value that switches it off; a guider is then disabled, whatever else it does.
    """
    enabled = {f"{GUIDER}.enabled": guidance != off} if argument == SCALE else {}
    return {argument: guidance, **enabled}


def find_off(
    pipeline: DiffusionPipeline,
    inputs: Mapping[str, Any],
    argument: str,
    listened: Mapping[str, nn.Module],
    seed: int,
) -> tuple[float, dict[str, float], list[Step]]:
    """Find what leaves the fewest passes: a value of the guidance argument, and what else it takes.

    Where passes are left, every other number of the call that is named for a scale is tried too
    (perturbed attention, spatio-temporal guidance).

    Returns:
        ``(off, further arguments, the run)``.
    """
    runs = []
    for off in OFF_VALUES:
        steps = _tried(pipeline, {**inputs, **scale_arguments(argument, off, off)}, seed, listened)
        if steps is not None:
            runs.append((passes_of(steps), -off, off, steps))
            if passes_of(steps) <= 1:
                break
    if not runs:
        return OFF_VALUES[0], {}, drive(pipeline, inputs, [seed], listened)
    passes, _, off, steps = min(runs, key=lambda run: run[:2])
    also: dict[str, float] = {}
    for name in _other_scales(pipeline, argument, inputs):
        for value in reversed(OFF_VALUES):
            if passes <= 1:
                break
            asked = {**inputs, **scale_arguments(argument, off, off), **also, name: value}
            tried = _tried(pipeline, asked, seed, listened)
            if tried is not None and passes_of(tried) < passes:
                also[name], passes, steps = value, passes_of(tried), tried
                break
    return off, also, steps


def find_origin(
    pipeline: DiffusionPipeline,
    on: Mapping[str, Any],
    unguided: Mapping[str, Any],
    argument: str,
    off: float,
    driven: Sequence[Step],
    listened: Mapping[str, nn.Module],
    seed: int,
) -> tuple[float, bool]:
    """Where guidance comes to nothing, and whether it grows in proportion from there.

    At the states of a guided run, of the step with the most guidance: with ``d(g) = target(g) -
    unguided``, ``<d(h), d(g)> / <d(g), d(g)> = (h - origin) / (g - origin)``.

    Args:
        pipeline: The pipeline.
        on: Call arguments of the guided run.
        unguided: Call arguments of a run in one pass.
        argument: What scales guidance.
        off: The value that switches it off.
        driven: The guided run.
        listened: The denoisers.
        seed: Of the run.

    Returns:
        ``(origin, linear)``; the origin is ``off`` where none is found.

    Raises:
        UnfoldableError: Guidance changes nothing.
    """
    g = float(on[argument])
    h = off + (g - off) / 2
    half = follow(pipeline, {**on, **scale_arguments(argument, h, off)}, [seed], listened, driven)
    plain = follow(pipeline, unguided, [seed], listened, driven)
    changes = [
        tuple(
            fit_rows(guided.model_output, len(u.model_output)).double() - u.model_output
            for guided in (t, k)
        )
        for t, k, u in zip(driven, half, plain, strict=True)
    ]
    whole, part = max(changes, key=lambda pair: float(pair[0].square().sum()))
    size = float(whole.square().sum())
    if not size:
        raise UnfoldableError(
            f"{type(pipeline).__name__}: guidance changes nothing: the model output is the same at "
            f"{argument}={g:g} and in one pass",
            "Its prompt and its negative prompt may say the same.",
        )
    ratio = float((part * whole).sum()) / size
    bent = float((part - ratio * whole).square().sum()) / max(float(part.square().sum()), 1e-12)
    origin = (h - ratio * g) / (1 - ratio) if ratio != 1 else float("inf")
    for candidate in (off, *OFF_VALUES):
        if abs(origin - candidate) <= NEAR * max(1.0, abs(g - candidate)):
            return (candidate, True) if bent <= STRAIGHT else (off, False)
    return off, False


def _tried(
    pipeline: DiffusionPipeline,
    inputs: Mapping[str, Any],
    seed: int,
    listened: Mapping[str, nn.Module],
) -> list[Step] | None:
    """A run; None where the pipeline refuses these values."""
    try:
        return drive(pipeline, inputs, [seed], listened)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, AttributeError, RuntimeError):
        return None


def _other_scales(
    pipeline: DiffusionPipeline, argument: str, inputs: Mapping[str, Any]
) -> Iterator[str]:
    """Numbers of the call that are named for a scale, and are not nothing now."""
    for name, parameter in inspect.signature(type(pipeline).__call__).parameters.items():
        value = inputs.get(name, parameter.default)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and name != argument and ("scale" in name or "guidance" in name):
            yield name


CALLBACK = "callback_on_step_end"


def stop_guiding(
    pipeline: DiffusionPipeline, argument: str, off: float, share: float
) -> dict[str, Any]:
    """Call arguments that end guidance after a share of the steps.

    Args:
        pipeline: Whose call.
        argument: The call argument that scales guidance.
        off: The value that switches guidance off.
        share: Of the steps, from the first, that are guided; in (0, 1]. At least one step is.

    Returns:
        Empty for the whole; else a callback that remembers nothing.

    Raises:
        UnfoldableError: The pipeline takes no such callback.
    """
    if share == 1:
        return {}
    parameters = inspect.signature(type(pipeline).__call__).parameters
    if CALLBACK not in parameters:
        raise UnfoldableError(
            f"{type(pipeline).__name__}: its call takes no {CALLBACK}, so guidance cannot end "
            "after a part of the steps",
            "Set pipeline.guided_share=1.",
        )

    def after_step(this: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> Any:
        if index + 1 != max(1, round(share * _count(this))):
            return {}
        compat.set_guidance(this, argument, off)
        return {name: _conditional_half(name, value, tensors) for name, value in tensors.items()}

    names = compat.callback_tensors(pipeline)
    return {CALLBACK: after_step, f"{CALLBACK}_tensor_inputs": names}


def _count(pipeline: Any) -> int:
    """How many steps the present run takes."""
    counted = getattr(pipeline, "num_timesteps", None)
    return int(counted or len(pipeline.scheduler.timesteps))


def _conditional_half(name: str, value: Any, tensors: dict[str, Any]) -> Any:
    """What was doubled for guidance, with two rows for each of the latents', loses its first half.

    The tensors named ``negative_...`` are spare copies that nothing reads any more.
    """
    doubled = 2 * len(tensors["latents"]) if "latents" in tensors else None
    if not isinstance(value, torch.Tensor) or name.startswith("negative") or len(value) != doubled:
        return value
    return value.chunk(2)[1]
