"""The guidance LoRA of a finished run, which a steps LoRA is trained beside."""

from __future__ import annotations

from pathlib import Path

from guidefold.ground import MismatchError, RunError, in_words
from guidefold.listen import read_findings
from guidefold.lora import Adapter
from guidefold.run import RunFolder, Settings, check_folder, flatten, load_settings, read_tensors
from guidefold.session import Session
from guidefold.train.checkpoints import read_state

SETTING = "student.guidance_run"
# What decides what the guidance LoRA has folded, and how its strength is counted.
SHARED = ("adapter.", "pipeline.negative_prompt", "pipeline.guided_share")


def check_guidance_run(settings: Settings) -> None:
    """Refuse a guidance run that a run cannot begin with, before anything is opened.

    Args:
        settings: The run's settings; once it has a checkpoint, that holds the guidance LoRA.

    Raises:
        RunError: There is no such run, or it has not ended.
        MismatchError: It has other settings, or folds steps as well.
    """
    if not _is_read(settings):
        return
    run = RunFolder(str(settings.student.guidance_run))
    last = _last_checkpoint(run)
    theirs = load_settings(run.config)
    step, wanted = read_state(last).step, theirs.distill.steps
    if step < wanted:
        raise RunError(
            f"{SETTING}: {run} has {step} of {wanted} steps",
            f"Run 'guidefold distill {run}' first.",
        )
    ours, other = (flatten(each.model_dump()) for each in (settings, theirs))
    for name, value in other.items():
        if name.startswith(SHARED) and value != ours[name]:
            raise MismatchError(
                f"{SETTING}: {run} has {name}={in_words(value)}, this run {in_words(ours[name])}",
                f"Set {name} to the same value.",
            )
    if theirs.student.steps is not None:
        raise MismatchError(
            f"{SETTING}: {run} folds steps as well (student.steps={theirs.student.steps})",
            "Name a run that folds guidance alone.",
        )


def check_guidance_base(session: Session) -> None:
    """Refuse a guidance run of another base, before anything is recorded.

    Raises:
        MismatchError: Its base is another.
    """
    if _is_read(session.settings):
        findings = read_findings(RunFolder(str(session.settings.student.guidance_run)))
        if findings is not None:
            findings.check_same_base(session.findings)


def keep_guidance(settings: Settings, adapter: Adapter) -> None:
    """Give an adapter the guidance LoRA that ``student.guidance_run`` has trained.

    Args:
        settings: The run's settings.
        adapter: The run's fresh adapter.

    Raises:
        RunError: There is no such run.
        MismatchError: Its LoRA has other layers.
        CorruptFileError: Its last checkpoint is damaged.
    """
    run = RunFolder(str(settings.student.guidance_run))
    last = _last_checkpoint(run)
    check_folder(last, f"Train it again: 'guidefold distill {run}'.")
    adapter.keep_guidance(read_tensors(last / "adapter.safetensors"))


def _is_read(settings: Settings) -> bool:
    """Whether a run has yet to take the guidance LoRA of another one."""
    named = settings.student.guidance_run is not None
    return named and RunFolder(settings.run).last_checkpoint() is None


def _last_checkpoint(run: RunFolder) -> Path:
    last = run.last_checkpoint()
    if last is None or not run.config.exists():
        raise RunError(
            f"{SETTING}: {run} holds no trained LoRA", f"Run 'guidefold distill {run}' first."
        )
    return last
