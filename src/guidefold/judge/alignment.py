"""Alignment: the share of pictures that show their prompts, with a confidence interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL.Image import Image

from guidefold.ground import console
from guidefold.judge.features import Features
from guidefold.pipeline import Prompt
from guidefold.run import Kind

RESAMPLES = 2000


@dataclass(frozen=True)
class Judge:
    """Functions that score pictures against their prompts.

    Attributes:
        aligned: Whether each picture shows its prompt.
        category: The category of a prompt.
        features: Features of pictures, for comparing sets of them; None where it has none.
        knows: Whether it can read pictures of a prompt at all.
    """

    aligned: Callable[[Sequence[Image], Sequence[str]], Sequence[bool]]
    category: Callable[[str], str]
    features: Features | None = None
    knows: Callable[[str], bool] = lambda _: True


def usable_judge(judge: Judge | None, prompts: Sequence[Prompt]) -> Judge | None:
    """The judge if it knows all of the prompts; else None, after a line that says why."""
    strange = next((p for p in prompts if judge and not judge.knows(p.text)), None)
    if strange is None:
        return judge
    console.print(
        f"Alignment is not measured: {strange.source} is no caption of the bundled world, and its "
        "judge reads pictures of no other prompt. evaluate.clip=MODEL scores any."
    )
    return None


def share(verdicts: Sequence[bool]) -> float:
    """The share of true verdicts, 0..1.

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
        members = [k for k, category in enumerate(categories) if category == name]
        table[name] = {"prompts": len(members)}
        for kind, by_prompt in verdicts.items():
            table[name][kind] = share([by_prompt[k] for k in members])
    return table


def ratio_interval(
    student: Sequence[float], teacher: Sequence[float]
) -> tuple[float, float] | None:
    """The 95 % confidence interval of a mean of the student's over the teacher's.

    Args:
        student: A value per prompt, such as whether its picture is aligned.
        teacher: The teacher's values for the same prompts and seeds, in the same order.

    Returns:
        Bounds of the ratio; None where the teacher's mean may be 0: in some resamples it is 0, or
        of the other sign.

    Source:
        The percentile bootstrap over pairs (Efron & Tibshirani 1993, chapter 13).
    """
    pairs = np.stack([np.asarray(student, dtype=float), np.asarray(teacher, dtype=float)])
    count = pairs.shape[1]
    drawn = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    sums = pairs[:, drawn].sum(axis=2)
    if not (sums[1] > 0).all() and not (sums[1] < 0).all():
        return None
    low, high = np.quantile(sums[0] / sums[1], [0.025, 0.975])
    return float(low), float(high)
