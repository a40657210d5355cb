"""What a pipeline asks its denoiser and does with the answer, heard with a stub in its place."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn
from toys import Plain

from guidefold.ground.errors import CaptureError, UnfoldableError
from guidefold.listen.capture import drive
from guidefold.listen.dry_run import DryRun, RandomStub, follow_stubbed
from guidefold.listen.listener import Step
from guidefold.listen.output_map import OutputMap

STEPS = 3


class Net(nn.Module):
    """A denoiser that counts how often it is really asked."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(4, 4), 0

    def forward(self, state, timestep, return_dict=True):
        self.calls += 1
        return (self.linear(state) + timestep / 1000,)


class Asking(Plain):
    """Asks once at each step and takes the answer as it is."""

    @torch.no_grad()
    def __call__(self, prompt, num_inference_steps=STEPS, generator=None, output_type="pil"):
        state = torch.cat([torch.randn((1, 4), generator=g) for g in listed(generator)])
        self.scheduler.set_timesteps(num_inference_steps)
        for index, timestep in enumerate(self.scheduler.timesteps):
            output = self.bend(index, self.ask(index, state, timestep), state)
            state = self.step(output, timestep, state)
        return state

    def ask(self, index, state, timestep):
        return self.unet(state, timestep, return_dict=False)[0]

    def bend(self, index, output, state):
        return output

    def step(self, output, timestep, state):
        return self.scheduler.step(output, timestep, state).prev_sample


class Preconditioned(Asking):
    def bend(self, index, output, state):
        return (2 + index) * output - state


class NowAndThenScaled(Asking):
    """At its first step the scaling is 1 and nothing is added."""

    def bend(self, index, output, state):
        return (1 + index) * output + index * state


class Turning(Asking):
    def bend(self, index, output, state):
        return -output if index == 1 else output


class Curved(Asking):
    def bend(self, index, output, state):
        return output.abs()


class Twice(Asking):
    def ask(self, index, state, timestep):
        super().ask(index, state, timestep)
        return super().ask(index, state, timestep)


class SteppingTwice(Asking):
    def step(self, output, timestep, state):
        return super().step(output, timestep, super().step(output, timestep, state))


class TwoNets(Asking):
    """Another denoiser takes over after the first step."""

    def __init__(self, unet: nn.Module, unet_2: nn.Module, scheduler: DDIMScheduler) -> None:
        super().__init__(unet, scheduler)
        self.register_modules(unet_2=unet_2)

    def ask(self, index, state, timestep):
        net = self.unet_2 if index else self.unet
        return net(state, timestep, return_dict=False)[0]


def listed(generator: Any) -> list[torch.Generator]:
    return generator if isinstance(generator, list) else [generator]


def asked_of(
    pipeline: Asking, stub: RandomStub | None = None, count: int = 1
) -> tuple[DryRun, list[Step]]:
    names = [name for name in ("unet", "unet_2") if hasattr(pipeline, name)]
    listened = {name: getattr(pipeline, name) for name in names}
    inputs, seeds = {"prompt": ["a cat"] * count}, list(range(count))
    driven = drive(pipeline, inputs, seeds, listened)
    stub = stub or RandomStub(0)
    return follow_stubbed(pipeline, inputs, seeds, listened, driven, stub), driven


def test_arguments_and_map_are_heard_at_every_step() -> None:
    asked, driven = asked_of(Asking(Net(), DDIMScheduler()))
    assert asked.output_map == OutputMap("whole")
    assert asked.scalings == [None] * STEPS
    assert asked.timesteps == [step.timestep for step in driven]
    for (args, kwargs), step in zip(asked.arguments, driven, strict=True):
        assert torch.equal(args[0], step.state)
        assert float(args[1]) == step.timestep
        assert kwargs == {"return_dict": False}
    assert asked.training_target(0, driven[0].model_output) is driven[0].model_output


@pytest.mark.parametrize("kind", [Preconditioned, NowAndThenScaled])
def test_a_scaled_map_is_found_at_every_step_and_inverted(kind: type[Asking]) -> None:
    net = Net()
    asked, driven = asked_of(kind(net, DDIMScheduler()))
    assert asked.output_map == OutputMap("whole", scaled=True)
    for index, step in enumerate(driven):
        args, kwargs = asked.arguments[index]
        raw = net(*args, **kwargs)[0].detach()
        truth = kind.bend(None, index, raw, step.state)
        torch.testing.assert_close(asked.model_output(index, raw, raw.shape), truth)
        torch.testing.assert_close(asked.training_target(index, truth), raw)
        torch.testing.assert_close(step.model_output, truth)


def test_of_several_denoisers_the_arguments_say_which_is_asked() -> None:
    asked, _ = asked_of(TwoNets(Net(), Net(), DDIMScheduler()))
    assert [kwargs["component"] for _, kwargs in asked.arguments] == ["unet", "unet_2", "unet_2"]


def test_the_real_denoiser_is_asked_once_for_each_shape_of_arguments() -> None:
    net, stub = Net(), RandomStub(0)
    pipeline = Preconditioned(net, DDIMScheduler())
    real = []
    for count in (1, 1, 2, 2, 1):
        net.calls = 0
        asked_of(pipeline, stub, count)
        real.append(net.calls - STEPS)  # without the driven run
    assert real == [1, 0, 1, 0, 0]
    assert stub.real_calls == 2


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        (Twice, UnfoldableError, "Twice: 2 denoiser calls before scheduler step 1"),
        (SteppingTwice, UnfoldableError, "SteppingTwice: 0 denoiser calls before scheduler step 2"),
        (Turning, CaptureError, "step 1: output map 'whole, negated' instead of 'whole'"),
        (Curved, UnfoldableError, "in a way Guidefold does not know"),
    ],
)
def test_what_cannot_be_paired_or_inverted_is_refused_at_its_step(
    kind: type[Asking], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        asked_of(kind(Net(), DDIMScheduler()))
