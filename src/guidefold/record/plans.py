"""Plan the trajectories of a round from the settings alone, so that it can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from guidefold.ground import derive_seed, permutation, unit
from guidefold.pipeline import Prompt
from guidefold.record.trajectory_files import Split
from guidefold.run import RecordSettings, Settings

# Where guidance and steps have a LoRA each, every tenth training batch is recorded at the lowest
# scale. Without them the steps LoRA learns guidance as well, and strength 0 is no longer unguided.
UNGUIDED_EVERY = 10


@dataclass(frozen=True)
class Plan:
    """One trajectory to record; a function of the settings alone.

    Attributes:
        index: Its index in the round.
        split: Whether its prompt is a training or a held-out one.
        prompt: The prompt.
        seed: The seed of the pipeline's noise.
        guidance: The teacher's guidance scale.
        steps: The pipeline's number of steps; the least number of the teacher's where the student
            takes fewer.
        student_steps: The student's number of steps; None if it is the teacher's.
    """

    index: int
    split: Split
    prompt: Prompt
    seed: int
    guidance: float
    steps: int
    student_steps: int | None = None


def plan_round(
    settings: Settings, prompts: Sequence[Prompt], held_out: Sequence[Prompt], number: int
) -> list[list[Plan]]:
    """Plan a round in batches; a batch shares guidance scale and step count.

    Args:
        settings: The run's.
        prompts: Training prompts; each is used once before one is used again.
        held_out: Held-out prompts, for validation trajectories in round 0.
        number: The round.
    """
    record = settings.record
    batches = _plan(settings, prompts, number, "training", record.trajectories, 0)
    if number == 0:
        count = min(record.validation_trajectories, len(held_out))
        batches += _plan(settings, held_out, 0, "held-out", count, record.trajectories)
    return batches


def kept_indices(plan: Plan, states: int, count: int) -> list[int]:
    """The indices of the steps to keep: a random one from each of equal parts of a trajectory.

    Args:
        plan: The trajectory's plan.
        states: The most states to keep.
        count: Number of steps of the trajectory.
    """
    parts = min(states, count)
    edges = [round(k * count / parts) for k in range(parts + 1)]
    return [
        low + int(unit(plan.seed, "kept", k) * (high - low))
        for k, (low, high) in enumerate(pairwise(edges))
    ]


def _plan(
    settings: Settings,
    prompts: Sequence[Prompt],
    number: int,
    split_name: Split,
    count: int,
    first: int,
) -> list[list[Plan]]:
    record, seed = settings.record, settings.seed
    order = permutation(len(prompts), seed, "prompts", number, split_name)
    batches = []
    for start in range(0, count, record.batch_size):
        key = ("batch", number, split_name, start)
        guidance, steps = _draw(record, unit(seed, *key, "g"), unit(seed, *key, "steps"))
        # The second of ten: a round of a single batch is guided.
        unguided = start // record.batch_size % UNGUIDED_EVERY == 1 and split_name == "training"
        if settings.steps_rank is not None and unguided:
            guidance = record.guidance[0]
        batches.append(
            [
                Plan(
                    index=first + k,
                    split=split_name,
                    prompt=prompts[order[k % len(order)]],
                    seed=derive_seed(seed, "trajectory", number, first + k),
                    guidance=guidance,
                    steps=steps if settings.student.steps is None else record.steps[0],
                    student_steps=settings.student.steps,
                )
                for k in range(start, min(start + record.batch_size, count))
            ]
        )
    return batches


def _draw(record: RecordSettings, u: float, v: float) -> tuple[float, int]:
    low, high = record.guidance
    fewest, most = record.steps
    return low + (high - low) * u, fewest + int(v * (most - fewest + 1))
