"""Which keys of a LoRA file each client drops: one rule per client, with the source it was read in.

A rule states what the client's own loader leaves out. Where a client relies on the depth of the
released models (two layers per block), the rule counts the base model's own layers, so that it
holds for every UNet of that design.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from guidefold.deliver.layer_names import LayerNames, Reader
from guidefold.ground import plural
from guidefold.lora import counted

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
KOHYA_PREFIX = "lora_unet_"
KOHYA_PREFIXES = (KOHYA_PREFIX, "lycoris_")
"""LyCORIS writes the same names behind its own prefix, where it is used without kohya's trainer."""
ORIGINAL_PREFIX = "diffusion_model."
PEFT_PREFIX = "base_model.model."
KOHYA_PARTS = (".lora_down.weight", ".lora_up.weight", ".alpha")
PEFT_PARTS = (".lora_A.weight", ".lora_B.weight")
FORGE_MOST_UNKNOWN = 12


@dataclass(frozen=True)
class Reading:
    """How one client reads a file.

    Attributes:
        client: The client's name.
        meant: Whether the file is for this client: its format is, and so are its layers.
        dropped: The keys that the client ignores; None where it cannot load a LoRA onto such a
            base model.
        gap: Whether the file is not for this client because of layers that it is known not to
            read: without these it reads every key.
        note: What else the client does with the file, in words.
    """

    client: str
    meant: bool
    dropped: tuple[str, ...] | None
    gap: bool = False
    note: str = ""

    @property
    def failed(self) -> bool:
        """Whether the file is meant for the client and the client drops keys."""
        return self.meant and bool(self.dropped)

    def loss(self, keys: int) -> str:
        """What the client ignores of a file with this number of keys, in words."""
        dropped = self.dropped or ()
        lost = sorted({key.partition(".lora_")[0].removesuffix(".alpha") for key in dropped})
        if self.note or len(dropped) == keys:
            return self.note or "refuses the file"
        names = ", ".join(lost[:3]) + (" ..." if len(lost) > 3 else "")
        return f"drops {plural(len(lost), 'layer')}: {names}"


def diffusers(keys: Collection[str], names: LayerNames) -> list[str] | None:
    """Stock diffusers, ``load_lora_weights``.

    Source: diffusers 0.42 loaders/lora_pipeline.py ``lora_state_dict`` (a file is in kohya's format
    if every key has its prefix; original block names are translated only for UNets with size
    conditioning, as SDXL's) and loaders/peft.py ``load_lora_adapter`` (keys without the component's
    prefix are skipped).
    """
    if keys and all(key.startswith(KOHYA_PREFIX) for key in keys):
        if names.component != "unet" or not names.kohya:
            return sorted(keys)
        read = {kohya_stem(layer) for layer in names.original}
        if names.added:
            read |= {kohya_stem(name) for name in names.original.values()}
        return _unread(keys, read, KOHYA_PARTS)
    read = {f"{names.component}.{layer}" for layer in names.layers}
    read |= {processor_name(name) for name in read}
    return _unread(keys, read, PARTS.keys() - {*KOHYA_PARTS})


def older_diffusers(keys: Collection[str], names: LayerNames) -> list[str] | None:
    """Stock diffusers up to 0.38: of kohya's files it leaves out a UNet's outer layers.

    Source: diffusers 0.35.2 and 0.38.0, run on such files: without size conditioning a warning and
    the layers are lost, with it ``load_lora_weights`` raises. 0.39.0 reads them.
    """
    if not names.kohya:
        return None
    dropped = set(diffusers(keys, names) or ())
    if any(not key.startswith(KOHYA_PREFIX) for key in keys):
        return sorted(dropped)
    outer = {kohya_stem(n) for layer in names.gap(OLDER) for n in (layer, names.original[layer])}
    lost = {key for key in keys if stem(key) in outer}
    return sorted(keys) if lost and names.added else sorted(dropped | lost)


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
    return _by_comfyui(keys, names, "ComfyUI")


def forge(keys: Collection[str], names: LayerNames) -> list[str] | None:
    """Forge: ComfyUI's reader of 2024, which refuses a file with too many unknown keys.

    Source: packages_3rdparty/comfyui_lora_collection/lora.py; extensions-builtin/sd_forge_lora/
    networks.py ``load_lora_for_models``: with more than twelve unknown keys nothing is loaded.
    """
    dropped = _by_comfyui(keys, names, "Forge")
    return sorted(keys) if dropped and len(dropped) > FORGE_MOST_UNKNOWN else dropped


def a1111(keys: Collection[str], names: LayerNames) -> list[str] | None:
    """AUTOMATIC1111's web UI.

    Source: extensions-builtin/Lora/networks.py ``convert_diffusers_name_to_compvis`` and
    ``load_network``: kohya's keys, under the original names, or under diffusers' names except for
    the size embedding. For Stable Diffusion 3, modules/models/sd3/sd3_model.py
    ``diffusers_weight_mapping``.
    """
    if not names.original:
        return _by_layout(keys, names, "A1111", PEFT_PARTS)
    read = {kohya_stem(name) for name in names.original.values()}
    read |= {
        kohya_stem(layer) for layer in names.original if not layer.startswith("add_embedding.")
    }
    return _unread(keys, read, KOHYA_PARTS)


def invokeai(keys: Collection[str], names: LayerNames) -> list[str] | None:
    """InvokeAI.

    Source: backend/patches/lora_conversions/ (sd, sdxl, flux_diffusers, qwen_image, z_image, wan),
    backend/patches/layer_patcher.py, backend/model_manager/configs/lora.py. For UNets with size
    conditioning, a file is refused unless every key has one of three prefixes and all layer names
    are either the original ones or diffusers'.
    """
    if not names.original:
        return _by_layout(keys, names, "InvokeAI", PEFT_PARTS)
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
    gap = names.gap("sd-scripts")
    inner = {name for layer, name in names.kohya.items() if layer not in gap}
    return _unread(keys, {kohya_stem(name) for name in inner}, KOHYA_PARTS)


def sd_cpp(keys: Collection[str], names: LayerNames) -> list[str] | None:
    """stable-diffusion.cpp: of UNets all but the outer layers.

    Source: src/name_conversion.cpp ``convert_tensor_name``: a layer's underscores become dots but
    for a list of words, in which the time and size embeddings are missing; the input and output
    convolutions are known by the original names alone.
    """
    if not names.original:
        return None
    gap, read = names.gap("sd.cpp"), set()
    for layer, original in names.original.items():
        if layer not in gap or layer.startswith("conv_"):
            read |= {kohya_stem(original), f"diffusion_model.{original}"}
        if layer not in gap:
            read |= {kohya_stem(layer), f"unet.{layer}"}
    return _unread(keys, read, PARTS)


OLDER = "diffusers before 0.39"
CLIENTS: Mapping[str, Rule] = {
    "diffusers": diffusers,
    OLDER: older_diffusers,
    "peft": peft,
    "ComfyUI": comfyui,
    "Forge": forge,
    "A1111": a1111,
    "InvokeAI": invokeai,
    "sd-scripts": sd_scripts,
    "sd.cpp": sd_cpp,
}
MEANT: Mapping[str, tuple[str, ...]] = {
    "diffusers": ("diffusers",),
    "kohya": tuple(client for client in CLIENTS if client != "peft"),
    "transformer": ("diffusers", "ComfyUI", "Forge", "A1111", "InvokeAI"),
    "original": ("ComfyUI",),
    "peft": ("peft",),
}
"""The clients that a format is meant for, where they can load a LoRA onto the base model at all."""
ALSO: Mapping[str, tuple[str, ...]] = {"diffusers": (OLDER, "sd.cpp")}
"""Those that read it too, whole or but for known layers; what else they drop is no fault of it."""


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
    known = layers_by_stem(kind, names)
    readings = []
    for client, rule in CLIENTS.items():
        absent = client in ("diffusers", OLDER) and loader != "diffusers"
        dropped = None if absent else rule(keys, names)
        lost = names.gap(client)
        reader = names.layout.read_by.get(client) if names.layout else None
        rest = [key for key in keys if known.get(stem(key)) not in lost]
        able = dropped is not None and not _other_names(kind, reader)
        meant = able and client in (*MEANT[kind], *ALSO.get(kind, ()))
        gap = meant and len(rest) < len(keys) and bool(dropped) and not rule(rest, names)
        note = reader.note if reader and gap else ""
        plain = None if dropped is None else tuple(dropped)
        meant = meant and (client in MEANT[kind] or not dropped)
        readings.append(Reading(client, meant and not gap, plain, gap, note))
    return readings


def _other_names(kind: str, reader: Reader | None) -> bool:
    """Whether a client reads a family by other names than a format's."""
    by = reader and (reader.original if kind == "original" else reader.prefixes)
    return reader is not None and not by and not reader.note


def layers_by_stem(kind: str, names: LayerNames) -> dict[str, str]:
    """Map each layer's part of a key (see :func:`stem`) to the layer."""
    if kind == "kohya":
        both = [(layer, layer) for layer in names.layers] + list(names.original.items())
        return {kohya_stem(name, head): layer for head in KOHYA_PREFIXES for layer, name in both}
    if kind == "original":
        return {f"{ORIGINAL_PREFIX}{name}": layer for layer, name in names.native.items()}
    prefix = PEFT_PREFIX if kind == "peft" else f"{names.component}."
    old = {prefix + processor_name(layer): layer for layer in names.layers}
    return old | {prefix + layer: layer for layer in names.layers}


def kohya_stem(name: str, prefix: str = KOHYA_PREFIX) -> str:
    """A layer's part of kohya's keys: everything before the last part."""
    return prefix + name.replace(".", "_")


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
        read |= {kohya_stem(layer), kohya_stem(original), kohya_stem(layer, "lycoris_")}
        read |= {old, f"unet.{old}", f"diffusion_model.{original}"}
    return _unread(keys, read, PARTS)


def _by_layout(
    keys: Collection[str], names: LayerNames, client: str, parts: Iterable[str]
) -> list[str] | None:
    reader = names.layout.read_by.get(client) if names.layout else None
    if reader is None or names.layout is None:
        return None
    if reader.needs and not any(
        {f"{prefix}{layer}{part}" for layer in reader.needs for part in parts} <= set(keys)
        for prefix in reader.prefixes
    ):
        return sorted(keys)
    gap, known = names.gap(client), names.layout.layers
    layers = [la for la in names.layers - gap if counted(la) in known]
    read = {_behind(prefix, layer) for prefix in reader.prefixes for layer in layers}
    read |= {p + names.native[la] for p in reader.original for la in layers if la in names.native}
    dropped = _unread(keys, read, parts)
    return sorted(keys) if dropped and reader.refuses else dropped


def _behind(prefix: str, layer: str) -> str:
    return kohya_stem(layer, prefix) if prefix.endswith("_") else prefix + layer
