"""Trials of runs: what is counted, shared, and kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from zoo import ZOO

from guidefold.bench.fidelity.copy import copy_weights
from guidefold.bench.fidelity.trials import PassCounter, Trial, Trials
from guidefold.listen.capture import drive
from guidefold.listen.dry_run import RandomStub
from guidefold.run.config import dump_toml
from guidefold.run.settings import KINDS, Settings

TRIAL = Trial((), seed=0)


@pytest.fixture(scope="module")
def settings(settings_for: Any, tmp_path_factory: Any) -> Settings:
    return settings_for(
        "sd15",
        tmp_path_factory.mktemp("trials"),
        distill={"steps": 4, "preview_prompts": 0},
        evaluate={"dial_prompts": 0, "grid_prompts": 2},
    )


@pytest.fixture(scope="module")
def trials(settings: Settings, tmp_path_factory: Any) -> Trials:
    folder: Path = tmp_path_factory.mktemp("kept")
    preset = folder / "preset.toml"
    preset.write_text(dump_toml(settings))
    return Trials(folder / "out", str(preset))


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "wan"])
def test_passes_are_counted_as_the_listener_counts_them(built: Any, found: Any, name: str) -> None:
    pipeline, findings = built(name), found(name)
    call = {k: v for k, v in ZOO[name].call.items() if v is not None}
    inputs = {"prompt": ["a cat"], **call, "num_inference_steps": 3, "guidance_scale": 5.0}
    listened = {findings.denoiser: getattr(pipeline, findings.denoiser)}
    passes = PassCounter(findings.denoiser_class)
    with passes.counting():
        steps = drive(pipeline, inputs, [0], listened)
    assert passes.count == sum(step.rows for step in steps) == 6
    drive(pipeline, inputs, [0], listened)
    assert passes.count == 6, "nobody listens any more"


def test_a_stubbed_denoiser_makes_no_passes_but_for_its_template(built: Any, found: Any) -> None:
    pipeline, findings = built("sd15"), found("sd15")
    inputs = {"prompt": ["a cat"], **ZOO["sd15"].call, "guidance_scale": 1.0}
    passes = PassCounter(findings.denoiser_class)
    with passes.counting():
        drive(
            pipeline,
            inputs | {"num_inference_steps": 5},
            [0],
            {"unet": pipeline.unet},
            stub=RandomStub(0),
        )
    assert passes.count == 1


def test_passes_of_a_run_are_those_of_recording_training_and_validation(
    trials: Trials, settings: Settings
) -> None:
    found = trials.run(TRIAL)
    assert [passes for passes, _ in found.curve] == sorted(p for p, _ in found.curve)
    assert found.curve[-1][0] == found.passes
    more = trials.run(replace(TRIAL, overrides=("distill.steps=6", "distill.validate_every=6")))
    fewer = trials.run(replace(TRIAL, overrides=("distill.steps=4", "distill.validate_every=4")))
    assert more.passes - fewer.passes == 2 * settings.distill.batch_size


def test_a_finished_trial_is_not_run_again(trials: Trials, monkeypatch: Any) -> None:
    first = trials.run(TRIAL)
    monkeypatch.setattr("guidefold.bench.fidelity.trials.train_with", None)
    assert trials.run(TRIAL) == first == trials.result(TRIAL)


def test_what_decides_a_result_decides_its_name(trials: Trials) -> None:
    others = [
        replace(TRIAL, seed=1),
        replace(TRIAL, overrides=("adapter.rank=3",)),
        replace(TRIAL, attach=copy_weights),
        replace(TRIAL, measured=False),
    ]
    assert len({trials.file(trial) for trial in (TRIAL, *others)}) == 5
    same = [replace(TRIAL, overrides=("adapter.rank=2",)), replace(TRIAL, elsewhere=(3.0,))]
    assert {trials.file(trial) for trial in same} == {trials.file(TRIAL)}


def test_recordings_are_shared_by_what_records_alike(trials: Trials, monkeypatch: Any) -> None:
    trials.run(TRIAL)
    monkeypatch.setattr("guidefold.bench.fidelity.trials.record", None)
    trials.run(replace(TRIAL, overrides=("adapter.rank=3",)))
    with pytest.raises(TypeError):
        trials.run(replace(TRIAL, overrides=("record.trajectories=4",)))


def test_a_trial_that_lacks_a_guidance_scale_is_run_for_it(trials: Trials) -> None:
    trial = replace(TRIAL, overrides=("adapter.rank=1",))
    assert trials.run(trial).elsewhere == {}
    wider = replace(trial, elsewhere=(3.0,))
    assert trials.result(wider) is None
    assert trials.run(wider).elsewhere["3"].guidance == 3.0
    assert trials.result(trial) == trials.result(wider)


def test_a_full_copy_goes_through_the_same_road(trials: Trials) -> None:
    fixed = ("adapter.dial=false", "distill.learning_rate=1e-4")
    found = trials.run(Trial(fixed, 0, copy_weights))
    lora = trials.run(Trial(fixed, 0))
    assert found.passes == lora.passes - 1, "attaching a LoRA takes one dry pass"
    assert found.measured.adapter_bytes > lora.measured.adapter_bytes
    assert found.measured.teacher == lora.measured.teacher, "drawn once for both"


def test_the_first_pictures_of_every_kind_are_kept(trials: Trials) -> None:
    trials.run(TRIAL)
    kept = sorted(trials.pictures(TRIAL).iterdir())
    assert [path.name for path in kept] == [
        f"{kind}-00{k}.png" for kind in sorted(KINDS) for k in (0, 1)
    ]
    for path in kept:
        with Image.open(path) as picture:
            assert picture.size == (16, 16)


def test_an_unmeasured_trial_draws_nothing(trials: Trials) -> None:
    found = trials.run(replace(TRIAL, measured=False))
    assert found.results is None
    assert torch.tensor([value for _, value in found.curve]).isfinite().all()
    assert found.noisiest > 0
