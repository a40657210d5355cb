"""AdamW with 8-bit moments: bitsandbytes' own, or its state alone over fake tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from guidefold.ground import compat
from guidefold.train import make_optimizer

BLOCK = 256  # values that share a scale
SMALLEST = 4096  # values; smaller tensors keep float32 moments


def eight_bit_adamw(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Make AdamW whose moments take a byte a value.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if compat.is_fake(parameters[0]):
        return EightBitState(parameters)
    return make_optimizer("adamw8bit", parameters, 0.0)


class EightBitState(torch.optim.Optimizer):
    """The state of bitsandbytes' AdamW8bit without its arithmetic, which takes no memory.

    Two moments, a byte a value, and a float32 for every block of 256; small tensors keep float32.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 1e-4})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Allocate moments where there are none yet."""
        assert closure is None
        for parameter in self.param_groups[0]["params"]:
            if not self.state[parameter]:
                self.state[parameter] = _moments(parameter)


def _moments(parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    count = parameter.numel()
    sizes = {"moment": (count, torch.float32)}
    if count >= SMALLEST:
        sizes = {"moment": (count, torch.uint8), "scale": (-(-count // BLOCK), torch.float32)}
    return {
        f"{name}{k}": torch.empty(size, dtype=dtype, device=parameter.device)
        for name, (size, dtype) in sizes.items()
        for k in (1, 2)
    }
