"""Does the student lose anything on the lean ladder? Every rung on the bundled teacher.

    python benchmarks/ladder.py --out FOLDER                   # every run that is still missing
    python benchmarks/ladder.py --out FOLDER --table docs/results/ladder

Each rung includes those before it. All train on the same recording of the float32 teacher, and are
measured on its float32 weights. A stopped bench resumes. The last rung needs guidefold[lean].
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

from defaults import COLUMNS, COMMON, SEEDS

from guidefold.bench.fidelity import Trial, TrialResult, Trials, cell
from guidefold.bench.memory import make_plan
from guidefold.train import LIBRARY

STEPS = {
    "float32": (),
    "+ bf16 frozen weights": ("distill.frozen_weights=bf16", "distill.mixed_precision=bf16"),
    "+ gradient checkpointing": ("distill.gradient_checkpointing=true",),
    "+ 8-bit frozen weights": ("distill.frozen_weights=int8",),
    "+ 4-bit linear layers": ("distill.frozen_weights=int4",),
    "+ 8-bit optimizer": ("distill.optimizer=adamw8bit",),
}
RUNGS = dict(zip(STEPS, accumulate(STEPS.values()), strict=True))
"""The overrides of each rung; of two values for one setting the later counts."""
NEEDS_LIBRARY = "+ 8-bit optimizer"


def run_missing(trials: Trials, seeds: Sequence[int], only: str) -> None:
    """Make every run that is still missing, seed by seed."""
    for seed in seeds:
        for name, overrides in RUNGS.items():
            trial = Trial(overrides, seed)
            if only not in name or trials.result(trial) is not None:
                continue
            if name == NEEDS_LIBRARY and find_spec(LIBRARY) is None:
                print(f"{name}: left out, {LIBRARY} is not installed", flush=True)
                continue
            numbers = _numbers(trials.run(trial))
            print(f"{name}, seed {seed}: {json.dumps(numbers)}", flush=True)


def write_table(trials: Trials, seeds: Sequence[int], target: Path) -> None:
    """Write the finished trials: ``target.md`` for people, ``target.json`` for programs."""
    names = ["training step, MiB", *(name for name, _ in COLUMNS), "seconds of training"]
    text = [INTRODUCTION, f"| | seeds | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    lines = []
    for name, overrides in RUNGS.items():
        results = [trials.result(Trial(overrides, seed)) for seed in seeds]
        numbers = [_numbers(result) for result in results if result is not None]
        if not numbers:
            continue
        mebibytes = make_plan(trials.settings(Trial(overrides, 0))).peak_bytes / 2**20
        cells = [f"{mebibytes:.1f}", *(cell([x[n] for x in numbers]) for n, _ in COLUMNS)]
        cells.append(f"{statistics.mean(x['training_seconds'] for x in numbers):.0f}")
        text.append(f"| {name} | {len(numbers)} | {' | '.join(cells)} |")
        lines += [{"rung": name, "mebibytes": mebibytes, **x} for x in numbers]
    target.with_suffix(".json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    target.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")


INTRODUCTION = """# The lean ladder

The same recording of the bundled teacher, trained on with ever less memory; each row stands on
those above it. Students are measured on the teacher's float32 weights, whatever they were trained
on: alignment is the share of held-out prompts that the student draws right, divided by the CFG
teacher's on the same prompts and seeds; distance is its mean squared distance from the CFG
pictures, divided by the unguided teacher's; residual guidance is 1 where nothing is folded and 0
where all is. Mean over seeds, with the standard deviation between them. The memory of a training
step is `guidefold plan`'s. Seconds are of a CPU that emulates the small types, beside other work:
they tell nothing of a GPU's.

```
python benchmarks/ladder.py --out FOLDER
python benchmarks/ladder.py --out FOLDER --table docs/results/ladder
```
"""


def _numbers(result: TrialResult) -> dict[str, float]:
    """The numbers of a result that the table shows."""
    columns = {name: value(result) for name, value in COLUMNS}
    return {**columns, "training_seconds": result.training_seconds}


def main() -> None:
    """Run what is missing, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--only", default="", help="rungs whose name holds this")
    parser.add_argument("--set", nargs="*", default=[], help="further settings, for a quick look")
    parser.add_argument("--table", type=Path, help="write TABLE.md and TABLE.json instead")
    given = parser.parse_args()
    trials = Trials(given.out, "demo", (*COMMON, *given.set))
    if given.table:
        write_table(trials, given.seeds, given.table)
    else:
        run_missing(trials, given.seeds, given.only)


if __name__ == "__main__":
    main()
