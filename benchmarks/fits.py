"""What do the presets' training steps take? Writes the table that ``guidefold doctor`` reads.

    python benchmarks/fits.py > src/guidefold/cli/training_steps.toml

Estimates as ``guidefold plan`` makes them, over the published configs of the denoisers, for presets
whose denoiser is one of ``guidefold bench memory``'s architectures: with the settings as shipped,
and with every setting that ``plan`` advises where memory lacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from guidefold.bench.memory import GIB, ArchitectureWorkload, case_of, cheaper, load_architecture
from guidefold.bench.memory.estimate import estimate
from guidefold.pipeline import DTYPES
from guidefold.run import Settings, load_settings

PRESETS = ("sd15", "sdxl")


@dataclass(frozen=True)
class RunWorkload(ArchitectureWorkload):
    """A step of a run: its batch in pieces, and its mixed precision."""

    pieces: int = 1
    autocast: torch.dtype | None = None


def peak_gib(preset: str, settings: Settings) -> float:
    """Most GiB of tensors at once in a training step."""
    distill, adapter = settings.distill, settings.adapter
    workload = RunWorkload(
        load_architecture(preset),
        distill.batch_size // distill.accumulation,
        settings.pipeline.call["height"],
        settings.pipeline.dtype,
        adapter.rank,
        adapter.targets,
        distill.accumulation,
        DTYPES.get(distill.mixed_precision),
    )
    return estimate(case_of(settings), workload).peak_bytes / GIB


def leanest(preset: str) -> list[str]:
    """Every setting that a plan advises against a lack of memory, as overrides of a preset."""
    found: list[str] = []
    while (advised := cheaper(load_settings(preset, found))[0]) != "a larger device":
        found.append(advised)
    return found


def rows(preset: str) -> Iterator[str]:
    """A preset's lines of TOML."""
    lean = leanest(preset)
    yield f"[{preset}]"
    yield f"lean_settings = {lean}".replace("'", '"')
    yield f"gib.as_shipped = {peak_gib(preset, load_settings(preset)):.2f}"
    yield f"gib.lean = {peak_gib(preset, load_settings(preset, lean)):.2f}"


if __name__ == "__main__":
    print(
        "# Peak memory of the presets' training steps; python benchmarks/fits.py writes this file."
    )
    for name in PRESETS:
        print("\n" + "\n".join(rows(name)))
