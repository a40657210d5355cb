"""The dial: which strength of the adapter stands for which guidance scale, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

from guidefold.ground import InputError, evenly_chosen

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)  # of the pictures that show a dial
SHOWN_DIGITS = 2  # after the point, of guidance scales on pages
STRENGTH_MARGIN = 1.25  # usable strengths reach this factor past the highest trained one
DIAL_TOLERANCE = 0.2  # difference of measured and nominal dial, as a share of the span


@dataclass(frozen=True)
class Mark:
    """One measured point of a dial.

    Attributes:
        guidance: A guidance scale.
        strength: The strength at which the student comes nearest to the teacher at that scale.
        residual: The residual guidance at that strength.
    """

    guidance: float
    strength: float
    residual: float


class Compared(NamedTuple):
    """The settings at which pictures of teacher and student are compared.

    Attributes:
        guidance: The teacher's guidance scale.
        strength: The student's strength.
    """

    guidance: float
    strength: float


@dataclass(frozen=True)
class Dial:
    """The map between the adapter's strength and the guidance scale, in both directions.

    It holds two maps. The *nominal* one is the straight line that training aims at:
    ``g = origin + s (g_ref - origin)``. The *measured* one runs through the marks, for a student
    that has folded only a part of the guidance needs more strength than the line says.

    Attributes:
        origin: The guidance scale at strength 0, where the student is the unguided teacher.
        g_ref: The guidance scale at strength 1, by the nominal dial.
        trained: The lowest and the highest guidance scale that were recorded.
        marks: Measured points of rising guidance and rising strength; empty before measuring.
        proportional: Whether training sets the strength by the nominal dial; otherwise it is 1 at
            every guidance scale (``adapter.dial = false``).
    """

    origin: float
    g_ref: float
    trained: tuple[float, float]
    marks: tuple[Mark, ...] = ()
    proportional: bool = True

    @staticmethod
    def from_json(metadata: Mapping[str, Any]) -> Dial:
        """Read a dial from a written adapter's metadata.

        Args:
            metadata: The content of ``guidefold.json``, or the same in a file's metadata.
        """
        low, high = metadata["guidance_range"]
        marks = tuple(Mark(**mark) for mark in metadata.get("dial_table", []))
        return Dial(
            metadata["findings"]["origin"], metadata["g_ref"], (low, high), marks, metadata["dial"]
        )

    def to_json(self) -> dict[str, Any]:
        """The dial's fields of ``guidefold.json``; the origin stands among the findings."""
        return {
            "g_ref": self.g_ref,
            "dial": self.proportional,
            "dial_table": [asdict(mark) for mark in self.marks],
            "guidance_range": list(self.trained),
        }

    @property
    def span(self) -> float:
        """The distance in guidance scale from strength 0 to strength 1."""
        return self.g_ref - self.origin

    def nominal_strength(self, guidance: float) -> float:
        """The strength that stands for a guidance scale: ``(g - origin) / (g_ref - origin)``.

        Source: classifier-free guidance is linear in g (Ho & Salimans 2022, eq. 6), and so is a
        LoRA in its strength.
        """
        return (guidance - self.origin) / self.span

    def nominal_guidance(self, strength: float) -> float:
        """The guidance scale that a strength stands for: ``origin + s (g_ref - origin)``."""
        return self.origin + strength * self.span

    def trained_strength(self, guidance: float) -> float:
        """The strength at which the student is trained on targets of a guidance scale."""
        return self.nominal_strength(guidance) if self.proportional else 1.0

    @property
    def strongest(self) -> float:
        """The highest strength that the adapter is trained at."""
        return self.trained_strength(self.trained[1])

    def warning(self, strength: float) -> str:
        """A warning where a strength lies far outside the trained ones; empty otherwise."""
        if 0 <= strength <= STRENGTH_MARGIN * max(self.strongest, 1.0):
            return ""
        return (
            f"Beware: strength {strength:g} is outside 0 to {self.strongest:.3g}, where the "
            "adapter was trained."
        )

    def measured_strength(self, guidance: float) -> float:
        """The strength at which the student is nearest to a guidance scale, as measured.

        Raises:
            InputError: The scale lies outside the marks, or there are none.
        """
        if not self.marks:
            raise InputError(
                f"guidance {guidance:g}: this adapter's dial has not been measured",
                "Measure it with 'guidefold export RUN', after longer training if it cannot; "
                "or give a strength in place of the scale.",
            )
        found = _between(self._points(), guidance)
        if found is None:
            raise InputError(
                f"guidance {guidance:g}: the adapter's dial is measured from {self.origin:.3g} to "
                f"{self.marks[-1].guidance:.3g}",
                "Choose a scale between, or give a strength. Longer training (distill.steps) "
                "reaches further, up to the scales that were recorded (record.guidance).",
            )
        return found

    def measured_guidance(self, strength: float) -> float:
        """The guidance scale that a strength stands for: as measured, where the marks reach.

        Beyond them it is the nominal scale, but no less than the last mark's: a higher strength
        never stands for a lower scale. Pages, cards and pictures all show this one.
        """
        found = _between([(s, g) for g, s in self._points()], strength)
        if found is not None:
            return found
        last = self.marks[-1].guidance if self.marks and strength > 0 else -math.inf
        return max(self.nominal_guidance(strength), last)

    @property
    def measured_otherwise(self) -> float | None:
        """The measured guidance scale of strength 1, if it differs from ``g_ref``.

        Infinite if the marks end below strength 1; None if the two agree within
        :data:`DIAL_TOLERANCE`, or nothing was measured.
        """
        if not self.marks:
            return None
        reached = self.marks[-1].strength >= 1
        measured = self.measured_guidance(1.0) if reached else math.inf
        return None if abs(measured - self.g_ref) <= DIAL_TOLERANCE * self.span else measured

    @property
    def stands_for(self) -> str:
        """The guidance scale of strength 1 in words: as measured, and as trained if other."""
        if not self.marks:
            return f"guidance {self.g_ref:g}"
        last = self.marks[-1]
        text = f"{self.measured_guidance(1.0):.3g}" if last.strength >= 1 else ""
        if text == f"{self.g_ref:.3g}":
            return f"guidance {self.g_ref:g}"
        text = text or f"over {last.guidance:.3g}"
        return f"guidance {text} as measured, {self.g_ref:g} as trained"

    def table(self, most: int) -> list[dict[str, str]]:
        """The dial as rows of formatted numbers: its marks, else the nominal dial.

        Args:
            most: The highest number of rows; of more marks, evenly spaced ones are chosen.

        Returns:
            Rows with equal keys, in which numbers have three digits.
        """
        rows = [
            {"guidance": m.guidance, "strength": m.strength, "residual guidance": m.residual}
            for m in self.marks
        ] or [{"strength": s, "guidance": self.nominal_guidance(s)} for s in STRENGTHS]
        chosen = evenly_chosen(rows, most)
        return [{name: f"{value:.3g}" for name, value in row.items()} for row in chosen]

    def compare_at(self, guidance: float | None, strength: float | None) -> Compared:
        """Complete the guidance scale and the strength that pictures are compared at.

        Args:
            guidance: The teacher's guidance scale; None takes ``g_ref``.
            strength: The student's strength; None takes the one measured for a given scale, or
                without marks the one trained for it.

        Raises:
            InputError: The marks do not reach the scale.
        """
        scale = self.g_ref if guidance is None else guidance
        if strength is None:
            measured = guidance is not None and self.proportional and self.marks
            strength = self.measured_strength(scale) if measured else self.trained_strength(scale)
        return Compared(scale, strength)

    def baked_at(self, strength: float) -> Dial:
        """The dial of an adapter that holds this one's update times ``strength``.

        Its strength 1 is this dial's ``strength``, so every mark's strength is divided by that.
        """
        if strength == 1:
            return self
        # Six digits: interpolating there and back leaves rounding errors in a scale that the user
        # gave (--guidance 6), and the file must name it as it was given.
        g_ref = float(f"{self.measured_guidance(strength):.6g}")
        marks = tuple(replace(mark, strength=mark.strength / strength) for mark in self.marks)
        return replace(self, g_ref=g_ref, marks=marks)

    def _points(self) -> list[tuple[float, float]]:
        """Measured ``(guidance, strength)``, from the origin on."""
        # The origin needs no mark: at strength 0 the student is the unguided teacher, exactly.
        return [(self.origin, 0.0), *((mark.guidance, mark.strength) for mark in self.marks)]


UNKNOWN_DIAL = Dial(0.0, 1.0, (0.0, 1.0))  # of an adapter without guidefold.json


def _between(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """Interpolate linearly between points of rising x; None outside them.

    Guidance and strength both rise from mark to mark, so the same points with their coordinates
    swapped give the inverse map exactly.
    """
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None
