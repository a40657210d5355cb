"""A run's pipeline without weights: what its calls hold, and what a training step calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import nn

from guidefold.bench.memory.cases import Case, Workload
from guidefold.bench.memory.meta_pipeline import FakeRuns, find_folder, open_meta_pipeline
from guidefold.listen import Call, Tree, output_tensor, tree_map
from guidefold.lora import BITS, shrink_weights
from guidefold.pipeline import DTYPES, modules, quantizable
from guidefold.run import Offload, Quantization, Settings

# Of linear layers and convolutions: a library's scales take what those of Guidefold's storage take.
LIBRARY_BITS: dict[str, tuple[int, None]] = {
    "bitsandbytes_4bit": (4, None),
    "bitsandbytes_8bit": (8, None),
    "torchao_int8": (8, None),
    "quanto_int8": (8, None),
}


class PipelineWorkload(Workload):
    """A pipeline's denoiser and the arguments of its recorded call.

    Args:
        denoiser: On the meta device.
        call: The recorded call.
        settings: The run's.

    Attributes:
        name: The denoiser's class.
        parameters: Its parameters.
    """

    def __init__(self, denoiser: nn.Module, call: Call, settings: Settings) -> None:
        self._denoiser, self._arguments = denoiser, call.arguments
        self._output = output_tensor(call.output)
        self.batch, self.pieces = self._output.shape[0], settings.distill.accumulation
        self.dtype, self.rank = settings.pipeline.dtype, settings.adapter.rank
        self.targets, self.steps_rank = settings.adapter.targets, settings.steps_rank
        self.autocast = DTYPES.get(settings.distill.mixed_precision)
        self.name, self.parameters = type(denoiser).__name__, _count(denoiser)

    def denoiser(self, dtype: torch.dtype) -> nn.Module:
        """The one denoiser: a run trains no second one."""
        return self._denoiser.to(dtype)

    def inputs(self, dtype: torch.dtype, device: torch.device | str) -> Tree:
        """Make arguments of the recorded ones' shapes and types."""
        return tree_map(lambda t: _ones_like(t, device), self._arguments)

    def target(self, inputs: Tree) -> torch.Tensor:
        """Make a tensor of the output's shape, as a trajectory file holds one."""
        return _ones_like(self._output, "cpu")


@dataclass(frozen=True)
class Recording:
    """What a pipeline takes while prompts are encoded and while the teacher's denoiser runs.

    Attributes:
        denoiser: The denoiser's name.
        beside: The most bytes at once in a call of each component, beside its weights.
        sizes: Bytes of each component's weights.
        layers: Bytes of each component's layer that computes and the one that comes next.
    """

    denoiser: str
    beside: Mapping[str, int]
    sizes: Mapping[str, int]
    layers: Mapping[str, int]

    def peaks(self, offload: Offload) -> tuple[int, int]:
        """Peaks of text encoding and of recording.

        Args:
            offload: An offloaded pipeline holds only the component that computes, or only its
                layers that do.
        """
        total = sum(self.sizes.values())
        held = {
            "none": dict.fromkeys(self.beside, total),
            "component": self.sizes,
            "group": self.layers,
            "sequential": self.layers,
        }[offload]
        counted = {name: beside + held[name] for name, beside in self.beside.items()}
        recording = counted.pop(self.denoiser)
        return max(counted.values(), default=0), recording


@dataclass(frozen=True)
class Outline:
    """What is known of a run's pipeline once it has run without weights.

    Attributes:
        settings: The run's.
        folder: The pipeline's configurations.
        call: The denoiser's call of a training step.
        recording: What the pipeline takes before training.
    """

    settings: Settings
    folder: Path
    call: Call
    recording: Recording

    def open_denoiser(self) -> nn.Module:
        """The denoiser on the meta device: a new one, in the pipeline's precision."""
        dtype = DTYPES[self.settings.pipeline.dtype]
        return modules(open_meta_pipeline(self.folder, dtype))[self.call.denoiser]

    def workload(self) -> PipelineWorkload:
        """The work of a training step."""
        return PipelineWorkload(self.open_denoiser(), self.call, self.settings)


def outline(settings: Settings, rows: int) -> Outline:
    """Run a pipeline without weights.

    Args:
        settings: The run's.
        rows: Samples in a call of a training step.

    Raises:
        PipelineError: The configs cannot be found, or make no pipeline.
        UnfoldableError: The pipeline cannot run without weights.
    """
    folder = find_folder(settings.pipeline.source, settings.pipeline.config)
    pipeline = open_quantised(settings, folder, settings.pipeline.quantization)
    sizes, layers = sizes_of(pipeline)
    runs = FakeRuns(pipeline, settings.pipeline)
    call = runs.unguided_call(rows)
    runs.guided_call(settings.record.batch_size, settings.record.guidance[1])
    beside = {name: peak - sizes[name] for name, peak in runs.peaks.items()}
    return Outline(settings, folder, call, Recording(call.denoiser, beside, sizes, layers))


def open_quantised(settings: Settings, folder: Path, name: Quantization) -> DiffusionPipeline:
    """A pipeline on the meta device, its large components' linear layers in a library's bits."""
    pipeline = open_meta_pipeline(folder, DTYPES[settings.pipeline.dtype])
    bits = LIBRARY_BITS.get(name)
    for module in modules(pipeline).values():
        if bits is not None and quantizable(type(module)):
            shrink_weights(module, *bits)
    return pipeline


def sizes_of(pipeline: DiffusionPipeline) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of each component's weights, and of its two largest layers."""
    parts = modules(pipeline)
    return (
        {name: bytes_of(module) for name, module in parts.items()},
        {name: two_largest_layers(module) for name, module in parts.items()},
    )


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


def _ones_like(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Ones of a tensor's shape and type: they are valid token ids, timesteps and latents alike."""
    return torch.ones(tuple(tensor.shape), dtype=tensor.dtype, device=device)


def two_largest_layers(module: nn.Module) -> int:
    """Bytes of a module's two largest layers: one computes, and the next may be on its way."""
    return sum(sorted(bytes_of(m) for m in module.modules() if not any(m.children()))[-2:])


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's weights and buffers."""
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
