"""The methods of drawing whose speed is compared, as data, and the models that they run on."""

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
class Method:
    """One method of drawing.

    Attributes:
        name: Its name in results.
        title: Its name in tables.
        weights: The denoiser: the teacher's, with the LoRA's layers live, or with the LoRA fused.
        guided: Share of the steps, from the first, with guidance.
    """

    name: str
    title: str
    weights: Weights
    guided: float


CFG = Method("cfg", "CFG teacher", "teacher", 1.0)
UNGUIDED = Method("unguided", "unguided, the bound", "teacher", 0.0)
LOADED = Method("loaded", "student, loaded", "loaded", 0.0)
FUSED = Method("fused", "student, fused", "fused", 0.0)
SELECTIVE = Method("selective", "Selective Guidance, 1/2", "teacher", 0.5)
METHODS = (CFG, UNGUIDED, LOADED, FUSED, SELECTIVE)


@dataclass(frozen=True)
class Options:
    """The options of ``bench speed``.

    Attributes:
        batches: Pictures in a call; each number is measured on its own.
        steps: Denoising steps of a picture.
        rounds: Number of runs of every method.
        size: Side of the pictures in pixels; None takes the pipeline's own.
        dtype: Precision of the weights.
        device: The device; ``auto`` takes the first accelerator.
        rank: Rank of the random adapter.
        targets: Layers of the random adapter.
        adapter: Folder of a run or an adapter, in place of the random adapter.
        compiled: Whether to measure with ``torch.compile`` too.
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
class RunCost:
    """The cost of one run.

    Attributes:
        seconds: Seconds by clock, for all pictures of the run.
        rows: Samples through the denoiser, counted.
        output: The pipeline's pictures; None where a denoiser ran alone.
    """

    seconds: Mapping[Clock, float]
    rows: int
    output: Any = field(default=None, repr=False, compare=False)


class TimedModel(ABC):
    """A model that the methods are timed on.

    Attributes:
        title: The model, and which part of it is timed.
        denoisers: A module for each kind of weights.
        methods: The methods that it can run.
        clocks: The clocks that time it.
        facts: Plain values that its results depend on.
        notes: Measurements that failed, and why.
    """

    title: str
    denoisers: Mapping[Weights, nn.Module]
    methods: Sequence[Method]
    clocks: Sequence[Clock]
    facts: dict[str, Any]
    notes: list[str]

    @abstractmethod
    def run(self, method: Method, denoiser: nn.Module, batch: int) -> RunCost:
        """Draw once.

        Args:
            method: The method.
            denoiser: One of :attr:`denoisers`, or its compiled form.
            batch: Pictures in the call.
        """
