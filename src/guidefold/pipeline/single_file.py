"""Open a checkpoint of one file; what it lacks comes from the folder that describes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from torch import nn

from guidefold.ground import PipelineError, compat, kind_of_file, out_of_memory
from guidefold.pipeline.descriptions import describe_source, is_complete
from guidefold.pipeline.index import components, load_index, read_index
from guidefold.pipeline.loading import load_pipeline, loading_errors, weight_files
from guidefold.pipeline.weight_files import check_whole
from guidefold.run import check_source

SINGLE_FILES = {".safetensors"}


def describe_single_file(path: Path, config: str | None) -> tuple[str, dict[str, Any]]:
    """Find the configuration of a checkpoint, after checking that the file is whole.

    Args:
        path: The file.
        config: The folder or hub id that describes it; None lets diffusers infer a hub id. Of a
            hub id, the configuration comes with the package or from the hub.

    Returns:
        The folder or hub id, and its ``model_index.json``.

    Raises:
        PipelineError: The file is damaged, or of another format, or nothing describes it.
    """
    if path.suffix.lower() not in SINGLE_FILES:
        raise PipelineError(
            f"{path}: {kind_of_file(path)} may be a pickle, which can run code when it is read",
            "Convert it to safetensors once, where you trust it.",
        )
    check_whole([path])
    if config is not None:
        check_source(config, "pipeline.config")
    if config is not None and Path(config).is_dir():
        index = read_index(Path(config) / "model_index.json")
    else:
        config = config or _infer_config(path)
        bundled = describe_source(config)
        if bundled is not None and is_complete(bundled):
            config, index = str(bundled), read_index(bundled / "model_index.json")
        else:
            index = load_index(config)
    if not hasattr(getattr(diffusers, index["_class_name"]), "from_single_file"):
        raise PipelineError(
            f"{path}: {index['_class_name']} cannot be opened from a single file",
            "Convert it to a diffusers folder first.",
        )
    return config, index


def open_single_file(
    path: Path, config: str, index: dict[str, Any], dtype: torch.dtype, scheduler: Any
) -> DiffusionPipeline:
    """Open a checkpoint with the folder or hub id that describes it.

    Args:
        path: The file.
        config: From :func:`describe_single_file`. Of a folder, weights are read as well, of those
            components alone that the file lacks.
        index: Its ``model_index.json``.
        dtype: Precision of the weights.
        scheduler: The pipeline's scheduler; None leaves it to the configuration.

    Raises:
        PipelineError: It cannot be opened; the error names a component that is missing.
    """
    loader = getattr(diffusers, index["_class_name"]).from_single_file
    options: dict[str, Any] = {"config": config, "local_files_only": Path(config).is_dir()}
    if scheduler is not None:
        options["scheduler"] = scheduler
    while True:
        try:
            return load_pipeline(loader, str(path), dtype, **options)
        except PipelineError as error:
            missing = compat.missing_component(error.__cause__)
            if missing is None or missing in options:
                raise
            options[missing] = _from_folder(path, Path(config), index, missing, dtype)


def _from_folder(
    path: Path, folder: Path, index: dict[str, Any], name: str, dtype: torch.dtype
) -> nn.Module:
    """A component that a checkpoint lacks, from the folder that describes it."""
    weights = list(weight_files(folder, [name]))
    if not weights:
        raise PipelineError(
            f"{path}: holds no weights of the {name} ({components(index)[name][1]})",
            f"Name with pipeline.config a diffusers folder that has them in {name}/, such as the "
            "whole pipeline that the file was tuned from; what the file holds is read from the "
            "file.",
        )
    check_whole(weights)
    library, kind = components(index)[name]
    package = {"diffusers": diffusers, "transformers": transformers}.get(
        library, getattr(diffusers.pipelines, library, None)
    )
    try:
        component: nn.Module = getattr(package, kind).from_pretrained(
            folder / name, dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except loading_errors() as error:
        if out_of_memory(error):
            raise
        raise PipelineError(f"{folder / name}: cannot be opened: {error}") from error
    return component


def _infer_config(path: Path) -> str:
    """The hub id whose configuration fits a checkpoint; diffusers infers it from the keys."""
    try:
        return compat.single_file_config(str(path))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise PipelineError(
            f"{path}: cannot tell what kind of pipeline it is ({error})",
            "Name a diffusers folder that describes it with pipeline.config=FOLDER.",
        ) from error
