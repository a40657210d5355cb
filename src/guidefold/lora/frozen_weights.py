"""Frozen weights in 16, 8 or 4 bits, unpacked only while a layer computes.

``w = scale * round(w / scale)``: in 8 bits each output channel has a scale, in 4 bits each group of
64 inputs, so that the error is at most half a step of the largest weight there. The backward pass
unpacks the weight again instead of keeping it: no gradient checkpointing is needed, and any device
will do.

A frozen layer gives the gradient of its input only; its weight and bias have none.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

GROUP = 64  # inputs that share a scale in 4 bits
# Bits of linear layers and of convolutions; the latter have no long rows to group.
BITS = {"bf16": (16, 16), "int8": (8, 8), "int4": (4, 8)}
CONVOLUTIONS: dict[type[nn.Module], tuple[Any, Any]] = {
    nn.Conv1d: (F.conv1d, conv1d_input),
    nn.Conv2d: (F.conv2d, conv2d_input),
    nn.Conv3d: (F.conv3d, conv3d_input),
}


def shrink_weights(
    module: nn.Module, linear_bits: int = 8, convolution_bits: int | None = 8
) -> list[str]:
    """Store the weights of every frozen linear layer and convolution in fewer bits, in place.

    Attach an adapter first: peft knows its layers by their classes.

    Args:
        module: A denoiser.
        linear_bits: 16 (bfloat16), 8 or 4.
        convolution_bits: 16 or 8; None leaves convolutions as they are.

    Returns:
        The names of the layers that were shrunk.
    """
    shrunk = []
    for name, layer in list(module.named_modules()):
        if not _fits(layer):
            continue
        parent, _, child = name.rpartition(".")
        bits = linear_bits if isinstance(layer, nn.Linear) else convolution_bits
        if bits is None:
            continue
        setattr(module.get_submodule(parent), child, Frozen(layer, _pack(layer.weight, bits)))
        shrunk.append(name)
    return shrunk


class Weight(nn.Module):
    """A weight in fewer bits.

    Attributes:
        dtype: The original weight's: some pipelines cast inputs to the dtype of a layer's weight.
        device: The device of the stored tensors.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.dtype = weight.dtype

    @property
    def device(self) -> torch.device:
        """The device of the stored tensors."""
        return next(self.parameters()).device

    def unpack(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight in the layer's shape, as a tensor of ``dtype``."""
        raise NotImplementedError

    def _store(self, **tensors: torch.Tensor) -> None:
        for name, tensor in tensors.items():
            setattr(self, name, nn.Parameter(tensor, requires_grad=False))


class Weight16(Weight):
    """A weight in bfloat16."""

    stored: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(weight)
        self._store(stored=weight.detach().bfloat16())

    def unpack(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight in the layer's shape, as a tensor of ``dtype``."""
        return self.stored.to(dtype)


class Weight8(Weight):
    """A weight as integers of 8 bits, and a scale for each output channel."""

    stored: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(weight)
        rows = weight.detach().flatten(1).float()
        largest = rows.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
        shape = [-1, *[1] * (weight.ndim - 1)]
        scale = (largest / 127).view(shape)
        stored = (weight.detach().float() / scale).round().to(torch.int8)
        # The scale first: some pipelines cast to the type of a module's first parameter.
        self._store(scale=scale.to(weight.dtype), stored=stored)

    def unpack(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight in the layer's shape, as a tensor of ``dtype``."""
        return self.stored * self.scale.to(dtype)


class Weight4(Weight):
    """A matrix as integers of 4 bits, two in a byte, and a scale for each group of inputs."""

    stored: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(weight)
        self.shape = weight.shape
        groups = weight.detach().float().view(weight.shape[0], -1, GROUP)
        largest = groups.abs().amax(2, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        scale = largest / 7
        numbers = ((groups / scale).round() + 8).to(torch.uint8).flatten(1)
        packed = numbers[:, ::2] | (numbers[:, 1::2] << 4)
        self._store(scale=scale.to(weight.dtype), stored=packed)

    def unpack(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight in the layer's shape, as a tensor of ``dtype``."""
        numbers = torch.stack((self.stored & 15, self.stored >> 4), -1).view(torch.int8).sub_(8)
        groups = numbers.view(self.shape[0], -1, GROUP)
        return (groups * self.scale.to(dtype)).view(self.shape)


class Frozen(nn.Module):
    """A linear layer or a convolution whose weight is stored in fewer bits.

    Args:
        layer: The layer to replace.
        weight: The layer's weight in fewer bits.
    """

    def __init__(self, layer: Any, weight: Weight) -> None:
        super().__init__()
        self.weight, self.bias = weight, layer.bias
        self.function: Any = F.linear
        self.adjoint: Any = None
        self.options: tuple[Any, ...] = ()
        if not isinstance(layer, nn.Linear):
            self.function, self.adjoint = CONVOLUTIONS[type(layer)]
            self.options = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """The layer's output with the unpacked weight."""
        out: torch.Tensor = _Call.apply(value, self)  # type: ignore[no-untyped-call]
        return out


class _Call(torch.autograd.Function):
    """A layer's call that keeps the stored bits for the backward pass, not the unpacked weight."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, layer: Frozen) -> torch.Tensor:
        ctx.layer, ctx.shape = layer, value.shape  # not the value: the weight needs no gradient
        weight = layer.weight.unpack(_compute_dtype(value))
        out: torch.Tensor = layer.function(value, weight, layer.bias, *layer.options)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        weight = ctx.layer.weight.unpack(gradient.dtype)
        if ctx.layer.adjoint is None:
            return gradient @ weight, None
        return ctx.layer.adjoint(ctx.shape, weight, gradient, *ctx.layer.options), None


def _pack(weight: torch.Tensor, bits: int) -> Weight:
    if bits == 16:
        return Weight16(weight)
    return Weight4(weight) if bits == 4 and weight.shape[1] % GROUP == 0 else Weight8(weight)


def _compute_dtype(value: torch.Tensor) -> torch.dtype:
    """The dtype that a layer computes in: autocast's if it is on, else its input's."""
    device = value.device.type
    autocast = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else value.dtype


def _fits(layer: nn.Module) -> bool:
    """Whether a layer is frozen and computes as :class:`Frozen` does."""
    if any(parameter.requires_grad for parameter in layer.parameters()):
        return False
    if (
        type(layer) is nn.Linear
    ):  # not a subclass: other layers read the weight of some, and never call them
        return True
    if type(layer) not in CONVOLUTIONS:
        return False
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
