"""The memory table: cases side by side, each against full fine-tuning with a moving average."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal

import torch
from rich.table import Table

from guidefold.bench.memory.cases import REFERENCE, ArchitectureWorkload, Case
from guidefold.bench.memory.estimate import Peak, estimate
from guidefold.bench.memory.measure import measure
from guidefold.bench.result_tables import rich_table, versions
from guidefold.ground import ConfigError, task
from guidefold.train import LIBRARY

How = Literal["estimate", "cpu", "cuda"]
ASSUMED = "fused attention; no workspaces; docs/bench.md"


@dataclass(frozen=True)
class Row:
    """One case's result.

    Attributes:
        case: The case as it was run.
        peak: Its peak memory; None where it could not be run.
        why_not: Why it could not be run; empty where it was.
    """

    case: Case
    peak: Peak | None
    why_not: str = ""


def check_device(how: How) -> None:
    """Refuse to measure on a device that is not here.

    Raises:
        ConfigError: There is no CUDA device.
    """
    if how == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--how cuda: no CUDA device here", "Use --how estimate.")


def bench_memory(cases: Sequence[Case], workload: ArchitectureWorkload, how: How) -> list[Row]:
    """Run cases one after the other.

    Args:
        cases: The cases.
        workload: The denoiser to train, and its inputs.
        how: Estimated over fake tensors, or measured on a device.
    """
    rows = []
    with task(f"{workload.architecture.title}, {how}", len(cases)) as progress:
        for case in cases:
            rows.append(_row(case, workload, how))
            progress.advance(note=case.name)
    return rows


def to_json(rows: Sequence[Row], workload: ArchitectureWorkload, how: How) -> list[dict[str, Any]]:
    """The rows as plain values, each with all settings and versions."""
    reference = _reference(rows)
    return [
        {
            "case": row.case.name,
            "architecture": workload.architecture.name,
            "how": how,
            "device": _device(how),
            "peak_bytes": row.peak.peak_bytes if row.peak else None,
            "saving": _saving(row, reference),
            "reserved_bytes": row.peak.reserved_bytes if row.peak else None,
            "parts": row.peak.parts if row.peak else {},
            "parameters": workload.architecture.denoiser.parameters,
            "trained_parameters": row.peak.trained_parameters if row.peak else None,
            "not_run": row.why_not or None,
            "settings": _settings(row.case, workload),
            "versions": versions(),
        }
        for row in rows
    ]


def to_table(rows: Sequence[Row], workload: ArchitectureWorkload, how: How) -> Table:
    """The rows as a table for a terminal: 1 GiB is 2**30 bytes."""
    parts = workload.architecture
    title = (
        f"{parts.title}, {parts.denoiser.parameters:,} parameters, {workload.dtype}, batch "
        f"{workload.batch}, {workload.size} x {workload.size}; {how}: {_device(how)}"
    )
    headings, reference = ("case", "peak GiB", "saving", "trained", "most of it"), _reference(rows)
    cells = [_cells(row, _saving(row, reference)) for row in rows]
    return rich_table(title, headings, cells, left=("case", "most of it"))


def _cells(row: Row, saving: float | None) -> list[str]:
    if row.peak is None:
        return [row.case.title, "-", "-", "-", f"not run: {row.why_not}"]
    return [
        row.case.title,
        f"{row.peak.peak_bytes / 2**30:.2f}",
        "-" if saving is None else f"{saving:+.1%}",
        f"{row.peak.trained_parameters:,}",
        _largest(row.peak.parts),
    ]


def _row(case: Case, workload: ArchitectureWorkload, how: How) -> Row:
    if how == "estimate":
        return Row(case, estimate(case, workload))
    if case.optimizer == "adamw-8bit" and (why := _no_eight_bit_optimizer(how)):
        if case.bits is None:
            return Row(case, None, why)
        case = replace(case, optimizer="adamw")  # the rungs above run without this one too
    return Row(case, measure(case, workload, how))


def _no_eight_bit_optimizer(how: How) -> str:
    if how == "cpu":
        return f"{LIBRARY}' 8-bit optimizer needs a CUDA device"
    return "" if find_spec(LIBRARY) else f"{LIBRARY} is not installed"


def _reference(rows: Sequence[Row]) -> int | None:
    peaks = (row.peak.peak_bytes for row in rows if row.peak and row.case.name == REFERENCE.name)
    return next(peaks, None)


def _saving(row: Row, reference: int | None) -> float | None:
    """``1 - peak / reference``; None where either is missing."""
    if row.peak is None or reference is None:
        return None
    return 1 - row.peak.peak_bytes / reference


def _largest(parts: dict[str, int], count: int = 2) -> str:
    ordered = sorted(parts.items(), key=lambda item: -item[1])[:count]
    return ", ".join(f"{name} {size / 2**30:.2f}" for name, size in ordered)


def _device(how: str) -> str:
    if how == "cuda":
        return str(torch.cuda.get_device_name())
    return ASSUMED if how == "estimate" else f"high-water mark on {platform.machine()}"


def _settings(case: Case, workload: ArchitectureWorkload) -> dict[str, Any]:
    of_load = {name: v for name, v in asdict(workload).items() if name != "architecture"}
    of_case = {name: v for name, v in asdict(case).items() if name not in ("name", "title")}
    return {**of_load, **of_case, "dtype": case.dtype or workload.dtype}
