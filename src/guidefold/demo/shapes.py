"""The shapes of the world, as signed distance functions.

A distance is negative inside a shape and positive outside, in pixels; a picture is anti-aliased by
letting the coverage of a pixel fall from 1 to 0 while the distance goes from -1/2 to 1/2. The
functions take coordinates relative to the shape's centre, x to the right and y down, as in a
picture, and a radius: about half the width of the shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

SignedDistance = Callable[[Tensor, Tensor, Tensor], Tensor]


def _circle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.hypot(x, y) - radius


def _box(x: Tensor, y: Tensor, half_width: Tensor, half_height: Tensor) -> Tensor:
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)


def _square(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return _box(x, y, 0.9 * radius, 0.9 * radius)


def _cross(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    long, short = 1.08 * radius, 0.36 * radius
    return torch.minimum(_box(x, y, long, short), _box(x, y, short, long))


def _pointed(x: Tensor, y: Tensor, tip: Tensor, points: int, inner: float) -> Tensor:
    """Distance to a figure with `points` tips, one of them straight up.

    The plane is folded into one half sector, where the outline is a single straight edge from a
    tip, at distance `tip`, to the notch between two tips, at distance `inner * tip`.
    """
    half_sector = math.pi / points
    angle = torch.atan2(x, -y)
    folded = (torch.remainder(angle + half_sector, 2 * half_sector) - half_sector).abs()
    distance = torch.hypot(x, y)
    edge_x = inner * math.cos(half_sector) - 1.0
    edge_y = inner * math.sin(half_sector)
    length = math.hypot(edge_x, edge_y)
    along_x = distance * torch.cos(folded) - tip
    along_y = distance * torch.sin(folded)
    return (along_x * edge_y - along_y * edge_x) / length


def _triangle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return _pointed(x, y - 0.25 * radius, 1.2 * radius, points=3, inner=0.5)


def _star(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return _pointed(x, y, 1.2 * radius, points=5, inner=0.45)


def _heart(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """A square on its tip, with a half circle on each of its two upper sides."""
    diagonal = 0.92 * radius
    y = y - 0.1 * radius
    tilted = (x.abs() + y.abs() - diagonal) / math.sqrt(2.0)
    lobe = torch.hypot(x.abs() - 0.5 * diagonal, y + 0.5 * diagonal) - diagonal / math.sqrt(2.0)
    return torch.minimum(tilted, lobe)


SHAPES: dict[str, SignedDistance] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
}
REACH = 1.22
"""No point of a shape lies farther from its centre, along x or y, than this times its radius."""


def coverage(shape: str, x: Tensor, y: Tensor, radius: Tensor, turn: Tensor) -> Tensor:
    """How much of each pixel a shape covers.

    Args:
        shape: A key of `SHAPES`.
        x: Pixel centres relative to the shape's centre, to the right, in pixels; any shape.
        y: The same, downwards.
        radius: About half the shape's width in pixels; broadcast against `x`.
        turn: Rotation in radians, clockwise in the picture; broadcast against `x`.

    Returns:
        Coverage between 0 and 1, of the broadcast shape.
    """
    cos, sin = torch.cos(turn), torch.sin(turn)
    distance = SHAPES[shape](cos * x + sin * y, cos * y - sin * x, radius)
    return (0.5 - distance).clamp(0.0, 1.0)


@lru_cache(maxsize=len(SHAPES))
def unit_moments(shape: str) -> tuple[float, float, float]:
    """Area and centroid of a shape of radius 1, found by drawing it large.

    Args:
        shape: A key of `SHAPES`.

    Returns:
        The area, and x and y of the centroid relative to the shape's centre.
    """
    size, radius = 512, 200.0
    axis = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    covered = coverage(shape, x, y, torch.tensor(radius), torch.tensor(0.0))
    area = float(covered.sum())
    centre_x, centre_y = float((covered * x).sum()) / area, float((covered * y).sum()) / area
    return area / radius**2, centre_x / radius, centre_y / radius
