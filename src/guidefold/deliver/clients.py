"""Which keys of a LoRA file a client does not read: one small function each, with its source.

Each is the rule that the client's own loader follows, written down as what it leaves out. Where a
client counts on the depth of the released models (two layers a block), the base's own depth is
counted here, so that the rule holds for any UNet built like them.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from guidefold.deliver.layer_names import OUTER, LayerNames, client_facts, counted

Rule = Callable[[Collection[str], LayerNames], list[str] | None]
"""``(keys, names) -> keys that are dropped``; None where the client has no way to load
onto such a base at all."""

PARTS: Mapping[str, str] = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
}
"""The last part of a key, in anybody's spelling, and what stands there."""
KOHYA_PARTS = (".lora_down.weight", ".lora_up.weight", ".alpha")
PEFT_PARTS = (".lora_A.weight", ".lora_B.weight")
PATIENCE = 12


@dataclass(frozen=True)
class Reading:
    """What a client makes of a file.

    Attributes:
        client: Its name.
        meant: Whether the file's format is meant for it.
        dropped: The keys that it does not read; None where it cannot load onto such a base.
    """

    client: str
    meant: bool
    dropped: tuple[str, ...] | None

    @property
    def failed(self) -> bool:
        """Whether a client that the file is meant for leaves something out."""
        return self.meant and bool(self.dropped)


@dataclass(frozen=True)
class Source:
    """Where a client's rules were read.

    Attributes:
        date: The day of the commit; of our own, where neither commit nor version was noted.
        commit: Of the client's repository; empty where it was not noted.
        version: The released version, where that was read.
        note: What is to be said where there is neither.
    """

    date: datetime.date
    commit: str = ""
    version: str = ""
    note: str = ""


def sources() -> dict[str, Source]:
    """Where the rules of each client were read, by the client's name."""
    return {client: Source(**said) for client, said in client_facts()["source"].items()}


def diffusers(keys: Collection[str], names: LayerNames) -> list[str] | None:
    """Stock diffusers, ``load_lora_weights``.

    Source: diffusers 0.42 loaders/lora_pipeline.py ``lora_state_dict`` (a file is kohya's if every
    key begins so; block names are translated for UNets that are told of sizes only) and
    loaders/peft.py ``load_lora_adapter`` (what has not the component's prefix is passed over).
    """
    if keys and all(key.startswith("lora_unet_") for key in keys):
        if names.component != "unet" or not names.kohya:
            return sorted(keys)
        read = {kohya_stem(layer) for layer in names.original}
        if names.added:
            read |= {kohya_stem(name) for name in names.original.values()}
        return _unread(keys, read, KOHYA_PARTS)
    read = {f"{names.component}.{layer}" for layer in names.layers}
    read |= {_by_processor(name) for name in read}
    return _unread(keys, read, PARTS.keys() - {*KOHYA_PARTS})


def peft(keys: Collection[str], names: LayerNames) -> list[str] | None:
    """Plain peft, ``PeftModel.from_pretrained``.

    Source: peft utils/save_and_load.py: ``base_model.model.`` and the layer's own name.
    """
    return _unread(keys, {f"base_model.model.{layer}" for layer in names.layers}, PEFT_PARTS)


def comfyui(keys: Collection[str], names: LayerNames) -> list[str] | None:
    """ComfyUI.

    Source: comfy/lora.py ``model_lora_keys_unet``, comfy/utils.py ``unet_to_diffusers`` and its
    like, comfy/weight_adapter/lora.py ``LoRAAdapter.load``. Of a UNet, diffusers' attention layers
    are read by their old names only, ``processor.to_q``.
    """
    return _by_comfyui(keys, names, "comfyui")


def forge(keys: Collection[str], names: LayerNames) -> list[str] | None:
    """Forge, which has ComfyUI's reader of 2024 and gives up on a file that it knows too little of.

    Source: packages_3rdparty/comfyui_lora_collection/lora.py; extensions-builtin/sd_forge_lora/
    networks.py ``load_lora_for_models``: more than twelve unknown keys, and nothing is loaded.
    """
    dropped = _by_comfyui(keys, names, "forge")
    return sorted(keys) if dropped and len(dropped) > PATIENCE else dropped


def a1111(keys: Collection[str], names: LayerNames) -> list[str] | None:
    """AUTOMATIC1111's web UI.

    Source: extensions-builtin/Lora/networks.py ``convert_diffusers_name_to_compvis`` and
    ``load_network``: kohya's keys, by the original names, or by diffusers' names but for the
    embedding of added sizes.
    """
    if not names.original:
        return None
    read = {kohya_stem(name) for name in names.original.values()}
    read |= {
        kohya_stem(layer) for layer in names.original if not layer.startswith("add_embedding.")
    }
    return _unread(keys, read, KOHYA_PARTS)


def invokeai(keys: Collection[str], names: LayerNames) -> list[str] | None:
    """InvokeAI.

    Source: backend/patches/lora_conversions/ (sd, sdxl and flux_diffusers), backend/patches/
    layer_patcher.py, backend/model_manager/configs/lora.py. For UNets that are told of sizes every
    key has one of three prefixes and all names are of one kind, or the file is refused.
    """
    if not names.original:
        needs = names.layout.invokeai_needs if names.layout else ()
        for prefix in names.layout.prefixes.get("invokeai", ()) if names.layout else ():
            needed = {f"{prefix}{layer}{part}" for layer in needs for part in PEFT_PARTS}
            if needed <= set(keys) and all(key.endswith(PEFT_PARTS) for key in keys):
                return _by_layout(keys, names, "invokeai", PEFT_PARTS)
        return sorted(keys) if needs else None
    plain = {kohya_stem(layer) for layer in names.original}
    if not names.added:
        return _unread(keys, plain, KOHYA_PARTS)
    original = {kohya_stem(name) for name in names.original.values()}
    stems = {stem(key, KOHYA_PARTS) for key in keys}
    strange = any(not k.startswith(("lora_unet_", "lora_te1_", "lora_te2_")) for k in keys)
    if strange or (stems & original and stems & (plain - original)):
        return sorted(keys)
    return _unread(keys, original | plain, KOHYA_PARTS)


def sd_scripts(keys: Collection[str], names: LayerNames) -> list[str] | None:
    """Kohya's own sd-scripts, when it draws.

    Source: networks/lora.py ``LoRANetwork`` (UNET_TARGET_REPLACE_MODULE and its convolutions): the
    layers within attention, residual blocks and resamplers, and none outside of them.
    """
    if not names.kohya:
        return None
    inner = {name for layer, name in names.kohya.items() if layer not in OUTER}
    return _unread(keys, {kohya_stem(name) for name in inner}, KOHYA_PARTS)


CLIENTS: Mapping[str, Rule] = {
    "diffusers": diffusers,
    "peft": peft,
    "ComfyUI": comfyui,
    "Forge": forge,
    "A1111": a1111,
    "InvokeAI": invokeai,
    "sd-scripts": sd_scripts,
}
MEANT: Mapping[str, tuple[str, ...]] = {
    "diffusers": ("diffusers",),
    "kohya": ("diffusers", "ComfyUI", "Forge", "A1111", "InvokeAI"),
    "transformer": ("diffusers", "ComfyUI", "Forge", "InvokeAI"),
    "peft": ("peft",),
}
"""Whom a format is meant for, where they can load onto the base at all. sd-scripts is told of, and
nothing is held back for it: it would cost every other client the outer layers."""


def read_by_clients(
    keys: Collection[str], kind: str, names: LayerNames, loader: str
) -> list[Reading]:
    """What every client makes of a file's keys.

    Args:
        keys: The file's.
        kind: Its format.
        names: What the denoiser's layers are called.
        loader: Who loads LoRAs into that pipeline: ``diffusers``, or plain ``peft``.
    """
    readings = []
    for client, rule in CLIENTS.items():
        absent = client == "diffusers" and loader != "diffusers"
        dropped = None if absent else rule(keys, names)
        meant = client in MEANT[kind] and dropped is not None
        readings.append(Reading(client, meant, None if dropped is None else tuple(dropped)))
    return readings


def kohya_stem(name: str) -> str:
    """What stands before the last part of kohya's keys for a layer."""
    return "lora_unet_" + name.replace(".", "_")


def stem(key: str, parts: Iterable[str] = PARTS) -> str:
    """What stands before a key's last part; nothing where the part is unknown."""
    return next((key.removesuffix(part) for part in parts if key.endswith(part)), "")


def _unread(keys: Collection[str], read: Collection[str], parts: Iterable[str]) -> list[str]:
    return sorted(key for key in keys if stem(key, parts) not in read)


def _by_comfyui(keys: Collection[str], names: LayerNames, client: str) -> list[str] | None:
    if names.original:
        return _unread(keys, _unet_stems(names), PARTS)
    return _by_layout(keys, names, client, PARTS)


def _unet_stems(names: LayerNames) -> set[str]:
    """Every name that ComfyUI knows a UNet's layers by."""
    found = set()
    for layer, original in names.original.items():
        old = _by_processor(layer)
        found |= {kohya_stem(layer), kohya_stem(original)}
        found |= {old, f"unet.{old}", f"diffusion_model.{original}"}
    return found


def _by_processor(layer: str) -> str:
    """An attention layer's name in diffusers' old files; others are called the same."""
    return layer.replace(".to_", ".processor.to_").removesuffix(
        ".0" if layer.endswith(".to_out.0") else ""
    )


def _by_layout(
    keys: Collection[str], names: LayerNames, client: str, parts: Iterable[str]
) -> list[str] | None:
    if names.layout is None or client not in names.layout.prefixes:
        return None
    known = {layer for layer in names.layers if counted(layer) in names.layout.layers}
    prefixes = names.layout.prefixes[client]
    return _unread(keys, {prefix + layer for prefix in prefixes for layer in known}, parts)
