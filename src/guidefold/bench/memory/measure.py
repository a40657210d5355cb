"""Measure a case's peak on a device, in a process of its own: a high-water mark never falls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch

from guidefold.bench.memory.architectures import read_architecture
from guidefold.bench.memory.cases import ArchitectureWorkload, Case
from guidefold.bench.memory.estimate import Peak
from guidefold.bench.memory.training import Training
from guidefold.ground import FailedError
from guidefold.pipeline import peak_memory

# glibc keeps freed blocks for itself unless they were mapped alone: then the high-water mark of the
# process is not that of its tensors.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measure(case: Case, workload: ArchitectureWorkload, device: str) -> Peak:
    """Run a case in a process of its own.

    Args:
        case: The case.
        workload: The denoiser to train, and its inputs.
        device: ``cpu`` or ``cuda``.

    Raises:
        FailedError: The process failed; the message holds its last line of output.
    """
    request = json.dumps(
        {"case": asdict(case), "workload": _workload_values(workload), "device": device}
    )
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=request,
        env={**os.environ, **ALLOCATOR},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        killed = "killed, usually because memory ran out"
        last = (done.stderr.strip().splitlines() or [killed])[-1]
        raise FailedError(
            f"{case.name} on {device}: {last}",
            "Try a smaller --batch or --size, or --how estimate.",
        )
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Run in the process: read a request from standard input, print the peak as JSON."""
    request = json.loads(sys.stdin.read())
    values = request["workload"]
    workload = ArchitectureWorkload(
        **{**values, "architecture": read_architecture(**values["architecture"])}
    )
    training = Training(Case(**request["case"]), workload)
    print(json.dumps(asdict(measured_run(training, torch.device(request["device"])))))


def measured_run(training: Training, device: torch.device) -> Peak:
    """Run a training step in this process, and measure its peak."""
    warm_up(device)
    before = peak_memory(device)
    training.start(device, _unmarked)
    training.run()
    after = peak_memory(device)
    count = sum(p.numel() for p in training.trained)
    reserved = getattr(torch.get_device_module(device), "max_memory_reserved", None)
    if after["kind"] == "allocated":
        return Peak(int(after["bytes"]), {}, None if reserved is None else reserved(device), count)
    return Peak(int(after["bytes"]) - int(before["bytes"]), {}, None, count)


def warm_up(device: torch.device) -> None:
    """Load what torch loads at the first use of a kernel: it is no part of a training step.

    The shapes are large enough for the kernels that keep buffers: on a CPU some 10 MiB.
    """
    picture = torch.rand(1, 64, 32, 32, device=device, requires_grad=True)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(64, 64, 3, padding=1),
        torch.nn.GroupNorm(2, 64),
        torch.nn.SiLU(),
        torch.nn.Flatten(2),
        torch.nn.Linear(32 * 32, 256),
    ).to(device)
    rows = layers(picture)
    loss = torch.nn.functional.scaled_dot_product_attention(rows, rows, rows).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.optim.AdamW(layers.parameters(), foreach=True).step()


def _unmarked(part: str, tensors: Iterable[torch.Tensor] | None) -> None:
    """Ignore the parts: a device counts bytes only."""


def _workload_values(workload: ArchitectureWorkload) -> dict[str, Any]:
    named = {"name": workload.architecture.name, "values": workload.architecture.values}
    return {**asdict(workload), "architecture": named}


if __name__ == "__main__":
    main()
