"""How true is the dial? The student at each guidance scale beside the teacher at that scale.

    guidefold demo                                                    # a run to measure
    python benchmarks/dial.py runs/demo --out docs/results/dial       # dial.md and dial.json
    python benchmarks/dial.py runs/demo --strip docs/images/dial.png  # its pictures by strength

Each scale is measured at the strength that stands for it and at the one that the adapter's own
calibration names. Pictures are kept in --work: a stopped bench resumes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from guidefold.deliver import read_dial
from guidefold.demo import judge_of
from guidefold.draw import grid, png
from guidefold.ground import InputError
from guidefold.judge import evaluate
from guidefold.lora import Dial
from guidefold.run import PictureIndex, Results, RunFolder, Settings, flatten, load_settings

STRIP = 3  # prompts, the first measured ones, not hand-picked
SCALES = (1.5, 2.0, 3.0, 5.0, 7.5, 8.0, 10.0)
HEADER = """# The dial against true guidance

Student and CFG teacher on {prompts} held-out prompts, the same seeds, {steps} steps, trained over
guidance {low:g} to {high:g} with strength 1 at {g_ref:g}. Each scale is drawn at the strength that
stands for it, and at the one that the adapter's calibration names (nearest to the teacher on
held-out recorded states). Residual guidance is measured at the teacher's and at the student's own
states: 1 nothing folded, 0 all. Distance is the mean squared distance from the CFG pictures of that
scale, divided by the unguided pictures'. Saturation is HSV's, mean over pixels. *Nearest* is the
scale, among those of the table and 1, whose CFG pictures lie nearest to the student's. A
student that folds a share of guidance, and guesses the rest as well as can be, lies nearest to a
lower scale, whatever its pictures look like: alignment and saturation say how strong they look.

```
{command}
python benchmarks/dial.py RUN --out {out} --prompts {prompts}
```

"""
COLUMNS = (
    *("guidance", "strength", "by", "residual, teacher's states", "student's states"),
    *("alignment, teacher", "student", "saturation, teacher", "student", "distance", "nearest"),
)


def main() -> None:
    """Draw the strip, measure the dial, or both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, help="path of the .md and the .json")
    parser.add_argument("--strip", type=Path, help="picture of the run's own drawings to write")
    parser.add_argument("--work", type=Path, help="folder of the pictures; default: RUN-dial")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--states", type=int, default=8, help="prompts for residual guidance")
    options = parser.parse_args()
    if options.strip:
        options.strip.write_bytes(png(_strip(RunFolder(options.run))))
    if options.out:
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Measure every scale, write the table."""
    work = options.work or options.run.with_name(f"{options.run.name}-dial")
    settings = _place(options.run, work, options.prompts, options.states)
    dial = read_dial(RunFolder(work).adapter)
    rows = [
        _measure(settings, g, strength, by)
        for g in SCALES
        for by, strength in _strengths(dial, g).items()
    ]
    _add_nearest(RunFolder(work).evaluation, rows, options.prompts)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"marks": [vars(mark) for mark in dial.marks], "rows": rows}, indent=1)
    options.out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    options.out.with_suffix(".md").write_text(
        _page(settings, rows, dial, options.out), encoding="utf-8"
    )


def _strip(run: RunFolder) -> Image.Image:
    """The first prompts at every strength: the student above, the teacher at that scale below."""
    index = PictureIndex.read(run.index)
    assert index is not None, f"{run}: not measured yet"
    prompts = [entry.prompt for entry in index.pictures[:STRIP]]
    rows, captions = [], []
    for k, prompt in enumerate(prompts):
        rows.append([Image.open(run.evaluation / step.student[k]) for step in index.dial])
        rows.append([Image.open(run.evaluation / step.teacher[k]) for step in index.dial])
        captions += [f"{prompt} (student)", "CFG teacher"]
    headings = [f"{step.strength:g}\n= guidance {step.guidance:g}" for step in index.dial]
    return grid(rows, headings, captions)


def _place(run: Path, work: Path, prompts: int, states: int) -> Settings:
    """The adapter in a folder of its own, where pictures may lie."""
    work.mkdir(exist_ok=True)
    source, target = RunFolder(run), RunFolder(work)
    if not target.adapter.exists():
        shutil.copy2(source.config, target.config)
        shutil.copy2(source.probe, target.probe)
        shutil.copytree(source.adapter, target.adapter)
    found = load_settings(run)
    measured = found.evaluate.model_copy(
        update={"prompts": prompts, "state_prompts": states, "dial_prompts": 0}
    )
    return found.model_copy(update={"run": str(work), "evaluate": measured})


def _strengths(dial: Dial, guidance: float) -> dict[str, float]:
    found = {"dial": dial.nominal_strength(guidance)}
    with contextlib.suppress(InputError):  # beyond what the dial was measured over
        found["calibration"] = dial.measured_strength(guidance)
    return found


def _measure(settings: Settings, guidance: float, strength: float, by: str) -> dict[str, Any]:
    chosen = settings.evaluate.model_copy(update={"guidance": guidance, "strength": strength})
    now = settings.model_copy(update={"evaluate": chosen})
    found = Results.model_validate(evaluate(now, judge_of(settings.pipeline.source)))
    return {
        "guidance": guidance,
        "strength": strength,
        "by": by,
        "residual_teacher_states": found.residual_guidance.teacher_states.mean,
        "residual_student_states": found.residual_guidance.student_states.mean,
        "alignment_teacher": found.teacher.alignment,
        "alignment_student": found.student.alignment,
        "saturation_teacher": found.teacher.saturation,
        "saturation_student": found.student.saturation,
        "relative_distance": found.relative_distance,
    }


def _add_nearest(folder: Path, rows: list[dict[str, Any]], prompts: int) -> None:
    """The scale whose CFG pictures are nearest to each row's."""
    teachers = {g: _pictures(folder, f"teacher-g{g:g}", prompts) for g in SCALES}
    teachers[1.0] = _pictures(folder, "unguided", prompts)
    for row in rows:
        own = _pictures(folder, f"student-s{row['strength']:g}", prompts)
        apart = {g: float(np.square(own - its).mean()) for g, its in teachers.items()}
        row["nearest"] = min(apart, key=apart.__getitem__)


def _pictures(folder: Path, stem: str, count: int) -> Any:
    def read(path: Path) -> Any:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"), dtype=np.float32) / 255

    return np.stack([read(folder / f"{stem}-{k:04d}.png") for k in range(count)])


def _command(settings: Settings) -> str:
    """The command that trains such a run: the demo with the settings that differ."""
    usual, own = (flatten(s.model_dump(mode="json")) for s in (load_settings("demo"), settings))
    differing = [
        f"'{key}={json.dumps(value)}'"
        for key, value in own.items()
        if value != usual.get(key) and key != "run" and not key.startswith("evaluate.")
    ]
    return " ".join(["guidefold demo run=RUN", *differing])


def _page(settings: Settings, rows: Sequence[dict[str, Any]], dial: Dial, out: Path) -> str:
    low, high = settings.record.guidance
    measured = settings.evaluate
    lines = [
        HEADER.format(
            command=_command(settings),
            out=out,
            prompts=measured.prompts,
            steps=measured.steps,
            low=low,
            high=high,
            g_ref=settings.adapter.g_ref,
        ),
        "| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS) + "\n",
    ]
    for row in rows:
        exact = {"guidance": f"{row['guidance']:g}", "nearest": f"{row['nearest']:g}"}
        shown = {name: v if isinstance(v, str) else f"{v:.3f}" for name, v in row.items()} | exact
        cells = list(shown.values())
        lines.append("| " + " | ".join(cells) + " |\n")
    lines.append(
        "\n## The calibration\n\n| guidance | strength | as the dial stands | residual |\n"
    )
    lines.append("|---|---|---|---|\n")
    for mark in dial.marks:
        stands = dial.nominal_strength(mark.guidance)
        lines.append(
            f"| {mark.guidance:.2f} | {mark.strength:.3f} | {stands:.3f} | {mark.residual:.3f} |\n"
        )
    return "".join(lines)


if __name__ == "__main__":
    main()
