import torch

from guidefold.demo.captions import COLOURS, all_facts, parse
from guidefold.demo.shapes import SHAPES
from guidefold.demo.world import fact_table, ids_of
from teacher.text_stage import Reader, answers

SHAPE, COLOUR = ["", *SHAPES], ["", *COLOURS]


def sides(caption):
    """What lies above, below, to the left and to the right, read from the answers."""
    row = answers()[ids_of([parse(caption)])][0, fact_table().shape[1] :].reshape(4, 2).tolist()
    return [f"{COLOUR[colour]} {SHAPE[shape]}".strip() for shape, colour in row]


def test_the_answers_begin_with_the_facts():
    columns = fact_table().shape[1]
    assert torch.equal(answers()[:, :columns] - 1, fact_table())


def test_the_sides_follow_from_relation_and_order():
    assert sides("a red star above a blue heart") == ["red star", "blue heart", "", ""]
    assert sides("a red star below a blue heart") == ["blue heart", "red star", "", ""]
    assert sides("a red star to the left of a blue heart") == ["", "", "red star", "blue heart"]
    assert sides("a red star to the right of a blue heart") == ["", "", "blue heart", "red star"]
    assert sides("a red star and a blue heart") == ["", "", "", ""]


def test_two_ways_to_say_the_same_have_the_same_sides():
    assert sides("a red star above a blue heart") == sides("a blue heart below a red star")


def test_the_lesson_is_learned_when_every_answer_is_read():
    reader = Reader(len(all_facts()))
    ids = torch.arange(0, len(all_facts()), 500)
    hidden = torch.nn.functional.one_hot(ids, len(all_facts())).float()[:, None]
    with torch.no_grad():
        reader.layer.bias.zero_()
        reader.layer.weight.zero_()
        chance = reader(hidden, ids)
        first = torch.tensor([0, *reader.choices[:-1]]).cumsum(0)
        for place in ids.tolist():
            reader.layer.weight[first + reader.answers[place], place] = 30.0
        learned = reader(hidden, ids)
    torch.testing.assert_close(chance, torch.tensor(reader.choices).float().log().sum())
    assert learned < 1e-6
