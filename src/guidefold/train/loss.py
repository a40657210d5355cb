"""The mathematics of the loss: tensors and numbers, no settings. Equations: docs/method.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from typing import TypeVar

import torch

Row = TypeVar("Row")

TINY = 1e-12
# Where guidance is this much smaller than at its largest, it is off, and what is left is rounding.
OFF_SHARE = 1e-5


def squared_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each sample, in float32.

    Args:
        output: Shape (batch, ...).
        target: The same shape.

    Returns:
        Shape (batch,).
    """
    return (output.float() - target.float()).square().flatten(1).mean(1)


@dataclass(frozen=True)
class GuidanceSize:
    """The size of guidance at each noise level.

    ``D(t) = E|(target - unguided) / (g - origin)|^2``

    Log-linear between the centres of bins that hold equally many measured states; constant outside.
    Noise levels at which the teacher is not guided have no size: there the nearest level with a
    size counts.

    Attributes:
        timesteps: Bin centres, ascending.
        sizes: D at the centres, positive.
    """

    timesteps: tuple[float, ...]
    sizes: tuple[float, ...]

    @staticmethod
    def measure(timesteps: Sequence[float], sizes: Sequence[float], bins: int = 16) -> GuidanceSize:
        """Fit to measured states.

        Args:
            timesteps: The states' timesteps, in any order.
            sizes: ``|(target - unguided) / (g - origin)|^2`` at each state.
            bins: The most bins to make; each holds at least four states if there are as many.
        """
        pairs = sorted(zip(timesteps, sizes, strict=True))
        count = max(1, min(bins, len(pairs) // 4))
        by_centre: dict[float, list[float]] = {}
        for group in _equal_groups(pairs, count):  # few timesteps: several groups have one centre
            centre = sum(t for t, _ in group) / len(group)
            by_centre.setdefault(centre, []).extend(size for _, size in group)
        means = {centre: sum(own) / len(own) for centre, own in by_centre.items()}
        least = OFF_SHARE * max(means.values())
        centres = {t: max(mean, TINY) for t, mean in means.items() if mean >= least}
        return GuidanceSize(tuple(centres), tuple(centres.values()))

    def at(self, timestep: float) -> float:
        """D at a timestep."""
        if timestep <= self.timesteps[0]:
            return self.sizes[0]
        for k in range(1, len(self.timesteps)):
            low, high = self.timesteps[k - 1], self.timesteps[k]
            if timestep <= high:
                part = (timestep - low) / (high - low)
                return math.exp(
                    (1 - part) * math.log(self.sizes[k - 1]) + part * math.log(self.sizes[k])
                )
        return self.sizes[-1]


@dataclass(frozen=True)
class StepSize:
    """The size of what a few-step student has to learn at each of its steps.

    ``E|target - unguided|^2 = S(t) + s^2 G(t)``, by timestep: the error of its longer steps, and
    guidance, which grows with the strength s.

    Attributes:
        steps: S at each of the student's timesteps.
        guidance: G at each of them.
    """

    steps: Mapping[float, float]
    guidance: Mapping[float, float]

    @staticmethod
    def measure(
        timesteps: Sequence[float], strengths: Sequence[float], errors: Sequence[float]
    ) -> StepSize:
        """Average measured errors of each timestep.

        Args:
            timesteps: The states' timesteps, in any order.
            strengths: The student's strength at each state. Where none is 0, S counts as 0: at one
                strength alone the two cannot be told apart.
            errors: ``|target - unguided|^2`` at each state.
        """
        groups: dict[float, list[tuple[float, float]]] = {}
        for timestep, strength, error in zip(timesteps, strengths, errors, strict=True):
            groups.setdefault(timestep, []).append((strength**2, error))
        steps, guidance = {}, {}
        for timestep, group in groups.items():
            at_zero = [error for squared, error in group if squared == 0]
            own = steps[timestep] = sum(at_zero) / max(len(at_zero), 1)
            squares = [(squared, error) for squared, error in group if squared > 0]
            added = sum(error - own for _, error in squares)
            guidance[timestep] = max(added, 0) / max(sum(s for s, _ in squares), TINY)
        return StepSize(steps, guidance)

    def at(self, timestep: float, strength: float, floor: float) -> float:
        """The size at the nearest of the timesteps.

        Args:
            timestep: The sample's.
            strength: The sample's.
            floor: The lowest strength that counts.
        """
        nearest = min(self.steps, key=lambda t: abs(t - timestep))
        squared = max(abs(strength), floor) ** 2
        return max(self.steps[nearest] + squared * self.guidance[nearest], TINY)


def loss_scale(size: float, strength: float, floor: float, span: float) -> float:
    """The divisor of a sample's squared error that makes the loss residual guidance.

    ``max(|s|, floor)^2 * (g_ref - origin)^2 * D(t)``

    Args:
        size: D at the sample's timestep.
        strength: The sample's strength s.
        floor: Lowest strength to divide by; near 0 there is too little guidance to divide by.
        span: ``g_ref - origin``.
    """
    return max(max(abs(strength), floor) ** 2 * span**2 * size, TINY)


@dataclass(frozen=True)
class Level:
    """Residual guidance in a range of timesteps.

    Attributes:
        low: Lowest timestep in the range.
        high: Highest timestep in the range.
        residual: ``E|student - target|^2 / E|unguided - target|^2``: 1 nothing folded, 0 all.
        states: Number of states in the range.
    """

    low: float
    high: float
    residual: float
    states: int


def residual_by_level(
    timesteps: Sequence[float],
    student_errors: Sequence[float],
    unguided_errors: Sequence[float],
    levels: int = 5,
) -> list[Level]:
    """Residual guidance per noise level, from the least noise to the most.

    Levels at which the teacher is not guided are left out: the ratio is not defined there.

    Args:
        timesteps: The states' timesteps.
        student_errors: ``|student - target|^2`` at each.
        unguided_errors: ``|unguided - target|^2`` at each.
        levels: Number of ranges, of equally many states each; of no more timesteps than that, as
            of a few-step student, each is one.
    """
    rows = sorted(zip(timesteps, student_errors, unguided_errors, strict=True))
    groups: list[Sequence[tuple[float, float, float]]]
    groups = [list(group) for _, group in groupby(rows, key=itemgetter(0))]
    if len(groups) > levels:
        groups = _equal_groups(rows, levels)
    sums = [(sum(r[1] for r in group), sum(r[2] for r in group)) for group in groups]
    least = OFF_SHARE * max(unguided for _, unguided in sums)
    return [
        Level(group[0][0], group[-1][0], student / max(unguided, TINY), len(group))
        for group, (student, unguided) in zip(groups, sums, strict=True)
        if unguided >= least
    ]


def mean_residual(levels: Sequence[Level]) -> float:
    """Residual guidance, averaged evenly over the noise levels."""
    return sum(level.residual for level in levels) / len(levels)


def learning_rate(step: int, steps: int, peak: float, warmup: int, schedule: str) -> float:
    """The learning rate of a step; a function of the step alone, so there is nothing to save.

    Args:
        step: Steps done before.
        steps: Steps of the whole training.
        peak: The learning rate after the warm-up.
        warmup: Number of steps of linear rise.
        schedule: ``constant``, or ``cosine`` down to a hundredth of the peak.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    part = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(part, 1.0))))


def _equal_groups(rows: Sequence[Row], count: int) -> list[Sequence[Row]]:
    """Cut rows into consecutive groups of equal size, or as nearly as their number allows."""
    edges = [round(k * len(rows) / count) for k in range(count + 1)]
    return [rows[a:b] for a, b in pairwise(edges)]
