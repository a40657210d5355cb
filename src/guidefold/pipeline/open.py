"""Open a pipeline safely; name its components and their weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate.utils import align_module_device
from diffusers import DiffusionPipeline
from torch import nn

from guidefold.ground import PipelineError, compat
from guidefold.pipeline.index import check_folder, components, left_out, load_index
from guidefold.pipeline.loading import check_variants, load_pipeline, weight_files
from guidefold.pipeline.markers import read_markers
from guidefold.pipeline.noise_schedule import check_markers, open_scheduler, set_schedule
from guidefold.pipeline.quantization import (
    check_quantization,
    check_quantized,
    quantization_config,
    stored_tensors,
)
from guidefold.pipeline.single_file import describe_single_file, open_single_file
from guidefold.pipeline.weight_files import check_whole
from guidefold.run import Quantization, check_source

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def open_pipeline(
    source: str,
    *,
    config: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    only: Collection[str] = (),
    prediction_type: str | None = None,
    zero_terminal_snr: bool | None = None,
    scheduler: str | None = None,
    quantization: Quantization = "none",
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
        prediction_type: What the denoiser predicts: ``epsilon``, ``v_prediction`` or ``sample``;
            None takes the scheduler's, if a single file states nothing else.
        zero_terminal_snr: Whether the noise schedule ends in noise alone; None as above.
        scheduler: The class of the scheduler that steps the pipeline; None leaves its own.
        quantization: How linear layers of the denoiser and of text encoders are stored.

    Returns:
        The pipeline in evaluation mode, without progress bar.

    Raises:
        PipelineError: The pipeline is not found, unsafe, incomplete, or in no known format, or a
            single file and its configuration disagree.
        ConfigError: The scheduler has no choice of prediction type or noise schedule, or one of
            another class does not fit it, or the quantisation cannot be had here.
    """
    for library in (diffusers, transformers):  # loading is short beside what follows
        library.utils.logging.disable_progress_bar()
    check_source(source)
    check_quantization(quantization)
    schedule = (prediction_type, zero_terminal_snr, scheduler)
    path = bundled_teacher() if source == "bundled" else Path(source)
    if path.is_file():
        _refuse_quantised_file(path, quantization)
        pipeline = _open_file(path, config, dtype, *schedule)
    else:
        folder = path if path.is_dir() else source
        pipeline = _open_parts(folder, dtype, only, *schedule, quantization)
    pipeline.set_progress_bar_config(disable=True)
    for module in modules(pipeline).values():
        module.eval().requires_grad_(False)
    return pipeline.to(device)


def _open_file(
    path: Path,
    config: str | None,
    dtype: torch.dtype,
    prediction: str | None,
    zero: bool | None,
    solver: str | None,
) -> DiffusionPipeline:
    """Open a single file; its noise schedule is checked before its weights are read."""
    config, index = describe_single_file(path, config)
    scheduler = open_scheduler(config, index)
    check_markers(scheduler, read_markers(path), config, prediction, zero)
    changed = set_schedule(scheduler, prediction, zero, solver)
    return open_single_file(path, config, index, dtype, changed)


def _open_parts(
    source: Path | str,
    dtype: torch.dtype,
    only: Collection[str],
    prediction: str | None,
    zero: bool | None,
    solver: str | None,
    quantization: Quantization,
) -> DiffusionPipeline:
    """Open a folder, or a hub id's files, which lie in a folder for each component."""
    index = check_folder(source) if isinstance(source, Path) else load_index(source)
    given: dict[str, Any] = {**left_out(only, index)}
    scheduler = open_scheduler(source, index)
    if (changed := set_schedule(scheduler, prediction, zero, solver)) is not scheduler:
        given["scheduler"] = changed
    if quantization != "none":
        given["quantization_config"] = quantization_config(quantization, index, dtype)
    if isinstance(source, Path):
        given["local_files_only"] = True
        names = [n for n, (_, kind) in components(index).items() if kind and n not in given]
        check_variants(source, names)
        check_whole(weight_files(source, names))
    pipeline = load_pipeline(DiffusionPipeline.from_pretrained, source, dtype, **given)
    if quantization != "none":
        check_quantized(pipeline, quantization, index)
    return pipeline


def _refuse_quantised_file(path: Path, quantization: Quantization) -> None:
    if quantization != "none":
        raise PipelineError(
            f"pipeline.quantization: '{quantization}', but {path} is a single file, which "
            "diffusers does not quantise as it opens it",
            "Write it as a folder once: DiffusionPipeline.from_single_file(FILE)"
            ".save_pretrained(FOLDER); then name the folder.",
        )


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
    saved = module.state_dict().keys()
    for prefix, inner in module.named_modules():
        with align_module_device(inner):
            for name, tensor in stored_tensors(inner, prefix):
                if name not in saved:
                    continue
                header = f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode()
                flat = tensor.detach().reshape(-1)
                sampled = flat[:: max(1, flat.numel() // 64)].cpu().contiguous()
                yield name, header + sampled.view(torch.uint8).numpy().tobytes()
