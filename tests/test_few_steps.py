"""A student of fewer steps, from its settings to a stock pipeline with its file."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler
from PIL import Image
from terminal import run_here
from training import finish, interrupted, outcome

from guidefold import api
from guidefold.ground.errors import InputError, MismatchError
from guidefold.run.settings import Settings

FEW: dict[str, Any] = {
    "student": {"steps": 2},
    "adapter": {"dial": False},
    "record": {
        "guidance": (5.0, 5.0),
        "steps": (4, 4),
        "rounds": ["teacher", "student"],
        "states_per_trajectory": 2,
    },
    "distill": {"steps": 4, "checkpoint_every": 1},
    "evaluate": {"steps": 4, "prompts": 2},
}


@dataclass(frozen=True)
class Made:
    """A finished run, and what was measured of it."""

    settings: Settings
    results: dict[str, Any]

    @property
    def folder(self) -> Path:
        return Path(self.settings.run)


@pytest.fixture(scope="module")
def made(settings_for: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory) -> Made:
    settings = settings_for("sd15", tmp_path_factory.mktemp("few"), **FEW)
    finish(settings)
    api.export(settings)
    results = api.evaluate(settings)
    api.report(settings)
    return Made(settings, results)


def stock(saved: Callable[[str], Path], **changes: Any) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(saved("sd15"), use_safetensors=True)
    config = pipeline.scheduler.config
    pipeline.scheduler = type(pipeline.scheduler).from_config(config, **changes)
    return pipeline


def test_before_training_the_loss_is_one(made: Made) -> None:
    """The step residual of the unguided teacher, over the states that it was measured at."""
    losses = outcome(made.folder).losses
    assert losses[0] == pytest.approx(1, abs=0.5)  # two of the states, drawn by lot


def test_a_stopped_run_ends_in_the_same_bits(
    made: Made, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = settings_for("sd15", tmp_path, **FEW)
    interrupted(settings, 3)  # within the student's round
    assert finish(settings) == outcome(made.folder)


def test_the_results_hold_both_rivals(made: Made) -> None:
    results = made.results
    passes = [results[kind]["passes_per_image"] for kind in ("teacher", "unguided", "student")]
    assert passes == [8, 2, 2]
    assert results["few_steps"]["steps"] == 2
    assert results["few_steps"]["teacher"]["passes_per_image"] == 4
    for states in results["residual_guidance"].values():
        assert 0 < states["mean"] < 3
    page = (made.folder / "report.html").read_text(encoding="utf-8")
    for name in ("CFG teacher, 4 steps", "CFG teacher, 2 steps", "student, 2 steps"):
        assert name in page
    assert "Step residual" in page


def test_the_files_say_what_a_client_must_set(made: Made) -> None:
    about = json.loads((made.folder / "adapter" / "guidefold.json").read_text())
    assert about["findings"]["steps"] == {
        "student": 2,
        "teacher": 4,
        "indices": [0, 2],
        "solver": "DDIMScheduler",
        "spacing": "trailing",
        "shift": None,
        "clip_sample": False,
        "sigmas": None,
        "timesteps": [999.0, 499.0],
    }
    steps = "2 steps, DDIMScheduler, trailing spacing (in ComfyUI ddim, simple)"
    hint = f"{steps}, guidance_scale=1; strength 1 = guidance 5"
    assert about["usage_hint"] == hint
    assert about["dial_table"] == []


def test_every_format_is_written_and_verified(made: Made) -> None:
    delivery = api.deliver(made.settings, "all")
    assert {verdict.kind for verdict in delivery.verdicts} >= {"diffusers", "kohya", "fused"}
    assert not any(verdict.problems for verdict in delivery.verdicts)


def test_a_stock_pipeline_draws_our_student_s_picture(
    made: Made, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    prompt, seed = "a red cat", 7
    _, file = api.sample(made.settings, [prompt], tmp_path, kinds=["student"], seeds=[seed])
    ours = np.asarray(Image.open(file), dtype=float)
    plain = stock(saved, timestep_spacing="trailing")
    plain.load_lora_weights(made.folder / "adapter")
    call = {"guidance_scale": 1.0, "num_inference_steps": 2}
    opened = api.open_student(stock(saved, timestep_spacing="leading"), made.folder / "adapter")
    for draw, given in ((plain, call), (opened, {})):
        (picture,) = draw(prompt, generator=torch.Generator().manual_seed(seed), **given).images
        assert np.abs(np.asarray(picture, dtype=float) - ours).max() <= 1


def test_another_number_of_steps_and_another_solver_are_refused(
    made: Made, saved: Callable[[str], Path]
) -> None:
    opened = api.open_student(stock(saved), made.folder / "adapter")
    with pytest.raises(InputError, match="trained for 2 steps"):
        opened("a red cat", num_inference_steps=20)
    other = stock(saved)
    other.scheduler = EulerDiscreteScheduler.from_config(other.scheduler.config)
    with pytest.raises(MismatchError, match="trained for steps of DDIMScheduler"):
        api.open_student(other, made.folder / "adapter")


def test_a_run_of_other_steps_does_not_take_the_adapter(
    made: Made, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = settings_for("sd15", tmp_path)
    api.record(settings)
    with pytest.raises(MismatchError, match="as many"):
        api.sample(
            settings,
            ["a cat"],
            tmp_path / "out",
            kinds=["student"],
            adapter=made.folder / "adapter",
        )


def test_the_probe_says_how_many_steps_the_teacher_takes(saved: Callable[[str], Path]) -> None:
    done = run_here("probe", saved("sd15"), "--student-steps", 5)
    assert done.code == 0, done.err
    assert (
        "student: 5 steps, DDIMScheduler, trailing spacing; teacher: 20, the student's" in done.out
    )


def test_settings_that_cannot_be_folded_are_refused(
    settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    for change, words in (
        ({"student": {"steps": 2, "rank": 3}}, "student.rank"),
        ({"record": {**FEW["record"], "guidance": (3.0, 5.0)}}, r"record.guidance=\[5, 5\]"),
        ({"record": {**FEW["record"], "rounds": ["noise"]}}, "record.rounds"),
    ):
        with pytest.raises(ValueError, match=words):
            settings_for("sd15", tmp_path, **{**FEW, **change})


def test_a_run_without_few_steps_has_no_trace_of_them(
    settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = settings_for("sd15", tmp_path)
    run = api.record(settings)
    for file in ("config.toml", "probe.json", "trajectories/round-0/manifest.jsonl"):
        text = (run / file).read_text()
        assert "student" not in text, file
