"""Run folders made by hand, stage by stage, for tests of the picture page: nothing is trained."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from guidefold.lora.dial import STRENGTHS
from guidefold.run.config import dump_toml
from guidefold.run.files import append_line
from guidefold.run.settings import KINDS, Settings

PROMPTS = ("a red cat", "a blue dog", "an old house")
STEPS = (0, 20, 40)
COLOURS = {"teacher": "red", "unguided": "lime", "student": "blue"}
VERDICTS = {
    "teacher": (True, True, True),
    "unguided": (False, False, True),
    "student": (True, False, True),
}
HOSTILE = """</script><img src=x onerror="window.__hit=1">'"&amp;{{ 7 * 7 }}<!--"""


def begun(run: Path, text: str = "", **adapter: Any) -> Path:
    """Settings and what the probe found; ``text`` stands wherever a user may write one."""
    run.mkdir(parents=True)
    settings = Settings.model_validate(
        {
            "run": str(run),
            "pipeline": {"source": "bundled", "negative_prompt": text or None},
            "prompts": {"path": text or "world"},
            "adapter": {"g_ref": 5.0, **adapter},
            "distill": {"steps": 40},
        }
    )
    (run / "config.toml").write_text(dump_toml(settings), encoding="utf-8")
    write(run / "probe.json", {"pipeline": text or "StableDiffusionPipeline", "off": 1.0})
    return run


def recorded(run: Path, count: int = 3) -> Path:
    """Trajectories, of which the page reads the manifest alone."""
    folder = run / "trajectories" / "round-0"
    folder.mkdir(parents=True)
    for index in range(count):
        line: dict[str, Any] = {"index": index, "split": "training", "prompt_sha256": "", "seed": 0}
        line |= {"guidance": 5.0, "file": f"{index}.safetensors", "sha256": "", "timesteps": []}
        line |= {"size": 1024 * 1024, "seconds": 30.0}
        append_line(folder / "manifest.jsonl", line)
    return run


def trained(run: Path, steps: int = 40) -> Path:
    """A log line every ten steps, validations every twenty."""
    memory = {"kind": "resident", "bytes": 3 * 2**30}
    for step in range(10, steps + 1, 10):
        line: dict[str, Any] = {"step": step, "loss": 1 - step / 100}
        append_line(run / "log.jsonl", line)
        if step % 20 == 0:
            line = {"step": step, "residual_guidance": 1 - step / 80, "levels": levels(step / 160)}
            line |= {"training_seconds": 3 * step, "peak_memory": memory}
            append_line(run / "log.jsonl", line)
    return run


def previewed(run: Path, prompts: Sequence[str] = PROMPTS[:2], size: int = 16) -> Path:
    """Pictures of the teacher, and of the student at three steps."""
    folder = run / "previews"
    for k in range(len(prompts)):
        draw(folder / f"teacher-{k}.png", COLOURS["teacher"], size)
        draw(folder / f"unguided-{k}.png", COLOURS["unguided"], size)
        for shade, step in enumerate(STEPS):
            draw(folder / f"student-{k}-step-{step:06d}.png", f"rgb(0, {40 * shade}, 200)", size)
    about = {"prompts": list(prompts), "seeds": list(range(len(prompts))), "guidance": 5.0}
    write(folder / "previews.json", {**about, "strength": 1.0, "steps": list(STEPS)})
    return run


def measured(
    run: Path, prompts: Sequence[str] = PROMPTS, size: int = 16, *, judged: bool = True
) -> Path:
    """Pictures, their index and the results; the text of a judge's categories is the prompts'."""
    folder = run / "evaluation"
    for kind in KINDS:
        for k in range(len(prompts)):
            draw(folder / f"{kind}-{k}.png", COLOURS[kind], size)
    pictures = [
        {
            "prompt": prompt,
            "seed": k,
            "category": prompt if judged else None,
            "files": {kind: f"{kind}-{k}.png" for kind in KINDS},
            "aligned": {kind: VERDICTS[kind][k % 3] for kind in KINDS} if judged else {},
        }
        for k, prompt in enumerate(prompts)
    ]
    steps = []
    for shade, strength in enumerate(STRENGTHS):
        draw(folder / f"student-s{strength}.png", f"rgb(0, {40 * shade}, 200)", size)
        draw(folder / f"teacher-s{strength}.png", f"rgb(200, {40 * shade}, 0)", size)
        step: dict[str, Any] = {"strength": strength, "guidance": 1 + 4 * strength}
        step |= {who: [f"{who}-s{strength}.png"] * 2 for who in ("student", "teacher")}
        steps.append(step)
    write(folder / "index.json", {"pictures": pictures, "dial": steps})
    write(run / "results.json", results(prompts, judged=judged))
    write(run / "adapter" / "guidefold.json", {"usage_hint": f"guidance off; {prompts[0]}"})
    return run


def results(prompts: Sequence[str], *, judged: bool) -> dict[str, Any]:
    shares = {"teacher": 0.8, "unguided": 0.3, "student": 0.76}
    kinds: dict[str, dict[str, Any]] = {
        kind: {
            "alignment": shares[kind] if judged else None,
            "saturation": 0.5,
            "passes_per_image": 40.0 if kind == "teacher" else 20.0,
            "denoiser_seconds_per_image": 0.25 if kind == "teacher" else 0.125,
        }
        for kind in KINDS
    }
    kinds["student"]["denoiser_seconds_per_image_fused"] = 0.0625
    found: dict[str, Any] = {**kinds}
    if judged:
        kinds["student"]["alignment_over_teacher_95"] = [0.9, 1.0]
        kinds["unguided"] |= {"frechet_distance": 3.25, "recall": 0.5}
        kinds["student"] |= {"frechet_distance": 0.5, "recall": 0.75}
        found["categories"] = {prompt: {"prompts": 1, **shares} for prompt in prompts}
    states = ("teacher_states", "student_states")
    residual = {name: {"mean": 0.125, "levels": levels(0.125)} for name in states}
    return {
        **found,
        "residual_guidance": residual,
        "relative_distance": 0.0625,
        "guidance": 5.0,
        "strength": 1.0,
        "prompts": len(prompts),
        "steps": 20,
        "trained_steps": 40,
        "adapter_bytes": 2**20,
        "denoiser_bytes": 10 * 2**20,
        "versions": {"torch": prompts[0]},
        "machine": f"cpu {prompts[0]}",
    }


def levels(residual: float) -> list[dict[str, float]]:
    return [
        {"low": 100 * k, "high": 100 * k + 90, "residual": residual, "states": 4} for k in range(5)
    ]


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def draw(path: Path, colour: str, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)
