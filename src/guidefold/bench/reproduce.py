"""Reproduce the source paper's claims: run the missing commands, then write the page.

Source: Golnari 2023, *LoRA-Enhanced Distillation on Guided Diffusion Models*, arXiv 2312.06899.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from guidefold.bench.paper import write_paper
from guidefold.ground import FailedError, console
from guidefold.run import ensure_folder, read_json, write_bytes, write_text


@dataclass(frozen=True)
class Part:
    """One command of the reproduction.

    Attributes:
        name: Name of the part and of its result's file.
        arguments: Arguments of ``guidefold``, without ``--json``.
        needs_cuda: Whether it needs a CUDA device.
    """

    name: str
    arguments: tuple[str, ...]
    needs_cuda: bool = False

    @property
    def command(self) -> str:
        """The command as it is typed."""
        return shlex.join(("guidefold", *self.arguments))


LEAN = ("lora-distillation", "gradient-checkpointing", "recorded-targets")
PARTS = (
    Part("memory-sd15", ("bench", "memory", "--arch", "sd15")),
    Part("memory-sdxl", ("bench", "memory", "--arch", "sdxl")),
    Part(
        "memory-sd15-cpu",
        (
            *("bench", "memory", "--arch", "sd15", "--how", "cpu", "--batch", "1", "--size", "256"),
            *(word for case in LEAN for word in ("--case", case)),
        ),
    ),
    Part(
        "memory-sd15-small",
        ("bench", "memory", "--arch", "sd15", "--batch", "1", "--size", "256"),
    ),
    Part("memory-sd15-cuda", ("bench", "memory", "--arch", "sd15", "--how", "cuda"), True),
    Part("memory-sdxl-cuda", ("bench", "memory", "--arch", "sdxl", "--how", "cuda"), True),
    Part(
        "speed-bundled",
        ("bench", "speed", "bundled", "--batch", "1", "--batch", "4", "--batch", "32"),
    ),
    Part(
        "speed-sd15",
        (
            *("bench", "speed", "--arch", "sd15", "--size", "512"),
            *("--batch", "1", "--steps", "1", "--rounds", "5"),
        ),
    ),
    Part("speed-sd15-cuda", ("bench", "speed", "--arch", "sd15", "--dtype", "bf16"), True),
    Part("speed-sdxl-cuda", ("bench", "speed", "--arch", "sdxl", "--dtype", "bf16"), True),
)


def fidelity_part(out: Path, seeds: int, overrides: Sequence[str]) -> Part:
    """The comparison of methods, whose runs are kept below the reproduction's folder."""
    options = ("--seeds", f"{seeds}", "--out", str(out / "runs"))
    return Part("fidelity", ("bench", "fidelity", "demo", *overrides, *options))


def reproduce(out: Path, parts: Sequence[Part]) -> Path:
    """Run every part that has no result yet, then write ``paper.md`` beside the results.

    Args:
        out: The folder; a stopped reproduction resumes there.
        parts: The parts to run.

    Returns:
        The page.

    Raises:
        FailedError: A part failed; finished parts are kept.
    """
    results = out / "paper"
    ensure_folder(results)
    cuda = torch.cuda.is_available()
    for number, part in enumerate(parts, 1):
        path = results / f"{part.name}.json"
        if path.exists() or (part.needs_cuda and not cuda):
            continue
        console.print(f"{number}/{len(parts)}  {part.command}")
        write_text(path, _run(part))
    for picture in ("grid.png", "curves.svg"):
        if (out / "runs" / picture).exists():
            write_bytes(results / picture, (out / "runs" / picture).read_bytes())
    return write_paper(out, {part.name: part.command for part in parts}, _results(results, parts))


def _results(folder: Path, parts: Sequence[Part]) -> Mapping[str, Any]:
    paths = {part.name: folder / f"{part.name}.json" for part in parts}
    return {name: read_json(path) for name, path in paths.items() if path.exists()}


def _run(part: Part) -> str:
    """Run a part in a process of its own; return its JSON. Its progress goes to the terminal."""
    command = [sys.executable, "-m", "guidefold", *part.arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise FailedError(
            f"{part.command}: ended with exit code {done.returncode}",
            "Its error stands above. Finished parts are kept; the same command resumes.",
        )
    return done.stdout
