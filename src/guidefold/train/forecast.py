"""What training is going to take, by its first steps."""

from __future__ import annotations

import torch

from guidefold.ground import console, plural
from guidefold.listen import tensors_of
from guidefold.lora import Adapter
from guidefold.pipeline import peak_memory
from guidefold.run import describe_costs

WARM, STEPS = 1, 5
"""Steps that are left out, since they also set up kernels and optimizer; and the last counted."""


class Forecast:
    """Prints once, after the first steps, what the rest of the training will take.

    Args:
        total: Steps to come.
        adapter: The adapter in training.
        optimizer: Its optimizer, whose state is in every checkpoint.
        keep: The number of checkpoints on the disk.
    """

    def __init__(
        self, total: int, adapter: Adapter, optimizer: torch.optim.Optimizer, keep: int
    ) -> None:
        self.total, self.keep = total, keep
        self.parameters, self.optimizer = list(adapter.named_parameters().values()), optimizer
        self._seconds: list[float] = []

    def count(self, seconds: float) -> None:
        """Count a step by its time."""
        if len(self._seconds) == STEPS:
            return
        self._seconds.append(seconds)
        if len(self._seconds) == STEPS and self.total > STEPS:
            measured = self._seconds[WARM:]
            time = self.total * sum(measured) / len(measured)
            peak = peak_memory(self.parameters[0].device)
            costs = describe_costs(time, self.disk_bytes, peak)
            steps = plural(self.total, "training step")
            console.print(f"To take {steps}: {costs}; validations and previews come on top.")

    @property
    def disk_bytes(self) -> int:
        """Bytes of all checkpoints that stand at once."""
        state = tensors_of([list(values.values()) for values in self.optimizer.state.values()])
        return self.keep * sum(tensor.nbytes for tensor in (*self.parameters, *state))
