"""An optimizer with 8-bit moments: bitsandbytes' own, or its bytes where nothing is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from guidefold.ground import compat
from guidefold.train import make_optimizer

BLOCK = 256  # values that share a scale
SMALLEST = 4096  # smaller tensors keep whole moments


def eight_bit_adamw(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW whose moments take a byte a value.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if compat.is_fake(parameters[0]):
        return Shape8(parameters)
    return make_optimizer("adamw8bit", parameters, 0.0)


class Shape8(torch.optim.Optimizer):
    """The state that bitsandbytes' AdamW8bit holds, and none of its arithmetic, which is in place.

    Two moments, a byte a value, and a float32 for every block of 256; small tensors keep float32.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 1e-4})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take the memory of the moments where there is none yet."""
        assert closure is None
        for parameter in self.param_groups[0]["params"]:
            if not self.state[parameter]:
                self.state[parameter] = _moments(parameter)


def _moments(parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    count, device = parameter.numel(), parameter.device
    if count < SMALLEST:
        return {
            f"moment{k}": torch.empty(count, dtype=torch.float32, device=device) for k in (1, 2)
        }
    blocks = -(-count // BLOCK)
    return {
        **{f"moment{k}": torch.empty(count, dtype=torch.uint8, device=device) for k in (1, 2)},
        **{f"scale{k}": torch.empty(blocks, dtype=torch.float32, device=device) for k in (1, 2)},
    }
