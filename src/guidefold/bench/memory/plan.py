"""Whether a run's training step fits, said before a weight is downloaded or read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from torch import nn

from guidefold.bench.memory.cases import Case, Subject
from guidefold.bench.memory.estimate import estimate
from guidefold.bench.memory.meta_pipeline import find_folder, first_call, open_hollow, unplannable
from guidefold.listen import Tree, output_tensor, tree_map
from guidefold.lora import BITS
from guidefold.pipeline import DTYPES, modules, resolve_device
from guidefold.run import Settings

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        denoiser: Its class.
        parameters: Of the denoiser.
        trained_parameters: Of the adapter.
        peak_bytes: Of tensors in a training step, at most.
        parts: Those bytes by part.
        recording_bytes: Weights of the whole pipeline, which recording holds.
        rows: Samples in a call.
        device: What it is compared with.
        available_bytes: Memory there; None where it is not known.
    """

    denoiser: str
    parameters: int
    trained_parameters: int
    peak_bytes: int
    parts: dict[str, int]
    recording_bytes: int
    rows: int
    device: str
    available_bytes: int | None

    @property
    def fits(self) -> bool | None:
        """Whether step and recording go into the memory there; None where that is not known."""
        if self.available_bytes is None:
            return None
        return max(self.peak_bytes, self.recording_bytes) <= self.available_bytes

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "fits": self.fits}


class Heard(Subject):
    """A denoiser and what its own pipeline asked it.

    Args:
        plan: Its module, on the meta device.
        question: The call's arguments.
        answer: What it said.
        settings: The run's.
    """

    def __init__(
        self, plan: nn.Module, question: Tree, answer: torch.Tensor, settings: Settings
    ) -> None:
        self._plan, self._question, self._answer = plan, question, answer
        self.batch, self.pieces = answer.shape[0], settings.distill.accumulation
        self.dtype, self.rank = settings.pipeline.dtype, settings.adapter.rank
        self.targets = settings.adapter.targets
        self.autocast = DTYPES.get(settings.distill.mixed_precision)

    def denoiser(self, dtype: torch.dtype) -> nn.Module:
        """The one there is: a run trains one."""
        return self._plan.to(dtype)

    def question(self, dtype: torch.dtype, device: torch.device | str) -> Tree:
        """The call's arguments again, with no memory of their values."""
        return tree_map(lambda t: _like(t, device), self._question)

    def answer(self, question: Tree) -> torch.Tensor:
        """What a record holds: a tensor of the answer's shape."""
        return _like(self._answer, "cpu")


def make_plan(settings: Settings, available_bytes: int | None = None) -> Plan:
    """Estimate a run's training step from its settings and its pipeline's configs.

    Args:
        settings: The run's.
        available_bytes: To compare with; None takes the device's.

    Raises:
        PipelineError: The configs cannot be had, or make no pipeline.
        UnfoldableError: The pipeline cannot run without weights.
    """
    asked, dtype = settings.pipeline, DTYPES[settings.pipeline.dtype]
    folder = find_folder(asked.source)
    rows = settings.distill.batch_size // settings.distill.accumulation
    opened = open_hollow(folder, dtype)
    recording = sum(_bytes(module) for module in modules(opened).values())
    call = first_call(opened, asked, rows)
    denoiser = modules(open_hollow(folder, dtype))[call.denoiser]
    heard = Heard(denoiser, call.arguments, output_tensor(call.output), settings)
    parameters = sum(p.numel() for p in denoiser.parameters())
    try:
        peak = estimate(_case(settings), heard)
    except (RuntimeError, ValueError, TypeError) as error:  # it looks at values, which are none
        raise unplannable(type(denoiser).__name__, error) from error
    device = "given" if available_bytes is not None else resolve_device(asked.device)
    return Plan(
        denoiser=type(denoiser).__name__,
        parameters=parameters,
        trained_parameters=peak.trained_parameters,
        peak_bytes=peak.peak_bytes,
        parts=peak.parts,
        recording_bytes=recording,
        rows=heard.batch,
        device=device,
        available_bytes=_memory_of(device) if available_bytes is None else available_bytes,
    )


def _case(settings: Settings) -> Case:
    """A run's way to train."""
    asked = settings.distill
    return Case(
        name="run",
        title="the run's training step",
        trains="adapter",
        encoders=False,
        checkpointing=asked.gradient_checkpointing,
        optimizer="adamw-8bit" if asked.optimizer == "adamw8bit" else "adamw",
        bits=BITS.get(asked.frozen_weights),
    )


def describe(plan: Plan, settings: Settings) -> str:
    """A plan for people: its parts, the largest first, and the verdict."""
    stored = settings.distill.frozen_weights
    frozen = "" if stored == "same" else f", trained on in {stored}"
    lines = [
        f"{plan.denoiser}, {plan.parameters:,} parameters in {settings.pipeline.dtype}{frozen}; "
        f"adapter of rank {settings.adapter.rank} on '{settings.adapter.targets}', "
        f"{plan.trained_parameters:,} parameters; {plan.rows} samples in a call",
        "",
        *(
            f"{name:20}{size / GIB:8.2f} GiB"
            for name, size in sorted(plan.parts.items(), key=lambda item: -item[1])
        ),
        f"{'training step':20}{plan.peak_bytes / GIB:8.2f} GiB at its peak",
        f"{'recording':20}{plan.recording_bytes / GIB:8.2f} GiB of weights, and what a call takes",
        "",
        _verdict(plan, settings),
    ]
    return "\n".join(lines)


def _verdict(plan: Plan, settings: Settings) -> str:
    if plan.available_bytes is None:
        return f"{plan.device}: its memory is not known here; compare with --memory GIB."
    there = f"{plan.available_bytes / GIB:.2f} GiB ({plan.device})"
    if plan.fits:
        return f"Fits into {there}, workspaces and context not counted: leave a tenth to spare."
    return f"Does not fit into {there}. Try {', '.join(_remedies(plan, settings))}."


def _remedies(plan: Plan, settings: Settings) -> list[str]:
    """What is left to try, the most helpful first."""
    asked = settings.distill
    shrinks = "student" not in settings.record.rounds
    left = {
        "pipeline.dtype=bf16": settings.pipeline.dtype == "fp32",
        "distill.gradient_checkpointing=true": not asked.gradient_checkpointing,
        f"distill.accumulation={asked.batch_size}": asked.accumulation < asked.batch_size,
        "distill.frozen_weights=int8": shrinks and asked.frozen_weights in ("same", "bf16"),
        "distill.frozen_weights=int4": shrinks and asked.frozen_weights == "int8",
        "distill.optimizer=adamw8bit": asked.optimizer == "adamw",
        "adapter.rank=4": settings.adapter.rank > 4,
        "adapter.targets=attention": settings.adapter.targets != "attention",
    }
    return [words for words, open_ in left.items() if open_] or ["a larger device"]


def _like(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Memory like a tensor's, in which no value matters: ones are in every range."""
    return torch.ones(tuple(tensor.shape), dtype=tensor.dtype, device=device)


def _bytes(module: nn.Module) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def _memory_of(device: str) -> int | None:
    """All the memory that a device has."""
    if device == "cpu":
        return int(psutil.virtual_memory().total)
    measure = getattr(torch.get_device_module(device), "mem_get_info", None)
    return None if measure is None else int(measure()[1])
