"""Frozen weights in 8 or 4 bits: stored small, and whole only while a layer computes.

Each output channel (8 bits) or group of 64 inputs (4 bits) has a scale of its own, so that a weight
is off by at most half a step of its channel's largest. The backward pass makes the weight whole
again instead of keeping it: no gradient checkpointing is needed, and any device will do.

The input's gradient is all that a frozen layer gives; its weight and bias learn nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

GROUP = 64  # inputs that share a scale in 4 bits
CONVOLUTIONS: dict[type[nn.Module], tuple[Any, Any]] = {
    nn.Conv1d: (F.conv1d, conv1d_input),
    nn.Conv2d: (F.conv2d, conv2d_input),
    nn.Conv3d: (F.conv3d, conv3d_input),
}


def shrink_weights(module: nn.Module, *, linear_bits: int = 8) -> list[str]:
    """Store the weights of every frozen linear layer and convolution in few bits, in place.

    Attach an adapter first: peft knows its layers by their classes.

    Args:
        module: A denoiser.
        linear_bits: 8 or 4; convolutions always take 8.

    Returns:
        The names of the layers that were shrunk.
    """
    done = []
    for name, layer in list(module.named_modules()):
        if not _fits(layer):
            continue
        parent, _, child = name.rpartition(".")
        few = linear_bits == 4 and isinstance(layer, nn.Linear) and layer.in_features % GROUP == 0
        weight = Weight4(layer.weight) if few else Weight8(layer.weight)
        setattr(module.get_submodule(parent), child, Frozen(layer, weight))
        done.append(name)
    return done


class Weight8(nn.Module):
    """A weight as whole numbers of 8 bits, and a scale for each output channel."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        rows = weight.detach().flatten(1).float()
        largest = rows.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
        shape = [-1, *[1] * (weight.ndim - 1)]
        scale = (largest / 127).view(shape)
        stored = (weight.detach().float() / scale).round().to(torch.int8)
        self.stored = nn.Parameter(stored, requires_grad=False)
        self.scale = nn.Parameter(scale.to(weight.dtype), requires_grad=False)

    def whole(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight as the layer uses it."""
        return self.stored * self.scale.to(dtype)


class Weight4(nn.Module):
    """A matrix as whole numbers of 4 bits, two in a byte, and a scale for each group of inputs."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.shape = weight.shape
        groups = weight.detach().float().view(weight.shape[0], -1, GROUP)
        largest = groups.abs().amax(2, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        scale = largest / 7
        numbers = ((groups / scale).round() + 8).to(torch.uint8).flatten(1)
        packed = numbers[:, ::2] | (numbers[:, 1::2] << 4)
        self.stored = nn.Parameter(packed, requires_grad=False)
        self.scale = nn.Parameter(scale.to(weight.dtype), requires_grad=False)

    def whole(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight as the layer uses it."""
        numbers = torch.stack((self.stored & 15, self.stored >> 4), -1).view(torch.int8).sub_(8)
        groups = numbers.view(self.shape[0], -1, GROUP)
        return (groups * self.scale.to(dtype)).view(self.shape)


class Frozen(nn.Module):
    """A linear layer or a convolution whose weight is stored in few bits.

    Args:
        layer: The layer that it stands for.
        weight: Its weight.
    """

    def __init__(self, layer: Any, weight: Weight8 | Weight4) -> None:
        super().__init__()
        self.weight, self.bias = weight, layer.bias
        self.function: Any = F.linear
        self.adjoint: Any = None
        self.options: tuple[Any, ...] = ()
        if not isinstance(layer, nn.Linear):
            self.function, self.adjoint = CONVOLUTIONS[type(layer)]
            self.options = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """What the layer says, as far as its bits hold its weight."""
        out: torch.Tensor = _Call.apply(value, self)  # type: ignore[no-untyped-call]
        return out


class _Call(torch.autograd.Function):
    """A layer's call that keeps its few bits for the backward pass, not the whole weight."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, layer: Frozen) -> torch.Tensor:
        ctx.layer, ctx.shape = layer, value.shape  # not the value: a frozen layer learns nothing
        out: torch.Tensor = layer.function(
            value, layer.weight.whole(value.dtype), layer.bias, *layer.options
        )
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        weight = ctx.layer.weight.whole(gradient.dtype)
        if ctx.layer.adjoint is None:
            return gradient @ weight, None
        return ctx.layer.adjoint(ctx.shape, weight, gradient, *ctx.layer.options), None


def _fits(layer: nn.Module) -> bool:
    """Whether a layer is frozen and computes as :class:`Frozen` does."""
    if any(parameter.requires_grad for parameter in layer.parameters()):
        return False
    if type(layer) is nn.Linear:  # not its children: some are read by others, and never called
        return True
    if type(layer) not in CONVOLUTIONS:
        return False
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
