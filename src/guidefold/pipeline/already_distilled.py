"""Has a base been distilled before? What its files and its configs give away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from guidefold.ground import UnfoldableError
from guidefold.pipeline.open import modules
from guidefold.run import read_metadata

# Fields of denoisers that take the guidance scale as an input.
EMBEDDED = ("guidance_embeds", "time_cond_proj_dim")
# A field of schedulers that are made for few-step, consistency-distilled weights alone.
CONSISTENCY = "original_inference_steps"


def refuse_folded(pipeline: DiffusionPipeline, source: str) -> None:
    """Refuse weights that Guidefold has fused an adapter into: their guidance is folded.

    Args:
        pipeline: As it was opened.
        source: From where; only folders tell.

    Raises:
        UnfoldableError: Names the file, and the guidance scale that it stands for.
    """
    for name in modules(pipeline):
        for path in sorted((Path(source) / name).glob("*.safetensors")):
            about = read_metadata(path)
            if isinstance(about, dict) and "g_ref" in about:
                raise UnfoldableError(
                    f"{path}: guidance {about['g_ref']:g} is folded into these weights already",
                    "Open the pipeline that they were made from, or use this one as it is: "
                    f"{str(about.get('usage_hint', 'guidance off')).partition(';')[0]}.",
                )


def signs_of_distillation(pipeline: DiffusionPipeline) -> list[str]:
    """What speaks for a base that was distilled before, in words; empty where nothing does.

    Its guidance may still be folded, but the two passes that are saved may not be worth having.
    """
    found = [
        f"{name}: its config has {field}={value}, it takes the guidance scale as an input"
        for name, module in modules(pipeline).items()
        for field in EMBEDDED
        if (value := _field(module, field))
    ]
    scheduler = pipeline.scheduler
    if CONSISTENCY in scheduler.config:
        found.append(
            f"scheduler: {type(scheduler).__name__} is made for few-step distilled weights"
        )
    return found


def _field(module: Any, name: str) -> Any:
    config: Any = getattr(module, "config", {})  # of transformers, no mapping
    return config.get(name) if hasattr(config, "get") else None
