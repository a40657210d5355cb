"""Tiny runs brought to their end, or stopped on the way, and what they came to."""

import signal
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from guidefold.ground.progress import Stopped
from guidefold.run.files import read_lines
from guidefold.run.folder import RunFolder
from guidefold.run.lines import TrainingLine
from guidefold.run.settings import Settings
from guidefold.run.tensors import read_tensors
from guidefold.train.distill import Training

distill = import_module("guidefold.train.distill")  # its door has a function of that name

FOUR: dict[str, Any] = {"steps": 4, "warmup": 2, "weight_decay": 0.1, "checkpoint_every": 100}
MEASURED = ("seconds", "training_seconds", "peak_memory")  # not the same twice


@dataclass
class Outcome:
    """What a run came to: its log without what was measured of the machine and without what was
    changed on the way, its adapter, its optimizer's moments.
    """

    log: list[dict[str, Any]]
    tensors: dict[str, torch.Tensor]

    __hash__ = None

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Outcome)
        same = self.tensors.keys() == other.tensors.keys() and self.log == other.log
        return same and all(torch.equal(t, other.tensors[n]) for n, t in self.tensors.items())

    @property
    def losses(self) -> list[float]:
        return [line["loss"] for line in self.log if "loss" in line]


def outcome(run: Path) -> Outcome:
    last = RunFolder(run).checkpoints()[-1]
    log = [
        {k: v for k, v in line.items() if k not in MEASURED}
        for line in read_lines(run / "log.jsonl")
        if "changed" not in line
    ]
    files = ("adapter.safetensors", "optimizer.safetensors")
    return Outcome(log, {n: t for file in files for n, t in read_tensors(last / file).items()})


def finish(settings: Settings) -> Outcome:
    last = distill.distill(settings)
    assert last.name == f"step-{settings.distill.steps:07d}"
    return outcome(Path(settings.run))


def stop_at_step(patch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process a real SIGTERM as a step ends."""
    real = Training.train_step

    def train_step(self: Training, *stretch: Any) -> TrainingLine:
        line = real(self, *stretch)
        if line.step == step:
            signal.raise_signal(signal.SIGTERM)
        return line

    patch.setattr(Training, "train_step", train_step)


def interrupted(settings: Settings, step: int) -> None:
    """Run until a step and leave, with a checkpoint saved there."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at_step(patch, step)
        with pytest.raises(Stopped) as caught:
            distill.distill(settings)
    assert caught.value.exit_code == 143
    assert RunFolder(settings.run).checkpoints()[-1].name == f"step-{step:07d}"
