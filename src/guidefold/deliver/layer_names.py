"""What other programs call a denoiser's layers: decided by its blocks and its configuration."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from torch import nn

from guidefold.lora import ALL

OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ATTENTION = re.compile(
    r"proj_in|proj_out|transformer_blocks\.\d+\."
    r"(attn[12]\.to_([qkv]|out\.0)|ff\.net\.(0\.proj|2))"
)
BLOCK = re.compile(
    r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Layout:
    """A kind of diffusion transformer that clients know by diffusers' names.

    Attributes:
        architecture: As metadata names it.
        version: As kohya's metadata names it; empty where it does not.
        layers: The layers that they know, numbers written ``#``.
        prefixes: Behind which prefixes, by client.
        invokeai_needs: The layers that InvokeAI tells it by.
    """

    architecture: str
    version: str
    layers: frozenset[str]
    prefixes: Mapping[str, tuple[str, ...]]
    invokeai_needs: tuple[str, ...]


@dataclass(frozen=True)
class LayerNames:
    """What a denoiser's layers are called.

    Attributes:
        layers: Its linear layers and convolutions.
        original: Those that the original code of latent diffusion has too, by its names; empty of
            what is no UNet of that kind.
        kohya: What kohya's files call them, the dots still in; empty where they have no word.
        added: Whether the UNet is also told of sizes, as those are that kohya trains on the
            original code.
        layout: What kind of diffusion transformer it is, where clients know it.
        config: Its configuration.
        component: What stands before its keys in diffusers' files: the place of the first denoiser
            in its pipeline.
    """

    layers: frozenset[str]
    original: Mapping[str, str] = field(default_factory=dict)
    kohya: Mapping[str, str] = field(default_factory=dict)
    added: bool = False
    layout: Layout | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    component: str = ""


def layer_names(denoiser: nn.Module, component: str = "") -> LayerNames:
    """What the clients know of a denoiser."""
    layers = frozenset(n for n, m in denoiser.named_modules() if isinstance(m, ALL))
    said = getattr(denoiser, "config", None)
    config = dict(said) if isinstance(said, Mapping) else {}  # a text encoder's is no mapping
    embedded = config.get("addition_embed_type")
    known = original_names(layers) if embedded in (None, "text_time") else {}
    added = embedded == "text_time"
    kohya = known if added else {layer: layer for layer in known}
    return LayerNames(layers, known, kohya, added, find_layout(layers), config, component)


def original_names(layers: Iterable[str]) -> dict[str, str]:
    """What the original code of latent diffusion calls a UNet's layers.

    Source: ComfyUI comfy/utils.py ``unet_to_diffusers``; InvokeAI
    backend/patches/lora_conversions/sdxl_lora_conversion_utils.py; diffusers
    loaders/lora_conversion_utils.py ``_maybe_map_sgm_blocks_to_diffusers``. There the blocks are
    numbered through: an input convolution, then each block's layers and its downsampler.

    Args:
        layers: By diffusers' names.

    Returns:
        The original name of each layer that has one; nothing where the blocks are others.
    """
    layers = set(layers)
    if not {"conv_in", "conv_out", "mid_block.resnets.0.conv1"} <= layers:
        return {}
    named = {layer: _original(layer, layers) for layer in sorted(layers)}
    return {layer: name for layer, name in named.items() if name}


def _original(layer: str, layers: set[str]) -> str:
    """One layer's original name; empty where it has none."""
    if layer in OUTER:
        return OUTER[layer]
    middle, block = MIDDLE.fullmatch(layer), BLOCK.fullmatch(layer)
    if middle:
        kind, number = middle[1], int(middle[2])
        rest = _inner(kind, middle[3])
        return f"middle_block.{1 if kind == 'attentions' else 2 * number}.{rest}" if rest else ""
    if not block:
        return ""
    side, place = block[1], _place(block, layers)
    return f"{'input' if side == 'down' else 'output'}_blocks.{place}" if place else ""


def _place(found: re.Match[str], layers: set[str]) -> str:
    """A layer's place among the blocks, which the original code numbers through."""
    side, block, kind, number = found[1], int(found[2]), found[3], int(found[4])
    first, count = _first(side, block, layers), len(_resnets(side, block, layers))
    if kind in ("resnets", "attentions"):
        rest = _inner(kind, found[5])
        return f"{first + number}.{int(kind == 'attentions')}.{rest}" if rest else ""
    if found[5] != "conv":
        return ""
    if side == "down":
        return f"{first + count}.0.op"
    # It stands behind the block's last layer, and behind that layer's attention where it has one.
    attended = f"up_blocks.{block}.attentions.{count - 1}.proj_in" in layers
    return f"{first + count - 1}.{1 + attended}.conv"


def _inner(kind: str, rest: str) -> str:
    if kind == "resnets":
        return RESNET.get(rest, "")
    return rest if ATTENTION.fullmatch(rest) else ""


def _first(side: str, block: int, layers: set[str]) -> int:
    """The number of a block's first layer."""
    if side == "up":
        return sum(len(_resnets(side, before, layers)) for before in range(block))
    return 1 + sum(len(_resnets(side, before, layers)) + 1 for before in range(block))


def _resnets(side: str, block: int, layers: set[str]) -> list[str]:
    shape = re.compile(rf"{side}_blocks\.{block}\.resnets\.\d+\.conv1")
    return [layer for layer in layers if shape.fullmatch(layer)]


def counted(layer: str) -> str:
    """A layer's name with its numbers written ``#``."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "#", layer)


def find_layout(layers: Iterable[str]) -> Layout | None:
    """What kind of diffusion transformer has these layers."""
    have = {counted(layer) for layer in layers}
    for entry in client_facts()["layout"]:
        if have >= set(entry["marks"]):
            return Layout(
                entry["architecture"],
                entry["version"],
                frozenset(entry["layers"]),
                {client: tuple(p) for client, p in entry["prefixes"].items()},
                tuple(entry.get("invokeai_needs", ())),
            )
    return None


@cache
def client_facts() -> dict[str, Any]:
    """The tables of ``clients.toml``."""
    return tomllib.loads((files("guidefold.deliver") / "clients.toml").read_text(encoding="utf-8"))
