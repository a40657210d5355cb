"""Measuring: the numbers of results.json against hand-made ones and against runs by hand."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from listening import Heard, run_by_hand
from PIL import Image
from zoo import ZOO

from guidefold.capture import Step
from guidefold.distill import distill
from guidefold.errors import RunError
from guidefold.evaluate import _errors, evaluate, relative_distance
from guidefold.export import export
from guidefold.prompts import load_prompts, split_prompts
from guidefold.sample import Drawn, picture_seeds
from guidefold.settings import KINDS, Settings

KEYS = {
    *KINDS,
    "residual_guidance",
    "relative_distance",
    "guidance",
    "strength",
    "prompts",
    "steps",
    "versions",
    "machine",
}


@pytest.fixture(scope="module")
def measured(settings_for: Any, tmp_path_factory: Any) -> tuple[Settings, dict[str, Any]]:
    """A trained, exported and measured run, measured away from the reference guidance."""
    settings = settings_for("sd15", tmp_path_factory.mktemp("measured"))
    distill(settings)
    export(settings)
    asked = settings.evaluate.model_copy(update={"guidance": 3.0})
    settings = settings.model_copy(update={"evaluate": asked})
    return settings, evaluate(settings, judge=lambda pictures, prompts: [True, False])


@pytest.fixture
def untrained(measured: Any, tmp_path: Path) -> Settings:
    """The same run, exported from the checkpoint before the first step: an adapter of zeros."""
    settings = measured[0]
    run = Path(shutil.copytree(settings.run, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / "step-0000002")
    settings = settings.model_copy(update={"run": str(run)})
    export(settings)
    return settings


def flat(shade: int) -> Drawn:
    return Drawn(pictures=[Image.new("RGB", (4, 4), (shade,) * 3) for _ in range(2)])


# Formulas on hand-made numbers


@pytest.mark.parametrize(
    ("teacher", "student", "unguided", "expected"),
    [
        (0, 51, 102, 0.25),  # 0.2^2 / 0.4^2
        (100, 100, 200, 0.0),
        (100, 200, 200, 1.0),
        (0, 102, 51, 4.0),
    ],
)
def test_relative_distance_is_the_ratio_of_mean_squared_pixel_differences(
    teacher: int, student: int, unguided: int, expected: float
) -> None:
    drawn = {"teacher": flat(teacher), "student": flat(student), "unguided": flat(unguided)}
    assert relative_distance(drawn) == pytest.approx(expected, abs=1e-6)


def test_the_teacher_against_itself_is_at_distance_zero_even_where_guidance_does_nothing() -> None:
    assert relative_distance(dict.fromkeys(KINDS, flat(7))) == 0.0


def test_errors_are_mean_squares_of_each_step() -> None:
    def step(*values: float) -> Step:
        return Step(500.0, torch.zeros(1), torch.tensor([values]), torch.zeros(1), ())

    (row,) = _errors([step(1, 1)], [step(0, 2)], [step(1, 3)])
    assert row == (500.0, 2.0, 1.0)  # (0 + 4) / 2 and (1 + 1) / 2


# results.json


def test_results_have_the_documented_keys_and_stand_on_the_disk(measured: Any) -> None:
    settings, results = measured
    assert json.loads((Path(settings.run) / "results.json").read_text()) == results
    assert results.keys() == KEYS
    for kind in KINDS:
        assert results[kind].keys() - {"denoiser_seconds_per_image_fused"} == {
            "alignment",
            "passes_per_image",
            "denoiser_seconds_per_image",
        }
        assert results[kind]["alignment"] == 0.5
    assert results["residual_guidance"].keys() == {"teacher_states", "student_states"}
    for found in results["residual_guidance"].values():
        assert found["mean"] == pytest.approx(sum(x["residual"] for x in found["levels"]) / 2)
        assert found["levels"][0].keys() == {"low", "high", "residual", "states"}
    assert results["versions"].keys() >= {"guidefold", "torch", "diffusers", "peft"}
    assert results["student"]["denoiser_seconds_per_image_fused"] > 0
    assert (results["prompts"], results["steps"]) == (2, 2)


def test_strength_follows_the_guidance_that_is_measured(measured: Any) -> None:
    _, results = measured
    assert results["guidance"] == 3.0
    assert results["strength"] == (3 - 1) / (5 - 1)


def test_the_student_takes_half_the_passes_of_the_teacher(measured: Any) -> None:
    _, results = measured
    passes = [results[kind]["passes_per_image"] for kind in KINDS]
    assert passes == [4, 2, 2]


def test_the_grid_shows_a_row_a_prompt(measured: Any) -> None:
    settings, _ = measured
    with Image.open(Path(settings.run) / "grid.png") as sheet:
        assert sheet.size == (200 + 3 * 134, 44 + 1 * 134)


def by_hand(settings: Settings, stock: DiffusionPipeline) -> Callable[..., Heard]:
    """Runs on the first held-out prompt, in a stock pipeline."""
    _, held_out = split_prompts(load_prompts(settings.prompts.path), 0.3)
    (seed,) = picture_seeds(settings.seed, 1)

    def go(guidance: float, states: Any = ()) -> Heard:
        inputs = {"prompt": [held_out[0].text], "num_inference_steps": 2, **ZOO["sd15"].call}
        return run_by_hand(stock, inputs | {"guidance_scale": guidance}, seed, states)

    return go


def ratios(student: Heard, unguided: Heard, target: Heard) -> list[float]:
    triples = zip(student.model_outputs, unguided.model_outputs, target.model_outputs, strict=True)
    by_step = [float((s - t).square().sum() / (u - t).square().sum()) for s, u, t in triples]
    return by_step[::-1]  # levels go from the least noise to the most


def test_residual_guidance_is_that_of_the_stock_pipeline_with_the_adapter_loaded(
    measured: Any, saved: Any
) -> None:
    settings, results = measured
    stock = DiffusionPipeline.from_pretrained(saved("sd15"), local_files_only=True)
    stock.set_progress_bar_config(disable=True)
    go = by_hand(settings, stock)
    teacher = go(3.0)
    unguided = go(1.0, teacher.states)
    stock.load_lora_weights(Path(settings.run) / "adapter", adapter_name="mine")
    stock.set_adapters(["mine"], [0.5])
    student, free = go(1.0, teacher.states), go(1.0)
    stock.disable_lora()
    expected = {
        "teacher_states": ratios(student, unguided, teacher),
        "student_states": ratios(free, go(1.0, free.states), go(3.0, free.states)),
    }
    for name, values in expected.items():
        found = [level["residual"] for level in results["residual_guidance"][name]["levels"]]
        assert found == pytest.approx(values, rel=1e-3)
        assert all(abs(value - 1) > 1e-3 for value in values)


def test_an_adapter_of_zeros_folds_exactly_nothing(untrained: Settings) -> None:
    results = evaluate(untrained)
    for found in results["residual_guidance"].values():
        assert found["mean"] == 1.0
        assert [level["residual"] for level in found["levels"]] == [1.0, 1.0]
    assert results["relative_distance"] == 1.0
    assert results["student"]["alignment"] is None


def test_measuring_again_gives_the_same_numbers(measured: Any) -> None:
    settings, results = measured
    again = evaluate(settings)
    for name in ("residual_guidance", "relative_distance", "guidance", "strength", "prompts"):
        assert again[name] == results[name]


def test_without_an_adapter_nothing_is_measured(measured: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(measured[0].run, tmp_path / "run"))
    shutil.rmtree(run / "adapter")
    with pytest.raises(RunError, match="no adapter yet"):
        evaluate(measured[0].model_copy(update={"run": str(run)}))
