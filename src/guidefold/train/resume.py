"""Going on from a checkpoint: with which settings it was trained, and with the log of that time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guidefold.ground import MismatchError, console, in_words, plural
from guidefold.run import (
    PATHS,
    CheckpointState,
    LogLine,
    ResumeLine,
    RunFolder,
    Settings,
    changed_settings,
    count_lines,
    flatten,
    free_settings,
    lines_lost,
    rooted,
    write_lines,
)
from guidefold.train.checkpoints import read_state

# Settings that may change on the way: the steps until there are still those of this student on
# these states. Sources are compared by their content: the base's fingerprint, the prompts' digests.
# The guidance LoRA of another run is taken before the first step, and not read again.
CHANGEABLE = {
    *(f"{table}.{name}" for table, name in PATHS if name != "guidance_run"),
    "record.batch_size",
    "distill.accumulation",
    "distill.learning_rate",
    "distill.warmup",
    "distill.schedule",
    "distill.weight_decay",
    "distill.max_grad_norm",
    "distill.frozen_weights",
    "distill.mixed_precision",
    "distill.gradient_checkpointing",
}


def saved_with(run: RunFolder, settings: Settings) -> dict[str, Any]:
    """What a checkpoint holds of its run: the settings, and the number of the log's lines."""
    return {
        "settings": flatten(rooted(settings).model_dump(mode="json", exclude={"run", "evaluate"})),
        "log_lines": count_lines(run.log),
    }


def refuse_other_run(folder: Path, state: CheckpointState, settings: Settings) -> None:
    """Refuse settings that make what a checkpoint learnt another run's.

    Args:
        folder: The checkpoint.
        state: What it holds; one of version 0.1.0 holds no settings, and fits.
        settings: The settings now.

    Raises:
        MismatchError: Names each such setting with both values.
    """
    allowed = CHANGEABLE | free_settings(settings)
    if state.step >= settings.distill.steps:  # no step is left that could be trained with others
        allowed -= {name for name in CHANGEABLE if name.startswith("distill.")}
    differing = [
        f"{name}: {in_words(before)} in {folder}, {in_words(now)} given"
        for name, (before, now) in _changed(state.settings, settings).items()
        if name not in allowed
    ]
    if differing:
        raise MismatchError(
            f"{settings.run}: trained with other settings\n  " + "\n  ".join(differing),
            f"Go on with the earlier values: 'guidefold distill {settings.run}' takes them from "
            f"{RunFolder(settings.run).config}, which must hold them. Or choose another folder "
            "with run=FOLDER.",
        )


def check_settings(settings: Settings) -> None:
    """:func:`refuse_other_run` for a run's last checkpoint, where there is one."""
    last = RunFolder(settings.run).last_checkpoint()
    if last is not None:
        refuse_other_run(last, read_state(last), settings)


def resume_log(run: RunFolder, state: CheckpointState, settings: Settings) -> None:
    """Bring the log back to a checkpoint, and tell there what is otherwise than at that time.

    Lines past the checkpoint are dropped: they will be written again.

    Args:
        run: The run's folder.
        state: The checkpoint's.
        settings: The settings now.

    Raises:
        CorruptFileError: A line of the log is damaged.
    """
    lines = LogLine.read_lines(run.log)[: state.log_lines]
    kept = [line for line in lines if line.step <= state.step]
    told = ResumeLine(
        step=state.step,
        changed=_changed(state.settings, settings),
        missing_lines=lines_lost(state, len(kept)),
    )
    for name, (before, now) in told.changed.items():
        values = f"{in_words(now)}, until here {in_words(before)}"
        console.print(f"From step {state.step} on: {name} {values}")
    if told.missing_lines:
        lost = plural(told.missing_lines, "line")
        console.print(f"Beware: {run.log} lacks {lost} up to step {state.step}.")
    last = [told] if told.changed or told.missing_lines else []
    write_lines(run.log, [line.to_json() for line in (*kept, *last)])


def _changed(before: Mapping[str, Any], settings: Settings) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, but those that the checkpoint's or this version does not know."""
    now = flatten(settings.model_dump(mode="json"))
    return {
        name: values
        for name, values in changed_settings(before, settings).items()
        if name in before.keys() & now.keys() or (before and name.startswith("pipeline.call."))
    }
