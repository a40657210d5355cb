"""LoRA files: one writer, and one object that holds a whole file, read once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from guidefold.deliver.formats import (
    FORMATS,
    Tensors,
    alphas_of,
    format_of,
    named,
    of_one_rank,
    read,
)
from guidefold.deliver.layer_names import LayerNames
from guidefold.deliver.metadata import header_for_clients
from guidefold.ground import CorruptFileError, InputError, MismatchError
from guidefold.lora import DIFFUSERS_FILE, PEFT_CONFIG, PEFT_FILE, adapter_config, layers_of
from guidefold.run import (
    Format,
    Layers,
    LoraRole,
    Quantization,
    parse_metadata,
    read_json,
    read_safetensors,
    write_json,
    write_tensors,
)

FILES: Mapping[Format, str] = {
    "diffusers": DIFFUSERS_FILE,
    "peft": PEFT_FILE,
    "fused": "diffusion_pytorch_model.safetensors",
}
"""The file names under which libraries look for a format."""
OWN_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "quantization": lambda value: value in get_args(Quantization),
    "strength": lambda value: isinstance(value, int | float),
    "format": lambda value: value in FORMATS,
    "denoiser": lambda value: isinstance(value, str),
    "folds": lambda value: value in get_args(LoraRole),
    "findings": lambda value: isinstance(value, dict) and isinstance(value["denoisers"], list),
}
"""Of Guidefold's own metadata, the fields that are read here, and what each must be."""
MORE_THAN_A_LORA = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices")
SINCE = "damaged or edited since it was written; write it again with 'guidefold export'"


@dataclass(frozen=True)
class LoraFile:
    """A LoRA's file, or a denoiser's full weights, read by :func:`read_lora`.

    Attributes:
        path: The file.
        kind: The file's format.
        tensors: The tensors by the file's own keys, on the CPU, mapped from the file.
        header: All metadata of the safetensors header.
        metadata: Guidefold's own metadata in it; empty in other programs' files.
    """

    path: Path
    kind: Format
    tensors: Tensors
    header: Mapping[str, str]
    metadata: Mapping[str, Any]

    @property
    def strength(self) -> float:
        """The strength of the run's adapter that is baked in: the file's strength 1."""
        return float(self.metadata.get("strength", 1.0))

    @property
    def folds(self) -> LoraRole | None:
        """What it folds; None of an older file, which is its run's only LoRA."""
        return self.metadata.get("folds")

    @property
    def quantization(self) -> Quantization:
        """How the weights were quantised that it was trained on."""
        found: Quantization = self.metadata.get("quantization", "none")
        return found

    @property
    def layers(self) -> Layers:
        """Which of the run's trained layers it holds."""
        return "portable" if self.metadata.get("layers") == "portable" else "all"

    def plain(self, names: LayerNames) -> dict[str, torch.Tensor]:
        """The tensors by peft's names, alpha folded in.

        Args:
            names: The denoiser's layer names.

        Raises:
            InputError: peft's configuration sets more than a plain LoRA.
            MismatchError: The keys do not match the denoiser's layers.
        """
        config = alphas_of(self.header, names.component, self.path)
        beside = self.path.parent / PEFT_CONFIG
        if self.kind == "peft" and beside.exists():
            config = read_json(beside)
        if not isinstance(config, Mapping):
            raise CorruptFileError(f"{beside}: holds no table")
        for name in MORE_THAN_A_LORA:
            if config.get(name):
                raise InputError(f"{self.path}: '{name}' is set, which is more than a LoRA", "")
        try:
            return read(self.tensors, self.kind, names, config)
        except MismatchError as error:
            raise MismatchError(f"{self.path}: {error.message}", error.remedy) from error
        except (ValueError, TypeError, AttributeError, OverflowError, re.error) as error:
            raise CorruptFileError(
                f"{self.path}: the ranks and alphas that are given for its layers cannot be read "
                f"({error})"
            ) from error


def read_lora(path: Path, kind: Format | None = None, *, own: bool = False) -> LoraFile:
    """Read a whole LoRA file, once.

    Args:
        path: The file.
        kind: The file's format, where it is known. Otherwise the keys decide, and the formats
            ``diffusers`` and ``transformer`` may have the same keys.
        own: Whether the format in Guidefold's own metadata comes before the keys.

    Raises:
        CorruptFileError: The file is truncated, or its metadata is no JSON.
        InputError: The keys are of no known format.
    """
    tensors, header = read_safetensors(path)
    if not tensors:
        raise CorruptFileError(f"{path}: it holds no tensors: {SINCE}")
    metadata = _own_metadata(path, header)
    kind = kind or (own and metadata.get("format")) or format_of(tensors.keys(), path)
    return LoraFile(path, kind, tensors, header, metadata)


def _own_metadata(path: Path, header: Mapping[str, str]) -> Mapping[str, Any]:
    """Guidefold's own metadata in a file's header; empty in other programs' files.

    Raises:
        CorruptFileError: It is no JSON, or a field that is read here has another type.
    """
    values = parse_metadata(header, path, SINCE)
    if not isinstance(values, Mapping):
        return {}
    for name, fits in OWN_FIELDS.items():
        try:
            whole = name not in values or fits(values[name])
        except (KeyError, TypeError):
            whole = False
        if not whole:
            raise CorruptFileError(f"{path}: '{name}' in its metadata is damaged: {SINCE}")
    return values


def write_lora(
    path: Path,
    kind: Format,
    tensors: Tensors,
    names: LayerNames,
    metadata: Mapping[str, Any] | None = None,
    description: Mapping[str, str] | None = None,
) -> None:
    """Write one denoiser's adapter, and the configuration that its loader reads beside it.

    Args:
        path: The file.
        kind: Any format but ``fused``.
        tensors: The LoRA by peft's names; alpha equals the rank.
        names: The denoiser's layer names.
        metadata: Guidefold's own metadata.
        description: The argument of :func:`~guidefold.deliver.metadata.header_for_clients`; None
            for a file that no other program reads.
    """
    # kohya's files hold alpha for every layer. The others omit it, so that alpha is the rank for
    # every reader: diffusers raises on metadata with fields that the installed peft does not know.
    alike = tensors if kind == "kohya" else of_one_rank(tensors)
    written = named(kind, alike, names)
    header = description and header_for_clients(kind, alike, written, names, description)
    write_tensors(path, written, metadata, header)
    if kind == "peft":
        layers = layers_of(alike)
        rank = alike[f"{layers[0]}.lora_A.weight"].shape[0]
        write_json(path.parent / PEFT_CONFIG, adapter_config(rank, layers))
