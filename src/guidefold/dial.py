"""The dial in pictures: the student at rising strengths, and the teacher at what they stand for."""

from __future__ import annotations

from collections.abc import Sequence

from guidefold.adapter import set_strength
from guidefold.gallery import Gallery
from guidefold.lora.dial import STRENGTHS
from guidefold.progress import Task
from guidefold.prompts import Prompt


def draw_teacher(
    gallery: Gallery, prompts: Sequence[Prompt], seeds: Sequence[int], progress: Task
) -> list[list[str]]:
    """The teacher at the guidance scale of each strength; no adapter may be loaded.

    Args:
        gallery: Keeps the pictures.
        prompts: One per row.
        seeds: One per row.
        progress: Told of every step.

    Returns:
        For each strength, the pictures' files; nothing without prompts.
    """
    if not prompts:
        return []
    session = gallery.session
    columns = [gallery.draw("unguided", prompts, seeds, progress).files]
    for strength in STRENGTHS[1:]:
        scale = session.dial.nominal_guidance(strength)
        columns.append(gallery.draw("teacher", prompts, seeds, progress, guidance=scale).files)
    return columns


def draw_student(
    gallery: Gallery, prompts: Sequence[Prompt], seeds: Sequence[int], progress: Task
) -> list[list[str]]:
    """The student at each strength; its adapter is loaded, and left at the session's strength.

    Args:
        gallery: Keeps the pictures.
        prompts: One per row.
        seeds: One per row.
        progress: Told of every step.

    Returns:
        For each strength, the pictures' files; nothing without prompts.
    """
    if not prompts:
        return []
    session = gallery.session
    columns = []
    for strength in STRENGTHS:
        set_strength(session.denoiser, strength)
        columns.append(gallery.draw("student", prompts, seeds, progress, strength=strength).files)
    set_strength(session.denoiser, session.compared.strength)
    return columns
