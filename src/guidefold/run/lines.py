"""What the lines of a run hold: a class for each kind of line, checked as it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from guidefold.run.files import LINE_REMEDY, read_lines
from guidefold.run.folder import LINES, RunFolder
from guidefold.run.records import CheckpointState, NoiseLevel, Record


class PictureLine(Record):
    """A line of ``evaluation/pictures.jsonl``.

    Attributes:
        file: The picture, within the same folder.
        sha256: Its checksum.
        passes: Samples through the denoiser.
        seconds: Time inside the denoiser.
        of: All that the picture depends on, as JSON.
    """

    file: str
    sha256: str
    passes: float
    seconds: float
    of: dict[str, Any]


class TrajectoryLine(Record):
    """A line of a round's ``manifest.jsonl``.

    Attributes:
        index: Of the trajectory in its round's plan.
        split: ``training`` or ``held-out``.
        prompt: Its label.
        source: Who visited the states.
        base: The fingerprint of the denoiser's weights.
        output_map: What happens to the denoiser's raw output.
        adapter: The checksum of the student that visited the states.
        file: The trajectory, within the round's folder.
        timesteps: Of the kept states.
        seconds: That it took to record.
        student_steps: The steps of a student that takes fewer than ``steps``, the teacher's.
    """

    index: int
    split: str
    prompt: str | None = None
    prompt_sha256: str
    seed: int
    guidance: float
    steps: int | None = None
    source: str | None = None
    base: str | None = None
    output_map: str | None = None
    adapter: str | None = None
    file: str
    sha256: str
    size: int
    timesteps: list[float]
    seconds: float = 0.0
    student_steps: int | None = None


class PeakMemory(Record):
    """The most memory that a process has held: all of it, or what torch has allocated."""

    kind: Literal["resident", "allocated"]
    bytes: int


class LogLine(Record):
    """A line in ``log.jsonl``, of any kind."""

    step: int


class TrainingLine(LogLine):
    """A training step's line in ``log.jsonl``; loss and norm are None where it was skipped."""

    loss: float | None
    gradient_norm: float | None = None
    learning_rate: float | None = None
    seconds: float | None = None


class ValidationLine(LogLine):
    """A validation's line in ``log.jsonl``."""

    residual_guidance: float
    levels: list[NoiseLevel]
    training_seconds: float | None = None
    peak_memory: PeakMemory | None = None


class ResumeLine(LogLine):
    """A line in ``log.jsonl`` of a run that goes on otherwise than it stopped.

    Attributes:
        changed: Of each setting that differs, the value until here and the value from here on.
        missing_lines: How many of the earlier lines are lost.
    """

    changed: dict[str, tuple[Any, Any]]
    missing_lines: int = 0


@dataclass(frozen=True)
class Log:
    """What ``log.jsonl`` holds, each kind of line in its order."""

    training: list[TrainingLine]
    validations: list[ValidationLine]
    resumed: list[ResumeLine]

    @property
    def step(self) -> int:
        """The last step that was logged; 0 before the first."""
        steps = [line.step for line in self.training] + [line.step for line in self.validations]
        return max(steps, default=0)

    @property
    def peak_memory(self) -> PeakMemory | None:
        """The most memory that any of the run's processes has held; None before a validation."""
        found = [line.peak_memory for line in self.validations if line.peak_memory]
        return max(found, key=lambda peak: peak.bytes, default=None)


def read_log(path: Path) -> Log:
    """Read a run's log; empty where there is none.

    Raises:
        CorruptFileError: A line is no JSON, or lacks a key.
    """
    lines = [(line, f"{path}:{number}") for number, line in enumerate(read_lines(path), 1)]
    return Log(
        [TrainingLine.check(line, at, LINE_REMEDY) for line, at in lines if "loss" in line],
        [ValidationLine.check(line, at, LINE_REMEDY) for line, at in lines if "levels" in line],
        [ResumeLine.check(line, at, LINE_REMEDY) for line, at in lines if "changed" in line],
    )


def read_trajectories(run: RunFolder) -> list[TrajectoryLine]:
    """What is recorded so far, round by round; the files themselves are not looked at."""
    return [line for folder in run.rounds() for line in TrajectoryLine.read_lines(folder / LINES)]


def count_lines(path: Path) -> int:
    """The number of finished lines, whatever they hold; 0 where there is no file."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def missing_lines(run: RunFolder, log: Log) -> int:
    """How many lines a run's log has lost, by its last checkpoint and by what it says itself."""
    told = sum(line.missing_lines for line in log.resumed)
    last = run.last_checkpoint()
    if last is None:
        return told
    state = CheckpointState.read(last / "state.json", f"Remove the checkpoint: rm -r '{last}'")
    since = sum(line.missing_lines for line in log.resumed if state and line.step >= state.step)
    return told + (lines_lost(state, count_lines(run.log) + since) if state else 0)


def lines_lost(state: CheckpointState, count: int) -> int:
    """How many of a log's lines are lost since a checkpoint.

    Args:
        state: The checkpoint's; one of version 0.1.0 tells only that there was a line.
        count: The log's lines now.
    """
    known = min(state.step, 1) if state.log_lines is None else state.log_lines
    return max(known - count, 0)
