"""The dial: the straight line that training aims at, and the marks that were measured."""

import json
from typing import Any

import pytest
import torch

from guidefold.ground.errors import InputError
from guidefold.lora.dial import Dial, Mark

TRAINED = (2.0, 8.0)


# As it is trained


@pytest.mark.parametrize(
    ("guidance", "off", "g_ref", "strength"),
    [(1, 1, 7.5, 0), (7.5, 1, 7.5, 1), (4.25, 1, 7.5, 0.5), (14, 1, 7.5, 2), (2, 0, 4, 0.5)],
)
def test_strength_is_linear_in_guidance(
    guidance: float, off: float, g_ref: float, strength: float
) -> None:
    assert Dial(off, g_ref, TRAINED).nominal_strength(guidance) == strength


def test_the_dial_turns_strength_into_guidance() -> None:
    """A target linear in g is what an update linear in strength gives."""
    uncond, cond = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    update = (7.5 - 1) * (cond - uncond)  # at strength 1
    for g in (1.0, 3.0, 9.0):
        guided = uncond + g * (cond - uncond)
        torch.testing.assert_close(
            cond + Dial(1.0, 7.5, TRAINED).nominal_strength(g) * update, guided
        )


@pytest.mark.parametrize(
    ("strength", "origin", "g_ref", "scale"),
    [(0, 1, 7.5, 1), (1, 1, 7.5, 7.5), (0.5, 1, 5, 3), (1.25, 1, 5, 6), (0.5, 0, 4, 2)],
)
def test_a_strength_stands_for_a_point_between_origin_and_reference(
    strength: float, origin: float, g_ref: float, scale: float
) -> None:
    assert Dial(origin, g_ref, TRAINED).nominal_guidance(strength) == scale


@pytest.mark.parametrize(
    ("strength", "dial", "said"),
    [
        (0.0, True, ""),
        (
            1.5,
            True,
            "",
        ),  # trained to guidance 6, which is strength 1.25, and drawn a quarter beyond
        (1.6, True, "strength 1.6 is outside 0 to 1.25"),
        (-1.0, True, "strength -1 is outside 0 to 1.25"),
        (1.6, False, "strength 1.6 is outside 0 to 1,"),
    ],
)
def test_a_strength_beyond_the_training_is_told_of(strength: float, dial: bool, said: str) -> None:
    told = Dial(1.0, 5.0, (2.0, 6.0), proportional=dial).warning(strength)
    assert said in told if said else told == ""


# As it is measured


def test_between_marks_the_dial_is_straight_and_beyond_them_refused() -> None:
    dial = Dial(1.0, 4.2, TRAINED, (Mark(2.0, 0.3, 0.1), Mark(4.0, 1.1, 0.1), Mark(8.0, 2.0, 0.2)))

    assert dial.measured_strength(3.0) == pytest.approx(0.7)
    assert dial.measured_strength(8.0) == 2.0
    for guidance in (1.0, 1.4, 2.0, 3.3, 5.0, 7.9):
        there = dial.measured_strength(guidance)
        assert dial.measured_guidance(there) == pytest.approx(guidance)
    assert dial.measured_guidance(2.5) == 9.0
    for outside in (8.5, 0.9):
        with pytest.raises(InputError, match="measured from 1 to 8"):
            dial.measured_strength(outside)


def test_strength_0_is_the_teacher_without_guidance() -> None:
    dial = Dial(0.0, 4.0, TRAINED, (Mark(2.0, 0.5, 0.1),))

    assert dial.measured_strength(0.0) == 0.0
    assert dial.measured_strength(1.0) == pytest.approx(0.25)


def test_a_dial_that_was_not_measured_says_so() -> None:
    assert Dial(1.0, 9.0, TRAINED).measured_guidance(1.0) == 9.0
    with pytest.raises(InputError, match="has not been measured"):
        Dial(1.0, 9.0, TRAINED).measured_strength(3.0)


# In words


def measured(*marks: tuple[float, float]) -> Dial:
    return Dial(
        1.0, 7.5, TRAINED, tuple(Mark(guidance, strength, 0.5) for guidance, strength in marks)
    )


@pytest.mark.parametrize(
    ("dial", "words"),
    [
        (measured(), "guidance 7.5"),
        (measured((2, 0.2), (7.5, 1.0), (8, 1.1)), "guidance 7.5"),
        (
            measured((2, 0.2), (7, 0.95), (8, 1.1)),
            "guidance 7.33 as measured, 7.5 as trained",
        ),
        (measured((2, 0.2), (3.8, 1.0), (4.5, 1.4)), "guidance 3.8 as measured, 7.5 as trained"),
        (measured((2, 0.2), (12.2, 0.98)), "guidance over 12.2 as measured, 7.5 as trained"),
        (measured((20, 1.0)), "guidance 20 as measured, 7.5 as trained"),
    ],
)
def test_strength_1_is_what_was_measured_with_what_was_trained_beside_it(
    dial: Dial, words: str
) -> None:
    assert dial.stands_for == words
    if words.endswith("as trained") and "over" not in words:
        assert words.startswith(f"guidance {dial.measured_guidance(1.0):.3g} as measured")


def test_a_higher_strength_never_stands_for_a_lower_scale() -> None:
    for dial in (measured(), measured((2, 0.2), (12.2, 0.98)), measured((2, 0.5), (3, 1.2))):
        scales = [dial.measured_guidance(k / 20) for k in range(40)]
        assert scales == sorted(scales)


# As it is written, baked, and asked for


MARKS = (Mark(2.0, 0.3, 0.1), Mark(4.0, 1.1, 0.1), Mark(8.0, 2.0, 0.2))


def test_a_dial_comes_back_from_the_fields_of_an_adapter() -> None:
    for dial in (Dial(1.0, 5.0, TRAINED, MARKS), Dial(0.0, 4.0, TRAINED, proportional=False)):
        about = {"findings": {"origin": dial.origin}, **dial.to_json()}
        assert Dial.from_json(json.loads(json.dumps(about))) == dial
    assert list(about) == ["findings", "g_ref", "dial", "dial_table", "guidance_range"]


def test_a_baked_adapter_stands_at_strength_1_where_the_other_stood() -> None:
    dial = Dial(1.0, 5.0, TRAINED, MARKS)
    baked = dial.baked_at(dial.measured_strength(6.1))
    assert baked.g_ref == 6.1
    for guidance in (1.5, 4.0, 6.1, 7.0):
        strength = dial.measured_strength(guidance) / dial.measured_strength(6.1)
        assert baked.measured_strength(guidance) == pytest.approx(strength)
    assert dial.baked_at(1.0) == dial
    assert Dial(1.0, 5.0, TRAINED).baked_at(0.5).g_ref == 3.0


@pytest.mark.parametrize(
    ("asked", "marks", "proportional", "compared"),
    [
        ((None, None), (), True, (5.0, 1.0)),
        ((None, None), MARKS, True, (5.0, 1.0)),
        ((3.0, None), (), True, (3.0, 0.5)),
        ((3.0, None), MARKS, True, (3.0, 0.7)),
        ((3.0, None), MARKS, False, (3.0, 1.0)),
        ((9.0, 0.4), MARKS, True, (9.0, 0.4)),
    ],
)
def test_what_is_not_asked_for_follows_the_dial(
    asked: Any, marks: Any, proportional: bool, compared: Any
) -> None:
    dial = Dial(1.0, 5.0, TRAINED, marks, proportional=proportional)
    assert dial.compare_at(*asked) == pytest.approx(compared)


def test_a_scale_beyond_the_marks_has_no_strength_to_compare_at() -> None:
    with pytest.raises(InputError, match="measured from 1 to 8"):
        Dial(1.0, 5.0, TRAINED, MARKS).compare_at(9.0, None)


def test_the_table_shows_marks_at_even_distances_with_both_ends() -> None:
    marks = tuple(Mark(float(g), g / 10, 1 / g) for g in range(2, 22))
    rows = Dial(1.0, 5.0, TRAINED, marks).table(most=3)
    assert [row["guidance"] for row in rows] == ["2", "11", "21"]
    assert rows[1] == {"guidance": "11", "strength": "1.1", "residual guidance": "0.0909"}


def test_without_marks_the_table_shows_the_nominal_dial() -> None:
    rows = Dial(1.0, 5.0, TRAINED).table(most=8)
    assert rows[0] == {"strength": "0", "guidance": "1"}
    assert [row["guidance"] for row in rows[1:]] == ["2", "3", "4", "5", "6"]
