"""Plans: a function of the settings alone, even over prompts, and never of a held-out prompt."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from tiny import PROMPTS

from guidefold.pipeline.prompts import Prompt, split_prompts
from guidefold.record.plans import Plan, kept_indices, plan_round
from guidefold.run.settings import Settings

EVERY = [Prompt(text, f"prompts.txt:{k}") for k, text in enumerate(PROMPTS, 1)]
BASE = {"trajectories": 3, "validation_trajectories": 1}
TRAINING, HELD_OUT = split_prompts(EVERY, 0.3)


def settings(seed: int = 0, **record: Any) -> Settings:
    return Settings.model_validate(
        {"run": "unused", "seed": seed, "pipeline": {"source": "unused"}, "record": BASE | record}
    )


def flat(batches: list[list[Plan]]) -> list[Plan]:
    return [plan for batch in batches for plan in batch]


def test_held_out_prompts_never_appear_among_training_trajectories() -> None:
    asked = settings(trajectories=100, validation_trajectories=50)
    for number in range(3):
        for plan in flat(plan_round(asked, TRAINING, HELD_OUT, number)):
            assert plan.prompt in (HELD_OUT if plan.split == "held-out" else TRAINING)
    first = flat(plan_round(asked, TRAINING, HELD_OUT, 0))
    assert {p.prompt for p in first if p.split == "held-out"} == set(HELD_OUT)
    assert not set(TRAINING) & set(HELD_OUT)


def test_validation_trajectories_are_planned_once_and_at_most_one_a_prompt() -> None:
    asked = settings(trajectories=5, validation_trajectories=50)
    splits = [
        Counter(p.split for p in flat(plan_round(asked, TRAINING, HELD_OUT, n))) for n in (0, 1)
    ]
    assert splits == [{"training": 5, "held-out": len(HELD_OUT)}, {"training": 5}]


def test_each_prompt_is_used_once_before_one_is_used_again() -> None:
    asked = settings(trajectories=2 * len(TRAINING) + 1)
    used = Counter(p.prompt for p in flat(plan_round(asked, TRAINING, [], 0)))
    assert sorted(used.values()) == [2] * (len(TRAINING) - 1) + [3]


def test_indices_count_up_and_seeds_differ_within_and_between_rounds() -> None:
    asked = settings(trajectories=20)
    rounds = [flat(plan_round(asked, TRAINING, HELD_OUT, n)) for n in range(2)]
    assert [p.index for p in rounds[0]] == list(range(21))
    assert len({p.seed for plans in rounds for p in plans}) == 41


def test_a_batch_shares_guidance_and_steps_and_stays_within_their_ranges() -> None:
    asked = settings(trajectories=60, batch_size=4, guidance=(2.0, 8.0), steps=(5, 7))
    batches = plan_round(asked, TRAINING, [], 0)
    assert [len(b) for b in batches] == [4] * 15
    assert all(len({(p.guidance, p.steps, p.split) for p in b}) == 1 for b in batches)
    guidance = [b[0].guidance for b in batches]
    assert min(guidance) >= 2.0
    assert max(guidance) <= 8.0
    assert max(guidance) - min(guidance) > 3.0
    assert {b[0].steps for b in batches} == {5, 6, 7}


def test_batch_size_changes_neither_prompts_nor_seeds() -> None:
    plans = [
        flat(plan_round(settings(trajectories=9, batch_size=size), TRAINING, HELD_OUT, 0))
        for size in (1, 4)
    ]
    one, four = ([replace(p, guidance=0.0, steps=1) for p in some] for some in plans)
    assert one == four


def test_the_plan_is_a_function_of_the_settings() -> None:
    one, two, other = (
        plan_round(settings(seed, trajectories=9), TRAINING, HELD_OUT, 0) for seed in (0, 0, 1)
    )
    assert one == two
    assert flat(one)[0].seed != flat(other)[0].seed


@pytest.mark.parametrize(("wanted", "count"), [(4, 20), (7, 20), (20, 20), (1, 3), (50, 3)])
def test_one_state_is_kept_of_each_equal_stretch(wanted: int, count: int) -> None:
    asked = settings(states_per_trajectory=wanted)
    (plan,) = plan_round(settings(trajectories=1), TRAINING, [], 0)[0]
    kept = kept_indices(plan, asked.record.states_per_trajectory, count)
    number = min(wanted, count)
    assert len(kept) == number
    for k, index in enumerate(kept):
        assert round(k * count / number) <= index < round((k + 1) * count / number)


def test_over_many_trajectories_every_step_is_kept_about_equally_often() -> None:
    asked = settings(trajectories=400, states_per_trajectory=4)
    used = Counter(
        index
        for plan in flat(plan_round(asked, TRAINING, [], 0))
        for index in kept_indices(plan, asked.record.states_per_trajectory, 20)
    )
    assert set(used) == set(range(20))
    assert max(used.values()) < 2 * min(used.values())


def test_every_tenth_batch_is_unguided_where_guidance_and_steps_have_a_lora_each() -> None:
    given = settings(trajectories=40, batch_size=2, guidance=(1.0, 8.0)).model_dump()
    two = Settings.model_validate({**given, "student": {"steps": 4}})
    batches = plan_round(two, TRAINING, HELD_OUT, 0)
    unguided = [k for k, batch in enumerate(batches) if batch[0].guidance == 1.0]
    assert unguided == [1, 11]
    plain = Settings.model_validate(given)
    assert not any(p.guidance == 1.0 for p in flat(plan_round(plain, TRAINING, HELD_OUT, 0)))
