"""Objects that hold tensors (caches, outputs, named tuples) as trees of their attributes.

An object is taken apart and put together by its attributes alone, without running its class's own
code, and only if its class is a plain one of an installed library: files then hold its class's name
and JSON, no pickle, and a file cannot name code of another kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any

from torch import nn

from guidefold.ground import CorruptFileError, LibraryError, compat

LIBRARIES = ("diffusers", "torch", "transformers")
"""The packages whose classes are taken apart and named in files."""


def is_object(node: object) -> bool:
    """Whether a value is an object that can be taken apart: of a plain class of a library."""
    return is_plain(type(node)) and hasattr(node, "__dict__")


def is_plain(kind: type) -> bool:
    """Whether instances of a class are their attributes and nothing else.

    Modules, and classes with a constructor in C, with slots or with a destructor are none.
    """
    constructor: Any = kind.__new__
    return (
        _library(kind.__module__) in LIBRARIES
        and constructor is object.__new__
        and not issubclass(kind, nn.Module)
        and not any(vars(base).get("__slots__") for base in kind.__mro__)
        and not hasattr(kind, "__del__")
    )


def fields_of(node: object) -> Mapping[Any, Any] | None:
    """The entries of a mapping, or the attributes of an object; None for any other value."""
    if isinstance(node, Mapping):
        return node
    return vars(node) if is_object(node) else None


def with_fields(like: object, fields: dict[Any, Any]) -> Any:
    """A value of the kind of ``like`` that holds other fields; a mapping becomes a dictionary."""
    return make(type(like), fields) if has_class(like) else fields


def with_items(like: list[Any] | tuple[Any, ...], items: Iterable[Any]) -> Any:
    """A list, a tuple or a named tuple of the kind of ``like`` with other items."""
    return type(like)(*items) if is_named(like) else type(like)(items)


def is_named(node: object) -> bool:
    """Whether a value is a named tuple."""
    return compat.is_named_tuple(type(node))


def has_class(node: object) -> bool:
    """Whether a value's class is a part of it: an object's is, and that of an output class.

    The output classes of diffusers and transformers are mappings and data classes at once.
    """
    return is_dataclass(node) if isinstance(node, Mapping) else is_object(node)


def make(kind: type, fields: dict[Any, Any]) -> Any:
    """An instance of a class with these fields; the constructor runs for output classes alone."""
    if issubclass(kind, Mapping):
        return kind(**fields)
    new = object.__new__(kind)
    vars(new).update(fields)
    return new


def class_name(kind: type) -> str | None:
    """The name of a library's class in files, ``module:name``; None if it cannot be found by it."""
    name = f"{kind.__module__}:{kind.__qualname__}"
    named = _library(kind.__module__) in LIBRARIES and "<" not in name
    return name if named else None


def find_class(name: str) -> type:
    """The class of a name that :func:`class_name` gave.

    Raises:
        CorruptFileError: It names no class of :data:`LIBRARIES` that holds data alone.
        LibraryError: The installed library has no such class.
    """
    module, _, path = name.partition(":")
    library = _library(module)
    if library not in LIBRARIES:
        raise CorruptFileError(f"arguments: '{name}' is no class of {', '.join(LIBRARIES)}")
    try:
        kind: Any = import_module(module)
        for part in path.split("."):
            kind = getattr(kind, part)
    except (ImportError, AttributeError, RuntimeError) as error:  # RuntimeError: lazy imports
        raise LibraryError(
            f"arguments: the installed {library} has no class {name}",
            f"Install the version of {library} that the run was recorded with.",
        ) from error
    if not isinstance(kind, type) or not _holds_data(kind):
        raise CorruptFileError(f"arguments: '{name}' is no class that holds tensors")
    return kind


def _holds_data(kind: type) -> bool:
    output = issubclass(kind, Mapping) and is_dataclass(kind)
    return output or compat.is_named_tuple(kind) or is_plain(kind)


def _library(module: str) -> str:
    return module.split(".", maxsplit=1)[0]
