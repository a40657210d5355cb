"""The student's weights in a stock pipeline: put on, off for a while, fused for good."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import nn

from guidefold.deliver import open_adapter
from guidefold.lora import adapter_off, fuse_adapter
from guidefold.session import Session


class StudentWeights(Protocol):
    """What was trained, to be measured: the LoRA, or a rival that it is measured against."""

    def load(self, session: Session, strength: float) -> None:
        """Put a run's trained weights on its session's pipeline."""

    def off(self, denoiser: nn.Module) -> AbstractContextManager[None]:
        """The teacher's weights for a while."""

    def fuse(self, denoiser: nn.Module) -> None:
        """Leave nothing but plain weights; there is no way back."""


class Lora:
    """The adapter that a run has written."""

    def load(self, session: Session, strength: float) -> None:
        """As a client loads it."""
        open_adapter(session, strength)

    def off(self, denoiser: nn.Module) -> AbstractContextManager[None]:
        """Its layers are switched off."""
        return adapter_off(denoiser)

    def fuse(self, denoiser: nn.Module) -> None:
        """Its update is added to the weights."""
        fuse_adapter(denoiser)
