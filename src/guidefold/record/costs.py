"""What recording a round will take, by its first batch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from guidefold.ground import console, plural
from guidefold.pipeline import peak_memory
from guidefold.record.plans import Plan
from guidefold.run import describe_costs, readable_size


def print_costs(
    folder: Path, device: Any, missing: Sequence[Sequence[Plan]], seconds: float, size: float
) -> None:
    """Print what recording will take, by its first batch.

    Args:
        folder: The round's folder.
        device: The pipeline's.
        missing: All batches, the recorded one first.
        seconds: Time of the first batch.
        size: Bytes of one of its trajectories.
    """
    first, *_ = steps = [sum(plan.steps for plan in batch) for batch in missing]
    count, peak = sum(map(len, missing)), peak_memory(torch.device(device))
    costs = describe_costs(seconds * sum(steps) / first, size * count, peak)
    console.print(f"To record {plural(count, 'trajectory', 'trajectories')}: {costs}.")
    if (free := shutil.disk_usage(folder).free) < size * count:
        console.print(f"Beware: {readable_size(free)} are free in {folder}.")
