"""Which keys of a LoRA file each client drops: one rule per client, with the source it was read in.

A rule states what the client's own loader leaves out. Where a client relies on the depth of the
released models (two layers per block), the rule counts the base model's own layers, so that it
holds for every UNet of that design.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from guidefold.deliver.layer_names import OUTER, LayerNames, counted

Rule = Callable[[Collection[str], LayerNames], list[str] | None]
"""``(keys, layer names) -> dropped keys``; None where the client cannot load a LoRA onto such a
base model."""

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
"""The last part of a key, in every known spelling, and the tensor it names."""
KOHYA_PARTS = (".lora_down.weight", ".lora_up.weight", ".alpha")
PEFT_PARTS = (".lora_A.weight", ".lora_B.weight")
FORGE_MOST_UNKNOWN = 12


@dataclass(frozen=True)
class Reading:
    """How one client reads a file.

    Attributes:
        client: The client's name.
        meant: Whether the file's format is meant for this client.
        dropped: The keys that the client ignores; None where it cannot load a LoRA onto such a
            base model.
    """

    client: str
    meant: bool
    dropped: tuple[str, ...] | None

    @property
    def failed(self) -> bool:
        """Whether the file is meant for the client and the client drops keys."""
        return self.meant and bool(self.dropped)


def diffusers(keys: Collection[str], names: LayerNames) -> list[str] | None:
    """Stock diffusers, ``load_lora_weights``.

    Source: diffusers 0.42 loaders/lora_pipeline.py ``lora_state_dict`` (a file is in kohya's format
    if every key has its prefix; original block names are translated only for UNets with size
    conditioning, as SDXL's) and loaders/peft.py ``load_lora_adapter`` (keys without the component's
    prefix are skipped).
    """
    if keys and all(key.startswith("lora_unet_") for key in keys):
        if names.component != "unet" or not names.kohya:
            return sorted(keys)
        read = {kohya_stem(layer) for layer in names.original}
        if names.added:
            read |= {kohya_stem(name) for name in names.original.values()}
        return _unread(keys, read, KOHYA_PARTS)
    read = {f"{names.component}.{layer}" for layer in names.layers}
    read |= {processor_name(name) for name in read}
    return _unread(keys, read, PARTS.keys() - {*KOHYA_PARTS})


def peft(keys: Collection[str], names: LayerNames) -> list[str] | None:
    """Plain peft, ``PeftModel.from_pretrained``.

    Source: peft utils/save_and_load.py: the prefix ``base_model.model.``, then the layer's name.
    """
    return _unread(keys, {f"base_model.model.{layer}" for layer in names.layers}, PEFT_PARTS)


def comfyui(keys: Collection[str], names: LayerNames) -> list[str] | None:
    """ComfyUI.

    Source: comfy/lora.py ``model_lora_keys_unet``, comfy/utils.py ``unet_to_diffusers`` and the
    functions beside it, comfy/weight_adapter/lora.py ``LoRAAdapter.load``. It reads a UNet's
    attention layers, among diffusers' names, by the old ones only: ``processor.to_q``.
    """
    return _by_comfyui(keys, names, "comfyui")


def forge(keys: Collection[str], names: LayerNames) -> list[str] | None:
    """Forge: ComfyUI's reader of 2024, which refuses a file with too many unknown keys.

    Source: packages_3rdparty/comfyui_lora_collection/lora.py; extensions-builtin/sd_forge_lora/
    networks.py ``load_lora_for_models``: with more than twelve unknown keys nothing is loaded.
    """
    dropped = _by_comfyui(keys, names, "forge")
    return sorted(keys) if dropped and len(dropped) > FORGE_MOST_UNKNOWN else dropped


def a1111(keys: Collection[str], names: LayerNames) -> list[str] | None:
    """AUTOMATIC1111's web UI.

    Source: extensions-builtin/Lora/networks.py ``convert_diffusers_name_to_compvis`` and
    ``load_network``: kohya's keys, under the original names, or under diffusers' names except for
    the size embedding.
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
    layer_patcher.py, backend/model_manager/configs/lora.py. For UNets with size conditioning, a
    file is refused unless every key has one of three prefixes and all layer names are either the
    original ones or diffusers'.
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
    """Kohya's sd-scripts, when it generates pictures.

    Source: networks/lora.py ``LoRANetwork`` (UNET_TARGET_REPLACE_MODULE and its convolutions): only
    the layers within attention, residual blocks and resamplers.
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
"""The clients that a format is meant for, where they can load a LoRA onto the base model at all.
sd-scripts is reported but not among them: a file that it reads whole would lack the outer layers,
which every other client reads."""


def read_by_clients(
    keys: Collection[str], kind: str, names: LayerNames, loader: str
) -> list[Reading]:
    """Apply every client's rule to a file's keys.

    Args:
        keys: The file's keys.
        kind: The file's format.
        names: The denoiser's layer names.
        loader: The library that loads LoRAs into the pipeline: ``diffusers``, or plain ``peft``.
    """
    readings = []
    for client, rule in CLIENTS.items():
        absent = client == "diffusers" and loader != "diffusers"
        dropped = None if absent else rule(keys, names)
        meant = client in MEANT[kind] and dropped is not None
        readings.append(Reading(client, meant, None if dropped is None else tuple(dropped)))
    return readings


def kohya_stem(name: str) -> str:
    """A layer's part of kohya's keys: everything before the last part."""
    return "lora_unet_" + name.replace(".", "_")


def stem(key: str, parts: Iterable[str] = PARTS) -> str:
    """Everything before a key's last part; empty where the last part is unknown."""
    return next((key.removesuffix(part) for part in parts if key.endswith(part)), "")


def processor_name(layer: str) -> str:
    """An attention layer's name in diffusers' old files; any other layer's own name."""
    return re.sub(r"\.to_out\.0$", ".to_out", layer.replace(".to_", ".processor.to_"))


def _unread(keys: Collection[str], read: Collection[str], parts: Iterable[str]) -> list[str]:
    return sorted(key for key in keys if stem(key, parts) not in read)


def _by_comfyui(keys: Collection[str], names: LayerNames, client: str) -> list[str] | None:
    if not names.original:
        return _by_layout(keys, names, client, PARTS)
    read = set()
    for layer, original in names.original.items():
        old = processor_name(layer)
        read |= {kohya_stem(layer), kohya_stem(original)}
        read |= {old, f"unet.{old}", f"diffusion_model.{original}"}
    return _unread(keys, read, PARTS)


def _by_layout(
    keys: Collection[str], names: LayerNames, client: str, parts: Iterable[str]
) -> list[str] | None:
    if names.layout is None or client not in names.layout.prefixes:
        return None
    known = {layer for layer in names.layers if counted(layer) in names.layout.layers}
    prefixes = names.layout.prefixes[client]
    return _unread(keys, {prefix + layer for prefix in prefixes for layer in known}, parts)
