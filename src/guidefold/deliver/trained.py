"""A run's last checkpoint: its tensors, and the trained student's predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from guidefold.deliver.formats import Tensors
from guidefold.ground import InputError, RunError, task
from guidefold.listen import call_recorded, predictions
from guidefold.lora import (
    Adapter,
    Mark,
    candidates,
    guidance_of,
    merge_loras,
    steps_of,
    unportable,
)
from guidefold.pipeline import as_one_module
from guidefold.record import StateRef, recorded_states
from guidefold.run import Layers, LoraRole, RunFolder
from guidefold.session import Session
from guidefold.train import (
    Student,
    calibrate,
    check_settings,
    load_checkpoint,
    lora_student,
    random_subset,
)

COMPARED_STATES = 4
CALIBRATED_STATES = 96


@dataclass(frozen=True)
class Trained:
    """A run's trained adapter, and the student's predictions with it.

    Attributes:
        run: The run's folder.
        folds: What the tensors fold: of two LoRAs one, or both merged.
        parts: Each denoiser's tensors as a file holds them, by peft's names within that denoiser,
            the strength baked in.
        step: The number of optimizer steps taken.
        strength: The strength of the run's adapter that is baked in, and in the predictions.
        refs: Recorded states at which predictions are compared.
        expected: The student's predictions at these states.
        marks: The measured dial; empty where it was not measured.
        left_out: The trained layers that are not in the parts, and not in the predictions.
    """

    run: RunFolder
    folds: LoraRole
    parts: Mapping[str, Tensors]
    step: int
    strength: float
    refs: Sequence[StateRef]
    expected: Sequence[torch.Tensor]
    marks: Sequence[Mark]
    left_out: Sequence[str] = ()


def read_trained(
    session: Session,
    strength: float = 1.0,
    *,
    layers: Layers = "all",
    merged: bool = False,
    measure: bool = False,
) -> dict[LoraRole, Trained]:
    """Read a run's last checkpoint; the session's pipeline is left without a LoRA.

    Args:
        session: The run's session.
        strength: The adapter's strength in the student's predictions.
        layers: Which of the trained layers: ``all``, or ``portable``.
        merged: Whether two LoRAs are wanted as one too.
        measure: Whether to measure the dial as well.

    Returns:
        Each of the run's LoRAs by what it folds; with ``merged``, under ``both`` two as one.

    Raises:
        InputError: No trained layer is a portable one.
        RunError: Nothing is trained yet.
        MismatchError: It was trained with settings that make it another run.
    """
    run = session.run
    checkpoints = run.checkpoints()
    if not checkpoints:
        raise RunError(f"{run}: nothing is trained yet", "Run 'guidefold distill' first.")
    check_settings(session.settings)
    refs = recorded_states(session, 0, "training")
    everywhere = candidates(as_one_module(session.denoisers), "all")
    lost = unportable(everywhere) if layers == "portable" else set()
    own, both = session.settings.lora_roles, ("both",) if merged else ()
    session.hold_denoiser()
    student = lora_student(session, refs)
    state = load_checkpoint(checkpoints[-1], student.adapter, None)
    try:
        kept, left_out = _without(student.adapter, lost)
        compared = [refs[k * len(refs) // COMPARED_STATES] for k in range(COMPARED_STATES)]
        # Without a dial there is one strength; steps are not in proportion to it.
        marks = _calibrate(session, student) if measure and "guidance" in own else []
        return {
            role: Trained(
                run,
                role,
                _parts(_tensors(kept, role, strength), session.findings.denoisers),
                state.step,
                strength,
                compared,
                [_predict(student, ref, role, strength) for ref in compared],
                marks if role == "guidance" else (),
                left_out,
            )
            for role in dict.fromkeys(own if len(own) == 1 else (*own, *both))
        }
    finally:
        student.adapter.detach()


def _tensors(trained: Tensors, folds: LoraRole, strength: float) -> Tensors:
    """The tensors of one file, by peft's names: the strength scales all but a steps LoRA."""
    steps = steps_of(trained)
    if folds == "steps":
        return steps
    scaled = {n: t * strength if ".lora_B." in n else t for n, t in guidance_of(trained).items()}
    return merge_loras(scaled, steps) if steps and folds == "both" else scaled


def _without(adapter: Adapter, lost: set[str]) -> tuple[Tensors, list[str]]:
    """Leave layers out of an adapter: ``(tensors of the others, layers that were left out)``."""
    tensors = adapter.state_dict()
    left_out = sorted(adapter.layers.keys() & lost)
    if not left_out:
        return tensors, []
    outer = {n for n in tensors if n.partition(".lora_")[0] in left_out}
    kept = {name: tensor for name, tensor in tensors.items() if name not in outer}
    if not kept:
        raise InputError("--layers portable: no trained layer is left", "Use --layers all.")
    adapter.load_state_dict(
        kept | {name: tensors[name].new_zeros(tensors[name].shape) for name in outer}
    )
    return kept, left_out


def _parts(tensors: Tensors, denoisers: Sequence[str]) -> dict[str, Tensors]:
    """Split an adapter's tensors by denoiser; of several, each has its name as a prefix."""
    prefixes = {name: f"{name}." if len(denoisers) > 1 else "" for name in denoisers}
    return {
        name: {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        for name, prefix in prefixes.items()
    }


def _predict(student: Student, ref: StateRef, role: LoraRole, strength: float) -> torch.Tensor:
    (batch,) = student.calls([ref])
    # Of two LoRAs the one that is not meant is off; guidance alone is turned by the strength.
    turned, steps = (0.0 if role == "steps" else strength), float(role != "guidance")
    with student.adapter.student_mode(turned, steps=steps, train=False):
        output = call_recorded(student.denoiser, batch.arguments)
    return predictions(output, len(batch.shapes)).float()


def _calibrate(session: Session, student: Student) -> list[Mark]:
    """Measure the dial on states of held-out prompts, where there are any."""
    settings = session.settings
    refs = recorded_states(session, 0, "held-out") or recorded_states(session, 0, "training")
    chosen = random_subset(refs, CALIBRATED_STATES, settings.seed, "dial")
    with task("Measuring the dial, states", len(chosen)) as progress:
        return calibrate(student, chosen, settings.distill.batch_size, progress.advance)
