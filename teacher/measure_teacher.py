"""Measure a teacher: `python -m teacher.measure_teacher FOLDER --json FILE`.

Draws unseen captions at several guidance scales, from the same noise at each, and reports the share
of pictures that the judge finds aligned, by category.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from guidefold.demo import CATEGORIES, PICTURE_SIZE, category, judge_pictures, unseen_captions

_CLASS: Any = StableDiffusionPipeline  # diffusers has no types for it
_AT_ONCE = 50
_SHEET_COLUMNS, _SHEET_ROWS = 10, 6


def open_teacher(folder: Path, device: str = "cpu") -> Any:
    """Open a teacher in float32, offline and without progress bars.

    Args:
        folder: A diffusers pipeline folder.
        device: The device.

    Returns:
        A `StableDiffusionPipeline`.
    """
    # not `dtype=`: diffusers before 0.42 does not know it
    pipeline = _CLASS.from_pretrained(folder, local_files_only=True)
    pipeline = pipeline.to(device, torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_captions(
    pipeline: Any, captions: Sequence[str], *, guidance_scale: float, steps: int, seed: int
) -> list[Image.Image]:
    """Pictures of captions by the pipeline; caption number n starts from noise of seed + n.

    Args:
        pipeline: The teacher.
        captions: The captions to draw.
        guidance_scale: 1 is no guidance.
        steps: Denoising steps.
        seed: Seed of the first caption's noise.

    Returns:
        One picture for each caption.
    """
    pictures: list[Image.Image] = []
    for start in range(0, len(captions), _AT_ONCE):
        chunk = list(captions[start : start + _AT_ONCE])
        generators = [torch.Generator().manual_seed(seed + start + n) for n in range(len(chunk))]
        output = pipeline(
            chunk,
            guidance_scale=guidance_scale,
            num_inference_steps=steps,
            generator=generators,
        )
        pictures += output.images
    return pictures


def shares(captions: Sequence[str], judged: Sequence[bool]) -> dict[str, float]:
    """Share of aligned pictures, of all and by category.

    Args:
        captions: The drawn captions.
        judged: For each caption, whether its picture is aligned.

    Returns:
        `{"all": ..., CATEGORY: ...}`, in 0..1.
    """
    of_category = [category(caption) for caption in captions]
    result = {"all": sum(judged) / len(judged)}
    for name in CATEGORIES:
        here = [right for right, its in zip(judged, of_category, strict=True) if its == name]
        if here:
            result[name] = sum(here) / len(here)
    return result


def table(results: dict[float, dict[str, float]]) -> str:
    """The results as a Markdown table, one row for each guidance scale."""
    columns = ["all", *(name for name in CATEGORIES if name in next(iter(results.values())))]
    lines = [f"| g | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for guidance_scale, by_category in results.items():
        cells = " | ".join(f"{by_category[name]:.3f}" for name in columns)
        lines.append(f"| {guidance_scale:g} | {cells} |")
    return "\n".join(lines)


def sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """The first pictures side by side, as many as fit, row by row."""
    canvas = Image.new("RGB", (_SHEET_COLUMNS * PICTURE_SIZE, _SHEET_ROWS * PICTURE_SIZE), "white")
    for number, picture in enumerate(pictures[: _SHEET_COLUMNS * _SHEET_ROWS]):
        row, column = divmod(number, _SHEET_COLUMNS)
        canvas.paste(picture, (column * PICTURE_SIZE, row * PICTURE_SIZE))
    return canvas


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a pipeline folder")
    parser.add_argument("--prompts", type=int, default=1000, help="number of unseen captions")
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 1.5, 2, 3, 5, 7.5, 10])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="processor threads; default: torch's")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--sheets", type=Path, help="folder for a sheet of pictures per scale")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write the JSON and the sheets that the options name.

    Args:
        argv: Command line; the process's own by default.

    Returns:
        0.
    """
    given = _arguments(argv)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    pipeline = open_teacher(given.folder, given.device)
    captions = unseen_captions(given.prompts)
    results: dict[float, dict[str, float]] = {}
    for scale in given.scales:
        began = time.monotonic()
        pictures = draw_captions(
            pipeline, captions, guidance_scale=scale, steps=given.steps, seed=given.seed
        )
        results[scale] = shares(captions, judge_pictures(pictures, captions))
        if given.sheets is not None:
            given.sheets.mkdir(parents=True, exist_ok=True)
            sheet(pictures).save(given.sheets / f"g-{scale:g}.png")
        seconds = time.monotonic() - began
        print(f"g {scale:g}: {results[scale]['all']:.3f} aligned, {seconds:.0f} s", flush=True)
    print(table(results))
    if given.json is not None:
        settings = {name: getattr(given, name) for name in ("prompts", "steps", "seed")}
        aligned = {f"{scale:g}": numbers for scale, numbers in results.items()}
        given.json.write_text(json.dumps({**settings, "aligned": aligned}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
