"""Updates against closed forms, and the steps that must not be made."""

from functools import partial

import pytest
import torch
from torch import nn

from guidefold.train.loss import learning_rate
from guidefold.train.optimizer import Updates, make_optimizer

RATE = partial(learning_rate, steps=10, peak=0.1, warmup=4, schedule="cosine")


def updates_of(weight: nn.Parameter, scaler: torch.amp.GradScaler | None = None) -> Updates:
    return Updates(make_optimizer("adamw", [weight], 0.0), RATE, 1.0, scaler)


@pytest.fixture
def weight() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0, 2.0]))


def give(weight: nn.Parameter, *gradient: float) -> None:
    weight.grad = torch.tensor(gradient)


def test_the_first_update_goes_by_the_scheduled_rate_against_the_gradients_sign(
    weight: nn.Parameter,
) -> None:
    """Adam's first step is the rate times the sign, whatever the gradient's size."""
    give(weight, 3.0, -4.0)
    rate, norm, applied = updates_of(weight).apply(2)
    assert applied
    assert norm == pytest.approx(5.0)
    assert rate == learning_rate(2, 10, 0.1, 4, "cosine")
    assert weight.tolist() == pytest.approx([1.0 - rate, 2.0 + rate], rel=1e-5)


def test_gradients_are_clipped_to_the_norm_that_is_asked_for(weight: nn.Parameter) -> None:
    give(weight, 3.0, -4.0)
    updates = updates_of(weight)
    updates.apply(0)
    moment = updates.optimizer.state[weight]["exp_avg"] / 0.1  # 1 - beta_1
    assert moment.tolist() == pytest.approx([0.6, -0.8], rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(weight: nn.Parameter, value: float) -> None:
    give(weight, 1.0, value)
    updates = updates_of(weight)
    assert not updates.apply(0).applied
    assert weight.tolist() == [1.0, 2.0]
    assert not updates.optimizer.state


def test_a_scaled_gradient_that_overflows_is_skipped_and_the_scale_falls(
    weight: nn.Parameter,
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(1))  # as a backward pass would begin
    updates = updates_of(weight, scaler)
    give(weight, 8.0, float("inf"))
    assert not updates.apply(0).applied
    assert (weight.tolist(), scaler.get_scale()) == ([1.0, 2.0], 4.0)
    give(weight, 4 * 0.3, 4 * -0.4)
    assert updates.apply(4).gradient_norm == pytest.approx(0.5)
    assert weight.tolist() != [1.0, 2.0]


def test_a_scale_is_given_back(weight: nn.Parameter) -> None:
    before = torch.amp.GradScaler("cpu", init_scale=8.0)
    after = torch.amp.GradScaler("cpu", init_scale=2.0)
    updates_of(weight, after).restore(updates_of(weight, before).state())
    assert after.get_scale() == 8.0


def test_without_a_scaler_there_is_no_state(weight: nn.Parameter) -> None:
    updates = updates_of(weight)
    assert updates.state() is None
    updates.restore(None)
