"""How guidance is switched off and where it comes to nothing, where the formula is known."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
)
from diffusers.guiders.guider_utils import BaseGuidance
from toys import Plain, Steered

from guidefold.ground.errors import UnfoldableError
from guidefold.listen.capture import drive
from guidefold.listen.guidance import find_off, find_origin, scale_arguments

SCALE = "guidance_scale"


class Guided(Plain):
    """``uncond + s * (cond - uncond)`` above 1, one pass below."""

    above = 1.0
    refused: tuple[float, ...] = ()

    @torch.no_grad()
    def __call__(
        self,
        prompt,
        guidance_scale=5.0,
        pag_scale=0.0,
        text_guidance=1.0,
        scaled_up=True,
        num_inference_steps=3,
        generator=None,
        output_type="pil",
    ):
        if guidance_scale in self.refused:
            raise ValueError(f"{guidance_scale} is refused")
        state = torch.randn((1, 4), generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for timestep in self.scheduler.timesteps:
            output = self.unet(state)
            if guidance_scale > self.above:
                output = self.guide(output, self.unet(state.roll(1, 1)), guidance_scale)
            if pag_scale > 0:
                output = output + pag_scale * self.unet(state / 2)
            if text_guidance != 1:
                output = output + text_guidance * self.unet(state / 3)
            state = self.scheduler.step(output, timestep, state).prev_sample
        return state

    def guide(self, conditional, unconditional, scale):
        return unconditional + scale * (conditional - unconditional)


class AboveZero(Guided):
    above = 0.0


class Original(Guided):
    """``cond + s * (cond - uncond)``, yet one pass below 1."""

    def guide(self, conditional, unconditional, scale):
        return conditional + scale * (conditional - unconditional)


class OriginalAboveZero(Original):
    above = 0.0


class Rescaling(Guided):
    def guide(self, conditional, unconditional, scale):
        guided = super().guide(conditional, unconditional, scale)
        return guided * conditional.std() / guided.std()


class Squaring(Guided):
    """Straight, but not in proportion."""

    def guide(self, conditional, unconditional, scale):
        return super().guide(conditional, unconditional, scale**2)


class Idle(Guided):
    def guide(self, conditional, unconditional, scale):
        return conditional


class RefusingOne(Guided):
    refused = (1.0,)


class RefusingBoth(Guided):
    refused = (0.0, 1.0)


@dataclass
class Found:
    off: float
    also: dict[str, float]
    origin: float
    linear: bool
    passes: set[int]


@pytest.fixture
def unet() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Linear(4, 4)


def examine(pipeline: DiffusionPipeline, argument: str = SCALE, **inputs: Any) -> Found:
    listened = {"unet": pipeline.unet}
    inputs = {"prompt": "a cat", **inputs}
    off, also, steps = find_off(pipeline, inputs, argument, listened, 0)
    on = {**inputs, **scale_arguments(argument, 5.0, off)}
    plain = {**inputs, **scale_arguments(argument, off, off), **also}
    driven = drive(pipeline, on, [0], listened)
    origin, linear, _ = find_origin(pipeline, on, plain, argument, off, driven, listened, 0)
    return Found(off, also, origin, linear, {step.rows for step in steps})


@pytest.mark.parametrize(
    ("kind", "off", "origin", "linear"),
    [
        (Guided, 1.0, 1.0, True),
        (AboveZero, 0.0, 1.0, True),
        (Original, 1.0, 0.0, True),
        (OriginalAboveZero, 0.0, 0.0, True),
        (Rescaling, 1.0, 1.0, False),
        (Squaring, 1.0, 1.0, False),
        (RefusingOne, 0.0, 1.0, True),
    ],
)
def test_off_and_origin_are_those_of_the_formula(
    unet: torch.nn.Module, kind: type[Guided], off: float, origin: float, linear: bool
) -> None:
    assert examine(kind(unet, DDIMScheduler())) == Found(off, {}, origin, linear, {1})


def test_guidance_that_changes_nothing_is_refused_by_name(unet: torch.nn.Module) -> None:
    with pytest.raises(UnfoldableError, match="Idle: guidance changes nothing"):
        examine(Idle(unet, DDIMScheduler()))


def test_where_every_value_is_refused_the_run_is_the_one_that_was_asked_for(
    unet: torch.nn.Module,
) -> None:
    pipeline = RefusingBoth(unet, DDIMScheduler())
    off, also, steps = find_off(pipeline, {"prompt": "x"}, SCALE, {"unet": unet}, 0)
    assert (off, also, [step.rows for step in steps]) == (1.0, {}, [2, 2, 2])


@pytest.mark.parametrize(
    ("asked", "also"),
    [
        ({}, {}),
        ({"pag_scale": 3.0}, {"pag_scale": 0.0}),
        ({"text_guidance": 4.0}, {"text_guidance": 1.0}),
        ({"pag_scale": 3.0, "text_guidance": 4.0}, {"pag_scale": 0.0, "text_guidance": 1.0}),
    ],
)
def test_other_scales_that_add_passes_are_switched_off_and_no_others(
    unet: torch.nn.Module, asked: dict[str, float], also: dict[str, float]
) -> None:
    found = examine(Guided(unet, DDIMScheduler()), **asked)
    assert (found.also, found.passes) == (also, {1})


def test_passes_that_no_scale_adds_are_left(unet: torch.nn.Module) -> None:
    class Twice(Guided):
        def __call__(self, prompt, guidance_scale=5.0, generator=None, output_type="pil"):
            self.unet(torch.zeros(1, 4))
            return super().__call__(prompt, guidance_scale, generator=generator)

    _, also, steps = find_off(
        Twice(unet, DDIMScheduler()), {"prompt": "x"}, SCALE, {"unet": unet}, 0
    )
    assert also == {}
    assert [step.rows for step in steps] == [2, 1, 1]


# Guidance by a component

GUIDERS: dict[str, tuple[Callable[[], BaseGuidance], float, bool]] = {
    # name: (guider, origin, linear)
    "as in Imagen": (lambda: ClassifierFreeGuidance(3.0), 1.0, True),
    "as in the paper": (
        lambda: ClassifierFreeGuidance(3.0, use_original_formulation=True),
        0.0,
        True,
    ),
    "rescaled": (lambda: ClassifierFreeGuidance(3.0, guidance_rescale=0.7), 1.0, False),
    "zero star": (lambda: ClassifierFreeZeroStarGuidance(3.0, zero_init_steps=0), 1.0, True),
    "projected": (lambda: AdaptiveProjectedGuidance(3.0), 1.0, True),
}


@pytest.mark.parametrize("name", GUIDERS)
def test_a_guider_is_disabled_and_found_where_its_formula_says(
    unet: torch.nn.Module, name: str
) -> None:
    make, origin, linear = GUIDERS[name]
    guider = make()
    pipeline, before = Steered(unet, DDIMScheduler(), guider), dict(guider.config)
    found = examine(pipeline, "guider.guidance_scale")
    assert found == Found(1.0, {}, origin, linear, {1})
    assert pipeline.guider is guider
    assert dict(guider.config) == before


def test_a_guider_is_switched_with_all_that_it_does() -> None:
    scale = "guider.guidance_scale"
    assert scale_arguments(scale, 5.0, 1.0) == {scale: 5.0, "guider.enabled": True}
    assert scale_arguments(scale, 1.0, 1.0) == {scale: 1.0, "guider.enabled": False}
    assert scale_arguments(SCALE, 1.0, 1.0) == {SCALE: 1.0}
