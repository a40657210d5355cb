"""The training loop: the student learns to say in one pass what the teacher says in two."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from guidefold.adapter import attach
from guidefold.errors import MismatchError, NonFiniteError, RunError
from guidefold.previews import Previews
from guidefold.progress import Stop, Stopped, Task, console, stop_on_signals, task
from guidefold.record.rounds import fill_round, recorded_states, something_missing
from guidefold.record.trajectory_files import Split, StateRef
from guidefold.run.records import NoiseLevel, PeakMemory, TrainingLine, ValidationLine
from guidefold.runs import append_line, read_lines, write_lines
from guidefold.session import Session, open_session
from guidefold.settings import Settings, StateSource
from guidefold.train.batches import Batch, chosen_indices
from guidefold.train.checkpoints import load_checkpoint, save_checkpoint
from guidefold.train.loss import mean_residual
from guidefold.train.memory import peak_memory
from guidefold.train.optimizer import Updates, check_optimizer
from guidefold.train.student import Attach, Student, sample_errors
from guidefold.train.teacher_measures import Yardstick
from guidefold.train.trackers import open_accelerator, track, track_picture, tracking


def distill(settings: Settings, attach: Attach = attach) -> Path:
    """Record what is missing, then train; goes on where it stopped.

    Args:
        settings: The run's.
        attach: Puts on what is trained.

    Returns:
        The last checkpoint's folder.

    Raises:
        InputError: Wrong prompts, settings, pipeline or base; a folder in use.
        FailedError: A damaged file, or a loss that is not finite.
        Stopped: On request; a checkpoint was saved.
    """
    check_optimizer(settings.distill.optimizer)
    with (
        open_accelerator(settings) as accelerator,
        stop_on_signals() as stop,
        open_session(
            settings,
            accelerator.device,
            main=accelerator.is_main_process,
            keep_settings=True,
            whole=something_missing,
        ) as session,
    ):
        return Training(session, accelerator, stop, attach).run()


@dataclass
class Training:
    """One run's training, from its first step or from its last checkpoint.

    Args:
        session: Run folder and pipeline.
        accelerator: Devices, processes and precision.
        stop: Asked after every step.
        attach: Puts on what is trained.
    """

    session: Session
    accelerator: Accelerator
    stop: Stop
    attach: Attach = attach

    def __post_init__(self) -> None:
        self.settings = self.session.settings
        self.findings = self.session.findings
        self.device = self.accelerator.device
        self.main = self.accelerator.is_main_process
        self.step = 0
        self.training_seconds = 0.0

    def run(self) -> Path:
        """Train every stretch: each round is recorded, then trained on with those before it."""
        for number, source in enumerate(self.settings.record.rounds):
            if source != "student":  # while nothing is attached
                self._record_round(number)
        self._prepare()
        if self.step < self.settings.distill.steps:
            with tracking(self.accelerator, self.settings, self.step):
                self._train()
        return self.session.run.checkpoints()[-1]

    def _train(self) -> None:
        """Train every stretch from the current step on."""
        self._take_leave()
        if self.main and self.previews.missing(self.step):
            with task("Drawing previews, denoising steps", self.previews.work()) as progress:
                self._preview(progress)
        for number, source, start, end in self._stretches():
            # Past its first step a round is whole, and the student that visited it is gone.
            if source == "student" and self.step == start:
                self._record_round(number)
            self._train_stretch(number, end)

    def _stretches(self) -> list[tuple[int, StateSource, int, int]]:
        """``(round, its state source, first step, last step)`` of what is still to be trained."""
        sources, steps = self.settings.record.rounds, self.settings.distill.steps
        edges = [steps * number // len(sources) for number in range(len(sources) + 1)]
        stretches = zip(range(len(sources)), sources, edges[:-1], edges[1:], strict=True)
        return [stretch for stretch in stretches if self.step < stretch[-1]]

    def _take_leave(self) -> None:
        """Ask the teacher what training will need; then its weights may be stored smaller."""
        held_out = self._refs(0, "held-out") if self.main else []
        self.yardstick = Yardstick(self.student, self.settings, held_out)
        storage = self.settings.distill.frozen_weights
        if storage != "same":
            for number, *_ in self._stretches():
                self.yardstick.measure(number, self._refs(number, "training"))
            if self.main and self.previews.teacher_missing():
                with task("Drawing the teacher, denoising steps", self.previews.work()) as progress:
                    self.previews.draw_teacher(progress)
            moved = self.student.shrink(storage)
            if self.main:
                console.print(f"Frozen weights in {storage}: the output moves by {moved:.1%}.")
        if self.accelerator.num_processes > 1:
            denoiser = self.student.denoiser
            self.student.model = self.accelerator.prepare_model(denoiser)
            # Autocast stays with the student's calls: the pipeline's own go in its precision.
            vars(denoiser).pop("forward", None)

    def _prepare(self) -> None:
        """Attach the adapter, load the last checkpoint."""
        refs = self._refs(0, "training")
        if not refs:
            raise RunError(f"{self.session.run}: no training states are recorded")
        asked = self.settings
        if self.main and (asked.distill.preview_prompts or "student" in asked.record.rounds):
            self.session.park()
        else:
            self.session.keep_denoiser_only()
        denoiser = self.session.denoiser.to(self.device)
        self.student = Student(
            denoiser, self.findings, self.session.dial, asked.adapter, asked.seed, refs, self.attach
        )
        self.student.autocast = self.accelerator.autocast
        self.adapter = self.student.adapter
        if asked.distill.gradient_checkpointing:
            self.student.enable_checkpointing()
        parameters = list(self.adapter.named_parameters().values())
        self.updates = Updates(parameters, asked.distill, self.accelerator.scaler)
        self._resume()
        if self.main:
            self.previews = Previews(self.session, self.adapter)

    def _resume(self) -> None:
        found = self.session.run.checkpoints()
        log = self.session.run.log
        if not found:
            if self.main:
                log.unlink(missing_ok=True)
                self._save()
            return
        state = load_checkpoint(found[-1], self.adapter, self.updates.optimizer)
        self.step = state["step"]
        self.training_seconds = state.get("training_seconds", 0.0)
        if self.step > self.settings.distill.steps:
            raise MismatchError(
                f"distill.steps: {self.settings.distill.steps} asked for, but {found[-1]} has "
                f"{self.step} already",
                "Ask for at least as many, or choose another folder with run=FOLDER.",
            )
        self.updates.restore(state.get("scaler"))
        if self.main:  # lines past the checkpoint will be written again
            write_lines(log, [line for line in read_lines(log) if line["step"] <= self.step])

    def _train_stretch(self, number: int, end: int) -> None:
        """Train from the current step to ``end`` on every round up to ``number``."""
        later = self.settings.record.rounds[number + 1 :]
        if self.main and not self.previews.prompts and "student" not in later:
            self.session.keep_denoiser_only()
        self.number, self.refs = number, self._refs(number, "training")
        self.yardstick.measure(number, self.refs)
        with task("Training", self.settings.distill.steps, self.step) as progress:
            while self.step < end:
                self._checked_stop()
                line = self.train_step()
                if self.main:
                    self._write_down(line, self.step == end, progress)
                progress.advance(note="" if line.loss is None else f"loss {line.loss:.3f}")

    def train_step(self) -> TrainingLine:
        """One optimizer step: forward and backward of every piece, clip, update.

        Returns:
            The step's log line.

        Raises:
            NonFiniteError: Loss or gradient is not finite; the step is not applied.
        """
        start, batch_size = time.perf_counter(), self.settings.distill.batch_size
        self.updates.optimizer.zero_grad()
        pieces, total = self._pieces(), torch.zeros((), device=self.device)
        for number, batch in enumerate(pieces, 1):
            strengths = self.student.strengths(batch.guidance)
            with self.adapter.student_mode(strengths), self._sync(number == len(pieces)):
                errors = sample_errors(self.student.predict(batch), batch)
                loss = (errors / self.yardstick.scales(batch, self.number)).sum() / batch_size
                self.accelerator.backward(loss)
            total += loss.detach()
        rate, norm, applied = self.updates.apply(self.step)
        loss_now = float(self.accelerator.reduce(total, "mean"))
        if not applied and self.updates.scaler is None:
            raise NonFiniteError(
                f"step {self.step}: loss {loss_now:g}, gradient norm {norm:g}",
                "Nothing was applied and the last checkpoint stands. Lower distill.learning_rate, "
                "or set pipeline.dtype=fp32 if the teacher overflows.",
            )
        self.step += 1
        seconds = time.perf_counter() - start
        self.training_seconds += seconds
        return TrainingLine(
            step=self.step,
            loss=loss_now if applied else None,  # None: skipped, fp16 overflowed
            gradient_norm=norm if applied else None,
            learning_rate=rate,
            seconds=round(seconds, 4),
        )

    def validate(self) -> ValidationLine:
        """Residual guidance on held-out prompts, per noise level."""
        levels = self.yardstick.residual()
        return ValidationLine(
            step=self.step,
            residual_guidance=mean_residual(levels),
            levels=[NoiseLevel(**asdict(level)) for level in levels],
            training_seconds=round(self.training_seconds, 3),
            peak_memory=PeakMemory.model_validate(peak_memory(self.device)),
        )

    def _write_down(self, line: TrainingLine, last: bool, progress: Task) -> None:
        """Log, validate, draw and save, each in its turn."""
        asked = self.settings.distill
        if self.step % asked.log_every == 0 or last:
            self._log(line)
        if self.step % asked.validate_every == 0 or last:
            self._log(self.validate())
        if self.previews.due(self.step):  # before saving: a checkpoint's previews stand
            self._preview(progress.aside("previews", self.previews.work()))
        if self.step % asked.checkpoint_every == 0 or last:
            self._save()

    def _log(self, line: TrainingLine | ValidationLine) -> None:
        append_line(self.session.run.log, line.to_json())
        track(self.accelerator, line.to_json())

    def _preview(self, progress: Task) -> None:
        picture = self.previews.draw(self.step, progress)
        if picture is not None:
            track_picture(self.accelerator, picture, self.step)

    def _pieces(self) -> list[Batch]:
        """This process's share of the step's states, cut for accumulation, as calls."""
        asked, world = self.settings.distill, self.accelerator.num_processes
        total = asked.batch_size * world
        indices = chosen_indices(
            len(self.refs), self.settings.seed, f"round-{self.number}", self.step * total, total
        )
        mine = indices[self.accelerator.process_index :: world]
        size = asked.batch_size // asked.accumulation
        cuts = [mine[first : first + size] for first in range(0, len(mine), size)]
        return [batch for cut in cuts for batch in self.student.calls([self.refs[i] for i in cut])]

    @contextmanager
    def _sync(self, last: bool) -> Iterator[None]:
        """Exchange gradients between processes with the last piece only."""
        if last:
            yield
        else:
            with self.accelerator.no_sync(self.student.model):
                yield

    def _checked_stop(self) -> None:
        """Save and leave when somebody asked to; every process at the same step."""
        asked = torch.tensor(float(self.stop.signal or 0), device=self.device)
        if self.accelerator.num_processes > 1:
            asked = self.accelerator.gather(asked.view(1)).max()
        if asked:
            if self.main:
                self._save()
            raise Stopped(int(asked), f"Stopped: a checkpoint of step {self.step} is saved.")

    def _save(self) -> None:
        save_checkpoint(
            self.session.run,
            self.step,
            self.adapter,
            self.updates.optimizer,
            state={"scaler": self.updates.state(), "training_seconds": self.training_seconds},
            keep=self.settings.distill.keep_checkpoints,
        )

    def _refs(self, number: int, split: Split) -> list[StateRef]:
        """The recorded states of every round up to one."""
        return recorded_states(self.session.run, number, split)

    def _record_round(self, number: int) -> None:
        """Record a round in the main process; the others wait."""
        if self.main:
            adapter = self.adapter if self.settings.record.rounds[number] == "student" else None
            with self.session.whole():
                fill_round(self.session, number, adapter, self.stop)
        self.accelerator.wait_for_everyone()
