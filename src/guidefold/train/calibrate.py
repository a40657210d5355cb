"""The dial, measured: at which strength does the student come nearest to a guidance scale?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

import torch

from guidefold.lora import BEYOND, Mark
from guidefold.record import StateRef
from guidefold.train.loss import GuidanceSize
from guidefold.train.student import Student

STEPS = 16  # strengths tried, evenly from 0
NEAREST = 3  # of guidance that is not linear, every third state stands near enough to a scale


@dataclass(frozen=True)
class Heard:
    """What a student says at one recorded state, beside what the teacher adds to it.

    With ``d(s) = student at strength s - unguided`` and ``t = target - unguided``, means over the
    model output's elements.

    Attributes:
        timestep: Of the state.
        guidance: The target's scale.
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


def strengths_tried(highest: float) -> list[float]:
    """Strengths from 0 to beyond the one that stands for the strongest recorded guidance.

    Args:
        highest: That strength.
    """
    top = BEYOND * max(highest, 1.0)
    return [top * k / STEPS for k in range(STEPS + 1)]


@torch.no_grad()
def calibrate(
    student: Student,
    refs: Sequence[StateRef],
    batch_size: int,
    on_states: Callable[[int], None],
) -> list[Mark]:
    """Measure a trained student's dial on recorded states, best those that it never saw.

    Args:
        student: Its adapter loaded, its frozen weights the teacher's own.
        refs: Recorded states.
        batch_size: States per call.
        on_states: Told of how many states were measured.

    Returns:
        Marks of rising guidance and rising strength; none where the teacher is guided nowhere.
    """
    dial = student.dial
    strengths = strengths_tried(dial.nominal_strength(dial.trained[1]))
    heard: list[Heard] = []
    for first in range(0, len(refs), batch_size):
        some = refs[first : first + batch_size]
        heard += _listen(student, some, strengths)
        on_states(len(some))
    guided = [state for state in heard if state.guidance != dial.origin and state.target > 0]
    scales = [dial.nominal_guidance(s) for s in strengths[1:]]
    return marks_of(guided, strengths, dial.origin, scales, linear=student.findings.linear)


def marks_of(
    heard: Sequence[Heard],
    strengths: Sequence[float],
    origin: float,
    scales: Sequence[float],
    *,
    linear: bool,
) -> list[Mark]:
    """For each guidance scale, the strength at which the student is nearest to the teacher.

    ``s(g) = argmin_s E |d(s) - t(g)|^2 / D``, with ``t(g) = (g - origin) / (g' - origin) t(g')``
    where guidance is linear, so that every state serves every scale; elsewhere the states whose own
    scale is nearest serve it. Between strengths the error is a parabola, as it is where the student
    is linear in its strength. ``s(g)`` rises wherever ``E <d(s), t> / D`` rises with s.

    Not the other way about: the scale whose teacher is nearest to a strength is pulled towards the
    origin by what the student has not learnt, as every regression is (docs/method.md).

    Args:
        heard: Guided states.
        strengths: At even distances from 0.
        origin: The guidance scale of strength 0.
        scales: Rising, above the origin.
        linear: Whether the target is linear in the guidance scale.

    Returns:
        Marks of rising guidance and strength. A scale that is best served at an end of the
        strengths, or that the student does not serve better than a lower one, has none.
    """
    if not heard:
        return []
    sizes = [state.target / (state.guidance - origin) ** 2 for state in heard]
    size = GuidanceSize.measure([state.timestep for state in heard], sizes)
    marks = []
    for g in scales:
        some = heard if linear else _near(heard, g)
        total = [0.0] * len(strengths)
        for state in some:
            # Linear guidance: what the teacher adds at g is `ratio` times what it added at the
            # recorded scale. Otherwise only states near g serve, as they were recorded.
            span = state.guidance - origin
            ratio = (g - origin) / span if linear else 1.0
            # The size of guidance at this noise level and at g, so that all levels count alike.
            scale = size.at(state.timestep) * (span * ratio) ** 2 * len(some)
            total = [t + e / scale for t, e in zip(total, state.errors(ratio), strict=True)]
        found = _lowest(strengths, total)
        if found is not None:
            marks.append(Mark(g, *found))
    return _rising(marks)


def _listen(student: Student, refs: Sequence[StateRef], strengths: Sequence[float]) -> list[Heard]:
    found: dict[int, Heard] = {}
    for batch in student.calls(refs):
        count = len(batch.timesteps)
        with student.adapter.teacher_mode():
            unguided = student.predict(batch, student.denoiser).float()
        # frames or pixels may be rows of their own
        target = (batch.target.float() - unguided).reshape(count, -1)
        own, both = [], []
        for strength in strengths:
            every = torch.full((count,), strength, device=student.device)
            with student.adapter.student_mode(every, train=False):
                said = student.predict(batch, student.denoiser).float()
            moved = (said - unguided).reshape(count, -1)
            own.append(moved.square().mean(1).tolist())
            both.append((moved * target).mean(1).tolist())
        sizes = target.square().mean(1).tolist()
        for k, place in enumerate(batch.places):
            found[place] = Heard(
                batch.timesteps[k],
                batch.guidance[k],
                sizes[k],
                tuple(row[k] for row in own),
                tuple(row[k] for row in both),
            )
    return [found[place] for place in sorted(found)]


def _near(heard: Sequence[Heard], guidance: float) -> list[Heard]:
    """The third of the states whose scale is nearest; none for a scale beyond all of them."""
    scales = [state.guidance for state in heard]
    if not min(scales) <= guidance <= max(scales):
        return []
    count = max(1, len(heard) // NEAREST)
    return sorted(heard, key=lambda state: abs(state.guidance - guidance))[:count]


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
