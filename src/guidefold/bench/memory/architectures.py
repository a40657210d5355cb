"""Published architectures by name: their true configs and the inputs of one call, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from guidefold.ground import ConfigError
from guidefold.pipeline import DESCRIPTIONS, class_of, described_names, read_description

Shapes = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """A component of a pipeline.

    Attributes:
        path: The class, as ``library.Class``.
        config: The class's config.
        inputs: Shapes of one call's arguments by name; nested as the arguments are. A size is a
            number, or a word of :meth:`Architecture.sizes`.
        parameters: Number of parameters of the published component.
    """

    path: str
    config: Mapping[str, Any]
    inputs: Shapes
    parameters: int

    def build(self, dtype: torch.dtype) -> nn.Module:
        """Make the module on the meta device, without gradients.

        Args:
            dtype: Precision of its weights.
        """
        with torch.device("meta"):
            module = self._make()
        nn.Module.to(module, dtype)  # diffusers' own warns of modules that it would keep in float32
        return module.eval().requires_grad_(False)

    def _make(self) -> nn.Module:
        cls = class_of(self.path)
        if hasattr(cls, "load_config"):
            module: nn.Module = cls.from_config(dict(self.config))
        else:
            module = cls(cls.config_class(**self.config))
        return module


@dataclass(frozen=True)
class Architecture:
    """A pipeline's parts.

    Attributes:
        name: Its name on the command line.
        title: Its published name.
        size: The side of its pictures, in pixels.
        denoiser: Called at each step.
        encoders: Called once for each prompt.
        autoencoder: Called once for each picture.
        values: The whole content of its file.
    """

    name: str
    title: str
    size: int
    denoiser: Part
    encoders: Mapping[str, Part]
    autoencoder: Part
    values: Mapping[str, Any] = field(repr=False)

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent's pixel."""
        return int(2 ** (len(self.autoencoder.config["block_out_channels"]) - 1))

    def sizes(self, batch: int, size: int) -> dict[str, int]:
        """Numbers for the words that stand for sizes.

        Args:
            batch: Samples in a call.
            size: The side of the pictures, in pixels.

        Raises:
            ConfigError: The size does not divide into latents that the denoiser can halve.
        """
        step = 8 * self.factor
        if size < step or size % step:
            raise ConfigError(
                f"--size {size}: not a multiple of {step} pixels", f"{self.title} has {self.size}."
            )
        return {"batch": batch, "size": size, "latent": size // self.factor}


def names() -> list[str]:
    """Every bundled architecture whose inputs are known."""
    known = {name: read_description(DESCRIPTIONS / f"{name}.toml") for name in described_names()}
    return sorted(name for name, values in known.items() if "inputs" in values["denoiser"])


@cache
def load_architecture(name: str) -> Architecture:
    """Read an architecture's file.

    Args:
        name: A bundled architecture, or a TOML file of the same form.

    Raises:
        ConfigError: There is no architecture of this name, or the file describes none.
    """
    remedy = f"Use {', '.join(names())}, or a .toml file like theirs."
    own = name.endswith(".toml")
    if not own and name not in names():
        raise ConfigError(f"--arch {name}: no such architecture", remedy)
    path = Path(name) if own else DESCRIPTIONS / f"{name}.toml"
    try:
        return read_architecture(path.stem, read_description(path, remedy))
    except (LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"--arch {name}: describes no architecture ({error})", remedy) from error


def read_architecture(name: str, values: Mapping[str, Any]) -> Architecture:
    """An architecture from a file's values."""
    return Architecture(
        name=name,
        title=values["title"],
        size=values["size"],
        denoiser=_part(values["denoiser"]),
        encoders={name: _part(part) for name, part in values["encoders"].items()},
        autoencoder=_part(values["autoencoder"]),
        values=values,
    )


def make_inputs(
    shapes: Shapes, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device | str
) -> dict[str, Any]:
    """Make arguments of one call: token number 1 for ``input_ids``, else noise.

    Args:
        shapes: A part's inputs.
        sizes: Numbers for the words in them.
        dtype: Type of all but tokens.
        device: The device to make them on.
    """

    def fill(name: str, shape: Any) -> Any:
        if isinstance(shape, Mapping):
            return {inner: fill(inner, value) for inner, value in shape.items()}
        numbers = [sizes.get(size, size) for size in shape]
        if name == "input_ids":
            return torch.ones(numbers, dtype=torch.long, device=device)
        return torch.rand(numbers, dtype=dtype, device=device)

    return {name: fill(name, shape) for name, shape in shapes.items()}


def _part(values: Mapping[str, Any]) -> Part:
    return Part(
        path=values["class"],
        config=values["config"],
        inputs=values["inputs"],
        parameters=values["parameters"],
    )
