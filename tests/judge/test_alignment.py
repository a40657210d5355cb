"""Alignment: shares and intervals against counting by hand, exact cases and other routes."""

import math
import random
from collections import Counter
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from guidefold.demo.judge import judge_of
from guidefold.ground import console
from guidefold.judge.alignment import by_category, ratio_interval, share, usable_judge
from guidefold.pipeline.prompts import Prompt


def test_a_share_is_how_many_are_true() -> None:
    assert share([True]) == 1
    assert share([False, False]) == 0
    assert share([True, False, True]) == 2 / 3


def test_a_judge_is_left_out_with_a_line_that_says_why_where_it_does_not_know_a_prompt() -> None:
    judge = judge_of("bundled")
    assert judge is not None
    known = [Prompt("a red circle", "mine.txt:1"), Prompt("three green triangles", "mine.txt:2")]
    assert usable_judge(None, known) is None
    assert usable_judge(judge, known) is judge
    with console.capture() as caught:
        assert usable_judge(judge, [*known, Prompt("a cat", "mine.txt:3")]) is None
    said = " ".join(caught.get().split())
    assert said.startswith("Alignment is not measured: mine.txt:3 is no caption of the bundled")


def test_categories_are_counted_apart_in_order_of_first_appearance() -> None:
    verdicts = {
        "teacher": [True, True, False, True, True],
        "unguided": [False, False, False, False, True],
        "student": [True, False, True, True, True],
    }
    table = by_category(verdicts, ["red", "blue", "red", "red", "blue"])
    assert table == {
        "red": {"prompts": 3, "teacher": 2 / 3, "unguided": 0, "student": 1},
        "blue": {"prompts": 2, "teacher": 1, "unguided": 0.5, "student": 0.5},
    }
    assert list(table) == ["red", "blue"]


def pairs(both: int, student: int, teacher: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Verdicts of the student and of the teacher, by how often which of them is right."""
    counts = ((True, True, both), (True, False, student), (False, True, teacher))
    rows = [(s, t) for s, t, count in (*counts, (False, False, neither)) for _ in range(count)]
    return [s for s, _ in rows], [t for _, t in rows]


def test_a_student_that_is_right_where_the_teacher_is_has_the_ratio_1_for_sure() -> None:
    verdicts = pairs(both=40, student=0, teacher=0, neither=20)
    assert ratio_interval(*verdicts) == (1.0, 1.0)


def test_a_student_that_is_never_right_has_the_ratio_0_for_sure() -> None:
    assert ratio_interval(*pairs(both=0, student=0, teacher=30, neither=5)) == (0.0, 0.0)


def test_a_teacher_that_is_never_right_gives_no_ratio() -> None:
    assert ratio_interval(*pairs(both=0, student=5, teacher=0, neither=5)) is None


def test_a_teacher_that_is_hardly_ever_right_gives_no_ratio_either() -> None:
    """A third of all resamples lack the one pair that has a ratio."""
    assert ratio_interval(*pairs(both=1, student=2, teacher=0, neither=7)) is None


def exact_quantiles(student: list[bool], teacher: list[bool]) -> tuple[Fraction, Fraction]:
    """The bootstrap's quantiles, over every resample that there is."""
    rows = list(zip(student, teacher, strict=True))
    chances: Counter[Fraction] = Counter()
    for drawn in product(rows, repeat=len(rows)):
        chances[Fraction(sum(s for s, _ in drawn), sum(t for _, t in drawn))] += 1
    ratios = sorted(chances.elements())
    return ratios[math.floor(0.025 * len(ratios))], ratios[math.floor(0.975 * len(ratios))]


def test_bounds_of_a_small_case_are_those_of_all_its_resamples() -> None:
    """Six pairs have 46,656 resamples; the teacher is always right, so that none is lost."""
    student, teacher = pairs(both=4, student=0, teacher=2, neither=0)
    found = ratio_interval(student, teacher)
    assert found == tuple(map(float, exact_quantiles(student, teacher)))


def test_against_a_teacher_that_is_always_right_bounds_are_a_proportions() -> None:
    """The normal approximation of a binomial share, whose error is of order 1 / count."""
    count, right = 900, 720
    low, high = ratio_interval(*pairs(both=right, student=0, teacher=count - right, neither=0))
    p = right / count
    half = 1.959964 * math.sqrt(p * (1 - p) / count)
    assert low == pytest.approx(p - half, abs=0.003)
    assert high == pytest.approx(p + half, abs=0.003)


def test_bounds_are_those_of_resampling_pairs_one_by_one() -> None:
    """Another generator, another loop; and far from the bounds of unpaired resampling."""
    student, teacher = pairs(both=90, student=5, teacher=15, neither=90)
    rows = list(zip(student, teacher, strict=True))
    source = random.Random(5)
    ratios = []
    for _ in range(4000):
        drawn = source.choices(rows, k=len(rows))
        ratios.append(sum(s for s, _ in drawn) / sum(t for _, t in drawn))
    expected = np.quantile(ratios, [0.025, 0.975])
    found = ratio_interval(student, teacher)
    assert found == pytest.approx(expected, abs=0.012)
    unpaired = [
        sum(source.choices(student, k=200)) / sum(source.choices(teacher, k=200))
        for _ in range(4000)
    ]
    assert np.quantile(unpaired, 0.025) < expected[0] - 0.05  # so the tolerance can tell


def test_the_same_verdicts_give_the_same_bounds_in_whatever_order_they_came() -> None:
    student, teacher = pairs(both=50, student=10, teacher=20, neither=20)
    assert ratio_interval(student, teacher) == ratio_interval(student, teacher)
    turned = ratio_interval(student[::-1], teacher[::-1])
    assert turned == pytest.approx(ratio_interval(student, teacher), abs=0.03)
