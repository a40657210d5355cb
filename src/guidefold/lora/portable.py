"""The layers that every reader of LoRA files takes: ``portable.toml`` says what they go without."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from functools import cache
from importlib.resources import files
from typing import Any


def counted(layer: str) -> str:
    """A layer's name with its numbers written ``#``."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "#", layer)


def unportable(layers: Collection[str]) -> set[str]:
    """The layers that some readers of LoRA files leave out, or refuse a file for.

    Args:
        layers: The names of all of a denoiser's layers; of several denoisers in one module, each
            has its component's name as a prefix.
    """
    prefixes = {"", *(layer.partition(".")[0] + "." for layer in layers)}
    return {layer for prefix in prefixes for layer in _of_one_denoiser(layers, prefix)}


def _of_one_denoiser(layers: Collection[str], prefix: str) -> list[str]:
    """:func:`unportable` among the layers behind one prefix."""
    inner = {la: counted(la.removeprefix(prefix)) for la in layers if la.startswith(prefix)}
    present = set(inner.values())
    lost = {
        layer
        for family in _families()
        if present >= set(family["marks"])
        for layer in family["left_out"]
    }
    return [layer for layer, name in inner.items() if name in lost]


@cache
def _families() -> list[dict[str, Any]]:
    text = (files("guidefold.lora") / "portable.toml").read_text(encoding="utf-8")
    families: list[dict[str, Any]] = tomllib.loads(text)["family"]
    return families
