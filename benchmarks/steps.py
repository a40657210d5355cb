"""How few steps are enough? The student at K steps beside the teacher at 20 and at K, by seed.

    python benchmarks/steps.py --out FOLDER                    # every run that is still missing
    python benchmarks/steps.py --out FOLDER --only "5 steps"   # one case; --seeds 0,1 some of them
    python benchmarks/steps.py --out FOLDER --table docs/results/steps

A stopped bench resumes. A finished run's figures stand in the table's .json, from where a later
bench takes them if FOLDER does not have the run.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guidefold import api
from guidefold.demo import judge_of
from guidefold.run import Results

SEEDS = (0, 1, 2)
COMMON = (
    "distill.optimizer=adamw",
    "distill.batch_size=32",
    "distill.validate_every=200",
    "distill.checkpoint_every=100",
    "distill.preview_prompts=0",
    "evaluate.prompts=512",
    "evaluate.state_prompts=32",
    "evaluate.diversity_seeds=4",
    "evaluate.dial_prompts=0",
)
"""On top of the demo's preset."""
FIXED = ("adapter.dial=false", "record.guidance=[4.0, 4.0]")
OWN_STATES = ('record.rounds=["teacher", "student"]', "record.trajectories=1024")
TWO = ("record.guidance=[1.0, 8.0]", *OWN_STATES, "distill.steps=1200")


@dataclass(frozen=True)
class Case:
    """One way to train a student of fewer steps.

    Attributes:
        name: Its name in the table.
        overrides: Settings that it changes.
        seeds: The seeds that it is run with.
    """

    name: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...] = SEEDS


def _fixed(steps: int, updates: int, *more: str) -> tuple[str, ...]:
    return (f"student.steps={steps}", f"distill.steps={updates}", *FIXED, *more)


CASES = (
    Case("5 steps", _fixed(5, 1000, *OWN_STATES)),
    Case("10 steps", _fixed(10, 600, "record.trajectories=1024")),
    Case("5 steps, with a dial", ("student.steps=5", *TWO)),
    Case("2 steps", _fixed(2, 1000, *OWN_STATES), (0,)),
    Case("4 steps", _fixed(4, 1000, *OWN_STATES), (0,)),
    Case("20 steps", _fixed(20, 600, "record.trajectories=640"), (0,)),
    Case("5 steps, teacher's states alone", _fixed(5, 1000, "record.trajectories=1024"), (0,)),
)

Line = dict[str, Any]
"""A finished run's figures."""


def main() -> None:
    """Run what is missing, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", default="", help="the name of one case")
    parser.add_argument("--seeds", default="", help="some of the seeds, such as 0,1")
    parser.add_argument("--table", type=Path, help="path of the .md and the .json")
    options = parser.parse_args()
    seeds = {int(seed) for seed in options.seeds.split(",") if seed}
    chosen = [case for case in CASES if options.only in ("", case.name)]
    wanted = [(case, s) for case in chosen for s in case.seeds if not seeds or s in seeds]
    if options.table is not None:
        write_table(options.out, options.table)
        return
    for case, seed in wanted:
        print(json.dumps(run(options.out, case, seed)), flush=True)


def run(out: Path, case: Case, seed: int) -> Line:
    """Bring one run to its end, and return its figures."""
    folder = _folder(out, case, seed)
    settings = api.load_settings(
        "demo", [*COMMON, *case.overrides, f"seed={seed}", f"run={folder}"]
    )
    if finished(out, case, seed) is None:
        api.distill(settings)
        api.export(settings)
        api.evaluate(settings, judge_of(settings.pipeline.source))
    line = finished(out, case, seed)
    assert line is not None, "it was measured just now"
    return line


def finished(out: Path, case: Case, seed: int) -> Line | None:
    """The figures of a run; None before it is measured."""
    results = Results.read(_folder(out, case, seed) / "results.json")
    if results is None or results.few_steps is None:
        return None
    residual = results.residual_guidance
    return {
        "case": case.name,
        "seed": seed,
        "prompts": results.prompts,
        "passes": results.student.passes_per_image,
        "teacher": results.teacher.alignment,
        "teacher at K": results.few_steps.teacher.alignment,
        "unguided at K": results.unguided.alignment,
        "student": results.student.alignment,
        "diversity": (results.student.diversity or 0) / (results.teacher.diversity or 1),
        "teacher's states": residual.teacher_states.mean,
        "student's states": residual.student_states.mean,
        "distance": results.relative_distance,
    }


def write_table(out: Path, target: Path) -> None:
    """Write finished runs: ``target.json``, and their means between the marks of ``target.md``."""
    stored = target.with_suffix(".json")
    lines: list[Line] = json.loads(stored.read_text()) if stored.exists() else []
    known = {(line["case"], line["seed"]): line for line in lines}
    for case in CASES:
        for seed in case.seeds:
            line = finished(out, case, seed)
            if line is not None:
                known[case.name, seed] = line
    order = [case.name for case in CASES]
    ordered = sorted(known.values(), key=lambda line: (order.index(line["case"]), line["seed"]))
    stored.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    text = target.with_suffix(".md").read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    table = "\n".join(_table(ordered))
    target.with_suffix(".md").write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", "utf-8")


BEGIN, END = "<!-- table of benchmarks/steps.py -->", "<!-- end of the table -->"
COLUMNS: tuple[tuple[str, Callable[[Line], float]], ...] = (
    ("passes", lambda line: line["passes"]),
    ("student", lambda line: line["student"]),
    ("teacher, 20 steps", lambda line: line["teacher"]),
    ("student / teacher", lambda line: line["student"] / line["teacher"]),
    ("teacher, K steps", lambda line: line["teacher at K"]),
    ("unguided, K steps", lambda line: line["unguided at K"]),
    ("diversity / teacher's", lambda line: line["diversity"]),
    ("step residual, teacher's states", lambda line: line["teacher's states"]),
    ("student's states", lambda line: line["student's states"]),
)


def _table(lines: Sequence[Line]) -> Iterable[str]:
    """A row for each case: means over its seeds, with standard deviations."""
    yield f"| | seeds | {' | '.join(name for name, _ in COLUMNS)} |"
    yield f"|---|---|{'---|' * len(COLUMNS)}"
    for name in dict.fromkeys(line["case"] for line in lines):
        own = [line for line in lines if line["case"] == name]
        cells = [_cell([value(line) for line in own]) for _, value in COLUMNS]
        yield f"| {name} | {len(own)} | {' | '.join(cells)} |"


def _cell(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.3g}"
    if len(values) < 2 or min(values) == max(values):
        return mean
    return f"{mean} ± {statistics.stdev(values):.2g}"


def _folder(out: Path, case: Case, seed: int) -> Path:
    return out / f"{case.name.replace(' ', '-').replace(',', '')}-{seed}"


if __name__ == "__main__":
    main()
