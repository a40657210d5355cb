"""Denoiser arguments as data: find what is batched, split a batch, join samples, flatten for files.

A tree is nested lists, tuples and dictionaries with tensors and plain values as leaves. The layout
of a batch is found by comparison: between the arguments for one prompt and those for two, whatever
doubles is batched. No pipeline's argument names appear here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import torch

from guidefold.ground import UnfoldableError

Tree = Any
# How a tree is batched, as JSON: {"axis": 0} a tensor, {"each": null} a list with one entry per
# sample, {"items": [...]} or {"fields": {...}} a container, null a leaf that all samples share.
Layout = dict[str, Any] | None

KEYS: dict[str, type] = {"fields": str, "numbered": int}
"""The name of a dictionary in a file, by the type of its keys."""


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
    if isinstance(one, Mapping) and isinstance(two, Mapping) and one.keys() == two.keys():
        return {"fields": {str(k): find_layout(one[k], two[k], f"{path}.{k}") for k in one}}
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        if len(one) == 1 and len(two) == 2:
            return {"each": None}
        if len(one) == len(two):
            pairs = enumerate(zip(one, two, strict=True))
            return {"items": [find_layout(a, b, f"{path}.{i}") for i, (a, b) in pairs]}
    elif type(one) is type(two) and not isinstance(one, Mapping) and one == two:
        return None  # a plain value that depended on the batch could not be split
    raise _unlike(path, one, two)


def split(tree: Tree, layout: Layout, count: int) -> list[Tree]:
    """Split the arguments for ``count`` samples into one tree per sample; tensors are views."""
    if layout is None:
        return [tree] * count
    if "axis" in layout:
        return list(tree.tensor_split(count, dim=layout["axis"]))
    if "each" in layout:
        return [type(tree)([item]) for item in tree]
    if "fields" in layout:
        columns = {k: split(v, layout["fields"][str(k)], count) for k, v in tree.items()}
        return [{k: column[i] for k, column in columns.items()} for i in range(count)]
    parts = [split(t, sub, count) for t, sub in zip(tree, layout["items"], strict=True)]
    return [type(tree)(part[i] for part in parts) for i in range(count)]


def join(trees: Sequence[Tree], layout: Layout) -> Tree:
    """Join the arguments for several samples into those of one call.

    A scalar tensor that is shared within each call but differs between the samples (the timestep)
    becomes a vector with one entry per sample.

    Raises:
        NotBatchableError: Shapes or plain values differ.
    """
    first = trees[0]
    if layout is None:
        return _share(trees)
    if "axis" in layout:
        rest = {t.shape[: layout["axis"]] + t.shape[layout["axis"] + 1 :] for t in trees}
        if len(rest) > 1 or len({t.dtype for t in trees}) > 1:
            raise NotBatchableError
        return torch.cat(list(trees), dim=layout["axis"])
    if "each" in layout:
        return type(first)([item for tree in trees for item in tree])
    if "fields" in layout:
        if any(t.keys() != first.keys() for t in trees):
            raise NotBatchableError
        return {k: join([t[k] for t in trees], layout["fields"][str(k)]) for k in first}
    if len({len(t) for t in trees}) > 1:
        raise NotBatchableError
    return type(first)(join([t[i] for t in trees], sub) for i, sub in enumerate(layout["items"]))


def flatten(tree: Tree, path: str = "arguments") -> tuple[Any, dict[str, torch.Tensor]]:
    """Separate a tree into JSON and tensors, as files hold them.

    Returns:
        ``(skeleton, tensors)``: JSON in which tensors are named by their path, and the tensors.

    Raises:
        UnfoldableError: The tree has a leaf that cannot be stored.
    """
    tensors: dict[str, torch.Tensor] = {}

    def visit(node: Tree, where: str) -> Any:
        if isinstance(node, torch.Tensor):
            tensors[where] = node
            return {"tensor": where}
        if node is None or isinstance(node, bool | int | float | str):
            return {"value": node}
        if isinstance(node, torch.dtype):
            return {"dtype": str(node).removeprefix("torch.")}
        for kind, key_type in KEYS.items():
            if isinstance(node, Mapping) and all(type(k) is key_type for k in node):
                return {kind: {str(k): visit(v, f"{where}.{k}") for k, v in node.items()}}
        if isinstance(node, list | tuple):
            kind = "tuple" if isinstance(node, tuple) else "list"
            return {kind: [visit(v, f"{where}.{i}") for i, v in enumerate(node)]}
        raise UnfoldableError(
            f"{where}: the denoiser is called with {describe_value(node)}, "
            "which cannot be recorded",
            "Guidefold records tensors, numbers, text, lists and dictionaries.",
        )

    return visit(tree, path), tensors


def unflatten(skeleton: Any, tensor: Callable[[str], torch.Tensor]) -> Tree:
    """Rebuild a tree; ``tensor`` finds a tensor by the name that :func:`flatten` gave it."""
    ((kind, content),) = skeleton.items()
    if kind == "tensor":
        return tensor(content)
    if kind == "value":
        return content
    if kind == "dtype":
        return getattr(torch, content)
    if kind in KEYS:
        return {KEYS[kind](k): unflatten(v, tensor) for k, v in content.items()}
    items = [unflatten(v, tensor) for v in content]
    return tuple(items) if kind == "tuple" else items


def tree_map(function: Callable[[torch.Tensor], torch.Tensor], tree: Tree) -> Tree:
    """Apply a function to every tensor of a tree; other leaves stay, and so do output classes."""
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        mapped = {k: tree_map(function, v) for k, v in tree.items()}
        # The output classes of diffusers and transformers are mappings and data classes at once.
        return type(tree)(**mapped) if is_dataclass(tree) else mapped
    if isinstance(tree, list | tuple):
        return type(tree)(tree_map(function, v) for v in tree)
    return tree


def tensors_of(tree: Tree) -> Iterator[torch.Tensor]:
    """Every tensor of a tree, in order."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors_of(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors_of(value)


def trees_close(one: Tree, two: Tree) -> bool:
    """Whether two trees have the same form and leaves, up to rounding in their precision."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        if one.shape != two.shape or not one.is_floating_point():
            return torch.equal(one, two)
        return torch.allclose(one.float(), two.to(one).float(), rtol=1e-3, atol=1e-5)
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(trees_close(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(trees_close, one, two))
    return type(one) is type(two) and bool(one == two)


def describe_value(value: object) -> str:
    """A value's type, and its shape if it has one."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


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
