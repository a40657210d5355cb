import pytest
import torch

from guidefold.demo.captions import CATEGORIES, COLOURS, all_facts, is_unseen, parse
from guidefold.demo.shapes import REACH, SHAPES, coverage, unit_moments
from guidefold.demo.world import (
    CELLS,
    PICTURE_SIZE,
    draw_labels,
    draw_pictures,
    draw_seen_facts,
    fact_table,
    ids_of,
    spoil,
)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_same_seed_draws_the_same_pictures():
    ids = draw_seen_facts(48, _generator())
    assert torch.equal(draw_pictures(ids, 3), draw_pictures(ids, 3))
    assert not torch.equal(draw_pictures(ids, 3), draw_pictures(ids, 4))


def test_drawing_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    draw_pictures(torch.arange(4), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_pictures_have_their_form():
    pictures = draw_pictures(torch.arange(0, len(all_facts()), 97), 0)
    assert pictures.shape[1:] == (3, PICTURE_SIZE, PICTURE_SIZE)
    assert pictures.dtype == torch.float32
    assert pictures.min() >= 0
    assert pictures.max() <= 1


def test_things_keep_a_margin():
    # every category, in many places: the outermost pixels are background
    ids = torch.arange(0, len(all_facts()), 7)
    pictures = draw_pictures(ids, 1)
    corner = pictures[:, :, :1, :1]
    rim = (pictures[..., 0], pictures[..., -1], pictures[:, :, 0], pictures[:, :, -1])
    for side in rim:
        assert torch.allclose(side, corner[..., 0].expand_as(side), atol=1e-5)


@pytest.mark.parametrize("shape", list(SHAPES))
def test_no_shape_reaches_farther_than_it_may(shape):
    axis = torch.arange(-100.0, 101.0)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    covered = coverage(shape, x, y, torch.tensor(60.0), torch.tensor(0.0)) > 0
    reach = max(x[covered].abs().max(), y[covered].abs().max())
    assert reach <= 60 * REACH + 1
    area, _, _ = unit_moments(shape)
    assert 1.5 < area < 3.5


def test_training_facts_are_seen_ones_of_every_category():
    facts = [all_facts()[index] for index in draw_seen_facts(600, _generator()).tolist()]
    assert not any(is_unseen(one.caption) for one in facts)
    counts = [sum(one.category == category for one in facts) for category in CATEGORIES]
    assert min(counts) > 25


def test_spoiled_captions_are_near_wrong_and_seen():
    ids = draw_seen_facts(200, _generator(1))
    spoiled = spoil(ids, _generator(2))
    differing = (fact_table()[ids] != fact_table()[spoiled]).sum(dim=1)
    assert ((differing == 1) | (differing == 2)).all()
    assert torch.equal(fact_table()[ids, 0], fact_table()[spoiled, 0])
    assert not any(is_unseen(all_facts()[index].caption) for index in spoiled.tolist())


def test_ids_of_finds_facts():
    facts = [parse("a red circle"), parse("four black stars")]
    assert [all_facts()[index] for index in ids_of(facts).tolist()] == facts


def test_labels_name_the_colour_of_the_pixel_in_the_middle_of_each_cell():
    ids = torch.arange(0, len(all_facts()), 61)
    pictures, labels = draw_pictures(ids, 5), draw_labels(ids, 5)
    side = PICTURE_SIZE // CELLS
    middle = torch.stack(
        [
            pictures[..., side // 2 - 1 + i :: side, side // 2 - 1 + j :: side]
            for i in (0, 1)
            for j in (0, 1)
        ]
    ).mean(0)
    palette = torch.tensor(list(COLOURS.values())) / 255
    named = (palette[:, :, None, None] - middle[:, None]).norm(dim=2).argmin(dim=1) + 1
    light = (middle > 0.8).all(dim=1)
    named[light] = 0
    assert (named == labels[:, 1]).float().mean() > 0.97  # edges fall between


def test_labels_name_the_shapes_of_the_caption_and_no_others():
    facts = [parse("a red star and a blue circle"), parse("three green hearts")]
    labels = draw_labels(ids_of(facts), 0)
    names = ["", *SHAPES]
    assert {names[k] for k in labels[0, 0].unique().tolist()} == {"", "star", "circle"}
    assert {names[k] for k in labels[1, 0].unique().tolist()} == {"", "heart"}
