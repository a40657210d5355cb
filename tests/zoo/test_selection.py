"""What every push walks has every feature that the whole zoo has."""

from . import CHOSEN, CHOSEN_IN_FEW_STEPS, WIDE, ZOO
from .selection import FACTS, FEW_STEPS, choose, features_of, few_steps_features_of


def test_every_entry_has_its_facts() -> None:
    assert FACTS.keys() == WIDE.keys()
    assert FEW_STEPS.keys() <= (ZOO | WIDE).keys()


def test_the_chosen_entries_have_every_feature_of_the_whole() -> None:
    features = {name: features_of(entry, FACTS[name]) for name, entry in WIDE.items()}
    chosen = set().union(*(features[name] for name in CHOSEN))
    assert chosen == set().union(*features.values())
    assert len(CHOSEN) == len(set(CHOSEN))
    assert len(CHOSEN) < len(WIDE) / 2


def test_so_they_have_with_few_steps() -> None:
    features = {n: few_steps_features_of((ZOO | WIDE)[n], f) for n, f in FEW_STEPS.items()}
    chosen = set().union(*(features[name] for name in CHOSEN_IN_FEW_STEPS))
    assert chosen == set().union(*features.values())
    assert len(CHOSEN_IN_FEW_STEPS) < len(features) / 5


def test_the_fewest_are_chosen_that_a_greedy_rule_finds() -> None:
    one, two, three = ("a", 1), ("b", 1), ("c", 1)
    assert choose({"x": {one}, "y": {one, two}, "z": {three}, "w": {two}}) == ("y", "z")
    assert choose({"x": {one}, "y": {one}}) == ("x",)
