"""The training loop: the student learns to predict in one pass what the teacher predicts in two."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from guidefold.draw import Previews
from guidefold.ground import MismatchError, NonFiniteError, Stopped, Task, console, plural, task
from guidefold.lora import Adapter
from guidefold.pipeline import peak_memory
from guidefold.record import StateRef
from guidefold.run import (
    DistillSettings,
    NoiseLevel,
    PeakMemory,
    Settings,
    StateSource,
    TrainingLine,
    ValidationLine,
    append_line,
)
from guidefold.train.batches import Batch, chosen_indices
from guidefold.train.checkpoints import load_checkpoint, save_checkpoint
from guidefold.train.forecast import Forecast
from guidefold.train.gradients import average_gradients
from guidefold.train.guidance_run import keep_guidance
from guidefold.train.launch import Launch, open_launch
from guidefold.train.loss import learning_rate, mean_residual
from guidefold.train.optimizer import Updates, make_optimizer
from guidefold.train.resume import resume_log, saved_with
from guidefold.train.student import Student, lora_student, sample_errors
from guidefold.train.teacher_measures import TeacherMeasures
from guidefold.train.trackers import track, track_picture, tracking


def distill(settings: Settings) -> Path:
    """Record what is missing, then train; a stopped run continues where it stopped.

    Args:
        settings: The run's.

    Returns:
        The last checkpoint's folder.

    Raises:
        InputError: Wrong prompts, settings, pipeline or base; a folder in use.
        FailedError: A damaged file, or a loss that is not finite.
        Stopped: On request; a checkpoint was saved.
    """
    with open_launch(settings) as launch:
        return distill_launch(launch)


def distill_launch(launch: Launch) -> Path:
    """:func:`distill` in an open launch; the adapter is detached afterwards."""
    session = launch.session
    student = lora_student(session, launch.record_teacher())
    try:
        return Training(launch, student).run()
    finally:
        session.pristine = student.teacher_intact
        if student.teacher_intact:
            student.adapter.detach()


class Stretch(NamedTuple):
    """Consecutive training steps on the states of one round and of all rounds before it.

    Attributes:
        number: The last of those rounds.
        source: That round's state source.
        start: Steps done when the stretch begins.
        end: Steps done when it ends.
    """

    number: int
    source: StateSource
    start: int
    end: int


class Training:
    """The training loop of one run, in one process of its launch.

    Args:
        launch: Run folder, pipeline and devices.
        student: The student to train: a LoRA, or another method that is compared with it.

    Attributes:
        step: Steps done so far.
        training_seconds: Time that those steps took.
        previews: Draws pictures during training; None in all processes but the main one.
    """

    def __init__(self, launch: Launch, student: Student) -> None:
        self.launch, self.student = launch, student
        seed, self.settings = launch.session.settings.seed, launch.session.settings.distill
        student.autocast = launch.accelerator.autocast
        if self.settings.gradient_checkpointing:
            student.enable_checkpointing()
        self.updates = _make_updates(student.adapter, self.settings, launch.accelerator.scaler)
        self.measures = TeacherMeasures(
            student,
            batch_size=self.settings.batch_size,
            states=self.settings.normaliser_states,
            seed=seed,
            strength_floor=(
                self.settings.strength_floor if self.settings.loss == "normalised" else None
            ),
        )
        self.previews = Previews(launch.session, student.adapter) if launch.main else None
        self.step, self.training_seconds = 0, 0.0

    def run(self) -> Path:
        """Train until ``distill.steps``, starting from the last checkpoint if there is one.

        Returns:
            The last checkpoint's folder.
        """
        self._resume()
        session = self.launch.session
        if self.step < self.settings.steps:
            with tracking(self.launch.accelerator, session.settings, self.step):
                self._train_stretches()
        return session.run.checkpoints()[-1]

    def _resume(self) -> None:
        """Load the last checkpoint; if there is none, save the first."""
        run = self.launch.session.run
        checkpoints = run.checkpoints()
        if not checkpoints:
            if self.launch.session.settings.student.guidance_run is not None:
                keep_guidance(self.launch.session.settings, self.student.adapter)
            if self.launch.main:
                run.log.unlink(missing_ok=True)
                self._save()
            return
        last = checkpoints[-1]
        state = load_checkpoint(last, self.student.adapter, self.updates.optimizer)
        self.step, self.training_seconds = state.step, state.training_seconds
        if self.step > self.settings.steps:
            raise MismatchError(
                f"distill.steps: {self.settings.steps}, but {last} already has "
                f"{plural(self.step, 'step')}",
                "Set at least as many, or choose another folder with run=FOLDER.",
            )
        self.updates.restore(state.scaler)
        if self.launch.main:
            resume_log(run, state, self.launch.session.settings)

    def _train_stretches(self) -> None:
        """Train the remaining stretches; a student round is recorded as its stretch begins."""
        self._measure_teacher_then_shrink()
        if self.previews and self.previews.lacks(self.step):
            with task("Drawing previews, denoising steps", self.previews.work()) as progress:
                self._preview(self.previews, progress)
        for stretch in self._stretches():
            # After its first step a stretch's round is complete: the student that visited those
            # states no longer exists, so nothing could be added to it.
            if stretch.source == "student" and self.step == stretch.start:
                self.launch.record(stretch.number, self.student.adapter)
            self._train(stretch)

    def _stretches(self) -> list[Stretch]:
        """The remaining stretches; the steps are divided evenly among the rounds."""
        sources, steps = self.launch.session.settings.record.rounds, self.settings.steps
        edges = [steps * number // len(sources) for number in range(len(sources) + 1)]
        stretches = map(Stretch, range(len(sources)), sources, edges[:-1], edges[1:])
        return [stretch for stretch in stretches if self.step < stretch.end]

    def _measure_teacher_then_shrink(self) -> None:
        """Measure everything that needs the teacher, then store its weights in fewer bits."""
        storage = self.settings.frozen_weights
        self.measures.measure_unguided(
            self.launch.states(0, "held-out") if self.launch.main else []
        )
        if storage != "same":
            for stretch in self._stretches():
                refs = self.launch.states(stretch.number, "training")
                self.measures.measure_guidance(stretch.number, refs)
            if self.previews and self.previews.teacher_missing():
                with task("Drawing the teacher, denoising steps", self.previews.work()) as progress:
                    self.previews.draw_teacher(progress)
            change = self.student.shrink(storage)
            if self.launch.main:
                console.print(f"Frozen weights in {storage}: the output changes by {change:.1%}.")

    def _train(self, stretch: Stretch) -> None:
        """Train from the current step to the end of a stretch."""
        session = self.launch.session
        later_sources = session.settings.record.rounds[stretch.number + 1 :]
        if self.previews and not self.previews.prompts and "student" not in later_sources:
            session.keep_denoiser_only()
        refs = self.launch.states(stretch.number, "training")
        self.measures.measure_guidance(stretch.number, refs)
        keep, optimizer = self.settings.keep_checkpoints, self.updates.optimizer
        forecast = Forecast(self.settings.steps - self.step, self.student.adapter, optimizer, keep)
        with task("Training", self.settings.steps, self.step) as progress:
            while self.step < stretch.end:
                self._stop_on_signal()
                line = self.train_step(stretch.number, refs)
                forecast.count(line.seconds or 0.0)
                if self.previews:
                    self._write_down(line, self.previews, progress, last=self.step == stretch.end)
                progress.advance(note="" if line.loss is None else f"loss {line.loss:.3f}")

    def train_step(self, number: int, refs: Sequence[StateRef]) -> TrainingLine:
        """One optimizer step: forward and backward of every piece, clip, update.

        Args:
            number: The stretch's round, whose guidance size normalises the loss.
            refs: The stretch's states.

        Returns:
            The step's log line.

        Raises:
            NonFiniteError: Loss or gradient is not finite; the step is not applied.
        """
        start, accelerator = time.perf_counter(), self.launch.accelerator
        self.updates.optimizer.zero_grad()
        total = torch.zeros((), device=self.student.device)
        for batch in self._pieces(number, refs):
            strengths = self.student.strengths(batch.guidance)
            with self.student.adapter.student_mode(strengths):
                errors = sample_errors(self.student.predict(batch), batch)
                scaled = errors / self.measures.scales(batch, number)
                loss = scaled.sum() / self.settings.batch_size
                accelerator.backward(loss)
            total += loss.detach()
        average_gradients(list(self.student.adapter.named_parameters().values()), accelerator)
        rate, norm, applied = self.updates.apply(self.step)
        loss_now = float(accelerator.reduce(total, "mean"))
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
        levels = self.measures.residual()
        return ValidationLine(
            step=self.step,
            residual_guidance=mean_residual(levels),
            levels=[NoiseLevel(**asdict(level)) for level in levels],
            training_seconds=round(self.training_seconds, 3),
            peak_memory=PeakMemory.model_validate(peak_memory(self.student.device)),
        )

    def _write_down(
        self, line: TrainingLine, previews: Previews, progress: Task, *, last: bool
    ) -> None:
        """Log, validate, draw and save, each at its own interval and at a stretch's end."""
        if self.step % self.settings.log_every == 0 or last:
            self._log(line)
        if self.step % self.settings.validate_every == 0 or last:
            self._log(self.validate())
        if previews.due(self.step):  # before saving: a checkpoint's previews must exist
            self._preview(previews, progress.aside("previews", previews.work()))
        if self.step % self.settings.checkpoint_every == 0 or last:
            self._save()

    def _log(self, line: TrainingLine | ValidationLine) -> None:
        append_line(self.launch.session.run.log, line.to_json())
        track(self.launch.accelerator, line.to_json())

    def _preview(self, previews: Previews, progress: Task) -> None:
        picture = previews.draw(self.step, progress)
        if picture is not None:
            track_picture(self.launch.accelerator, picture, self.step)

    def _pieces(self, number: int, refs: Sequence[StateRef]) -> list[Batch]:
        """This process's share of the step's states, as calls cut for gradient accumulation."""
        accelerator, settings = self.launch.accelerator, self.settings
        # Every process computes the same indices and takes each world-th one, so that no state
        # serves twice in a step.
        world = accelerator.num_processes
        total = settings.batch_size * world
        seed, name = self.launch.session.settings.seed, f"round-{number}"
        indices = chosen_indices(len(refs), seed, name, self.step * total, total)
        mine = indices[accelerator.process_index :: world]
        size = settings.batch_size // settings.accumulation
        cuts = [mine[first : first + size] for first in range(0, len(mine), size)]
        return [batch for cut in cuts for batch in self.student.calls([refs[i] for i in cut])]

    def _stop_on_signal(self) -> None:
        """Save and stop after a signal; every process stops at the same step."""
        signal = torch.tensor(float(self.launch.stop.signal or 0), device=self.student.device)
        if self.launch.accelerator.num_processes > 1:
            signal = self.launch.accelerator.gather(signal.view(1)).max()
        if signal:
            if self.launch.main:
                self._save()
            raise Stopped(int(signal), f"Stopped: a checkpoint of step {self.step} is saved.")

    def _save(self) -> None:
        run = self.launch.session.run
        own = {"scaler": self.updates.state(), "training_seconds": self.training_seconds}
        save_checkpoint(
            run,
            self.step,
            self.student.adapter,
            self.updates.optimizer,
            state={**own, **saved_with(run, self.launch.session.settings)},
            keep=self.settings.keep_checkpoints,
        )


def _make_updates(adapter: Adapter, settings: DistillSettings, scaler: Any) -> Updates:
    """The settings' optimizer on the adapter's parameters, with their learning-rate schedule."""
    parameters = list(adapter.named_parameters().values())
    rate = partial(
        learning_rate,
        steps=settings.steps,
        peak=settings.learning_rate,
        warmup=settings.warmup,
        schedule=settings.schedule,
    )
    optimizer = make_optimizer(settings.optimizer, parameters, settings.weight_decay)
    return Updates(optimizer, rate, settings.max_grad_norm, scaler)
