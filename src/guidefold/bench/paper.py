"""``paper.md``: the source paper's claims, its figures, ours, and the commands that made them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from guidefold.bench.fidelity import (
    GUIDEFOLD,
    PAPER,
    PLAIN,
    MethodResult,
    Table,
    alignment_ratios,
    categories,
    cell,
    levels,
    markdown,
    overview,
)
from guidefold.bench.speed import FUSED
from guidefold.ground import plural
from guidefold.run import write_text

Parts = Mapping[str, Any]
"""JSON of finished parts by name."""
GIB = 2**30
NAMES = {
    "memory-sd15": "SD 1.5, estimated",
    "memory-sdxl": "SDXL, estimated",
    "memory-sd15-cpu": "SD 1.5 at 256 x 256, batch 1, measured on a CPU",
    "memory-sd15-small": "the same, estimated",
    "memory-sd15-cuda": "SD 1.5, measured on CUDA",
    "memory-sdxl-cuda": "SDXL, measured on CUDA",
    "speed-bundled": "The bundled teacher",
    "speed-sd15": "SD 1.5's denoiser",
    "speed-sd15-cuda": "SD 1.5's denoiser on CUDA",
    "speed-sdxl-cuda": "SDXL's denoiser on CUDA",
    "fidelity": "Fidelity",
}
INTRODUCTION = """# The paper's claims, reproduced

*LoRA-Enhanced Distillation on Guided Diffusion Models* (Golnari 2023, arXiv 2312.06899) makes four
claims. Here each stands beside what Guidefold measures, and the command that measures it.
`guidefold reproduce` runs them all and writes this page. *Estimated* is a training step over fake
tensors, without weights or device ([how](../bench.md)); *measured* is a run on the machine named.
Times come from a shared machine: read the ratios, which are of interleaved runs.
"""
FIDELITY = """
All methods go through the same recording, loss, training and evaluation, on the bundled teacher, at
about equal numbers of denoiser passes; the mean over seeds, with the standard deviation between
them. *Plain distillation* trains a full copy of the denoiser, *LoRA distillation as in the paper* a
rank-4 adapter on attention layers, both on noised pictures, at one guidance scale, with the plain
squared error. *Selective Guidance* (arXiv 2305.09847) trains nothing: it guides the first half of
the steps only. Distance is the mean squared distance from the CFG picture of the same prompt and
noise, the unguided teacher's being 1. Frechet distance and recall compare sets of pictures with the
CFG teacher's, over what the judge of the bundled world sees.
"""


def write_paper(out: Path, commands: Mapping[str, str], results: Parts) -> Path:
    """Write the page.

    Args:
        out: The folder; pictures and results lie in its ``paper``.
        commands: The command of every part, by name.
        results: The result of every finished part, by name.

    Returns:
        The page.
    """
    path = out / "paper.md"
    write_text(path, "\n".join(_page(commands, results)) + "\n")
    return path


TIME = """Medians of interleaved runs, quartiles in brackets. Clocks: *denoiser*, wall time inside
the denoiser; *processor*, processor time there, which a neighbour on the machine disturbs less;
*end to end*, text encoder and decoder included. Of a single step, Selective Guidance guides all."""


def _page(commands: Mapping[str, str], results: Parts) -> Iterator[str]:
    yield INTRODUCTION
    yield markdown((["claim", "paper", "here", "known by", "part"], list(_claims(results))))
    yield "\n## Memory\n\nPeak of a training step; in brackets, against full fine-tuning + EMA.\n"
    memory = {n: r for n, r in results.items() if n.startswith("memory")}
    yield markdown(_memory(memory))
    timed = {n: r for n, r in results.items() if n.startswith("speed")}
    if timed:
        yield f"\n## Time\n\n{TIME}\n"
    for name, result in timed.items():
        yield from _speed(name, result)
    if "fidelity" in results:
        yield from _fidelity([MethodResult(**entry) for entry in results["fidelity"]])
    yield "\n## Commands\n"
    for name, command in commands.items():
        missing = "" if name in results else " Not measured yet: it needs a CUDA device."
        yield f"- {NAMES[name]}:{missing} `{command}`"


def _claims(results: Parts) -> Iterator[list[str]]:
    """A row for each claim of the paper, and for each of ours beyond it."""
    for name in ("memory-sd15-cuda", "memory-sd15"):
        if name in results:
            savings = {row["case"]: row["saving"] for row in results[name]}
            for title, theirs, case in (
                ("ordinary distillation takes more memory", "+16 %", "plain-distillation"),
                ("LoRA distillation takes less", "-51 %", "lora-distillation"),
                ("... and the lean ladder", "", "8-bit-optimizer"),
                ("... with 8-bit frozen weights", "", "8-bit-weights"),
            ):
                if savings.get(case) is not None:
                    yield [title, theirs, f"{-savings[case]:+.1%}", NAMES[name], "memory"]
    for name, result in results.items():
        if name.startswith("speed"):
            row = _fastest(result["rows"])
            ratio = row["ratio_to_cfg"]["median"]
            known = f"{NAMES[name]}, batch {row['batch']}, {result['machine']['device']}"
            yield ["inference takes less time", "-40 %", f"{ratio - 1:+.1%}", known, "time"]
    if "fidelity" in results:
        found = [MethodResult(**entry) for entry in results["fidelity"]]
        for method, theirs in ((GUIDEFOLD, "no loss"), (PAPER, ""), (PLAIN, "")):
            ratios = alignment_ratios(found, method.name)
            title = f"alignment over the CFG teacher's: {method.title}"
            known = f"measured, {plural(len(ratios), 'seed')}"
            yield [title, theirs, cell(ratios), known, "fidelity"]


def _fastest(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of the fused student's denoiser, not compiled, at the largest batch."""
    fused = [r for r in rows if r["way"] == FUSED.name and r["form"] == "eager"]
    inside = [r for r in fused if r["clock"] == "denoiser"]
    return max(inside, key=lambda row: int(row["batch"]))


def _memory(results: Parts) -> Table:
    cases = list(dict.fromkeys(row["case"] for rows in results.values() for row in rows))
    columns = {
        NAMES[name]: {row["case"]: _peak(row) for row in rows} for name, rows in results.items()
    }
    rows = [[case, *(column.get(case, "-") for column in columns.values())] for case in cases]
    return ["case", *(f"{name}, GiB" for name in columns)], rows


def _peak(row: dict[str, Any]) -> str:
    if row["peak_bytes"] is None:
        return "-"
    saving = f" ({-row['saving']:+.1%})" if row["saving"] else ""  # none beside the reference
    return f"{row['peak_bytes'] / GIB:.2f}{saving}"


def _speed(name: str, result: dict[str, Any]) -> Iterator[str]:
    machine = result["machine"]
    facts = ("device", "threads", "dtype", "size", "steps", "rounds")
    yield f"### {NAMES[name]}\n"
    yield ", ".join(f"{fact} {machine[fact]}" for fact in facts) + ".\n"
    headings = ["method", "batch", "clock", "passes", "s / picture", "of CFG's", "of the bound's"]
    rows = [
        [
            row["title"] + ("" if row["form"] == "eager" else f", {row['form']}"),
            f"{row['batch']}",
            row["clock"],
            f"{row['passes_per_picture']:g}",
            *(_spread(row[n]) for n in ("seconds_per_picture", "ratio_to_cfg")),
            _spread(row["ratio_to_unguided"]),
        ]
        for row in result["rows"]
    ]
    yield markdown((headings, rows))
    yield "".join(f"\n{note}\n" for note in result["notes"])


def _spread(values: dict[str, float]) -> str:
    return f"{values['median']:.3g} ({values['low']:.3g}-{values['high']:.3g})"


def _fidelity(found: Sequence[MethodResult]) -> Iterator[str]:
    yield f"\n## Fidelity\n{FIDELITY}"
    yield markdown(overview(found))
    yield "\n### Alignment by category\n"
    yield markdown(categories(found))
    for states in ("teacher", "student"):
        yield f"\n### Residual guidance by noise level, at the {states}'s states\n"
        yield markdown(levels(found, f"{states}_states"))
    yield "\n### While training\n\n![residual guidance while training](paper/curves.svg)"
    yield "\n### The same prompts and noise\n\n![a column a method](paper/grid.png)"
