"""Pictures at each strength of the dial, by the student and by the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from guidefold.draw.draw import picture_requests
from guidefold.draw.picture_cache import EvaluationPictures
from guidefold.ground import Task
from guidefold.lora import SHOWN_DIGITS, STRENGTHS, Dial, set_strength
from guidefold.pipeline import Prompt


def draw_dial(
    pictures: EvaluationPictures,
    kind: Literal["teacher", "student"],
    prompts: Sequence[Prompt],
    progress: Task,
    dial: Dial | None = None,
) -> list[list[str]]:
    """Draw the student at each strength, or the teacher at the guidance scale of each strength.

    Args:
        pictures: The cache that draws and keeps the pictures.
        kind: ``"teacher"``: no adapter may be loaded. ``"student"``: its adapter is loaded, and is
            left at the session's strength.
        prompts: One per row.
        progress: Advances with every denoising step.
        dial: The measured dial; None takes the one that was trained to.

    Returns:
        For each strength, the names of the picture files; empty without prompts.
    """
    if not prompts:
        return []
    session, files = pictures.session, []
    dial = dial or session.dial
    for strength in STRENGTHS:
        if kind == "student":
            set_strength(session.denoiser, strength)
            requests = picture_requests(session, kind, prompts, strength=strength)
        elif strength == 0:
            steps = session.settings.steps_of("teacher")
            requests = picture_requests(session, "unguided", prompts, steps=steps)
        else:
            scale = round(dial.measured_guidance(strength), SHOWN_DIGITS)
            requests = picture_requests(session, kind, prompts, guidance=scale)
        files.append(pictures.draw(requests, progress).files)
    if kind == "student":
        set_strength(session.denoiser, session.compared.strength)
    return files
