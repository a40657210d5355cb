"""A LoRA file: one writer, and one object that holds all of it, read once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from guidefold.deliver.formats import (
    Tensors,
    alphas_of,
    format_of,
    named,
    of_one_rank,
    read,
)
from guidefold.deliver.layer_names import LayerNames
from guidefold.deliver.metadata import labels
from guidefold.ground import CorruptFileError, InputError, MismatchError
from guidefold.lora import DIFFUSERS_FILE, PEFT_CONFIG, PEFT_FILE, adapter_config, layers_of
from guidefold.run import (
    METADATA_KEY,
    Format,
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
"""What files are called by the libraries that find them by name."""
MORE_THAN_A_LORA = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices")
SINCE = "damaged or edited since it was written; write it again with 'guidefold export'"


@dataclass(frozen=True)
class LoraFile:
    """A LoRA's file, or a denoiser's whole weights, as :func:`read_lora` has read it.

    Attributes:
        path: The file.
        kind: Its format.
        tensors: By the file's own names, on the CPU, mapped from the file.
        labels: Its metadata, every key as it stands there.
        about: Guidefold's own metadata among them; empty of other programs' files.
    """

    path: Path
    kind: Format
    tensors: Tensors
    labels: Mapping[str, str]
    about: Mapping[str, Any]

    @property
    def strength(self) -> float:
        """The run's strength that it holds as strength 1."""
        return float(self.about.get("strength", 1.0))

    def plain(self, names: LayerNames) -> dict[str, torch.Tensor]:
        """Its tensors by peft's names, alpha folded in wherever it is written.

        Args:
            names: What the denoiser's layers are called.

        Raises:
            InputError: Its configuration asks for more than a LoRA.
            MismatchError: Its keys are not the denoiser's.
        """
        config: Mapping[str, Any] = alphas_of(self.labels, names.component)
        beside = self.path.parent / PEFT_CONFIG
        if self.kind == "peft" and beside.exists():
            config = read_json(beside)
        for name in MORE_THAN_A_LORA:
            if config.get(name):
                raise InputError(f"{self.path}: '{name}' is set, which is more than a LoRA", "")
        try:
            return read(self.tensors, self.kind, names, config)
        except MismatchError as error:
            raise MismatchError(f"{self.path}: {error.message}", error.remedy) from error


def read_lora(path: Path, kind: Format | None = None, *, own: bool = False) -> LoraFile:
    """Read a LoRA file, all of it, once.

    Args:
        path: The file.
        kind: Its format, where it is known. Keys tell it otherwise, and those of diffusers and of
            transformers look alike.
        own: Whether the format that Guidefold has written into it counts.

    Raises:
        CorruptFileError: It is not whole, or its metadata is no JSON.
        InputError: A key is of no format that is known here.
    """
    tensors, header = read_safetensors(path)
    try:
        about = json.loads(header.get(METADATA_KEY, "null"))
    except ValueError as error:
        raise CorruptFileError(f"{path}: its metadata is no JSON ({error}): {SINCE}") from error
    about = about if isinstance(about, Mapping) else {}
    kind = kind or (own and about.get("format")) or format_of(tensors.keys(), path)
    return LoraFile(path, kind, tensors, header, about)


def write_lora(
    path: Path,
    kind: Format,
    tensors: Tensors,
    names: LayerNames,
    about: Mapping[str, Any] | None = None,
    description: Mapping[str, str] | None = None,
) -> None:
    """Write one denoiser's adapter, and what its loader reads beside it.

    Args:
        path: The file.
        kind: Any format but ``fused``.
        tensors: By peft's names; alpha equals the rank.
        names: What the denoiser's layers are called.
        about: Guidefold's own metadata.
        description: For :func:`~guidefold.deliver.metadata.labels`; None where no other program
            will read it.
    """
    # kohya's files say alpha for every layer; the others say it nowhere, as nothing but the rank
    # is understood by all: diffusers raises on metadata with fields that its peft does not know.
    alike = tensors if kind == "kohya" else of_one_rank(tensors)
    written = named(kind, alike, names)
    told = None if description is None else labels(kind, alike, written, names, description)
    write_tensors(path, written, about, told)
    if kind == "peft":
        layers = layers_of(alike)
        rank = alike[f"{layers[0]}.lora_A.weight"].shape[0]
        write_json(path.parent / PEFT_CONFIG, adapter_config(rank, layers))
