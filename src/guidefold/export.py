"""Write the adapter that users keep, load it again as they would, and compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from guidefold import __version__
from guidefold.adapter import (
    DIFFUSERS_FILE,
    PEFT_CONFIG,
    PEFT_FILE,
    adapted_layers,
    adapter_config,
    load_adapter,
    part_folder,
    unload_adapter,
)
from guidefold.arguments import Tree, tree_map
from guidefold.checkpoints import find_checkpoints, load_checkpoint
from guidefold.errors import MismatchError, RunError, VerifyError
from guidefold.findings import Findings
from guidefold.outputs import output_tensor
from guidefold.runs import (
    check_folder,
    finished_folder,
    read_json,
    require_run,
    restore_folder,
    write_json,
    write_tensors,
)
from guidefold.session import Session, open_session
from guidefold.settings import Settings
from guidefold.shards import StateRef, read_round, state_refs
from guidefold.student import Student

METADATA = "guidefold.json"
COMPARED_STATES = 4


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
    require_run(Path(settings.run))
    with open_session(settings) as session:
        return write_adapter(session)


def write_adapter(session: Session) -> Path:
    """:func:`export` within an open session, whose pipeline is left without a LoRA."""
    run, findings, settings = session.run, session.findings, session.settings
    checkpoints = find_checkpoints(run)
    if not checkpoints:
        raise RunError(f"{run}: nothing is trained yet", "Run 'guidefold distill' first.")
    recorded = run / "trajectories" / "round-0"
    refs = state_refs(recorded, read_round(recorded), "training")
    student = Student(session.denoiser, findings, settings.adapter, settings.seed, refs)
    state = load_checkpoint(checkpoints[-1], student.adapter, None)
    few = [refs[k * len(refs) // COMPARED_STATES] for k in range(COMPARED_STATES)]
    expected = [_predict(student, ref) for ref in few]
    tensors, layers = student.adapter.state_dict(), list(student.adapter.layers)
    student.adapter.detach()
    folder = run / "adapter"
    with finished_folder(folder) as temporary:
        about = describe_adapter(session, state["step"])
        write_json(temporary / METADATA, about)
        prefix = findings.denoisers[0] if findings.loader == "diffusers" else None
        for name in findings.denoisers:
            place = part_folder(temporary, findings.denoisers, name)
            inner = "" if len(findings.denoisers) == 1 else f"{name}."
            write_lora(
                place,
                prefix,
                settings.adapter.rank,
                [layer.removeprefix(inner) for layer in layers if layer.startswith(inner)],
                {n.removeprefix(inner): t for n, t in tensors.items() if n.startswith(inner)},
                about,
            )
        _verify(session, temporary, set(layers), few, expected)
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


def describe_adapter(session: Session, step: int) -> dict[str, Any]:
    """What an adapter says of itself, as JSON."""
    settings, findings = session.settings, session.findings
    origin, g_ref = findings.origin, settings.adapter.g_ref
    return {
        "guidefold": __version__,
        "base": settings.pipeline.source,
        "findings": findings.to_json(),
        "negative_prompt": settings.pipeline.negative_prompt,
        "g_ref": g_ref,
        "dial": settings.adapter.dial,
        "guidance_range": list(settings.record.guidance),
        "rank": settings.adapter.rank,
        "targets": settings.adapter.targets,
        "step": step,
        "usage_hint": f"{_unguided_call(findings)}; strength 1 = guidance {g_ref:g}"
        + (
            f", strength s = guidance {origin:g} + {g_ref - origin:g} s"
            if settings.adapter.dial
            else ""
        ),
    }


def _unguided_call(findings: Findings) -> str:
    """What the pipeline is called with beside the adapter, in words."""
    return ", ".join(
        f"{name}={value:g}"
        for name, value in {findings.guidance_argument: findings.off, **findings.also_off}.items()
    )


def open_adapter(session: Session, strength: float, folder: Path | None = None) -> None:
    """Load a written adapter into a session's stock pipeline, after making sure it belongs there.

    Raises:
        RunError: There is none yet.
        CorruptFileError: Its files are not the ones that were written.
        MismatchError: It was trained on another base.
    """
    if folder is None:
        folder = session.run / "adapter"
        restore_folder(folder)
        if not folder.exists():
            raise RunError(f"{folder}: no adapter yet", "Run 'guidefold distill' first.")
    if not (folder / METADATA).exists():
        raise RunError(
            f"{folder}: no adapter of Guidefold's ({METADATA} is missing)",
            "Name the folder that 'guidefold distill' or 'guidefold export' wrote.",
        )
    check_folder(folder, "Write it again with 'guidefold export RUN'.")
    about = read_json(folder / METADATA)
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


def _verify(
    session: Session,
    folder: Path,
    layers: set[str],
    refs: Sequence[StateRef],
    expected: Sequence[torch.Tensor],
) -> None:
    """Load with the client's own loader and compare predictions with the trained student's."""
    findings = session.findings
    load_adapter(session.pipeline, findings.denoisers, findings.loader, folder, 1.0)
    # In half precision clients round the adapter too; what then hides in the tolerance, a layer
    # that was not loaded, is seen by its name.
    tolerance = max(1e-3, 4 * torch.finfo(next(session.denoiser.parameters()).dtype).eps)
    try:
        if adapted_layers(session.denoiser) != layers:
            missed = sorted(adapted_layers(session.denoiser) ^ layers)
            raise VerifyError(
                f"{session.run}: {findings.loader} loads other layers than were trained: "
                f"{', '.join(missed)}",
                "Nothing was kept. Please report the pipeline's class and adapter.targets.",
            )
        for ref, truth in zip(refs, expected, strict=True):
            answer = _raw(session, ref.read().arguments)
            worst = float((answer - truth).abs().max())
            if not worst <= tolerance * float(truth.abs().max()):
                raise VerifyError(
                    f"{session.run}: the written adapter, loaded by {findings.loader}, is "
                    f"{worst:.2g} off the trained student",
                    "Nothing was kept. Please report the pipeline's class and adapter.targets.",
                )
    finally:
        unload_adapter(session.denoiser)


def _predict(student: Student, ref: StateRef) -> torch.Tensor:
    args, kwargs = student.calls([ref])[0].arguments
    with student.adapter.student_mode(1.0, train=False):
        return output_tensor(student.denoiser(*args, **kwargs)).float()


@torch.no_grad()
def _raw(session: Session, arguments: Tree) -> torch.Tensor:
    device = next(session.denoiser.parameters()).device
    args, kwargs = tree_map(lambda t: t.to(device), arguments)
    return output_tensor(session.denoiser(*args, **kwargs)).float()
