"""A student of fewer steps: what is recorded leads it where the teacher's steps lead."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from listening import plain_run, run_by_hand
from zoo import ZOO

from guidefold.ground.errors import UnfoldableError
from guidefold.listen.few_steps import GridSearch, space_trailing
from guidefold.lora.adapter import attach
from guidefold.lora.dial import Dial
from guidefold.pipeline.denoisers import denoisers
from guidefold.pipeline.prompts import Prompt
from guidefold.record.plans import Plan
from guidefold.record.recorder import Recorder, record_round
from guidefold.record.rounds import recorder_for
from guidefold.record.trajectory_files import KeptState
from guidefold.run.files import read_lines
from guidefold.run.folder import LINES

FINE, COARSE, GUIDANCE = 6, 3, 5.0
FAMILIES = ("sd15", "sdxl", "sd3", "lumina2", "ltx")
every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture
def ready(
    built: Any, found: Any, settings_for: Any, tmp_path: Path
) -> Iterator[Callable[[str], Recorder]]:
    """``ready(name)``: a recorder of a zoo pipeline whose student takes three steps for six."""
    before: list[tuple[DiffusionPipeline, Any]] = []

    def make(name: str) -> Recorder:
        pipeline, findings = built(name), found(name)
        before.append((pipeline, pipeline.scheduler))
        space_trailing(pipeline)
        listened = denoisers(pipeline, findings.denoisers)
        search = GridSearch(pipeline, call_of(name, COARSE, 1.0), listened, 0)
        grid = search.find(COARSE, FINE)
        # Trailing timesteps divide; those of Euler and SD 3 hold both ends.
        assert (grid.teacher, grid.indices) in ((6, (0, 2, 4)), (7, (0, 3, 6)))
        settings = settings_for(name, tmp_path, record={"states_per_trajectory": COARSE})
        dial = Dial(1.0, GUIDANCE, (GUIDANCE, GUIDANCE), proportional=False)
        return recorder_for(pipeline, replace(findings, steps=grid), dial, settings)

    yield make
    for pipeline, scheduler in before:
        pipeline.scheduler = scheduler


def plan(seed: int = 7, text: str = "a red cat") -> Plan:
    return Plan(0, "training", Prompt.of(text), seed, GUIDANCE, COARSE, COARSE)


def call_of(name: str, steps: int, guidance: float, text: str = "a red cat") -> dict[str, Any]:
    """The call as a user would write it."""
    entry = ZOO[name]
    own = {"prompt": [text], "num_inference_steps": steps}
    return {**entry.call, **own, entry.guidance_argument: guidance}


def drawn_with(
    name: str, pipeline: DiffusionPipeline, states: list[KeptState], seed: int
) -> torch.Tensor:
    """The last latents of an unguided run whose denoiser gives the recorded targets."""
    denoiser = getattr(pipeline, ZOO[name].denoisers[0])
    sign = -1 if "negated" in ZOO[name].output_map else 1
    targets, real = iter(states), denoiser.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        shape = real(*args, **kwargs)[0].shape
        return (sign * next(targets).target.reshape(shape),)

    denoiser.forward = forward
    try:
        return plain_run(pipeline, call_of(name, COARSE, 1.0), seed)
    finally:
        del denoiser.forward


@every_family
def test_the_targets_lead_three_steps_through_six_of_the_teacher_s(ready: Any, name: str) -> None:
    recorder = ready(name)
    ((_, states),) = recorder.record("teacher", [plan()])
    pipeline = recorder.pipeline
    fine = recorder.findings.steps.teacher
    teacher = plain_run(pipeline, call_of(name, fine, GUIDANCE), plan().seed)
    ours = drawn_with(name, pipeline, states, plan().seed)
    short = plain_run(pipeline, call_of(name, COARSE, GUIDANCE), plan().seed)
    near, far = (float((run - teacher).abs().max()) for run in (ours, short))
    assert near < 1e-3 * float(teacher.abs().max())
    assert near < 0.1 * far


def test_the_teacher_starts_again_at_each_of_the_student_s_states(ready: Any) -> None:
    recorder = ready("sd15")
    pipeline, seed = recorder.pipeline, plan().seed
    off = call_of("sd15", COARSE, 1.0)
    adapter = attach(pipeline.unet, "all", 2, 0, lambda: plain_run(pipeline, off, seed))
    with torch.no_grad():
        for key, parameter in adapter.named_parameters().items():
            if ".lora_B." in key:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    recorder.adapter = adapter
    try:
        ((_, states),) = recorder.record("student", [plan()])
        student = run_by_hand(pipeline, off, seed)
    finally:
        adapter.detach()
    latents = [*student.states, None]
    ends: list[torch.Tensor] = []

    def after_step(_: Any, index: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """diffusers' own way to replace latents."""
        if index % 2 == 0:
            return {}
        ends.append(tensors["latents"].clone())
        there = latents[(index + 1) // 2]
        return {} if there is None else {"latents": there}

    on = call_of("sd15", FINE, GUIDANCE) | {"callback_on_step_end": after_step}
    plain_run(pipeline, on, seed)
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(COARSE)
    for state, there, end in zip(states, student.states, ends, strict=True):
        landed = scheduler.step(state.target, int(state.timestep), there).prev_sample
        torch.testing.assert_close(landed, end, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_prompts_recorded_together_are_as_recorded_alone(ready: Any, name: str) -> None:
    recorder = ready(name)
    plans = [plan(1, "a red cat"), replace(plan(2, "an old green house"), index=1)]
    together = recorder.record("teacher", plans)
    alone = [entry for one in plans for entry in recorder.record("teacher", [one])]
    for (_, ours), (_, theirs) in zip(together, alone, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.timestep == other.timestep
            torch.testing.assert_close(one.target, other.target, rtol=1e-3, atol=1e-3)


def test_the_manifest_names_both_numbers_of_steps(ready: Any, tmp_path: Path) -> None:
    recorder = ready("sd15")
    record_round(tmp_path, "teacher", [[plan()]], recorder)
    (line,) = read_lines(tmp_path / LINES)
    assert (line["steps"], line["student_steps"], len(line["timesteps"])) == (FINE, COARSE, COARSE)
    before = (tmp_path / LINES).read_bytes()
    record_round(tmp_path, "teacher", [[plan()]], recorder)  # nothing is missing
    assert (tmp_path / LINES).read_bytes() == before


def test_leading_timesteps_become_trailing_and_others_stay(built: Any) -> None:
    pipeline = built("sd15")
    before = pipeline.scheduler
    try:
        pipeline.scheduler = DDIMScheduler(timestep_spacing="leading", clip_sample=False)
        assert space_trailing(pipeline)
        assert pipeline.scheduler.config.timestep_spacing == "trailing"
        assert not pipeline.scheduler.config.clip_sample
        assert not space_trailing(pipeline)
    finally:
        pipeline.scheduler = before


def test_a_solver_with_a_memory_is_refused_before_anything_is_recorded(
    built: Any, found: Any
) -> None:
    pipeline, findings = built("sd15"), found("sd15")
    before = pipeline.scheduler
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(before.config)
    try:
        with pytest.raises(UnfoldableError, match="uses earlier model outputs") as refused:
            listened = denoisers(pipeline, findings.denoisers)
            GridSearch(pipeline, call_of("sd15", 4, 1.0), listened, 0).find(4, 8)
    finally:
        pipeline.scheduler = before
    assert "EulerDiscreteScheduler" in refused.value.remedy
