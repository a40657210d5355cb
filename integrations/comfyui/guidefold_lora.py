"""The node *Guidefold LoRA*: one guidance scale in place of a strength, and no CFG."""

import logging
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import comfy.samplers
import folder_paths
from nodes import LoraLoaderModelOnly

from .lora_metadata import read_metadata, strength_for

AUTOMATIC, NONE = "automatic", "none"


class GuidefoldLora:
    """Loads a LoRA that guidance is folded into, and the one for fewer steps beside it."""

    CATEGORY = "loaders"
    FUNCTION = "load"
    RETURN_TYPES = (
        "MODEL",
        "INT",
        comfy.samplers.KSampler.SAMPLERS,
        comfy.samplers.KSampler.SCHEDULERS,
        "FLOAT",
        "STRING",
    )
    RETURN_NAMES = ("model", "steps", "sampler_name", "scheduler", "cfg", "report")
    DESCRIPTION = "Sets a LoRA's strength by guidance scale. Connect cfg: it is 1."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """Sockets and widgets; steps, solver and scheduler stay where no file has its own."""
        files = folder_paths.get_filename_list("loras")
        return {
            "required": {
                "model": ("MODEL",),
                "lora_name": (files,),
                "guidance": ("FLOAT", {"default": 4.0, "min": 0.0, "max": 30.0, "step": 0.1}),
                "steps_lora": ([AUTOMATIC, NONE, *files],),
                "steps": ("INT", {"default": 20, "min": 1, "max": 1000}),
                "sampler_name": (comfy.samplers.KSampler.SAMPLERS,),
                "scheduler": (comfy.samplers.KSampler.SCHEDULERS,),
            }
        }

    def load(
        self,
        model: Any,
        lora_name: str,
        guidance: float,
        steps_lora: str,
        steps: int,
        sampler_name: str,
        scheduler: str,
    ) -> tuple[Any, int, str, str, float, str]:
        """Load the files; what few-step files state replaces steps, solver and scheduler."""
        metadata = _metadata(lora_name)
        if metadata.get("folds") == "steps":
            raise ValueError(f"{lora_name}: the LoRA for fewer steps; choose the one of guidance")
        strength = strength_for(metadata, guidance)
        model = LoraLoaderModelOnly().load_lora_model_only(model, lora_name, strength)[0]
        lines = [f"{lora_name}: guidance {guidance:g} is strength {strength:.3g}"]
        second = _second(lora_name, steps_lora, metadata)
        if second:
            model = LoraLoaderModelOnly().load_lora_model_only(model, second, 1.0)[0]
            lines.append(f"{second}: strength 1")
        grid = metadata["findings"].get("steps")
        if grid:
            names = metadata.get("comfyui", {})
            steps = grid["student"]
            sampler_name = names.get("sampler", sampler_name)
            scheduler = names.get("scheduler", scheduler)
            lines.append(f"{metadata['usage_hint']}")
        if metadata.get("negative_prompt"):
            lines.append("A negative prompt is folded in; one that is given has no effect.")
        report = "\n".join([*lines, "CFG 1: connect the output cfg."])
        logging.info("Guidefold: %s", report)
        return _watched(model, lora_name), steps, sampler_name, scheduler, 1.0, report


def _metadata(name: str) -> dict[str, Any]:
    return read_metadata(Path(folder_paths.get_full_path_or_raise("loras", name)))


def _second(name: str, chosen: str, metadata: dict[str, Any]) -> str:
    """The file for fewer steps that goes beside a guidance LoRA; empty where there is none.

    Raises:
        ValueError: The one that is needed is not there, or the one that was chosen is another kind.
    """
    needed = bool(metadata["findings"].get("steps")) and metadata.get("folds") == "guidance"
    if chosen == NONE or (chosen == AUTOMATIC and not needed):
        return ""
    if chosen == AUTOMATIC:
        own = PurePath(name)
        chosen = str(own.with_stem(f"{own.stem}-steps"))
        if chosen not in folder_paths.get_filename_list("loras"):
            raise ValueError(f"{chosen} is not there: put it beside {name}, or choose it")
    if _metadata(chosen).get("folds") != "steps":
        raise ValueError(f"{chosen}: no LoRA for fewer steps")
    return chosen


def _watched(model: Any, name: str) -> Any:
    """The model with a watch that warns, once a load, where it is drawn with CFG on."""
    model = model.clone()
    warned = []

    def watch(arguments: dict[str, Any]) -> Any:
        scale = arguments.get("cond_scale", 1.0)
        if abs(scale - 1.0) > 1e-6 and not warned:
            warned.append(scale)
            logging.warning(
                "Guidefold: %s has guidance folded in, but CFG is %g: it counts twice. Set CFG 1.",
                name,
                scale,
            )
        return arguments["denoised"]

    watching: Callable[[dict[str, Any]], Any] = watch
    model.set_model_sampler_post_cfg_function(watching)
    return model
