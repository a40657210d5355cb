"""Bytes counted by hand."""

from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from guidefold.bench.memory.memory_watch import MemoryWatch, Placeholders

ROWS, IN, OUT, FLOAT = 32, 64, 256, 4
WEIGHT, INPUT, OUTPUT = IN * OUT * FLOAT, ROWS * IN * FLOAT, ROWS * OUT * FLOAT


@pytest.fixture
def watch() -> Iterator[MemoryWatch]:
    with FakeTensorMode(), MemoryWatch() as entered:
        yield entered


def test_a_linear_layers_pass_there_and_back_by_hand(watch: MemoryWatch) -> None:
    weight, value = torch.rand(OUT, IN, requires_grad=True), torch.rand(ROWS, IN)
    loss = torch.nn.functional.linear(value, weight).sum()
    assert watch.peak_bytes == WEIGHT + INPUT + OUTPUT + FLOAT  # the loss is a number
    assert sum(watch.live.values()) == WEIGHT + INPUT + FLOAT  # a sum keeps nothing
    loss.backward()
    assert watch.peak_bytes == 2 * WEIGHT + INPUT + 2 * FLOAT  # its gradient is another
    assert weight.grad is not None


def test_a_frozen_weight_has_no_gradient_to_pay_for(watch: MemoryWatch) -> None:
    weight, value = torch.rand(OUT, IN), torch.rand(ROWS, IN, requires_grad=True)
    torch.nn.functional.linear(value, weight).sum().backward()
    assert watch.peak_bytes == WEIGHT + INPUT + OUTPUT + FLOAT
    assert value.grad is not None
    assert sum(watch.live.values()) == WEIGHT + 2 * INPUT


def test_a_module_called_twice_is_paid_for_once(watch: MemoryWatch) -> None:
    layer, value = torch.nn.Linear(IN, IN, bias=False), torch.rand(ROWS, IN)
    before = watch.live.total()
    layer.requires_grad_(False)
    out = layer(layer(value))
    assert out.shape == value.shape
    assert watch.live.total() - before == INPUT


def test_adamw_holds_two_moments_and_borrows_one_more_copy(watch: MemoryWatch) -> None:
    weight = torch.rand(OUT, IN, requires_grad=True)
    weight.grad = torch.rand(OUT, IN)
    torch.optim.AdamW([weight], foreach=True).step()
    assert watch.peak_bytes == pytest.approx(5 * WEIGHT, abs=16)


def test_views_and_changes_in_place_are_free(watch: MemoryWatch) -> None:
    value = torch.rand(ROWS, IN)
    assert value.view(-1)[3:].t().add_(1).shape == (ROWS * IN - 3,)
    assert watch.peak_bytes == watch.live.total() == INPUT


def test_what_dies_is_no_longer_counted(watch: MemoryWatch) -> None:
    value = torch.rand(ROWS, IN)
    del value
    assert watch.live.total() == 0
    assert watch.peak_bytes == INPUT


def test_parts_add_up_and_hold_what_was_said(watch: MemoryWatch) -> None:
    weight = torch.rand(OUT, IN)
    watch.mark("weights", [weight])
    watch.mark("activations", None)
    value = torch.rand(ROWS, IN)
    assert watch.at_peak == {"weights": WEIGHT, "activations": INPUT}
    assert sum(watch.at_peak.values()) == watch.peak_bytes
    assert value is not None


@pytest.mark.parametrize("fake", [True, False])
def test_code_that_depends_on_values_gets_numbers_and_all_that_a_mask_can_select(
    fake: bool,
) -> None:
    with FakeTensorMode() if fake else torch.device("meta"), Placeholders():
        rows = torch.zeros(3, 4, 5)
        mask = rows[..., 0] > 0
        assert rows[mask].shape == (12, 5)
        assert rows[rows > 0].shape == (60,)
        assert rows[1].shape == (4, 5)
        assert mask.sum(1).tolist() == [1, 1, 1]
        assert mask[0, 0].item() is True
        assert bool(mask.all()) is True
        assert int(mask.sum()) == 1
