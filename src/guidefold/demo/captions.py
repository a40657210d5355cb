"""The facts that a picture of the world shows, and their captions.

The world is finite: a few thousand facts, each with exactly one caption, and each caption parses
back to its facts. Six categories, the ones that people judge text-to-image models by:

    single object       a red circle / a small red circle
    two objects         a blue star and a yellow square
    counting            three green triangles
    colours             a purple heart on an orange background
    position            a red square above a blue circle
    attribute binding   a small red star and a large blue circle
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from guidefold.demo.shapes import SHAPES

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 45),
    "orange": (250, 140, 20),
    "yellow": (245, 225, 45),
    "green": (35, 160, 70),
    "blue": (40, 80, 225),
    "purple": (145, 50, 180),
    "black": (25, 25, 30),
}
SIZES = ("", "small", "large")
RELATIONS = ("above", "below", "to the left of", "to the right of")
NUMBERS = ("two", "three", "four")
CATEGORIES = (
    "single object",
    "two objects",
    "counting",
    "colours",
    "position",
    "attribute binding",
)
UNSEEN_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: a key of `SHAPES`, a key of `COLOURS`, and one of `SIZES` (empty: any size)."""

    shape: str
    colour: str
    size: str = ""

    def phrase(self) -> str:
        """The thing without its article, as in `small red star`."""
        return " ".join(word for word in (self.size, self.colour, self.shape) if word)


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a caption says about a picture.

    Attributes:
        things: One to four objects. More than two are alike, and so are two that are counted.
        relation: Where the first thing lies, seen from the second; empty if the caption is silent.
        background: A key of `COLOURS`, or empty for a plain light background.
    """

    things: tuple[Thing, ...]
    relation: str = ""
    background: str = ""

    @property
    def category(self) -> str:
        """The category that a picture of these facts is judged in."""
        if len(self.things) == 1:
            return "colours" if self.background else "single object"
        if self.things[0] == self.things[1]:
            return "counting"
        if self.relation:
            return "position"
        return "attribute binding" if self.things[0].size else "two objects"

    @property
    def caption(self) -> str:
        """The one caption of these facts."""
        first = self.things[0]
        if self.category == "counting":
            plural = "es" if first.shape.endswith("s") else "s"
            return f"{NUMBERS[len(self.things) - 2]} {first.phrase()}{plural}"
        if len(self.things) == 2:
            joint = self.relation or "and"
            return f"{_with_article(first)} {joint} {_with_article(self.things[1])}"
        behind = f" on {_article(self.background)} background" if self.background else ""
        return _with_article(first) + behind


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _with_article(thing: Thing) -> str:
    return _article(thing.phrase())


def _things(size: str = "") -> list[Thing]:
    return [Thing(shape, colour, size) for shape in SHAPES for colour in COLOURS]


def _pairs(first_size: str = "", second_size: str = "") -> Iterator[tuple[Thing, Thing]]:
    """Pairs that differ in shape and in colour: only they can show a swapped attribute."""
    for first in _things(first_size):
        for second in _things(second_size):
            if first.shape != second.shape and first.colour != second.colour:
                yield first, second


@lru_cache(maxsize=1)
def all_facts() -> tuple[Facts, ...]:
    """Every fact of the world, in a fixed order, category by category."""
    single = [Facts((thing,)) for size in SIZES for thing in _things(size)]
    two = [Facts(pair) for pair in _pairs()]
    counting = [Facts((thing,) * count) for thing in _things() for count in (2, 3, 4)]
    colours = [
        Facts((thing,), background=background)
        for thing in _things()
        for background in COLOURS
        if background != thing.colour
    ]
    position = [Facts(pair, relation) for relation in RELATIONS for pair in _pairs()]
    binding = [Facts(pair) for pair in _pairs("small", "large")]
    binding += [Facts(pair) for pair in _pairs("large", "small")]
    return (*single, *two, *counting, *colours, *position, *binding)


@lru_cache(maxsize=1)
def _facts_of_captions() -> dict[str, Facts]:
    return {facts.caption: facts for facts in all_facts()}


def parse(caption: str) -> Facts:
    """Read a caption back into its facts.

    Args:
        caption: A caption of the world, exactly as `Facts.caption` writes it.

    Returns:
        The facts.

    Raises:
        ValueError: If the caption is not one of the world's.
    """
    facts = _facts_of_captions().get(caption)
    if facts is None:
        raise ValueError(f"not a caption of the demo world: {caption!r}")
    return facts


def is_caption(text: str) -> bool:
    """Whether a text is a caption of the world, exactly as `Facts.caption` writes it."""
    return text in _facts_of_captions()


def words() -> list[str]:
    """Every word that a caption of the world can hold, sorted."""
    return sorted({word for caption in _facts_of_captions() for word in caption.split()})


def is_unseen(caption: str) -> bool:
    """Whether a caption is kept from the teacher's training: one in five, chosen by its hash."""
    digest = hashlib.sha256(caption.encode()).digest()
    return int.from_bytes(digest[:8], "big") < UNSEEN_SHARE * 2**64


def unseen_captions(count: int, seed: int = 0) -> list[str]:
    """Distinct captions that the teacher's training never saw, balanced over the categories.

    The categories take turns, so each gets the same number until a small one is used up.

    Args:
        count: Number of captions.
        seed: Chooses which, and their order.

    Returns:
        The captions.

    Raises:
        ValueError: If the world has fewer unseen captions.
    """
    remaining: dict[str, list[str]] = {category: [] for category in CATEGORIES}
    for facts in all_facts():
        if is_unseen(facts.caption):
            remaining[facts.category].append(facts.caption)
    total = sum(map(len, remaining.values()))
    if count > total:
        raise ValueError(f"the demo world has {total} unseen captions, not {count}")
    chance = random.Random(f"unseen captions {seed}")
    for captions in remaining.values():
        chance.shuffle(captions)
    chosen: list[str] = []
    while len(chosen) < count:
        chosen += [captions.pop() for captions in remaining.values() if captions]
    return chosen[:count]
