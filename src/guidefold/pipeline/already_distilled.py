"""Signs in a base model's files and configurations that it is already distilled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from guidefold.ground import UnfoldableError
from guidefold.pipeline.open import modules
from guidefold.run import read_metadata

# Configuration fields of denoisers that take the guidance scale as an input.
EMBEDDED = ("guidance_embeds", "time_cond_proj_dim")
# A configuration field of schedulers that serve only few-step, consistency-distilled weights.
CONSISTENCY = "original_inference_steps"


def refuse_folded(pipeline: DiffusionPipeline, source: str) -> None:
    """Refuse weights that Guidefold has fused an adapter into: their guidance is folded.

    Args:
        pipeline: The opened pipeline.
        source: Its source; only a folder's files have metadata to read.

    Raises:
        UnfoldableError: A file is such; the error names it and its guidance scale.
    """
    for name in modules(pipeline):
        for path in sorted((Path(source) / name).glob("*.safetensors")):
            metadata = read_metadata(path)
            if isinstance(metadata, dict) and "g_ref" in metadata:
                raise UnfoldableError(
                    f"{path}: guidance {metadata['g_ref']:g} is folded into these weights already",
                    "Open the pipeline that they were made from, or use this one as it is: "
                    f"{str(metadata.get('usage_hint', 'guidance off')).partition(';')[0]}.",
                )


def signs_of_distillation(pipeline: DiffusionPipeline) -> list[str]:
    """Human-readable signs that the base model is already distilled (empty if none).

    Its guidance can still be folded, but may be hardly worth it.
    """
    signs = [
        f"{name}: its config has {field}={value}, it takes the guidance scale as an input"
        for name, module in modules(pipeline).items()
        for field in EMBEDDED
        if (value := _field(module, field))
    ]
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is not None and CONSISTENCY in scheduler.config:
        signs.append(
            f"scheduler: {type(scheduler).__name__} is made for few-step distilled weights"
        )
    return signs


def _field(module: Any, name: str) -> Any:
    config: Any = getattr(module, "config", {})  # transformers' configurations are no mappings
    return config.get(name) if hasattr(config, "get") else None
