import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from guidefold.demo.captions import CATEGORIES, all_facts, parse
from guidefold.demo.judge import category, judge_pictures
from guidefold.demo.world import draw_pictures, fact_table, ids_of

PER_CATEGORY = 250


def _pictures(drawn):
    pixels = (drawn * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one) for one in pixels]


def _ids_of_category(name, seed):
    ids = (fact_table()[:, 0] == CATEGORIES.index(name)).nonzero().flatten()
    generator = torch.Generator().manual_seed(seed)
    return ids[torch.randint(len(ids), (PER_CATEGORY,), generator=generator)]


def _captions(ids):
    return [all_facts()[index].caption for index in ids.tolist()]


def _noisy(picture, seed):
    noise = np.random.default_rng(seed).normal(0, 6, (64, 64, 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def aligned(picture, caption):
    return judge_pictures([picture], [caption])[0]


@pytest.mark.parametrize("name", CATEGORIES)
def test_drawn_noisy_and_blurred_pictures_are_aligned(name):
    ids = _ids_of_category(name, seed=5)
    drawn, captions = _pictures(draw_pictures(ids, 11)), _captions(ids)
    noisy = [_noisy(picture, seed) for seed, picture in enumerate(drawn)]
    blurred = [picture.filter(ImageFilter.GaussianBlur(0.7)) for picture in drawn]
    for pictures in (drawn, noisy, blurred):
        assert np.mean(judge_pictures(pictures, captions)) >= 0.995


def _says_less(said, shown):
    """Whether a caption is true of a picture of other facts: sizes or the order left unsaid."""
    if said.relation or said.background != shown.background:
        return False
    left = list(shown.things)
    for thing in said.things:
        fitting = [
            other
            for other in left
            if (other.shape, other.colour) == (thing.shape, thing.colour)
            and (not thing.size or thing.size == other.size)
        ]
        if not fitting:
            return False
        left.remove(fitting[0])
    return not left


@pytest.mark.parametrize("name", CATEGORIES)
def test_pictures_of_near_captions_are_refused(name):
    """Against every caption of the category that differs in one or two facts, a few of each."""
    ids = _ids_of_category(name, seed=6)[:60]
    pictures, table = _pictures(draw_pictures(ids, 12)), fact_table()
    shown, said = [], []
    for picture, index in zip(pictures, ids.tolist(), strict=True):
        differing = (table != table[index]).sum(dim=1)
        near = ((table[:, 0] == table[index, 0]) & (differing > 0) & (differing <= 2)).nonzero()
        for other in near.flatten()[:: max(1, len(near) // 4)].tolist():
            facts, its = all_facts()[other], all_facts()[index]
            unsure = any(not thing.size for thing in its.things) and any(
                thing.size for thing in facts.things
            )
            if not unsure and not _says_less(facts, its):
                shown.append(picture)
                said.append(facts.caption)
    assert len(said) > 100
    assert sum(judge_pictures(shown, said)) == 0


def test_something_extra_is_refused():
    picture = _pictures(draw_pictures(ids_of([parse("two red squares")]), 1))[0]
    assert not aligned(picture, "a red square")
    assert not aligned(picture, "three red squares")
    assert aligned(picture, "two red squares")


def test_swapped_attributes_and_relations_are_refused():
    shown = parse("a red square above a blue circle")
    picture = _pictures(draw_pictures(ids_of([shown]), 2))[0]
    assert aligned(picture, "a red square above a blue circle")
    assert aligned(picture, "a blue circle below a red square")
    assert aligned(picture, "a blue circle and a red square")
    for wrong in (
        "a blue square above a red circle",
        "a red square below a blue circle",
        "a red square to the left of a blue circle",
    ):
        assert not aligned(picture, wrong)


@pytest.mark.parametrize("colour", [(230, 230, 230), (0, 0, 0), (255, 255, 255), (40, 80, 225)])
def test_an_empty_picture_is_never_aligned(colour):
    empty = Image.new("RGB", (64, 64), colour)
    assert not any(judge_pictures([empty] * 3, ["a red circle", "two red hearts", "a blue star"]))


def test_pure_noise_is_never_aligned():
    pixels = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), dtype=np.uint8)
    noise = [Image.fromarray(one) for one in pixels]
    assert not any(judge_pictures(noise, ["a red circle"] * 8))


def test_category_is_read_from_the_caption():
    assert category("three green triangles") == "counting"


def test_wrong_input_is_refused_by_name():
    picture = Image.new("RGB", (32, 64))
    with pytest.raises(ValueError, match="64 x 64, not"):
        judge_pictures([picture], ["a red circle"])
    with pytest.raises(ValueError, match="1 picture, but 2 captions"):
        judge_pictures([picture], ["a red circle", "a blue circle"])
    with pytest.raises(ValueError, match="not a caption of the demo world"):
        judge_pictures([picture], ["a cat"])
    assert judge_pictures([], []) == []
