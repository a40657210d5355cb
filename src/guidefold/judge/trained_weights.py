"""The student's trained weights in a stock pipeline: loaded, switched off, fused."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import nn

from guidefold.deliver import open_adapter
from guidefold.draw import draw, picture_requests
from guidefold.ground import Task
from guidefold.lora import adapter_off, fuse_adapter
from guidefold.pipeline import Prompt, is_quantized
from guidefold.session import Session


class StudentWeights(Protocol):
    """Trained weights that are evaluated: the LoRA, or a method that it is compared with."""

    def load(self, session: Session, strength: float) -> None:
        """Load a run's trained weights into its session's pipeline."""

    def off(self, denoiser: nn.Module) -> AbstractContextManager[None]:
        """Restore the teacher's weights within the context."""

    def fuse(self, denoiser: nn.Module) -> None:
        """Fuse them into the denoiser; this cannot be undone."""


def prompts_to_time(session: Session, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """The prompts that the fused student is timed with.

    None where its weights are quantised: they hold no sum, which would be rounded to the steps
    between their few values.
    """
    options = session.settings.evaluate
    count = max(options.batch_size, options.state_prompts)
    return () if is_quantized(session.denoiser) else prompts[:count]


def time_fused(
    session: Session, weights: StudentWeights, prompts: Sequence[Prompt], progress: Task
) -> float | None:
    """Fuse trained weights into a session's pipeline for good, and draw with them.

    Returns:
        Denoiser time of one picture in seconds; None without prompts: nothing is fused then.
    """
    if not prompts:
        return None
    with session.no_offloading():
        weights.fuse(session.denoiser)
    requests = picture_requests(session, "student", prompts)
    return draw(session, requests, progress.advance).denoiser_seconds_per_image


class Lora:
    """The adapter that a run has written."""

    def load(self, session: Session, strength: float) -> None:
        """Load it as a client does."""
        open_adapter(session, strength)

    def off(self, denoiser: nn.Module) -> AbstractContextManager[None]:
        """Switch its layers off within the context."""
        return adapter_off(denoiser)

    def fuse(self, denoiser: nn.Module) -> None:
        """Add its update to the weights."""
        fuse_adapter(denoiser)
