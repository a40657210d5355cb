"""Measuring: the numbers of results.json against hand-made ones and against runs by hand."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from listening import Heard, run_by_hand
from PIL import Image
from zoo import ZOO

from guidefold.deliver.export import export
from guidefold.deliver.metadata import read_dial
from guidefold.draw.draw import picture_seeds
from guidefold.draw.pictures import Drawn
from guidefold.ground.errors import ConfigError, RunError
from guidefold.ground.progress import Stopped, task
from guidefold.ground.randomness import generator
from guidefold.judge.alignment import Judge
from guidefold.judge.evaluate import (
    _at_measured_strength,
    evaluate,
    evaluate_weights,
)
from guidefold.judge.features import VisionModel, frechet_distance
from guidefold.judge.pixels import relative_distance, saturations
from guidefold.judge.residual import _errors
from guidefold.judge.trained_weights import Lora
from guidefold.listen.listener import Step
from guidefold.lora.dial import STRENGTHS
from guidefold.pipeline.prompts import load_prompts, split_prompts
from guidefold.pipeline.vision_model import CLIP
from guidefold.run.files import append_line, read_json, read_lines
from guidefold.run.folder import RunFolder
from guidefold.run.settings import KINDS, Settings
from guidefold.train.distill import distill

KEYS = {
    *KINDS,
    "residual_guidance",
    "gain_kept",
    "relative_distance",
    "guidance",
    "strength",
    "prompts",
    "steps",
    "categories",
    "trained_steps",
    "adapter_bytes",
    "denoiser_bytes",
    "versions",
    "machine",
}
VERDICTS = {
    "teacher": [True, True, True],
    "unguided": [False, False, False],
    "student": [True, False, True],
}

ASKED = {"prompts": 3, "dial_prompts": 2}


def judge() -> Judge:
    """Gives the verdicts above, kind by kind; tells categories by the prompt's second word."""
    verdicts = iter(VERDICTS.values())

    def aligned(pictures: Any, prompts: Any) -> list[bool]:
        assert len(pictures) == len(prompts) == 3
        return next(verdicts)

    return Judge(aligned, category=lambda prompt: prompt.split()[1])


@pytest.fixture(scope="module")
def measured(settings_for: Any, tmp_path_factory: Any) -> tuple[Settings, dict[str, Any]]:
    """A trained, exported and measured run, measured away from the reference guidance."""
    settings = settings_for("sd15", tmp_path_factory.mktemp("measured"), evaluate=ASKED)
    distill(settings)
    export(settings)
    asked = settings.evaluate.model_copy(update={"guidance": 3.0, "strength": 0.5})
    settings = settings.model_copy(update={"evaluate": asked})
    return settings, evaluate(settings, judge())


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


@pytest.mark.parametrize(
    ("colour", "expected"), [("white", 0.0), ("grey", 0.0), ("red", 1.0), ((100, 50, 50), 0.5)]
)
def test_saturation_is_how_far_a_colour_is_from_grey(colour: Any, expected: float) -> None:
    pictures = [Image.new("RGB", (4, 4), colour)] * 2
    assert saturations(pictures) == pytest.approx([expected] * 2, abs=0.01)
    mixed = [*pictures, *[Image.new("RGB", (4, 4), "black")] * 2]
    assert saturations(mixed) == pytest.approx([expected, expected, 0, 0], abs=0.01)


def test_errors_are_mean_squares_of_each_step() -> None:
    def step(*values: float) -> Step:
        return Step(500.0, torch.zeros(1), torch.tensor([values]), torch.zeros(1), ())

    (row,) = _errors([step(1, 1)], [step(0, 2)], [torch.tensor([[1.0, 3.0]])])
    assert row == (500.0, 2.0, 1.0)  # (0 + 4) / 2 and (1 + 1) / 2


# results.json


def test_results_have_the_documented_keys_and_stand_on_the_disk(measured: Any) -> None:
    settings, results = measured
    assert read_json(Path(settings.run) / "results.json") == results
    assert results.keys() == KEYS
    common = {"alignment", "saturation", "passes_per_image", "denoiser_seconds_per_image"}
    extra = {"alignment_over_teacher_95", "denoiser_seconds_per_image_fused"}
    assert [results[kind].keys() for kind in KINDS] == [common, common, common | extra]
    assert results["residual_guidance"].keys() == {"teacher_states", "student_states"}
    for found in results["residual_guidance"].values():
        assert found["mean"] == pytest.approx(sum(x["residual"] for x in found["levels"]) / 2)
        assert found["levels"][0].keys() == {"low", "high", "residual", "states"}
    assert results["versions"].keys() >= {"guidefold", "torch", "diffusers", "peft"}
    assert results["student"]["denoiser_seconds_per_image_fused"] > 0
    assert (results["prompts"], results["steps"]) == (3, 2)


def test_alignment_is_each_kinds_share_of_the_judges_verdicts(measured: Any) -> None:
    _, results = measured
    assert [results[kind]["alignment"] for kind in KINDS] == [1, 0, 2 / 3]
    low, high = results["student"]["alignment_over_teacher_95"]
    assert low < 2 / 3 < high == 1  # against a teacher that is always right
    prompts = held_out(measured[0])
    assert {n: c["prompts"] for n, c in results["categories"].items()} == Counter(
        prompt.split()[1] for prompt in prompts
    )
    first = results["categories"][prompts[0].split()[1]]
    assert (first["teacher"], first["unguided"]) == (1, 0)


def test_sets_of_pictures_are_compared_by_the_models_that_were_asked_for(
    measured: Any, vision: Path, clip: Path
) -> None:
    settings, before = measured
    models = {"features": str(vision), "clip": str(clip)}
    asked = settings.evaluate.model_copy(update=models)
    results = evaluate(settings.model_copy(update={"evaluate": asked}))
    index = json.loads((Path(settings.run) / "evaluation" / "index.json").read_text())["pictures"]
    prompts = [entry["prompt"] for entry in index]
    sets = {
        kind: [
            Image.open(Path(settings.run) / "evaluation" / entry["files"][kind]) for entry in index
        ]
        for kind in KINDS
    }
    see, read = VisionModel(str(vision)), VisionModel(str(clip), setting=CLIP)
    for kind in KINDS:
        assert results[kind]["clip_score"] == pytest.approx(fmean(read.scores(sets[kind], prompts)))
        if kind == "teacher":
            assert "frechet_distance" not in results[kind]
        else:
            found = frechet_distance(see(sets["teacher"]), see(sets[kind]))
            assert results[kind]["frechet_distance"] == pytest.approx(found)
            assert results[kind]["recall"] is None, "three pictures have too few neighbours"
    assert "clip_score" not in before["student"]


@pytest.mark.parametrize("model", ["features", "clip"])
def test_a_vision_model_that_cannot_be_had_is_refused_before_the_pipeline_is_opened(
    measured: Any, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setattr("guidefold.session.open_placed", lambda *_, **__: pytest.fail("opened"))
    asked = measured[0].evaluate.model_copy(update={model: "nope"})
    with pytest.raises(ConfigError, match=rf"evaluate\.{model}: nope: cannot be opened"):
        evaluate(measured[0].model_copy(update={"evaluate": asked}))


def test_a_judge_that_sees_features_compares_sets_where_no_model_was_asked_for(
    measured: Any,
) -> None:
    settings, _ = measured

    def features(pictures: Any) -> Any:
        return np.array([np.asarray(p, dtype=float).mean((0, 1)) for p in pictures])

    with_features = Judge(judge().aligned, judge().category, features)
    options = settings.evaluate.model_copy(update={"diversity_seeds": 2})
    varied = settings.model_copy(update={"evaluate": options})
    results = evaluate(varied, with_features)
    for kind in ("teacher", "student"):
        drawn = sorted((Path(settings.run) / "evaluation").glob(f"{kind}-*000[34].png"))
        pair = features([Image.open(path) for path in drawn])
        assert len(pair) == 2  # of the first prompt, numbered after the three pictures
        assert results[kind]["diversity"] == pytest.approx(np.linalg.norm(pair[0] - pair[1]))
    assert "diversity" not in results["unguided"]
    with pytest.raises(ConfigError, match="no features to measure"):
        evaluate(varied, judge())
    assert results["unguided"]["frechet_distance"] > 0
    assert results["student"]["frechet_distance"] >= 0


def test_bytes_are_those_of_the_adapters_file_and_of_the_denoiser_without_it(
    measured: Any, saved: Any
) -> None:
    settings, results = measured
    file = Path(settings.run) / "adapter" / "pytorch_lora_weights.safetensors"
    assert results["adapter_bytes"] == file.stat().st_size
    stock = DiffusionPipeline.from_pretrained(saved("sd15"), local_files_only=True)
    assert results["denoiser_bytes"] == stock.unet.get_memory_footprint()


# The index of pictures


def test_the_index_says_of_each_prompt_which_pictures_show_it(measured: Any) -> None:
    settings, _ = measured
    folder = Path(settings.run) / "evaluation"
    index = json.loads((folder / "index.json").read_text())
    assert [entry["prompt"] for entry in index["pictures"]] == held_out(settings)
    assert [entry["seed"] for entry in index["pictures"]] == picture_seeds(settings.seed, 3)
    of = {line["file"]: line["of"] for line in read_lines(folder / "pictures.jsonl")}
    for k, entry in enumerate(index["pictures"]):
        assert entry["category"] == entry["prompt"].split()[1]
        assert entry["aligned"] == {kind: VERDICTS[kind][k] for kind in KINDS}
        for kind, guidance in zip(KINDS, (3.0, 1.0, 1.0), strict=True):
            about = of[entry["files"][kind]]
            expected = (kind, entry["prompt"], entry["seed"], guidance)
            assert tuple(about[key] for key in ("kind", "prompt", "seed", "guidance")) == expected
        assert of[entry["files"]["student"]]["strength"] == 0.5


def test_the_index_pairs_every_strength_with_the_guidance_it_stands_for(measured: Any) -> None:
    folder = Path(measured[0].run) / "evaluation"
    index = json.loads((folder / "index.json").read_text())
    of = {line["file"]: line["of"] for line in read_lines(folder / "pictures.jsonl")}
    found = [(step["strength"], step["guidance"]) for step in index["dial"]]
    dial = read_dial(Path(measured[0].run) / "adapter")
    assert found[0] == (0, 1)
    assert found == [(s, round(dial.measured_guidance(s), 2)) for s in STRENGTHS]
    for step in index["dial"]:
        assert [of[file]["strength"] for file in step["student"]] == [step["strength"]] * 2
        assert [of[file]["guidance"] for file in step["teacher"]] == [step["guidance"]] * 2
        for place, entry in enumerate(index["pictures"][:2]):
            for who in ("student", "teacher"):
                assert of[step[who][place]]["prompt"] == entry["prompt"]


def test_without_a_judge_and_without_a_dial_the_index_leaves_them_out(untrained: Settings) -> None:
    asked = untrained.evaluate.model_copy(update={"dial_prompts": 0})
    results = evaluate(untrained.model_copy(update={"evaluate": asked}))
    index = json.loads((Path(untrained.run) / "evaluation" / "index.json").read_text())
    assert index["dial"] == []
    assert {(e["category"], *e["aligned"]) for e in index["pictures"]} == {(None,)}
    assert "categories" not in results
    assert "alignment_over_teacher_95" not in results["student"]


def test_progress_counts_every_step_of_a_measurement(
    untrained: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    @contextmanager
    def watched(title: str, total: int) -> Iterator[Any]:
        with task(title, total) as progress:
            yield progress
            seen.append((progress._done, total))

    monkeypatch.setattr(import_module("guidefold.judge.evaluate"), "task", watched)
    shutil.rmtree(Path(untrained.run) / "evaluation")
    evaluate(untrained)
    # three kinds of 3 pictures, 2 rows of 6 strengths twice, 6 runs over states, 1 fused
    assert seen == [(80, 80)]


def test_a_stopped_measurement_says_how_many_pictures_stand_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)

    def look(*_: Any) -> None:
        append_line(run.pictures, {"file": "teacher-0000.png"})
        raise KeyboardInterrupt

    (tmp_path / "evaluation").mkdir()
    monkeypatch.setattr(import_module("guidefold.judge.evaluate"), "_draw_and_judge", look)
    session: Any = SimpleNamespace(run=run)
    with pytest.raises(Stopped, match=f"1 picture drawn so far in {tmp_path}/evaluation") as stop:
        evaluate_weights(session, None, Lora())
    assert stop.value.exit_code == 130


# Against the stock pipeline


def test_a_scale_that_is_asked_for_is_met_by_the_strength_that_sample_takes(measured: Any) -> None:
    settings, _ = measured
    asked = settings.evaluate.model_copy(update={"strength": None, "state_prompts": 1})
    found = evaluate(settings.model_copy(update={"evaluate": asked}))
    assert found["guidance"] == 3.0
    dial = read_dial(Path(settings.run) / "adapter")
    assert found["strength"] == dial.measured_strength(3.0) != dial.nominal_strength(3.0)


def test_without_a_measured_dial_a_scale_is_met_as_it_was_trained(measured: Any) -> None:
    settings, _ = measured
    asked = settings.evaluate.model_copy(update={"strength": None})
    bare = settings.model_copy(update={"run": "nowhere", "evaluate": asked})
    assert _at_measured_strength(bare) == bare


def test_a_strength_that_is_asked_for_is_measured(measured: Any) -> None:
    settings, results = measured
    asked = settings.evaluate.model_copy(update={"strength": 0.25, "state_prompts": 1})
    found = evaluate(settings.model_copy(update={"evaluate": asked}))
    assert found["strength"] == 0.25
    assert found["residual_guidance"] != results["residual_guidance"]


def test_the_student_takes_half_the_passes_of_the_teacher(measured: Any) -> None:
    _, results = measured
    passes = [results[kind]["passes_per_image"] for kind in KINDS]
    assert passes == [4, 2, 2]


def test_the_grid_shows_a_row_a_prompt(measured: Any) -> None:
    settings, _ = measured
    with Image.open(Path(settings.run) / "grid.png") as sheet:
        assert sheet.size == (200 + 3 * 134, 44 + 1 * 134)


def held_out(settings: Settings) -> list[str]:
    _, kept = split_prompts(load_prompts(settings.prompts.path), 0.3)
    return [prompt.text for prompt in kept[:3]]


def by_hand(settings: Settings, stock: DiffusionPipeline) -> Callable[..., Heard]:
    """Runs on the first held-out prompt, in a stock pipeline."""
    (seed,) = picture_seeds(settings.seed, 1)

    def go(guidance: float, states: Any = ()) -> Heard:
        inputs = {"prompt": held_out(settings)[:1], "num_inference_steps": 2, **ZOO["sd15"].call}
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


def test_the_kept_pictures_are_those_that_a_user_gets(measured: Any, saved: Any) -> None:
    settings, _ = measured
    stock = DiffusionPipeline.from_pretrained(saved("sd15"), local_files_only=True)
    stock.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, **ZOO["sd15"].call}
    (seed,) = picture_seeds(settings.seed, 1)

    def user_gets(guidance: float) -> np.ndarray:
        given = {**call, "guidance_scale": guidance, "generator": generator(seed)}
        return np.asarray(stock(held_out(settings)[0], **given).images[0], dtype=int)

    expected = {"teacher": user_gets(3.0), "unguided": user_gets(1.0)}
    stock.load_lora_weights(Path(settings.run) / "adapter", adapter_name="mine")
    stock.set_adapters(["mine"], [0.5])
    expected["student"] = user_gets(1.0)
    stock.set_adapters(["mine"], [1.0])
    assert np.abs(user_gets(1.0) - expected["student"]).max() > 1  # so that strength can be told
    folder = Path(settings.run) / "evaluation"
    entry = json.loads((folder / "index.json").read_text())["pictures"][0]
    for kind, picture in expected.items():
        with Image.open(folder / entry["files"][kind]) as kept:
            assert np.abs(np.asarray(kept, dtype=int) - picture).max() <= 1


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
