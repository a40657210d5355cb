"""Record a run's rounds: which are due, with whose student, into which folder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from diffusers import DiffusionPipeline

from guidefold.ground import Stop, console, plural, stop_on_signals
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

ALL = (1, 1)
"""The shard that is the whole."""


def record(settings: Settings, shard: tuple[int, int] = ALL) -> Path:
    """Record every round that needs no trained student; what is damaged is recorded again.

    Args:
        settings: The run's.
        shard: ``(i, n)``: only every n-th batch, from the i-th; the others are recorded elsewhere,
            and :func:`~guidefold.record.gather.gather` brings them together.

    Returns:
        The run's folder.

    Raises:
        InputError: Wrong prompts, settings, pipeline or base; a folder in use.
        Stopped: On request; what was recorded stands.
    """
    with open_session(settings, keep_settings=True) as session:
        return record_rounds(session, shard)


def record_rounds(session: Session, shard: tuple[int, int] = ALL) -> Path:
    """:func:`record` within an open session."""
    session.require()
    with stop_on_signals() as stop:
        for number, source in enumerate(session.settings.record.rounds):
            if source != "student":
                drop_damaged(session.run.round(number))
                fill_round(session, number, None, stop, shard)
    return session.run.path


def fill_round(
    session: Session,
    number: int,
    adapter: Adapter | None,
    stop: Stop,
    shard: tuple[int, int] = ALL,
) -> None:
    """Record what is missing of a round.

    Args:
        session: Run folder and pipeline.
        number: The round.
        adapter: The student's, where it visits the states.
        stop: Asked between batches.
        shard: Which part of it.

    Raises:
        MismatchError: The folder holds trajectories of another plan or another base.
        Stopped: On request; what was recorded stands.
    """
    settings, source = session.settings, session.settings.record.rounds[number]
    recorder = recorder_for(session.pipeline, session.findings, session.dial, settings)
    if source == "student":
        # The student that visits is the one of the checkpoint that stands when its round begins.
        recorder.adapter = adapter
        recorder.adapter_hash = sha256(session.run.checkpoints()[-1] / "adapter.safetensors")
    batches = plan_round(settings, session.prompts, session.held_out, number)
    folder = session.run.round(number)
    if number == 0 and not (folder / LINES).exists():
        _announce(session)
    record_round(folder, source, batches, recorder, stop, shard)


def recorder_for(
    pipeline: DiffusionPipeline, findings: Findings, dial: Dial, settings: Settings
) -> Recorder:
    """A recorder of a pipeline, as the settings ask for it; without a student."""
    asked = settings.record
    return Recorder(
        pipeline,
        findings,
        dial,
        partial(run_inputs, pipeline, findings, settings.pipeline),
        seed=settings.seed,
        states=asked.states_per_trajectory,
        dtype=DTYPES[asked.dtype] if asked.dtype else None,
    )


def something_missing(
    settings: Settings, prompts: Sequence[Prompt], held_out: Sequence[Prompt]
) -> bool:
    """Whether a run still has to record or to draw; else it needs its denoiser alone.

    Args:
        settings: The run's.
        prompts: For training.
        held_out: For measuring.
    """
    if settings.distill.preview_prompts:
        return True
    for number in range(len(settings.record.rounds)):
        # What is damaged is found when it is read in earnest.
        lines = read_round(RunFolder(settings.run).round(number), verify=False)
        batches = plan_round(settings, prompts, held_out, number)
        if {plan.index for batch in batches for plan in batch} - {line.index for line in lines}:
            return True
    return False


def _announce(session: Session) -> None:
    """Say what is begun with: which prompts go where, and a dial that nothing will be read off."""
    settings = session.settings
    dropped = plural(count_duplicates(settings.prompts.path), "duplicate")
    console.print(
        f"Prompts: {len(session.prompts)} to train on, {len(session.held_out)} held out to measure "
        f"with{'' if dropped.startswith('0 ') else f'; {dropped} left out'}."
    )
    if any("negative_prompt" in prompt.values for prompt in session.prompts):
        console.print(
            "Beware: rows bring a negative_prompt of their own. The teacher obeys it, the student "
            "never sees it and learns an average; pipeline.negative_prompt folds one for all."
        )
    for sign in signs_of_distillation(session.pipeline):
        console.print(f"Beware: the base may be distilled already. {sign}.", markup=False)
    (low, high), g_ref = settings.record.guidance, settings.adapter.g_ref
    if settings.adapter.dial and not low <= g_ref <= high:
        console.print(
            f"Beware: adapter.g_ref={g_ref:g} lies outside record.guidance=[{low:g}, {high:g}]: "
            "the student is never trained at strength 1.",
            markup=False,
        )


def recorded_states(run: RunFolder, number: int, split: Split) -> list[StateRef]:
    """The recorded states of every round up to one."""
    folders = [run.round(k) for k in range(number + 1)]
    return [ref for f in folders for ref in state_refs(f, read_round(f), split)]
