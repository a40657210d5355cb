"""Denoiser arguments in files: what comes back is what was given, or it is refused by its path."""

import json
import sys
from collections import namedtuple
from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache
from torch import nn
from transformers import DynamicCache

from guidefold.ground.errors import CorruptFileError, LibraryError, UnfoldableError
from guidefold.listen.arguments import trees_equal
from guidefold.listen.stored import flatten, stored, unflatten


def glm_cache() -> GlmImageKVCache:
    filled = GlmImageKVCache(2)
    filled.set_mode("write")
    filled[0].store(torch.ones(1, 2, 1, 1), torch.zeros(1, 2, 1, 1))
    return filled


TREES: dict[str, Any] = {
    "plain": [1, 2.5, True, None, "text", torch.float16, {3: (torch.eye(2), [])}],
    "cache": {"kv_cache": glm_cache()},
    "growing cache": DynamicCache(),
    "output": [Transformer2DModelOutput(sample=torch.ones(2))],
}


@pytest.mark.parametrize("name", TREES)
def test_a_tree_comes_back_from_json_and_tensors_as_it_was(name: str) -> None:
    tree = TREES[name]
    skeleton, tensors = flatten(tree)
    assert all("." in name for name in tensors)
    back = unflatten(json.loads(json.dumps(skeleton)), tensors.__getitem__)
    assert type(back) is type(tree)
    assert trees_equal(back, tree)


def test_a_cache_that_comes_back_works_as_it_did() -> None:
    cache = stored(glm_cache())
    cache.set_mode("read")
    later = torch.zeros(1, 1, 1, 1)
    keys, _ = cache[0].get(later, later)
    assert torch.equal(keys.flatten(), torch.tensor([1.0, 1.0, 0.0]))


def test_an_object_that_stands_twice_comes_back_as_one() -> None:
    shared = QwenImage21KVCache(1)
    back = stored({"kv_cache": shared, "earlier": [shared]})
    assert back["kv_cache"] is back["earlier"][0]


def test_a_named_tuple_of_a_library_comes_back_with_its_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = namedtuple("Pair", "cos sin", module="diffusers.models.embeddings")
    module = sys.modules["diffusers.models.embeddings"]
    monkeypatch.setattr(module, "Pair", pair, raising=False)
    back = stored([pair(torch.ones(1), 2)])[0]
    assert isinstance(back, pair)
    assert torch.equal(back.cos, torch.ones(1))


class Mine:
    """A class of no library."""


@pytest.mark.parametrize(
    "leaf",
    [object(), Mine(), {(1,): 2}, {torch.eye(2)}, nn.Linear(1, 1), torch.Generator(), breakpoint],
    ids=lambda leaf: type(leaf).__name__,
)
def test_a_leaf_that_no_file_holds_is_refused_by_its_path(leaf: Any) -> None:
    with pytest.raises(UnfoldableError, match=r"arguments\.deep\.1: the denoiser is called with a"):
        flatten({"deep": [0, leaf]})


def test_what_an_object_holds_is_refused_by_its_path() -> None:
    cache = QwenImage21KVCache(1)
    cache.get_layer(0).k = print  # type: ignore[assignment]
    with pytest.raises(UnfoldableError, match=r"arguments\.kv\.layer_caches\.0\.k: the denoiser"):
        flatten({"kv": cache})


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("os:system", CorruptFileError),
        ("subprocess:Popen", CorruptFileError),
        ("guidefold.ground.progress:Stop", CorruptFileError),
        ("torch.nn:Linear", CorruptFileError),
        ("torch:load", CorruptFileError),
        ("torch:Generator", CorruptFileError),
        ("diffusers:OfNoVersion", LibraryError),
        ("diffusers.of_no_version:Cache", LibraryError),
    ],
)
def test_a_file_names_no_class_but_those_that_hold_data(name: str, error: type[Exception]) -> None:
    skeleton = {"object": {"class": name, "at": "arguments", "fields": {}}}
    with pytest.raises(error, match=name):
        unflatten(skeleton, {}.__getitem__)
