"""A pipeline's denoisers as one module; some pipelines split the timesteps between two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from guidefold.ground import compat

COMPONENT = "component"
"""The keyword, in recorded arguments, for the name of the called one of several denoisers."""
QUANTISED_AS = ("hf_quantizer", "is_loaded_in_4bit", "is_loaded_in_8bit")
"""What peft reads off a quantised model, to put layers on it that know the library's."""


class Denoisers(nn.Module):
    """Several denoisers as one module; each keeps its name and its weights.

    Args:
        parts: The denoisers by component name.
    """

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
            for fact in QUANTISED_AS:
                if hasattr(part, fact):
                    setattr(self, fact, getattr(part, fact))

    def forward(self, *args: Any, component: str, **kwargs: Any) -> Any:
        """Call one denoiser."""
        return self.get_submodule(component)(*args, **kwargs)

    @property
    def _supports_gradient_checkpointing(self) -> bool:
        return all(map(compat.supports_checkpointing, self.children()))

    def enable_gradient_checkpointing(self) -> None:
        """Enable gradient checkpointing in each denoiser."""
        for part in self.children():
            part.enable_gradient_checkpointing()  # type: ignore[operator]


def denoisers(pipeline: DiffusionPipeline, names: tuple[str, ...]) -> dict[str, nn.Module]:
    """A pipeline's denoisers by name."""
    return {name: getattr(pipeline, name) for name in names}


def as_one_module(parts: Mapping[str, nn.Module]) -> nn.Module:
    """A single denoiser itself; several as :class:`Denoisers`."""
    return next(iter(parts.values())) if len(parts) == 1 else Denoisers(parts)


def unwrap(module: nn.Module) -> nn.Module:
    """The module within compiled and data-parallel wrappers."""
    while True:
        inner = compat.uncompiled(module)
        if isinstance(inner, nn.parallel.DistributedDataParallel):
            inner = inner.module
        if inner is module:
            return module
        module = inner
