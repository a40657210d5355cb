"""Estimate a case's peak without weights or device: run its training step over fake tensors.

Fake tensors have shapes, types and storages but no memory. docs/bench.md lists what is assumed of
the machine; above all, attention is fused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from guidefold.bench.memory.cases import Case, Workload
from guidefold.bench.memory.memory_watch import MemoryWatch, Placeholders, fused_attention
from guidefold.bench.memory.training import Training
from guidefold.ground import compat


@dataclass(frozen=True)
class Peak:
    """The most memory that a case takes at once.

    Attributes:
        peak_bytes: Bytes of tensors; measured on a CPU, of the process, less those before the case.
        parts: Those bytes by part; empty where it was measured.
        reserved_bytes: The most that CUDA's allocator held; None on other devices.
        trained_parameters: How many numbers are trained.
    """

    peak_bytes: int
    parts: dict[str, int]
    reserved_bytes: int | None
    trained_parameters: int


def estimate(case: Case, workload: Workload) -> Peak:
    """Run a case over fake tensors and count their bytes.

    Args:
        case: The case.
        workload: The denoiser to train, and its inputs.
    """
    watch, training = MemoryWatch(), Training(case, workload)
    with compat.fake_tensor_mode(), fused_attention(), watch, Placeholders():
        training.start("cpu", watch.mark)
        training.run()
        count = sum(p.numel() for p in training.trained)
    return Peak(watch.peak_bytes, watch.at_peak, None, count)


def estimate_both(case: Case, workload: Workload) -> dict[bool, Peak]:
    """Estimate a case without gradient checkpointing and, where the denoiser has it, with it.

    Args:
        case: The case.
        workload: The denoiser to train, and its inputs.

    Returns:
        A peak of one training step by whether activations are computed twice.
    """
    watch, training = MemoryWatch(), Training(replace(case, checkpointing=False), workload)
    ways = (False, True) if compat.supports_checkpointing(training.denoiser) else (False,)
    peaks = dict[bool, Peak]()
    with compat.fake_tensor_mode(), fused_attention(), watch, Placeholders():
        training.start("cpu", watch.mark)
        training.prepare()
        count = sum(p.numel() for p in training.trained)
        for on in ways:
            if on:
                training.checkpoint(on)
            watch.restart()
            training.step()
            peaks[on] = Peak(watch.peak_bytes, watch.at_peak, None, count)
    return peaks
