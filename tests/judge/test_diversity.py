"""Diversity of one prompt's pictures, against numbers worked out by hand."""

import numpy as np
import pytest

from guidefold.judge.diversity import diversity


def test_diversity_is_the_mean_distance_of_pairs_of_one_prompt() -> None:
    one = [[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]  # distances 5, 0, 5
    other = [[9.0, 9.0], [9.0, 9.0], [9.0, 9.0]]  # none, however far the prompts are apart
    assert diversity(np.array([*one, *other]), 3) == pytest.approx((10 / 3 + 0) / 2)


def test_equal_pictures_have_none() -> None:
    assert diversity(np.ones((4, 5)), 2) == 0
