"""``guidefold demo``: two runs, the second with the guidance LoRA of the first."""

import json
from pathlib import Path

from terminal import run_here

SMALL = (
    "record.trajectories=4 record.validation_trajectories=2 record.batch_size=2 "
    "record.steps=[10,10] distill.steps=2 distill.batch_size=2 distill.preview_prompts=0 "
    "evaluate.prompts=2 evaluate.steps=10 evaluate.state_prompts=1 evaluate.dial_prompts=1"
)


def test_the_demo_folds_guidance_then_steps(tmp_path: Path) -> None:
    done = run_here("demo", f"run={tmp_path}/demo", *SMALL.split())
    assert done.code == 0, done.err
    first, few = tmp_path / "demo", tmp_path / "demo-5-steps"
    for run in (first, few):
        assert (run / "report.html").exists()
    results = json.loads((few / "results.json").read_text())
    passes = {kind: results[kind]["passes_per_image"] for kind in ("teacher", "student")}
    assert passes == {"teacher": 20, "student": 5}
    assert (few / "adapter" / "steps").is_dir()
    assert "student, 5 steps" in done.out
