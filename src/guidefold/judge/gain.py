"""Scores of pictures, and how much of what guidance adds to them the student keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from guidefold.draw import Drawn
from guidefold.judge.alignment import ratio_interval
from guidefold.judge.features import VisionModel
from guidefold.judge.pixels import saturations
from guidefold.run import KINDS, GainKept, Kind

Scores = Mapping[Kind, Sequence[float]]
"""A score of each kind's pictures, one per prompt, of the same prompts and seeds."""


def score_pictures(
    drawn: Mapping[Kind, Drawn], prompts: Sequence[str], clip: VisionModel | None
) -> dict[str, Scores]:
    """Score every picture: saturation, and with a CLIP model the CLIP score.

    Args:
        drawn: Each kind's pictures, one per prompt.
        prompts: The prompts' texts.
        clip: The model of CLIP scores.

    Returns:
        By the score's name, as in :class:`~guidefold.run.KindResults`.
    """
    scores: dict[str, Scores] = {
        "saturation": {kind: saturations(drawn[kind].pictures) for kind in KINDS}
    }
    if clip:
        scores["clip_score"] = {kind: clip.scores(drawn[kind].pictures, prompts) for kind in KINDS}
    return scores


def gain_kept(scores: Mapping[str, Scores]) -> dict[str, GainKept]:
    """The share of guidance's gain that the student keeps, in each score.

    ``mean(student - unguided) / mean(teacher - unguided)``: 1 all of it, 0 nothing. By it students
    of different teachers can be compared; in the scores themselves, of which the unguided teacher
    has a good part, most of a loss is hidden.

    Args:
        scores: By the score's name.

    Returns:
        By the score's name; without those in which guidance's own gain may be 0.
    """
    kept = {}
    for name, values in scores.items():
        gains = [_differences(values[kind], values["unguided"]) for kind in ("student", "teacher")]
        bounds = ratio_interval(*gains)
        if bounds is not None:
            kept[name] = GainKept(share=sum(gains[0]) / sum(gains[1]), interval_95=bounds)
    return kept


def _differences(values: Sequence[float], others: Sequence[float]) -> list[float]:
    return [float(value) - float(other) for value, other in zip(values, others, strict=True)]
