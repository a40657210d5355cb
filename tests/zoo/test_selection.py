"""What every push walks has every feature that the whole zoo has."""

from . import CHOSEN, WIDE
from .selection import FACTS, choose, features_of


def test_every_entry_has_its_facts() -> None:
    assert FACTS.keys() == WIDE.keys()


def test_the_chosen_entries_have_every_feature_of_the_whole() -> None:
    features = {name: features_of(entry, FACTS[name]) for name, entry in WIDE.items()}
    chosen = set().union(*(features[name] for name in CHOSEN))
    assert chosen == set().union(*features.values())
    assert len(CHOSEN) == len(set(CHOSEN))
    assert len(CHOSEN) < len(WIDE) / 2


def test_the_fewest_are_chosen_that_a_greedy_rule_finds() -> None:
    one, two, three = ("a", 1), ("b", 1), ("c", 1)
    assert choose({"x": {one}, "y": {one, two}, "z": {three}, "w": {two}}) == ("y", "z")
    assert choose({"x": {one}, "y": {one}}) == ("x",)
