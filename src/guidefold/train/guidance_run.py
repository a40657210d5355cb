"""The guidance LoRA of a finished run, which a steps LoRA is trained beside."""

from __future__ import annotations

from guidefold.ground import MismatchError, RunError
from guidefold.listen import read_findings
from guidefold.lora import Adapter
from guidefold.run import RunFolder, check_folder, flatten, load_settings, read_tensors
from guidefold.session import Session
from guidefold.train.checkpoints import read_state

SETTING = "student.guidance_run"


def keep_guidance(session: Session, adapter: Adapter) -> None:
    """Give an adapter the guidance LoRA that ``student.guidance_run`` has trained.

    Args:
        session: The run's session.
        adapter: The run's fresh adapter.

    Raises:
        RunError: There is no such run, or it has not ended.
        MismatchError: It has another base or other settings.
        CorruptFileError: Its last checkpoint is damaged.
    """
    settings = session.settings
    run = RunFolder(str(settings.student.guidance_run))
    last = run.last_checkpoint()
    if last is None or not run.config.exists():
        raise RunError(
            f"{SETTING}: {run} holds no trained LoRA", f"Run 'guidefold distill {run}' first."
        )
    theirs = load_settings(run.config)
    step, wanted = read_state(last).step, theirs.distill.steps
    if step < wanted:
        raise RunError(
            f"{SETTING}: {run} has {step} of {wanted} steps",
            f"Run 'guidefold distill {run}' first.",
        )
    ours = flatten(settings.model_dump())
    for name, value in flatten({"adapter": theirs.adapter.model_dump()}).items():
        if value != ours[name]:
            raise MismatchError(
                f"{SETTING}: {run} has {name}={value!r}, this run {ours[name]!r}",
                f"Set {name} to the same value.",
            )
    if theirs.student.steps is not None:
        raise MismatchError(
            f"{SETTING}: {run} folds steps as well (student.steps={theirs.student.steps})",
            "Name a run that folds guidance alone.",
        )
    findings = read_findings(run)
    if findings is not None:
        findings.check_same_base(session.findings)
    check_folder(last, f"Train it again: 'guidefold distill {run}'.")
    adapter.keep_guidance(read_tensors(last / "adapter.safetensors"))
