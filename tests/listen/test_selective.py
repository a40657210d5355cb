"""Selective Guidance: the first part of the steps is guided, the rest takes one pass."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from zoo import ZOO

from guidefold.deliver.export import export
from guidefold.ground.errors import UnfoldableError
from guidefold.judge.evaluate import evaluate
from guidefold.listen.call import run_inputs
from guidefold.listen.capture import drive, follow
from guidefold.listen.guidance import stop_guiding
from guidefold.listen.probe import probe
from guidefold.run.settings import PipelineSettings
from guidefold.train.distill import distill

PROMPTS = ["a red cat", "a big blue house near the old tree"]
SEEDS = [3, 4]
# The others take no such callback, or decide on guidance once, before the first step.
ENDING = ("sd15", "sdxl", "sd3", "sd_v", "wan", "chroma", "lumina2")
REFUSED = ("pixart", "qwen_image", "animatediff", "ltx", "flux", "cogvideox")
ending = pytest.mark.parametrize("name", ENDING)


def asked(name: str, share: float) -> PipelineSettings:
    call = dict(ZOO[name].call)
    negative = call.pop("negative_prompt", None)
    return PipelineSettings(source=name, call=call, negative_prompt=negative, guided_share=share)


def go(pipeline: Any, findings: Any, name: str, share: float, guidance: float, along: Any) -> Any:
    listened = {findings.denoiser: getattr(pipeline, findings.denoiser)}
    count = 1 if findings.layout is None or not findings.mixed_lengths else 2
    inputs = run_inputs(pipeline, findings, asked(name, share), PROMPTS[:count], guidance, 4)
    if along is None:
        return drive(pipeline, inputs, SEEDS[:count], listened)
    return follow(pipeline, inputs, SEEDS[:count], listened, along)


@ending
def test_the_first_steps_are_guided_and_the_rest_are_the_unguided_pipelines_own(
    built: Any, found: Any, name: str
) -> None:
    pipeline, findings = built(name), found(name)
    half = go(pipeline, findings, name, 0.5, 5.0, None)
    guided = go(pipeline, findings, name, 1.0, 5.0, half)
    unguided = go(pipeline, findings, name, 1.0, findings.off, half)
    pictures = unguided[0].rows
    assert [step.rows for step in half] == [2 * pictures] * 2 + [pictures] * 2
    for k in (0, 1):
        assert torch.equal(half[k].model_output, guided[k].model_output)
    for k in (2, 3):
        torch.testing.assert_close(half[k].model_output, unguided[k].model_output)
        assert not torch.allclose(half[k].model_output, guided[k].model_output)


@pytest.mark.parametrize(("share", "guided"), [(0.01, 1), (0.25, 1), (0.5, 2), (0.75, 3), (1, 4)])
def test_a_share_of_the_steps_is_guided_and_at_least_one(
    built: Any, found: Any, share: float, guided: int
) -> None:
    steps = go(built("sd15"), found("sd15"), "sd15", share, 5.0, None)
    assert [step.rows for step in steps] == [4] * guided + [2] * (4 - guided)


def test_the_next_run_is_guided_again(built: Any, found: Any) -> None:
    before = go(built("sd15"), found("sd15"), "sd15", 1.0, 5.0, None)
    go(built("sd15"), found("sd15"), "sd15", 0.5, 5.0, None)
    after = go(built("sd15"), found("sd15"), "sd15", 1.0, 5.0, None)
    assert torch.equal(before[-1].next_state, after[-1].next_state)


@pytest.mark.parametrize("name", ENDING)
def test_the_probe_accepts_what_ends(built: Any, name: str) -> None:
    given = asked(name, 0.5)
    assert probe(built(name), given.call, 5.0, given.negative_prompt, 0.5).passes_on == 2


@pytest.mark.parametrize("name", REFUSED)
def test_the_probe_refuses_what_does_not_end_and_says_what_to_do(built: Any, name: str) -> None:
    given = asked(name, 0.5)
    with pytest.raises(UnfoldableError, match="guidance") as caught:
        probe(built(name), given.call, 5.0, given.negative_prompt, 0.5)
    assert "pipeline.guided_share=1" in str(caught.value)


def test_the_whole_needs_no_callback(built: Any) -> None:
    assert stop_guiding(built("pixart"), "guidance_scale", 1.0, 1.0) == {}


def test_selective_guidance_is_folded_like_any_other(settings_for: Any, tmp_path: Path) -> None:
    settings = settings_for(
        "sd15",
        tmp_path,
        pipeline={"guided_share": 0.5},
        record={
            "trajectories": 48,
            "validation_trajectories": 4,
            "states_per_trajectory": 4,
            "steps": (4, 4),
            "guidance": (4.0, 6.0),
        },
        distill={
            "steps": 60,
            "learning_rate": 2e-3,
            "validate_every": 20,
            "batch_size": 8,
            "normaliser_states": 64,
            "preview_prompts": 0,
        },
        evaluate={"steps": 4},
    )
    distill(settings)
    lines = [json.loads(x) for x in (Path(settings.run) / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert mean(losses[-10:]) < 0.8 * mean(losses[:10]) < 1, "steps unguided swamp the loss"
    export(settings)
    results = evaluate(settings)
    assert results["teacher"]["passes_per_image"] == 6
    assert results["student"]["passes_per_image"] == 4
    levels = results["residual_guidance"]["teacher_states"]["levels"]
    assert [level["low"] for level in levels] == [501, 751], "the rest has no guidance to miss"
