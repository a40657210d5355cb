"""Judge the student beside the teacher.

Alignment, features of sets of pictures, residual guidance, and ``evaluate``, which measures all
of them on held-out prompts.
"""

from guidefold.judge.alignment import Judge, by_category, share
from guidefold.judge.evaluate import (
    LIBRARIES,
    evaluate,
    features_of,
    measure,
    measure_adapter,
    relative_distance,
)
from guidefold.judge.features import Features, Matrix, compare

__all__ = [
    "LIBRARIES",
    "Features",
    "Judge",
    "Matrix",
    "by_category",
    "compare",
    "evaluate",
    "features_of",
    "measure",
    "measure_adapter",
    "relative_distance",
    "share",
]
