"""Several schedulers at one denoiser call: each one's states and outputs, and nothing disturbed."""

import copy
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import nn
from toys import Plain

from guidefold.ground.errors import CaptureError, UnfoldableError
from guidefold.listen.capture import drive, follow
from guidefold.listen.dry_run import DryRun, RandomStub, follow_stubbed
from guidefold.listen.listener import Step
from guidefold.listen.output_map import OutputMap
from guidefold.listen.parts import pack, unpack

STEPS = 3


class Net(nn.Module):
    """A denoiser of a film and its sound, which returns both predictions."""

    def __init__(self) -> None:
        super().__init__()
        self.film, self.sound = nn.Linear(4, 4), nn.Linear(6, 6)

    def forward(self, film, sound):
        return self.film(film) + sound.mean(), self.sound(sound)


class Film(Plain):
    """Steps a copy of its scheduler for the sound."""

    @torch.no_grad()
    def __call__(self, prompt, num_inference_steps=STEPS, generator=None, output_type="pil"):
        film = torch.randn((1, 2, 4), generator=generator)
        sound = torch.randn((1, 6), generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        own = self.copied()
        for timestep in self.scheduler.timesteps:
            moving, heard = self.bend(*self.unet(film, sound), sound)
            film = self.scheduler.step(moving, timestep, film).prev_sample
            sound = own.step(heard, timestep, sound).prev_sample
        return film, sound

    def copied(self):
        return copy.deepcopy(self.scheduler)

    def bend(self, moving, heard, sound):
        return moving, -heard


class Mixing(Film):
    """The sound's model output is the raw one and the state."""

    def bend(self, moving, heard, sound):
        return moving, 2 * heard + sound


class Keeping(Film):
    """Keeps its copy beyond the call."""

    def copied(self):
        self.own = super().copied()
        return self.own


class Swapping(Film):
    """Puts the state of a copy into its scheduler."""

    def copied(self):
        self.scheduler.__dict__.update(copy.deepcopy(self.scheduler.__dict__))
        return self.scheduler


class Silent(nn.Module):
    """Returns the film alone."""

    def forward(self, film, sound):
        return (film,)


class Alone(Film):
    def bend(self, moving, sound):
        return moving, sound


def seen(pipeline: Film) -> tuple[list[Step], DryRun]:
    inputs: dict[str, Any] = {"prompt": "a cat"}
    listened = {"unet": pipeline.unet}
    driven = drive(pipeline, inputs, [0], listened)
    return driven, follow_stubbed(pipeline, inputs, [0], listened, driven, RandomStub(0))


@pytest.mark.parametrize("solver", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_a_run_that_is_listened_at_is_the_run_bit_for_bit(solver: Any) -> None:
    pipeline = Film(Net(), solver())
    truth = pipeline("a cat", generator=torch.Generator().manual_seed(0))
    driven = drive(pipeline, {"prompt": "a cat"}, [0], {"unet": pipeline.unet})
    assert len(driven) == STEPS
    for ours, theirs in zip(unpack(driven[-1].next_state, driven[-1].shapes), truth, strict=True):
        assert torch.equal(ours, theirs)


def test_a_step_holds_what_every_scheduler_was_given() -> None:
    pipeline = Film(Net(), DDIMScheduler())
    driven, dry = seen(pipeline)
    for step, (args, _) in zip(driven, dry.arguments, strict=True):
        assert step.shapes == ((2, 4), (6,))
        assert len(step.calls) == 1
        film, sound = unpack(step.state, step.shapes)
        assert torch.equal(film, args[0])
        assert torch.equal(sound, args[1])
        moving, heard = unpack(step.model_output, step.shapes)
        torch.testing.assert_close(pipeline.unet(film, sound)[0], moving)
        torch.testing.assert_close(-pipeline.unet(film, sound)[1], heard)


@pytest.mark.parametrize(
    ("kind", "sound"),
    [(Film, OutputMap("whole", negated=True)), (Mixing, OutputMap("whole", scaled=True))],
)
def test_every_scheduler_has_its_own_output_map(kind: type[Film], sound: OutputMap) -> None:
    driven, dry = seen(kind(Net(), DDIMScheduler()))
    assert dry.output_map == OutputMap("parts", parts=(OutputMap("whole"), sound))
    assert OutputMap.from_json(dry.output_map.to_json()) == dry.output_map
    net = kind(Net(), DDIMScheduler()).unet
    for index, (step, (args, kwargs)) in enumerate(zip(driven, dry.arguments, strict=True)):
        raw = net(*args, **kwargs)
        bent = pack(kind.bend(None, *raw, args[1]))
        torch.testing.assert_close(dry.model_output(index, raw, bent.shape), bent)
        torch.testing.assert_close(
            dry.training_target(index, bent), dry.output_map.read(raw, bent.shape, step.shapes)
        )


def test_a_follower_visits_the_states_of_every_scheduler() -> None:
    pipeline = Film(Net(), DDIMScheduler())
    driven, _ = seen(pipeline)
    with torch.no_grad():
        pipeline.unet.sound.weight.add_(1)
    followed = follow(pipeline, {"prompt": "a cat"}, [0], {"unet": pipeline.unet}, driven)
    for ours, theirs in zip(followed, driven, strict=True):
        assert torch.equal(ours.state, theirs.state)
        assert not torch.equal(ours.model_output, theirs.model_output)


def test_a_copy_that_the_pipeline_keeps_steps_by_itself_afterwards() -> None:
    pipeline = Keeping(Net(), DDIMScheduler())
    driven, _ = seen(pipeline)
    state = torch.ones(1, 6)
    theirs = pipeline.own.step(state, 1, state).prev_sample
    assert torch.equal(theirs, pipeline.scheduler.step(state, 1, state).prev_sample)
    assert len(driven) == STEPS


def test_a_scheduler_whose_state_is_swapped_is_refused() -> None:
    with pytest.raises(UnfoldableError, match="steps a copy of its scheduler"):
        seen(Swapping(Net(), DDIMScheduler()))


def test_a_denoiser_without_an_output_for_every_scheduler_is_refused() -> None:
    with pytest.raises(UnfoldableError, match="2 schedulers step at one denoiser call"):
        seen(Alone(Silent(), DDIMScheduler()))


def test_a_follower_with_another_number_of_schedulers_is_refused() -> None:
    driven, _ = seen(Film(Net(), DDIMScheduler()))
    short = [Step(s.timestep, s.state[:, :8], s.model_output, s.next_state, ()) for s in driven]
    pipeline = Film(Net(), DDIMScheduler())
    with pytest.raises(CaptureError):
        follow(pipeline, {"prompt": "a cat"}, [0], {"unet": pipeline.unet}, short)
