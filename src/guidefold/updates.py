"""From gradients to parameters: clip, set the learning rate, apply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from guidefold.objective import learning_rate
from guidefold.optimizers import make_optimizer
from guidefold.settings import DistillSettings


class Update(NamedTuple):
    """What one update was.

    Attributes:
        learning_rate: It was made with.
        gradient_norm: Before clipping.
        applied: Whether the gradients were finite; else nothing changed.
    """

    learning_rate: float
    gradient_norm: float
    applied: bool


class Updates:
    """AdamW with a schedule; a step that is not finite is not applied.

    Args:
        parameters: The adapter's.
        asked: Optimizer, learning rate, schedule, weight decay and clipping.
        scaler: The accelerator's, of float16 gradients; None in other precisions.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], asked: DistillSettings, scaler: Any
    ) -> None:
        self.parameters, self.asked, self.scaler = parameters, asked, scaler
        self.optimizer = make_optimizer(asked.optimizer, parameters, asked.weight_decay)

    def apply(self, step: int) -> Update:
        """Turn the gradients at hand into new parameters.

        Args:
            step: Optimizer steps done before, which decides the learning rate.
        """
        asked = self.asked
        rate = learning_rate(step, asked.steps, asked.learning_rate, asked.warmup, asked.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, asked.max_grad_norm)
        finite = bool(norm.isfinite())
        if self.scaler is not None:
            self.scaler.step(self.optimizer)  # skips what is not finite
            self.scaler.update()
        elif finite:
            self.optimizer.step()
        return Update(rate, float(norm), finite)

    def state(self) -> Any:
        """The scaler's, as JSON can hold it; None where there is no scaler."""
        return None if self.scaler is None else self.scaler.state_dict()

    def restore(self, state: Any) -> None:
        """Give the scaler its state back, where there is one."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)
