"""Keep what a pipeline does not compute with on the CPU, for one too large for the accelerator."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from diffusers import DiffusionPipeline
from torch import nn

from guidefold.ground import ConfigError, compat
from guidefold.pipeline.device import resolve_device
from guidefold.pipeline.open import DTYPES, open_pipeline
from guidefold.pipeline.quantization import check_movable
from guidefold.run import Offload, PipelineSettings


def open_placed(
    wanted: PipelineSettings, device: str | None = None, *, only: Collection[str] = ()
) -> DiffusionPipeline:
    """Open a pipeline as its settings say, offloaded where they say so.

    Args:
        wanted: The settings.
        device: The device that computes; None takes that of the settings.
        only: The only components whose weights are loaded, all of them on that device; empty loads
            the whole pipeline.

    Raises:
        PipelineError: As :func:`~guidefold.pipeline.open.open_pipeline`.
        ConfigError: Likewise; or it is to be offloaded, and its layers cannot be moved, or the
            device is no accelerator.
    """
    device = device or resolve_device(wanted.device)
    check_movable(wanted.quantization, wanted.offload)
    # bitsandbytes quantises on the accelerator, and leaves the scales of its weights where they are
    # when the layers begin to come and go.
    stays = wanted.offload == "group" and wanted.quantization.startswith("bitsandbytes")
    moves = wanted.offload != "none" and not only
    pipeline = open_pipeline(
        wanted.source,
        dtype=DTYPES[wanted.dtype],
        device="cpu" if moves and not stays else device,
        only=only,
        **wanted.described(),
    )
    if moves:
        offload(pipeline, wanted.offload, device)
    return pipeline


def offload(pipeline: DiffusionPipeline, how: Offload, device: str) -> None:
    """Move the parts of a pipeline to an accelerator only while they are called.

    Args:
        pipeline: The pipeline.
        how: Any but ``none``.
        device: The accelerator that runs the parts.

    Raises:
        ConfigError: The device is no accelerator.
    """
    if torch.device(device).type == "cpu":
        raise ConfigError(
            "pipeline.offload: there is no accelerator to bring parts of the pipeline to",
            "Set pipeline.offload=none.",
        )
    OFFLOADERS[how](pipeline, torch.device(device))


def stop_offloading(pipeline: DiffusionPipeline) -> None:
    """Leave every part of a pipeline where it is from now on."""
    pipeline.remove_all_hooks()
    for module in pipeline.components.values():
        if isinstance(module, nn.Module):
            compat.remove_group_offloading(module)


def _by_component(pipeline: DiffusionPipeline, device: torch.device) -> None:
    pipeline.enable_model_cpu_offload(device=device)


def _by_group(pipeline: DiffusionPipeline, device: torch.device) -> None:
    """Layers come while others compute: on a stream of their own, where the device has such."""
    streams = device.type == "cuda"
    # By leaf: groups of blocks come when their module is called, and pipelines also call methods
    # of their components that are not its ``forward``.
    pipeline.enable_group_offload(
        onload_device=device, offload_type="leaf_level", use_stream=streams, non_blocking=streams
    )


def _by_layer(pipeline: DiffusionPipeline, device: torch.device) -> None:
    pipeline.enable_sequential_cpu_offload(device=device)


OFFLOADERS: dict[str, Callable[[DiffusionPipeline, torch.device], None]] = {
    "component": _by_component,
    "group": _by_group,
    "sequential": _by_layer,
}
