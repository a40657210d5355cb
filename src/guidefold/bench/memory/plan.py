"""Estimate whether a run fits into memory, before a weight is downloaded or read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from guidefold.bench.memory.cases import Case, Workload
from guidefold.bench.memory.estimate import estimate
from guidefold.bench.memory.meta_pipeline import (
    FakeRuns,
    find_folder,
    open_meta_pipeline,
    unplannable,
)
from guidefold.ground import plural
from guidefold.listen import Call, Tree, output_tensor, tree_map
from guidefold.lora import BITS, shrink_weights
from guidefold.pipeline import DTYPES, device_memory, modules, quantizable, resolve_device
from guidefold.run import Quantization, Settings

GIB = 2**30
# Of linear layers and convolutions: a library's scales take what those of Guidefold's storage take.
LIBRARY_BITS: dict[str, tuple[int, None]] = {
    "bitsandbytes_4bit": (4, None),
    "bitsandbytes_8bit": (8, None),
    "torchao_int8": (8, None),
    "quanto_int8": (8, None),
}
SPARE = 0.1  # share of the memory that a plan leaves free


@dataclass(frozen=True)
class Plan:
    """The memory that a run will take.

    Attributes:
        denoiser: Class of the denoiser.
        parameters: Parameters of the denoiser.
        trained_parameters: Parameters of the adapter.
        peak_bytes: Most bytes of tensors at once in a training step.
        parts: Those bytes by part.
        encoding_bytes: Most bytes of tensors at once while prompts are encoded.
        recording_bytes: Most bytes of tensors at once in the teacher's call of its denoiser.
        rows: Samples in a call.
        device: The device that it is compared with.
        available_bytes: Memory of the device; None where it is not known.
    """

    denoiser: str
    parameters: int
    trained_parameters: int
    peak_bytes: int
    parts: dict[str, int]
    encoding_bytes: int
    recording_bytes: int
    rows: int
    device: str
    available_bytes: int | None

    @property
    def needed_bytes(self) -> int:
        """The highest of all peaks."""
        return max(self.encoding_bytes, self.recording_bytes, self.peak_bytes)

    @property
    def fits(self) -> bool | None:
        """Whether all peaks leave a tenth of the memory; None where the memory is not known.

        Kernels' workspaces and the device's context, which are not counted, take from that tenth.
        """
        if self.available_bytes is None:
            return None
        return self.needed_bytes <= (1 - SPARE) * self.available_bytes

    @property
    def just_fits(self) -> bool:
        """Whether all peaks are within the memory, but leave less than a tenth of it."""
        known = self.available_bytes is not None and not self.fits
        return known and self.needed_bytes <= (self.available_bytes or 0)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        return {**asdict(self), "fits": self.fits, "just_fits": self.just_fits}


class PipelineWorkload(Workload):
    """A pipeline's denoiser and the arguments of its recorded call.

    Args:
        denoiser: On the meta device.
        call: The recorded call.
        settings: The run's.
    """

    def __init__(self, denoiser: nn.Module, call: Call, settings: Settings) -> None:
        self._denoiser, self._arguments = denoiser, call.arguments
        self._output = output_tensor(call.output)
        self.batch, self.pieces = self._output.shape[0], settings.distill.accumulation
        self.dtype, self.rank = settings.pipeline.dtype, settings.adapter.rank
        self.targets, self.steps_rank = settings.adapter.targets, settings.steps_rank
        self.autocast = DTYPES.get(settings.distill.mixed_precision)

    def denoiser(self, dtype: torch.dtype) -> nn.Module:
        """The one denoiser: a run trains no second one."""
        return self._denoiser.to(dtype)

    def inputs(self, dtype: torch.dtype, device: torch.device | str) -> Tree:
        """Make arguments of the recorded ones' shapes and types."""
        return tree_map(lambda t: _ones_like(t, device), self._arguments)

    def target(self, inputs: Tree) -> torch.Tensor:
        """Make a tensor of the output's shape, as a trajectory file holds one."""
        return _ones_like(self._output, "cpu")


def make_plan(settings: Settings, available_bytes: int | None = None) -> Plan:
    """Estimate a run's training step from its settings and its pipeline's configs.

    Args:
        settings: The run's.
        available_bytes: Memory to compare with; None takes the device's.

    Raises:
        PipelineError: The configs cannot be found, or make no pipeline.
        UnfoldableError: The pipeline cannot run without weights.
    """
    dtype = DTYPES[settings.pipeline.dtype]
    folder = find_folder(settings.pipeline.source, settings.pipeline.config)
    rows = settings.distill.batch_size // settings.distill.accumulation
    pipeline = _open_quantised(folder, dtype, settings.pipeline.quantization)
    sizes = {name: _bytes(module) for name, module in modules(pipeline).items()}
    runs = FakeRuns(pipeline, settings.pipeline)
    call = runs.unguided_call(rows)
    runs.guided_call(settings.record.batch_size, settings.record.guidance[1])
    # The call filled the pipeline's modules with fake tensors: the estimate needs a fresh one.
    denoiser = modules(open_meta_pipeline(folder, dtype))[call.denoiser]
    workload = PipelineWorkload(denoiser, call, settings)
    parameters = sum(p.numel() for p in denoiser.parameters())
    try:
        peak = estimate(case_of(settings), workload)
    except (RuntimeError, ValueError, TypeError) as error:  # code that depends on values
        raise unplannable(type(denoiser).__name__, error) from error
    layers = {name: _largest_layers(module) for name, module in runs.components.items()}
    encoding, recording = _recording_peaks(call.denoiser, runs.peaks, sizes, layers, settings)
    device = "given" if available_bytes is not None else resolve_device(settings.pipeline.device)
    return Plan(
        denoiser=type(denoiser).__name__,
        parameters=parameters,
        trained_parameters=peak.trained_parameters,
        peak_bytes=peak.peak_bytes,
        parts=peak.parts,
        encoding_bytes=encoding,
        recording_bytes=recording,
        rows=workload.batch,
        device=device,
        available_bytes=_memory_of(device) if available_bytes is None else available_bytes,
    )


def _open_quantised(folder: Path, dtype: torch.dtype, name: Quantization) -> DiffusionPipeline:
    """A pipeline on the meta device, its large components' linear layers in a library's bits."""
    pipeline = open_meta_pipeline(folder, dtype)
    bits = LIBRARY_BITS.get(name)
    for module in modules(pipeline).values():
        if bits is not None and quantizable(type(module)):
            shrink_weights(module, *bits)
    return pipeline


def _recording_peaks(
    denoiser: str,
    peaks: Mapping[str, int],
    sizes: Mapping[str, int],
    layers: Mapping[str, int],
    settings: Settings,
) -> tuple[int, int]:
    """Peaks while prompts are encoded and while the teacher's denoiser runs.

    Args:
        denoiser: The denoiser's name.
        peaks: Peak bytes of each component's call, its weights included.
        sizes: Bytes of each component's weights.
        layers: Bytes of each component's layer that computes and the one that comes next.
        settings: The run's; an offloaded pipeline holds only the component that computes, or only
            its layers that do.
    """
    total = sum(sizes.values())
    held = {
        "none": dict.fromkeys(peaks, total),
        "component": sizes,
        "group": layers,
        "sequential": layers,
    }[settings.pipeline.offload]
    counted = {name: peak - sizes[name] + held[name] for name, peak in peaks.items()}
    recording = counted.pop(denoiser)
    return max(counted.values(), default=0), recording


def case_of(settings: Settings) -> Case:
    """The case that a run trains by."""
    distill = settings.distill
    return Case(
        name="run",
        title="the run's training step",
        trains="adapter",
        encoders=False,
        checkpointing=distill.gradient_checkpointing,
        optimizer="adamw-8bit" if distill.optimizer == "adamw8bit" else distill.optimizer,
        bits=LIBRARY_BITS.get(settings.pipeline.quantization) or BITS.get(distill.frozen_weights),
    )


def describe(plan: Plan, settings: Settings) -> str:
    """A plan as text: its parts, the largest first, and whether it fits."""
    stored, library = settings.distill.frozen_weights, settings.pipeline.quantization
    frozen = "" if stored == "same" else f", trained on in {stored}"
    frozen += "" if library == "none" else f", linear layers in {library}"
    lines = [
        f"{plan.denoiser}, {plan.parameters:,} parameters in {settings.pipeline.dtype}{frozen}; "
        f"adapter of rank {settings.adapter.rank} on '{settings.adapter.targets}', "
        f"{plan.trained_parameters:,} parameters; {plural(plan.rows, 'sample')} in a call",
        "",
        *(
            f"{name:20}{size / GIB:8.2f} GiB"
            for name, size in sorted(plan.parts.items(), key=lambda item: -item[1])
        ),
        "",
        *(
            f"{name:20}{size / GIB:8.2f} GiB at its peak"
            for name, size in (
                ("text encoding", plan.encoding_bytes),
                ("recording", plan.recording_bytes),
                ("training step", plan.peak_bytes),
            )
        ),
        "",
        _verdict(plan, settings),
    ]
    return "\n".join(lines)


def _verdict(plan: Plan, settings: Settings) -> str:
    if plan.available_bytes is None:
        return f"{plan.device}: its memory is not known here; compare with --memory GIB."
    memory = f"{plan.available_bytes / GIB:.2f} GiB ({plan.device})"
    if plan.fits:
        return f"Fits into {memory}, with a tenth or more to spare."
    remedies = f"Try {', '.join(_remedies(plan, settings))}."
    if plan.just_fits:
        spare = 1 - plan.needed_bytes / plan.available_bytes
        return (
            f"Just fits into {memory}: {spare:.1%} to spare. Workspaces and context, which are not "
            f"counted, may need a tenth. {remedies}"
        )
    return f"Does not fit into {memory}. {remedies}"


def _remedies(plan: Plan, settings: Settings) -> list[str]:
    """Settings that would save memory in the phases that take too much."""
    limit = (1 - SPARE) * (plan.available_bytes or 0)
    recording = {
        "pipeline.dtype=bf16": settings.pipeline.dtype == "fp32",
        "pipeline.offload=component": settings.pipeline.offload == "none" and plan.device != "cpu",
        "pipeline.offload=group": settings.pipeline.offload == "component",
        "pipeline.quantization=bitsandbytes_4bit": settings.pipeline.quantization == "none"
        and settings.distill.frozen_weights == "same"
        and plan.device != "cpu",
        "record.batch_size=1": settings.record.batch_size > 1,
    }
    needs_recording = max(plan.encoding_bytes, plan.recording_bytes) > limit
    first = [name for name, applies in recording.items() if applies and needs_recording]
    training = cheaper(settings) if plan.peak_bytes > limit else []
    return list(dict.fromkeys([*first, *training])) or ["a larger device"]


def cheaper(settings: Settings) -> list[str]:
    """Settings that would save memory in training and are not set yet, the most helpful first."""
    distill = settings.distill
    can_quantise = (
        "student" not in settings.record.rounds and settings.pipeline.quantization == "none"
    )
    applicable = {
        "pipeline.dtype=bf16": settings.pipeline.dtype == "fp32",
        "distill.gradient_checkpointing=true": not distill.gradient_checkpointing,
        f"distill.accumulation={distill.batch_size}": distill.accumulation < distill.batch_size,
        "distill.frozen_weights=int8": can_quantise and distill.frozen_weights in ("same", "bf16"),
        "distill.frozen_weights=int4": can_quantise and distill.frozen_weights == "int8",
        "distill.optimizer=adamw8bit": distill.optimizer != "adamw8bit",
        "adapter.rank=4": settings.adapter.rank > 4,
        "adapter.targets=attention": settings.adapter.targets != "attention",
    }
    return [setting for setting, applies in applicable.items() if applies] or ["a larger device"]


def _ones_like(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Ones of a tensor's shape and type: they are valid token ids, timesteps and latents alike."""
    return torch.ones(tuple(tensor.shape), dtype=tensor.dtype, device=device)


def _largest_layers(module: nn.Module) -> int:
    """Bytes of a module's two largest layers: one computes, and the next may be on its way."""
    return sum(sorted(_bytes(m) for m in module.modules() if not any(m.children()))[-2:])


def _bytes(module: nn.Module) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def _memory_of(device: str) -> int | None:
    """Total memory of a device; None where it is not known."""
    memory = device_memory(torch.device(device))
    return None if memory is None else memory[1]
