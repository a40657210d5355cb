"""The README's story, told by its own commands on a pipeline of one's own."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from terminal import run_here

from guidefold.run.config import dump_toml
from guidefold.run.settings import Settings

PROMPT = "a red cat"


def command(*words: object) -> str:
    """What a command of guidefold prints; it must succeed."""
    done = run_here(*words)
    assert done.code == 0, done.out + done.err
    return done.out


@pytest.fixture(scope="module")
def run(
    settings_for: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The folder of a finished run, and what its commands printed."""
    folder = tmp_path_factory.mktemp("story")
    settings = settings_for("sd15", folder)
    config = folder / "mine.toml"
    config.write_text(dump_toml(settings), encoding="utf-8")
    printed = command("probe", settings.pipeline.source)
    printed += command("distill", config)
    printed += command("evaluate", settings.run)
    printed += command("sample", settings.run, "--prompt", PROMPT, "--seed", 7)
    return Path(settings.run), printed


def test_every_command_says_what_it_did_and_what_comes_next(run: tuple[Path, str]):
    folder, printed = run
    for words in ("50% of the passes saved", "strength 1 = guidance ", "residual guidance"):
        assert words in printed
    assert str(folder / "adapter") in printed
    (grid,) = (folder / "samples").glob("grid-*.png")
    assert str(grid) in printed


def test_the_student_makes_half_the_passes(run: tuple[Path, str]):
    results = json.loads((run[0] / "results.json").read_text(encoding="utf-8"))
    assert results["student"]["passes_per_image"] * 2 == results["teacher"]["passes_per_image"]


def test_plain_diffusers_draws_the_same_picture_from_the_adapter(
    run: tuple[Path, str], saved: Callable[[str], Path]
):
    pipeline = DiffusionPipeline.from_pretrained(saved("sd15"), use_safetensors=True)
    pipeline.load_lora_weights(run[0] / "adapter")
    (plain,) = pipeline(
        PROMPT,
        guidance_scale=1.0,
        num_inference_steps=2,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images
    (student,) = (run[0] / "samples").glob("*-student-s1.png")
    ours = np.asarray(Image.open(student), dtype=float)
    assert np.abs(np.asarray(plain, dtype=float) - ours).max() <= 1


def test_the_finished_run_is_not_run_again(run: tuple[Path, str]):
    before = (run[0] / "log.jsonl").read_bytes()
    command("distill", run[0])
    assert (run[0] / "log.jsonl").read_bytes() == before
