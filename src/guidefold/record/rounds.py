"""Record the rounds of a run into their folders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from diffusers import DiffusionPipeline

from guidefold.draw import Previews
from guidefold.ground import ConfigError, Stop, console, plural, stop_on_signals
from guidefold.listen import Findings, run_inputs
from guidefold.lora import Adapter, Dial
from guidefold.pipeline import DTYPES, Prompt, count_duplicates, signs_of_distillation
from guidefold.record.plans import plan_round
from guidefold.record.recorder import Recorder, record_round
from guidefold.record.trajectory_files import (
    Split,
    StateRef,
    drop_damaged,
    read_round,
    state_refs,
)
from guidefold.run import LINES, RunFolder, Settings, sha256
from guidefold.session import Session, open_session

WHOLE_ROUND = (1, 1)
"""The shard that holds every batch."""


def record(settings: Settings, shard: tuple[int, int] = WHOLE_ROUND) -> Path:
    """Record every round that needs no trained student; damaged trajectories are recorded again.

    Args:
        settings: The run's.
        shard: ``(i, n)``: record every n-th batch only, from the i-th;
            :func:`~guidefold.record.gather.gather` joins the shards that machines have recorded.

    Returns:
        The run's folder.

    Raises:
        InputError: Wrong prompts, settings, pipeline or base; a folder in use.
        Stopped: On request; what was recorded stands.
    """
    with open_session(settings, keep_settings=True) as session:
        return record_rounds(session, shard)


def record_rounds(session: Session, shard: tuple[int, int] = WHOLE_ROUND) -> Path:
    """:func:`record` within an open session."""
    session.require()
    with stop_on_signals() as stop:
        for number, source in enumerate(session.settings.record.rounds):
            if source != "student":
                drop_damaged(session.run.round(number), session.checked)
                fill_round(session, number, None, stop, shard)
    return session.run.path


def fill_round(
    session: Session,
    number: int,
    adapter: Adapter | None,
    stop: Stop,
    shard: tuple[int, int] = WHOLE_ROUND,
) -> None:
    """Record the missing trajectories of a round.

    Args:
        session: Run folder and pipeline.
        number: The round.
        adapter: The student's adapter if its state source is ``student``; otherwise None.
        stop: Whether a signal to stop has arrived; checked before every batch.
        shard: ``(i, n)``, as of :func:`record`.

    Raises:
        ConfigError: The only guidance scale is one where guidance is off.
        MismatchError: The folder holds trajectories of another plan or another base.
        Stopped: On request; what was recorded stands.
    """
    settings, source = session.settings, session.settings.record.rounds[number]
    _refuse_unguided(session)
    recorder = recorder_for(session.pipeline, session.findings, session.dial, settings)
    if source == "student":
        # Its round is recorded before its stretch begins: the last checkpoint is the student.
        recorder.adapter = adapter
        recorder.adapter_hash = sha256(session.run.checkpoints()[-1] / "adapter.safetensors")
    batches = plan_round(settings, session.prompts, session.held_out, number)
    folder = session.run.round(number)
    if number == 0 and not (folder / LINES).exists():
        _announce(session)
        if shard[0] == 1:
            Previews(session, None).draw_first()
    record_round(folder, source, batches, recorder, stop, shard, session.checked)


def recorder_for(
    pipeline: DiffusionPipeline, findings: Findings, dial: Dial, settings: Settings
) -> Recorder:
    """Make a recorder of a pipeline from the settings, without a student's adapter."""
    options = settings.record
    return Recorder(
        pipeline,
        findings,
        dial,
        partial(run_inputs, pipeline, findings, settings.pipeline),
        seed=settings.seed,
        states=options.states_per_trajectory,
        dtype=DTYPES[options.dtype] if options.dtype else None,
    )


def something_missing(
    settings: Settings, prompts: Sequence[Prompt], held_out: Sequence[Prompt]
) -> bool:
    """Whether a run still has to record or to draw, which needs more than its denoiser.

    Args:
        settings: The run's.
        prompts: Training prompts.
        held_out: Held-out prompts.
    """
    if settings.distill.preview_prompts:
        return True
    for number in range(len(settings.record.rounds)):
        # Damaged files are found when they are read for training.
        lines = read_round(RunFolder(settings.run).round(number), verify=False)
        batches = plan_round(settings, prompts, held_out, number)
        if {plan.index for batch in batches for plan in batch} - {line.index for line in lines}:
            return True
    return False


def _refuse_unguided(session: Session) -> None:
    """Refuse a range of guidance scales that is one scale, where guidance is off."""
    (low, high), findings = session.settings.record.guidance, session.findings
    if low == high and low in (findings.off, findings.origin):
        raise ConfigError(
            f"record.guidance: [{low:g}, {high:g}] is where guidance is off: there is nothing to "
            "fold",
            "Record a range that holds the guidance scales you use, such as [2.0, 8.0].",
        )


def _announce(session: Session) -> None:
    """Print the number of prompts, and warnings about prompts, base and dial."""
    settings = session.settings
    dropped = plural(count_duplicates(settings.prompts.path), "duplicate")
    console.print(
        f"Prompts: {len(session.prompts)} to train on, {len(session.held_out)} held out to measure "
        f"with{'' if dropped.startswith('0 ') else f'; {dropped} left out'}."
    )
    if grid := session.findings.steps:
        console.print(
            f"Steps: student {grid.usage}; teacher {grid.teacher}, the student's timesteps among "
            "them."
        )
    if any("negative_prompt" in prompt.values for prompt in session.prompts):
        console.print(
            "Beware: rows bring a negative_prompt of their own. The teacher obeys it, the student "
            "never sees it and learns an average; pipeline.negative_prompt folds one for all."
        )
    if fixed := session.findings.fixed_scale:
        console.print(
            f"Beware: the dial is approximate: {fixed}. Leave that argument out of pipeline.call "
            "to fold every denoiser's guidance at one scale."
        )
    for sign in signs_of_distillation(session.pipeline):
        console.print(f"Beware: the base may be distilled already. {sign}.")
    (low, high), g_ref = settings.record.guidance, settings.adapter.g_ref
    if settings.adapter.dial and not low <= g_ref <= high:
        console.print(
            f"Beware: adapter.g_ref={g_ref:g} lies outside record.guidance=[{low:g}, {high:g}]: "
            "the student is never trained at strength 1."
        )


def recorded_states(session: Session, number: int, split: Split) -> list[StateRef]:
    """The recorded states of all rounds up to ``number``."""
    folders = [session.run.round(k) for k in range(number + 1)]
    rounds = {folder: read_round(folder, checked=session.checked) for folder in folders}
    return [ref for folder, lines in rounds.items() for ref in state_refs(folder, lines, split)]
