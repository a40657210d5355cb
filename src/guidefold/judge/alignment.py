"""Are pictures true to their prompts? Shares over paired pictures, with how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL.Image import Image

from guidefold.judge.features import Features
from guidefold.run import Kind

RESAMPLES = 2000


@dataclass(frozen=True)
class Judge:
    """Somebody who can tell.

    Attributes:
        aligned: Tells of each picture whether it shows what its prompt says.
        category: What kind of prompt one is.
        features: What it sees in pictures, to compare sets of them; None if it cannot say.
    """

    aligned: Callable[[Sequence[Image], Sequence[str]], Sequence[bool]]
    category: Callable[[str], str]
    features: Features | None = None


def share(verdicts: Sequence[bool]) -> float:
    """How many of the verdicts are true, 0..1.

    Args:
        verdicts: At least one.
    """
    return sum(verdicts) / len(verdicts)


def by_category(
    verdicts: Mapping[Kind, Sequence[bool]], categories: Sequence[str]
) -> dict[str, dict[str, object]]:
    """Alignment within each category.

    Args:
        verdicts: For each kind, a verdict per prompt.
        categories: One per prompt.

    Returns:
        For each category, in order of first appearance, its number of prompts and each kind's
        share.
    """
    table: dict[str, dict[str, object]] = {}
    for name in dict.fromkeys(categories):
        inside = [place for place, other in enumerate(categories) if other == name]
        table[name] = {"prompts": len(inside)}
        for kind, given in verdicts.items():
            table[name][kind] = share([given[place] for place in inside])
    return table


def ratio_interval(student: Sequence[bool], teacher: Sequence[bool]) -> tuple[float, float] | None:
    """Between which bounds the student's alignment over the teacher's lies, in 95 of 100 cases.

    Args:
        student: A verdict per prompt.
        teacher: The teacher's of the same prompts and seeds, in the same order.

    Returns:
        Bounds of the ratio; None where the teacher is so seldom right that a resample has no ratio.

    Source:
        The percentile bootstrap over pairs (Efron & Tibshirani 1993, chapter 13).
    """
    pairs = np.stack([np.asarray(student, dtype=float), np.asarray(teacher, dtype=float)])
    count = pairs.shape[1]
    drawn = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    sums = pairs[:, drawn].sum(axis=2)
    if not sums[1].all():
        return None
    low, high = np.quantile(sums[0] / sums[1], [0.025, 0.975])
    return float(low), float(high)
