"""Drawn pictures with their costs; PNG, GIF and labelled grids of them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from guidefold.ground import plural
from guidefold.run import Kind

Picture = Image.Image
# One text chunk of our own: ComfyUI reads a chunk ``prompt`` and A1111 ``parameters``, each in a
# form of its own.
FACTS_KEY = "guidefold"


@dataclass
class Drawn:
    """Drawn pictures and their costs.

    Attributes:
        pictures: One per prompt; the middle frame of a video.
        frames: The frames of each video; empty for pictures.
        files: The names of the picture files in ``RUN/evaluation``; empty elsewhere.
        passes_per_image: Samples through the denoiser per picture.
        denoiser_seconds_per_image: Time inside the denoiser per picture.
    """

    pictures: list[Picture] = field(default_factory=list)
    frames: list[list[Picture]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    passes_per_image: float = 0.0
    denoiser_seconds_per_image: float = 0.0


def read_picture(path: Path) -> Picture:
    """Read a picture file as RGB."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def heading(kind: Kind, drawn: Drawn) -> str:
    """A column's heading: the kind and its passes."""
    name = "CFG teacher" if kind == "teacher" else kind
    passes = float(f"{drawn.passes_per_image:g}")
    return f"{name}\n{plural(passes, 'pass', 'passes')}"


def grid(
    rows: Sequence[Sequence[Picture]], columns: Sequence[str], captions: Sequence[str]
) -> Picture:
    """A labelled grid of pictures.

    Args:
        rows: Pictures of one size, row by row.
        columns: A heading per column.
        captions: A caption per row, written to its left.

    Returns:
        An RGB picture; small pictures are enlarged to at least 128 pixels without smoothing.
    """
    width, height = rows[0][0].size
    factor = max(1, -(-128 // max(width, height)))
    width, height = width * factor, height * factor
    font = ImageFont.load_default(size=14)
    gap, left, top = 6, 200, 44
    size = (left + len(columns) * (width + gap), top + len(rows) * (height + gap))
    sheet = Image.new("RGB", size, "white")
    ink = ImageDraw.Draw(sheet)
    for c, title in enumerate(columns):
        x = left + c * (width + gap) + width / 2
        ink.multiline_text((x, 6), title, "black", font, anchor="ma", align="center")
    for r, (pictures, caption) in enumerate(zip(rows, captions, strict=True)):
        y = top + r * (height + gap)
        ink.multiline_text((8, y + 6), _wrap(caption, left - 16, font), "black", font)
        for c, picture in enumerate(pictures):
            large = picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(large, (left + c * (width + gap), y))
    return sheet


def png(picture: Picture, facts: Mapping[str, Any] | None = None) -> bytes:
    """A picture as PNG bytes.

    Args:
        picture: The picture.
        facts: What it was drawn with, as JSON values; written into the text chunk ``guidefold``.
    """
    buffer, metadata = io.BytesIO(), PngInfo()
    if facts is not None:
        metadata.add_text(FACTS_KEY, _as_text(facts))
    picture.save(buffer, "PNG", optimize=True, pnginfo=metadata)
    return buffer.getvalue()


def animation(frames: Sequence[Picture], facts: Mapping[str, Any]) -> bytes:
    """Frames as a GIF of 8 frames a second.

    Args:
        frames: The frames.
        facts: What they were drawn with, as JSON values; written into the GIF's comment.
    """
    buffer, comment = io.BytesIO(), _as_text(facts).encode()
    settings: dict[str, Any] = {"duration": 125, "loop": 0, "comment": comment}
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], **settings)
    return buffer.getvalue()


def _as_text(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, ensure_ascii=False)


def _wrap(text: str, width: float, font: Any) -> str:
    """Break a caption into lines of at most ``width`` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
