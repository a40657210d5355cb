"""A LoRA's tensors under the names of each format: written from peft's names, and read back.

In between there is one form: peft's names (``mid_block.proj.lora_A.weight``) with alpha equal to
the rank, whatever the file said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_args

import torch

from guidefold.deliver.clients import PARTS, kohya_stem, stem
from guidefold.deliver.layer_names import LayerNames
from guidefold.ground import InputError, MismatchError, NonFiniteError
from guidefold.lora import layers_of
from guidefold.run import Format

FORMATS: tuple[Format, ...] = get_args(Format)
Tensors = Mapping[str, torch.Tensor]

LOST = 1e-3  # of the values that are not zero, the share that a smaller type may make zero
PEFT_PREFIX = "base_model.model."
ADAPTER_METADATA = "lora_adapter_metadata"
FOREIGN = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "a LoCon with a middle part",
}
APART = {
    "lora_te": "a layer of a text encoder",
    "text_encoder": "a layer of a text encoder",
    "bundle_emb": "an embedding",
}


def unfit(kind: Format, names: LayerNames, loader: str, layers: Collection[str]) -> str:
    """Why a format does not fit an adapter; nothing where it does.

    Args:
        kind: The format.
        names: What the denoiser's layers are called.
        loader: Who loads LoRAs into the pipeline.
        layers: The adapted layers.
    """
    if kind == "diffusers" and loader != "diffusers":
        return "diffusers has no LoRA loader for this pipeline"
    if kind == "kohya" and not names.kohya:
        return "its names are for the UNets of latent diffusion"
    if kind == "kohya":
        silent = sorted(set(layers) - names.kohya.keys())
        if silent:
            more = f" and {len(silent) - 3} more" if len(silent) > 3 else ""
            return (
                f"it has no name for {', '.join(silent[:3])}{more}; another adapter.targets may do"
            )
    if kind == "transformer" and names.component != "transformer":
        return "it is for diffusion transformers"
    return ""


def named(kind: Format, tensors: Tensors, names: LayerNames) -> dict[str, torch.Tensor]:
    """Tensors under a format's names.

    Args:
        kind: ``diffusers``, ``kohya``, ``transformer`` or ``peft``.
        tensors: By peft's names; alpha equals the rank.
        names: What the denoiser's layers are called.
    """
    if kind != "kohya":
        prefix = PEFT_PREFIX if kind == "peft" else f"{names.component}."
        return {prefix + name: tensor for name, tensor in tensors.items()}
    found = {}
    for layer in layers_of(tensors):
        name = kohya_stem(names.kohya[layer])
        down = tensors[f"{layer}.lora_A.weight"]
        found[f"{name}.lora_down.weight"] = down
        found[f"{name}.lora_up.weight"] = tensors[f"{layer}.lora_B.weight"]
        found[f"{name}.alpha"] = torch.tensor(float(down.shape[0]))
    return found


def format_of(keys: Collection[str], path: Path) -> Format:
    """The format of a file, by its keys.

    Args:
        keys: The file's.
        path: The file, for the error.

    Raises:
        InputError: It is none of those.
    """
    for key in sorted(keys):
        what = [w for mark, w in FOREIGN.items() if mark in key]
        what += [w for mark, w in APART.items() if key.startswith(mark)]
        if what:
            raise InputError(
                f"{path}: '{key}': {what[0]}, which is not read here",
                "Only plain LoRAs of a denoiser are.",
            )
    if not any("lora" in key for key in keys):
        return "fused"
    if all(key.startswith("lora_unet_") for key in keys):
        return "kohya"
    if all(key.startswith(PEFT_PREFIX) for key in keys):
        return "peft"
    first = min(keys).partition(".")[0]
    strange = [key for key in sorted(keys) if not key.startswith(f"{first}.") or not stem(key)]
    if not strange:
        return "transformer" if first == "transformer" else "diffusers"
    raise InputError(
        f"{path}: '{strange[0]}': a key of no format that is known here",
        f"Known are the keys of {', '.join(FORMATS[:-1])}.",
    )


def read(
    tensors: Tensors, kind: Format, names: LayerNames, about: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """A file's tensors by peft's names, alpha folded in.

    Args:
        tensors: As the file names them.
        kind: Its format.
        names: What the denoiser's layers are called.
        about: What says alpha elsewhere: peft's configuration.

    Raises:
        MismatchError: A layer that the denoiser does not have, or half a pair.
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
    found = {}
    for layer, pair in sorted(parts.items()):
        if not {"down", "up"} <= pair.keys():
            raise MismatchError(f"'{layer}': one half of its pair is missing", "")
        down, up = pair["down"], pair["up"]
        scale = _alpha(layer, pair, about, down.shape[0]) / down.shape[0]
        found[f"{layer}.lora_A.weight"] = down
        found[f"{layer}.lora_B.weight"] = up if scale == 1 else (up.float() * scale).to(up.dtype)
    return found


def alphas_of(header: Mapping[str, str], component: str) -> dict[str, Any]:
    """What diffusers' metadata says of rank and alpha, as in peft's configuration.

    Source: diffusers loaders/lora_base.py ``LORA_ADAPTER_METADATA_KEY``.
    """
    values = json.loads(header.get(ADAPTER_METADATA, "{}"))
    prefix = f"{component}."
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def cast(tensors: Tensors, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors in another precision.

    Raises:
        NonFiniteError: More values than a few become zero in it, or become infinite.
    """
    whole = {n: t for n, t in tensors.items() if not n.endswith(".alpha")}
    small = {name: tensor.to(dtype) for name, tensor in whole.items()}
    there = sum(int(tensor.count_nonzero()) for tensor in whole.values())
    left = sum(int(tensor.count_nonzero()) for tensor in small.values())
    if there - left > LOST * there:
        raise NonFiniteError(
            f"{(there - left) / there:.1%} of the values become zero as {dtype}",
            "Write it with --dtype fp32, or with bf16, which reaches as far down.",
        )
    if not all(bool(tensor.isfinite().all()) for tensor in small.values()):
        raise NonFiniteError(
            f"values become infinite as {dtype}", "Write it with --dtype fp32 or bf16."
        )
    return {**tensors, **small}


def of_one_rank(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The same updates with one rank for all layers: zeros beside the smaller ones.

    Files by diffusers' and peft's names hold no alpha; where ranks differ, older diffusers
    gives each layer the scale of the most common rank.
    """
    ranks = {tensors[f"{layer}.lora_A.weight"].shape[0] for layer in layers_of(tensors)}
    found = dict(tensors)
    for layer in layers_of(tensors) if len(ranks) > 1 else ():
        down, up = tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"]
        more = max(ranks) - down.shape[0]
        empty = (
            down.new_zeros(more, *down.shape[1:]),
            up.new_zeros(up.shape[0], more, *up.shape[2:]),
        )
        found[f"{layer}.lora_A.weight"] = torch.cat([down, empty[0]])
        found[f"{layer}.lora_B.weight"] = torch.cat([up, empty[1]], dim=1)
    return found


def layers_by_stem(kind: Format, names: LayerNames) -> dict[str, str]:
    """From what stands before a key's last part to the layer."""
    if kind == "kohya":
        both = [(layer, layer) for layer in names.layers] + list(names.original.items())
        return {kohya_stem(name): layer for layer, name in both}
    prefix = PEFT_PREFIX if kind == "peft" else f"{names.component}."
    found = {prefix + layer: layer for layer in names.layers}
    for layer in names.layers:  # the old names of attention layers
        old = re.sub(r"\.to_out\.0$", ".to_out", layer.replace(".to_", ".processor.to_"))
        found.setdefault(prefix + old, layer)
    return found


def _alpha(
    layer: str, pair: Mapping[str, torch.Tensor], about: Mapping[str, Any], rank: int
) -> float:
    """A layer's alpha: the file's, or the configuration's, or the rank where neither says."""
    if "alpha" in pair:
        return float(pair["alpha"])
    alpha = float(about.get("lora_alpha") or rank)
    for pattern, value in (about.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern.lstrip('^')})", layer):
            alpha = float(value)
    return alpha * rank**0.5 if about.get("use_rslora") else alpha
