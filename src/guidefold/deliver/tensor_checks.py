"""Compare a file's tensors with the denoiser's layers and with the student's own tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from guidefold.deliver.formats import Tensors, factors
from guidefold.ground import plural
from guidefold.lora import layers_of

SHOWN = 3
# Relative tolerances of norms. A layer's update: far above float32 summation noise, a thousandth of
# a 1 % change of scale.
EXACT = 1e-5
# A fused weight's update: half of a 1 % change of scale.
FUSED = 5e-3
# A weight summed in float32 on two devices differs by less than this share; see _noise.
SUMS = 1e-6


def first_few(names: Sequence[str]) -> str:
    """The first ``SHOWN`` names; dots where there are more."""
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")


def not_finite(tensors: Tensors) -> list[str]:
    """One problem that names the tensors with a NaN or an infinity; empty for none."""
    wrong = [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    return [f"not finite: {first_few(sorted(wrong))}"] if wrong else []


def wrong_widths(wanted: Tensors, denoiser: nn.Module) -> list[str]:
    """Problems with the widths that a LoRA was made for; empty where all fit the denoiser."""
    wrong = []
    for layer in layers_of(wanted):
        made, here = _width(*factors(wanted, layer)), _width_of(denoiser.get_submodule(layer))
        if made != here:
            wrong.append(f"{layer} ({made}, here {here})")
    return [f"made for layers of another width: {first_few(wrong)}"] if wrong else []


def wrong_weights(weights: Tensors, denoiser: nn.Module) -> list[str]:
    """Problems with the names and shapes of full weights; empty where all fit the denoiser."""
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
    """Differences between a file's tensors and those that a library loaded from it."""
    odd = found.keys() ^ wanted.keys()
    if odd:
        return [f"{loader} loads other layers than the file's: {', '.join(layers_of(odd))}"]
    wrong = [
        layer
        for layer in layers_of(wanted)
        if not all(map(_near, factors(found, layer), factors(wanted, layer)))
    ]
    return [f"{loader} loads other values than the file's: {', '.join(wrong)}"] if wrong else []


def off_student(found: Tensors, student: Tensors) -> list[str]:
    """Layers of a file whose update differs from the trained student's.

    The products ``B A`` are compared, since many pairs of factors have the same product. The
    student's factors are rounded to the file's type first, so that an export differs by exactly
    zero. A file that another program rounded again, as when folding alpha in, may differ by half a
    unit in the last place of each factor, ``eps`` for both. That is 0.8 % in bfloat16: a file
    scaled by 0.99 still fails.

    Args:
        found: The file's tensors, by peft's names; alpha equals the rank.
        student: The run's tensors, likewise, the file's strength baked in.
    """
    odd = layers_of([*(found.keys() ^ student.keys())])
    if odd:
        return [f"other layers than the trained student's: {first_few(odd)}"]
    wrong = {}
    for layer in layers_of(student):
        (down, up), own = factors(found, layer), factors(student, layer)
        update = _product(down.to(own[0].device), up.to(own[0].device))
        wanted = _product(own[0].to(down.dtype), own[1].to(up.dtype))
        apart, size = _distance(update, wanted), float(wanted.norm())
        if not apart <= max(EXACT, _eps(down), _eps(up)) * size:
            wrong[layer] = apart / max(size, 1e-30)
    return _worst_first(wrong, "layer")


def off_fused(found: Tensors, denoiser: nn.Module, student: Tensors) -> list[str]:
    """Weights of a fused file that differ from the denoiser's plus the student's update.

    Args:
        found: The file's weights, with the denoiser's names and shapes.
        denoiser: The base model's denoiser, without an adapter.
        student: The run's LoRA, by peft's names, the file's strength baked in.
    """
    wrong = {}
    for name, weight in denoiser.state_dict().items():
        fused = fused_weight(name, weight, student)
        wanted = fused.to(found[name].dtype).float()
        update = float((fused.float() - weight.float()).norm())
        apart = _distance(found[name].to(weight.device).float(), wanted)
        size = float(wanted.norm())
        if not apart <= FUSED * update + _noise(weight, found[name]) * size:
            wrong[name] = apart / max(size, 1e-30)
    return _worst_first(wrong, "weight")


def fused_weights(denoiser: nn.Module, tensors: Tensors) -> dict[str, torch.Tensor]:
    """A denoiser's weights with the adapter added: ``W + B A``.

    Args:
        denoiser: The denoiser; its own weights stay unchanged.
        tensors: The LoRA by peft's names; alpha equals the rank.

    Returns:
        Every weight in its own type; sums are taken in float32.
    """
    return {
        name: fused_weight(name, weight, tensors) for name, weight in denoiser.state_dict().items()
    }


def fused_weight(name: str, weight: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    """One weight of :func:`fused_weights`; unchanged where its layer has no adapter."""
    layer = name.removesuffix(".weight")
    if f"{layer}.weight" != name or f"{layer}.lora_A.weight" not in tensors:
        return weight
    down, up = (tensor.to(weight.device) for tensor in factors(tensors, layer))
    added = weight.float() + _product(down, up).reshape(weight.shape)
    return added.to(weight.dtype)


def _worst_first(wrong: dict[str, float], noun: str) -> list[str]:
    """One problem that lists the relative errors, the largest first; empty for none."""
    if not wrong:
        return []
    worst = sorted(wrong, key=lambda name: -wrong[name])
    shown = first_few([f"{name} (by {100 * wrong[name]:.3g}%)" for name in worst])
    return [f"{plural(len(wrong), noun)} off the trained student's: {shown}"]


def _product(down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """A layer's update in float32, shape (out, in); a convolution's kernel counts as inputs."""
    return up.float().flatten(1) @ down.float().flatten(1)


def _distance(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).norm()) if one.shape == two.shape else math.inf


def _noise(*tensors: torch.Tensor) -> float:
    """Rounding noise of sums that differ by ``SUMS``, relative to a weight's norm.

    About ``SUMS / eps`` of the values round the other way, by ``eps`` each: in the norm,
    ``sqrt(SUMS / eps) * eps = sqrt(SUMS * eps)``.
    """
    return math.sqrt(SUMS * max(_eps(tensor) for tensor in tensors))


def _eps(tensor: torch.Tensor) -> float:
    return torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0


def _near(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether tensors agree up to the rounding of the smaller type."""
    eps = max(_eps(one), _eps(two))
    one, two = one.float().reshape(two.shape), two.float().cpu()
    return bool((one - two).abs().max() <= 4 * eps * two.abs().max())


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape)


def _width(down: torch.Tensor, up: torch.Tensor) -> str:
    """``inputs to outputs`` of a LoRA's factors, or of one weight given twice."""
    return f"{down.shape[1]} to {up.shape[0]}"


def _width_of(layer: nn.Module) -> str:
    """``inputs to outputs`` of a layer; a quantised weight may have another shape."""
    if isinstance(layer, nn.Linear):
        return f"{layer.in_features} to {layer.out_features}"
    weight = layer.get_parameter("weight")
    return _width(weight, weight)
