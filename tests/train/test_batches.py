"""The order of states is a function of position; what is joined says what it said alone."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from guidefold.ground.shortage import out_of_memory
from guidefold.record.trajectory_files import KeptState, StateRef, write_trajectory
from guidefold.train.batches import (
    Batch,
    batch_key,
    chosen_indices,
    collate,
    mixing_is_exact,
    random_subset,
)

LAYOUT = {
    "items": [
        {"items": [{"axis": 0}, None]},
        {"fields": {"embeddings": {"axis": 0}, "return_dict": None}},
    ]
}


def test_every_epoch_holds_every_state_once_in_an_order_of_its_own() -> None:
    epochs = [chosen_indices(10, 0, "round-0", 10 * k, 10) for k in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("size", [1, 3, 4, 7, 24])
def test_states_do_not_depend_on_the_size_of_batches(size: int) -> None:
    whole = chosen_indices(10, 3, "round-0", 0, 24)
    parts = [chosen_indices(10, 3, "round-0", at, size) for at in range(0, 24, size)]
    assert [index for part in parts for index in part][:24] == whole


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_the_states_of_a_step_among_them(processes: int) -> None:
    step = chosen_indices(10, 3, "round-0", 8, 8)
    shares = [step[rank::processes] for rank in range(processes)]
    assert sorted(index for share in shares for index in share) == sorted(step)
    assert {len(share) for share in shares} == {8 // processes}


def test_seed_and_stretch_decide_the_order() -> None:
    orders = {tuple(chosen_indices(9, s, n, 0, 9)) for s in (0, 1) for n in ("round-0", "round-1")}
    assert len(orders) == 4


@pytest.mark.parametrize("each", [2, 4, 5, 20])
@pytest.mark.parametrize("trajectories", [64, 256, 320, 1280])
def test_a_few_states_are_of_every_part_of_a_trajectory(trajectories: int, each: int) -> None:
    """Even distances were in step with it: of 1280 x 4 states, only first ones were taken."""
    refs = [place for _ in range(trajectories) for place in range(each)]
    shares = Counter(random_subset(refs, 256, 0, "size-0"))
    wanted = min(256, len(refs)) / each
    assert all(0.4 * wanted < shares[place] < 1.8 * wanted for place in range(each))


def test_a_few_states_are_each_other_s_alone_and_in_their_order() -> None:
    some = random_subset(list(range(50)), 20, 3, "size-0")
    assert some == sorted(set(some))
    assert len(some) == 20
    assert some == random_subset(list(range(50)), 20, 3, "size-0")
    assert some != random_subset(list(range(50)), 20, 4, "size-0")
    assert random_subset(list(range(5)), 20, 3, "size-0") == list(range(5))


def state(value: float, timestep: int, *, width: int = 3, extra: bool = False) -> KeptState:
    arguments = (
        (torch.full((1, width), value), torch.tensor(timestep)),
        {"embeddings": torch.full((1, 2, 3), -value), "return_dict": extra},
    )
    return KeptState(arguments, torch.full((1, width), 10 * value), float(timestep), 0)


def refs(folder: Path, *states: KeptState) -> list[StateRef]:
    found = []
    for k, each in enumerate(states):
        path = folder / f"{k}.safetensors"
        write_trajectory(path, [each], None)
        found.append(StateRef(path, 0, 2.0 + k, each.timestep))
    return found


def test_states_are_joined_into_one_call(tmp_path: Path) -> None:
    (batch,) = collate(refs(tmp_path, state(1, 900), state(2, 5)), LAYOUT, together=True)
    (latents, timestep), named = batch.arguments
    assert latents[:, 0].tolist() == [1, 2]
    assert timestep.tolist() == [900, 5]
    assert named["embeddings"][:, 0, 0].tolist() == [-1, -2]
    assert named["return_dict"] is False
    assert batch.target[:, 0].tolist() == [10, 20]
    assert (batch.timesteps, batch.guidance) == ((900.0, 5.0), (2.0, 3.0))


@pytest.mark.parametrize(
    "other", [state(2, 5, width=4), state(2, 5, extra=True)], ids=["shape", "plain value"]
)
def test_states_that_cannot_be_joined_go_one_by_one(tmp_path: Path, other: KeptState) -> None:
    batches = collate(refs(tmp_path, state(1, 900), other), LAYOUT, together=True)
    assert [(b.timesteps, b.guidance) for b in batches] == [((900.0,), (2.0,)), ((5.0,), (3.0,))]
    assert torch.equal(batches[1].target, other.target)


def test_states_of_two_kinds_make_two_calls_that_know_their_places(tmp_path: Path) -> None:
    four = [state(k, 100 * k, width=3 + k % 2) for k in range(1, 5)]
    odd, even = collate(refs(tmp_path, *four), LAYOUT, together=True)
    assert (odd.places, even.places) == ((0, 2), (1, 3))
    for batch, first in ((odd, 1), (even, 2)):
        assert batch.arguments[0][0][:, 0].tolist() == [first, first + 2]
        assert batch.target[:, 0].tolist() == [10 * first, 10 * (first + 2)]
        assert batch.timesteps == (100.0 * first, 100.0 * (first + 2))
        assert batch.guidance == (1.0 + first, 3.0 + first)


def test_what_goes_one_by_one_stays_in_its_place(tmp_path: Path) -> None:
    batches = collate(refs(tmp_path, *(state(k, k) for k in range(3))), LAYOUT, together=False)
    assert [batch.places for batch in batches] == [(0,), (1,), (2,)]


def test_states_are_of_one_kind_if_nothing_but_numbers_in_tensors_differs() -> None:
    kind = batch_key(state(1, 900))
    assert batch_key(state(2, 5)) == kind
    other = state(1, 900)
    named = {**other.arguments[1], "component": "unet_2"}
    half = other.arguments[1]["embeddings"].half()
    others = [
        state(1, 900, width=4),
        state(1, 900, extra=True),
        replace(other, arguments=(other.arguments[0], named)),
        replace(other, arguments=(other.arguments[0], {**named, "embeddings": half})),
        replace(other, target=torch.zeros(1, 4)),
    ]
    assert len({kind, *map(batch_key, others)}) == 1 + len(others)


@pytest.mark.parametrize(("layout", "together"), [(None, True), (LAYOUT, False)])
def test_states_go_one_by_one_where_they_may_not_be_joined(
    tmp_path: Path, layout: dict[str, object] | None, together: bool
) -> None:
    assert len(collate(refs(tmp_path, state(1, 9), state(2, 5)), layout, together)) == 2


def test_a_batch_moves_to_a_device_whole(tmp_path: Path) -> None:
    (batch,) = collate(refs(tmp_path, state(1, 9)), LAYOUT, together=True)
    moved = batch.to(torch.device("meta"))
    (latents, timestep), named = moved.arguments
    assert {t.device.type for t in (latents, timestep, named["embeddings"], moved.target)} == {
        "meta"
    }
    assert moved.timesteps == batch.timesteps


def per_sample(batch: Batch, strengths: torch.Tensor) -> torch.Tensor:
    return batch.arguments[0][0] * strengths.view(-1, 1)


def of_the_first(batch: Batch, strengths: torch.Tensor) -> torch.Tensor:
    return batch.arguments[0][0] * strengths[0]


def of_one_only(batch: Batch, strengths: torch.Tensor) -> torch.Tensor:
    if len(strengths) > 1:
        raise RuntimeError("one timestep only")
    return per_sample(batch, strengths)


@pytest.mark.parametrize(
    ("predict", "mixed"), [(per_sample, True), (of_the_first, False), (of_one_only, False)]
)
def test_mixing_is_found_out_by_trying(tmp_path: Path, predict: object, mixed: bool) -> None:
    pair = refs(tmp_path, state(1, 900), state(2, 5))
    assert mixing_is_exact(predict, pair, LAYOUT, torch.device("cpu")) is mixed
    assert not mixing_is_exact(predict, pair, None, torch.device("cpu"))


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("theirs")]
)
def test_memory_that_runs_out_does_not_pass_for_a_batch_that_is_not_taken(
    tmp_path: Path, error: Exception
) -> None:
    def predict(batch: Batch, strengths: torch.Tensor) -> torch.Tensor:
        if len(strengths) > 1:
            raise error
        return per_sample(batch, strengths)

    pair = refs(tmp_path, state(1, 900), state(2, 5))
    if out_of_memory(error):
        with pytest.raises(type(error)):
            mixing_is_exact(predict, pair, LAYOUT, torch.device("cpu"))
    else:
        assert not mixing_is_exact(predict, pair, LAYOUT, torch.device("cpu"))


def test_two_states_of_two_kinds_are_never_mixed(tmp_path: Path) -> None:
    pair = refs(tmp_path, state(1, 900), state(2, 5, width=4))
    assert not mixing_is_exact(per_sample, pair, LAYOUT, torch.device("cpu"))
