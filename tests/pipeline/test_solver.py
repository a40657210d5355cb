"""Another scheduler of a pipeline steps on the pipeline's own noise schedule, or is refused."""

import logging
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from guidefold.ground.errors import ConfigError
from guidefold.pipeline.noise_schedule import set_schedule
from guidefold.pipeline.open import open_pipeline
from guidefold.pipeline.solver import change_solver, install_scheduler, single_step_solvers

LATENT: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
FEW = {"num_train_timesteps": 100}
"""Quicker where a refusal tries every class: some work out each training step on its own."""
FLOW: dict[str, Any] = {
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
    "prediction_type": "flow_prediction",
}


def made(kind: str, **config: Any) -> Any:
    return getattr(diffusers, kind)(**config)


SHIPPED = made("PNDMScheduler", skip_prk_steps=True, steps_offset=1, **LATENT)
"""As Stable Diffusion 1 ships it: without a word of clipped samples."""
BRIEF = made("PNDMScheduler", skip_prk_steps=True, steps_offset=1, **LATENT, **FEW)


def test_a_class_s_own_defaults_do_not_clip_what_the_pipeline_does_not() -> None:
    changed = change_solver(SHIPPED, "DDIMScheduler")
    assert isinstance(changed, diffusers.DDIMScheduler)
    assert changed.config.clip_sample is False
    assert diffusers.DDIMScheduler.from_config(SHIPPED.config).config.clip_sample is True
    assert torch.equal(changed.alphas_cumprod, SHIPPED.alphas_cumprod)
    assert changed.config.steps_offset == 1
    clips = made("DDPMScheduler", clip_sample=True)
    assert change_solver(clips, "DDIMScheduler").config.clip_sample is True


def test_evenly_spaced_timesteps_become_trailing_which_lie_where_they_lay() -> None:
    """And DDIM's steps lead from each to the next, which those of its own 'linspace' do not."""
    multistep = made("DPMSolverMultistepScheduler", timestep_spacing="linspace", **LATENT)
    changed = change_solver(multistep, "DDIMScheduler")
    for scheduler in (multistep, changed):
        scheduler.set_timesteps(10)
    assert (changed.timesteps - multistep.timesteps).abs().max() <= 1
    noise = torch.ones(1, 1, 1, 1)
    before, after = (changed.alphas_cumprod[t] for t in changed.timesteps[:2])
    stepped = changed.step(noise, changed.timesteps[0], (1 - before) ** 0.5 * noise).prev_sample
    torch.testing.assert_close(stepped.item(), float((1 - after) ** 0.5), rtol=1e-3, atol=0)
    karras = made("DPMSolverMultistepScheduler", use_karras_sigmas=True, **LATENT)
    assert change_solver(karras, "EulerDiscreteScheduler").config.timestep_spacing == "linspace"


def test_a_class_s_own_betas_stay_those_of_the_pipeline() -> None:
    """Heun begins at other betas than Euler where neither is told."""
    heun = made("HeunDiscreteScheduler")
    changed = change_solver(heun, "EulerDiscreteScheduler")
    assert torch.equal(changed.alphas_cumprod, heun.alphas_cumprod)
    other = diffusers.EulerDiscreteScheduler.from_config(heun.config)
    assert not torch.allclose(other.alphas_cumprod, heun.alphas_cumprod)


@pytest.mark.parametrize("kind", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_the_shift_of_flow_matching_has_two_names_and_one_meaning(kind: str) -> None:
    """Against ``shift s / (1 + (shift - 1) s)``, which both are said to compute."""
    changed = change_solver(made(kind, **FLOW), "FlowMatchEulerDiscreteScheduler")
    assert changed.config.shift == 3.0
    s = np.linspace(1, 0.2, 5)
    changed.set_timesteps(sigmas=s)
    expected = torch.tensor(3 * s / (1 + 2 * s), dtype=torch.float32)
    torch.testing.assert_close(changed.sigmas[:-1], expected)


def test_dynamic_shifting_is_the_same_under_both() -> None:
    dynamic = made("UniPCMultistepScheduler", use_dynamic_shifting=True, **FLOW)
    changed = change_solver(dynamic, "FlowMatchEulerDiscreteScheduler")
    assert changed.config.use_dynamic_shifting is True


def test_the_given_scheduler_stays_where_nothing_changes() -> None:
    assert change_solver(SHIPPED, "PNDMScheduler") is SHIPPED
    assert set_schedule(SHIPPED, None, None, "PNDMScheduler") is SHIPPED


def test_prediction_type_and_terminal_snr_are_set_on_the_new_class() -> None:
    changed = set_schedule(SHIPPED, "v_prediction", True, "DDIMScheduler")
    assert isinstance(changed, diffusers.DDIMScheduler)
    assert changed.config.prediction_type == "v_prediction"
    assert changed.alphas_cumprod[-1] == 0


REFUSED = {
    "no class": (BRIEF, "DDIM", "is no scheduler of diffusers"),
    "no scheduler": (BRIEF, "StableDiffusionPipeline", "is no scheduler of diffusers"),
    "flow for noise": (BRIEF, "FlowMatchEulerDiscreteScheduler", "flow_prediction predictions"),
    "noise for flow": (
        made("UniPCMultistepScheduler", **FLOW, **FEW),
        "DDIMScheduler",
        "flow_prediction",
    ),
    "spacing lost": (
        made("DPMSolverMultistepScheduler", use_karras_sigmas=True, **LATENT, **FEW),
        "DDIMScheduler",
        "it has no use_karras_sigmas",
    ),
    "thresholding lost": (
        made("DDPMScheduler", thresholding=True, clip_sample=False, **FEW),
        "EulerDiscreteScheduler",
        "it has no thresholding",
    ),
    "rescaled betas lost": (
        made("DDIMScheduler", rescale_betas_zero_snr=True, clip_sample=False, **LATENT, **FEW),
        "PNDMScheduler",
        "its noise levels would be others",
    ),
    "shifted betas lost": (
        made("CogVideoXDPMScheduler", snr_shift_scale=3.0, clip_sample=False, **FEW),
        "DDIMScheduler",
        "its noise levels would be others",
    ),
    "Karras and flow": (
        made("UniPCMultistepScheduler", use_karras_sigmas=True, **FLOW, **FEW),
        "FlowMatchEulerDiscreteScheduler",
        "its noise levels would be others",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_change_the_noise_schedule_is_refused(case: str) -> None:
    scheduler, name, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words) as refused:
        change_solver(scheduler, name)
    assert refused.value.message.startswith(f"pipeline.scheduler: {name}")
    assert refused.value.remedy


def test_a_refusal_names_those_that_fit() -> None:
    with pytest.raises(ConfigError) as refused:
        change_solver(BRIEF, "Nothing")
    assert "DDIMScheduler, DDPMScheduler" in refused.value.remedy
    assert "FlowMatch" not in refused.value.remedy
    with pytest.raises(ConfigError, match="no scheduler of diffusers") as refused:
        change_solver(None, "DDIMScheduler")
    with pytest.raises(ConfigError) as refused:
        change_solver(made("DDPMWuerstchenScheduler"), "DDIMScheduler")
    assert "no other scheduler fits DDPMWuerstchenScheduler" in refused.value.remedy


@pytest.mark.parametrize(
    ("scheduler", "names"),
    [
        (SHIPPED, ["DDIMScheduler", "EulerDiscreteScheduler"]),
        # Begins at noise that is as large as Euler's.
        (
            made("EulerAncestralDiscreteScheduler", **LATENT),
            ["EulerDiscreteScheduler", "DDIMScheduler"],
        ),
        (made("UniPCMultistepScheduler", **FLOW), ["FlowMatchEulerDiscreteScheduler"]),
        (made("CogVideoXDPMScheduler", snr_shift_scale=3.0), ["CogVideoXDDIMScheduler"]),
        (
            made("EDMDPMSolverMultistepScheduler", prediction_type="v_prediction"),
            ["EDMEulerScheduler"],
        ),
        (made("DDPMWuerstchenScheduler"), []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_single_step_solvers_that_fit(scheduler: Any, names: list[str]) -> None:
    assert single_step_solvers(scheduler) == names


def test_nothing_is_noted_on_the_way(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        single_step_solvers(SHIPPED)
    assert not caplog.records


def test_a_pipeline_is_opened_with_it(saved: Any) -> None:
    pipeline = open_pipeline(str(saved("sd15")), scheduler="EulerDiscreteScheduler")
    assert isinstance(pipeline.scheduler, diffusers.EulerDiscreteScheduler)


def test_pipelines_within_a_pipeline_share_it(built: Any) -> None:
    pipeline = built("kandinsky22_combined")
    before, prior = pipeline.scheduler, pipeline.prior_scheduler
    changed = change_solver(before, "DDIMScheduler")
    try:
        install_scheduler(pipeline, changed)
        assert pipeline.scheduler is pipeline.decoder_pipe.scheduler is changed
        assert pipeline.prior_pipe.scheduler is prior
    finally:
        install_scheduler(pipeline, before)
