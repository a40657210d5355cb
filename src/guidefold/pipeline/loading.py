"""Call diffusers' loaders; their errors and silent omissions become errors of the pipeline."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import nn

from guidefold import VERBOSITIES
from guidefold.ground import PipelineError, compat, named, out_of_memory, plural

REMEDY = "Check that every component named in model_index.json is there, as safetensors."
# transformers' warning about weights that are in no file: it fills them with random values.
RANDOMLY_FILLED = "newly initialized"
# The libraries' names of weight files; a variant comes before a shard's number.
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors"
)


def loading_errors() -> tuple[type[Exception], ...]:
    """The exceptions that loaders raise; the last two derive from ``Exception`` directly."""
    usual = (OSError, ValueError, LookupError, AttributeError, TypeError, RuntimeError)
    return (*usual, SafetensorError, compat.single_file_error())


def load_pipeline(
    loader: Any, source: object, dtype: torch.dtype, **options: Any
) -> DiffusionPipeline:
    """Load a pipeline with all of its weights.

    Args:
        loader: ``from_pretrained`` or ``from_single_file`` of a pipeline class.
        source: The loader's first argument.
        dtype: Precision of the weights.
        **options: The loader's further arguments.

    Raises:
        PipelineError: The pipeline cannot be loaded, or some of its weights are missing.
    """
    try:
        with named(f"Opening {source}"), _captured_warnings() as warnings, quiet_loading():
            pipeline: DiffusionPipeline = loader(
                source, dtype=dtype, use_safetensors=True, **options
            )
    except loading_errors() as error:
        if out_of_memory(error):
            raise
        raise PipelineError(f"{source}: diffusers cannot open it: {error}", REMEDY) from error
    for name, module in pipeline.components.items():
        if isinstance(module, nn.Module) and (missing := _without_weights(module)):
            raise PipelineError(
                f"{source}: {name} lacks {plural(len(missing), 'weight')}, such as {missing[0]}",
                f"{REMEDY} A pipeline that was saved with a LoRA on it lacks them too: call "
                "unload_lora_weights (after fuse_lora, to keep its effect) and save it again.",
            )
    for warning in warnings:
        if RANDOMLY_FILLED in warning:
            raise PipelineError(f"{source}: weights are missing: {warning.strip()}", REMEDY)
    return pipeline


def check_variants(folder: Path, components: Iterable[str]) -> None:
    """Refuse a folder whose weight files all have a variant's name.

    Args:
        folder: A folder in diffusers format.
        components: The names of the components to load; each is a sub-folder, if it has files.

    Raises:
        PipelineError: A component has only such files; the error names one and the way out.
    """
    for name in components:
        matches = {path: WEIGHTS.fullmatch(path.name) for path in (folder / name).glob("*")}
        variants = {path: match["variant"] for path, match in matches.items() if match}
        if variants and None not in variants.values():
            path, variant = min(variants.items())
            raise PipelineError(
                f"{folder}: its weights are saved under the variant '{variant}' "
                f"({path.relative_to(folder)}), which Guidefold does not look for",
                "Save it once more without: DiffusionPipeline.from_pretrained("
                f"{str(folder)!r}, variant={variant!r}).save_pretrained('NEW FOLDER')",
            )


def weight_files(folder: Path, components: Iterable[str]) -> Iterator[Path]:
    """The weight files of a folder's components that are read: those without a variant's name."""
    for name in components:
        for path in sorted((folder / name).glob("*")):
            match = WEIGHTS.fullmatch(path.name)
            if match is not None and match["variant"] is None:
                yield path


def _without_weights(module: nn.Module) -> list[str]:
    """The parameters for which diffusers found no values, and left on the ``meta`` device."""
    return [name for name, parameter in module.named_parameters() if parameter.is_meta]


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep diffusers' notes away within the context, also if it was imported before Guidefold."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    if level <= logging.WARNING and os.environ.get(VERBOSITIES[0], "error") == "error":
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _captured_warnings() -> Iterator[list[str]]:
    """Collect transformers' warnings about weights within the context, whatever its log level."""
    warnings: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    logger, collector = logging.getLogger("transformers.modeling_utils"), Collector()
    level, propagated = logger.level, logger.propagate
    logger.addHandler(collector)
    # The lower level must not show the user more than before.
    logger.propagate = propagated and logger.isEnabledFor(logging.WARNING)
    logger.setLevel(logging.WARNING)
    try:
        yield warnings
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)
        logger.propagate = propagated
