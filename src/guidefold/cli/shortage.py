"""What to do where memory ran out: one sentence, and settings that need less."""

from __future__ import annotations

import traceback

from guidefold.cli.options import settings_in_use
from guidefold.ground import asked_for, running
from guidefold.run import Settings

CALLS = ("Recording", "Drawing", "Measuring", "Opening")
"""How the titles of work begin that runs or opens the whole pipeline, and does not train."""


def describe_shortage(error: Exception) -> str:
    """A message for an error that memory ran out.

    It says what was running and how much was asked for, and names the next cheaper settings.
    """
    work, size = running(error), asked_for(error)
    # Frames hold tensors, and what follows needs memory too.
    traceback.clear_frames(error.__traceback__)
    message = "out of memory" + (f" while this was running: {work}" if work else "")
    message += f" ({size} more were asked for)" if size else ""
    settings = settings_in_use()
    tried = ", ".join(_cheaper(settings, work)) if settings is not None else ""
    advice = f"Try {tried}, or a larger device." if tried else "Use a larger device."
    return f"{message}\n{advice} What was saved stands; the same command goes on from there."


def _cheaper(settings: Settings, work: str) -> list[str]:
    """Settings that need less memory, for the work that ran out of it."""
    if not work.startswith(CALLS):
        from guidefold.bench.memory import cheaper

        drawn = ["distill.preview_prompts=0"] if settings.distill.preview_prompts else []
        return [*cheaper(settings)[:3], *drawn]
    applicable = {
        "pipeline.dtype=bf16": settings.pipeline.dtype == "fp32",
        "pipeline.offload=component": settings.pipeline.offload == "none"
        and settings.pipeline.device != "cpu",
        "pipeline.offload=group": settings.pipeline.offload == "component",
        "record.batch_size=1": work.startswith("Recording") and settings.record.batch_size > 1,
        "evaluate.batch_size=1": settings.evaluate.batch_size > 1,
        "a smaller height and width in pipeline.call": not work.startswith("Opening"),
    }
    return [setting for setting, applies in applicable.items() if applies]
