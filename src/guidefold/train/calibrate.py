"""Measure the dial: the strength at which the student comes nearest to each guidance scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

import torch

from guidefold.lora import STRENGTH_MARGIN, Mark
from guidefold.record import StateRef
from guidefold.train.loss import GuidanceSize
from guidefold.train.student import Student

STEPS = 16  # strengths measured above 0, at even distances
NEAREST = 3  # if guidance is not linear, a scale is measured on the nearest third of the states


@dataclass(frozen=True)
class StateResponse:
    """The student's response to its strength at one recorded state, and the teacher's guidance.

    With ``d(s) = student at strength s - student at strength 0`` and ``t = target - student at
    strength 0``, means over the model output's elements. At strength 0 the student is the unguided
    teacher; one of fewer steps has the correction of its longer steps there.

    Attributes:
        timestep: The state's timestep.
        guidance: The guidance scale of the target.
        target: ``|t|^2``.
        student: ``|d(s)|^2`` for each strength.
        agreement: ``<d(s), t>`` for each strength.
    """

    timestep: float
    guidance: float
    target: float
    student: tuple[float, ...]
    agreement: tuple[float, ...]

    def errors(self, ratio: float) -> list[float]:
        """``|d(s) - ratio t|^2`` for each strength."""
        pairs = zip(self.student, self.agreement, strict=True)
        return [own - 2 * ratio * both + ratio**2 * self.target for own, both in pairs]


def strength_grid(highest: float) -> list[float]:
    """Strengths from 0 to a quarter beyond the highest trained strength.

    Args:
        highest: The strength of the highest recorded guidance scale, by the nominal dial.
    """
    top = STRENGTH_MARGIN * max(highest, 1.0)
    return [top * k / STEPS for k in range(STEPS + 1)]


@torch.no_grad()
def calibrate(
    student: Student,
    refs: Sequence[StateRef],
    batch_size: int,
    on_states: Callable[[int], None],
) -> list[Mark]:
    """Measure a trained student's dial on recorded states.

    Args:
        student: The student, its adapter loaded and its frozen weights the teacher's own.
        refs: Recorded states, held-out ones if there are any.
        batch_size: States per call.
        on_states: Progress callback; gets the number of states measured since its last call.

    Returns:
        Marks of rising guidance and rising strength; none if no state was recorded with guidance.
    """
    dial = student.dial
    strengths = strength_grid(dial.nominal_strength(dial.trained[1]))
    responses: list[StateResponse] = []
    for first in range(0, len(refs), batch_size):
        batch = refs[first : first + batch_size]
        responses += measure_responses(student, batch, strengths)
        on_states(len(batch))
    guided = [state for state in responses if state.guidance != dial.origin and state.target > 0]
    scales = [dial.nominal_guidance(s) for s in strengths[1:]]
    return find_marks(guided, strengths, dial.origin, scales, linear=student.findings.linear)


def find_marks(
    responses: Sequence[StateResponse],
    strengths: Sequence[float],
    origin: float,
    scales: Sequence[float],
    *,
    linear: bool,
) -> list[Mark]:
    """Find, for each guidance scale, the strength at which the student is nearest to the teacher.

    ``s(g) = argmin_s E |d(s) - t(g)|^2 / D``, with ``t(g) = (g - origin) / (g' - origin) t(g')``
    if guidance is linear, so that every state serves every scale; otherwise a scale is measured on
    the states whose own scale is nearest. The error is a parabola between strengths, as it is if
    the student is linear in its strength. ``s(g)`` rises wherever ``E <d(s), t> / D`` rises with s.

    The inverse, the scale whose teacher is nearest to a strength, would be biased towards the
    origin by what the student has not learnt, as every regression is (docs/method.md).

    Args:
        responses: Responses at guided states.
        strengths: The strengths measured, at even distances from 0.
        origin: The guidance scale of strength 0.
        scales: Guidance scales, rising, above the origin.
        linear: Whether the target is linear in the guidance scale.

    Returns:
        Marks of rising guidance and strength. A scale gets no mark if its best strength is the
        first or the last one, or not above the best strength of a lower scale.
    """
    if not responses:
        return []
    sizes = [state.target / (state.guidance - origin) ** 2 for state in responses]
    size = GuidanceSize.measure([state.timestep for state in responses], sizes)
    marks = []
    for g in scales:
        used = responses if linear else _nearest(responses, g)
        total = [0.0] * len(strengths)
        for state in used:
            # Linear guidance: what the teacher adds at g is `ratio` times what it added at the
            # recorded scale. Otherwise only states near g serve, as they were recorded.
            span = state.guidance - origin
            ratio = (g - origin) / span if linear else 1.0
            # The size of guidance at this noise level and at g, so that all levels count alike.
            scale = size.at(state.timestep) * (span * ratio) ** 2 * len(used)
            total = [t + e / scale for t, e in zip(total, state.errors(ratio), strict=True)]
        lowest = _lowest(strengths, total)
        if lowest is not None:
            marks.append(Mark(g, *lowest))
    return _rising(marks)


def measure_responses(
    student: Student, refs: Sequence[StateRef], strengths: Sequence[float]
) -> list[StateResponse]:
    """Measure the student's response at recorded states, one for each, in their order.

    Args:
        student: The student.
        refs: The states.
        strengths: The strengths; the first is 0.
    """
    responses: dict[int, StateResponse] = {}
    for batch in student.calls(refs):
        count = len(batch.timesteps)
        outputs = []
        for strength in strengths:
            every = torch.full((count,), strength, device=student.device)
            with student.adapter.student_mode(every, train=False):
                outputs.append(student.predict(batch).float())
        unguided = outputs[0]
        # A sample may have several rows (frames, pixels): all belong to its mean.
        target = (batch.target.float() - unguided).reshape(count, -1)
        squares, agreements = [], []
        for output in outputs:
            change = (output - unguided).reshape(count, -1)
            squares.append(change.square().mean(1).tolist())
            agreements.append((change * target).mean(1).tolist())
        sizes = target.square().mean(1).tolist()
        for k, place in enumerate(batch.places):
            responses[place] = StateResponse(
                batch.timesteps[k],
                batch.guidance[k],
                sizes[k],
                tuple(row[k] for row in squares),
                tuple(row[k] for row in agreements),
            )
    return [responses[place] for place in sorted(responses)]


def _nearest(responses: Sequence[StateResponse], guidance: float) -> list[StateResponse]:
    """The third of the states whose scale is nearest; none for a scale beyond all of them."""
    scales = [state.guidance for state in responses]
    if not min(scales) <= guidance <= max(scales):
        return []
    count = max(1, len(responses) // NEAREST)
    return sorted(responses, key=lambda state: abs(state.guidance - guidance))[:count]


def _lowest(strengths: Sequence[float], errors: Sequence[float]) -> tuple[float, float] | None:
    """``(strength, error)`` at the lowest point of the parabola around the least of the errors."""
    k = min(range(len(errors)), key=errors.__getitem__)
    if k in (0, len(errors) - 1):
        return None
    # The vertex of the parabola through three neighbours lies `part` of a step from the middle one:
    # half the first difference divided by the second one, which is 0 where the error is flat.
    before, here, after = errors[k - 1 : k + 2]
    fall = before - after
    part = 0.5 * fall / max(before - 2 * here + after, 1e-12)
    step = strengths[1] - strengths[0]
    return strengths[k] + part * step, here - 0.25 * fall * part


def _rising(marks: Sequence[Mark]) -> list[Mark]:
    """Marks up to where strength no longer rises with guidance."""
    # A student that collapses at high strength needs less of it for more guidance: no dial there.
    rising = takewhile(lambda pair: pair[0].strength < pair[1].strength, pairwise(marks))
    return [*marks[:1], *(mark for _, mark in rising)]
