"""How far does a fold carry? Other step counts and other solvers than it was recorded with.

    guidefold demo                                                  # a run to measure
    python benchmarks/solvers.py runs/demo --out docs/results/solvers     # .md and .json

Nothing is trained: the run's adapter is loaded into the pipeline, its scheduler exchanged. Finished
cases in --work are not drawn again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from guidefold.deliver import open_adapter
from guidefold.demo import judge_of
from guidefold.draw import Drawn, draw, picture_requests
from guidefold.ground import task
from guidefold.judge import Judge, relative_distance, share
from guidefold.run import (
    KINDS,
    Kind,
    Settings,
    ensure_folder,
    load_settings,
    read_json,
    write_json,
    write_text,
)
from guidefold.session import Session, open_session

SOLVERS = {
    "DDIM": DDIMScheduler,
    "Euler": EulerDiscreteScheduler,
    "DPM-Solver++ 2M": DPMSolverMultistepScheduler,
    "UniPC": UniPCMultistepScheduler,
}
STEPS = (10, 20, 30, 50)
HEADER = """# Other steps and solvers than the recorded ones

The run was recorded with {recorded}, {recorded_steps} steps. Each case draws {prompts}
held-out prompts with teacher (guidance {guidance:g}), unguided and student, the same seeds, the
scheduler exchanged and nothing trained anew; figures are alignment. Distance is the student's mean
squared distance from the CFG pictures of the same solver and steps, divided by the unguided
pictures'.

```
guidefold demo run=RUN
python benchmarks/solvers.py RUN --out docs/results/solvers
```

| solver | steps | teacher | unguided | student | student / teacher | distance |
|---|---|---|---|---|---|---|
"""


def main() -> None:
    """Measure the missing cases, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="path of the .md and the .json")
    parser.add_argument("--work", type=Path, help="folder of finished cases; default: RUN-solvers")
    parser.add_argument("--prompts", type=int, default=128)
    options = parser.parse_args()
    work = options.work or options.run.with_name(f"{options.run.name}-solvers")
    ensure_folder(work)
    settings = load_settings(options.run)
    judge = judge_of(settings.pipeline.source)
    assert judge is not None, "the bundled world alone has a judge"
    rows = [
        _case(settings, judge, solver, steps, options.prompts, work)
        for solver in SOLVERS
        for steps in STEPS
    ]
    write_json(options.out.with_suffix(".json"), rows)
    write_text(options.out.with_suffix(".md"), _page(settings, rows))


def _case(
    settings: Settings, judge: Judge, solver: str, steps: int, prompts: int, work: Path
) -> dict[str, Any]:
    path = work / f"{SOLVERS[solver].__name__}-{steps}-{prompts}.json"
    if path.exists():
        return read_json(path)
    measured = settings.evaluate.model_copy(update={"steps": steps})
    with open_session(settings.model_copy(update={"evaluate": measured})) as session:
        scheduler = session.pipeline.scheduler
        session.pipeline.scheduler = SOLVERS[solver].from_config(scheduler.config)
        drawn = _draw(session, prompts)
        texts = [prompt.text for prompt in session.held_out[:prompts]]
        found = {kind: share(judge.aligned(drawn[kind].pictures, texts)) for kind in KINDS}
        row = {
            "solver": solver,
            "steps": steps,
            **found,
            "relative_distance": relative_distance(drawn),
            "passes": {kind: drawn[kind].passes_per_image for kind in KINDS},
            "guidance": session.compared.guidance,
            "prompts": len(texts),
            "recorded": type(scheduler).__name__,
        }
    write_json(path, row)
    return row


def _draw(session: Session, count: int) -> dict[Kind, Drawn]:
    prompts = session.held_out[:count]
    steps = session.settings.evaluate.steps
    drawn: dict[Kind, Drawn] = {}
    with task("Drawing, denoising steps", len(KINDS) * len(prompts) * steps) as progress:
        for kind in KINDS:
            if kind == "student":
                open_adapter(session, session.compared.strength)
            drawn[kind] = draw(session, picture_requests(session, kind, prompts), progress.advance)
    return drawn


def _page(settings: Settings, rows: list[dict[str, Any]]) -> str:
    (low, high), first = settings.record.steps, rows[0]
    recorded_steps = f"{low}" if low == high else f"{low} to {high}"
    head = HEADER.format(recorded_steps=recorded_steps, **{k: first[k] for k in HEADS})
    lines = [
        f"| {r['solver']} | {r['steps']} | {r['teacher']:.3f} | {r['unguided']:.3f} | "
        f"{r['student']:.3f} | {r['student'] / r['teacher']:.3f} | {r['relative_distance']:.3f} |\n"
        for r in rows
    ]
    return head + "".join(lines)


HEADS = ("recorded", "prompts", "guidance")


if __name__ == "__main__":
    main()
