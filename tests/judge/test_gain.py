"""The share of guidance's gain that the student keeps."""

import numpy as np
import pytest
from PIL import Image

from guidefold.draw.pictures import Drawn
from guidefold.judge.gain import gain_kept, score_pictures
from guidefold.run.settings import KINDS


def scores(student: float, noise: float = 0.0, count: int = 200) -> dict[str, list[float]]:
    """A score that guidance raises from 1 to 3, of prompts that differ in it by much."""
    draw = np.random.default_rng(0)
    prompts = 10 * draw.normal(size=count)
    levels = {"unguided": 1.0, "teacher": 3.0, "student": student}
    return {
        kind: list(prompts + level + noise * draw.normal(size=count))
        for kind, level in levels.items()
    }


@pytest.mark.parametrize(("student", "share"), [(1.0, 0.0), (2.5, 0.75), (3.0, 1.0), (3.4, 1.2)])
def test_it_is_0_for_the_unguided_score_and_1_for_the_teachers(
    student: float, share: float
) -> None:
    kept = gain_kept({"score": scores(student)})["score"]
    assert kept.share == pytest.approx(share)
    # The same gain in every prompt: nothing is uncertain, however much the prompts differ.
    assert kept.interval_95 == pytest.approx((share, share))


def test_its_interval_holds_the_true_share_and_widens_with_noise() -> None:
    intervals = [gain_kept({"s": scores(2.5, noise)})["s"].interval_95 for noise in (0.5, 1.0)]
    widths = [high - low for low, high in intervals]
    assert all(low < 0.75 < high for low, high in intervals)
    assert 1.6 < widths[1] / widths[0] < 2.4


def test_a_score_that_guidance_lowers_has_a_share_as_well() -> None:
    lowered = {kind: [-value for value in values] for kind, values in scores(2.5).items()}
    assert gain_kept({"score": lowered})["score"].share == pytest.approx(0.75)


def test_where_guidance_may_add_nothing_there_is_no_share() -> None:
    same = scores(2.0)
    assert gain_kept(
        {"score": {**same, "teacher": same["unguided"]}, "other": scores(3.0)}
    ).keys() == {"other"}


def test_pictures_are_scored_one_by_one() -> None:
    colours = {"teacher": "red", "unguided": "grey", "student": "white"}
    drawn = {kind: Drawn([Image.new("RGB", (4, 4), colours[kind])] * 3) for kind in KINDS}
    found = score_pictures(drawn, ["a", "b", "c"], None)
    assert found == {
        "saturation": {"teacher": [1.0] * 3, "unguided": [0.0] * 3, "student": [0.0] * 3}
    }
