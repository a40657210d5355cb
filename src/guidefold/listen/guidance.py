"""Set a pipeline's guidance, and find by trial what switches it off and how it scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from torch import nn

from guidefold.ground import CallError, UnfoldableError, compat, out_of_memory
from guidefold.listen.capture import GUIDER, drive, follow, passes_of
from guidefold.listen.listener import Step
from guidefold.listen.output_map import fit_rows
from guidefold.listen.refusal import parameters_of

SCALE = f"{GUIDER}.guidance_scale"
OFF_VALUES = (1.0, 0.0)  # 0 in pipelines that write guidance as cond + s * (cond - uncond)
CALLBACK = "callback_on_step_end"
# A measured origin this near (in parts of the scale's distance from it) counts as a known value.
NEAR = 0.05
# The share of a change's squared length that may lie off a straight line; half precision needs it.
STRAIGHT = 1e-2


def scale_arguments(argument: str, guidance: float, off: float) -> dict[str, Any]:
    """Call arguments that set a guidance scale.

    Args:
        argument: The argument that scales guidance.
        guidance: Its value.
        off: The value that switches guidance off; for it, a guider is disabled too.
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
    """Find the call arguments that leave the fewest passes.

    The guidance argument is tried first. If passes are left over, every other number of the call
    whose name says scale or guidance is tried too (perturbed attention, spatio-temporal guidance).

    Args:
        pipeline: The pipeline.
        inputs: The arguments of its call.
        argument: The call argument that scales guidance.
        listened: The denoisers.
        seed: The seed of the runs.

    Returns:
        ``(off, further arguments, steps)``: the value that switches guidance off, what else is
        needed, and the run with both.
    """
    runs = []
    for off in OFF_VALUES:
        unguided = {**inputs, **scale_arguments(argument, off, off)}
        steps = _drive_or_none(pipeline, unguided, seed, listened)
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
            changed = {**inputs, **scale_arguments(argument, off, off), **also, name: value}
            fewer = _drive_or_none(pipeline, changed, seed, listened)
            if fewer is not None and passes_of(fewer) < passes:
                also[name], passes, steps = value, passes_of(fewer), fewer
                break
    if passes > 1:
        together = _switch_together(pipeline, inputs, argument, off, listened, seed)
        if together is not None:
            also, steps = together
    return off, also, steps


def _switch_together(
    pipeline: DiffusionPipeline,
    inputs: Mapping[str, Any],
    argument: str,
    off: float,
    listened: Mapping[str, nn.Module],
    seed: int,
) -> tuple[dict[str, float], list[Step]] | None:
    """Switch off all other scales at 0, then leave those as they were that add no passes.

    Some passes are made as long as any of several scales is on (a film's and its sound's).

    Returns:
        The scales that must be 0 and the run with them; None if passes are left over.
    """
    unguided = {**inputs, **scale_arguments(argument, off, off)}
    also = dict.fromkeys(_other_scales(pipeline, argument, inputs), 0.0)
    steps = _drive_or_none(pipeline, unguided | also, seed, listened)
    if steps is None or passes_of(steps) > 1:
        return None
    for name in list(also):
        fewer = {other: value for other, value in also.items() if other != name}
        without = _drive_or_none(pipeline, unguided | fewer, seed, listened)
        if without is not None and passes_of(without) <= 1:
            also, steps = fewer, without
    return also, steps


class Scaling(NamedTuple):
    """How a pipeline's guidance follows its scale.

    Attributes:
        origin: The scale at which guidance is zero.
        linear: Whether guidance is linear in the scale, at every denoiser.
        fixed: The denoisers whose guidance does not follow the scale.
    """

    origin: float
    linear: bool
    fixed: tuple[str, ...] = ()


class Change(NamedTuple):
    """What guidance changes at a step, at the full scale and at the half.

    Attributes:
        denoiser: The denoiser that was called.
        whole: The change at the full scale.
        half: The change halfway to ``off``.
    """

    denoiser: str
    whole: torch.Tensor
    half: torch.Tensor

    @property
    def size(self) -> float:
        """The squared length of the change."""
        return float(self.whole.square().sum())

    @property
    def ratio(self) -> float:
        """The half's part along the whole, in lengths of the whole."""
        return float((self.half * self.whole).sum()) / self.size

    @property
    def bent(self) -> float:
        """The share of the half's squared length that is not parallel to the whole."""
        off_line = float((self.half - self.ratio * self.whole).square().sum())
        return off_line / max(float(self.half.square().sum()), 1e-12)


def find_origin(
    pipeline: DiffusionPipeline,
    on: Mapping[str, Any],
    unguided: Mapping[str, Any],
    argument: str,
    off: float,
    driven: Sequence[Step],
    listened: Mapping[str, nn.Module],
    seed: int,
) -> Scaling:
    """Find the scale at which guidance is zero, and whether guidance is linear in the scale.

    Let ``d(g) = target(g) - unguided`` at the states of a guided run, at the step where it is
    largest. If guidance is linear, ``d(h) = d(g) (h - origin) / (g - origin)`` for any ``h``, so
    one more run, at a scale ``h`` halfway to ``off``, gives the origin:

        ratio  = <d(h), d(g)> / <d(g), d(g)>
        origin = (h - ratio g) / (1 - ratio)

    The part of ``d(h)`` that is not parallel to ``d(g)`` shows guidance that is not linear
    (rescaled or normalised guidance). A denoiser with ``d(h) = d(g)`` is guided by another scale,
    which the call sets (``guidance_scale_2``).

    Args:
        pipeline: The pipeline.
        on: Call arguments of the guided run.
        unguided: Call arguments of a run in one pass.
        argument: The call argument that scales guidance.
        off: The value that switches guidance off.
        driven: The guided run.
        listened: The denoisers.
        seed: The seed of the guided run.

    Returns:
        The scaling; its origin is ``off`` if guidance is not linear.

    Raises:
        UnfoldableError: Guidance changes nothing.
    """
    g = float(on[argument])
    h = off + (g - off) / 2
    half = follow(pipeline, {**on, **scale_arguments(argument, h, off)}, [seed], listened, driven)
    plain = follow(pipeline, unguided, [seed], listened, driven)
    largest = _largest_changes(driven, half, plain)
    if not largest:
        raise UnfoldableError(
            f"{type(pipeline).__name__}: guidance changes nothing: the model output is the same at "
            f"{argument}={g:g} and in one pass",
            "Its prompt and its negative prompt may say the same.",
        )
    same = [name for name, change in largest.items() if abs(1 - change.ratio) < NEAR]
    fixed = tuple(same) if len(same) < len(largest) else ()  # normalised guidance changes as little
    following = [change for name, change in largest.items() if name not in fixed]
    change = max(following, key=lambda change: change.size)
    if change.bent > STRAIGHT or change.ratio == 1:
        return Scaling(off, False, fixed)
    origin, linear = _known_origin((h - change.ratio * g) / (1 - change.ratio), g, off)
    return Scaling(origin, linear and not fixed, fixed)


def _largest_changes(
    driven: Sequence[Step], half: Sequence[Step], plain: Sequence[Step]
) -> dict[str, Change]:
    """The largest change of each denoiser; none of one whose output guidance does not change."""
    largest: dict[str, Change] = {}
    for at_g, at_h, without in zip(driven, half, plain, strict=True):
        name = at_g.calls[-1].denoiser if at_g.calls else ""
        change = Change(name, _change(at_g, without), _change(at_h, without))
        if change.size > (largest[name].size if name in largest else 0.0):
            largest[name] = change
    return largest


def _known_origin(origin: float, g: float, off: float) -> tuple[float, bool]:
    """The origin among those that pipelines are known to have; another is noise, or not linear."""
    for candidate in (off, *OFF_VALUES):
        if abs(origin - candidate) <= NEAR * max(1.0, abs(g - candidate)):
            return candidate, True
    return off, False


def _change(guided: Step, unguided: Step) -> torch.Tensor:
    rows = len(unguided.model_output)
    return fit_rows(guided.model_output, rows).double() - unguided.model_output


def _drive_or_none(
    pipeline: DiffusionPipeline,
    inputs: Mapping[str, Any],
    seed: int,
    listened: Mapping[str, nn.Module],
) -> list[Step] | None:
    """A run; None if the pipeline refuses these arguments."""
    try:
        return drive(pipeline, inputs, [seed], listened)
    except CallError:
        return None
    except (AttributeError, RuntimeError) as error:  # with no argument of the user's to blame
        if out_of_memory(error):
            raise
        return None


def _other_scales(
    pipeline: DiffusionPipeline, argument: str, inputs: Mapping[str, Any]
) -> Iterator[str]:
    """The call's other arguments that are numbers and named for a scale."""
    for name, parameter in parameters_of(pipeline).items():
        value = inputs.get(name, parameter.default)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and name != argument and ("scale" in name or "guidance" in name):
            yield name


def stop_guiding(
    pipeline: DiffusionPipeline, argument: str, off: float, share: float
) -> dict[str, Any]:
    """Call arguments that end guidance after a share of the steps.

    Args:
        pipeline: The pipeline.
        argument: The call argument that scales guidance.
        off: The value that switches guidance off.
        share: The share of guided steps, from the first on, in (0, 1]; at least one step is guided.

    Returns:
        Nothing if all steps are guided; else a callback without state.

    Raises:
        UnfoldableError: The pipeline takes no such callback.
    """
    if share == 1:
        return {}
    if CALLBACK not in parameters_of(pipeline):
        raise UnfoldableError(
            f"{type(pipeline).__name__}: its call takes no {CALLBACK}, so guidance cannot end "
            "after a part of the steps",
            "Set pipeline.guided_share=1.",
        )

    def after_step(this: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> Any:
        if index + 1 != max(1, round(share * _step_count(this))):
            return {}
        compat.set_guidance(this, argument, off)
        return {name: _conditional_half(name, value, tensors) for name, value in tensors.items()}

    names = compat.callback_tensors(pipeline)
    return {CALLBACK: after_step, f"{CALLBACK}_tensor_inputs": names}


def _step_count(pipeline: Any) -> int:
    """The number of steps of the current run."""
    counted = getattr(pipeline, "num_timesteps", None)
    return int(counted or len(pipeline.scheduler.timesteps))


def _conditional_half(name: str, value: Any, tensors: dict[str, Any]) -> Any:
    """The conditional half of a tensor that was doubled for guidance; other tensors as they are."""
    # Batched CFG puts the unconditional rows before the conditional ones, so a doubled tensor has
    # two rows for each row of the latents. Its copies named ``negative_...`` are not read once the
    # batch is built: they keep their rows.
    doubled = 2 * len(tensors["latents"]) if "latents" in tensors else None
    if not isinstance(value, torch.Tensor) or name.startswith("negative") or len(value) != doubled:
        return value
    return value.chunk(2)[1]
