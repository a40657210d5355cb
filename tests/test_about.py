from typing import Any

import pytest

from guidefold.about import stands_for
from guidefold.calibration import Dial, Mark


def dial(*marks: tuple[float, float]) -> Dial:
    return Dial(1.0, tuple(Mark(guidance, strength, 0.5) for guidance, strength in marks))


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (dial(), "guidance 7.5"),
        (dial((2, 0.2), (7, 0.95), (8, 1.1)), "guidance 7.5"),
        (dial((2, 0.2), (3.8, 1.0), (4.5, 1.4)), "guidance 7.5 as trained, 3.8 as measured"),
        (dial((2, 0.2), (12.2, 0.98)), "guidance 7.5 as trained, over 12.2 as measured"),
        (dial((20, 1.0)), "guidance 7.5 as trained, 20 as measured"),
    ],
)
def test_strength_1_is_what_was_trained_unless_it_measures_as_another_scale(
    measured: Any, words: str
) -> None:
    assert stands_for(7.5, measured) == words
