"""What a run has trained: its last checkpoint, and what the student predicts with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from guidefold.deliver.formats import Tensors
from guidefold.ground import RunError, task
from guidefold.listen import output_tensor
from guidefold.lora import Mark
from guidefold.record import StateRef, recorded_states
from guidefold.run import RunFolder
from guidefold.session import Session
from guidefold.train import Student, calibrate, load_checkpoint, lora_student, some_of

COMPARED_STATES = 4
CALIBRATED_STATES = 96


@dataclass(frozen=True)
class Trained:
    """What a run has trained, and what its student predicts.

    Attributes:
        run: The run's folder.
        parts: Each denoiser's tensors, by its own names of peft's kind.
        step: The optimizer steps that it took.
        strength: Of the adapter, in the predictions.
        refs: A few recorded states.
        expected: What the student predicts there.
        marks: Its dial, if it was measured.
    """

    run: RunFolder
    parts: Mapping[str, Tensors]
    step: int
    strength: float
    refs: Sequence[StateRef]
    expected: Sequence[torch.Tensor]
    marks: Sequence[Mark]

    def strengthened(self, name: str) -> dict[str, torch.Tensor]:
        """One denoiser's tensors that are at strength 1 what was trained is at its strength."""
        tensors = self.parts[name]
        return {n: t * self.strength if ".lora_B." in n else t for n, t in tensors.items()}


def read_trained(session: Session, strength: float = 1.0, *, measure: bool = False) -> Trained:
    """Read a run's last checkpoint; the session's pipeline is left without a LoRA.

    Args:
        session: The run's.
        strength: Of the adapter, in what the student predicts.
        measure: Whether the dial is measured as well.

    Raises:
        RunError: Nothing is trained yet.
    """
    run = session.run
    checkpoints = run.checkpoints()
    if not checkpoints:
        raise RunError(f"{run}: nothing is trained yet", "Run 'guidefold distill' first.")
    refs = recorded_states(run, 0, "training")
    student = lora_student(session, refs)
    state = load_checkpoint(checkpoints[-1], student.adapter, None)
    try:
        few = [refs[k * len(refs) // COMPARED_STATES] for k in range(COMPARED_STATES)]
        return Trained(
            run,
            _parts(student.adapter.state_dict(), session.findings.denoisers),
            state["step"],
            strength,
            few,
            [_predict(student, ref, strength) for ref in few],
            _calibrate(session, student) if measure else (),
        )
    finally:
        student.adapter.detach()


def _parts(tensors: Tensors, denoisers: Sequence[str]) -> dict[str, Tensors]:
    """An adapter's tensors by denoiser; of several, their names come first in its own."""
    if len(denoisers) == 1:
        return {denoisers[0]: tensors}
    return {
        name: {n.removeprefix(inner): t for n, t in tensors.items() if n.startswith(inner)}
        for name in denoisers
        if (inner := f"{name}.")
    }


def _predict(student: Student, ref: StateRef, strength: float) -> torch.Tensor:
    args, kwargs = student.calls([ref])[0].arguments
    with student.adapter.student_mode(strength, train=False):
        return output_tensor(student.denoiser(*args, **kwargs)).float()


def _calibrate(session: Session, student: Student) -> list[Mark]:
    """Measure the dial on states of held-out prompts, where there are any."""
    asked = session.settings
    refs = recorded_states(session.run, 0, "held-out") or recorded_states(
        session.run, 0, "training"
    )
    some = some_of(refs, CALIBRATED_STATES, asked.seed, "dial")
    with task("Measuring the dial, states", len(some)) as progress:
        return calibrate(student, some, asked.distill.batch_size, progress.advance)
