"""A case's peak without weights or device: its own training step, over tensors that hold nothing.

The step runs on the CPU over fake tensors, which have shapes, types and storages but no memory.
What is assumed of the machine stands in docs/bench.md; above all, attention is fused.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.attention import SDPBackend, sdpa_kernel

from guidefold.bench.memory.cases import Case, Subject
from guidefold.bench.memory.memory_watch import Watch
from guidefold.bench.memory.training import Training
from guidefold.ground import compat


@dataclass(frozen=True)
class Peak:
    """The most memory that a case takes at once.

    Attributes:
        peak_bytes: Of tensors; on a measured CPU of the whole process, less what it held before.
        parts: Those bytes by part, where they can be told apart.
        reserved_bytes: What the allocator held at most; None where there is none of its kind.
        trained_parameters: How many numbers learn.
    """

    peak_bytes: int
    parts: dict[str, int]
    reserved_bytes: int | None
    trained_parameters: int


def estimate(case: Case, load: Subject) -> Peak:
    """Run a case over fake tensors and count.

    Args:
        case: The way to train.
        load: What is trained.
    """
    watch, training = Watch(), Training(case, load)
    # Fused attention on every device holds no score matrix; the CPU's kernel stands for it here.
    with compat.fake_tensor_mode(), sdpa_kernel(SDPBackend.FLASH_ATTENTION), watch:
        training.start("cpu", watch.mark)
        training.run()
        count = sum(p.numel() for p in training.trained)
    return Peak(watch.peak_bytes, watch.at_peak, None, count)
