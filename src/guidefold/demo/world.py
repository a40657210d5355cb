"""Draw pictures of the world: 64 x 64, RGB, a batch at a time, on any device.

Facts become rows of integers, rows become places and sizes, and those become pictures through the
signed distances of `shapes`. Objects never touch: each has its own part of the picture, or its own
quarter. All chance comes from one seed, drawn on the CPU, so that every device draws the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from guidefold.demo.captions import (
    CATEGORIES,
    COLOURS,
    RELATIONS,
    SIZES,
    Facts,
    all_facts,
    is_unseen,
)
from guidefold.demo.shapes import REACH, SHAPES, coverage

PICTURE_SIZE = 64
CENTRE = (PICTURE_SIZE - 1) / 2
SIZE_LIMIT = 10.5
"""The radius, in pixels, that divides small things from large ones."""

CELLS = 16
"""Cells along each side for which `draw_labels` gives labels: one for each latent."""

_MOST_THINGS = 4
_DRAWS = 6  # per thing: radius, turn, two for its place, its quarter, its tint
_COLUMNS = (
    *("category", "count", "shape 1", "colour 1", "size 1"),
    *("shape 2", "colour 2", "size 2", "relation", "background"),
)
_SHAPE_NAMES, _COLOUR_NAMES = tuple(SHAPES), tuple(COLOURS)
_TURNS = {"circle": 0.0, "square": 0.12, "triangle": 0.15, "star": 0.2, "heart": 0.15, "cross": 0.1}
# what training draws of each category: more of those that hold many captions, or were learned last
_SHARES = {
    "single object": 0.08,
    "two objects": 0.2,
    "counting": 0.09,
    "colours": 0.2,
    "position": 0.2,
    "attribute binding": 0.23,
}
# (category, size) -> smallest and largest radius in pixels; pairs and counted things have less room
_RADII = {
    ("single object", ""): (9.5, 16.0),
    ("single object", "small"): (8.5, 9.5),
    ("single object", "large"): (13.0, 17.0),
    ("two objects", ""): (9.0, 11.5),
    ("counting", ""): (8.5, 10.5),
    ("colours", ""): (9.5, 16.0),
    ("position", ""): (9.0, 11.5),
    ("attribute binding", "small"): (8.5, 9.5),
    ("attribute binding", "large"): (11.5, 12.0),
}


def _row(facts: Facts) -> list[int]:
    """Facts as integers, in the order of `_COLUMNS`; -1 where a column does not apply."""
    row = [CATEGORIES.index(facts.category), len(facts.things)]
    distinct = list(dict.fromkeys(facts.things))
    for thing in distinct:
        shape, colour = _SHAPE_NAMES.index(thing.shape), _COLOUR_NAMES.index(thing.colour)
        row += [shape, colour, SIZES.index(thing.size)]
    row += [-1] * (3 * (2 - len(distinct)))
    row.append(RELATIONS.index(facts.relation) if facts.relation else -1)
    row.append(_COLOUR_NAMES.index(facts.background) if facts.background else -1)
    return row


@lru_cache(maxsize=1)
def fact_table() -> Tensor:
    """All facts of the world as integers.

    Returns:
        int64, `(facts, columns)`, in the order of `all_facts()`.
    """
    return torch.tensor([_row(facts) for facts in all_facts()])


@lru_cache(maxsize=1)
def seen_ids() -> tuple[Tensor, ...]:
    """For each category, the indices into `all_facts()` that training may see, int64."""
    ids: dict[str, list[int]] = {category: [] for category in CATEGORIES}
    for index, facts in enumerate(all_facts()):
        if not is_unseen(facts.caption):
            ids[facts.category].append(index)
    return tuple(torch.tensor(ids[category]) for category in CATEGORIES)


def draw_seen_facts(count: int, generator: torch.Generator) -> Tensor:
    """Facts for training: the category first, by `_SHARES`, then one of its seen facts.

    Args:
        count: Number of facts.
        generator: A CPU generator.

    Returns:
        Indices into `all_facts()`, int64, `(count,)`.
    """
    shares = torch.tensor([_SHARES[name] for name in CATEGORIES])
    category = torch.multinomial(shares, count, replacement=True, generator=generator)
    chance = torch.rand(count, generator=generator)
    picked = torch.empty(count, dtype=torch.long)
    for number, ids in enumerate(seen_ids()):
        here = category == number
        picked[here] = ids[(chance[here] * len(ids)).long()]
    return picked


def spoil(ids: Tensor, generator: torch.Generator) -> Tensor:
    """Captions that are partly wrong, as on the web: one or two facts are replaced by others.

    Args:
        ids: Indices into `all_facts()`, int64, `(batch,)`.
        generator: A CPU generator.

    Returns:
        Indices of seen facts of the same category that differ in one or two columns.
    """
    table, seen = fact_table(), torch.zeros(len(all_facts()), dtype=torch.bool)
    seen[torch.cat(seen_ids())] = True
    spoiled = torch.empty_like(ids)
    for place, index in enumerate(ids.tolist()):
        differing = (table != table[index]).sum(dim=1)
        same_category = table[:, 0] == table[index, 0]
        near = (seen & same_category & (differing > 0) & (differing <= 2)).nonzero().flatten()
        spoiled[place] = near[torch.randint(len(near), (1,), generator=generator)]
    return spoiled


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things lie: each tensor is `(batch, things)`; `present` is boolean, the rest float."""

    x: Tensor
    y: Tensor
    radius: Tensor
    turn: Tensor
    present: Tensor
    shape: Tensor


@lru_cache(maxsize=1)
def _radius_table() -> Tensor:
    table = torch.zeros(len(CATEGORIES), len(SIZES), 2)
    for (category, size), (low, high) in _RADII.items():
        table[CATEGORIES.index(category), SIZES.index(size)] = torch.tensor([low, high])
    return table


def _things_of(rows: Tensor, first_column: int) -> Tensor:
    """A column of each of the four things: counted things repeat the first."""
    first, second = rows[:, first_column], rows[:, first_column + 3]
    second = torch.where(second < 0, first, second)
    return torch.stack([first, second, first, first], dim=1)


def _places(rows: Tensor, radius: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Centres of the things, `(batch, 4)` each, so that no two of them touch."""
    category, relation = rows[:, 0], rows[:, 8]
    across, along = 2 * draws[..., 2] - 1, 2 * draws[..., 3] - 1
    room = (PICTURE_SIZE / 2 - 2.5 - REACH * radius).clamp(min=0)
    half_room = (PICTURE_SIZE / 4 - 1.5 - REACH * radius).clamp(min=0)
    # counted things: each in a quarter of its own
    quarter = draws[..., 4].argsort(dim=1)
    counted_x = (quarter % 2) * 32 - 16 + across * half_room
    counted_y = (quarter // 2) * 32 - 16 + along * half_room
    # pairs: each in a half of its own; without a relation, one is drawn
    drawn = (draws[:, 0, 4] * len(RELATIONS)).long()
    direction = torch.where(relation < 0, drawn, relation)[:, None]
    side = torch.tensor([-1.0, 1.0, 1.0, -1.0]) * torch.where(direction % 2 == 0, 1.0, -1.0)
    pair_along, pair_across = side * 16 + along * half_room, across * room.clamp(max=10)
    upright = direction < 2
    pair_x = torch.where(upright, pair_across, pair_along)
    pair_y = torch.where(upright, pair_along, pair_across)
    counting = (category == CATEGORIES.index("counting"))[:, None]
    alone = (rows[:, 1] == 1)[:, None]
    x = torch.where(counting, counted_x, torch.where(alone, across * room, pair_x))
    y = torch.where(counting, counted_y, torch.where(alone, along * room, pair_y))
    return x + CENTRE, y + CENTRE


def _lay_out(rows: Tensor, draws: Tensor) -> _Layout:
    shape = _things_of(rows, 2)
    limits = _radius_table()[rows[:, :1], _things_of(rows, 4)]
    radius = limits[..., 0] + (limits[..., 1] - limits[..., 0]) * draws[..., 0]
    largest_turn = torch.tensor([_TURNS[name] for name in _SHAPE_NAMES])[shape]
    turn = largest_turn * (2 * draws[..., 1] - 1)
    x, y = _places(rows, radius, draws)
    present = torch.arange(_MOST_THINGS) < rows[:, 1:2]
    return _Layout(x, y, radius, turn, present, shape)


def _paint(rows: Tensor, draws: Tensor, tints: Tensor) -> tuple[Tensor, Tensor]:
    """Colours of the things, `(batch, 4, 3)`, and of the background, `(batch, 3)`, in 0..1."""
    palette = torch.tensor(list(COLOURS.values())) / 255
    things = palette[_things_of(rows, 3)] + 0.06 * (draws[..., 5:6] - 0.5)
    light = 0.87 + 0.1 * tints[:, :1] + 0.03 * (tints[:, 1:] - 0.5)
    named = palette[rows[:, 9]] + 0.06 * (tints[:, 1:] - 0.5)
    behind = torch.where(rows[:, 9:] < 0, light, named)
    return things.clamp(0, 1), behind.clamp(0, 1)


def _covered(layout: _Layout, axis: Tensor) -> Iterator[tuple[int, tuple[Tensor, Tensor], Tensor]]:
    """Yield for each shape its number, the things that have it, and what they cover.

    Args:
        layout: Places and sizes of the things.
        axis: Positions along both axes, in pixels; on the device to draw on.

    Yields:
        The number among `SHAPES`; picture and thing as two int64 `(found,)`; coverage 0..1,
        `(found, points, points)`.
    """
    for number, name in enumerate(_SHAPE_NAMES):
        picture, thing = (layout.present & (layout.shape == number)).nonzero(as_tuple=True)
        found = (picture, thing)
        x, y, radius, turn = (
            part[found].to(axis.device)[:, None, None]
            for part in (layout.x, layout.y, layout.radius, layout.turn)
        )
        yield number, found, coverage(name, axis - x, axis[:, None] - y, radius, turn)


def _draw_chance(ids: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of facts, and all random numbers of their pictures."""
    generator = torch.Generator().manual_seed(seed)
    rows = fact_table()[ids.cpu()]
    draws = torch.rand(len(rows), _MOST_THINGS, _DRAWS, generator=generator)
    return rows, draws, torch.rand(len(rows), 4, generator=generator)


def draw_pictures(ids: Tensor, seed: int, device: str | torch.device = "cpu") -> Tensor:
    """Draw one picture for each of the facts.

    Args:
        ids: Indices into `all_facts()`, int64, `(batch,)`.
        seed: Decides places, sizes, turns and tints; the same pictures on every device.
        device: The device to draw on.

    Returns:
        float32, `(batch, 3, 64, 64)`, in 0..1.
    """
    rows, draws, tints = _draw_chance(ids, seed)
    colours, behind = (part.to(device) for part in _paint(rows, draws, tints))
    pictures = behind[:, :, None, None].expand(-1, -1, PICTURE_SIZE, PICTURE_SIZE).clone()
    axis = torch.arange(PICTURE_SIZE, dtype=torch.float32, device=device)
    for _, found, covered in _covered(_lay_out(rows, draws), axis):
        picture, thing = (part.to(device) for part in found)
        step = colours[picture, thing] - behind[picture]
        pictures.index_add_(0, picture, covered[:, None] * step[:, :, None, None])
    return pictures.clamp_(0, 1)


def draw_labels(ids: Tensor, seed: int) -> Tensor:
    """Labels of the pictures that `draw_pictures` draws of the same facts and seed, by cell.

    Args:
        ids: Indices into `all_facts()`, int64, `(batch,)`.
        seed: As for `draw_pictures`.

    Returns:
        int64, `(batch, 2, CELLS, CELLS)`: the shape at the middle of each cell, 0 for none, and
        its colour or the background's, 0 for plain light.
    """
    rows, draws, _ = _draw_chance(ids, seed)
    named = _things_of(rows, 3)
    labels = torch.zeros(len(rows), 2, CELLS, CELLS, dtype=torch.long)
    labels[:, 1] = (rows[:, 9] + 1)[:, None, None]
    axis = (torch.arange(CELLS) + 0.5) * (PICTURE_SIZE / CELLS) - 0.5
    for number, (picture, thing), covered in _covered(_lay_out(rows, draws), axis):
        which, row, column = (covered > 0.5).nonzero(as_tuple=True)
        labels[picture[which], 0, row, column] = number + 1
        labels[picture[which], 1, row, column] = named[picture, thing][which] + 1
    return labels


def ids_of(facts: Sequence[Facts]) -> Tensor:
    """Indices of facts into `all_facts()`, int64, `(len(facts),)`."""
    index = {known: number for number, known in enumerate(all_facts())}
    return torch.tensor([index[known] for known in facts])
