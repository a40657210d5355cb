"""Which settings fold guidance best? Runs on the bundled teacher, several seeds of each case.

    python benchmarks/defaults.py --out FOLDER                 # every case that is still missing
    python benchmarks/defaults.py --out FOLDER --part 1/2      # every second one, beside 2/2
    python benchmarks/defaults.py --out FOLDER --table docs/results/defaults

Each finished run is a JSON file under FOLDER/cases, so a stopped bench goes on. Cases that come
down to the same settings share a run; recordings and the teacher's pictures are shared likewise.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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


@functools.cache
def _teacher() -> str:
    """Which teacher: a result belongs to its weights."""
    from guidefold.pipelines import bundled_teacher

    weights = bundled_teacher() / "unet" / "diffusion_pytorch_model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:12]


@dataclass(frozen=True)
class Case:
    """One setting to try.

    Attributes:
        group: What it is compared with.
        name: Its name in the table.
        overrides: What it changes.
        guidance: At which guidance scales it is measured beside the preset's own.
        variant: A context manager of ``variants`` to train and measure within.
    """

    group: str
    name: str
    overrides: tuple[str, ...] = ()
    guidance: tuple[float, ...] = ()
    variant: str = ""

    def settings(self, seed: int, run: str = "unnamed") -> Any:
        """The settings of its run with this seed."""
        from guidefold import api

        return api.load_settings("demo", [*COMMON, *self.overrides, f"seed={seed}", f"run={run}"])

    def key(self, seed: int) -> str:
        """What decides the result: cases of several groups that ask for the same run share one."""
        decides = [self.settings(seed).model_dump(mode="json"), self.variant, _teacher()]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]


def _vary(group: str, setting: str, values: Sequence[object]) -> list[Case]:
    return [Case(group, f"{v}".strip('"'), (f"{setting}={v}",)) for v in values]


STATES = "states, at equal denoiser passes"
DIAL = "dial against fixed guidance"
ELSEWHERE = (2.0, 6.5)
WEIGHTS, BIAS = (
    "a LoRA against a full copy of the weights, at g = 4",
    "a constant per output channel",
)
FIXED = ("adapter.dial=false", "record.guidance=[4.0, 4.0]")
CASES = [
    # passes of one trajectory of 20 steps: teacher 40, noise 80 (the picture first), student 60
    Case(STATES, "teacher", ("record.trajectories=640",)),
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
    *_vary("learning rate", "distill.learning_rate", (1e-3, 2e-3, 4e-3)),
    *_vary("trajectories", "record.trajectories", (160, 640, 1280)),
    *_vary("states kept of each trajectory", "record.states_per_trajectory", (1, 4, 20)),
    *_vary("strength floor", "distill.strength_floor", (0.05, 0.2, 0.5)),
    *_vary("range of guidance", "record.guidance", ("[1.0, 5.0]", "[1.5, 7.0]", "[3.0, 5.0]")),
    Case(DIAL, "dial", (), ELSEWHERE),
    Case(DIAL, "fixed g = 4", ("adapter.dial=false", "record.guidance=[4.0, 4.0]"), ELSEWHERE),
    Case(DIAL, "any g, strength 1", ("adapter.dial=false",), ELSEWHERE),
    Case(WEIGHTS, "LoRA, rank 8", FIXED),
    Case(WEIGHTS, "LoRA, rank 64", (*FIXED, "adapter.rank=64")),
    *[
        Case(
            WEIGHTS,
            f"all weights, rate {r}",
            (*FIXED, f"distill.learning_rate={r}"),
            (),
            "whole_copy",
        )
        for r in (2e-4, 1e-3)
    ],
    Case(BIAS, "LoRA"),
    Case(BIAS, "LoRA and a constant", (), (), "output_bias"),
]


class Passes:
    """Counts samples through a denoiser while it listens."""

    count = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to every denoiser of the process; a stubbed one never gets so far."""
        from diffusers.models.embeddings import TimestepEmbedding
        from torch.nn.modules.module import register_module_forward_pre_hook

        def heard(module: Any, inputs: Any) -> None:
            if isinstance(module, TimestepEmbedding):
                self.count += len(inputs[0])

        hook = register_module_forward_pre_hook(heard)
        try:
            yield
        finally:
            hook.remove()


def run_case(case: Case, seed: int, out: Path) -> dict[str, Any]:
    """Record, train and measure one case.

    Args:
        case: The case.
        seed: Decides recording, adapter, batches and pictures.
        out: Where runs are kept.

    Returns:
        The line of the table.
    """
    import variants

    from guidefold import api

    run = out / "runs" / case.key(seed)
    shutil.rmtree(run, ignore_errors=True)
    settings = case.settings(seed, str(run))
    recorded = _recordings(settings, out)
    _link(recorded / "trajectories", run / "trajectories")
    passes, began = Passes(), time.perf_counter()
    with getattr(variants, case.variant)() if case.variant else nullcontext():
        with passes.listening():
            api.distill(settings)
        seconds = time.perf_counter() - began
        measured = {} if case.variant == "output_bias" else _measure(case, settings, out)
    recording = json.loads((recorded / "passes.json").read_text(encoding="utf-8"))
    line = {
        "passes": recording + passes.count,
        "training_seconds": seconds,
        **_validated(run),
        **measured,
    }
    shutil.rmtree(run)
    return line


def _measure(case: Case, settings: Any, out: Path) -> dict[str, Any]:
    """Pictures and residual guidance; the teacher's pictures are shared."""
    from guidefold import api
    from guidefold.alignment import Judge
    from guidefold.demo.judge import category, judge_pictures

    if not case.variant:
        api.export(settings)
    judge = Judge(judge_pictures, category)
    evaluation = Path(settings.run) / "evaluation"
    pictures = out / "pictures" / f"{_teacher()}-{settings.seed}"
    if pictures.exists():
        _link(pictures, evaluation)
    line: dict[str, Any] = _line(api.evaluate(settings, judge))
    _keep_teacher(evaluation, pictures)
    line["elsewhere"] = {}
    for scale in case.guidance:
        asked = replace(case, overrides=(*case.overrides, f"evaluate.guidance={scale}"))
        line["elsewhere"][f"{scale:g}"] = _line(
            api.evaluate(asked.settings(settings.seed, settings.run), judge)
        )
    return line


def _validated(run: Path) -> dict[str, float]:
    """Residual guidance on held-out prompts, as the last validation found it."""
    lines = [json.loads(x) for x in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [line for line in lines if "levels" in line][-1]
    return {"held_out": last["residual_guidance"], "noisiest": last["levels"][-1]["residual"]}


def _line(results: dict[str, Any]) -> dict[str, float]:
    """What of a measurement is kept."""
    residual = results["residual_guidance"]
    return {
        "alignment": results["student"]["alignment"],
        "teacher": results["teacher"]["alignment"],
        "unguided": results["unguided"]["alignment"],
        "distance": results["relative_distance"],
        "residual_teacher": residual["teacher_states"]["mean"],
        "residual_student": residual["student_states"]["mean"],
    }


def _recordings(settings: Any, out: Path) -> Path:
    """The rounds that need no student, recorded once for all cases that share them."""
    from guidefold import api

    shared = [
        settings.seed,
        settings.prompts.model_dump(),
        settings.record.model_dump(),
        _teacher(),
    ]
    name = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:12]
    folder = out / "recordings" / name
    if not (folder / "passes.json").exists():
        passes = Passes()
        with passes.listening():
            api.record(settings.model_copy(update={"run": str(folder)}))
        (folder / "passes.json").write_text(str(passes.count), encoding="utf-8")
    return folder


def _link(source: Path, target: Path) -> None:
    """A copy that takes no room; lists that grow are copied for good."""

    def place(old: str, new: str) -> None:
        if old.endswith(".jsonl"):
            shutil.copy2(old, new)
        else:
            os.link(old, new)

    shutil.copytree(source, target, copy_function=place)


def _keep_teacher(evaluation: Path, pictures: Path) -> None:
    """Keep what does not depend on the case: pictures of teacher and unguided teacher."""
    if pictures.exists():
        return
    fresh = pictures.with_name(f"{pictures.name}.{os.getpid()}")
    fresh.mkdir(parents=True)
    lines = (evaluation / "pictures.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if json.loads(line)["of"]["kind"] != "student"]
    (fresh / "pictures.jsonl").write_text("".join(f"{x}\n" for x in kept), encoding="utf-8")
    for line in kept:
        name = json.loads(line)["file"]
        os.link(evaluation / name, fresh / name)
    if pictures.exists():  # the other part was faster
        shutil.rmtree(fresh)
    else:
        fresh.rename(pictures)


def run_missing(out: Path, seeds: Sequence[int], part: tuple[int, int], only: str) -> None:
    """Make every run that has no file yet, seed by seed."""
    number, count = part
    for seed in seeds:
        wanted: dict[str, Case] = {}
        for case in CASES:
            if only in f"{case.group}, {case.name}":
                first = wanted.setdefault(case.key(seed), case)
                wanted[case.key(seed)] = replace(first, guidance=first.guidance or case.guidance)
        for key, case in list(wanted.items())[number - 1 :: count]:
            path = out / "cases" / f"{key}.json"
            if path.exists():
                continue
            line = run_case(case, seed, out)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(line, indent=1), encoding="utf-8")
            print(f"{case.group}: {case.name}, seed {seed}: {json.dumps(line)}", flush=True)


def _lines(out: Path, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """What stands of every case, in the table's order."""
    for case in CASES:
        for seed in seeds:
            path = out / "cases" / f"{case.key(seed)}.json"
            if path.exists():
                found = json.loads(path.read_text(encoding="utf-8"))
                yield {"group": case.group, "name": case.name, "seed": seed, **found}


def write_table(out: Path, seeds: Sequence[int], target: Path) -> None:
    """Write what stands: ``target.md`` for people, ``target.json`` for programs."""
    lines = list(_lines(out, seeds))
    target.with_suffix(".json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    text = [INTRODUCTION]
    for group in dict.fromkeys(line["group"] for line in lines):
        found = [line for line in lines if line["group"] == group]
        text += [f"\n## {group[0].upper()}{group[1:]}\n", *_table(found)]
    target.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")


INTRODUCTION = """# The default settings, and what else was tried

Every row is the mean over seeds, with the standard deviation between them. Alignment is the
share of 256 held-out prompts that the student draws right, divided by the CFG teacher's on the
same prompts and seeds. Distance is the student's mean squared distance from the CFG pictures,
divided by the unguided teacher's. Residual guidance is measured at the teacher's and at the
student's own states: 1 nothing folded, 0 all. Passes are samples through the denoiser, counted,
for recording, training and validation together. The last table is measured on recorded held-out
states alone.

```
python benchmarks/defaults.py --out FOLDER
python benchmarks/defaults.py --out FOLDER --table docs/results/defaults
```"""

COLUMNS = (
    ("alignment / teacher's", lambda x: x["alignment"] / x["teacher"]),
    ("distance", lambda x: x["distance"]),
    ("residual, teacher's states", lambda x: x["residual_teacher"]),
    ("residual, student's states", lambda x: x["residual_student"]),
)
VALIDATED = (
    ("residual, held-out states", lambda x: x["held_out"]),
    ("residual, the noisiest fifth", lambda x: x["noisiest"]),
)


def _table(lines: list[dict[str, Any]]) -> list[str]:
    whole = all("alignment" in line for line in lines)
    columns = list(COLUMNS if whole else VALIDATED)
    scales = sorted(set.intersection(*(set(x.get("elsewhere", {})) for x in lines)), key=float)
    columns += [(f"residual at g = {g}", _at(g)) for g in scales]
    names = " | ".join(name for name, _ in columns)
    text = [f"| | seeds | passes | {names} |", "|---" * (len(columns) + 3) + "|"]
    for name in dict.fromkeys(line["name"] for line in lines):
        found = [line for line in lines if line["name"] == name]
        cells = " | ".join(_cell([value(x) for x in found]) for _, value in columns)
        passes = statistics.mean(x["passes"] for x in found)
        text.append(f"| {name} | {len(found)} | {passes / 1000:.1f} k | {cells} |")
    return text


def _at(guidance: str) -> Callable[[dict[str, Any]], float]:
    return lambda line: float(line["elsewhere"][guidance]["residual_teacher"])


def _cell(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def main() -> None:
    """Run what is missing, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="where cases are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--part", default="1/1", help="which part of the cases, as in 1/2")
    parser.add_argument("--only", default="", help="cases whose group and name hold this")
    parser.add_argument("--table", type=Path, help="write TABLE.md and TABLE.json instead")
    given = parser.parse_args()
    if given.table:
        write_table(given.out, given.seeds, given.table)
        return
    number, count = (int(x) for x in given.part.split("/"))
    run_missing(given.out, given.seeds, (number, count), given.only)


if __name__ == "__main__":
    main()
