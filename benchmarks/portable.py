"""What do files lose that every reader of LoRA files takes? On the bundled teacher.

    python benchmarks/portable.py --out FOLDER                 # whatever is still missing
    python benchmarks/portable.py --out FOLDER --table docs/results/portable

Three students of one recording: trained on all layers; the same with the layers left out afterwards
that some readers do not take (``export --layers portable``); trained without these layers
(``adapter.targets=portable``). A stopped bench resumes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from torch import nn

from guidefold.deliver import export
from guidefold.demo import judge_of
from guidefold.judge import evaluate_weights
from guidefold.judge.trained_weights import Lora
from guidefold.lora import candidates, unportable
from guidefold.run import Results, RunFolder, Settings, load_settings
from guidefold.session import Session, open_session
from guidefold.train.distill import distill

COMMON = (
    "record.trajectories=256",
    "distill.steps=300",
    "distill.validate_every=300",
    "distill.checkpoint_every=100",
    "distill.preview_prompts=0",
    "evaluate.prompts=128",
    "evaluate.state_prompts=8",
    "evaluate.dial_prompts=0",
)
STUDENTS = {
    "every layer": "all",
    "left out afterwards": "all",
    "trained without them": "portable",
}
"""Each student's name in the table, and ``adapter.targets``."""
HEAD = """# What a portable file loses

Some readers of LoRA files do not take a UNet's input and output convolutions and its time
embedding ([clients](../clients.md)). The bundled teacher, one seed, one recording ({settings});
{prompts} held-out prompts, {steps} steps, guidance {guidance:g}. Alignment is the student's
share of pictures that show their prompt, over the CFG teacher's; distance is the mean squared
distance from the CFG pictures over the unguided ones'; residual guidance is 1 where nothing is
folded and 0 where all is. At {prompts} prompts, alignments that lie within 0.05 of each other tell
nothing.

```
python benchmarks/portable.py --out FOLDER
python benchmarks/portable.py --out FOLDER --table docs/results/portable
```

"""
HEADING = "| | alignment | distance | residual, teacher's states | residual, student's states |"


class WithoutOuterLayers(Lora):
    """The adapter that a run has written, with the unportable layers' updates at zero."""

    @torch.no_grad()
    def load(self, session: Session, strength: float) -> None:
        """Load it as a client does, and leave these layers out."""
        lost = {name: unportable(candidates(m, "all")) for name, m in session.denoisers.items()}
        super().load(session, strength)
        for name, layers in lost.items():
            for layer in layers:
                zero(session.denoisers[name].get_submodule(layer))


def zero(layer: nn.Module) -> None:
    """Set the second factor of a wrapped layer to zero."""
    for name, parameter in layer.named_parameters():
        if "lora_B" in name:
            parameter.zero_()


def settings_of(out: Path, name: str, more: list[str]) -> Settings:
    """A student's settings."""
    run = out / name.replace(" ", "-")
    return load_settings(
        "demo", [*COMMON, *more, f"adapter.targets={STUDENTS[name]}", f"run={run}"]
    )


def make(settings: Settings, name: str, first: Path) -> None:
    """Record or copy, train and measure one student."""
    run = RunFolder(settings.run)
    if name == "left out afterwards" and not run.path.exists():
        leave = shutil.ignore_patterns("evaluation", "results.json")
        shutil.copytree(first, run.path, ignore=leave)
    elif run.path != first and not run.path.exists():
        shutil.copytree(first / "trajectories", run.trajectories)
    if not run.adapter.exists():
        distill(settings)
        export(settings)
    weights = WithoutOuterLayers() if name == "left out afterwards" else Lora()
    with open_session(settings) as session:
        evaluate_weights(session, judge_of(settings.pipeline.source), weights)


def write_table(out: Path, target: Path, more: list[str]) -> None:
    """Write what was measured: ``target.md`` for people, ``target.json`` for programs."""
    rows, lines = [], {}
    for name in STUDENTS:
        settings = settings_of(out, name, more)
        run = RunFolder(settings.run)
        found = Results.read(run.results, "Remove it and run the bench again.")
        assert found is not None, f"{name}: not measured yet"
        numbers = _numbers(found)
        rows.append(f"| {name} | " + " | ".join(f"{n:.3f}" for n in numbers.values()) + " |")
        lines[name] = numbers
    chosen = ", ".join(f"`{line}`" for line in (*COMMON[:2], *more))
    values = {"prompts": found.prompts, "steps": found.steps, "guidance": found.guidance}
    text = HEAD.format(settings=chosen, **values)
    text += "\n".join([HEADING, "|---" * 5 + "|", *rows, ""])
    target.with_suffix(".md").write_text(text, encoding="utf-8")
    target.with_suffix(".json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


def _numbers(found: Results) -> dict[str, float]:
    assert found.student.alignment is not None
    assert found.teacher.alignment is not None
    return {
        "alignment": found.student.alignment / found.teacher.alignment,
        "distance": found.relative_distance,
        "residual, teacher's states": found.residual_guidance.teacher_states.mean,
        "residual, student's states": found.residual_guidance.student_states.mean,
    }


def main() -> None:
    """Run what is missing, or write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--set", nargs="*", default=[], help="further settings, for a quick look")
    parser.add_argument("--table", type=Path, help="write TABLE.md and TABLE.json instead")
    given = parser.parse_args()
    if given.table:
        write_table(given.out, given.table, given.set)
        return
    first = Path(settings_of(given.out, "every layer", given.set).run)
    for name in STUDENTS:
        settings = settings_of(given.out, name, given.set)
        if not RunFolder(settings.run).results.exists():
            make(settings, name, first)


if __name__ == "__main__":
    main()
