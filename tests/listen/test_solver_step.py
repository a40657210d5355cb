"""A solver's step, probed: what it says lands where the solver lands, without a denoiser."""

import inspect
from typing import Any

import diffusers
import pytest
import torch

from guidefold.ground.errors import CaptureError, UnfoldableError
from guidefold.listen.listener import Step
from guidefold.listen.parts import pack, unpack
from guidefold.listen.solver_step import AffineStep, SolverProbe

# DDIM computes in the precision of what it is given; the others in float32.
EXACT, SINGLE = 1e-10, 2e-5
SERVE: dict[str, tuple[str, dict[str, Any], float]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}, EXACT),
    "ddim-v": ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}, EXACT),
    "ddim-x0": ("DDIMScheduler", {"clip_sample": False, "prediction_type": "sample"}, EXACT),
    "ddim-trailing": (
        "DDIMScheduler",
        {"clip_sample": False, "timestep_spacing": "trailing"},
        EXACT,
    ),
    "euler": ("EulerDiscreteScheduler", {}, SINGLE),
    "euler-v": ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}, SINGLE),
    "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, SINGLE),
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, SINGLE),
    "first-order-dpm": (
        "DPMSolverMultistepScheduler",
        {"solver_order": 1, "final_sigmas_type": "sigma_min"},
        SINGLE,
    ),
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "clip": ("DDIMScheduler", {"clip_sample": True}, "not affine"),
    "thresholding": (
        "DDIMScheduler",
        {"clip_sample": False, "thresholding": True},
        "not affine",
    ),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}, "draws noise"),
    "ancestral": ("EulerAncestralDiscreteScheduler", {}, "draws noise"),
    "lcm": ("LCMScheduler", {}, "draws noise"),
    "multistep": ("DPMSolverMultistepScheduler", {}, "uses earlier model outputs"),
    "unipc": ("UniPCMultistepScheduler", {}, "uses earlier model outputs"),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}, "uses earlier model outputs"),
    "heun": ("HeunDiscreteScheduler", {}, "uses earlier model outputs"),
    "flow-heun": ("FlowMatchHeunDiscreteScheduler", {}, "uses earlier model outputs"),
    "flow-noise": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "noise"),
}

ALONE = "leave student.steps out"
DDIM, FLOW = (
    f"set pipeline.scheduler={kind}Scheduler" for kind in ("DDIM", "FlowMatchEulerDiscrete")
)
REMEDIES = dict.fromkeys(REFUSED, DDIM) | {
    "clip": "save the pipeline with both false",
    "thresholding": "save the pipeline with both false",
    "ancestral": "set pipeline.scheduler=EulerDiscreteScheduler",
    "heun": "set pipeline.scheduler=EulerDiscreteScheduler",
    "flow-heun": FLOW,
    "flow-noise": ALONE,
}
"""Words of what would help, which names the solvers that fit the scheduler's noise schedule."""


def walk(kind: str, config: dict[str, Any], steps: int = 5) -> float:
    """Probe a run of random model outputs; the largest error of where each step lands."""
    scheduler: Any = getattr(diffusers, kind)(**config)
    scheduler.set_timesteps(steps)
    draws = torch.Generator().manual_seed(0)
    state = torch.randn((2, 4, 8, 8), generator=draws, dtype=torch.float64)
    state = state * float(getattr(scheduler, "init_noise_sigma", 1.0))
    probe, worst = SolverProbe(), 0.0
    for index, timestep in enumerate(scheduler.timesteps):
        output = torch.randn(state.shape, generator=draws, dtype=torch.float64)
        probe(index, scheduler, inspect.signature(scheduler.step).bind(output, timestep, state))
        (step,) = probe.steps[index].values()
        state = scheduler.step(output, timestep, state).prev_sample.double()
        scale = float(state.abs().max())
        worst = max(worst, float((step(output) - state).abs().max()) / scale)
        again = step(step.output_that_reaches(state, state))
        worst = max(worst, float((again - state).abs().max()) / scale)
    return worst


@pytest.mark.parametrize("name", SERVE)
def test_a_single_step_solver_lands_where_its_probed_step_says(name: str) -> None:
    kind, config, within = SERVE[name]
    assert walk(kind, config) < within


@pytest.mark.parametrize("name", REFUSED)
def test_another_solver_is_refused_for_its_reason(name: str) -> None:
    kind, config, reason = REFUSED[name]
    with pytest.raises(UnfoldableError, match=reason) as caught:
        walk(kind, config)
    assert kind in caught.value.message
    assert REMEDIES[name] in caught.value.remedy


def test_a_probe_leaves_scheduler_and_random_state_as_they_were() -> None:
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    state, own = torch.randn(1, 4, 2, 2), torch.Generator().manual_seed(3)
    before, torch_before = own.get_state(), torch.get_rng_state()
    call = inspect.signature(scheduler.step).bind(
        state, scheduler.timesteps[0], state, generator=own
    )
    SolverProbe()(0, scheduler, call)
    assert scheduler.step_index is None
    assert torch.equal(own.get_state(), before)
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_schedulers_that_step_side_by_side_are_probed_each_by_itself() -> None:
    """As of a film and its sound: parts of one state, on two copies of the scheduler."""
    draws, probe = torch.Generator().manual_seed(0), SolverProbe()
    shapes = ((4, 2, 2), (6,))
    schedulers = [diffusers.FlowMatchEulerDiscreteScheduler(shift=shift) for shift in (1.0, 3.0)]
    states = [torch.randn(1, *shape, generator=draws) for shape in shapes]
    led = []
    for scheduler in schedulers:
        scheduler.set_timesteps(3)
    for index in range(3):
        ends = []
        for part, scheduler in enumerate(schedulers):
            output = torch.randn(states[part].shape, generator=draws)
            call = inspect.signature(scheduler.step).bind(
                output, scheduler.timesteps[index], states[part]
            )
            probe(index, scheduler, call, part)
            ends.append(torch.randn(states[part].shape, generator=draws))
            states[part] = scheduler.step(*call.args).prev_sample
        led.append(Step(0.0, pack(ends), pack(ends), pack(ends), (), shapes))
    for index, output in enumerate(probe.outputs_that_reach(led)):
        for step, part, end in zip(
            probe.steps[index].values(),
            unpack(output, shapes),
            unpack(led[index].next_state, shapes),
            strict=True,
        ):
            torch.testing.assert_close(step(part).float(), end)


def test_another_scheduler_at_a_later_step_is_refused() -> None:
    probe, state = SolverProbe(), torch.randn(1, 4, 2, 2)
    for index in range(2):
        scheduler = diffusers.DDIMScheduler(clip_sample=False)
        scheduler.set_timesteps(4)
        call = inspect.signature(scheduler.step).bind(state, scheduler.timesteps[index], state)
        if index == 0:
            probe(index, scheduler, call)
        else:
            with pytest.raises(UnfoldableError, match="not the scheduler of the first step"):
                probe(index, scheduler, call)


def test_a_state_with_copied_rows_is_reached_as_one() -> None:
    step = AffineStep(torch.ones(1, 2, dtype=torch.float64), torch.full((1, 2), 2.0).double())
    twice = torch.tensor([[3.0, 5.0]] * 2)
    assert step.output_that_reaches(twice, twice).tolist() == [[1.0, 2.0]]


def test_where_a_step_moves_nothing_the_output_is_the_teacher_s() -> None:
    """As at the given frames of a film."""
    offset, slope = torch.tensor([[1.0, 7.0]]).double(), torch.tensor([[2.0, 0.0]]).double()
    step, teacher = AffineStep(offset, slope), torch.tensor([[8.0, 9.0]])
    assert step.output_that_reaches(torch.tensor([[3.0, 7.0]]), teacher).tolist() == [[1.0, 9.0]]
    with pytest.raises(CaptureError, match="that the student's step does not"):
        step.output_that_reaches(torch.tensor([[3.0, 7.5]]), teacher)
