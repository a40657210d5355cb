"""Open what training needs: run folder, pipeline, devices; and record the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from accelerate import Accelerator

from guidefold.ground import RunError, Stop, stop_on_signals
from guidefold.lora import Adapter
from guidefold.record import Split, StateRef, fill_round, recorded_states, something_missing
from guidefold.run import Settings
from guidefold.session import Session, open_session
from guidefold.train.guidance_run import check_guidance_base, check_guidance_run
from guidefold.train.optimizer import check_optimizer
from guidefold.train.resume import check_settings
from guidefold.train.trackers import open_accelerator


@dataclass(frozen=True)
class Launch:
    """One of the processes that train a run together.

    Attributes:
        session: Run folder and pipeline.
        accelerator: Devices, processes and precision.
        stop: Whether a signal to stop has arrived; checked before every step.
    """

    session: Session
    accelerator: Accelerator
    stop: Stop

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes files."""
        return bool(self.accelerator.is_main_process)

    def record_teacher(self) -> list[StateRef]:
        """Record every round that needs no student, before an adapter is attached to the denoiser.

        Returns:
            The states of the first round; the pipeline is left ready to train on them.
        """
        settings, session = self.session.settings, self.session
        session.require(
            all_components=something_missing(settings, session.prompts, session.held_out)
        )
        for number, source in enumerate(settings.record.rounds):
            if source != "student":
                self.record(number)
        refs = self.states(0, "training")
        if not refs:
            raise RunError(f"{session.run}: no training states are recorded")
        if self.main and (settings.distill.preview_prompts or "student" in settings.record.rounds):
            session.move_others_to_cpu()
        else:
            session.keep_denoiser_only()
        session.denoiser.to(self.accelerator.device)
        return refs

    def record(self, number: int, adapter: Adapter | None = None) -> None:
        """Record a round in the main process while the others wait."""
        if self.main:
            with self.session.all_on_device():
                fill_round(self.session, number, adapter, self.stop)
        self.accelerator.wait_for_everyone()

    def states(self, number: int, split: Split) -> list[StateRef]:
        """The recorded states of all rounds up to ``number``."""
        return recorded_states(self.session, number, split)


@contextmanager
def open_launch(settings: Settings) -> Iterator[Launch]:
    """Open a run for training, with signals to stop caught."""
    with stop_on_signals() as stop, open_to_train(settings) as (session, accelerator):
        yield Launch(session, accelerator, stop)


@contextmanager
def open_to_train(settings: Settings) -> Iterator[tuple[Session, Accelerator]]:
    """Open a run with its devices and processes, after the checks that need neither.

    Raises:
        InputError: Wrong prompts, settings, pipeline or base; a folder in use.
    """
    check_optimizer(settings.distill.optimizer)
    check_settings(settings)
    check_guidance_run(settings)
    with (
        open_accelerator(settings) as accelerator,
        open_session(
            settings,
            accelerator.device,
            main=accelerator.is_main_process,
            keep_settings=True,
            needs_all=something_missing,
        ) as session,
    ):
        check_guidance_base(session)
        yield session, accelerator
