"""Which layers of a denoiser a LoRA can be put on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import nn

from guidefold.lora.portable import unportable
from guidefold.run import Preset

PRESETS: tuple[Preset, ...] = get_args(Preset)
LINEAR = (nn.Linear,)
LAYER_TYPES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
UNSUPPORTED_CLAYER_TYPES = "called with more than one plain argument"
# What plain layers have and peft's wrappers of them have not.
UNWRAPPED = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")


def find_targets(
    denoiser: nn.Module, preset: str, dry_run: Callable[[], object]
) -> tuple[list[str], dict[str, str]]:
    """Find the layers of a preset that can be wrapped, and those that cannot.

    Args:
        denoiser: The module.
        preset: ``attention``, ``linear``, ``portable`` or ``all``.
        dry_run: Calls the denoiser as training will.

    Returns:
        ``(names, left out with the reason)``.
    """
    with watched(candidates(denoiser, preset)) as reasons, torch.no_grad():
        dry_run()
    return [n for n, r in reasons.items() if not r], {n: r for n, r in reasons.items() if r}


@contextmanager
def watched(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, str]]:
    """Watch how layers are called: peft's wrappers take one plain tensor and nothing else.

    They have not all attributes of a layer either: one that the denoiser reads from outside the
    layer's own forward cannot be wrapped.

    Yields:
        The reason why each layer cannot be wrapped; after the context, empty if it can.
    """
    reasons = dict.fromkeys(layers, "not called in a pass")

    def watch(name: str, layer: nn.Module) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            supported = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor)
            if not supported:
                reasons[name] = UNSUPPORTED_CLAYER_TYPES
            elif reasons[name] != UNSUPPORTED_CLAYER_TYPES:
                reasons[name] = ""

        return layer.register_forward_pre_hook(hook, with_kwargs=True)

    hooks = [watch(name, layer) for name, layer in layers.items()]
    read = {name: _note_reads(layer) for name, layer in layers.items()}
    try:
        # Compiled code skips hooks.
        with torch.compiler.set_stance("force_eager"):
            yield reasons
    finally:
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            attributes = read[name]()
            if attributes:
                reasons[name] = f"its {', '.join(sorted(attributes))} is read by the denoiser"
            if getattr(layer, "groups", 1) > 1:
                reasons[name] = "grouped convolution"


def _note_reads(layer: nn.Module) -> Callable[[], set[str]]:
    """Note which of :data:`UNWRAPPED` are read from outside a layer's own forward.

    Returns:
        Ends it, and gives the names.
    """
    kind, names, inside = type(layer), set[str](), list[bool]()
    # Hooks, not a forward of the class: offloading puts one on the instance.
    hooks = (
        layer.register_forward_pre_hook(lambda *_: inside.append(True)),
        layer.register_forward_hook(lambda *_: inside.clear(), always_call=True),
    )

    class Noting(kind):  # type: ignore[misc, valid-type]
        def __getattribute__(self, name: str) -> Any:
            if name in UNWRAPPED and not inside:
                names.add(name)
            return super().__getattribute__(name)

    def end() -> set[str]:
        layer.__class__ = kind
        for hook in hooks:
            hook.remove()
        return names

    layer.__class__ = Noting
    return end


def candidates(denoiser: nn.Module, preset: str) -> dict[str, nn.Module]:
    """The layers of a preset, whether they can be wrapped or not."""
    types = LAYER_TYPES if preset in ("all", "portable") else LINEAR
    named: dict[str, nn.Module] = {
        n: m for n, m in denoiser.named_modules() if isinstance(m, types)
    }
    if preset == "portable":
        lost = unportable(named)
        return {n: m for n, m in named.items() if n not in lost}
    if preset != "attention":
        return named
    inside = tuple(f"{n}." for n, m in denoiser.named_modules() if "Attention" in type(m).__name__)
    return {n: m for n, m in named.items() if n.startswith(inside)}


def count_targets(denoiser: nn.Module, reasons: Mapping[str, str]) -> dict[str, int]:
    """How many layers of each preset can be wrapped.

    Args:
        denoiser: The module.
        reasons: From :func:`watched`, of all candidates.
    """
    return {
        preset: sum(not reasons[name] for name in candidates(denoiser, preset))
        for preset in PRESETS
    }
