"""Judge the student beside the teacher.

Alignment, distances between sets of pictures, residual guidance, and ``evaluate``, which
measures all of them on held-out prompts.
"""

from guidefold.judge.alignment import Judge, by_category, share
from guidefold.judge.evaluate import (
    LIBRARIES,
    evaluate,
    evaluate_adapter,
    evaluate_weights,
    feature_extractor,
)
from guidefold.judge.features import Features, Matrix, compare
from guidefold.judge.pixels import relative_distance

__all__ = [
    "LIBRARIES",
    "Features",
    "Judge",
    "Matrix",
    "by_category",
    "compare",
    "evaluate",
    "evaluate_adapter",
    "evaluate_weights",
    "feature_extractor",
    "relative_distance",
    "share",
]
