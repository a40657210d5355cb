"""Judge whether a picture shows what its caption says: every fact of it, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL.Image import Image
from torch.nn import functional as F

from guidefold.demo.captions import COLOURS, Facts, Thing, is_caption, parse
from guidefold.demo.reading import UNKNOWN, Reading, SeenThing, read_pictures
from guidefold.demo.shapes import SHAPES
from guidefold.demo.world import PICTURE_SIZE, SIZE_LIMIT
from guidefold.ground import plural
from guidefold.judge import Judge, Matrix

_AT_ONCE = 64
_LEAST_SHIFT = 6.0  # pixels between centres for one thing to lie beside another


def category(caption: str) -> str:
    """The category a caption is judged in, one of `CATEGORIES`.

    Args:
        caption: A caption of the world.

    Returns:
        The category.

    Raises:
        ValueError: If the caption is not one of the world's.
    """
    return parse(caption).category


def _of_size(seen: SeenThing, size: str) -> bool:
    return not size or (seen.radius < SIZE_LIMIT) == (size == "small")


def _find(thing: Thing, seen: Sequence[SeenThing]) -> SeenThing | None:
    """Find a seen thing of the shape, colour and size; None if there is none."""
    for candidate in seen:
        alike = candidate.shape == thing.shape and candidate.colour == thing.colour
        if alike and _of_size(candidate, thing.size):
            return candidate
    return None


def _relation(first: SeenThing, second: SeenThing) -> str:
    """Where the first thing lies, seen from the second; empty where they almost coincide."""
    across, down = first.x - second.x, first.y - second.y
    if max(abs(across), abs(down)) < _LEAST_SHIFT:
        return ""
    if abs(across) > abs(down):
        return "to the left of" if across < 0 else "to the right of"
    return "above" if down < 0 else "below"


def agrees(reading: Reading, facts: Facts) -> bool:
    """Whether a picture shows exactly these facts.

    Args:
        reading: The things in the picture.
        facts: The caption's facts.

    Returns:
        True if every fact is right and the picture shows nothing else.
    """
    if len(reading.things) != len(facts.things) or reading.background != facts.background:
        return False
    left = list(reading.things)
    found = []
    for thing in facts.things:
        seen = _find(thing, left)
        if seen is None:
            return False
        left.remove(seen)
        found.append(seen)
    return not facts.relation or _relation(found[0], found[1]) == facts.relation


def judge_pictures(pictures: Sequence[Image], captions: Sequence[str]) -> list[bool]:
    """Judge pictures.

    Args:
        pictures: 64 x 64; other modes than RGB are converted.
        captions: One for each picture.

    Returns:
        For each picture, whether it shows its caption and nothing else.

    Raises:
        ValueError: If a picture has another size, a caption is not one of the world's, or there
            are not as many captions as pictures.
    """
    facts = [parse(caption) for caption in captions]
    if len(facts) != len(pictures):
        raise ValueError(f"{plural(len(pictures), 'picture')}, but {plural(len(facts), 'caption')}")
    wrong_sizes = {picture.size for picture in pictures} - {(PICTURE_SIZE, PICTURE_SIZE)}
    if wrong_sizes:
        raise ValueError(f"pictures of the demo world are 64 x 64, not {sorted(wrong_sizes)}")
    judged: list[bool] = []
    for start in range(0, len(pictures), _AT_ONCE):
        chunk = slice(start, start + _AT_ONCE)
        judged += map(agrees, read_pictures(_pixels(pictures[chunk])), facts[chunk])
    return judged


def _pixels(pictures: Sequence[Image]) -> torch.Tensor:
    """Pictures as float32, `(batch, 3, height, width)`, in 0..1."""
    pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def judge_of(source: str) -> Judge | None:
    """The judge of a pipeline's pictures, by its source; None for all but the bundled teacher."""
    known = Judge(judge_pictures, category, see_features, is_caption)
    return known if source == "bundled" else None


def see_features(pictures: Sequence[Image]) -> Matrix:
    """Features of pictures, without their captions, to compare sets of pictures by.

    Args:
        pictures: 64 x 64; other modes than RGB are converted.

    Returns:
        A row for each picture: how many things it shows of each shape and of each colour (the last
        of both: unknown), their number, mean radius and mean place, all in units of about 1, and
        the picture at 4 x 4 pixels.
    """
    pixels = _pixels(pictures)
    small = F.avg_pool2d(pixels, PICTURE_SIZE // 4).flatten(1).double().numpy()
    rows = [
        _describe(reading)
        for start in range(0, len(pixels), _AT_ONCE)
        for reading in read_pictures(pixels[start : start + _AT_ONCE])
    ]
    return np.concatenate([np.array(rows, dtype=np.float64), small], axis=1)


def _describe(reading: Reading) -> list[float]:
    things = reading.things
    shapes = [sum(t.shape == name for t in things) for name in (*SHAPES, UNKNOWN)]
    colours = [sum(t.colour == name for t in things) for name in (*COLOURS, UNKNOWN)]
    middles = [(t.radius / SIZE_LIMIT, t.x / PICTURE_SIZE, t.y / PICTURE_SIZE) for t in things]
    mean = np.mean(middles, axis=0) if things else np.zeros(3)
    return [*shapes, *colours, len(things), *mean]
