"""The base model of a LoRA file: the denoiser it is for, within its pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from guidefold.deliver.clients import layers_by_stem, stem
from guidefold.deliver.layer_names import LayerNames, layer_names
from guidefold.deliver.lora_file import LoraFile
from guidefold.ground import MismatchError
from guidefold.listen import lora_loader
from guidefold.pipeline import modules, open_pipeline, stated_schedule
from guidefold.run import Quantization
from guidefold.session import Session


@dataclass(frozen=True)
class Base:
    """The base model that a file is loaded onto.

    Attributes:
        pipeline: A stock pipeline.
        denoisers: The names of its components that LoRAs are made for.
        name: The name of the component that the file is for.
        denoiser: That component.
        loader: The library that loads LoRAs into the pipeline: ``diffusers`` or ``peft``.
        names: The denoiser's layer names.
    """

    pipeline: DiffusionPipeline
    denoisers: tuple[str, ...]
    name: str
    denoiser: nn.Module
    loader: str
    names: LayerNames


def open_base(
    source: str,
    files: Sequence[LoraFile],
    dtype: torch.dtype = torch.float32,
    quantization: Quantization = "none",
) -> DiffusionPipeline:
    """Open the pipeline that a user names as the base of LoRA files.

    A checkpoint of one file is described by a configuration that may not be its own: its noise
    schedule is the one that the files were made for, else the one that it states itself.

    Args:
        source: A folder, a single file or a hub id.
        files: The files, all for this base.
        dtype: Precision of the weights.
        quantization: How linear layers of the denoiser and of text encoders are stored.

    Raises:
        PipelineError: It cannot be opened.
    """
    path, schedule = Path(source), dict[str, Any]()
    if path.is_file() and path.suffix == ".safetensors":
        schedule = stated_schedule(path, files[0].header, files[0].metadata.get("findings", {}))
    return open_pipeline(source, dtype=dtype, quantization=quantization, **schedule)


def base_of(pipeline: DiffusionPipeline, file: LoraFile) -> Base:
    """Find the component of a pipeline that has a file's layers.

    Raises:
        MismatchError: No component has them.
    """
    keys, components = file.tensors.keys(), modules(pipeline)

    def matches(name: str) -> int:
        if file.kind == "fused":
            return len(components[name].state_dict().keys() & keys)
        known = layers_by_stem(file.kind, layer_names(components[name], name))
        return sum(stem(key) in known for key in keys)

    counts = {name: matches(name) for name in components}
    best = max(counts, key=lambda name: counts[name])
    if not counts[best]:
        raise MismatchError(
            f"{file.path}: no component of {type(pipeline).__name__} has the file's layers, such "
            f"as '{min(keys)}'",
            "Name the pipeline that it was made for with --pipeline.",
        )
    denoiser, loader = components[best], lora_loader(pipeline, [best])
    return Base(pipeline, (best,), best, denoiser, loader, layer_names(denoiser, best))


def base_of_run(session: Session, name: str) -> Base:
    """The base model of a session, for one of its denoisers."""
    denoiser, findings = session.denoisers[name], session.findings
    names = layer_names(denoiser, findings.denoisers[0])
    return Base(session.pipeline, findings.denoisers, name, denoiser, findings.loader, names)
