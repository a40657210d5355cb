"""Selective Guidance: guide the first part of a run's steps, and leave the rest to one pass.

Source: Golnari, Yao & He 2023, arXiv 2305.09847. The later steps can do without guidance; the first
ones decide what is drawn. It works through the callback that a pipeline calls after each step.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import DiffusionPipeline

from guidefold import compat
from guidefold.errors import UnfoldableError

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
