"""A LoRA's tensors under the names of each format: written from peft's names, and read back.

Guidefold's own form is one: peft's names (``mid_block.proj.lora_A.weight``), with alpha equal to
the rank, whatever alpha the file had.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F

from guidefold.deliver.clients import (
    KOHYA_PREFIXES,
    ORIGINAL_PREFIX,
    PARTS,
    PEFT_PREFIX,
    kohya_stem,
    layers_by_stem,
    stem,
)
from guidefold.deliver.layer_names import LayerNames
from guidefold.ground import (
    CorruptFileError,
    InputError,
    MismatchError,
    NonFiniteError,
    parse_json,
)
from guidefold.lora import layers_of
from guidefold.run import Format

FORMATS: tuple[Format, ...] = get_args(Format)
Tensors = Mapping[str, torch.Tensor]

NAMELESS = {
    "kohya": "its names are for the UNets of latent diffusion",
    "original": "no client needs the names of this denoiser's original code",
}
LOST = 1e-3  # the share of the nonzero values that a smaller type may round to zero
ADAPTER_METADATA = "lora_adapter_metadata"
FOREIGN = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "a LoCon with a middle part",
}
NO_DENOISER = {
    "lora_te": "a layer of a text encoder",
    "text_encoder": "a layer of a text encoder",
    "bundle_emb": "an embedding",
}


def unfit(kind: Format, names: LayerNames, loader: str, layers: Collection[str]) -> str:
    """Why an adapter cannot be written in a format; empty where it can.

    Args:
        kind: The format.
        names: The denoiser's layer names.
        loader: The library that loads LoRAs into the pipeline.
        layers: The adapted layers.
    """
    if kind == "diffusers" and loader != "diffusers":
        return "diffusers has no LoRA loader for this pipeline"
    if kind == "transformer" and names.component != "transformer":
        return "it is for diffusion transformers"
    others = {"kohya": names.kohya, "original": names.native}.get(kind)
    if others is None:
        return ""
    if not others:
        return NAMELESS[kind]
    nameless = sorted(set(layers) - others.keys())
    more = f" and {len(nameless) - 3} more" if len(nameless) > 3 else ""
    shown = ", ".join(nameless[:3])
    return f"it has no name for {shown}{more}; another adapter.targets may do" if nameless else ""


def named(kind: Format, tensors: Tensors, names: LayerNames) -> dict[str, torch.Tensor]:
    """Rename tensors to a format's keys.

    Args:
        kind: ``diffusers``, ``kohya``, ``transformer``, ``original`` or ``peft``.
        tensors: The LoRA by peft's names; alpha equals the rank.
        names: The denoiser's layer names.
    """
    if kind == "original":
        both = [(layer, names.native[layer]) for layer in layers_of(tensors)]
        return {
            f"{ORIGINAL_PREFIX}{name}{part}": tensors[f"{layer}{part}"]
            for layer, name in both
            for part in (".lora_A.weight", ".lora_B.weight")
        }
    if kind != "kohya":
        prefix = PEFT_PREFIX if kind == "peft" else f"{names.component}."
        return {prefix + name: tensor for name, tensor in tensors.items()}
    renamed = {}
    for layer in layers_of(tensors):
        name, (down, up) = kohya_stem(names.kohya[layer]), factors(tensors, layer)
        renamed[f"{name}.lora_down.weight"] = down
        renamed[f"{name}.lora_up.weight"] = up
        renamed[f"{name}.alpha"] = torch.tensor(float(down.shape[0]))
    return renamed


def factors(tensors: Tensors, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's factors ``(A, B)`` by peft's names: shapes (rank, in, ...) and (out, rank, ...)."""
    return tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"]


def format_of(keys: Collection[str], path: Path) -> Format:
    """Recognise a file's format by its keys.

    Args:
        keys: The file's keys.
        path: The file, for error messages.

    Raises:
        InputError: The keys are of no known format, or of an adapter that is no plain LoRA.
    """
    for key in sorted(keys):
        refused = [noun for mark, noun in FOREIGN.items() if mark in key]
        refused += [noun for mark, noun in NO_DENOISER.items() if key.startswith(mark)]
        if refused:
            raise InputError(
                f"{path}: '{key}': {refused[0]}, which is not read here",
                "Only plain LoRAs of a denoiser are.",
            )
    if not any("lora" in key for key in keys):
        return "fused"
    if any(all(key.startswith(prefix) for key in keys) for prefix in KOHYA_PREFIXES):
        return "kohya"
    if all(key.startswith(ORIGINAL_PREFIX) for key in keys):
        return "original"
    if all(key.startswith(PEFT_PREFIX) for key in keys):
        return "peft"
    first = min(keys).partition(".")[0]
    unknown = [key for key in sorted(keys) if not key.startswith(f"{first}.") or not stem(key)]
    if not unknown:
        return "transformer" if first == "transformer" else "diffusers"
    raise InputError(
        f"{path}: '{unknown[0]}': a key of no format that is known here",
        f"Known are the keys of {', '.join(FORMATS[:-1])}.",
    )


def read(
    tensors: Tensors, kind: Format, names: LayerNames, config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Rename a file's tensors to peft's names, and fold alpha into ``B``.

    Args:
        tensors: The file's tensors by its own keys.
        kind: The file's format.
        names: The denoiser's layer names.
        config: peft's configuration, which holds alpha where the tensors do not.

    Raises:
        MismatchError: The denoiser lacks a layer, or one of a layer's factors is missing.
    """
    known = layers_by_stem(kind, names)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        layer = known.get(head := stem(key))
        if layer is None:
            raise MismatchError(
                f"'{key}' belongs to no layer of this denoiser",
                "Name the pipeline that the file was made for; other kinds of keys are not read.",
            )
        parts.setdefault(layer, {})[PARTS[key.removeprefix(head)]] = tensor
    plain = {}
    for layer, pair in sorted(parts.items()):
        if not {"down", "up"} <= pair.keys():
            raise MismatchError(f"'{layer}': one half of its pair is missing", "")
        down, up = pair["down"], pair["up"]
        if min(down.ndim, up.ndim) < 2 or not down.shape[0] == up.shape[1] > 0:
            shapes = f"{list(down.shape)} and {list(up.shape)}"
            raise MismatchError(f"'{layer}': its halves do not fit together: {shapes}", "")
        scale = _alpha(layer, pair, config, down.shape[0]) / down.shape[0]
        plain[f"{layer}.lora_A.weight"] = down
        plain[f"{layer}.lora_B.weight"] = up if scale == 1 else (up.float() * scale).to(up.dtype)
    return plain


def alphas_of(header: Mapping[str, str], component: str, path: Path) -> dict[str, Any]:
    """Rank and alpha from diffusers' metadata, keyed as in peft's configuration.

    Source: diffusers loaders/lora_base.py ``LORA_ADAPTER_METADATA_KEY``.

    Raises:
        CorruptFileError: The metadata is no table.
    """
    place = f"{path}, its {ADAPTER_METADATA}"
    values = parse_json(header.get(ADAPTER_METADATA, "{}"), place, CorruptFileError)
    if not isinstance(values, dict):
        raise CorruptFileError(f"{place}: holds no table")
    prefix = f"{component}."
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def cast(tensors: Tensors, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Convert tensors to another precision; alpha keeps its own.

    Raises:
        NonFiniteError: More than ``LOST`` of the values become zero, or some become infinite.
    """
    before = {n: t for n, t in tensors.items() if not n.endswith(".alpha")}
    after = {name: tensor.to(dtype) for name, tensor in before.items()}
    nonzero, left = (
        sum(int(tensor.count_nonzero()) for tensor in group.values()) for group in (before, after)
    )
    if nonzero - left > LOST * nonzero:
        raise NonFiniteError(
            f"{(nonzero - left) / nonzero:.1%} of the values become zero as {dtype}",
            "Write it with --dtype fp32, or with bf16, which reaches as far down.",
        )
    if not all(bool(tensor.isfinite().all()) for tensor in after.values()):
        raise NonFiniteError(
            f"values become infinite as {dtype}", "Write it with --dtype fp32 or bf16."
        )
    return {**tensors, **after}


def of_one_rank(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Pad smaller factors with zeros to one rank for all layers; the updates ``B A`` stay the same.

    Files with diffusers' or peft's keys hold no alpha; where ranks differ, older versions of
    diffusers scale every layer by the most common rank.
    """
    rank = max((factors(tensors, layer)[0].shape[0] for layer in layers_of(tensors)), default=0)
    padded = dict(tensors)
    for layer in layers_of(tensors):
        down, up = factors(tensors, layer)
        more = [0, rank - down.shape[0]]  # F.pad counts dimensions from the last one
        if more[1]:
            padded[f"{layer}.lora_A.weight"] = F.pad(down, [0, 0] * (down.ndim - 1) + more)
            padded[f"{layer}.lora_B.weight"] = F.pad(up, [0, 0] * (up.ndim - 2) + more)
    return padded


def _alpha(
    layer: str, pair: Mapping[str, torch.Tensor], config: Mapping[str, Any], rank: int
) -> float:
    """A layer's alpha: the file's, or the configuration's, or the rank where both lack it."""
    if "alpha" in pair:
        return float(pair["alpha"])
    alpha = float(config.get("lora_alpha") or rank)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern.lstrip('^')})", layer):
            alpha = float(value)
    # rank-stabilised LoRA scales by alpha / sqrt(rank); callers divide by the rank.
    return alpha * rank**0.5 if config.get("use_rslora") else alpha
