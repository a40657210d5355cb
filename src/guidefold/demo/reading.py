"""Read the things and the background that a picture shows.

The background's colour is the median along the border. What differs from it falls into connected
parts, and each part becomes a thing: its colour is the nearest of the world's, its shape the one
whose outline overlaps it best once both have the same area and centroid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from guidefold.demo.captions import COLOURS
from guidefold.demo.shapes import SHAPES, coverage, unit_moments

UNKNOWN = "unknown"
_FEWEST_PIXELS = 12  # smaller specks are noise, not things
_CONTRAST, _CONTRAST_SHARE = 0.15, 0.25  # of the background, and of the farthest pixel
_FARTHEST_COLOUR = 0.3  # from the palette, in RGB of 0..1
_LIGHT = 0.78  # every channel of a plain background is above
_LEAST_OVERLAP = 0.74
_STRAY_DISTANCE, _STRAY_SHARE = 0.25, 0.08  # pixels of another colour within a thing
_GRID, _GRID_REACH = 28, 1.0  # templates: pixels, and half width in units of sqrt(area)
_TEMPLATE_TURNS = (-0.16, -0.08, 0.0, 0.08, 0.16)


@dataclass(frozen=True, slots=True)
class SeenThing:
    """A thing found in a picture.

    Attributes:
        shape: A key of `SHAPES`, or `UNKNOWN`.
        colour: A key of `COLOURS`, or `UNKNOWN`.
        radius: The radius in pixels with which the world would draw it.
        x: Centroid in pixels, to the right.
        y: Centroid in pixels, downwards.
    """

    shape: str
    colour: str
    radius: float
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Reading:
    """The things that a picture shows, and its background's colour, empty for plain light."""

    things: tuple[SeenThing, ...]
    background: str


def _backgrounds(pictures: Tensor) -> Tensor:
    top, bottom = pictures[:, :, :2].flatten(2), pictures[:, :, -2:].flatten(2)
    left, right = pictures[..., :2].flatten(2), pictures[..., -2:].flatten(2)
    return torch.cat([top, bottom, left, right], dim=2).median(dim=2).values


def _parts(foreground: Tensor) -> Tensor:
    """Number connected parts: every pixel of a part gets the part's largest pixel index.

    Args:
        foreground: bool, `(batch, height, width)`.

    Returns:
        int64 of the same shape; 0 outside.
    """
    height, width = foreground.shape[1:]
    # float32 holds whole numbers exactly up to 2**24
    index = torch.arange(1, height * width + 1, dtype=torch.float32).reshape(height, width)
    labels = foreground * index
    # the largest index spreads by one pixel a turn, diagonals included, until nothing changes
    while True:
        across = F.max_pool2d(labels[:, None], (1, 3), 1, (0, 1))
        spread = F.max_pool2d(across, (3, 1), 1, (1, 0))[:, 0] * foreground
        if torch.equal(spread, labels):
            return labels.long()
        labels = spread


@lru_cache(maxsize=1)
def _palette() -> Tensor:
    return torch.tensor(list(COLOURS.values())) / 255


def _name_colour(colour: Tensor) -> str:
    distance = (_palette() - colour).norm(dim=1)
    return list(COLOURS)[int(distance.argmin())] if distance.min() < _FARTHEST_COLOUR else UNKNOWN


def _name_background(colour: Tensor) -> str:
    return "" if bool((colour > _LIGHT).all()) else _name_colour(colour)


def _grid_axis() -> Tensor:
    return (torch.arange(_GRID) + 0.5) / _GRID * 2 * _GRID_REACH - _GRID_REACH


@lru_cache(maxsize=1)
def _templates() -> Tensor:
    """Every shape, slightly turned either way, at area 1 around its centroid.

    Returns:
        float32, `(shapes, turns, _GRID**2)`.
    """
    axis, scale = _grid_axis(), 16.0  # about the size, in pixels, of a thing in a picture
    y, x = torch.meshgrid(axis * scale, axis * scale, indexing="ij")
    drawn = []
    for name in SHAPES:
        area, centre_x, centre_y = unit_moments(name)
        radius = torch.tensor(scale / math.sqrt(area))
        for turn in _TEMPLATE_TURNS:
            cos, sin = math.cos(turn), math.sin(turn)
            shift_x = (cos * centre_x - sin * centre_y) * radius
            shift_y = (sin * centre_x + cos * centre_y) * radius
            drawn.append(coverage(name, x + shift_x, y + shift_y, radius, torch.tensor(turn)))
    return torch.stack(drawn).reshape(len(SHAPES), len(_TEMPLATE_TURNS), -1)


def _overlaps(alpha: Tensor, area: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Best overlap (intersection over union) of each part with each shape.

    Args:
        alpha: Coverage of the parts, 0..1, `(parts, height, width)`.
        area: Its sum, `(parts,)`.
        x: Its centroid, `(parts,)`.
        y: Its centroid, `(parts,)`.

    Returns:
        0..1, `(parts, shapes)`.
    """
    size, axis, side = alpha.shape[-1], _grid_axis(), area.sqrt()[:, None]
    # pixel centres lie at -1 + (2 i + 1) / size for grid_sample without aligned corners
    columns = (2 * (x[:, None] + axis * side) + 1) / size - 1
    rows = (2 * (y[:, None] + axis * side) + 1) / size - 1
    shape = (len(alpha), _GRID, _GRID)
    grid = torch.stack([columns[:, None].expand(shape), rows[:, :, None].expand(shape)], dim=-1)
    seen = F.grid_sample(alpha[:, None], grid, align_corners=False).reshape(len(alpha), 1, 1, -1)
    templates = _templates()
    both = torch.minimum(seen, templates).sum(dim=-1)
    either = torch.maximum(seen, templates).sum(dim=-1)
    return (both / either).amax(dim=-1)


def _read_part(
    picture: Tensor, behind: Tensor, part: Tensor, others: Tensor
) -> tuple[Tensor, Tensor]:
    """Colour and coverage of one part.

    Args:
        picture: `(3, height, width)`, 0..1.
        behind: The background's colour, `(3,)`.
        part: bool, `(height, width)`.
        others: bool, `(height, width)`: other parts.

    Returns:
        The colour, `(3,)`, NaN where the part is of several colours, and coverage 0..1,
        `(height, width)`.
    """
    step = picture - behind[:, None, None]
    distance = step.norm(dim=0)
    # the colour is the median of the pixels farthest from the background: none is half covered
    core = part & (distance > 0.7 * distance[part].quantile(0.9))
    colour = picture[:, core].median(dim=1).values
    towards = colour - behind
    # an edge pixel mixes both colours: its coverage is how far it lies along the way between them
    along = torch.einsum("chw,c->hw", step, towards) / towards.square().sum()
    near = F.max_pool2d(part[None].float(), 5, 1, 2)[0].bool() & ~others
    stray = (step - along.clamp(0, 1) * towards[:, None, None]).norm(dim=0) > _STRAY_DISTANCE
    if float(stray[part].float().mean()) > _STRAY_SHARE:
        colour = torch.full_like(colour, math.nan)
    return colour, along.clamp(0, 1) * near


def _things(alphas: list[Tensor], colours: list[Tensor]) -> list[SeenThing]:
    if not alphas:
        return []
    alpha = torch.stack(alphas)
    axis = torch.arange(alpha.shape[-1], dtype=torch.float32)
    area = alpha.sum(dim=(1, 2))
    x, y = (alpha.sum(dim=1) @ axis) / area, (alpha.sum(dim=2) @ axis) / area
    overlap, best = _overlaps(alpha, area, x, y).max(dim=1)
    things, names = [], list(SHAPES)
    for number, colour in enumerate(colours):
        name = names[int(best[number])]
        radius = math.sqrt(float(area[number]) / unit_moments(name)[0])
        shape = name if float(overlap[number]) >= _LEAST_OVERLAP else UNKNOWN
        place = float(x[number]), float(y[number])
        things.append(SeenThing(shape, _name_colour(colour), radius, *place))
    return things


def read_pictures(pictures: Tensor) -> list[Reading]:
    """Read pictures.

    Args:
        pictures: float32 on the CPU, `(batch, 3, 64, 64)`, in 0..1.

    Returns:
        One reading for each.
    """
    behind = _backgrounds(pictures)
    distance = (pictures - behind[:, :, None, None]).norm(dim=1)
    farthest = distance.flatten(1).amax(dim=1)
    threshold = (_CONTRAST_SHARE * farthest).clamp(min=_CONTRAST)
    labels = _parts(distance > threshold[:, None, None])
    owners, alphas, colours = [], [], []
    for number, picture in enumerate(pictures):
        ids, pixels = torch.unique(labels[number], return_counts=True)
        for part_id in ids[(ids > 0) & (pixels >= _FEWEST_PIXELS)]:
            part = labels[number] == part_id
            others = (labels[number] > 0) & ~part
            colour, alpha = _read_part(picture, behind[number], part, others)
            owners.append(number)
            alphas.append(alpha)
            colours.append(colour)
    things = _things(alphas, colours)
    return [
        Reading(
            tuple(thing for thing, owner in zip(things, owners, strict=True) if owner == number),
            _name_background(behind[number]),
        )
        for number in range(len(pictures))
    ]
