"""The ``model_index.json`` of a pipeline: read, checked, and refused where it would run code."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers import DiffusionPipeline
from torch import nn

from guidefold.ground import PipelineError, read_json
from guidefold.pipeline.hub import why_unreachable

CODE = {".py"}
PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}


def check_folder(folder: Path) -> dict[str, Any]:
    """Refuse a folder that would run code or unpickle data, or that is no pipeline.

    Returns:
        Its ``model_index.json``.

    Raises:
        PipelineError: A file is unsafe, or missing; the error names it and the way out.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise PipelineError(
            f"{folder}: no model_index.json in this folder",
            "Give a folder written by pipeline.save_pretrained, or a .safetensors file.",
        )
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise PipelineError(
                f"{folder}: holds a pipe or a device ({name}), reading which may never end",
                "Remove it.",
            )
        if path.suffix.lower() in CODE:
            raise PipelineError(
                f"{folder}: holds Python code ({name}), which Guidefold does not run",
                "Remove the file if the pipeline is an ordinary diffusers pipeline.",
            )
        if path.suffix.lower() in PICKLES:
            raise PipelineError(
                f"{folder}: holds pickled weights ({name}), which can run code when they are read",
                "Convert once, where you trust it: load it with diffusers and write it with "
                "pipeline.save_pretrained(folder, safe_serialization=True).",
            )
    return read_index(index)


def read_index(path: Path) -> dict[str, Any]:
    """Read and check a ``model_index.json``.

    Raises:
        PipelineError: It cannot be read, or is no pipeline's, or not safe.
    """
    return _checked_index(str(path), read_json(path, PipelineError))


def load_index(hub_id: str) -> dict[str, Any]:
    """Download and check the ``model_index.json`` of a hub id, or find an earlier download.

    Raises:
        PipelineError: It cannot be had, or is no pipeline's, or not safe.
    """
    unreachable = why_unreachable(hub_id)
    try:
        # Without a connection only earlier downloads are available: do not wait for retries.
        values = DiffusionPipeline.load_config(hub_id, local_files_only=unreachable is not None)
    except (OSError, ValueError) as error:
        reason = unreachable or str(error).splitlines()[0]
        raise PipelineError(
            f"{hub_id}: no folder here, and its model_index.json cannot be had: {reason}",
            "Check the name and the connection, or give a local folder; for a single file, "
            "name one that describes it with pipeline.config=FOLDER.",
        ) from error
    return _checked_index(hub_id, dict(values))


def _checked_index(where: str, index: Any) -> dict[str, Any]:
    """Check that every class in a ``model_index.json`` comes from diffusers or transformers."""
    if not isinstance(index, dict):
        raise PipelineError(f"{where}: no pipeline's model_index.json, but a list or plain value")
    name = index.get("_class_name")
    named = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(named, type) and issubclass(named, DiffusionPipeline)):
        raise PipelineError(
            f"{where}: '{name}' is no pipeline class of diffusers {diffusers.__version__}",
            "Guidefold runs no custom pipeline code; update diffusers if the class is new.",
        )
    for component, (library, _) in components(index).items():
        # Some components live in a pipeline's own module inside diffusers (a safety checker).
        inside = library in (None, "diffusers", "transformers")
        if not inside and not hasattr(diffusers.pipelines, library):
            raise PipelineError(
                f"{where}: component '{component}' comes from '{library}'",
                "Only components of diffusers and transformers are opened.",
            )
    return index


def left_out(only: Collection[str], index: Mapping[str, Any]) -> dict[str, None]:
    """Map each unwanted weighted component to None, as ``from_pretrained`` expects."""
    entries = components(index) if only else {}
    return dict.fromkeys(
        n for n, entry in entries.items() if n not in only and component_class(*entry)
    )


def components(index: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are a library and a class, or None twice; some settings are lists too."""
    pairs = {n: e for n, e in index.items() if isinstance(e, list | tuple) and len(e) == 2}
    return {n: e for n, e in pairs.items() if all(isinstance(x, str | None) for x in e)}


def component_class(library: str | None, name: str | None) -> type[nn.Module] | None:
    """The class of a component that holds weights; None for any other."""
    libraries = {"diffusers": diffusers, "transformers": transformers}
    module = libraries.get(str(library)) or getattr(diffusers.pipelines, str(library), None)
    component = getattr(module, str(name), None)
    found = isinstance(component, type) and issubclass(component, nn.Module)
    return component if found else None
