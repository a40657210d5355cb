"""Other programs' names for a denoiser's layers, derived from its blocks and configuration."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from torch import nn

from guidefold.lora import LAYER_TYPES, counted

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
class Reader:
    """How one client reads files for a family of diffusion transformers.

    Attributes:
        prefixes: The prefixes before a layer's name in diffusers; one that ends in ``_`` stands
            before a name whose dots are underscores too.
        original: The prefixes before a layer's original name.
        without: The layers that it is known not to read, numbers written ``#``.
        refuses: Whether it uses no part of a file with an unknown key.
        needs: The layers without which it does not take a file for the family.
        note: What else it does, in words.
    """

    prefixes: Sequence[str] = ()
    original: Sequence[str] = ()
    without: frozenset[str] = frozenset()
    refuses: bool = False
    needs: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class Layout:
    """A family of diffusion transformers that clients know.

    Attributes:
        architecture: Its name in ModelSpec's metadata.
        version: Its name in kohya's metadata; empty where there is none.
        layers: The layers that clients know, numbers written ``#``.
        read_by: How each client reads files for it, by client.
        original_names: Layer to its name in the family's original code, where a client needs it.
    """

    architecture: str
    version: str
    layers: frozenset[str]
    read_by: Mapping[str, Reader]
    original_names: Mapping[str, str]


@dataclass(frozen=True)
class LayerNames:
    """A denoiser's layers, and their names in other programs.

    Attributes:
        layers: The linear layers and convolutions, by diffusers' names.
        original: Layer to its name in the original code of latent diffusion; empty unless the
            denoiser is a UNet of that design.
        native: The same for a diffusion transformer, where a client needs those names.
        kohya: Layer to its name in kohya's files, dots kept; empty where kohya has no names.
        added: Whether the UNet has size conditioning, as SDXL's; kohya's files then use the
            original names.
        layout: The family of diffusion transformers, where it is known.
        config: The denoiser's configuration.
        component: The prefix of its keys in diffusers' files: the component name of the pipeline's
            first denoiser.
    """

    layers: frozenset[str]
    original: Mapping[str, str] = field(default_factory=dict)
    kohya: Mapping[str, str] = field(default_factory=dict)
    added: bool = False
    layout: Layout | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    component: str = ""
    native: Mapping[str, str] = field(default_factory=dict)

    def gap(self, client: str) -> frozenset[str]:
        """The layers of this denoiser that a client is known not to read."""
        if self.original:
            inner_only = client in client_facts()["unet"]["inner_only"]
            return frozenset(self.layers & OUTER.keys()) if inner_only else frozenset()
        reader = self.layout.read_by.get(client) if self.layout else None
        lost = reader.without if reader else frozenset()
        return frozenset(layer for layer in self.layers if counted(layer) in lost)


def layer_names(denoiser: nn.Module, component: str = "") -> LayerNames:
    """Collect a denoiser's layer names; ``component`` as in :class:`LayerNames`."""
    layers = frozenset(n for n, m in denoiser.named_modules() if isinstance(m, LAYER_TYPES))
    config = getattr(denoiser, "config", None)
    config = dict(config) if isinstance(config, Mapping) else {}  # a text encoder's is no mapping
    embedding = config.get("addition_embed_type")
    original = original_names(layers) if embedding in (None, "text_time") else {}
    added = embedding == "text_time"
    kohya = original if added else {layer: layer for layer in original}
    layout = find_layout(layers)
    native = native_names(layers, layout) if layout else {}
    return LayerNames(layers, original, kohya, added, layout, config, component, native)


def original_names(layers: Iterable[str]) -> dict[str, str]:
    """Name a UNet's layers as the original code of latent diffusion does.

    Source: ComfyUI comfy/utils.py ``unet_to_diffusers``; InvokeAI
    backend/patches/lora_conversions/sdxl_lora_conversion_utils.py; diffusers
    loaders/lora_conversion_utils.py ``_maybe_map_sgm_blocks_to_diffusers``. There one
    count runs through all blocks: the input convolution, then each block's layers and its
    downsampler.

    Args:
        layers: Layers by diffusers' names.

    Returns:
        The original name of each layer that has one; empty for other designs.
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
        part, number = middle[1], int(middle[2])
        rest = _inner(part, middle[3])
        return f"middle_block.{1 if part == 'attentions' else 2 * number}.{rest}" if rest else ""
    if not block:
        return ""
    side, place = block[1], _place(block, layers)
    return f"{'input' if side == 'down' else 'output'}_blocks.{place}" if place else ""


def _place(match: re.Match[str], layers: set[str]) -> str:
    """A layer's place under the original code's count through all blocks; empty for none."""
    side, block, part, number = match[1], int(match[2]), match[3], int(match[4])
    first, count = _first(side, block, layers), _resnets(side, block, layers)
    if part in ("resnets", "attentions"):
        rest = _inner(part, match[5])
        return f"{first + number}.{int(part == 'attentions')}.{rest}" if rest else ""
    if match[5] != "conv":
        return ""
    if side == "down":
        return f"{first + count}.0.op"
    # An upsampler follows the block's last layer, and that layer's attention where it has one.
    attended = f"up_blocks.{block}.attentions.{count - 1}.proj_in" in layers
    return f"{first + count - 1}.{1 + attended}.conv"


def _inner(part: str, rest: str) -> str:
    """A layer's original name within its residual block or attention; empty for none."""
    if part == "resnets":
        return RESNET.get(rest, "")
    return rest if ATTENTION.fullmatch(rest) else ""


def _first(side: str, block: int, layers: set[str]) -> int:
    """The original number of a block's first layer."""
    # On the way down, the input convolution and each block's downsampler count as one layer each.
    extra = int(side == "down")
    return extra + sum(_resnets(side, before, layers) + extra for before in range(block))


def _resnets(side: str, block: int, layers: set[str]) -> int:
    """The number of a block's residual blocks."""
    shape = re.compile(rf"{side}_blocks\.{block}\.resnets\.\d+\.conv1")
    return sum(shape.fullmatch(layer) is not None for layer in layers)


def native_names(layers: Iterable[str], layout: Layout) -> dict[str, str]:
    """Name a transformer's layers as its family's original code does, where the table has them."""
    named = {}
    for layer in layers:
        if name := layout.original_names.get(counted(layer)):
            for number in re.findall(r"(?<=\.)\d+(?=\.|$)", layer):
                name = name.replace("#", number, 1)
            named[layer] = name
    return named


def find_layout(layers: Iterable[str]) -> Layout | None:
    """The family of diffusion transformers that has these layers; None where none is known."""
    present = {counted(layer) for layer in layers}
    for entry in client_facts()["layout"]:
        if present >= set(entry["marks"]):
            known = frozenset(entry["layers"])
            readers = {client: _reader(how, known) for client, how in entry["read_by"].items()}
            original = entry.get("original_names", {})
            return Layout(entry["architecture"], entry["version"], known, readers, original)
    return None


def _reader(how: Mapping[str, Any], layers: frozenset[str]) -> Reader:
    """A reader from its table, where ``only`` lists what it reads in place of what it does not."""
    without = frozenset(how.get("without", ()))
    if "only" in how:
        without = layers - set(how["only"])
    plain = {name: value for name, value in how.items() if name not in ("only", "without")}
    return Reader(without=without, **plain)


@cache
def client_facts() -> dict[str, Any]:
    """The tables of ``clients.toml``."""
    return tomllib.loads((files("guidefold.deliver") / "clients.toml").read_text(encoding="utf-8"))


def fits(wanted: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a configuration has the values that an entry of a table names."""
    return all(config.get(name) == value for name, value in wanted.items())
