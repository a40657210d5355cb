"""Denoiser arguments as files hold them: JSON in which tensors and classes are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from guidefold.ground import UnfoldableError
from guidefold.listen.arguments import Tree, describe_value
from guidefold.listen.objects import (
    class_name,
    fields_of,
    find_class,
    has_class,
    is_named,
    is_object,
    is_plain,
    make,
)

KEYS: dict[str, type] = {"fields": str, "numbered": int}
"""The name of a dictionary in a file, by the type of its keys."""


def flatten(tree: Tree, path: str = "arguments") -> tuple[Any, dict[str, torch.Tensor]]:
    """Separate a tree into JSON and tensors, as files hold them.

    Returns:
        ``(skeleton, tensors)``: JSON in which tensors are named by their path, and the tensors.

    Raises:
        UnfoldableError: The tree has a leaf that cannot be stored.
    """
    flat = _Flat()
    return flat.visit(tree, path), flat.tensors


class _Flat:
    """A tree on its way into a file."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._objects: dict[int, str] = {}

    def visit(self, node: Tree, where: str) -> Any:
        if isinstance(node, torch.Tensor):
            self.tensors[where] = node
            return {"tensor": where}
        if node is None or isinstance(node, bool | int | float | str):
            return {"value": node}
        if isinstance(node, torch.dtype):
            return {"dtype": str(node).removeprefix("torch.")}
        if isinstance(node, type) and is_plain(node) and class_name(node):
            return {"class": class_name(node)}
        if isinstance(node, list | tuple):
            return self._items(node, where)
        return self._fields(node, where)

    def _items(self, node: list[Any] | tuple[Any, ...], where: str) -> Any:
        items = [self.visit(v, f"{where}.{i}") for i, v in enumerate(node)]
        if is_named(node):
            return {"named": {"class": _named(node, where), "items": items}}
        return {"tuple" if isinstance(node, tuple) else "list": items}

    def _fields(self, node: Tree, where: str) -> Any:
        fields = fields_of(node)
        for kind, key_type in KEYS.items():
            if fields is None or not all(type(k) is key_type for k in fields):
                continue
            if id(node) in self._objects:
                return {"same": self._objects[id(node)]}
            if is_object(node):
                self._objects[id(node)] = where
            stored = {str(k): self.visit(v, f"{where}.{k}") for k, v in fields.items()}
            if not has_class(node):
                return {kind: stored}
            return {"object": {"class": _named(node, where), "at": where, "fields": stored}}
        raise _not_recordable(node, where)


def unflatten(skeleton: Any, tensor: Callable[[str], torch.Tensor]) -> Tree:
    """Rebuild a tree; ``tensor`` finds a tensor by the name that :func:`flatten` gave it.

    Raises:
        CorruptFileError: It names a class that no arguments have.
        LibraryError: The installed library does not have a class.
    """
    return _Rebuilding(tensor).visit(skeleton)


class _Rebuilding:
    """A tree on its way out of a file."""

    def __init__(self, tensor: Callable[[str], torch.Tensor]) -> None:
        self._objects: dict[str, Any] = {}
        self._leaves: dict[str, Callable[[Any], Any]] = {
            "tensor": tensor,
            "value": lambda value: value,
            "dtype": partial(getattr, torch),
            "class": find_class,
            "same": self._objects.__getitem__,
        }

    def visit(self, node: Any) -> Tree:
        ((kind, content),) = node.items()
        if kind in self._leaves:
            return self._leaves[kind](content)
        if kind in KEYS:
            return {KEYS[kind](k): self.visit(v) for k, v in content.items()}
        if kind == "object":
            fields = {k: self.visit(v) for k, v in content["fields"].items()}
            return self._objects.setdefault(
                content["at"], make(find_class(content["class"]), fields)
            )
        if kind == "named":
            return find_class(content["class"])(*map(self.visit, content["items"]))
        items = [self.visit(v) for v in content]
        return tuple(items) if kind == "tuple" else items


def stored(tree: Tree) -> Tree:
    """A tree as it comes back from a file.

    Raises:
        UnfoldableError: It has a leaf that cannot be stored.
    """
    skeleton, tensors = flatten(tree)
    return unflatten(json.loads(json.dumps(skeleton)), tensors.__getitem__)


def _named(node: Tree, where: str) -> str:
    """The name of a value's class.

    Raises:
        UnfoldableError: It is no class of a library.
    """
    name = class_name(type(node))
    if name is None:
        raise _not_recordable(node, where)
    return name


def _not_recordable(node: Tree, where: str) -> UnfoldableError:
    return UnfoldableError(
        f"{where}: the denoiser is called with {describe_value(node)}, which cannot be recorded",
        "Guidefold records tensors, numbers, text, lists, dictionaries, and objects of the "
        "libraries' classes that hold these.",
    )
