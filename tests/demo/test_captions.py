from collections import Counter

import pytest

from guidefold.demo.captions import (
    CATEGORIES,
    UNSEEN_SHARE,
    Facts,
    Thing,
    all_facts,
    is_unseen,
    parse,
    unseen_captions,
)


def test_every_caption_parses_back_to_its_facts():
    for facts in all_facts():
        assert parse(facts.caption) == facts


def test_no_two_facts_share_a_caption():
    assert len({facts.caption for facts in all_facts()}) == len(all_facts())


@pytest.mark.parametrize(
    ("facts", "caption", "category"),
    [
        (Facts((Thing("circle", "red"),)), "a red circle", "single object"),
        (
            Facts((Thing("star", "orange"), Thing("cross", "yellow"))),
            "an orange star and a yellow cross",
            "two objects",
        ),
        (Facts((Thing("cross", "green"),) * 3), "three green crosses", "counting"),
        (
            Facts((Thing("heart", "purple"),), background="orange"),
            "a purple heart on an orange background",
            "colours",
        ),
        (
            Facts((Thing("square", "red"), Thing("circle", "blue")), "to the left of"),
            "a red square to the left of a blue circle",
            "position",
        ),
        (
            Facts((Thing("star", "red", "small"), Thing("circle", "blue", "large"))),
            "a small red star and a large blue circle",
            "attribute binding",
        ),
    ],
)
def test_captions_read_like_english(facts, caption, category):
    assert facts.caption == caption
    assert parse(caption).category == category


@pytest.mark.parametrize("caption", ["", "a red", "A red circle", "a red circle ", "red circle"])
def test_other_captions_are_refused_by_name(caption):
    with pytest.raises(ValueError, match="not a caption of the demo world"):
        parse(caption)


def test_one_caption_in_five_is_unseen():
    share = sum(is_unseen(facts.caption) for facts in all_facts()) / len(all_facts())
    assert abs(share - UNSEEN_SHARE) < 0.02


def test_unseen_captions_are_distinct_unseen_and_enough():
    captions = unseen_captions(1500)
    assert len(set(captions)) == 1500
    assert all(map(is_unseen, captions))


def test_unseen_captions_are_balanced_until_a_category_runs_out():
    available = Counter(facts.category for facts in all_facts() if is_unseen(facts.caption))
    for count in (60, 600, 1500):
        given = Counter(parse(caption).category for caption in unseen_captions(count))
        most = max(given.values())
        for category in CATEGORIES:
            assert given[category] >= min(most - 1, available[category])


def test_unseen_captions_follow_from_the_seed():
    assert unseen_captions(100, seed=1) == unseen_captions(100, seed=1)
    assert unseen_captions(100, seed=1) != unseen_captions(100, seed=2)
    assert unseen_captions(100, seed=1)[:40] == unseen_captions(40, seed=1)


def test_more_unseen_captions_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="unseen captions, not 9999"):
        unseen_captions(9999)
