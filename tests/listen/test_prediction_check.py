"""A wrong prediction type is seen in a trained denoiser's outputs, and in no untrained one's."""

import types
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from zoo import ZOO

from guidefold.listen import prediction_check as module
from guidefold.listen.prediction_check import Reading, check_prediction, judge
from guidefold.pipeline.open import open_pipeline

UNGUIDED = {"prompt": "a large red circle", "guidance_scale": 1.0}
TYPES = ("epsilon", "v_prediction", "sample")
SOLVERS = [
    (solver, spacing)
    for solver in ("DDIM", "EulerDiscrete", "DPMSolverMultistep", "PNDM", "HeunDiscrete")
    for spacing in ("leading", "trailing", "linspace")
]


@pytest.fixture(scope="module")
def teacher() -> DiffusionPipeline:
    return open_pipeline("bundled")


def with_scheduler(pipeline: DiffusionPipeline, solver: str, **fields: Any) -> DiffusionPipeline:
    kind = getattr(diffusers, f"{solver}Scheduler")
    pipeline.scheduler = kind.from_config(DDIM, **fields)
    return pipeline


DDIM = open_pipeline("bundled").scheduler.config
assert DDIM.prediction_type == "v_prediction"


def predicting_noise(pipeline: DiffusionPipeline) -> Any:
    """The teacher's own denoiser, its output turned to epsilon: eps = a v + s x."""
    unet, alphas = pipeline.unet, DDIMScheduler.from_config(DDIM).alphas_cumprod

    def forward(self: Any, sample: Any, timestep: Any, *rest: Any, **options: Any) -> Any:
        velocity = type(self).forward(self, sample, timestep, *rest, **options)[0]
        kept = alphas[torch.as_tensor(timestep).reshape(-1)[0].long()]
        return (kept.sqrt() * velocity + (1 - kept).sqrt() * sample,)

    return types.MethodType(forward, unet)


def warning(pipeline: DiffusionPipeline) -> str:
    return check_prediction(pipeline, UNGUIDED, {"unet": pipeline.unet}, 0)


@pytest.mark.parametrize(("solver", "spacing"), SOLVERS)
def test_the_bundled_teacher_s_velocity_is_seen_under_every_solver(
    teacher: DiffusionPipeline, solver: str, spacing: str
) -> None:
    fields = {"timestep_spacing": spacing, **({"skip_prk_steps": True} if solver == "PNDM" else {})}
    assert not warning(with_scheduler(teacher, solver, **fields))
    told = warning(with_scheduler(teacher, solver, **fields, prediction_type="epsilon"))
    assert "predicts 'epsilon'" in told
    assert "pipeline.prediction_type=v_prediction" in told


@pytest.mark.parametrize("configured", TYPES)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_and_so_is_noise_the_other_way_round(
    teacher: DiffusionPipeline, spacing: str, configured: str
) -> None:
    fields = {"timestep_spacing": spacing, "prediction_type": configured}
    pipeline = with_scheduler(teacher, "DDIM", rescale_betas_zero_snr=False, **fields)
    pipeline.unet.forward = predicting_noise(pipeline)
    try:
        told = warning(pipeline)
    finally:
        del pipeline.unet.forward
    assert bool(told) == (configured != "epsilon")
    assert configured == "epsilon" or "pipeline.prediction_type=epsilon" in told


DIFFUSING = [name for name, entry in ZOO.items() if entry.prediction != "flow"]


@pytest.mark.parametrize("name", DIFFUSING)
def test_random_weights_say_nothing(built: Any, name: str) -> None:
    pipeline, entry = built(name), ZOO[name]
    listened = {part: getattr(pipeline, part) for part in entry.denoisers}
    call = {"prompt": "a cat", **entry.call, entry.guidance_argument: 1.0}
    before = pipeline.scheduler
    try:
        for predicts in TYPES:
            kind = type(before)
            pipeline.scheduler = kind.from_config(before.config, prediction_type=predicts)
            assert check_prediction(pipeline, call, listened, 0) == ""
    finally:
        pipeline.scheduler = before


def test_what_cannot_be_led_over_noise_says_nothing(teacher: DiffusionPipeline) -> None:
    pipeline = with_scheduler(teacher, "DDIM", prediction_type="epsilon")
    assert check_prediction(pipeline, {"prompt": 3}, {"unet": pipeline.unet}, 0) == ""
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    assert warning(pipeline) == ""


def test_running_out_of_memory_is_not_taken_for_an_answer(
    teacher: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(module, "drive", full)
    with pytest.raises(torch.OutOfMemoryError):
        warning(with_scheduler(teacher, "DDIM"))


# The decision, at answers in closed form: x_t = s n, and the denoiser takes a share c of the noise
# for a picture, so that b = 1 - (a/s) c for epsilon and a - c/s for velocity.


def answers(predicts: str, taken: float) -> list[Reading]:
    readings = []
    for a in (0.35, 0.6, 0.85):
        s = (1 - a * a) ** 0.5
        share = {"epsilon": 1 - a / s * taken, "v_prediction": a - taken / s, "sample": taken}
        readings.append(Reading(a, share[predicts], 0.9 if predicts != "sample" else 0.1))
    return readings


@pytest.mark.parametrize("taken", [0.0, 0.05, 0.1])
def test_the_equations_of_each_type_are_told_apart(taken: float) -> None:
    assert judge(answers("epsilon", taken)) == "epsilon"
    assert judge(answers("v_prediction", taken)) == "v_prediction"
    assert judge(answers("sample", taken)) == ""


def test_too_little_says_nothing() -> None:
    one = answers("epsilon", 0.0)
    assert judge([]) == judge(one[:1]) == ""
    assert judge([reading._replace(cosine=0.3) for reading in one]) == ""
    assert judge([one[0]._replace(signal=0.9), one[1]._replace(signal=0.95)]) == ""
