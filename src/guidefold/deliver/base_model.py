"""The denoiser that a LoRA file is for, within its pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import DiffusionPipeline
from torch import nn

from guidefold.deliver.clients import stem
from guidefold.deliver.formats import layers_by_stem
from guidefold.deliver.layer_names import LayerNames, layer_names
from guidefold.deliver.lora_file import LoraFile
from guidefold.ground import MismatchError
from guidefold.listen import lora_loader
from guidefold.pipeline import modules
from guidefold.session import Session


@dataclass(frozen=True)
class Base:
    """What a file is loaded onto.

    Attributes:
        pipeline: A stock pipeline.
        denoisers: Its components that LoRAs are made for.
        name: The one that the file is for.
        loader: Who loads LoRAs into the pipeline.
        names: What the denoiser's layers are called.
    """

    pipeline: DiffusionPipeline
    denoisers: tuple[str, ...]
    name: str
    loader: str
    names: LayerNames

    @property
    def module(self) -> nn.Module:
        """The denoiser."""
        found: nn.Module = getattr(self.pipeline, self.name)
        return found


def base_of(pipeline: DiffusionPipeline, file: LoraFile) -> Base:
    """The component of a pipeline that a file's layers are found in.

    Raises:
        MismatchError: In none of them.
    """
    kind, keys = file.kind, file.tensors.keys()

    def hits(name: str, module: nn.Module) -> int:
        if kind == "fused":
            return len(module.state_dict().keys() & keys)
        known = layers_by_stem(kind, layer_names(module, name))
        return sum(stem(key) in known for key in keys)

    found = {name: hits(name, module) for name, module in modules(pipeline).items()}
    best = max(found, key=lambda name: found[name])
    if not found[best]:
        raise MismatchError(
            f"{file.path}: no component of {type(pipeline).__name__} has the file's layers, such "
            f"as '{min(keys)}'",
            "Name the pipeline that it was made for with --pipeline.",
        )
    loader = lora_loader(pipeline, [best])
    return Base(pipeline, (best,), best, loader, layer_names(getattr(pipeline, best), best))


def base_of_run(session: Session, name: str) -> Base:
    """One denoiser of a session's pipeline."""
    findings = session.findings
    names = layer_names(session.denoisers[name], findings.denoisers[0])
    return Base(session.pipeline, findings.denoisers, name, findings.loader, names)
