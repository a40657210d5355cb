"""The ways to draw whose speed is compared, as data, and what each of them is tried on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from guidefold.ground import ConfigError
from guidefold.run import Precision, Preset

Weights = Literal["teacher", "loaded", "fused"]
Form = Literal["eager", "compiled"]
Clock = Literal["denoiser", "processor", "end to end"]
GUIDANCE = 7.5  # any value that is on: the time does not depend on it


@dataclass(frozen=True)
class Way:
    """One way to draw.

    Attributes:
        name: What a result calls it.
        title: What it is, in words.
        weights: The denoiser: the teacher's, with the LoRA's layers live, or with the LoRA fused.
        guided: Share of the steps, from the first, with guidance.
    """

    name: str
    title: str
    weights: Weights
    guided: float


CFG = Way("cfg", "CFG teacher", "teacher", 1.0)
UNGUIDED = Way("unguided", "unguided, the bound", "teacher", 0.0)
LOADED = Way("loaded", "student, loaded", "loaded", 0.0)
FUSED = Way("fused", "student, fused", "fused", 0.0)
SELECTIVE = Way("selective", "Selective Guidance, 1/2", "teacher", 0.5)
WAYS = (CFG, UNGUIDED, LOADED, FUSED, SELECTIVE)


@dataclass(frozen=True)
class Options:
    """What is asked of a bench.

    Attributes:
        batches: Pictures in a call, each measured for itself.
        steps: Denoising steps of a picture.
        rounds: How often every way is timed.
        size: Side of the pictures, pixels; None takes the pipeline's own.
        dtype: Precision of the weights.
        device: Where to; ``auto`` takes the first accelerator.
        rank: Of the random adapter.
        targets: Layers of the random adapter.
        adapter: A run's folder or an adapter's, in place of the random one.
        compiled: Whether to try ``torch.compile`` too.
    """

    batches: tuple[int, ...] = (1, 4)
    steps: int = 20
    rounds: int = 5
    size: int | None = None
    dtype: str = "fp32"
    device: str = "auto"
    rank: int = 32
    targets: str = "all"
    adapter: Path | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        counts = [("batch", n) for n in self.batches]
        counts += [(name, getattr(self, name)) for name in ("steps", "rounds", "rank")]
        counts += [("size", self.size)] if self.size is not None else []
        for name, value in counts:
            if value < 1:
                raise ConfigError(f"--{name} {value}: too few", "Use 1 or more.")
        if len(set(self.batches)) < len(self.batches):
            raise ConfigError("--batch: the same number twice", "Name each once.")
        for name, allowed in (("dtype", get_args(Precision)), ("targets", get_args(Preset))):
            if (value := getattr(self, name)) not in allowed:
                raise ConfigError(f"--{name} {value}: no such choice", f"Use {', '.join(allowed)}.")


@dataclass(frozen=True)
class Spent:
    """What one run took.

    Attributes:
        seconds: By clock, for all pictures of the run.
        rows: Samples that went through the denoiser, counted.
        answer: What came of it; pictures where a whole pipeline ran.
    """

    seconds: Mapping[Clock, float]
    rows: int
    answer: Any = field(default=None, repr=False, compare=False)


class Subject(ABC):
    """What the ways are tried on.

    Attributes:
        title: What it is, and what is measured of it.
        denoisers: A module for each kind of weights.
        ways: Those that it knows.
        clocks: What is timed.
        facts: What a result should say of it, as plain values.
        notes: What could not be measured, and why.
    """

    title: str
    denoisers: Mapping[Weights, nn.Module]
    ways: Sequence[Way]
    clocks: Sequence[Clock]
    facts: dict[str, Any]
    notes: list[str]

    @abstractmethod
    def run(self, way: Way, denoiser: nn.Module, batch: int) -> Spent:
        """Draw once.

        Args:
            way: How.
            denoiser: One of :attr:`denoisers`, or its compiled form.
            batch: Pictures in the call.
        """
