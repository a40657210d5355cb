"""Denoiser arguments as data: what is batched is learnt by comparison, and nothing is lost."""

import json
from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

from guidefold.ground.errors import UnfoldableError
from guidefold.listen.arguments import (
    NotBatchableError,
    find_layout,
    join,
    objects_of,
    split,
    tensors_of,
    tree_map,
    trees_close,
    trees_equal,
)


def arguments(samples: list[int], frames: int = 3) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A denoiser call as pipelines make them; every batched leaf tells its sample's number."""
    numbers = torch.tensor(samples, dtype=torch.float32)
    args = (numbers.view(-1, 1, 1).expand(-1, 2, 2).clone(), torch.tensor(500))
    kwargs = {
        "frames_in_rows": numbers.repeat_interleave(frames).view(-1, 1),
        "second_axis": numbers.view(1, -1, 1).clone(),
        "lengths": [10 + n for n in samples],
        "shapes": [(1, 4, 4 + n) for n in samples],
        "added": {"ids": numbers.view(-1, 1).clone(), "nothing": None},
        "rope": (torch.eye(2), torch.ones(2)),
        "return_dict": False,
        "precision": torch.float16,
    }
    return args, kwargs


@pytest.fixture(scope="module")
def layout() -> Any:
    return find_layout(arguments([0]), arguments([0, 1]))


def assert_same(one: Any, two: Any) -> None:
    """Equal in form, in classes and bit for bit."""
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert_same(value, two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    else:
        assert one == two


def test_the_layout_says_of_every_leaf_how_it_is_batched(layout: Any) -> None:
    args, kwargs = layout["items"]
    assert args == {"items": [{"axis": 0}, None]}
    assert kwargs["fields"] == {
        "frames_in_rows": {"axis": 0},
        "second_axis": {"axis": 1},
        "lengths": {"each": None},
        "shapes": {"each": None},
        "added": {"fields": {"ids": {"axis": 0}, "nothing": None}},
        "rope": {"items": [None, None]},
        "return_dict": None,
        "precision": None,
    }


def test_a_layout_survives_json(layout: Any) -> None:
    assert json.loads(json.dumps(layout)) == layout


@pytest.mark.parametrize("samples", [[4], [4, 7], [4, 7, 9]])
def test_split_gives_each_sample_the_arguments_it_has_alone(
    layout: Any, samples: list[int]
) -> None:
    parts = split(arguments(samples), layout, len(samples))
    for part, sample in zip(parts, samples, strict=True):
        assert_same(part, arguments([sample]))


@pytest.mark.parametrize("samples", [[4], [4, 7], [4, 7, 9]])
def test_join_gives_the_arguments_of_the_batch(layout: Any, samples: list[int]) -> None:
    assert_same(join([arguments([s]) for s in samples], layout), arguments(samples))


def test_a_scalar_that_differs_between_samples_becomes_a_vector() -> None:
    joined = join([torch.tensor(900), torch.tensor(20)], None)
    assert torch.equal(joined, torch.tensor([900, 20]))


def test_a_vector_of_one_that_differs_between_samples_is_cut_and_joined_as_a_batch() -> None:
    layout = find_layout(torch.tensor([900]), torch.tensor([900, 900]))
    joined = join([torch.tensor([900]), torch.tensor([20])], layout)
    assert torch.equal(joined, torch.tensor([900, 20]))


@pytest.mark.parametrize(
    ("trees", "layout"),
    [
        ([1.0, 2.0], None),
        ([1, True], None),
        ([torch.eye(2), torch.ones(2, 2)], None),
        ([torch.zeros(1, 3), torch.zeros(1, 4)], {"axis": 0}),
        ([torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.float16)], {"axis": 0}),
        ([(1, 2), (1, 2, 3)], {"items": [None, None]}),
    ],
    ids=["numbers", "types", "shared tensors", "shapes", "precisions", "lengths"],
)
def test_samples_that_cannot_share_a_call_are_not_joined(trees: list[Any], layout: Any) -> None:
    with pytest.raises(NotBatchableError):
        join(trees, layout)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (torch.zeros(1, 3), torch.zeros(2, 4)),
        (torch.zeros(1, 3), torch.zeros(3, 3)),
        (torch.zeros(3), torch.zeros(2, 3)),
        ([1, 2], [1, 2, 3, 4]),
        ({"a": 1}, {"b": 1}),
        (1, 1.0),
        (None, torch.zeros(1)),
        (1, 2),
        (torch.tensor([7]), torch.tensor([9])),
    ],
    ids=[
        "two sizes change",
        "not doubled",
        "other rank",
        "list of two",
        "other keys",
        "other type",
        "tensor or none",
        "a number that depends on the batch",
        "a shared tensor that depends on the batch",
    ],
)
def test_a_form_that_does_not_double_is_refused_by_its_path(one: Any, two: Any) -> None:
    with pytest.raises(UnfoldableError, match=r"arguments\.0\.mask"):
        find_layout(({"mask": one}, 0), ({"mask": two}, 0))


def test_tree_map_reaches_every_tensor_and_leaves_the_rest() -> None:
    tree = arguments([1, 2])
    doubled = tree_map(lambda t: t * 2, tree)
    for before, after in zip(tensors_of(tree), tensors_of(doubled), strict=True):
        assert torch.equal(before * 2, after)
    assert len(list(tensors_of(tree))) == 7
    assert doubled[1]["lengths"] == tree[1]["lengths"]


def test_tree_map_keeps_an_output_of_diffusers_its_class() -> None:
    doubled = tree_map(lambda t: t * 2, Transformer2DModelOutput(sample=torch.ones(2)))
    assert isinstance(doubled, Transformer2DModelOutput)
    assert torch.equal(doubled.sample, torch.full((2,), 2.0))


def test_trees_are_alike_up_to_the_noise_of_their_precision() -> None:
    one, other = arguments([1, 2]), arguments([1, 2])
    assert trees_close(one, other)
    one[0][0].mul_(1 + 1e-5)
    assert trees_close(one, other)


@pytest.mark.parametrize("change", ["value", "whole number", "shape", "key", "text", "length"])
def test_trees_that_differ_in_one_leaf_are_not_alike(change: str) -> None:
    one: dict[str, Any] = {"x": [torch.ones(2, 3)], "ids": torch.tensor([5000]), "text": "a"}
    other = {
        "value": {**one, "x": [torch.ones(2, 3).index_fill(0, torch.tensor([1]), 1.01)]},
        "whole number": {**one, "ids": torch.tensor([5001])},
        "shape": {**one, "x": [torch.ones(2, 4)]},
        "key": {**one, "y": None},
        "text": {**one, "text": "b"},
        "length": {**one, "x": []},
    }[change]
    assert trees_close(one, one)
    assert not trees_close(one, other)
    assert not trees_close(other, one)


def cache(*samples: int) -> QwenImage21KVCache:
    """A cache of two layers, the first filled; every batched leaf tells its sample's number."""
    filled = QwenImage21KVCache(2)
    keys = torch.tensor(samples, dtype=torch.float32).view(-1, 1, 1, 1)
    filled.get_layer(0).store(keys, keys + 0.5)
    return filled


def test_an_object_is_batched_by_its_attributes() -> None:
    layout = find_layout({"kv": cache(1)}, {"kv": cache(1, 2)})
    assert json.loads(json.dumps(layout)) == layout
    one, two = split({"kv": cache(4, 7)}, layout, 2)
    assert isinstance(two["kv"], QwenImage21KVCache)
    assert trees_equal(one["kv"], cache(4))
    assert trees_equal(two["kv"], cache(7))
    assert trees_equal(join([one, two], layout)["kv"], cache(4, 7))


def test_an_object_that_stands_twice_is_one_in_what_is_made_of_it() -> None:
    shared = cache(4, 7)
    tree = {"kv": shared, "again": [shared]}
    layout = find_layout(
        {"kv": cache(1), "again": [cache(1)]}, {"kv": cache(1, 2), "again": [cache(1, 2)]}
    )
    parts = split(tree, layout, 2)
    for made in (*parts, join(parts, layout), tree_map(torch.clone, tree)):
        assert made["kv"] is made["again"][0]
        assert made["kv"] is not shared
    assert list(map(id, objects_of(tree))) == [id(shared)]


def test_caches_with_other_contents_are_not_alike() -> None:
    assert trees_equal(cache(3), cache(3))
    assert not trees_equal(cache(3), cache(4))
    assert not trees_close(cache(3), QwenImage21KVCache(2))


def test_an_object_that_holds_itself_is_refused() -> None:
    ring = QwenImage21KVCache(1)
    ring.layer_caches = [ring]
    with pytest.raises(UnfoldableError, match="holds itself"):
        tree_map(torch.clone, ring)
