"""ComfyUI's name for a course steps where diffusers steps: both noise levels, computed both ways.

ComfyUI's schedulers are typed out here from comfy/samplers.py (at 2fd2083): simple_scheduler,
normal_scheduler, ddim_scheduler; k_diffusion/sampling.py: get_sigmas_karras,
get_sigmas_exponential; comfy/model_sampling.py: ModelSamplingDiscrete, ModelSamplingDiscreteFlow.
"""

from typing import Any

import diffusers
import numpy as np
import pytest
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

from guidefold.deliver.comfyui_names import (
    comfyui_solver,
    few_steps_config,
    few_steps_shift,
    steps_usage,
)
from guidefold.listen.step_grid import StepGrid

LATENT: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
TABLE = 1000
STEPS = (2, 3, 4, 5, 8, 10)
DIVIDE = {2, 4, 5, 8, 10}  # where they divide the table, 'simple' is exact
ROUNDED = 5e-3  # of a noise level: one timestep of the table's thousand


class Diffusion:
    """ComfyUI's noise levels of a model that was trained on betas."""

    def __init__(self) -> None:
        alphas = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, TABLE) ** 2)
        self.sigmas = np.sqrt((1 - alphas) / alphas)
        self.ends = (TABLE - 1.0, 0.0)

    def sigma(self, timestep: np.ndarray) -> np.ndarray:
        return np.exp(np.interp(timestep, np.arange(TABLE), np.log(self.sigmas)))


class Flow:
    """ComfyUI's noise levels of a model of flow matching."""

    def __init__(self, shift: float) -> None:
        self.shift = shift
        self.sigmas = self.sigma(np.arange(1.0, TABLE + 1))
        self.ends = (TABLE * self.sigmas[-1], TABLE * self.sigmas[0])

    def sigma(self, timestep: np.ndarray) -> np.ndarray:
        t = timestep / TABLE
        return self.shift * t / (1 + (self.shift - 1) * t)


def comfyui(name: str, model: Diffusion | Flow, steps: int) -> np.ndarray:
    """The noise levels at which ComfyUI steps, without the last, 0."""
    low, high = model.sigmas[0], model.sigmas[-1]
    even = np.linspace(0, 1, steps)
    if name == "simple":
        return np.array([model.sigmas[-(1 + int(k * TABLE / steps))] for k in range(steps)])
    if name == "normal":
        return model.sigma(np.linspace(*model.ends, steps))
    if name == "ddim_uniform":
        return model.sigmas[1 :: max(TABLE // steps, 1)][::-1]
    if name == "karras":
        return (high ** (1 / 7) + even * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    assert name == "exponential"
    return np.exp(np.log(high) + even * (np.log(low) - np.log(high)))


EULER: dict[str, dict[str, Any]] = {
    "trailing": {"timestep_spacing": "trailing"},
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading", "steps_offset": 1},
    "karras": {"timestep_spacing": "linspace", "use_karras_sigmas": True},
    "exponential": {"timestep_spacing": "linspace", "use_exponential_sigmas": True},
}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("case", EULER)
def test_a_course_of_diffusion_has_the_name_that_steps_there(case: str, steps: int) -> None:
    scheduler = diffusers.EulerDiscreteScheduler(**LATENT, **EULER[case])
    scheduler.set_timesteps(steps)
    sampler, name, sure = comfyui_solver("EulerDiscreteScheduler", scheduler.config)
    assert (sampler, sure) == ("euler", True)
    theirs = comfyui(name, Diffusion(), steps)
    exact = 1e-4 if name != "simple" or steps in DIVIDE else ROUNDED
    np.testing.assert_allclose(scheduler.sigmas[:-1], theirs, rtol=exact)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_ddim_steps_at_the_same_noise_levels(spacing: str, steps: int) -> None:
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing, clip_sample=False, **LATENT)
    scheduler.set_timesteps(steps)
    levels = Diffusion().sigmas[scheduler.timesteps.numpy()]
    sampler, name, sure = comfyui_solver("DDIMScheduler", scheduler.config)
    assert (sampler, sure) == ("ddim", True)
    np.testing.assert_allclose(levels, comfyui(name, Diffusion(), steps), rtol=ROUNDED)


@pytest.mark.parametrize(
    "config",
    [
        {"timestep_spacing": "trailing", "use_karras_sigmas": True},
        {"timestep_spacing": "leading", "use_exponential_sigmas": True},
        {"timestep_spacing": "linspace", "use_beta_sigmas": True},
    ],
)
def test_a_course_that_ends_elsewhere_has_no_sure_name(config: dict[str, Any]) -> None:
    assert not comfyui_solver("EulerDiscreteScheduler", config)[2]


def flow_grid(shift: float, steps: int, *, own: bool, dynamic: bool = False) -> StepGrid:
    """The grid of a pipeline of flow matching, with noise levels of its own or the scheduler's."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    if own:
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    else:
        scheduler.set_timesteps(steps)
    timesteps = tuple(float(t) for t in scheduler.timesteps)
    return StepGrid(
        steps,
        2 * steps,
        tuple(range(0, 2 * steps, 2)),
        "FlowMatchEulerDiscreteScheduler",
        shift=None if dynamic else shift,
        timesteps=timesteps,
    )


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("own", [True, False])
def test_a_course_of_flow_matching_has_the_name_that_steps_there(
    own: bool, shift: float, steps: int
) -> None:
    grid = flow_grid(shift, steps, own=own)
    sampler, name, sure = comfyui_solver(grid.solver, few_steps_config(grid))
    assert (sampler, name, sure) == ("euler", "simple" if own else "normal", True)
    assert few_steps_shift(grid) == shift
    theirs = comfyui(name, Flow(shift), steps)
    exact = 1e-4 if not own or steps in DIVIDE else ROUNDED
    np.testing.assert_allclose(np.array(grid.timesteps) / TABLE, theirs, rtol=exact)


@pytest.mark.parametrize("steps", STEPS)
def test_a_shift_that_depends_on_the_picture_is_read_off_the_timesteps(steps: int) -> None:
    grid = flow_grid(3.1, steps, own=True, dynamic=True)
    assert few_steps_shift(grid) == pytest.approx(3.1, rel=1e-3)
    assert steps_usage(grid) == (
        f"{steps} steps, FlowMatchEulerDiscreteScheduler (in ComfyUI euler, simple, shift 3.1)"
    )


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_a_course_of_another_form_has_no_sure_name(steps: int) -> None:
    """Half a line and half a parabola, which Mochi counts from noise on."""
    levels = linear_quadratic_schedule(steps, 0.025)
    kind = "FlowMatchEulerDiscreteScheduler"
    for timesteps in ([TABLE * u for u in levels], [TABLE * (1 - u) for u in levels]):
        grid = StepGrid(steps, 2 * steps, (), kind, shift=1.0, timesteps=tuple(timesteps))
        assert steps_usage(grid) == f"{steps} steps, {kind}, shift 1"


def test_a_client_is_told_steps_solver_and_spacing_in_both_words() -> None:
    grid = StepGrid(5, 20, (), "DDIMScheduler", "trailing", None, False)
    assert steps_usage(grid) == "5 steps, DDIMScheduler, trailing spacing (in ComfyUI ddim, simple)"
    karras = StepGrid(5, 21, (), "EulerDiscreteScheduler", "linspace", sigmas="karras")
    said = steps_usage(karras)
    assert said.startswith("5 steps, EulerDiscreteScheduler, linspace spacing, karras sigmas")
    assert said.endswith("(in ComfyUI euler, karras)")
    other = StepGrid(4, 7, (), "EDMEulerScheduler")
    assert steps_usage(other) == "4 steps, EDMEulerScheduler"
