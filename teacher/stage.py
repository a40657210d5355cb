"""One stage of training: a loss that is a function of the step, trained until done or out of time.

Nothing here draws at random. A stage that is cut off and resumed takes the same steps as one that
ran through: on a CPU, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from teacher.checkpoints import (
    Averaged,
    read_state,
    restore_training,
    training_tensors,
    write_state,
)

_SECONDS_BETWEEN_STATES = 120.0
_STEPS_BETWEEN_LINES = 50


def step_seed(seed: int, step: int) -> int:
    """One seed for each step of each run."""
    return (seed * 1_000_003 + step) % 2**62


@dataclass(frozen=True, slots=True)
class Stage:
    """Modules, their loss and a number of steps.

    Attributes:
        name: Shown with the progress, and the name of the state's folder.
        folder: Folder of the states.
        modules: Modules to train, by name.
        loss: The loss of a step, a scalar; every random draw in it must follow from the step.
        steps: Steps in all.
        peak_rate: Highest learning rate; it rises at first and falls to zero at the end.
        decay: Decay of the averaged weights.
        recipe: Everything else that decides the result; a state of another recipe is refused.
    """

    name: str
    folder: Path
    modules: dict[str, nn.Module]
    loss: Callable[[int], Tensor]
    steps: int
    peak_rate: float
    decay: float
    recipe: dict[str, Any]

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by full name."""
        return {
            f"{prefix}.{name}": parameter
            for prefix, module in self.modules.items()
            for name, parameter in module.named_parameters()
        }

    def rate(self, step: int) -> float:
        """The learning rate of a step: up over the first 2 %, level, down over the last 70 %."""
        rising = (step + 1) / max(1.0, 0.02 * self.steps)
        falling = (self.steps - step) / max(1.0, 0.7 * self.steps)
        return self.peak_rate * min(1.0, rising, falling)


class _Run:
    """The state of a stage while it is trained."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.parameters = stage.parameters()
        values = list(self.parameters.values())
        self.optimizer = torch.optim.AdamW(values, lr=0.0, betas=(0.9, 0.99), weight_decay=0.01)
        self.averaged = Averaged(self.parameters, stage.decay)
        self.step = 0

    def resume(self) -> None:
        state = read_state(self.stage.folder / self.stage.name)
        if state is None:
            return
        tensors, facts = state
        if facts["recipe"] != self.stage.recipe:
            raise ValueError(
                f"{self.stage.folder / self.stage.name} was trained by another recipe: "
                f"{facts['recipe']}, not {self.stage.recipe}; give another --work folder"
            )
        restore_training(tensors, self.parameters, self.optimizer, self.averaged)
        self.step = facts["step"]

    def save(self) -> None:
        tensors = training_tensors(self.parameters, self.optimizer, self.averaged)
        facts = {"step": self.step, "recipe": self.stage.recipe}
        write_state(self.stage.folder / self.stage.name, tensors, facts)

    def advance(self) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.stage.rate(self.step)
        loss = self.stage.loss(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"{self.stage.name}: gradient of step {self.step} is {norm}")
        self.optimizer.step()
        self.averaged.update(self.parameters, self.step)
        self.step += 1
        return loss.detach()


def train(stage: Stage, deadline: float, resume: bool = True) -> bool:
    """Train a stage, keep its state on disk, and leave the averaged weights in its modules.

    Args:
        stage: The stage to train.
        deadline: Value of `time.monotonic()` at which to stop and save.
        resume: Whether to go on from the state on disk, if there is one.

    Returns:
        Whether the stage has taken all its steps.

    Raises:
        ValueError: If the state on disk is of another recipe.
        FloatingPointError: If a gradient is not finite.
    """
    run = _Run(stage)
    if resume:
        run.resume()
    first, began, saved = run.step, time.monotonic(), time.monotonic()
    while run.step < stage.steps and time.monotonic() < deadline:
        loss = run.advance()
        now = time.monotonic()
        if run.step % _STEPS_BETWEEN_LINES == 0:
            seconds = (now - began) / (run.step - first)
            left = min(deadline - now, seconds * (stage.steps - run.step))
            print(
                f"{stage.name} {run.step}/{stage.steps} loss {float(loss):.4f} "
                f"{1000 * seconds:.0f} ms/step, {left / 60:.1f} min left",
                flush=True,
            )
        if now - saved > _SECONDS_BETWEEN_STATES:
            run.save()
            saved = now
    run.save()
    run.averaged.copy_to(run.parameters)
    return run.step >= stage.steps
