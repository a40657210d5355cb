"""Write the adapter that users keep, load it again as they would, and compare."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from guidefold.about import describe_adapter, read_adapter
from guidefold.adapter import (
    DIFFUSERS_FILE,
    PEFT_CONFIG,
    PEFT_FILE,
    adapted_layers,
    adapter_config,
    layers_of,
    load_adapter,
    part_folder,
    unload_adapter,
)
from guidefold.arguments import Tree, tree_map
from guidefold.denoisers import COMPONENT
from guidefold.errors import MismatchError, RunError, VerifyError
from guidefold.findings import Findings
from guidefold.lora.dial import Mark
from guidefold.outputs import output_tensor
from guidefold.pipelines import DTYPES
from guidefold.progress import task
from guidefold.record.rounds import recorded_states
from guidefold.record.trajectory_files import StateRef
from guidefold.run.folder import METADATA, RunFolder, require_run
from guidefold.runs import (
    finished_folder,
    restore_folder,
    write_json,
    write_tensors,
)
from guidefold.session import Session, open_session
from guidefold.settings import Settings
from guidefold.train.batches import some_of
from guidefold.train.calibrate import calibrate
from guidefold.train.checkpoints import load_checkpoint
from guidefold.train.student import Student, lora_student

COMPARED_STATES = 4
CALIBRATED_STATES = 96


def export(settings: Settings) -> Path:
    """Write a run's last checkpoint as an adapter folder, reload it and compare.

    Args:
        settings: The run's.

    Returns:
        The adapter's folder.

    Raises:
        RunError: Nothing is trained yet.
        VerifyError: What was written does not give back what was trained; nothing is kept.
    """
    require_run(settings.run)
    with open_session(settings) as session:
        return write_adapter(session)


@dataclass(frozen=True)
class Trained:
    """What a run has trained, and what its student says.

    Attributes:
        tensors: The adapter's, by peft's names.
        layers: The adapted layers.
        step: The optimizer steps that it took.
        refs: A few recorded states.
        expected: What the student says there.
    """

    tensors: dict[str, torch.Tensor]
    layers: list[str]
    step: int
    refs: list[StateRef]
    expected: list[torch.Tensor]

    def part(self, denoisers: Sequence[str], name: str) -> dict[str, torch.Tensor]:
        """One denoiser's tensors, by its own names."""
        inner = "" if len(denoisers) == 1 else f"{name}."
        return {n.removeprefix(inner): t for n, t in self.tensors.items() if n.startswith(inner)}


def read_trained(session: Session, strength: float = 1.0) -> Trained:
    """Read a run's last checkpoint; the session's pipeline is left without a LoRA.

    Args:
        session: The run's.
        strength: Of the adapter, in what the student says.

    Raises:
        RunError: Nothing is trained yet.
    """
    with _last_student(session) as (student, step, refs):
        return _read(student, step, refs, strength)


def _read(student: Student, step: int, refs: Sequence[StateRef], strength: float) -> Trained:
    few = [refs[k * len(refs) // COMPARED_STATES] for k in range(COMPARED_STATES)]
    expected = [_predict(student, ref, strength) for ref in few]
    return Trained(student.adapter.state_dict(), list(student.adapter.layers), step, few, expected)


@contextmanager
def _last_student(session: Session) -> Iterator[tuple[Student, int, list[StateRef]]]:
    """The student of a run's last checkpoint, its step, and the states it was trained on."""
    run = session.run
    checkpoints = run.checkpoints()
    if not checkpoints:
        raise RunError(f"{run}: nothing is trained yet", "Run 'guidefold distill' first.")
    refs = recorded_states(run, 0, "training")
    student = lora_student(session, refs)
    state = load_checkpoint(checkpoints[-1], student.adapter, None)
    try:
        yield student, state["step"], refs
    finally:
        student.adapter.detach()


def write_adapter(session: Session) -> Path:
    """:func:`export` within an open session, whose pipeline is left without a LoRA."""
    findings = session.findings
    with _last_student(session) as (student, step, refs):
        trained, marks = _read(student, step, refs, 1.0), _calibrate(session, student)
    folder = session.run.adapter
    with finished_folder(folder) as temporary:
        about = describe_adapter(session, trained.step, marks)
        write_json(temporary / METADATA, about)
        prefix = findings.denoisers[0] if findings.loader == "diffusers" else None
        for name in findings.denoisers:
            place = part_folder(temporary, findings.denoisers, name)
            tensors = trained.part(findings.denoisers, name)
            rank = session.settings.adapter.rank
            write_lora(place, prefix, rank, layers_of(tensors), tensors, about)
        _verify(session, temporary, trained)
    return folder


def write_lora(
    folder: Path,
    prefix: str | None,
    rank: int,
    layers: Sequence[str],
    tensors: Mapping[str, torch.Tensor],
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write the files that a client loads.

    Args:
        folder: Where to.
        prefix: The denoiser's component, where diffusers will load them; None where plain peft
            will.
        rank: The rank; alpha equals it.
        layers: The adapted layers' names.
        tensors: By peft's names.
        about: Metadata within the file.
    """
    before = "base_model.model" if prefix is None else prefix
    named = {f"{before}.{name}": tensor for name, tensor in tensors.items()}
    write_tensors(folder / (PEFT_FILE if prefix is None else DIFFUSERS_FILE), named, about)
    if prefix is None:
        write_json(folder / PEFT_CONFIG, adapter_config(rank, layers))


def _calibrate(session: Session, student: Student) -> list[Mark]:
    """Measure the dial on states of held-out prompts, where there are any."""
    asked = session.settings
    refs = recorded_states(session.run, 0, "held-out") or recorded_states(
        session.run, 0, "training"
    )
    some = some_of(refs, CALIBRATED_STATES, asked.seed, "dial")
    with task("Measuring the dial, states", len(some)) as progress:
        return calibrate(student, some, asked.distill.batch_size, progress.advance)


def find_adapter(run: RunFolder, folder: Path | None = None) -> Path:
    """The folder of a run's adapter, or another one that was named.

    Raises:
        RunError: The run has none yet.
    """
    if folder is None:
        folder = run.adapter
        restore_folder(folder)
        if not folder.exists():
            raise RunError(f"{folder}: no adapter yet", "Run 'guidefold distill' first.")
    return folder


def open_adapter(session: Session, strength: float, folder: Path | None = None) -> None:
    """Load a written adapter into a session's stock pipeline, after making sure it belongs there.

    Raises:
        RunError: There is none yet.
        CorruptFileError: Its files are not the ones that were written.
        MismatchError: It was trained on another base.
    """
    folder = find_adapter(session.run, folder)
    about = read_adapter(folder)
    trained_on = Findings.from_json(about["findings"])
    trained_on.check_same_base(session.findings)
    if about["g_ref"] != session.settings.adapter.g_ref:
        raise MismatchError(
            f"{folder}: strength 1 stands for guidance {about['g_ref']:g} in the adapter and "
            f"{session.settings.adapter.g_ref:g} in the settings",
            "Use the run's own settings.",
        )
    findings = session.findings
    load_adapter(session.pipeline, findings.denoisers, findings.loader, folder, strength)


def check_loaded(
    session: Session, trained: Trained, parts: Collection[str], by: str, eps: float = 0.0
) -> float:
    """Compare a pipeline that a written adapter was loaded into with the trained student.

    Args:
        session: Its pipeline holds what was loaded.
        trained: What was trained.
        parts: The denoisers that something was loaded into.
        by: Who loaded it, for messages.
        eps: Of the type that the file is written in.

    Returns:
        How far predictions are apart at most, as a share of the largest.

    Raises:
        VerifyError: Other layers than were trained, or other predictions.
    """
    # In half precision clients round the adapter too; what then hides in the tolerance, a layer
    # that was not loaded, is seen by its name.
    # Some layers stay in float32 whatever a pipeline is opened in: the coarsest type counts.
    held = {p.dtype for p in session.denoiser.parameters()} & set(DTYPES.values())
    eps = max([eps, *(torch.finfo(dtype).eps for dtype in held)])
    tolerance = max(1e-3, 4 * eps)
    several = len(session.findings.denoisers) > 1
    worst = 0.0
    for ref, truth in zip(trained.refs, trained.expected, strict=True):
        arguments = ref.read().arguments
        if several and arguments[1][COMPONENT] not in parts:
            continue
        apart = float((_raw(session, arguments) - truth).abs().max() / truth.abs().max())
        worst = max(worst, apart)
        if not apart <= tolerance:
            raise VerifyError(
                f"{session.run}: the written adapter, loaded by {by}, is {apart:.2g} off the "
                "trained student",
                "Nothing was kept. Please report the pipeline's class and adapter.targets.",
            )
    return worst


def check_layers(session: Session, trained: Trained, parts: Collection[str], by: str) -> None:
    """Compare by name the layers that a loader put a LoRA on with those that were trained.

    Raises:
        VerifyError: They differ.
    """
    names = session.findings.denoisers
    wanted = set(trained.layers)
    if len(names) > 1:
        wanted = {layer for layer in wanted if layer.partition(".")[0] in parts}
    missed = sorted(adapted_layers(session.denoiser) ^ wanted)
    if missed:
        raise VerifyError(
            f"{session.run}: {by} loads other layers than were trained: {', '.join(missed)}",
            "Nothing was kept. Please report the pipeline's class and adapter.targets.",
        )


def _verify(session: Session, folder: Path, trained: Trained) -> None:
    """Load with the client's own loader and compare predictions with the trained student's."""
    findings = session.findings
    load_adapter(session.pipeline, findings.denoisers, findings.loader, folder, 1.0)
    try:
        check_layers(session, trained, findings.denoisers, findings.loader)
        check_loaded(session, trained, findings.denoisers, findings.loader)
    finally:
        unload_adapter(session.denoiser)


def _predict(student: Student, ref: StateRef, strength: float) -> torch.Tensor:
    args, kwargs = student.calls([ref])[0].arguments
    with student.adapter.student_mode(strength, train=False):
        return output_tensor(student.denoiser(*args, **kwargs)).float()


@torch.no_grad()
def _raw(session: Session, arguments: Tree) -> torch.Tensor:
    device = next(session.denoiser.parameters()).device
    args, kwargs = tree_map(lambda t: t.to(device), arguments)
    return output_tensor(session.denoiser(*args, **kwargs)).float()
