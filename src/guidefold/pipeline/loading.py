"""Call diffusers' loaders: what they complain of, or pass over, is the pipeline's fault."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import nn

from guidefold.ground import PipelineError, compat

REMEDY = "Check that every component named in model_index.json is there, as safetensors."
# transformers' word for weights that are not in the files: it fills them with random values.
MADE_UP = "newly initialized"
# Weights' files as the libraries name them; the variant stands before a shard's number.
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors"
)


def loading_errors() -> tuple[type[Exception], ...]:
    """What the loaders raise; the last two are plain exceptions."""
    usual = (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError)
    return (*usual, SafetensorError, compat.single_file_error())


def load_pipeline(
    loader: Any, source: object, dtype: torch.dtype, **options: Any
) -> DiffusionPipeline:
    """Load all of a pipeline, or nothing.

    Args:
        loader: ``from_pretrained`` or ``from_single_file`` of a pipeline class.
        source: Its first argument.
        dtype: Precision of the weights.
        **options: Its further arguments.

    Raises:
        PipelineError: It cannot be loaded, or some of its weights are missing.
    """
    try:
        with _heard() as warnings:
            pipeline: DiffusionPipeline = loader(
                source, dtype=dtype, use_safetensors=True, **options
            )
    except loading_errors() as error:
        raise PipelineError(f"{source}: diffusers cannot open it: {error}", REMEDY) from error
    for name, module in pipeline.components.items():
        if isinstance(module, nn.Module) and (missing := _without_weights(module)):
            raise PipelineError(
                f"{source}: {name}: {len(missing)} weights are missing, such as {missing[0]}",
                f"{REMEDY} A pipeline that was saved with a LoRA on it lacks them too: call "
                "unload_lora_weights (after fuse_lora, to keep its effect) and save it again.",
            )
    made_up = [text for text in warnings if MADE_UP in text]
    if made_up:
        raise PipelineError(f"{source}: weights are missing: {made_up[0].strip()}", REMEDY)
    return pipeline


def check_variants(folder: Path, components: Iterable[str]) -> None:
    """Refuse a folder whose weights are there only under a variant's name.

    Args:
        folder: In diffusers format.
        components: The names of what is to be loaded; each a folder, if it has files.

    Raises:
        PipelineError: Names a file, and how to save the pipeline under the plain names.
    """
    for name in components:
        found = {path: WEIGHTS.fullmatch(path.name) for path in (folder / name).glob("*")}
        named = {path: match["variant"] for path, match in found.items() if match}
        if named and None not in named.values():
            path, variant = min(named.items())
            raise PipelineError(
                f"{folder}: its weights are saved under the variant '{variant}' "
                f"({path.relative_to(folder)}), which Guidefold does not look for",
                "Save it once more without: DiffusionPipeline.from_pretrained("
                f"{str(folder)!r}, variant={variant!r}).save_pretrained('NEW FOLDER')",
            )


def _without_weights(module: nn.Module) -> list[str]:
    """Parameters that diffusers found no values for, and left without memory."""
    return [name for name, parameter in module.named_parameters() if parameter.is_meta]


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What transformers warns of while it loads, whether or not anybody shows it."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    logger, ear = logging.getLogger("transformers.modeling_utils"), Ear()
    level, shown = logger.level, logger.propagate
    logger.addHandler(ear)
    logger.propagate = shown and logger.isEnabledFor(logging.WARNING)  # as quiet as it was
    logger.setLevel(logging.WARNING)
    try:
        yield heard
    finally:
        logger.removeHandler(ear)
        logger.setLevel(level)
        logger.propagate = shown
