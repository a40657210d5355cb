"""Which layers of a denoiser can be wrapped: those that are called as peft calls them."""

from collections.abc import Callable

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, get_peft_model
from torch import nn
from toys import LEFT_OUT, TAKEN, Scaled, Toy, left_out

from guidefold.lora.targets import candidates, count_targets, find_targets, watched


def go(toy: nn.Module) -> object:
    return toy(torch.ones(1, 4))


@pytest.mark.parametrize("preset", TAKEN)
def test_a_preset_takes_exactly_its_layers_and_names_those_left_out(preset: str) -> None:
    toy = Toy()
    names, reasons = find_targets(toy, preset, lambda: go(toy))
    assert set(names) == TAKEN[preset]
    assert reasons == left_out(preset)
    assert candidates(toy, preset).keys() == TAKEN[preset] | left_out(preset).keys()


def test_one_pass_tells_how_many_layers_each_preset_takes() -> None:
    toy = Toy()
    with watched(candidates(toy, "all")) as reasons:
        go(toy)
    assert count_targets(toy, reasons) == {preset: len(names) for preset, names in TAKEN.items()}
    assert {name: reason for name, reason in reasons.items() if reason} == LEFT_OUT


@pytest.mark.parametrize("calls", [[{}, {"scale": 2.0}], [{"scale": 2.0}, {}]])
def test_one_call_with_more_than_an_argument_is_enough_to_be_left_out(
    calls: list[dict[str, float]],
) -> None:
    layer = Scaled(4, 4)
    with watched({"layer": layer}) as reasons:
        for call in calls:
            layer(torch.ones(1, 4), **call)
    assert reasons == {"layer": "called with more than one plain argument"}


def test_watching_layers_leaves_no_hook_behind() -> None:
    toy = Toy()
    with pytest.raises(ZeroDivisionError):
        find_targets(toy, "all", lambda: 1 / 0)
    find_targets(toy, "all", lambda: go(toy))
    assert not any(module._forward_pre_hooks for module in toy.modules())


def test_finding_targets_records_no_gradients() -> None:
    toy, said = Toy(), []
    find_targets(toy, "all", lambda: said.append(go(toy)))
    assert not said[0].requires_grad


def test_presets_contain_each_other_and_all_reaches_the_outer_layers(
    built: Callable[[str], DiffusionPipeline],
) -> None:
    unet = built("sd15").unet
    noise = torch.Generator().manual_seed(5)
    states = torch.randn(1, 4, 8, 8, generator=noise)
    words = torch.randn(1, 7, unet.config.cross_attention_dim, generator=noise)
    found = {
        preset: set(find_targets(unet, preset, lambda: unet(states, 20, words))[0])
        for preset in ("attention", "linear", "portable", "all")
    }
    assert set() < found["attention"] < found["linear"] < found["all"]
    assert found["all"] - found["portable"] == {
        "conv_in",
        "conv_out",
        "time_embedding.linear_1",
        "time_embedding.linear_2",
    }
    assert all(".attn" in name or ".attentions." in name for name in found["attention"])
    modules = dict(unet.named_modules())
    assert all(isinstance(modules[name], nn.Linear) for name in found["linear"])
    assert {"conv_in", "conv_out", "time_embedding.linear_1"} <= found["all"]
    assert {"conv_in", "conv_out"} & found["linear"] == set()


class Reading(nn.Module):
    """Reads the size of one of its convolutions, which the wrapper does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.called = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, state):
        return self.called(self.read(state)) * self.read.out_channels


def test_a_layer_whose_size_the_denoiser_reads_is_left_out() -> None:
    net = Reading()
    net.called.forward = net.called.forward  # type: ignore[method-assign] # as offloading does
    names, left = find_targets(net, "all", lambda: net(torch.ones(1, 2, 4, 4)))
    assert names == ["called"]
    assert left == {"read": "its out_channels is read by the denoiser"}
    assert type(net.read) is nn.Conv2d
    wrapped = get_peft_model(net, LoraConfig(target_modules=names, r=1))
    assert wrapped(torch.ones(1, 2, 4, 4)).shape == (1, 2, 4, 4)
