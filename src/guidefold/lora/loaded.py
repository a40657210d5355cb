"""A written adapter in a stock pipeline: load, set its strength, switch off, fuse, unload."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from guidefold.ground import InputError, compat

MAIN_LORA = "guidefold"
"""The name in peft of a run's LoRA; of two, of the one that folds guidance."""
STEPS_LORA = "steps"
"""The name of the second LoRA, for fewer steps: in peft, and of its folder."""
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
LINE = 96  # characters of an argument line of code that users copy


@contextmanager
def quiet_stacking() -> Iterator[None]:
    """Keep peft's warning away within the context that a second LoRA comes upon the first."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute", UserWarning)
        yield


def adapter_config(rank: int, layers: Sequence[str]) -> dict[str, Any]:
    """The content of ``adapter_config.json``, which peft reads beside the tensors."""
    pattern = "|".join(re.escape(name) for name in layers)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=f"({pattern})", inference_mode=True)
    values = config.to_dict()  # JSON has no sets
    return {name: sorted(v) if isinstance(v, set) else v for name, v in values.items()}


def load_adapter(
    pipeline: DiffusionPipeline,
    denoisers: Sequence[str],
    loader: str,
    folder: Path,
    strength: float,
) -> None:
    """Load a written adapter as any client would, without code of this package in the pipeline.

    Args:
        pipeline: A stock pipeline without a LoRA.
        denoisers: The adapted components; each after the first has a folder of its name within
            ``folder``.
        loader: ``diffusers`` (``load_lora_weights``) or ``peft`` (``PeftModel.from_pretrained``).
        folder: Where the adapter was written; a steps LoRA lies in its folder ``steps``.
        strength: The multiplier on the adapter; a steps LoRA stays at 1.
    """
    beside = folder / STEPS_LORA
    places = {MAIN_LORA: folder, **({STEPS_LORA: beside} if beside.exists() else {})}
    for lora, place in places.items():
        for name in denoisers:
            path = part_folder(place, denoisers, name) / DIFFUSERS_FILE
            load_part(pipeline, denoisers, name, loader, path, lora)
    for name in denoisers:
        if len(places) > 1:  # what was loaded last is active alone
            activate(getattr(pipeline, name), tuple(places))
        set_strength(getattr(pipeline, name), strength)


def load_part(
    pipeline: DiffusionPipeline,
    denoisers: Sequence[str],
    name: str,
    loader: str,
    path: Path,
    lora: str = MAIN_LORA,
) -> None:
    """Load one denoiser's file with the library's own loader.

    Args:
        pipeline: A stock pipeline.
        denoisers: The adapted components.
        name: The component that the file is for.
        loader: ``diffusers`` or ``peft``.
        path: The file; peft reads its own file names in the same folder.
        lora: The LoRA's name in peft.
    """
    module, place = getattr(pipeline, name), path.parent
    file = {"weight_name": path.name, "adapter_name": lora}
    with quiet_stacking():
        if loader == "peft":
            PeftModel.from_pretrained(module, place, adapter_name=lora)  # wraps layers in place
        elif name == denoisers[0]:
            pipeline.load_lora_weights(place, **file)
        else:
            module.load_lora_adapter(place, prefix=denoisers[0], **file)


def activate(denoiser: nn.Module, loras: Sequence[str]) -> None:
    """Let several loaded LoRAs act side by side: their updates add up."""
    for layer in denoiser.modules():
        if isinstance(layer, LoraLayer):
            layer.set_adapter(list(loras), inference_mode=True)


def loading_code(
    loader: str, denoisers: Sequence[str], place: str, *, two: bool = False
) -> list[str]:
    """Python that loads a written adapter as :func:`load_adapter` does.

    Args:
        loader: ``diffusers`` or ``peft``.
        denoisers: The adapted components.
        place: The adapter's folder, or its repository on the hub.
        two: Whether a steps LoRA lies in its folder ``steps``.
    """
    by = _peft_lines if loader == "peft" else _diffusers_lines
    lines = by(denoisers, place, "guidance", "")
    if not two:
        return lines
    lines += by(denoisers, place, STEPS_LORA, STEPS_LORA)
    if loader == "diffusers":
        return [*lines, f'pipeline.set_adapters(["guidance", "{STEPS_LORA}"], [1.0, 1.0])']
    active = f'layer.set_adapter(["guidance", "{STEPS_LORA}"])'
    loops = [f"for layer in pipeline.{name}.modules():" for name in denoisers]
    chosen = '    if hasattr(layer, "set_adapter"):'
    return [*lines, *(line for loop in loops for line in (loop, chosen, f"        {active}"))]


def _peft_lines(denoisers: Sequence[str], place: str, lora: str, folder: str) -> list[str]:
    named = f', adapter_name="{lora}"' if folder else ""
    lines = []
    for name in denoisers:
        inside = part_folder(Path(folder), denoisers, name).as_posix()
        sub = f', subfolder="{inside}"' if inside != "." else ""
        lines.append(f'PeftModel.from_pretrained(pipeline.{name}, "{place}"{sub}{named})')
    return lines


def _diffusers_lines(denoisers: Sequence[str], place: str, lora: str, folder: str) -> list[str]:
    lines = []
    for name in denoisers:
        # Not by `subfolder`: diffusers ignores it where the folder has a file of the same name.
        file = part_folder(Path(folder), denoisers, name) / DIFFUSERS_FILE
        given = [f'"{place}"', f'weight_name="{file.as_posix()}"', f'adapter_name="{lora}"']
        method = "pipeline.load_lora_weights("
        if name != denoisers[0]:
            # Keys of every file begin with the first denoiser's name, which is taken off as prefix.
            given += [f'prefix="{denoisers[0]}"']
            method = f"pipeline.{name}.load_lora_adapter("
        whole = ", ".join(given)
        if len(whole) <= LINE:
            lines += [method, f"    {whole}", ")"]
        else:
            lines += [method, *(f"    {argument}," for argument in given), ")"]
    return lines


def part_folder(folder: Path, denoisers: Sequence[str], name: str) -> Path:
    """The folder of one denoiser's files: ``folder`` itself for the first denoiser."""
    return folder if name == denoisers[0] else folder / name


def set_strength(denoiser: nn.Module, strength: float) -> None:
    """Set the strength of a loaded adapter, as a client's strength slider does.

    That of a steps LoRA beside it stays.
    """
    for layer in denoiser.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale(MAIN_LORA, strength)


def check_turned_on(denoiser: nn.Module) -> None:
    """Refuse an adapter that is not in effect, or whose strength can no longer be set.

    Raises:
        InputError: It was fused, taken off, switched off, or another LoRA was loaded over it.
    """
    layers = [m for m in denoiser.modules() if isinstance(m, LoraLayer) and MAIN_LORA in m.lora_A]
    if not layers or any(layer.merged for layer in layers):
        raise InputError(
            "the adapter was fused into the weights, or taken off",
            "Fused weights keep the strength that they were fused at: call the pipeline itself.",
        )
    ours = [name for name in (MAIN_LORA, STEPS_LORA) if name in layers[0].lora_A]
    if not all({*ours} <= {*m.active_adapters} and not m.disable_adapters for m in layers):
        listed = ", ".join(f'"{name}"' for name in ours)
        raise InputError(
            f"the adapter '{MAIN_LORA}' is not active: another LoRA was loaded over it",
            f"Name all of them: pipeline.set_adapters([{listed}, ...], [strength, ...]).",
        )


def adapted_layers(denoiser: nn.Module) -> set[str]:
    """The names of the layers that hold a LoRA, Guidefold's or another."""
    return {name for name, layer in denoiser.named_modules() if isinstance(layer, LoraLayer)}


def layers_of(names: Collection[str]) -> list[str]:
    """The names of the layers that peft's tensor names belong to, sorted."""
    return sorted({name.removesuffix(".lora_A.weight") for name in names if ".lora_A." in name})


def loaded_tensors(denoiser: nn.Module) -> dict[str, torch.Tensor]:
    """A loaded LoRA's tensors by peft's names, on the CPU, alpha folded into ``lora_B``."""
    found = {}
    for layer, module in denoiser.named_modules():
        if isinstance(module, LoraLayer):
            down, up = module.lora_A[MAIN_LORA].weight, module.lora_B[MAIN_LORA].weight
            found[f"{layer}.lora_A.weight"] = down.detach().cpu()
            found[f"{layer}.lora_B.weight"] = (up.detach() * module.scaling[MAIN_LORA]).cpu()
    return found


def unload_adapter(denoiser: Any) -> None:
    """Take every LoRA off a denoiser, Guidefold's or another."""
    compat.remove_adapters(denoiser)


def fuse_adapter(denoiser: nn.Module) -> None:
    """Add a loaded LoRA to the weights and take its layers off; this cannot be undone."""
    for layer in denoiser.modules():
        if isinstance(layer, LoraLayer):
            layer.merge(safe_merge=True)
    unload_adapter(denoiser)


@contextmanager
def adapter_off(denoiser: nn.Module) -> Iterator[None]:
    """Switch a loaded LoRA off within the context."""
    layers = [m for m in denoiser.modules() if isinstance(m, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
