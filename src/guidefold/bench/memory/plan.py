"""Estimate whether a run fits into memory, before a weight is downloaded or read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from guidefold.bench.memory.estimate import estimate
from guidefold.bench.memory.meta_pipeline import only_plannable
from guidefold.bench.memory.outline import case_of, outline
from guidefold.pipeline import device_memory, resolve_device
from guidefold.run import Settings

GIB = 2**30
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


def make_plan(settings: Settings, available_bytes: int | None = None) -> Plan:
    """Estimate a run's training step from its settings and its pipeline's configs.

    Args:
        settings: The run's.
        available_bytes: Memory to compare with; None takes the device's.

    Raises:
        PipelineError: The configs cannot be found, or make no pipeline.
        UnfoldableError: The pipeline cannot run without weights.
    """
    sketch = outline(settings, settings.distill.batch_size // settings.distill.accumulation)
    workload = sketch.workload()
    with only_plannable(workload.name):
        peak = estimate(case_of(settings), workload)
    encoding, recording = sketch.recording.peaks(settings.pipeline.offload)
    device = "given" if available_bytes is not None else resolve_device(settings.pipeline.device)
    return Plan(
        denoiser=workload.name,
        parameters=workload.parameters,
        trained_parameters=peak.trained_parameters,
        peak_bytes=peak.peak_bytes,
        parts=peak.parts,
        encoding_bytes=encoding,
        recording_bytes=recording,
        rows=workload.batch,
        device=device,
        available_bytes=memory_of(device) if available_bytes is None else available_bytes,
    )


def memory_of(device: str) -> int | None:
    """Total memory of a device; None where it is not known."""
    memory = device_memory(torch.device(device))
    return None if memory is None else memory[1]


def free_memory(device: str) -> int | None:
    """Memory of a device that nothing has taken; None where it is not known."""
    memory = device_memory(torch.device(device))
    return None if memory is None else memory[0]
