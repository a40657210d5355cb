"""A solver's step, probed: what it says lands where the solver lands, without a denoiser."""

import inspect
from typing import Any

import diffusers
import pytest
import torch

from guidefold.ground.errors import UnfoldableError
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
        step = probe.steps[index]
        state = scheduler.step(output, timestep, state).prev_sample.double()
        scale = float(state.abs().max())
        worst = max(worst, float((step(output) - state).abs().max()) / scale)
        again = step(step.output_that_reaches(state))
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
    assert "DDIMScheduler" in caught.value.remedy


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


def test_several_schedulers_side_by_side_are_refused() -> None:
    probe, state = SolverProbe(), torch.randn(1, 4, 2, 2)
    for index in range(2):
        scheduler = diffusers.DDIMScheduler(clip_sample=False)
        scheduler.set_timesteps(4)
        call = inspect.signature(scheduler.step).bind(state, scheduler.timesteps[index], state)
        if index == 0:
            probe(index, scheduler, call)
        else:
            with pytest.raises(UnfoldableError, match="several of them"):
                probe(index, scheduler, call)


def test_a_state_with_copied_rows_is_reached_as_one() -> None:
    step = AffineStep(torch.ones(1, 2, dtype=torch.float64), torch.full((1, 2), 2.0).double())
    twice = torch.tensor([[3.0, 5.0]] * 2)
    assert step.output_that_reaches(twice).tolist() == [[1.0, 2.0]]
