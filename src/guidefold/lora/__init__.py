"""LoRA adapters.

Layers that can be adapted, the adapter in training, the adapter as clients load it, frozen
weights in fewer bits, and the dial between strength and guidance. The only wing that imports
peft.
"""

from guidefold.lora.adapter import Adapter, attach
from guidefold.lora.dial import (
    SHOWN_DIGITS,
    STRENGTH_MARGIN,
    STRENGTHS,
    UNKNOWN_DIAL,
    Compared,
    Dial,
    Mark,
)
from guidefold.lora.frozen_weights import BITS, shrink_weights
from guidefold.lora.loaded import (
    DIFFUSERS_FILE,
    PEFT_CONFIG,
    PEFT_FILE,
    STEPS_LORA,
    adapted_layers,
    adapter_config,
    adapter_off,
    check_turned_on,
    fuse_adapter,
    layers_of,
    load_adapter,
    load_part,
    loaded_tensors,
    loading_code,
    part_folder,
    set_strength,
    unload_adapter,
)
from guidefold.lora.portable import counted, unportable
from guidefold.lora.targets import LAYER_TYPES, candidates, count_targets, watched
from guidefold.lora.two_loras import guidance_of, merge_loras, steps_of

__all__ = [
    "BITS",
    "DIFFUSERS_FILE",
    "LAYER_TYPES",
    "PEFT_CONFIG",
    "PEFT_FILE",
    "SHOWN_DIGITS",
    "STEPS_LORA",
    "STRENGTHS",
    "STRENGTH_MARGIN",
    "UNKNOWN_DIAL",
    "Adapter",
    "Compared",
    "Dial",
    "Mark",
    "adapted_layers",
    "adapter_config",
    "adapter_off",
    "attach",
    "candidates",
    "check_turned_on",
    "count_targets",
    "counted",
    "fuse_adapter",
    "guidance_of",
    "layers_of",
    "load_adapter",
    "load_part",
    "loaded_tensors",
    "loading_code",
    "merge_loras",
    "part_folder",
    "set_strength",
    "shrink_weights",
    "steps_of",
    "unload_adapter",
    "unportable",
    "watched",
]
