"""Objects that a denoiser writes into: each call can be made again, with any weights, any number
of times.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVLayerCache
from torch import nn
from toys import Plain

from guidefold.ground.errors import UnfoldableError
from guidefold.listen.arguments import trees_equal
from guidefold.listen.capture import drive, follow
from guidefold.listen.dry_run import RandomStub, follow_stubbed
from guidefold.listen.listener import Step
from guidefold.listen.memory import EARLIER, call_recorded
from guidefold.listen.probe_checks import check_output
from guidefold.listen.stored import stored
from guidefold.record.trajectory_files import KeptState, write_trajectory

STEPS = 3


class Remembering(nn.Module):
    """Reads the prompt at its first call, into a cache, and the cache at later ones."""

    def __init__(self) -> None:
        super().__init__()
        self.reader, self.linear = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, state, words, cache):
        if cache.k is None:
            read = self.reader(words)
            cache.store(read, read + 1)
        keys, values = cache.get()
        return (self.linear(state) * keys + values,)


class Writing(Remembering):
    """Writes at every call."""

    def forward(self, state, words, cache):
        output = super().forward(state, words, cache)
        cache.k = cache.k + 1
        return output


class Cached(Plain):
    """Gives its denoiser one cache for the whole run."""

    @torch.no_grad()
    def __call__(self, prompt, num_inference_steps=STEPS, generator=None, output_type="pil"):
        state = torch.randn((1, 4), generator=generator)
        cache = self.new_cache()
        self.scheduler.set_timesteps(num_inference_steps)
        for timestep in self.scheduler.timesteps:
            output = self.unet(state, torch.ones(1, 4), cache=cache)[0]
            state = self.scheduler.step(output, timestep, state).prev_sample
        return state

    def new_cache(self):
        return QwenImage21KVLayerCache()


class Mine:
    """A cache of no library."""

    def __init__(self) -> None:
        self.k = self.v = None

    def store(self, k, v):
        self.k, self.v = k, v

    def get(self):
        return self.k, self.v


class Own(Cached):
    def new_cache(self):
        return Mine()


def recorded(net: nn.Module) -> tuple[Cached, list[Any], list[Step]]:
    """A pipeline, the arguments of its denoiser's calls, and its steps."""
    pipeline = Cached(net, DDIMScheduler())
    inputs: dict[str, Any] = {"prompt": "a cat"}
    listened = {"unet": net}
    driven = drive(pipeline, inputs, [0], listened)
    dry = follow_stubbed(pipeline, inputs, [0], listened, driven, RandomStub(0))
    return pipeline, dry.arguments, driven


@pytest.fixture(scope="module")
def case() -> tuple[Cached, list[Any], list[Step]]:
    torch.manual_seed(0)
    return recorded(Remembering())


def test_calls_that_read_come_with_the_call_that_wrote(case: Any) -> None:
    _, arguments, _ = case
    assert [EARLIER in kwargs for _, kwargs in arguments] == [False, True, True]
    for _, kwargs in arguments:
        assert kwargs["cache"].k is None  # as before the call that wrote
    assert all(kwargs[EARLIER][0][1]["cache"] is kwargs["cache"] for _, kwargs in arguments[1:])


def test_a_call_made_again_from_a_file_gives_what_the_pipeline_was_given(case: Any) -> None:
    pipeline, arguments, driven = case
    for own, step in zip(arguments, driven, strict=True):
        back = stored(own)
        for _ in range(2):  # the first leaves nothing behind for the second
            assert torch.equal(call_recorded(pipeline.unet, back)[0], step.model_output)
        assert trees_equal(back, own)


def test_with_other_weights_it_gives_what_the_pipeline_would_give(case: Any) -> None:
    pipeline, arguments, driven = case
    before = pipeline.unet.reader.weight.detach().clone()
    with torch.no_grad():
        pipeline.unet.reader.weight.add_(1)
    followed = follow(pipeline, {"prompt": "a cat"}, [0], {"unet": pipeline.unet}, driven)
    for own, step, old in zip(arguments, followed, driven, strict=True):
        assert torch.equal(call_recorded(pipeline.unet, own)[0], step.model_output)
        assert not torch.equal(step.model_output, old.model_output)
    with torch.no_grad():
        pipeline.unet.reader.weight.copy_(before)


def test_gradients_reach_the_weights_through_what_was_written(case: Any) -> None:
    pipeline, arguments, _ = case
    output = call_recorded(pipeline.unet, arguments[2])[0]
    (gradient,) = torch.autograd.grad(output.sum(), [pipeline.unet.reader.weight])
    assert gradient.abs().min() > 0


def test_what_record_would_refuse_the_probe_refuses_in_the_same_words(tmp_path: Path) -> None:
    pipeline = Own(Remembering(), DDIMScheduler())
    inputs: dict[str, Any] = {"prompt": "a cat"}
    listened = {"unet": pipeline.unet}
    driven = drive(pipeline, inputs, [0], listened)
    dry = follow_stubbed(pipeline, inputs, [0], listened, driven, RandomStub(0))
    with pytest.raises(UnfoldableError, match=r"arguments\.1\.cache: .* a Mine") as probed:
        check_output(pipeline.unet, dry, driven)
    state = KeptState(dry.arguments[0], driven[0].model_output, 1.0, 0)
    with pytest.raises(UnfoldableError) as refused:
        write_trajectory(tmp_path / "0.safetensors", [state], None)
    assert str(refused.value) == str(probed.value)


def test_a_denoiser_that_writes_at_every_call_is_refused() -> None:
    with pytest.raises(UnfoldableError, match="at more than one call"):
        recorded(Writing())
