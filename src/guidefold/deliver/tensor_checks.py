"""A file's tensors, held against the layers that they are for and against the student's own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from guidefold.deliver.formats import Tensors
from guidefold.ground import plural
from guidefold.lora import layers_of

SHOWN = 3
PARTS = ("lora_A", "lora_B")
# Of a layer's update: far above what two orders of summation differ by in float32, and a thousandth
# of what scaling by 0.99 does.
EXACT = 1e-5
# Of a fused update: half of what scaling by 0.99 does.
FUSED = 5e-3
# Sums in float32 on two devices differ by less than this share of a weight; see _noise.
SUMS = 1e-6


def first_few(names: Sequence[str]) -> str:
    """The first few of a list; dots where there are more."""
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")


def wrong_widths(wanted: Tensors, denoiser: nn.Module) -> list[str]:
    """The layers that a LoRA was made for with another width, in words; nothing where all fit."""
    wrong = [
        f"{layer} ({_width(wanted, layer)}, here {here})"
        for layer in layers_of(wanted)
        if _width(wanted, layer) != (here := _width_of(denoiser.get_submodule(layer)))
    ]
    return [f"made for layers of another width: {first_few(wrong)}"] if wrong else []


def wrong_weights(weights: Tensors, denoiser: nn.Module) -> list[str]:
    """Whole weights of other names or shapes than a denoiser's, in words; nothing where all fit."""
    own = denoiser.state_dict()
    wrong = [f"{name} (not in the file)" for name in sorted(own.keys() - weights.keys())]
    wrong += [f"{name} (not here)" for name in sorted(weights.keys() - own.keys())]
    wrong += [
        f"{name} ({_shape(weights[name])}, here {_shape(own[name])})"
        for name in sorted(weights.keys() & own.keys())
        if weights[name].shape != own[name].shape
    ]
    return [f"made for a denoiser of other layers: {first_few(wrong)}"] if wrong else []


def loaded_otherwise(found: Tensors, wanted: Tensors, loader: str) -> list[str]:
    """Differences between a file's tensors and those that a library loaded from it, in words."""
    odd = found.keys() ^ wanted.keys()
    if odd:
        return [f"{loader} loads other layers than the file's: {', '.join(layers_of(odd))}"]
    wrong = [
        layer
        for layer in layers_of(wanted)
        if not all(
            _near(found[f"{layer}.{p}.weight"], wanted[f"{layer}.{p}.weight"]) for p in PARTS
        )
    ]
    return [f"{loader} loads other values than the file's: {', '.join(wrong)}"] if wrong else []


def off_student(found: Tensors, student: Tensors, strength: float) -> list[str]:
    """The layers whose update is not the student's, in words.

    The product ``B A`` is compared, not its factors, which may be written in many ways. The
    student's factors are rounded to the file's type first, so that an export differs by nothing; a
    file that another program has rounded again, as when it folds alpha in, may differ by half a
    unit in the last place of each factor, ``eps`` for both. That is 0.8 % in bfloat16: a file
    scaled by 0.99 still fails.

    Args:
        found: The file's, by peft's names; alpha equals the rank.
        student: The same of the run.
        strength: Of the run's adapter, that the file stands for.
    """
    odd = layers_of([*(found.keys() ^ student.keys())])
    if odd:
        return [f"other layers than the trained student's: {first_few(odd)}"]
    wrong = {}
    for layer in layers_of(student):
        (down, up), own = _pair(found, layer), _pair(student, layer)
        update = _product(down.to(own[0].device), up.to(own[0].device))
        wanted = _product(own[0].to(down.dtype), (own[1] * strength).to(up.dtype))
        allowed = max(EXACT, _eps(down), _eps(up)) * float(wanted.norm())
        if not _distance(update, wanted) <= allowed:
            wrong[layer] = _distance(update, wanted) / max(float(wanted.norm()), 1e-30)
    return _told(wrong, "layer")


def off_fused(found: Tensors, denoiser: nn.Module, student: Tensors, strength: float) -> list[str]:
    """The weights that are not a denoiser's with the student's update added, in words.

    Args:
        found: The file's, of the denoiser's names and shapes.
        denoiser: The base's, without an adapter.
        student: The run's LoRA, by peft's names.
        strength: Of it, that was added.
    """
    wrong = {}
    for name, weight in denoiser.state_dict().items():
        fused = fused_weight(name, weight, student, strength)
        wanted = fused.to(found[name].dtype).float()
        update = float((fused.float() - weight.float()).norm())
        apart = _distance(found[name].to(weight.device).float(), wanted)
        size = float(wanted.norm())
        if not apart <= FUSED * update + _noise(weight, found[name]) * size:
            wrong[name] = apart / max(size, 1e-30)
    return _told(wrong, "weight")


def fused_weights(
    denoiser: nn.Module, tensors: Tensors, strength: float
) -> dict[str, torch.Tensor]:
    """A denoiser's weights with the adapter added: ``W + strength * B A``.

    Args:
        denoiser: Its weights stay as they are.
        tensors: By peft's names; alpha equals the rank.
        strength: Of the adapter.

    Returns:
        Every weight, in its own type; the sum is taken in float32.
    """
    return {
        name: fused_weight(name, weight, tensors, strength)
        for name, weight in denoiser.state_dict().items()
    }


def fused_weight(
    name: str, weight: torch.Tensor, tensors: Tensors, strength: float
) -> torch.Tensor:
    """:func:`fused_weights` of one; itself where the adapter is not on its layer."""
    layer = name.removesuffix(".weight")
    if f"{layer}.weight" != name or f"{layer}.lora_A.weight" not in tensors:
        return weight
    down, up = (tensor.to(weight.device) for tensor in _pair(tensors, layer))
    added = weight.float() + strength * _product(down, up).reshape(weight.shape)
    return added.to(weight.dtype)


def _told(wrong: dict[str, float], what: str) -> list[str]:
    """The worst first, with how far they are off."""
    if not wrong:
        return []
    worst = sorted(wrong, key=lambda name: -wrong[name])
    shown = first_few([f"{name} (by {100 * wrong[name]:.3g}%)" for name in worst])
    return [f"{plural(len(wrong), what)} off the trained student's: {shown}"]


def _pair(tensors: Tensors, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    return tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"]


def _product(down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """A layer's update in float32, shape (out, in); a convolution's kernel counts as inputs."""
    return up.float().flatten(1) @ down.float().flatten(1)


def _distance(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).norm()) if one.shape == two.shape else math.inf


def _noise(*tensors: torch.Tensor) -> float:
    """What rounding makes of sums that differ by ``SUMS``, as a share of a weight's norm.

    About ``SUMS / eps`` of the values fall to the other side of a rounding boundary, by ``eps``
    each.
    """
    return math.sqrt(SUMS * max(_eps(tensor) for tensor in tensors))


def _eps(tensor: torch.Tensor) -> float:
    return torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0


def _near(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether tensors agree but for the rounding of the smaller type."""
    eps = max(_eps(one), _eps(two))
    one, two = one.float().reshape(two.shape), two.float().cpu()
    return bool((one - two).abs().max() <= 4 * eps * two.abs().max())


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape)


def _width(tensors: Tensors, layer: str) -> str:
    """``inputs to outputs`` of a layer's LoRA."""
    down, up = _pair(tensors, layer)
    return f"{down.shape[1]} to {up.shape[0]}"


def _width_of(layer: nn.Module) -> str:
    """``inputs to outputs`` of a linear or convolution layer."""
    weight = layer.get_parameter("weight")
    return f"{weight.shape[1]} to {weight.shape[0]}"
