"""Which settings fold guidance best? Runs on the bundled teacher, several seeds of each case.

    python benchmarks/defaults.py --out FOLDER                 # every case that is still missing
    python benchmarks/defaults.py --out FOLDER --part 1/2      # every second one, beside 2/2
    python benchmarks/defaults.py --out FOLDER --only rank     # one group, or one case
    python benchmarks/defaults.py --out FOLDER --table docs/results/defaults

A stopped bench resumes. Cases with equal settings share a run.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from guidefold.bench.fidelity import Attach, Trial, TrialResult, Trials, cell, copy_weights
from guidefold.lora import NAME, Adapter, attach
from guidefold.run import Results

SEEDS = (0, 1, 2)
COMMON = (
    "threads=1",
    "record.trajectories=640",
    "distill.steps=500",
    "distill.validate_every=500",
    "distill.checkpoint_every=500",
    "distill.preview_prompts=0",
    "evaluate.prompts=256",
    "evaluate.state_prompts=8",
    "evaluate.dial_prompts=0",
)
"""On top of the demo's preset: half its size."""


def output_bias(denoiser: nn.Module, *arguments: Any) -> Adapter:
    """A LoRA whose last layer also learns a constant per channel, scaled by strength like the rest.

    diffusers and plain peft could load it; ComfyUI and kohya's loaders would drop it in silence.
    """
    adapter = attach(denoiser, *arguments)
    up = adapter.layers["conv_out"].lora_B[NAME]
    up.bias = nn.Parameter(torch.zeros(up.out_channels))
    return adapter


@dataclass(frozen=True)
class Case:
    """One setting to try.

    Attributes:
        group: Heading of its table.
        name: Its name in the table.
        overrides: Settings that it changes.
        elsewhere: Further guidance scales that it is measured at.
        attach: Puts on what is trained.
    """

    group: str
    name: str
    overrides: tuple[str, ...] = ()
    elsewhere: tuple[float, ...] = ()
    attach: Attach = attach

    def trial(self, seed: int) -> Trial:
        """The case's trial with a seed."""
        measured = self.attach is not output_bias  # no client would load it
        return Trial(self.overrides, seed, self.attach, measured, self.elsewhere)


def _vary(group: str, setting: str, values: Sequence[object]) -> list[Case]:
    return [Case(group, f"{v}", (f"{setting}={v}",)) for v in values]


STATES = "states, at equal denoiser passes"
DIAL = "dial against fixed guidance"
ELSEWHERE = (2.0, 6.5)
WEIGHTS = "a LoRA against a full copy of the weights, at g = 4"
BIAS = "a constant per output channel"
FIXED = ("adapter.dial=false", "record.guidance=[4.0, 4.0]")
CASES = [
    Case(DIAL, "dial", (), ELSEWHERE),
    Case(DIAL, "fixed g = 4", FIXED, ELSEWHERE),
    Case(DIAL, "any g, strength 1", ("adapter.dial=false",), ELSEWHERE),
    # passes of one trajectory of 20 steps: teacher 40, noise 80 (the picture first), student 60
    Case(STATES, "teacher"),
    Case(STATES, "noise", ('record.rounds=["noise"]', "record.trajectories=320")),
    Case(
        STATES,
        "teacher, student",
        ('record.rounds=["teacher", "student"]', "record.trajectories=256"),
    ),
    Case(
        STATES, "teacher, noise", ('record.rounds=["teacher", "noise"]', "record.trajectories=213")
    ),
    Case(
        STATES,
        "teacher, noise, student",
        ('record.rounds=["teacher", "noise", "student"]', "record.trajectories=142"),
    ),
    *_vary("loss", "distill.loss", ("normalised", "plain")),
    *_vary("layers", "adapter.targets", ("attention", "linear", "all")),
    *_vary("rank", "adapter.rank", (4, 8, 16, 64)),
    *_vary("learning rate", "distill.learning_rate", (1e-3, 2e-3, 4e-3, 8e-3)),
    *_vary("trajectories", "record.trajectories", (160, 640, 1280)),
    *_vary("states kept of each trajectory", "record.states_per_trajectory", (1, 4, 20)),
    *_vary("strength floor", "distill.strength_floor", (0.05, 0.2, 0.5)),
    *_vary("range of guidance", "record.guidance", ("[1.0, 5.0]", "[1.5, 8.0]", "[3.0, 5.0]")),
    Case(WEIGHTS, "LoRA, rank 16", FIXED),
    Case(WEIGHTS, "LoRA, rank 64", (*FIXED, "adapter.rank=64")),
    *[
        Case(
            WEIGHTS,
            f"all weights, rate {r}",
            (*FIXED, f"distill.learning_rate={r}"),
            attach=copy_weights,
        )
        for r in (2e-4, 1e-3)
    ],
    Case(BIAS, "LoRA"),
    Case(BIAS, "LoRA and a constant", attach=output_bias),
]


def find_cases(only: Sequence[str]) -> list[Case]:
    """Find the cases whose group and name hold one of the words; all without any."""
    names = {f"{case.group}, {case.name}": case for case in CASES}
    return [c for name, c in names.items() if not only or any(word in name for word in only)]


def run_missing(
    trials: Trials, cases: Sequence[Case], seeds: Sequence[int], part: tuple[int, int]
) -> None:
    """Make every run that is still missing, seed by seed."""
    number, count = part
    for seed in seeds:
        files = {trials.file(case.trial(seed)): case for case in reversed(cases)}
        for case in list(reversed(files.values()))[number - 1 :: count]:
            if trials.result(case.trial(seed)) is None:
                result = trials.run(case.trial(seed))
                print(f"{case.group}: {case.name}, seed {seed}: {result.curve[-1]}", flush=True)


class Finished(NamedTuple):
    """A case's result with a seed."""

    case: Case
    seed: int
    result: TrialResult


def _finished(trials: Trials, cases: Sequence[Case], seeds: Sequence[int]) -> list[Finished]:
    """The finished trials of every case, in the table's order."""
    each = [(case, seed, trials.result(case.trial(seed))) for case in cases for seed in seeds]
    return [Finished(case, seed, result) for case, seed, result in each if result is not None]


def write_table(trials: Trials, cases: Sequence[Case], seeds: Sequence[int], target: Path) -> None:
    """Write the finished trials: ``target.md`` for people, ``target.json`` for programs."""
    finished = _finished(trials, cases, seeds)
    lines = [_line(entry) for entry in finished]
    target.with_suffix(".json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    text = [INTRODUCTION]
    for group in dict.fromkeys(entry.case.group for entry in finished):
        entries = [entry for entry in finished if entry.case.group == group]
        text += [f"\n## {group[0].upper()}{group[1:]}\n", *_table(entries)]
    target.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")


INTRODUCTION = """# The default settings, and what else was tried

Every row is the mean over seeds, with the standard deviation between them. Alignment is the
share of 256 held-out prompts that the student draws right, divided by the CFG teacher's on the
same prompts and seeds. Distance is the student's mean squared distance from the CFG pictures,
divided by the unguided teacher's. Residual guidance is measured at the teacher's and at the
student's own states: 1 nothing folded, 0 all. Passes are samples through the denoiser, counted,
for recording, training and validation together. *Residual, held-out states*, is of the run's own
recorded states.

```
python benchmarks/defaults.py --out FOLDER
python benchmarks/defaults.py --out FOLDER --table docs/results/defaults
```"""

Column = tuple[str, Callable[[TrialResult], float]]
"""A heading, and the number below it."""


def _alignment(result: TrialResult) -> float:
    teacher, student = result.measured.teacher.alignment, result.measured.student.alignment
    assert teacher is not None, "the demo has a judge"
    assert student is not None, "the demo has a judge"
    return student / teacher


def _residual(results: Results) -> float:
    return results.residual_guidance.teacher_states.mean


COLUMNS: tuple[Column, ...] = (
    ("alignment / teacher's", _alignment),
    ("distance", lambda result: result.measured.relative_distance),
    ("residual, teacher's states", lambda result: _residual(result.measured)),
    (
        "residual, student's states",
        lambda result: result.measured.residual_guidance.student_states.mean,
    ),
)
VALIDATED: tuple[Column, ...] = (
    ("residual, held-out states", lambda result: result.curve[-1][1]),
    ("residual, the noisiest fifth", lambda result: result.noisiest),
)


def _line(entry: Finished) -> dict[str, Any]:
    """An entry of the JSON file."""
    case, seed, result = entry
    columns = (*VALIDATED, *(COLUMNS if result.results is not None else ()))
    return {
        "group": case.group,
        "name": case.name,
        "seed": seed,
        "passes": result.passes,
        "training_seconds": result.training_seconds,
        **{name: value(result) for name, value in columns},
        "residual at g": {g: _residual(results) for g, results in result.elsewhere.items()},
    }


def _table(entries: Sequence[Finished]) -> list[str]:
    by_name: dict[str, list[TrialResult]] = {}
    for entry in entries:
        by_name.setdefault(entry.case.name, []).append(entry.result)
    every = [entry.result for entry in entries]
    columns = list(COLUMNS if all(result.results is not None for result in every) else VALIDATED)
    scales = sorted(set.intersection(*(set(result.elsewhere) for result in every)), key=float)
    if len(by_name) > 1:
        columns += [(f"residual at g = {g}", _at(g)) for g in scales]
    names = " | ".join(name for name, _ in columns)
    text = [f"| | seeds | passes | {names} |", "|---" * (len(columns) + 3) + "|"]
    for name, results in by_name.items():
        cells = " | ".join(cell([value(result) for result in results]) for _, value in columns)
        passes = statistics.mean(result.passes for result in results)
        text.append(f"| {name} | {len(results)} | {passes / 1000:.1f} k | {cells} |")
    return text


def _at(guidance: str) -> Callable[[TrialResult], float]:
    return lambda result: _residual(result.elsewhere[guidance])


def main() -> None:
    """Run what is missing, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--part", default="1/1", help="which part of the cases, as in 1/2")
    parser.add_argument("--only", nargs="+", default=[], help="cases whose names hold one of these")
    parser.add_argument("--table", type=Path, help="write TABLE.md and TABLE.json instead")
    given = parser.parse_args()
    trials = Trials(given.out, "demo", COMMON)
    cases = find_cases(given.only)
    if given.table:
        write_table(trials, cases, given.seeds, given.table)
        return
    number, count = (int(x) for x in given.part.split("/"))
    run_missing(trials, cases, given.seeds, (number, count))


if __name__ == "__main__":
    main()
