"""The mathematics of the loss against closed forms."""

import math

import pytest
import torch

from guidefold.lora.dial import Dial
from guidefold.train.loss import (
    GuidanceSize,
    Level,
    StepSize,
    learning_rate,
    loss_scale,
    mean_residual,
    residual_by_level,
    squared_error,
)


def test_the_size_of_few_steps_is_the_mean_of_each_timestep() -> None:
    size = StepSize.measure([999.0, 499.0, 999.0], [1.0, 1.0, 1.0], [4.0, 0.5, 2.0])
    assert (size.at(999.0, 1.0, 0.2), size.at(500.0, 1.0, 0.2)) == (3.0, 0.5)
    assert StepSize.measure([1.0], [1.0], [0.0]).at(1.0, 1.0, 0.2) > 0  # divides


def test_the_size_of_few_steps_grows_with_the_square_of_the_strength() -> None:
    """Errors made of ``S + s^2 G`` exactly, with S = 0.3 and G = 2."""
    strengths = [0.0, 0.0, 0.5, 1.0, 2.0]
    errors = [0.3 + 2 * s**2 for s in strengths]
    size = StepSize.measure([7.0] * 5, strengths, errors)
    for strength in (0.5, 1.0, 1.7):
        assert size.at(7.0, strength, 0.2) == pytest.approx(0.3 + 2 * strength**2)
    assert size.at(7.0, 0.0, 0.2) == pytest.approx(0.3 + 2 * 0.2**2)  # the floor


def test_squared_error_is_a_mean_per_sample_in_float32() -> None:
    output = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]], dtype=torch.bfloat16)
    target = torch.tensor([[[0.0, 0.0]], [[3.0, 0.0]]], dtype=torch.float16)
    errors = squared_error(output, target)
    assert errors.dtype == torch.float32
    assert errors.tolist() == [2.5, 4.5]


def test_squared_error_does_not_overflow_in_half_precision() -> None:
    far = torch.full((1, 2), 300.0, dtype=torch.float16)
    assert squared_error(far, -far).tolist() == [360000.0]


class TestGuidanceSize:
    SIZE = GuidanceSize((100.0, 300.0, 900.0), (1.0, 4.0, 64.0))

    @pytest.mark.parametrize(
        ("timestep", "size"),
        [(100, 1), (300, 4), (900, 64), (200, 2), (600, 16), (450, 8), (0, 1), (999, 64)],
    )
    def test_is_log_linear_between_centres_and_constant_outside(
        self, timestep: float, size: float
    ) -> None:
        assert self.SIZE.at(timestep) == pytest.approx(size)

    def test_bins_hold_equally_many_states_and_centres_are_means(self) -> None:
        timesteps = [8, 1, 2, 3, 4, 5, 6, 7]
        sizes = [float(2**t) for t in timesteps]
        measured = GuidanceSize.measure(timesteps, sizes, bins=2)
        assert measured.timesteps == (2.5, 6.5)
        assert measured.sizes == (30 / 4, 480 / 4)

    @pytest.mark.parametrize(
        ("states", "bins"), [(1, 1), (3, 1), (7, 1), (8, 2), (63, 15), (64, 16), (900, 16)]
    )
    def test_a_bin_holds_at_least_four_states(self, states: int, bins: int) -> None:
        measured = GuidanceSize.measure(list(range(states)), [1.0] * states)
        assert len(measured.timesteps) == bins

    def test_one_timestep_is_one_size(self) -> None:
        measured = GuidanceSize.measure([5.0] * 8, [1.0] * 8)
        assert (measured.at(0), measured.at(5), measured.at(9)) == (1.0, 1.0, 1.0)

    def test_states_at_few_timesteps_all_count_however_many_bins_they_fill(self) -> None:
        """Groups of equal timesteps are sorted by size: the last one would be the largest alone."""
        sizes = [1.0, 2.0, 6.0, 7.0] * 3
        measured = GuidanceSize.measure([100.0] * 12 + [900.0] * 12, sizes + [2 * s for s in sizes])
        assert (measured.timesteps, measured.sizes) == ((100.0, 900.0), (4.0, 8.0))

    def test_where_the_teacher_is_not_guided_the_nearest_guided_levels_size_counts(self) -> None:
        timesteps = [100.0] * 4 + [200.0] * 4 + [300.0] * 4 + [400.0] * 4
        sizes = [0.0] * 4 + [1e-9] * 4 + [3.0] * 4 + [5.0] * 4
        measured = GuidanceSize.measure(timesteps, sizes)
        assert measured.timesteps == (300, 400)
        assert (measured.at(100), measured.at(200)) == (3.0, 3.0)

    def test_small_guidance_is_guidance(self) -> None:
        sizes = [7.4] * 4 + [0.001] * 4
        measured = GuidanceSize.measure([900.0] * 4 + [100.0] * 4, sizes)
        assert measured.at(100) == pytest.approx(0.001)

    def test_a_size_of_zero_can_still_be_divided_by(self) -> None:
        assert GuidanceSize.measure([1.0] * 4, [0.0] * 4).at(1.0) > 0


def test_the_loss_of_an_unguided_student_is_one_and_of_a_perfect_one_zero() -> None:
    """``|target - unguided|^2 = (g - off)^2 D``: what the scale divides by, above the floor."""
    size, off, g_ref = 0.37, 1.0, 7.5
    for g in (2.4, 5.0, 7.5, 12.0):
        unguided = torch.zeros(1, 4)
        target = torch.full((1, 4), (g - off) * math.sqrt(size))
        scale = loss_scale(size, Dial(off, g_ref, (2.0, 8.0)).nominal_strength(g), 0.2, g_ref - off)
        assert float(squared_error(unguided, target)) / scale == pytest.approx(1.0)
        assert float(squared_error(target, target)) / scale == 0.0


def test_below_the_floor_the_loss_shrinks_with_guidance() -> None:
    assert loss_scale(2.0, 0.1, 0.2, 5.0) == pytest.approx(0.2**2 * 5.0**2 * 2.0)
    assert loss_scale(2.0, -0.5, 0.2, 5.0) == loss_scale(2.0, 0.5, 0.2, 5.0)
    assert loss_scale(0.0, 0.0, 0.2, 5.0) > 0


class TestResidualByLevel:
    TIMESTEPS = (900, 100, 500, 300, 700, 200)
    STUDENT = (9.0, 1.0, 2.0, 3.0, 0.0, 1.0)
    UNGUIDED = (10.0, 2.0, 4.0, 4.0, 8.0, 2.0)

    def levels(self, count: int) -> list[Level]:
        return residual_by_level(self.TIMESTEPS, self.STUDENT, self.UNGUIDED, count)

    def test_divides_sums_within_each_range(self) -> None:
        assert self.levels(3) == [
            Level(100, 200, 2 / 4, 2),
            Level(300, 500, 5 / 8, 2),
            Level(700, 900, 9 / 18, 2),
        ]

    def test_cuts_uneven_counts_without_loss(self) -> None:
        assert [level.states for level in self.levels(4)] == [2, 1, 1, 2]
        assert [level.states for level in self.levels(99)] == [1] * 6

    def test_each_of_few_timesteps_is_a_range_however_its_errors_are_spread(self) -> None:
        """As of a student of two steps: five ranges would cut a timestep by its errors."""
        student, unguided = [1.0, 3.0, 2.0, 2.0, 4.0, 6.0], [4.0, 2.0, 6.0, 8.0, 8.0, 4.0]
        levels = residual_by_level([900.0] * 3 + [400.0] * 3, student, unguided)
        assert levels == [Level(400, 400, 12 / 20, 3), Level(900, 900, 6 / 12, 3)]

    def test_the_mean_weighs_levels_evenly(self) -> None:
        assert mean_residual(self.levels(3)) == pytest.approx((1 / 2 + 5 / 8 + 1 / 2) / 3)

    def test_levels_without_guidance_are_left_out(self) -> None:
        unguided = [10.0, 0.0, 4.0, 4.0, 8.0, 1e-9]
        levels = residual_by_level(self.TIMESTEPS, self.STUDENT, unguided, 3)
        assert levels == [Level(300, 500, 5 / 8, 2), Level(700, 900, 9 / 18, 2)]

    def test_nothing_folded_is_one_and_all_folded_is_zero(self) -> None:
        nothing = residual_by_level(self.TIMESTEPS, self.UNGUIDED, self.UNGUIDED)
        everything = residual_by_level(self.TIMESTEPS, [0.0] * 6, self.UNGUIDED)
        assert (mean_residual(nothing), mean_residual(everything)) == (1.0, 0.0)


class TestLearningRate:
    def test_rises_linearly_to_the_peak(self) -> None:
        rates = [learning_rate(step, 100, 2.0, 4, "constant") for step in range(6)]
        assert rates == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]

    def test_falls_along_a_cosine_to_a_hundredth(self) -> None:
        rates = [learning_rate(step, 110, 1.0, 10, "cosine") for step in (10, 35, 60, 85, 110)]
        half = math.sqrt(0.5)
        waves = [1.0, (1 + half) / 2, 0.5, (1 - half) / 2, 0.0]
        assert rates == pytest.approx([0.01 + 0.99 * wave for wave in waves])

    def test_without_warmup_starts_at_the_peak(self) -> None:
        assert learning_rate(0, 10, 3.0, 0, "cosine") == 3.0

    def test_stays_at_the_end_beyond_the_last_step(self) -> None:
        assert learning_rate(500, 100, 1.0, 0, "cosine") == pytest.approx(0.01)

    @pytest.mark.parametrize("schedule", ["constant", "cosine"])
    def test_is_positive_when_the_warmup_is_longer_than_the_run(self, schedule: str) -> None:
        assert all(learning_rate(step, 3, 1.0, 50, schedule) > 0 for step in range(3))
