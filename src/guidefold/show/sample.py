"""The verb ``sample``: draw the user's own prompts by each kind, into a folder."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guidefold.deliver import check_adapter, find_adapter, open_adapter, read_dial
from guidefold.draw import (
    Drawn,
    PictureRequest,
    animation,
    draw,
    grid,
    heading,
    picture_requests,
    png,
)
from guidefold.ground import InputError, check_seeds, console, task
from guidefold.pipeline import Prompt
from guidefold.run import KINDS, Kind, Settings, check_place, require_run, write_bytes
from guidefold.session import open_session

LONGEST_NAME = 40  # characters of the prompt in a file's name


@dataclass(frozen=True)
class Column:
    """The pictures of one kind.

    Attributes:
        requests: The requests, one per picture.
        drawn: The pictures.
    """

    requests: list[PictureRequest]
    drawn: Drawn


def sample(
    settings: Settings,
    prompts: Sequence[str | Prompt],
    out: Path,
    *,
    kinds: Sequence[Kind] = KINDS,
    seeds: Sequence[int] = (0,),
    strength: float | None = None,
    guidance: float | None = None,
    adapter: Path | None = None,
) -> list[Path]:
    """Draw prompts, and write each picture and a labelled grid.

    A file's name follows from what its picture depends on, so that other prompts, seeds, scales
    or settings never replace it. Each file's metadata holds the same facts.

    Args:
        settings: The run's settings.
        prompts: Texts, or rows of an inputs file.
        out: The folder for the grid and a file per picture.
        kinds: The kinds that draw; one column each.
        seeds: Every prompt is drawn with every seed; equal pairs once.
        strength: The adapter's strength; None takes the one for the guidance scale.
        guidance: The teacher's guidance scale; the student's strength follows by the measured
            dial. None takes the run's.
        adapter: An adapter folder; None takes the run's.

    Returns:
        The written files, the grid first.

    Raises:
        InputError: A prompt is empty, the strength is no number, or the dial does not reach the
            guidance scale.
        RunError: There is no run, or no adapter yet.
        MismatchError: The adapter belongs to another base.
    """
    rows = _checked(prompts, strength)
    check_seeds(seeds)
    run = require_run(settings.run)
    check_place(out)
    if "student" in kinds and any("negative_prompt" in row.values for row in rows):
        console.print(
            "Beware: the student makes one pass and ignores a row's negative_prompt; what it obeys "
            "is folded in training (pipeline.negative_prompt)."
        )
    if "student" in kinds:
        strength = _strength(find_adapter(run, adapter)[0], strength, guidance)
    pairs = list({(row.key, seed): (row, seed) for row in rows for seed in seeds}.values())
    columns = _draw_kinds(settings, pairs, kinds, strength, guidance, adapter)
    files = [path for column in columns for path in _write(out, column, settings)]
    pictures = list(zip(*(column.drawn.pictures for column in columns), strict=True))
    headings = [heading(k, column.drawn) for k, column in zip(kinds, columns, strict=True)]
    captions = [f"{row.label} (seed {seed})" for row, seed in pairs]
    sheet = out / f"grid-{_slug(rows[0])}-{_digest([path.name for path in files])}.png"
    facts = {"pictures": [request.facts for column in columns for request in column.requests]}
    write_bytes(sheet, png(grid(pictures, headings, captions), facts))
    return [sheet, *files]


def _strength(adapter: Path, strength: float | None, guidance: float | None) -> float | None:
    """The student's strength: as given, or as the measured dial has it for a guidance scale."""
    if strength is None and guidance is not None:
        strength = read_dial(adapter).measured_strength(guidance)
        console.print(f"Guidance {guidance:g} is strength {strength:.3g}, as measured.")
    return strength


def _checked(prompts: Sequence[str | Prompt], strength: float | None) -> list[Prompt]:
    rows = [Prompt.of(prompt) for prompt in prompts]
    if not all(row.text.strip() or row.columns for row in rows):
        raise InputError("prompt: an empty one", "Say what to draw.")
    if strength is not None and not math.isfinite(strength):
        raise InputError(f"strength: {strength} is no number to multiply by", "Try 1.0.")
    return rows


def _draw_kinds(
    settings: Settings,
    pairs: Sequence[tuple[Prompt, int]],
    kinds: Sequence[Kind],
    strength: float | None,
    guidance: float | None,
    adapter: Path | None,
) -> list[Column]:
    """Draw every pair of prompt and seed by every kind; a column for each of ``kinds``."""
    rows, seeds = [row for row, _ in pairs], [seed for _, seed in pairs]
    columns: dict[Kind, Column] = {}
    with open_session(settings) as session:
        _check_scale(guidance, session.findings.off)
        if "student" in kinds:
            check_adapter(session, adapter)  # before anything is drawn
        total = len(pairs) * sum(map(settings.steps_of, kinds))
        with task("Drawing, denoising steps", total) as progress:
            for kind in sorted(kinds, key=KINDS.index):  # student last: it loads the adapter
                if kind == "student":
                    strength = session.compared.strength if strength is None else strength
                    if warning := session.dial.warning(strength):
                        console.print(warning)
                    open_adapter(session, strength, adapter)
                scale = guidance if kind == "teacher" else None
                own = strength if kind == "student" else None
                requests = picture_requests(
                    session, kind, rows, seeds, guidance=scale, strength=own
                )
                drawn = draw(session, requests, progress.advance)
                columns[kind] = Column(requests, drawn)
    return [columns[kind] for kind in kinds]


def _check_scale(guidance: float | None, off: float) -> None:
    if guidance is not None and not off <= guidance < math.inf:
        raise InputError(
            f"guidance {guidance:g}: {off:g} switches this pipeline's guidance off",
            f"Use a guidance scale of {off:g} or more.",
        )


def _write(out: Path, column: Column, settings: Settings) -> list[Path]:
    """Write a PNG per picture, or a GIF per video."""
    paths = []
    for k, request in enumerate(column.requests):
        path = out / f"{_name(request, settings)}.{'gif' if column.drawn.frames else 'png'}"
        if column.drawn.frames:
            data = animation(column.drawn.frames[k], request.facts)
        else:
            data = png(column.drawn.pictures[k], request.facts)
        write_bytes(path, data)
        paths.append(path)
    return paths


def _name(request: PictureRequest, settings: Settings) -> str:
    """A file name for people, with a digest of all that it leaves out."""
    wanted = settings.pipeline
    call = [wanted.call, wanted.negative_prompt, wanted.guided_share]
    digest = _digest([request.prompt.key, request.seed, request.steps, *call])
    return f"{_slug(request.prompt)}-seed{request.seed}-{digest}-{request.name}"


def _slug(prompt: Prompt) -> str:
    """The beginning of a prompt in letters and digits that every file system takes."""
    text = re.sub(r"[^a-z0-9]+", "-", prompt.label.lower()).strip("-")
    return text[:LONGEST_NAME].rstrip("-") or "prompt"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]
