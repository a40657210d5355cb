"""Weights in few bits: how near they are, what they cost, what they let through."""

import pytest
import torch
from torch import nn

from guidefold.bench.memory.memory_watch import MemoryWatch
from guidefold.lora.frozen_weights import (
    BITS,
    GROUP,
    Frozen,
    Weight4,
    Weight8,
    Weight16,
    shrink_weights,
)

LAYERS = {
    "linear": (nn.Linear(128, 24), (5, 128)),
    "linear over tokens": (nn.Linear(128, 24, bias=False), (2, 7, 128)),
    "convolution in time": (nn.Conv1d(6, 8, 3, padding=1, stride=2), (2, 6, 11)),
    "convolution": (nn.Conv2d(6, 8, 3, padding=1, stride=2), (2, 6, 11, 9)),
    "dilated": (nn.Conv2d(6, 8, 3, padding=2, dilation=2, bias=False), (2, 6, 11, 9)),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), (2, 6, 11, 9)),
    "convolution in space and time": (nn.Conv3d(4, 8, (1, 3, 3)), (2, 4, 3, 7, 6)),
}


def shrunk(layer: nn.Module, bits: int = 8) -> Frozen:
    around = nn.Sequential(layer).requires_grad_(False)
    assert shrink_weights(around, bits, max(bits, 8)) == ["0"]
    return around[0]


@pytest.mark.parametrize(("store", "steps"), [(Weight8, 127), (Weight4, 7)])
def test_a_weight_is_off_by_at_most_half_a_step_of_its_scale(store: type, steps: int) -> None:
    weight = torch.randn(24, 2 * GROUP) * torch.logspace(-3, 2, 24)[:, None]
    blocks = (24, 2, GROUP) if store is Weight4 else (24, 1, 2 * GROUP)
    step = weight.view(blocks).abs().amax(2, keepdim=True) / steps
    off = (store(weight).unpack(torch.float32) - weight).view(blocks).abs()
    assert bool((off <= 0.5001 * step).all())
    assert float((off / step).max()) > 0.45  # the bound is the tight one


def test_sixteen_bits_are_off_by_at_most_half_a_unit_of_their_last_place() -> None:
    weight = torch.randn(24, 48) * torch.logspace(-3, 2, 24)[:, None]
    off = (Weight16(weight).unpack(torch.float32) - weight) / weight
    assert float(off.abs().max()) <= 2**-8


def test_whole_numbers_up_to_the_largest_come_back_exactly() -> None:
    eight = torch.randint(-127, 128, (4, 128)).float().index_fill(1, torch.tensor([0]), 127.0)
    four = torch.randint(-7, 8, (4, 128)).float()
    four[:, ::GROUP] = -7.0
    assert torch.equal(Weight8(eight).unpack(torch.float32), eight)
    assert torch.equal(Weight4(four).unpack(torch.float32), four)


def test_a_channel_of_zeros_stays_one() -> None:
    for store in (Weight8, Weight4):
        assert torch.equal(
            store(torch.zeros(2, GROUP)).unpack(torch.float32), torch.zeros(2, GROUP)
        )


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_a_shrunk_layer_is_the_plain_one_with_its_rounded_weight(name: str, bits: int) -> None:
    """Output and input gradient against autograd's own."""
    layer, shape = LAYERS[name]
    frozen = shrunk(layer, bits)
    value = torch.randn(shape, requires_grad=True)
    with torch.no_grad():
        rounded = frozen.weight.unpack(torch.float32)
    expected = torch.func.functional_call(layer, {"weight": rounded}, (value,))
    out = frozen(value)
    torch.testing.assert_close(out, expected)
    pull = torch.randn_like(expected)
    (mine,) = torch.autograd.grad(out, value, pull)
    (theirs,) = torch.autograd.grad(expected, value, pull)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("name", ["linear over tokens", "convolution"])
def test_autocast_computes_as_it_does_with_a_plain_layer(name: str, bits: int) -> None:
    layer, shape = LAYERS[name]
    frozen = shrunk(layer, bits)
    value = torch.randn(shape, requires_grad=True)
    with torch.no_grad():
        # A whole weight is made in the precision that is computed in.
        rounded = frozen.weight.unpack(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = torch.func.functional_call(layer, {"weight": rounded}, (value,))
        out = frozen(value)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    pull = torch.randn_like(expected)
    (mine,) = torch.autograd.grad(out, value, pull)
    (theirs,) = torch.autograd.grad(expected, value, pull)
    assert mine.dtype == value.dtype
    torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_shrunk_layer_still_tells_what_it_computes_in(bits: int) -> None:
    """Pipelines cast to the type of a layer's weight, or of a module's first parameter."""
    frozen = shrunk(nn.Linear(128, 24), bits)
    assert frozen.weight.dtype == next(frozen.parameters()).dtype == torch.float32
    assert frozen.weight.device == torch.device("cpu")


@pytest.mark.parametrize("name", ["linear", "convolution"])
def test_only_the_few_bits_wait_for_the_backward_pass(name: str) -> None:
    layer, shape = LAYERS[name]
    frozen, value = shrunk(layer), torch.randn(shape, requires_grad=True)
    with MemoryWatch() as watch:
        watch.mark("here before", [*frozen.parameters(), value])
        out = frozen(value)
        assert sum(watch.live.values()) - watch.live["here before"] == out.nbytes
    del out


@pytest.mark.parametrize(("bits", "expected"), [(16, 2.0), (8, 1.0), (4, 0.5)])
def test_a_weight_takes_its_bits_and_its_scales(bits: int, expected: float) -> None:
    layer = nn.Linear(1280, 640).bfloat16()
    frozen = shrunk(layer, bits)
    taken = sum(p.nbytes for p in frozen.weight.parameters())
    scales = {16: 0, 8: 640 * 2, 4: 640 * 1280 // GROUP * 2}[bits]
    assert taken == layer.weight.numel() * expected + scales


def test_what_learns_or_is_never_called_keeps_its_weight() -> None:
    learns, attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2).requires_grad_(False)
    mirrored = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect").requires_grad_(False)
    around = nn.ModuleDict({"learns": learns, "attention": attention, "mirrored": mirrored})
    assert shrink_weights(around) == []
    assert around["learns"] is learns


def test_each_storage_has_its_bits_for_linear_layers_and_for_convolutions() -> None:
    kinds = {"bf16": (Weight16, Weight16), "int8": (Weight8, Weight8), "int4": (Weight4, Weight8)}
    assert BITS.keys() == kinds.keys()
    for name, expected in kinds.items():
        around = nn.Sequential(nn.Linear(64, 4), nn.Conv2d(64, 4, 1)).requires_grad_(False)
        shrink_weights(around, *BITS[name])
        assert tuple(type(layer.weight) for layer in around) == expected


def test_a_matrix_that_no_group_divides_takes_eight_bits() -> None:
    assert isinstance(shrunk(nn.Linear(GROUP + 1, 3), 4).weight, Weight8)
