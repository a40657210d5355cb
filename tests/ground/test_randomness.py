"""A draw is a function of its names: not of what was drawn before, nor of torch's random state."""

import hashlib

import torch

from guidefold.ground.randomness import derive_seed, generator, permutation, unit


def test_a_seed_is_the_hash_of_its_names() -> None:
    digest = hashlib.sha256(b"7\x1fstate\x1f3").digest()
    assert derive_seed(7, "state", 3) == int.from_bytes(digest[:8], "big") // 2


def test_the_same_names_give_the_same_seed_on_every_machine() -> None:
    assert derive_seed(0, "adapter") == 3644930922930617960


def test_every_name_counts() -> None:
    names = [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a"), (0, "a1"), (0, "", "a1")]
    assert len({derive_seed(*each) for each in names}) == len(names)


def test_seeds_fit_a_generator() -> None:
    seeds = [derive_seed(k) for k in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_unit_is_uniform_on_zero_to_one() -> None:
    draws = sorted(unit(0, "u", k) for k in range(4000))
    assert draws[0] >= 0
    assert draws[-1] < 1
    distance = max(abs(draw - k / 4000) for k, draw in enumerate(draws))
    assert distance < 1.95 / 4000**0.5  # Kolmogorov-Smirnov at 0.1 %


def test_a_draw_depends_neither_on_draws_before_nor_on_the_random_state() -> None:
    torch.manual_seed(1)
    first = torch.randn(4, generator=generator(0, "noise", 5))
    torch.manual_seed(2)
    generator(0, "noise", 4)
    permutation(10, 0, "other")
    assert torch.equal(torch.randn(4, generator=generator(0, "noise", 5)), first)


def test_drawing_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    torch.randn(4, generator=generator(0, "noise"))
    permutation(10, 0, "order")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_permutation_holds_every_number_once_in_an_order_of_its_own() -> None:
    one, other = permutation(50, 0, "x"), permutation(50, 0, "y")
    assert sorted(one) == sorted(other) == list(range(50))
    assert one != other != list(range(50))
    assert permutation(50, 0, "x") == one
