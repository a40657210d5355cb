"""The dial in pictures: the student at rising strengths, and the teacher at what they stand for."""

from __future__ import annotations

from collections.abc import Sequence

from guidefold.draw.draw import picture_requests
from guidefold.draw.picture_cache import EvaluationPictures
from guidefold.ground import Task
from guidefold.lora import STRENGTHS, set_strength
from guidefold.pipeline import Prompt


def draw_teacher(
    pictures: EvaluationPictures, prompts: Sequence[Prompt], progress: Task
) -> list[list[str]]:
    """The teacher at the guidance scale of each strength; no adapter may be loaded.

    Args:
        pictures: Where they are kept.
        prompts: One per row.
        progress: Told of every step.

    Returns:
        For each strength, the pictures' files; nothing without prompts.
    """
    if not prompts:
        return []
    session = pictures.session
    columns = [picture_requests(session, "unguided", prompts)]
    for strength in STRENGTHS[1:]:
        scale = session.dial.nominal_guidance(strength)
        columns.append(picture_requests(session, "teacher", prompts, guidance=scale))
    return [pictures.draw(column, progress).files for column in columns]


def draw_student(
    pictures: EvaluationPictures, prompts: Sequence[Prompt], progress: Task
) -> list[list[str]]:
    """The student at each strength; its adapter is loaded, and left at the session's strength.

    Args:
        pictures: Where they are kept.
        prompts: One per row.
        progress: Told of every step.

    Returns:
        For each strength, the pictures' files; nothing without prompts.
    """
    if not prompts:
        return []
    session, columns = pictures.session, []
    for strength in STRENGTHS:
        set_strength(session.denoiser, strength)
        column = picture_requests(session, "student", prompts, strength=strength)
        columns.append(pictures.draw(column, progress).files)
    set_strength(session.denoiser, session.compared.strength)
    return columns
