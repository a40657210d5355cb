"""Denoiser arguments as data: find what is batched, split a batch, join samples, flatten for files.

A tree is nested lists, tuples, dictionaries and objects (:mod:`guidefold.listen.objects`) with
tensors and plain values as leaves. An object that stands in a tree twice is one object in every
tree that is made from it. The layout of a batch is found by comparison: between the arguments for
one prompt and those for two, whatever doubles is batched. No pipeline's argument names appear here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from guidefold.ground import UnfoldableError, kind_of
from guidefold.listen.objects import fields_of, is_object, with_fields, with_items

Tree = Any
# How a tree is batched, as JSON: {"axis": 0} a tensor, {"each": null} a list with one entry per
# sample, {"items": [...]} or {"fields": {...}} a container, null a leaf that all samples share.
Layout = dict[str, Any] | None

NOTHING: Mapping[int, Tree] = MappingProxyType({})
Objects = dict[Any, Any]
"""The objects that a new tree holds, by the identities of those that they were made from."""


class NotBatchableError(Exception):
    """These samples cannot share one denoiser call; run them one by one."""


def find_layout(one: Tree, two: Tree, path: str = "arguments") -> Layout:
    """Compare the arguments for one sample with those for two.

    Args:
        one: Arguments of a call for one sample.
        two: Arguments of the same call for two samples of the same shape.
        path: The place within the arguments, for messages.

    Returns:
        The layout: the batched leaves and their axes.

    Raises:
        UnfoldableError: The two do not have the same form.
    """
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return _tensor_layout(one, two, path)
    fields, others = fields_of(one), fields_of(two)
    if fields is not None and others is not None and fields.keys() == others.keys():
        pairs = ((k, value, others[k]) for k, value in fields.items())
        return {"fields": {str(k): find_layout(a, b, f"{path}.{k}") for k, a, b in pairs}}
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        if len(one) == 1 and len(two) == 2:
            return {"each": None}
        if len(one) == len(two):
            rows = enumerate(zip(one, two, strict=True))
            return {"items": [find_layout(a, b, f"{path}.{i}") for i, (a, b) in rows]}
    elif type(one) is type(two) and fields is None and one == two:
        return None  # a plain value that depended on the batch could not be split
    raise _unlike(path, one, two)


def split(tree: Tree, layout: Layout, count: int) -> list[Tree]:
    """Split the arguments for ``count`` samples into one tree per sample; tensors are views."""
    return _split(tree, layout, count, {})


def _split(tree: Tree, layout: Layout, count: int, done: Objects) -> list[Tree]:
    if layout is None:
        return [tree] * count
    if "axis" in layout:
        return list(tree.tensor_split(count, dim=layout["axis"]))
    if "each" in layout:
        return [with_items(tree, [item]) for item in tree]
    fields = fields_of(tree)
    if fields is None:
        parts = [_split(t, sub, count, done) for t, sub in zip(tree, layout["items"], strict=True)]
        return [with_items(tree, [part[i] for part in parts]) for i in range(count)]
    if id(tree) in done:
        return list(done[id(tree)])
    columns = {k: _split(v, layout["fields"][str(k)], count, done) for k, v in fields.items()}
    rows = [{k: column[i] for k, column in columns.items()} for i in range(count)]
    made: list[Tree] = _kept(tree, id(tree), [with_fields(tree, row) for row in rows], done)
    return made


def join(trees: Sequence[Tree], layout: Layout) -> Tree:
    """Join the arguments for several samples into those of one call.

    A scalar tensor that is shared within each call but differs between the samples (the timestep)
    becomes a vector with one entry per sample.

    Raises:
        NotBatchableError: Shapes or plain values differ.
    """
    return _join(trees, layout, {})


def _join(trees: Sequence[Tree], layout: Layout, done: Objects) -> Tree:
    first = trees[0]
    if layout is None:
        return _share(trees)
    if "axis" in layout:
        rest = {t.shape[: layout["axis"]] + t.shape[layout["axis"] + 1 :] for t in trees}
        if len(rest) > 1 or len({t.dtype for t in trees}) > 1:
            raise NotBatchableError
        return torch.cat(list(trees), dim=layout["axis"])
    if "each" in layout:
        return with_items(first, [item for tree in trees for item in tree])
    if fields_of(first) is not None:
        return _join_fields(trees, layout["fields"], done)
    if len({len(t) for t in trees}) > 1:
        raise NotBatchableError
    items = enumerate(layout["items"])
    return with_items(first, [_join([t[i] for t in trees], sub, done) for i, sub in items])


def _join_fields(trees: Sequence[Tree], layouts: dict[str, Layout], done: Objects) -> Tree:
    key = tuple(map(id, trees))
    if key in done:
        return done[key]
    columns = [fields_of(tree) or {} for tree in trees]
    first = columns[0]
    if any(c.keys() != first.keys() for c in columns) or not {*map(str, first)} <= layouts.keys():
        raise NotBatchableError
    joined = {k: _join([c[k] for c in columns], layouts[str(k)], done) for k in first}
    return _kept(trees[0], key, with_fields(trees[0], joined), done)


def _kept(like: Tree, key: object, made: Any, done: Objects) -> Any:
    """Note what was made of an object, so that it is made once."""
    if is_object(like):
        done[key] = made
    return made


def tree_map(
    function: Callable[[torch.Tensor], torch.Tensor],
    tree: Tree,
    known: Mapping[int, Tree] = NOTHING,
) -> Tree:
    """Apply a function to every tensor of a tree; other leaves stay, and so do classes.

    Args:
        function: From a tensor to its replacement.
        tree: The tree; its containers and objects are copied.
        known: Replacements of objects, by the identity of the object.

    Raises:
        UnfoldableError: An object holds itself.
    """
    done: Objects = dict(known)

    def visit(node: Tree) -> Tree:
        if isinstance(node, torch.Tensor):
            return function(node)
        if isinstance(node, list | tuple):
            return with_items(node, [visit(item) for item in node])
        fields = fields_of(node)
        if fields is None:
            return node
        if not is_object(node):
            return with_fields(node, {k: visit(v) for k, v in fields.items()})
        if id(node) not in done:
            done[id(node)] = None
            done[id(node)] = with_fields(node, {k: visit(v) for k, v in fields.items()})
        elif done[id(node)] is None:
            raise UnfoldableError(
                f"the denoiser is called with {describe_value(node)} that holds itself",
                "Guidefold records objects whose attributes are a tree.",
            )
        return done[id(node)]

    return visit(tree)


def tensors_of(tree: Tree) -> Iterator[torch.Tensor]:
    """Every tensor of a tree, in order."""
    return (node for node in _nodes(tree, within=True) if isinstance(node, torch.Tensor))


def objects_of(tree: Tree) -> list[Any]:
    """The objects of a tree that do not stand within another one, in order, each once."""
    found = (node for node in _nodes(tree, within=False) if is_object(node))
    return list({id(node): node for node in found}.values())


def _nodes(tree: Tree, *, within: bool) -> Iterator[Tree]:
    """A tree's nodes, in order, within objects or not; each object once."""
    seen: set[int] = set()

    def visit(node: Tree) -> Iterator[Tree]:
        yield node
        if isinstance(node, list | tuple):
            for item in node:
                yield from visit(item)
        elif not is_object(node) or (within and id(node) not in seen):
            seen.add(id(node))
            for value in (fields_of(node) or {}).values():
                yield from visit(value)

    return visit(tree)


def trees_close(one: Tree, two: Tree) -> bool:
    """Whether two trees have the same form and leaves, up to rounding in their precision."""
    return _alike(one, two, _tensors_close)


def trees_equal(one: Tree, two: Tree) -> bool:
    """Whether two trees have the same form and leaves, bit for bit."""
    return _alike(one, two, torch.equal)


def _alike(one: Tree, two: Tree, same: Callable[[torch.Tensor, torch.Tensor], bool]) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return same(one, two)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(partial(_alike, same=same), one, two))
    fields, others = fields_of(one), fields_of(two)
    if fields is not None and others is not None:
        return fields.keys() == others.keys() and all(
            _alike(value, others[k], same) for k, value in fields.items()
        )
    return type(one) is type(two) and bool(one == two)


def _tensors_close(one: torch.Tensor, two: torch.Tensor) -> bool:
    if one.shape != two.shape or not one.is_floating_point():
        return torch.equal(one, two)
    return torch.allclose(one.float(), two.to(one).float(), rtol=1e-3, atol=1e-5)


def describe_value(value: object) -> str:
    """A value's type, and its shape if it has one."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    kind = kind_of(value)
    return f"a {kind}" if kind == type(value).__name__ else kind


def _tensor_layout(one: torch.Tensor, two: torch.Tensor, path: str) -> Layout:
    if one.shape == two.shape and torch.equal(one, two):
        return None
    if one.ndim == two.ndim:
        changed = [d for d in range(one.ndim) if one.shape[d] != two.shape[d]]
        if len(changed) == 1 and two.shape[changed[0]] == 2 * one.shape[changed[0]]:
            return {"axis": changed[0]}
    raise _unlike(path, one, two)


def _unlike(path: str, one: Tree, two: Tree) -> UnfoldableError:
    return UnfoldableError(
        f"{path}: {describe_value(one)} for one prompt, {describe_value(two)} for two",
        "Guidefold cannot tell how this pipeline batches its denoiser's arguments.",
    )


def _share(trees: Sequence[Tree]) -> Tree:
    first = trees[0]
    if isinstance(first, torch.Tensor):
        if all(torch.equal(first, t) for t in trees[1:]):
            return first
        if all(t.ndim == 0 for t in trees):
            return torch.stack(list(trees))
        raise NotBatchableError
    if any(t != first or type(t) is not type(first) for t in trees[1:]):
        raise NotBatchableError
    return first
