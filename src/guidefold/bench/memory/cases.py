"""The training set-ups that are compared: four of the paper, then a ladder of leaner ones.

A case is data; :mod:`guidefold.bench.memory.training` turns it into a training step. Every rung of
the ladder includes all those before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from guidefold.bench.memory.architectures import Architecture, Shapes, make_inputs
from guidefold.ground import ConfigError
from guidefold.listen import Tree, tensors_of
from guidefold.run import Precision, Preset


@dataclass(frozen=True)
class Case:
    """One way to set up training.

    Attributes:
        name: Its name on the command line.
        title: Its name in tables: what it adds.
        trains: Every weight of the denoiser, or an adapter on frozen ones.
        ema: Keep a moving average of the trained weights.
        teacher: ``held`` is a second denoiser, ``shared`` is the student's own, adapter off: both
            give a guided target in each step; ``none`` needs no target of theirs.
        encoders: Text encoders and autoencoder are resident, and encode each batch.
        dtype: Precision of what is frozen; None takes the bench's.
        checkpointing: Gradient checkpointing.
        optimizer: AdamW, AdamW with 8-bit moments, or Muon.
        bits: Bits of frozen weights, in linear layers and in convolutions; None keeps ``dtype``, of
            either or both.
    """

    name: str
    title: str
    trains: Literal["all", "adapter"] = "all"
    ema: bool = False
    teacher: Literal["none", "held", "shared"] = "none"
    encoders: bool = True
    dtype: Precision | None = None
    checkpointing: bool = False
    optimizer: Literal["adamw", "adamw-8bit", "muon"] = "adamw"
    bits: tuple[int, int | None] | None = None


FULL = Case("full-fine-tuning", "full fine-tuning")
REFERENCE = replace(FULL, name="full-fine-tuning-ema", title="full fine-tuning + EMA", ema=True)
PLAIN = replace(
    REFERENCE, name="plain-distillation", title="plain distillation, + EMA", teacher="held"
)
LORA = Case("lora-distillation", "LoRA distillation (paper)", trains="adapter", teacher="shared")
BF16 = replace(LORA, name="bf16-weights", title="+ bf16 frozen weights", dtype="bf16")
CHECKPOINTING = replace(
    BF16, name="gradient-checkpointing", title="+ gradient checkpointing", checkpointing=True
)
ALONE = replace(
    CHECKPOINTING, name="encoders-not-resident", title="+ encoders not resident", encoders=False
)
RECORDED = replace(ALONE, name="recorded-targets", title="+ recorded targets", teacher="none")
OPTIMIZER = replace(
    RECORDED, name="8-bit-optimizer", title="+ 8-bit optimizer", optimizer="adamw-8bit"
)
BITS8 = replace(OPTIMIZER, name="8-bit-weights", title="+ 8-bit frozen weights", bits=(8, 8))
BITS4 = replace(BITS8, name="4-bit-linear", title="+ 4-bit linear layers", bits=(4, 8))
CASES = (
    FULL,
    REFERENCE,
    PLAIN,
    LORA,
    BF16,
    CHECKPOINTING,
    ALONE,
    RECORDED,
    OPTIMIZER,
    BITS8,
    BITS4,
)


@dataclass(frozen=True)
class Encoder:
    """A text encoder or an autoencoder.

    Attributes:
        module: On the meta device.
        method: The name of the method that encodes.
        inputs: Shapes of its arguments.
        sizes: Numbers for the words in those shapes.
    """

    module: nn.Module
    method: str
    inputs: Shapes
    sizes: Mapping[str, int]

    def encode_noise(self, dtype: torch.dtype, device: torch.device | str) -> None:
        """Run the module once on random inputs."""
        getattr(self.module, self.method)(**make_inputs(self.inputs, self.sizes, dtype, device))


class Workload(ABC):
    """The work of a training step: a denoiser, the inputs of its call, and the adapter's size."""

    batch: int
    dtype: Precision
    rank: int
    targets: Preset
    steps_rank: int | None = None
    """Rank of the LoRA for fewer steps beside the other; None: no such."""
    pieces: int = 1
    """Calls of the denoiser per optimizer step (gradient accumulation)."""
    autocast: torch.dtype | None = None
    """Type of the student's mixed-precision pass; None: no autocast."""

    @abstractmethod
    def denoiser(self, dtype: torch.dtype) -> nn.Module:
        """Make a denoiser without memory."""

    @abstractmethod
    def inputs(self, dtype: torch.dtype, device: torch.device | str) -> Tree:
        """Make random arguments ``(args, kwargs)`` of one call."""

    @abstractmethod
    def target(self, inputs: Tree) -> torch.Tensor:
        """Make random values of the output's shape."""

    def encoders(self, dtype: torch.dtype) -> list[Encoder]:
        """Make text encoders and autoencoder without memory."""
        raise NotImplementedError


@dataclass(frozen=True)
class ArchitectureWorkload(Workload):
    """A published architecture's denoiser, at one batch and picture size.

    Attributes:
        architecture: The published architecture.
        batch: Samples in a step.
        size: The side of the pictures, in pixels.
        dtype: Precision of weights and computation, unless a case has its own.
        rank: Rank of the adapter; 4 in the paper.
        targets: Layers with an adapter; attention in the paper.
    """

    architecture: Architecture
    batch: int
    size: int
    dtype: Precision = "fp32"
    rank: int = 4
    targets: Preset = "attention"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"--batch {self.batch}: no samples", "Use 1 or more.")
        if self.rank < 1:
            raise ConfigError(f"--rank {self.rank}: no rank", "Use 1 or more.")
        _ = self.sizes  # raises for a size that does not fit

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers for the words in the architecture's shapes."""
        return self.architecture.sizes(self.batch, self.size)

    def denoiser(self, dtype: torch.dtype) -> nn.Module:
        """Make a denoiser without memory."""
        return self.architecture.denoiser.build(dtype)

    def inputs(self, dtype: torch.dtype, device: torch.device | str) -> Tree:
        """Make random arguments ``(args, kwargs)`` of one call."""
        return (), make_inputs(self.architecture.denoiser.inputs, self.sizes, dtype, device)

    def target(self, inputs: Tree) -> torch.Tensor:
        """Make random values of the latents' shape, which is the first argument's."""
        return torch.rand_like(next(tensors_of(inputs)))

    def encoders(self, dtype: torch.dtype) -> list[Encoder]:
        """Make text encoders and autoencoder without memory."""
        parts = self.architecture
        named = [(part, "forward") for part in parts.encoders.values()]
        return [
            Encoder(part.build(dtype), method, part.inputs, self.sizes)
            for part, method in (*named, (parts.autoencoder, "encode"))
        ]
