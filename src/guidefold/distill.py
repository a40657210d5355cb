"""The training loop: the student learns to say in one pass what the teacher says in two."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from guidefold.adapter import Adapter, attach
from guidefold.batches import Batch, chosen_indices, collate, mixes
from guidefold.capture import output_tensor
from guidefold.checkpoints import find_checkpoints, load_checkpoint, save_checkpoint
from guidefold.config import Settings
from guidefold.errors import NonFiniteError, RunError, UnfoldableError
from guidefold.objective import (
    GuidanceSize,
    learning_rate,
    loss_scale,
    mean_residual,
    residual_by_level,
    squared_error,
)
from guidefold.progress import Stop, Stopped, stop_on_signals, task
from guidefold.runs import append_line, read_lines, sha256, write_text
from guidefold.session import Session, open_session
from guidefold.shards import StateRef, read_round, state_refs
from guidefold.trajectories import Recorder, plan_round, record_round

LOG = "log.jsonl"


def record(settings: Settings) -> Path:
    """Record every round that needs no trained student.

    Args:
        settings: The run's.

    Returns:
        The run's folder.

    Raises:
        InputError: Wrong prompts, settings, pipeline or base; a folder in use.
        Stopped: On request; what was recorded stands.
    """
    with stop_on_signals() as stop, open_session(settings) as session:
        for number, source in enumerate(settings.record.rounds):
            if source != "student":
                _record(session, number, None, stop)
    return Path(settings.run)


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
    with _accelerator(settings) as accelerator, stop_on_signals() as stop:
        with open_session(settings, main=accelerator.is_main_process) as session:
            return Training(session, accelerator, stop).run()


@dataclass
class Training:
    """One run's training, from its first step or from its last checkpoint.

    Args:
        session: Run folder and pipeline.
        accelerator: Devices, processes and precision.
        stop: Asked after every step.
    """

    session: Session
    accelerator: Accelerator
    stop: Stop

    def __post_init__(self) -> None:
        self.settings = self.session.settings
        self.findings = self.session.findings
        self.device = self.accelerator.device
        self.main = self.accelerator.is_main_process
        self.step = 0
        self.together = True

    def run(self) -> Path:
        """Train every stretch: each round is recorded, then trained on with those before it."""
        self._record_round(0)
        self._prepare()
        rounds, steps = len(self.settings.record.rounds), self.settings.distill.steps
        for number in range(rounds):
            end = steps * (number + 1) // rounds
            if self.step < end:
                self._record_round(number)
                self._train_stretch(number, end)
        return find_checkpoints(self.session.run)[-1]

    def _prepare(self) -> None:
        """Attach the adapter, load the last checkpoint, wrap for accelerate."""
        refs = self._refs(0, "training")
        if not refs:
            raise RunError(f"{self.session.run}: no training states are recorded")
        self.denoiser = self.session.denoiser.to(self.device)
        first = collate(refs[:1], None, together=False)[0].to(self.device)
        asked = self.settings.adapter
        self.adapter = attach(
            self.denoiser, asked.targets, asked.rank, self.settings.seed, lambda: self._raw(first)
        )
        if self.settings.distill.gradient_checkpointing:
            self._enable_checkpointing(first)
        self.model = self.denoiser
        if self.accelerator.num_processes > 1:
            self.model = self.accelerator.prepare_model(self.denoiser)
        self.optimizer = torch.optim.AdamW(
            self.adapter.named_parameters().values(),
            lr=self.settings.distill.learning_rate,
            weight_decay=self.settings.distill.weight_decay,
        )
        self._check_mixing(refs)
        self._resume()

    def _resume(self) -> None:
        found = find_checkpoints(self.session.run)
        log = self.session.run / LOG
        if not found:
            if self.main:
                log.unlink(missing_ok=True)
                self._save()
            return
        state = load_checkpoint(found[-1], self.adapter, self.optimizer)
        self.step = state["step"]
        if self.accelerator.scaler is not None and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.main:  # lines past the checkpoint will be written again
            kept = [line for line in read_lines(log) if line["step"] <= self.step]
            write_text(log, "".join(json.dumps(line) + "\n" for line in kept))

    def _train_stretch(self, number: int, end: int) -> None:
        """Train from the current step to ``end`` on every round up to ``number``."""
        asked = self.settings.distill
        self.refs = self._refs(number, "training")
        self.held_out = self._refs(0, "held-out")
        self.size = self._measure_guidance(self.refs)
        self.unguided = self._errors(self.held_out, student=False) if self.main else []
        self.stretch = f"round-{number}"
        with task("Training", asked.steps, self.step) as progress:
            while self.step < end:
                self._checked_stop()
                line = self.train_step()
                if self.main and (self.step % asked.log_every == 0 or self.step == end):
                    append_line(self.session.run / LOG, line)
                if self.main and (
                    self.step % asked.validate_every == 0 or self.step == asked.steps
                ):
                    append_line(self.session.run / LOG, self.validate())
                if self.main and (self.step % asked.checkpoint_every == 0 or self.step == end):
                    self._save()
                progress.advance(note=f"loss {line['loss']:.3f}")

    def train_step(self) -> dict[str, Any]:
        """One optimizer step: forward and backward of every piece, clip, update.

        Returns:
            The step's log line.

        Raises:
            NonFiniteError: Loss or gradient is not finite; the step is not applied.
        """
        start, asked = time.perf_counter(), self.settings.distill
        rate = learning_rate(
            self.step, asked.steps, asked.learning_rate, asked.warmup, asked.schedule
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        pieces = self._pieces()
        total = torch.zeros((), device=self.device)
        for number, batch in enumerate(pieces, 1):
            with (
                self.adapter.student_mode(self._strengths(batch)),
                self._sync(number == len(pieces)),
            ):
                errors = squared_error(self._predict(batch), batch.target)
                loss = (errors / self._scales(batch)).sum() / asked.batch_size
                self.accelerator.backward(loss)
            total += loss.detach()
        norm, applied = self._update()
        mean_loss = float(self.accelerator.reduce(total, "mean"))
        if not applied and asked.mixed_precision != "fp16":
            raise NonFiniteError(
                f"step {self.step}: loss {mean_loss:g}, gradient norm {norm:g}",
                "Nothing was applied and the last checkpoint stands. Lower distill.learning_rate, "
                "or set pipeline.dtype=fp32 if the teacher overflows.",
            )
        self.step += 1
        return {
            "step": self.step,
            "loss": mean_loss if applied else None,
            "gradient_norm": norm if applied else None,
            "learning_rate": rate,
            "seconds": round(time.perf_counter() - start, 4),
        }

    def validate(self) -> dict[str, Any]:
        """Residual guidance on held-out prompts, per noise level."""
        levels = residual_by_level(
            [ref.timestep for ref in self.held_out],
            self._errors(self.held_out, student=True),
            self.unguided,
        )
        return {
            "step": self.step,
            "residual_guidance": mean_residual(levels),
            "levels": [asdict(level) for level in levels],
        }

    def _update(self) -> tuple[float, bool]:
        """Clip and apply; returns the gradient's norm and whether the step was applied."""
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        parameters = list(self.adapter.named_parameters().values())
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.distill.max_grad_norm)
        finite = bool(norm.isfinite())
        if scaler is not None:
            scaler.step(self.optimizer)
            scaler.update()
        elif finite:
            self.optimizer.step()
        return float(norm), finite

    def _pieces(self) -> list[Batch]:
        """This process's share of the step's states, cut for accumulation, as calls."""
        asked, world = self.settings.distill, self.accelerator.num_processes
        total = asked.batch_size * world
        indices = chosen_indices(
            len(self.refs), self.settings.seed, self.stretch, self.step * total, total
        )
        mine = indices[self.accelerator.process_index :: world]
        size = asked.batch_size // asked.accumulation
        return [
            batch.to(self.device)
            for first in range(0, len(mine), size)
            for batch in self._calls([self.refs[i] for i in mine[first : first + size]])
        ]

    def _calls(self, refs: list[StateRef]) -> list[Batch]:
        return collate(refs, self.findings.layout, self.together)

    def _strengths(self, batch: Batch) -> torch.Tensor:
        asked = self.settings.adapter
        values = [self.findings.strength(g, asked.g_ref) for g in batch.guidance]
        return torch.tensor(values if asked.dial else [1.0] * len(values), device=self.device)

    def _scales(self, batch: Batch) -> torch.Tensor:
        """What each sample's squared error is divided by."""
        if self.settings.distill.loss == "plain":
            return torch.ones(len(batch.timesteps), device=self.device)
        g_ref, floor = self.settings.adapter.g_ref, self.settings.distill.strength_floor
        pairs = zip(batch.timesteps, batch.guidance, strict=True)
        scales = [
            loss_scale(
                self.size.at(t), self.findings.strength(g, g_ref), floor, g_ref - self.findings.off
            )
            for t, g in pairs
        ]
        return torch.tensor(scales, device=self.device)

    def _predict(self, batch: Batch, model: nn.Module | None = None) -> torch.Tensor:
        """The model output for a batch, through the pipeline's output map."""
        args, kwargs = batch.arguments
        with self.accelerator.autocast():
            raw = output_tensor((model or self.model)(*args, **kwargs))
        output_map = self.findings.output_map
        return output_map(raw, batch.target.shape[output_map.dim])

    def _raw(self, batch: Batch) -> torch.Tensor:
        args, kwargs = batch.arguments
        return output_tensor(self.denoiser(*args, **kwargs))

    def _errors(self, refs: list[StateRef], *, student: bool) -> list[float]:
        """Squared error to the target at each state, adapter on or off."""
        size, errors = self.settings.distill.batch_size, []
        for first in range(0, len(refs), size):
            for batch in self._calls(refs[first : first + size]):
                here = batch.to(self.device)
                mode = (
                    self.adapter.student_mode(self._strengths(here), train=False)
                    if student
                    else self.adapter.teacher_mode()
                )
                with mode:
                    errors += squared_error(
                        self._predict(here, self.denoiser), here.target
                    ).tolist()
        return errors

    def _measure_guidance(self, refs: list[StateRef]) -> GuidanceSize:
        """Measure how large guidance is at each noise level, on states spread over the record."""
        count = min(len(refs), self.settings.distill.normaliser_states)
        few = [refs[k * len(refs) // count] for k in range(count)]
        few = [ref for ref in few if ref.guidance != self.findings.off]
        errors = self._errors(few, student=False)
        spans = [(ref.guidance - self.findings.off) ** 2 for ref in few]
        sizes = [e / s for e, s in zip(errors, spans, strict=True)]
        return GuidanceSize.measure([ref.timestep for ref in few], sizes)

    def _check_mixing(self, refs: list[StateRef]) -> None:
        """Whether states of several timesteps and strengths may share a call (fresh adapter)."""
        few = [refs[0], refs[-1]]
        with self._stirred():
            self.together = len(refs) > 1 and mixes(
                self._predict_at, few, self.findings.layout, self.device
            )

    @contextmanager
    def _stirred(self) -> Iterator[None]:
        """Give ``lora_B`` small random values for a while: at zero, strength changes nothing."""
        before = {n: p.detach().clone() for n, p in self.adapter.named_parameters().items()}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for name, parameter in self.adapter.named_parameters().items():
                if ".lora_B." in name:
                    parameter.copy_(0.05 * torch.randn(parameter.shape))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.adapter.named_parameters().items():
                    parameter.copy_(before[name])

    def _predict_at(self, batch: Batch, strengths: torch.Tensor) -> torch.Tensor:
        with self.adapter.student_mode(strengths, train=False):
            return self._predict(batch, self.denoiser)

    def _enable_checkpointing(self, batch: Batch) -> None:
        """Turn gradient checkpointing on, where it does not change what the denoiser says."""
        if not hasattr(self.denoiser, "enable_gradient_checkpointing"):
            raise UnfoldableError(
                f"{type(self.denoiser).__name__} has no gradient checkpointing",
                "Set distill.gradient_checkpointing=false.",
            )
        plain = self._raw(batch).detach()
        self.denoiser.enable_gradient_checkpointing()
        if not torch.allclose(self._raw(batch).detach(), plain, rtol=1e-3, atol=1e-4):
            raise UnfoldableError(
                f"{type(self.denoiser).__name__}: gradient checkpointing changes its output, "
                "which is a fault of this version of diffusers",
                "Set distill.gradient_checkpointing=false.",
            )

    @contextmanager
    def _sync(self, last: bool) -> Iterator[None]:
        """Exchange gradients between processes with the last piece only."""
        if last:
            yield
        else:
            with self.accelerator.no_sync(self.model):
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
        scaler = self.accelerator.scaler
        save_checkpoint(
            self.session.run,
            self.step,
            self.adapter,
            self.optimizer,
            {"scaler": scaler.state_dict() if scaler is not None else None},
            self.settings.distill.keep_checkpoints,
        )

    def _refs(self, number: int, split: Any) -> list[StateRef]:
        """The recorded states of every round up to one."""
        folders = [_round_folder(self.session, k) for k in range(number + 1)]
        return [ref for f in folders for ref in state_refs(f, read_round(f), split)]

    def _record_round(self, number: int) -> None:
        """Record a round in the main process; the others wait."""
        if self.main:
            adapter = self.adapter if self.settings.record.rounds[number] == "student" else None
            _record(self.session, number, adapter, self.stop)
        self.accelerator.wait_for_everyone()


def _record(session: Session, number: int, adapter: Adapter | None, stop: Stop) -> None:
    """Record what is missing of a round."""
    settings, source = session.settings, session.settings.record.rounds[number]
    recorder = Recorder(session.pipeline, session.findings, settings, adapter)
    if source == "student":
        # The student that visits is the one of the checkpoint that stands when its round begins.
        recorder.adapter_hash = sha256(find_checkpoints(session.run)[-1] / "adapter.safetensors")
    batches = plan_round(settings, session.prompts, session.held_out, number)
    record_round(_round_folder(session, number), source, batches, recorder, stop)


def _round_folder(session: Session, number: int) -> Path:
    return session.run / "trajectories" / f"round-{number}"


@contextmanager
def _accelerator(settings: Settings) -> Iterator[Accelerator]:
    """An accelerator of our own, and nothing left of it afterwards."""
    waits = InitProcessGroupKwargs(timeout=timedelta(days=1))  # recording may take hours
    try:
        yield Accelerator(
            mixed_precision=settings.distill.mixed_precision,
            cpu=settings.pipeline.device == "cpu" or not torch.accelerator.is_available(),
            kwargs_handlers=[waits],
        )
    finally:
        AcceleratorState._reset_state(reset_partial_state=False)
