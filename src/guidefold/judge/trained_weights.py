"""The student's trained weights in a stock pipeline: loaded, switched off, fused."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import nn

from guidefold.deliver import open_adapter
from guidefold.lora import adapter_off, fuse_adapter
from guidefold.session import Session


class StudentWeights(Protocol):
    """Trained weights that are evaluated: the LoRA, or a method that it is compared with."""

    def load(self, session: Session, strength: float) -> None:
        """Load a run's trained weights into its session's pipeline."""

    def off(self, denoiser: nn.Module) -> AbstractContextManager[None]:
        """Restore the teacher's weights within the context."""

    def fuse(self, denoiser: nn.Module) -> None:
        """Fuse them into the denoiser; this cannot be undone."""


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
