"""Open a pipeline safely; name its components and their weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate.utils import align_module_device
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from torch import nn

from guidefold.ground import ConfigError, PipelineError, compat, read_json
from guidefold.pipeline.loading import check_variants, load_pipeline

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CODE = {".py"}
PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}
SINGLE_FILES = {".safetensors"}
HUB_SECONDS = 10.0


def open_pipeline(
    source: str,
    *,
    config: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    only: Collection[str] = (),
) -> DiffusionPipeline:
    """Open a pipeline without running code or unpickling data that came with it.

    Args:
        source: A local folder in diffusers format, a single ``.safetensors`` checkpoint, a hub id
            ``owner/name``, or ``"bundled"``.
        config: For a single file: a diffusers folder or hub id that describes it.
        dtype: Precision of the weights.
        device: The pipeline's device.
        only: The only components whose weights are loaded; others stay None. Empty loads all, and
            so does a single file. Some pipelines do not open without their other components.

    Returns:
        The pipeline in evaluation mode, without progress bar.

    Raises:
        PipelineError: The pipeline is not found, unsafe, incomplete, or in no known format.
    """
    for library in (diffusers, transformers):  # loading is short beside what follows
        library.utils.logging.disable_progress_bar()
    path = bundled_teacher() if source == "bundled" else Path(source)
    if path.is_dir():
        index = check_folder(path)
        absent = _left_out(only, index)
        classes = {name: class_name for name, (_, class_name) in _components(index).items()}
        check_variants(path, [name for name in classes if classes[name] and name not in absent])
        pipeline = load_pipeline(
            DiffusionPipeline.from_pretrained, path, dtype, local_files_only=True, **absent
        )
    elif path.is_file():
        pipeline = _open_single_file(path, config, dtype)
    elif _is_hub_id(source):
        index = _load_index(source)
        absent = _left_out(only, index)
        pipeline = load_pipeline(DiffusionPipeline.from_pretrained, source, dtype, **absent)
    else:
        raise PipelineError(
            f"{source}: no such pipeline",
            "Give a folder with a model_index.json, a .safetensors file, or a hub id owner/name.",
        )
    pipeline.set_progress_bar_config(disable=True)
    for module in modules(pipeline).values():
        module.eval().requires_grad_(False)
    return pipeline.to(device)


def offload(pipeline: DiffusionPipeline, device: str) -> None:
    """Keep each component on the CPU until it is called.

    Args:
        pipeline: A pipeline on the CPU.
        device: The accelerator that runs the components.

    Raises:
        ConfigError: The device is no accelerator.
    """
    if torch.device(device).type == "cpu":
        raise ConfigError(
            "pipeline.offload: there is no accelerator to bring components to",
            "Set pipeline.offload=false.",
        )
    pipeline.enable_model_cpu_offload(device=device)


def pipeline_class(source: str) -> type[DiffusionPipeline] | None:
    """A folder's pipeline class, without opening it; None for a single file or a hub id.

    Raises:
        PipelineError: The folder is no pipeline, or not safe.
    """
    path = bundled_teacher() if source == "bundled" else Path(source)
    if not path.is_dir():
        return None
    named: type[DiffusionPipeline] = getattr(diffusers, check_folder(path)["_class_name"])
    return named


def bundled_teacher() -> Path:
    """The folder of the bundled teacher."""
    return Path(str(files("guidefold") / "demo" / "teacher"))


def resolve_device(device: str) -> str:
    """``"auto"`` becomes the first accelerator, or the CPU.

    Raises:
        ConfigError: The device does not exist here.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator()
        return accelerator.type if accelerator is not None else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"pipeline.device: '{device}' cannot be used here ({str(error).splitlines()[0]})",
            "Use pipeline.device=auto.",
        ) from error
    return device


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
    return _read_index(index)


def modules(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    """The pipeline's components that hold weights, by name."""
    return {n: c for n, c in pipeline.components.items() if isinstance(c, nn.Module)}


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over each tensor's name, shape, type and about 64 of its values.

    The values are evenly spaced, so that a module of any size takes a fraction of a second.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for _, part in sorted(_hashed_parts(module)):
        digest.update(part)
    return digest.hexdigest()[:16]


def pipeline_identity(pipeline: DiffusionPipeline) -> dict[str, str]:
    """Fingerprints of everything in a pipeline that its pictures depend on.

    Returns:
        Each loaded module's fingerprint by component; under ``scheduler``, the scheduler's class
        and configuration.
    """
    parts = {name: fingerprint(module) for name, module in modules(pipeline).items()}
    scheduler = json.dumps(dict(pipeline.scheduler.config), sort_keys=True, default=str)
    return {**parts, "scheduler": f"{type(pipeline.scheduler).__name__} {scheduler}"}


def _hashed_parts(module: nn.Module) -> Iterator[tuple[str, bytes]]:
    """Each tensor's name and the bytes to hash; offloaded weights are loaded for it."""
    module = compat.uncompiled(module)
    stored = module.state_dict().keys()
    for prefix, inner in module.named_modules():
        with align_module_device(inner):
            parameters = inner.named_parameters(prefix, recurse=False, remove_duplicate=False)
            buffers = inner.named_buffers(prefix, recurse=False, remove_duplicate=False)
            for name, tensor in chain[tuple[str, torch.Tensor]](parameters, buffers):
                if name not in stored:
                    continue
                header = f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode()
                flat = tensor.detach().reshape(-1)
                sampled = flat[:: max(1, flat.numel() // 64)].cpu().contiguous()
                yield name, header + sampled.view(torch.uint8).numpy().tobytes()


def _open_single_file(path: Path, config: str | None, dtype: torch.dtype) -> DiffusionPipeline:
    if path.suffix.lower() not in SINGLE_FILES:
        raise PipelineError(
            f"{path}: a '{path.suffix}' file may be a pickle, which can run code when it is read",
            "Convert it to safetensors once, where you trust it.",
        )
    if config is not None and Path(config).is_dir():
        # Only the folder's configurations are used, not its weights: the index is all to check.
        index = _read_index(Path(config) / "model_index.json")
    else:
        config = config or _infer_config(path)
        index = _load_index(config)
    pipeline_class = getattr(diffusers, index["_class_name"])
    if not hasattr(pipeline_class, "from_single_file"):
        raise PipelineError(
            f"{path}: {index['_class_name']} cannot be opened from a single file",
            "Convert it to a diffusers folder first.",
        )
    options = {"config": config, "local_files_only": Path(config).is_dir()}
    return load_pipeline(pipeline_class.from_single_file, str(path), dtype, **options)


def _infer_config(path: Path) -> str:
    """The hub id whose configuration fits a checkpoint; diffusers infers it from the keys."""
    try:
        return compat.single_file_config(str(path))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise PipelineError(
            f"{path}: cannot tell what kind of pipeline it is ({error})",
            "Name a diffusers folder that describes it with pipeline.config=FOLDER.",
        ) from error


def _read_index(path: Path) -> dict[str, Any]:
    return _checked_index(str(path), read_json(path, PipelineError))


def _load_index(hub_id: str) -> dict[str, Any]:
    unreachable = _why_unreachable(hub_id)
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


def _why_unreachable(hub_id: str) -> str | None:
    """Contact the hub once; return why the repository is unreachable, or None."""
    try:
        HfApi().model_info(hub_id, timeout=HUB_SECONDS)
    except RepositoryNotFoundError:
        return "the hub has no such repository, or does not show it without a login"
    except HfHubHTTPError:
        return None  # a mirror may serve files without this interface
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set, and it was not downloaded before"
    except compat.network_errors():
        return f"no connection to {constants.ENDPOINT}, and it was not downloaded before"
    return None


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
    for component, (library, _) in _components(index).items():
        # Some components live in a pipeline's own module inside diffusers (a safety checker).
        inside = library in (None, "diffusers", "transformers")
        if not inside and not hasattr(diffusers.pipelines, library):
            raise PipelineError(
                f"{where}: component '{component}' comes from '{library}'",
                "Only components of diffusers and transformers are opened.",
            )
    return index


def _left_out(only: Collection[str], index: Mapping[str, Any]) -> dict[str, None]:
    """Map each unwanted weighted component to None, as ``from_pretrained`` expects."""
    entries = _components(index) if only else {}
    return dict.fromkeys(
        n for n, entry in entries.items() if n not in only and _has_weights(*entry)
    )


def _components(index: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are a library and a class, or None twice; some settings are lists too."""
    pairs = {n: e for n, e in index.items() if isinstance(e, list | tuple) and len(e) == 2}
    return {n: e for n, e in pairs.items() if all(isinstance(x, str | None) for x in e)}


def _has_weights(library: str | None, name: str | None) -> bool:
    libraries = {"diffusers": diffusers, "transformers": transformers}
    module = libraries.get(str(library)) or getattr(diffusers.pipelines, str(library), None)
    component = getattr(module, str(name), None)
    return isinstance(component, type) and issubclass(component, nn.Module)


def _is_hub_id(source: str) -> bool:
    owner, _, name = source.partition("/")
    return bool(owner and name) and "/" not in name and not source.startswith((".", "/", "~"))
