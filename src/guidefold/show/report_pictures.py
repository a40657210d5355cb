"""The pictures of a run's report, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from guidefold.draw import Picture, png
from guidefold.ground import CorruptFileError, evenly_chosen
from guidefold.run import (
    AGAIN,
    KINDS,
    PictureIndex,
    PreviewIndex,
    RunFolder,
    find_picture,
    picture_digests,
)

NAMES = {"teacher": "CFG teacher", "unguided": "unguided", "student": "student"}
SMALL, LARGEST = 128, 512
"""In pixels: pictures up to ``SMALL`` stay lossless, others are reduced to ``LARGEST``."""
SHOWN_STEPS = 12  # training steps, at most, whose previews are shown
FEW, MANY = 12, 30
"""Numbers of prompts that are shown: with large pictures, with small ones."""


def pictures_by_prompt(run: RunFolder, index: PictureIndex) -> list[dict[str, Any]]:
    """The first prompts in the order of evaluation, which avoids a favourable selection.

    Args:
        run: The run's folder.
        index: The content of ``evaluation/index.json``.

    Returns:
        For each prompt, its entry in the index and its pictures by kind.

    Raises:
        CorruptFileError: A picture is missing or damaged.
    """
    shown: list[dict[str, Any]] = []
    digests = picture_digests(run)
    for entry in index.pictures[:MANY]:
        if len(shown) == FEW and not shown[0]["small"]:
            break
        pictures = {kind: _picture(run.index, entry.files[kind], digests) for kind in KINDS}
        small = pictures["teacher"]["small"]
        shown.append({**entry.model_dump(), "pictures": pictures, "small": small})
    return shown


def pictures_by_strength(run: RunFolder, index: PictureIndex) -> list[dict[str, Any]]:
    """Every strength with its pictures.

    Args:
        run: The run's folder.
        index: The content of ``evaluation/index.json``.

    Returns:
        For each strength, its guidance scale and a row per prompt.

    Raises:
        CorruptFileError: A picture is missing or damaged.
    """
    digests = picture_digests(run)
    prompts = [entry.prompt for entry in index.pictures[:FEW]]
    return [
        {
            "strength": step.strength,
            "guidance": step.guidance,
            "teacher": NAMES["teacher" if step.strength else "unguided"],
            "rows": [
                {
                    "prompt": prompt,
                    "student": _picture(run.index, student, digests),
                    "teacher": _picture(run.index, teacher, digests),
                }
                for prompt, student, teacher in zip(
                    prompts, step.student, step.teacher, strict=False
                )
            ],
        }
        for step in index.dial
    ]


def pictures_by_step(run: RunFolder) -> dict[str, Any] | None:
    """The previews that were drawn during training.

    Args:
        run: The run's folder.

    Returns:
        Prompts, steps, and pictures of each kind; None where there are none.

    Raises:
        CorruptFileError: A file is missing or damaged.
    """
    index = PreviewIndex.read(run.preview_index)
    if index is None or not index.steps:
        return None

    def picture(name: str) -> dict[str, Any]:
        return _picture(run.preview_index, name, index.sha256)

    numbers, steps = range(len(index.prompts)), evenly_chosen(index.steps, SHOWN_STEPS)
    fixed = {
        kind: [picture(f"{kind}-{k}.png") for k in numbers] for kind in ("teacher", "unguided")
    }
    student = [[picture(f"student-{k}-step-{step:06d}.png") for k in numbers] for step in steps]
    return {"prompts": index.prompts, "steps": steps, **fixed, "student": student}


def _picture(index: Path, name: str, digests: Mapping[str, str]) -> dict[str, Any]:
    """A picture that an index names, as a data URI, with its size in the page."""
    path = find_picture(index, name, digests, AGAIN)
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, SyntaxError) as error:  # Pillow: SyntaxError, damaged PNG
        raise CorruptFileError(f"{path}: the picture is damaged", AGAIN) from error
    small = max(picture.size) <= SMALL
    kind, data = ("png", png(picture)) if small else ("webp", _reduced(picture))
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"source": source, "width": picture.width, "height": picture.height, "small": small}


def _reduced(picture: Picture) -> bytes:
    """A picture of at most ``LARGEST`` pixels a side, as WebP."""
    picture.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=85)
    return buffer.getvalue()
