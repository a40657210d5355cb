"""Measures of pictures by their pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from guidefold.draw import Drawn, Picture
from guidefold.run import Kind


def relative_distance(drawn: Mapping[Kind, Drawn]) -> float:
    """``E|student - teacher|^2 / E|unguided - teacher|^2`` over pixels; 0 for the teacher's own."""
    student, unguided = (
        sum(map(_distance, drawn[kind].pictures, drawn["teacher"].pictures))
        for kind in ("student", "unguided")
    )
    return student / max(unguided, 1e-12)


def saturations(pictures: Sequence[Picture]) -> list[float]:
    """Each picture's mean HSV saturation over its pixels, 0..1.

    It is the first measure to show that guidance is too strong.
    """
    channels = (np.asarray(picture.convert("HSV"))[..., 1] for picture in pictures)
    return [float(channel.mean() / 255) for channel in channels]


def _distance(one: Picture, two: Picture) -> float:
    """Mean squared difference of two pictures' pixels, 0..1."""
    first, second = (np.asarray(p.convert("RGB"), dtype=np.float32) / 255 for p in (one, two))
    return float(np.square(first - second).mean())
