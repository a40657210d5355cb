"""Teacher measurements that training needs besides targets: what to learn, unguided errors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from guidefold.record import StateRef
from guidefold.train.batches import Batch, random_subset
from guidefold.train.loss import GuidanceSize, Level, StepSize, loss_scale, residual_by_level
from guidefold.train.student import Student


class TeacherMeasures:
    """The size of what is to be learnt, and the unguided teacher's validation errors.

    Call both ``measure`` methods before the frozen weights are stored in fewer bits: afterwards
    there is no teacher.

    Args:
        student: The student whose denoiser, adapter off, is the teacher.
        batch_size: States per call.
        states: Number of states that the size of guidance is measured at.
        seed: The run's seed, which those states are chosen by.
        strength_floor: The lowest strength that errors are divided by; None turns the division
            off.

    Attributes:
        sizes: The size of guidance, or of a few-step student's steps, by round.
        held_out: Recorded states to validate on.
        unguided: The unguided teacher's error at each of them.
    """

    def __init__(
        self,
        student: Student,
        *,
        batch_size: int,
        states: int,
        seed: int,
        strength_floor: float | None,
    ) -> None:
        self.student, self.batch_size = student, batch_size
        self.states, self.seed, self.strength_floor = states, seed, strength_floor
        self.sizes: dict[int, GuidanceSize | StepSize] = {}
        self.held_out: Sequence[StateRef] = ()
        self.unguided: list[float] = []

    def measure_unguided(self, held_out: Sequence[StateRef]) -> None:
        """Measure the unguided teacher's errors at the states to validate on."""
        self.held_out = held_out
        self.unguided = self.student.errors(held_out, self.batch_size, adapted=False)

    def measure_guidance(self, number: int, refs: Sequence[StateRef]) -> None:
        """Measure the size of guidance, or of few steps, for a stretch of training, once.

        Args:
            number: The stretch's round.
            refs: The states that it trains on; some are chosen at random.
        """
        if number not in self.sizes:
            subset = random_subset(refs, self.states, self.seed, f"size-{number}")
            few = self.student.findings.steps is not None
            measure = self.student.measure_steps if few else self.student.measure_guidance
            self.sizes[number] = measure(subset, self.batch_size)

    def scales(self, batch: Batch, number: int) -> torch.Tensor:
        """The divisors of the samples' squared errors in a stretch, shape (batch,)."""
        device, floor = self.student.device, self.strength_floor
        if floor is None:
            return torch.ones(len(batch.timesteps), device=device)
        dial, size = self.student.dial, self.sizes[number]
        samples = list(zip(batch.timesteps, batch.guidance, strict=True))
        if isinstance(size, StepSize):
            scales = [size.at(t, dial.trained_strength(g), floor) for t, g in samples]
        else:
            scales = [
                loss_scale(size.at(t), dial.nominal_strength(g), floor, dial.span)
                for t, g in samples
            ]
        return torch.tensor(scales, device=device)

    def residual(self) -> list[Level]:
        """Residual guidance on the held-out states, per noise level."""
        errors = self.student.errors(self.held_out, self.batch_size)
        return residual_by_level([ref.timestep for ref in self.held_out], errors, self.unguided)
