"""The few-step students that a pipeline can have: with which solver, at how many steps."""

import json
from typing import Any

import pytest
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)
from terminal import run_here
from zoo import WIDE

from guidefold.ground.errors import UnfoldableError
from guidefold.listen.capture import drive
from guidefold.listen.few_step_options import FewStepOptions, find_few_step_options
from guidefold.listen.probe import probe
from guidefold.pipeline.denoisers import denoisers

CALL = {"height": 16, "width": 16}
SANA = {"height": 32, "width": 32, "max_sequence_length": 16, "use_resolution_binning": "false"}


def options(
    pipeline: Any, findings: Any, scheduler: Any, students: tuple[int, ...]
) -> FewStepOptions:
    before = pipeline.scheduler
    pipeline.scheduler = scheduler
    try:
        found = find_few_step_options(pipeline, findings, CALL, None, [], 8, students)
        assert pipeline.scheduler is scheduler
    finally:
        pipeline.scheduler = before
    return found


def test_a_pipeline_s_own_solver_comes_first(built: Any, found: Any) -> None:
    pipeline = built("sd15")
    seen = options(pipeline, found("sd15"), pipeline.scheduler, (2, 4))
    assert [(grid.student, grid.teacher) for grid in seen.grids] == [(2, 8), (4, 8)]
    assert seen.scheduler is None
    assert str(seen) == (
        "Steps can be folded with DDIMScheduler (trailing spacing): student 2 or 4 steps for a "
        "teacher of 8."
    )


@pytest.mark.parametrize("kind", [PNDMScheduler, DPMSolverMultistepScheduler])
def test_a_solver_with_a_memory_is_replaced_by_one_that_fits(
    built: Any, found: Any, kind: Any
) -> None:
    pipeline = built("sd15")
    seen = options(pipeline, found("sd15"), kind.from_config(pipeline.scheduler.config), (3,))
    assert seen.scheduler == "DDIMScheduler"
    assert seen.to_json() == {
        "foldable": True,
        "scheduler": "DDIMScheduler",
        "solver": "DDIMScheduler",
        "timestep_spacing": "trailing",
        "teacher_steps": {"3": 9},
    }
    assert "with pipeline.scheduler=DDIMScheduler" in str(seen)


@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
def test_numbers_that_do_not_nest_are_left_out(built: Any) -> None:
    """Mochi's noise levels are two curves that meet in the middle of an even number of steps."""
    pipeline, call = built("mochi"), dict(WIDE["mochi"].call)
    findings = probe(pipeline, call, 5.0)
    seen = find_few_step_options(pipeline, findings, call, None, [], 6, (3, 4))
    assert [(grid.student, grid.teacher) for grid in seen.grids] == [(4, 8)]


def test_where_nothing_fits_every_reason_stands(built: Any, found: Any) -> None:
    pipeline = built("sd15")
    thresholds = DPMSolverMultistepScheduler(thresholding=True)
    seen = options(pipeline, found("sd15"), thresholds, (3,))
    assert not seen.grids
    own, other = seen.why.split("; with pipeline.scheduler=DDIMScheduler, ")
    assert own.startswith("DPMSolverMultistepScheduler, step 1: the next state is not affine")
    assert other.startswith("DDIMScheduler, step 1: the next state is not affine")
    assert "leave student.steps out" in seen.remedy
    assert seen.to_json() == {"foldable": False, "why": seen.why, "remedy": seen.remedy}
    assert str(seen).startswith("Steps cannot be folded: DPMSolverMultistepScheduler")


def test_a_pipeline_that_fails_with_another_solver_is_a_reason_like_any_other(
    built: Any, found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = built("sd15")
    real = type(pipeline).prepare_extra_step_kwargs

    def own_alone(self: Any, *given: Any) -> Any:
        assert type(self.scheduler) is PNDMScheduler, "no attribute of its own"
        return real(self, *given)

    monkeypatch.setattr(type(pipeline), "prepare_extra_step_kwargs", own_alone)
    monkeypatch.setattr(pipeline, "scheduler", PNDMScheduler.from_config(pipeline.scheduler.config))
    seen = find_few_step_options(pipeline, found("sd15"), {}, None, [], 8, (3,))
    assert not seen.grids
    name = type(pipeline).__name__
    assert f"with pipeline.scheduler=DDIMScheduler, {name} fails in its own call" in seen.why


def test_a_pipeline_that_does_not_scale_its_input_refuses_a_solver_that_asks_for_it(
    built: Any,
) -> None:
    pipeline = built("kandinsky3")
    before = pipeline.scheduler
    pipeline.scheduler = EulerDiscreteScheduler.from_config(before.config)
    listened = denoisers(pipeline, ("unet",))
    call = {"prompt": "a cat", "height": 16, "width": 16, "num_inference_steps": 2}
    try:
        with pytest.raises(UnfoldableError, match="never scales the denoiser's input"):
            drive(pipeline, call, [1], listened)
    finally:
        pipeline.scheduler = before


def test_the_command_says_it_in_words_and_as_json(saved: Any) -> None:
    done = run_here("probe", saved("sana"), *(f"pipeline.call.{n}={v}" for n, v in SANA.items()))
    assert done.code == 0, done.err
    named = "pipeline.scheduler=FlowMatchEulerDiscreteScheduler"
    students = "4 or 8 steps for a teacher of 22, 5 steps for a teacher of 21, 10 steps for"
    assert f"Steps can be folded with {named}: student {students}" in done.out
    done = run_here("probe", saved("sd15"), "--json")
    assert json.loads(done.out)["few_steps"]["teacher_steps"] == {
        "4": 20,
        "5": 20,
        "8": 24,
        "10": 20,
    }
