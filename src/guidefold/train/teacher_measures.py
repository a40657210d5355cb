"""What the student is measured by while it trains: all that is asked of the teacher but targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from guidefold.record.trajectory_files import StateRef
from guidefold.settings import Settings
from guidefold.train.batches import Batch, some_of
from guidefold.train.loss import GuidanceSize, Level, loss_scale, residual_by_level
from guidefold.train.student import Student


class Yardstick:
    """How large guidance is at each noise level, and how far off the unguided teacher is.

    Make it and :meth:`measure` each round while the frozen weights are whole: afterwards there is
    no teacher.

    Args:
        student: Its denoiser answers as the teacher's, adapter off.
        settings: The run's.
        held_out: Recorded states to validate on; none where nothing is validated.
    """

    def __init__(self, student: Student, settings: Settings, held_out: Sequence[StateRef]) -> None:
        self.student, self.settings, self.held_out = student, settings, held_out
        self.unguided = student.errors(held_out, settings.distill.batch_size, adapted=False)
        self.sizes: dict[int, GuidanceSize] = {}

    def measure(self, number: int, refs: Sequence[StateRef]) -> None:
        """Measure the size of guidance for a stretch of training, once.

        Args:
            number: The stretch's round.
            refs: The states that it trains on; a few are drawn by lot.
        """
        if number not in self.sizes:
            asked = self.settings.distill
            few = some_of(refs, asked.normaliser_states, self.settings.seed, f"size-{number}")
            self.sizes[number] = self.student.measure_guidance(few, asked.batch_size)

    def scales(self, batch: Batch, number: int) -> torch.Tensor:
        """What each sample's squared error is divided by in a stretch, shape (batch,)."""
        asked, device = self.settings.distill, self.student.device
        if asked.loss == "plain":
            return torch.ones(len(batch.timesteps), device=device)
        dial, size = self.student.dial, self.sizes[number]
        scales = [
            loss_scale(size.at(t), dial.nominal_strength(g), asked.strength_floor, dial.span)
            for t, g in zip(batch.timesteps, batch.guidance, strict=True)
        ]
        return torch.tensor(scales, device=device)

    def residual(self) -> list[Level]:
        """Residual guidance on the held-out states, per noise level."""
        errors = self.student.errors(self.held_out, self.settings.distill.batch_size)
        timesteps = [ref.timestep for ref in self.held_out]
        return residual_by_level(timesteps, errors, self.unguided)
