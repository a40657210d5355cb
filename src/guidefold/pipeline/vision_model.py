"""A vision model that pictures are measured with: found before anything is recorded or trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import nn

from guidefold.ground import ConfigError, shown
from guidefold.pipeline.hub import why_unreachable

VISION, CLIP = "evaluate.features", "evaluate.clip"
EXAMPLES = {VISION: "facebook/dinov2-small", CLIP: "openai/clip-vit-base-patch32"}
WEIGHTS = "*.safetensors"
UNOPENED = (OSError, ValueError, KeyError, ImportError)  # what transformers' loaders raise


@dataclass(frozen=True)
class VisionParts:
    """A vision model as transformers opens it.

    Attributes:
        processor: Pictures to the model's input.
        model: The model, in evaluation mode.
        tokenizer: Prompts to the model's input; None of a model of ``evaluate.features``.
    """

    processor: Any
    model: nn.Module
    tokenizer: Any


def check_vision_models(features: str | None, clip: str | None) -> None:
    """Refuse vision models that could not be opened later, without loading their weights.

    Of a hub id that was not downloaded before, its configuration is; without a connection the
    answer comes at once.

    Args:
        features: The model of ``evaluate.features``: a local folder or hub id.
        clip: That of ``evaluate.clip``, which must read text too.

    Raises:
        ConfigError: One cannot be had, is no vision model, or reads no text.
    """
    for setting, source in ((VISION, features), (CLIP, clip)):
        if source is not None:
            _open_processors(source, setting)


def open_vision_model(source: str, setting: str, device: torch.device) -> VisionParts:
    """Open a vision model.

    Args:
        source: A local folder or hub id.
        setting: The setting that names it, ``evaluate.features`` or ``evaluate.clip``.
        device: The device to run it on.

    Raises:
        ConfigError: As :func:`check_vision_models`.
    """
    from transformers import AutoModel

    processor, tokenizer = _open_processors(source, setting)
    try:
        model: nn.Module = AutoModel.from_pretrained(
            source, use_safetensors=True, local_files_only=_is_here(source)
        )
    except UNOPENED as error:
        raise _refusal(source, setting, error) from error
    return VisionParts(processor, model.eval().requires_grad_(False).to(device), tokenizer)


def _open_processors(source: str, setting: str) -> tuple[Any, Any]:
    """What prepares pictures and, for a model of ``evaluate.clip``, prompts."""
    from transformers import MODEL_MAPPING, AutoConfig, AutoImageProcessor, AutoTokenizer

    local = _is_here(source)
    if not local and Path(source).is_dir():
        raise _refusal(source, setting, f"the folder holds no {WEIGHTS}")
    # transformers' loaders look for a file on the hub for minutes: ask once instead.
    if not local and (unreachable := why_unreachable(source)):
        raise _refusal(source, setting, f"no folder here, and {unreachable}")
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=local)
        processor = AutoImageProcessor.from_pretrained(
            source, backend="pil", local_files_only=local
        )
        if setting != CLIP:
            return processor, None
        if hasattr(MODEL_MAPPING.get(type(config), nn.Module), "get_text_features"):
            return processor, AutoTokenizer.from_pretrained(source, local_files_only=local)
    except UNOPENED as error:
        raise _refusal(source, setting, error) from error
    raise ConfigError(
        f"{setting}: {shown(source)}: reads no text, so it cannot score pictures against prompts",
        f"Give a CLIP model, such as {EXAMPLES[CLIP]}.",
    )


def _is_here(source: str) -> bool:
    """Whether a model lies here with its weights: in a folder, or downloaded before."""
    folder = Path(source)
    if not folder.is_dir():
        try:
            config = try_to_load_from_cache(source, "config.json")
        except HFValidationError:
            return False
        folder = Path(config).parent if isinstance(config, str) else folder
    return any(folder.glob(WEIGHTS))


def _refusal(source: str, setting: str, reason: object) -> ConfigError:
    words = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
    return ConfigError(
        f"{setting}: {shown(source)}: cannot be opened as a vision model: {words}",
        f"Give a folder or hub id of one, such as {EXAMPLES[setting]}.",
    )
