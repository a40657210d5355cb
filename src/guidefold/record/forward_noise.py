"""Forward noise on clean latents, by the pipeline's own scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from guidefold.ground import UnfoldableError, generator, out_of_memory


def add_noise(
    scheduler: Any, clean: torch.Tensor, index: int, seeds: Sequence[int]
) -> torch.Tensor:
    """Add noise to clean latents, up to the noise level of a step.

    Args:
        scheduler: In the middle of a run, about to take step ``index``.
        clean: Shape (batch, ...).
        index: The step; past the last one the latents stay clean.
        seeds: One for each sample.

    Raises:
        UnfoldableError: The scheduler cannot add noise.
    """
    if index >= len(scheduler.timesteps):
        return clean
    noise = torch.cat(
        [torch.randn((1, *clean.shape[1:]), generator=generator(s, "noise", index)) for s in seeds]
    ).to(clean)
    timesteps = scheduler.timesteps[index : index + 1].expand(len(clean))
    error: Exception | None = None
    try:
        if hasattr(scheduler, "scale_noise"):
            return scheduler.scale_noise(clean, timesteps, noise)  # type: ignore[no-any-return]
        if hasattr(scheduler, "add_noise"):
            return scheduler.add_noise(clean, noise, timesteps)  # type: ignore[no-any-return]
    except (RuntimeError, TypeError, ValueError, IndexError) as own:  # such as one of tokens
        if out_of_memory(own):
            raise
        error = own
    raise UnfoldableError(
        f"{type(scheduler).__name__} cannot add noise{f' ({error})' if error else ''}",
        "Use record.rounds = ['teacher'].",
    ) from error
