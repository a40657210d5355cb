"""The training loop: the student learns to predict in one pass what the teacher predicts in two."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from guidefold.draw import Previews
from guidefold.ground import MismatchError, NonFiniteError, Stopped, Task, compat, console, task
from guidefold.lora import Adapter
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
    read_lines,
    write_lines,
)
from guidefold.train.batches import Batch, chosen_indices
from guidefold.train.checkpoints import load_checkpoint, save_checkpoint
from guidefold.train.launch import Launch, open_launch
from guidefold.train.loss import learning_rate, mean_residual
from guidefold.train.memory import peak_memory
from guidefold.train.optimizer import Updates, make_optimizer
from guidefold.train.student import Student, lora_student, sample_errors
from guidefold.train.teacher_measures import TeacherMeasures
from guidefold.train.trackers import track, track_picture, tracking


def distill(settings: Settings) -> Path:
    """Record what is missing, then train; goes on where it stopped.

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
        return fold(launch)


def fold(launch: Launch) -> Path:
    """:func:`distill` within an open run, whose pipeline is left without a LoRA."""
    session = launch.session
    student = lora_student(session, launch.record_teacher())
    try:
        return train(launch, student)
    finally:
        session.pristine = student.whole
        if student.whole:
            student.adapter.detach()


def train(launch: Launch, student: Student) -> Path:
    """Train a student, from its first step or from its last checkpoint.

    Args:
        launch: Run folder, pipeline and devices; its teacher is recorded.
        student: A fresh one, a LoRA or a rival of it.

    Returns:
        The last checkpoint's folder.
    """
    training = Training(launch, student)
    training.resume()
    settings = launch.session.settings
    if training.step < settings.distill.steps:
        with tracking(launch.accelerator, settings, training.step):
            training.run()
    return launch.session.run.checkpoints()[-1]


class Stretch(NamedTuple):
    """The steps that are trained on every round up to one.

    Attributes:
        number: The round.
        source: Who visits its states.
        start: First step.
        end: Last step.
    """

    number: int
    source: StateSource
    start: int
    end: int


class Training:
    """One run's training, from its first step or from its last checkpoint.

    Args:
        launch: Run folder, pipeline and devices.
        student: Who is trained.

    Attributes:
        step: Steps done so far.
        training_seconds: Time that they took.
        previews: None in processes that draw none.
    """

    def __init__(self, launch: Launch, student: Student) -> None:
        self.launch, self.student, self.adapter = launch, student, student.adapter
        self.session, self.accelerator = launch.session, launch.accelerator
        self.settings = launch.session.settings
        asked = self.settings.distill
        student.autocast = self.accelerator.autocast
        if asked.gradient_checkpointing:
            student.enable_checkpointing()
        self.updates = _updates(self.adapter, asked, self.accelerator.scaler)
        self.measures = TeacherMeasures(
            student,
            batch_size=asked.batch_size,
            states=asked.normaliser_states,
            seed=self.settings.seed,
            strength_floor=asked.strength_floor if asked.loss == "normalised" else None,
        )
        self.previews = Previews(self.session, self.adapter) if launch.main else None
        self.step, self.training_seconds = 0, 0.0

    def resume(self) -> None:
        """Go on from the last checkpoint; where there is none, save the first."""
        found, log = self.session.run.checkpoints(), self.session.run.log
        if not found:
            if self.launch.main:
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
        if self.launch.main:  # lines past the checkpoint will be written again
            write_lines(log, [line for line in read_lines(log) if line["step"] <= self.step])

    def run(self) -> None:
        """Train every stretch: each round is recorded, then trained on with those before it."""
        self._measure_teacher_then_shrink()
        if self.previews and self.previews.lacks(self.step):
            with task("Drawing previews, denoising steps", self.previews.work()) as progress:
                self._preview(self.previews, progress)
        for stretch in self._stretches():
            # Past its first step a round is whole, and the student that visited it is gone.
            if stretch.source == "student" and self.step == stretch.start:
                self.launch.record(stretch.number, self.adapter)
            self._train(stretch)

    def _stretches(self) -> list[Stretch]:
        """What is still to be trained: the steps are shared out evenly among the rounds."""
        sources, steps = self.settings.record.rounds, self.settings.distill.steps
        edges = [steps * number // len(sources) for number in range(len(sources) + 1)]
        stretches = map(Stretch, range(len(sources)), sources, edges[:-1], edges[1:])
        return [stretch for stretch in stretches if self.step < stretch.end]

    def _measure_teacher_then_shrink(self) -> None:
        """Measure all that needs the teacher; then its weights may be stored smaller."""
        held_out = self.launch.states(0, "held-out") if self.launch.main else []
        self.measures.measure_unguided(held_out)
        storage = self.settings.distill.frozen_weights
        if storage != "same":
            for stretch in self._stretches():
                refs = self.launch.states(stretch.number, "training")
                self.measures.measure_guidance(stretch.number, refs)
            if self.previews and self.previews.teacher_missing():
                with task("Drawing the teacher, denoising steps", self.previews.work()) as progress:
                    self.previews.draw_teacher(progress)
            moved = self.student.shrink(storage)
            if self.launch.main:
                console.print(f"Frozen weights in {storage}: the output moves by {moved:.1%}.")
        if self.accelerator.num_processes > 1:
            denoiser = self.student.denoiser
            self.student.model = self.accelerator.prepare_model(denoiser)
            # Autocast stays with the student's calls: the pipeline's own go in its precision.
            compat.drop_autocast(denoiser)

    def _train(self, stretch: Stretch) -> None:
        """Train from the current step to the end of a stretch."""
        later = self.settings.record.rounds[stretch.number + 1 :]
        if self.previews and not self.previews.prompts and "student" not in later:
            self.session.keep_denoiser_only()
        refs = self.launch.states(stretch.number, "training")
        self.measures.measure_guidance(stretch.number, refs)
        with task("Training", self.settings.distill.steps, self.step) as progress:
            while self.step < stretch.end:
                self._stop_if_asked()
                line = self.train_step(stretch.number, refs)
                if self.previews:
                    self._write_down(line, self.previews, progress, last=self.step == stretch.end)
                progress.advance(note="" if line.loss is None else f"loss {line.loss:.3f}")

    def train_step(self, number: int, refs: Sequence[StateRef]) -> TrainingLine:
        """One optimizer step: forward and backward of every piece, clip, update.

        Args:
            number: The round whose guidance the loss is relative to.
            refs: The states that it is trained on.

        Returns:
            The step's log line.

        Raises:
            NonFiniteError: Loss or gradient is not finite; the step is not applied.
        """
        start, batch_size = time.perf_counter(), self.settings.distill.batch_size
        self.updates.optimizer.zero_grad()
        pieces = self._pieces(number, refs)
        total = torch.zeros((), device=self.student.device)
        for k, batch in enumerate(pieces, 1):
            strengths = self.student.strengths(batch.guidance)
            with self.adapter.student_mode(strengths), self._sync(k == len(pieces)):
                errors = sample_errors(self.student.predict(batch), batch)
                loss = (errors / self.measures.scales(batch, number)).sum() / batch_size
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
        """Log, validate, draw and save, each in its turn."""
        asked = self.settings.distill
        if self.step % asked.log_every == 0 or last:
            self._log(line)
        if self.step % asked.validate_every == 0 or last:
            self._log(self.validate())
        if previews.due(self.step):  # before saving: a checkpoint's previews stand
            self._preview(previews, progress.aside("previews", previews.work()))
        if self.step % asked.checkpoint_every == 0 or last:
            self._save()

    def _log(self, line: TrainingLine | ValidationLine) -> None:
        append_line(self.session.run.log, line.to_json())
        track(self.accelerator, line.to_json())

    def _preview(self, previews: Previews, progress: Task) -> None:
        picture = previews.draw(self.step, progress)
        if picture is not None:
            track_picture(self.accelerator, picture, self.step)

    def _pieces(self, number: int, refs: Sequence[StateRef]) -> list[Batch]:
        """This process's share of the step's states, cut for accumulation, as calls."""
        asked, world = self.settings.distill, self.accelerator.num_processes
        total = asked.batch_size * world
        name, first = f"round-{number}", self.step * total
        indices = chosen_indices(len(refs), self.settings.seed, name, first, total)
        mine = indices[self.accelerator.process_index :: world]
        size = asked.batch_size // asked.accumulation
        cuts = [mine[first : first + size] for first in range(0, len(mine), size)]
        return [batch for cut in cuts for batch in self.student.calls([refs[i] for i in cut])]

    @contextmanager
    def _sync(self, last: bool) -> Iterator[None]:
        """Exchange gradients between processes with the last piece only."""
        if last:
            yield
        else:
            with self.accelerator.no_sync(self.student.model):
                yield

    def _stop_if_asked(self) -> None:
        """Save and leave when somebody asked to; every process at the same step."""
        asked = torch.tensor(float(self.launch.stop.signal or 0), device=self.student.device)
        if self.accelerator.num_processes > 1:
            asked = self.accelerator.gather(asked.view(1)).max()
        if asked:
            if self.launch.main:
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


def _updates(adapter: Adapter, asked: DistillSettings, scaler: Any) -> Updates:
    """AdamW on the adapter's tensors, at the schedule's rate."""
    parameters = list(adapter.named_parameters().values())
    rate = partial(
        learning_rate,
        steps=asked.steps,
        peak=asked.learning_rate,
        warmup=asked.warmup,
        schedule=asked.schedule,
    )
    optimizer = make_optimizer(asked.optimizer, parameters, asked.weight_decay)
    return Updates(optimizer, rate, asked.max_grad_norm, scaler)
