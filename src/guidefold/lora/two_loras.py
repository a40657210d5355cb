"""The tensors of two LoRAs on the same layers: one for guidance, one for fewer steps."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from guidefold.lora.loaded import MAIN_LORA, STEPS_LORA

OF_STEPS = re.compile(rf"(\.lora_[AB])\.{STEPS_LORA}\.")
"""The part of a tensor's name that says so; a layer may have the same name."""


def is_of_steps(name: str) -> bool:
    """Whether a tensor's name in an adapter's file is a steps LoRA's."""
    return OF_STEPS.search(name) is not None


def guidance_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The guidance LoRA's tensors in an adapter's, by peft's names."""
    return {name: tensor for name, tensor in tensors.items() if not is_of_steps(name)}


def steps_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The steps LoRA's tensors in an adapter's, by peft's names; empty without one."""
    return {OF_STEPS.sub(r"\1.", n): t for n, t in tensors.items() if is_of_steps(n)}


def merge_loras(
    one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """One LoRA whose update is the sum of two: ``[B1 B2] [A1; A2] = B1 A1 + B2 A2``.

    Args:
        one: By peft's names; alpha equals the rank.
        other: Likewise, on the same layers.
    """
    return {n: torch.cat([t, other[n]], 0 if ".lora_A." in n else 1) for n, t in one.items()}


def stored_name(name: str, lora: str) -> str:
    """A tensor's name in an adapter's file."""
    return name if lora == MAIN_LORA else re.sub(r"(\.lora_[AB])\.", rf"\1.{lora}.", name)
