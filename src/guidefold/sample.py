"""Pictures, seed by seed: of the teacher, of the unguided teacher, of the student."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

from guidefold.about import read_dial
from guidefold.calls import run_inputs
from guidefold.capture import Listener, run
from guidefold.deliver.trained import find_adapter, open_adapter
from guidefold.denoisers import denoisers
from guidefold.errors import InputError
from guidefold.findings import Findings
from guidefold.progress import Task, console, in_all, task
from guidefold.prompts import Prompt
from guidefold.randomness import derive_seed
from guidefold.run.folder import ensure_folder, require_run
from guidefold.runs import write_bytes
from guidefold.session import Session, open_session
from guidefold.settings import KINDS, Kind, PipelineSettings, Settings

Picture = Image.Image


@dataclass
class Drawn:
    """Pictures and what they cost.

    Attributes:
        pictures: One per prompt; of a video, its middle frame.
        frames: Of each video, its frames; empty for pictures.
        files: Where a gallery keeps the pictures; empty where none does.
        passes_per_image: Samples through the denoiser.
        denoiser_seconds_per_image: Time inside the denoiser.
    """

    pictures: list[Picture] = field(default_factory=list)
    frames: list[list[Picture]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    passes_per_image: float = 0.0
    denoiser_seconds_per_image: float = 0.0


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
    """Make pictures for given prompts; write each one and a labelled grid.

    Args:
        settings: The run's.
        prompts: What to draw: text, or rows of an inputs file.
        out: Folder for ``grid.png`` and a file per picture.
        kinds: Who draws; one column each.
        seeds: Every prompt is drawn with every seed, the same pair once.
        strength: The adapter's; None takes the one for the teacher's guidance scale.
        guidance: The teacher's; the student's strength is then what serves it best by the dial as
            it was measured. None takes the run's.
        adapter: An adapter's folder; None takes the run's.

    Returns:
        The files written, the grid first.

    Raises:
        InputError: A prompt is empty, the strength is no number, or the dial does not reach the
            guidance scale.
        RunError: There is no run, or no adapter yet.
        MismatchError: The adapter belongs to another base.
    """
    rows = _checked(prompts, strength)
    run = require_run(settings.run)
    ensure_folder(out)
    if guidance is not None and strength is None and "student" in kinds:
        dial = read_dial(find_adapter(run, adapter))
        strength = dial.measured_strength(guidance)
        console.print(f"Guidance {guidance:g} is strength {strength:.3g}, as measured.")
    if "student" in kinds:
        _warn_of_negatives(rows)
    unlike = {(row.key, seed): (row, seed) for row in rows for seed in seeds}
    pairs = list(unlike.values())
    drawn = _draw_kinds(settings, pairs, kinds, strength, guidance, adapter)
    pictures = [[drawn[kind].pictures[k] for kind in kinds] for k in range(len(pairs))]
    captions = [f"{row.label} (seed {seed})" for row, seed in pairs]
    sheet = out / "grid.png"
    write_bytes(sheet, png(grid(pictures, [heading(k, drawn[k]) for k in kinds], captions)))
    return [sheet, *(path for kind in kinds for path in _write(out, kind, drawn[kind]))]


def _checked(prompts: Sequence[str | Prompt], strength: float | None) -> list[Prompt]:
    rows = [Prompt.of(prompt) for prompt in prompts]
    if not all(row.text.strip() or row.columns for row in rows):
        raise InputError("prompt: an empty one", "Say what to draw.")
    if strength is not None and not math.isfinite(strength):
        raise InputError(f"strength: {strength} is no number to multiply by", "Try 1.0.")
    return rows


def _warn_of_negatives(rows: Sequence[Prompt]) -> None:
    if any("negative_prompt" in row.values for row in rows):
        console.print(
            "Beware: the student makes one pass and ignores a row's negative_prompt; what it obeys "
            "is folded in training (pipeline.negative_prompt)."
        )


def _draw_kinds(
    settings: Settings,
    pairs: Sequence[tuple[Prompt, int]],
    kinds: Sequence[Kind],
    strength: float | None,
    guidance: float | None,
    adapter: Path | None,
) -> dict[Kind, Drawn]:
    """Every pair of prompt and seed by every kind."""
    rows, seeds = [row for row, _ in pairs], [seed for _, seed in pairs]
    drawn: dict[Kind, Drawn] = {}
    with open_session(settings) as session:
        _check_scale(guidance, session.findings.off)
        total = len(kinds) * len(pairs) * settings.evaluate.steps
        with task("Drawing, denoising steps", total) as progress:
            for kind in sorted(kinds, key=KINDS.index):  # the student last: it loads the adapter
                if kind == "student":
                    strength = session.compared.strength if strength is None else strength
                    if warning := session.dial.warning(strength):
                        console.print(warning, markup=False)
                    open_adapter(session, strength, adapter)
                chosen = guidance if kind == "teacher" else None
                scale = session.guidance_of(kind) if chosen is None else chosen
                drawn[kind] = draw_session(session, rows, seeds, scale, progress)
    return drawn


def _check_scale(guidance: float | None, off: float) -> None:
    if guidance is not None and not off <= guidance < math.inf:
        raise InputError(
            f"guidance {guidance:g}: {off:g} switches this pipeline's guidance off",
            f"Use a guidance scale of {off:g} or more.",
        )


def heading(kind: Kind, drawn: Drawn) -> str:
    """A column's heading: who drew, in how many passes."""
    name = "CFG teacher" if kind == "teacher" else kind
    return f"{name}\n{drawn.passes_per_image:g} passes"


def draw_session(
    session: Session,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    guidance: float,
    progress: Task,
) -> Drawn:
    """:func:`draw` with a session's pipeline and settings.

    Args:
        session: Whose pipeline, as it stands.
        prompts: One per picture.
        seeds: One per picture.
        guidance: The guidance scale; the session's ``findings.off`` for one pass a step.
        progress: Told of every step.
    """
    settings = session.settings
    return draw(
        session.pipeline,
        session.findings,
        settings.pipeline,
        prompts,
        seeds,
        guidance=guidance,
        steps=settings.evaluate.steps,
        batch_size=settings.evaluate.batch_size,
        on_step=progress.advance,
    )


def draw(
    pipeline: DiffusionPipeline,
    findings: Findings,
    asked: PipelineSettings,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    *,
    guidance: float,
    steps: int,
    batch_size: int = 1,
    on_step: Callable[[int], None] | None = None,
) -> Drawn:
    """Make pictures with the stock pipeline as it stands, and count what they cost.

    Args:
        pipeline: With or without a LoRA loaded.
        findings: What the probe found.
        asked: How it is called.
        prompts: One per picture.
        seeds: One per picture; a picture depends on nothing else.
        guidance: The value of the pipeline's guidance argument.
        steps: Denoising steps.
        batch_size: Prompts per pipeline call.
        on_step: Told, at every step, of how many pictures.
    """
    drawn, passes, seconds = Drawn(), 0, 0.0
    listened = denoisers(pipeline, findings.denoisers)
    alone = findings.layout is None or any(prompt.columns for prompt in prompts)
    size = 1 if alone else batch_size
    for first in range(0, len(prompts), size):
        some = list(prompts[first : first + size])
        inputs = run_inputs(pipeline, findings, asked, some, guidance, steps)
        with (
            in_all(steps * len(some), on_step or (lambda count: None)) as told,
            Listener(pipeline, listened, on_step=partial(told, len(some))) as listener,
        ):
            result = run(pipeline, inputs, seeds[first : first + size], output_type="pil")
        _add(drawn, result, len(some))
        calls = [call for step in listener.steps for call in step.calls]
        passes += sum(call.rows for call in calls)
        seconds += sum(call.seconds for call in calls)
    drawn.passes_per_image = passes / len(prompts)
    drawn.denoiser_seconds_per_image = seconds / len(prompts)
    return drawn


def picture_seeds(seed: int, count: int) -> list[int]:
    """The seeds of a run's pictures, the same for every kind."""
    return [derive_seed(seed, "picture", k) for k in range(count)]


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
    for c, heading in enumerate(columns):
        x = left + c * (width + gap) + width / 2
        ink.multiline_text((x, 6), heading, "black", font, anchor="ma", align="center")
    for r, (pictures, caption) in enumerate(zip(rows, captions, strict=True)):
        y = top + r * (height + gap)
        ink.multiline_text((8, y + 6), _wrap(caption, left - 16, font), "black", font)
        for c, picture in enumerate(pictures):
            large = picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(large, (left + c * (width + gap), y))
    return sheet


def png(picture: Picture) -> bytes:
    """A picture as PNG bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def animation(frames: Sequence[Picture]) -> bytes:
    """Frames as a GIF, 8 a second."""
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=125, loop=0)
    return buffer.getvalue()


def _write(out: Path, kind: Kind, drawn: Drawn) -> list[Path]:
    """A PNG per picture, a GIF per video."""
    files = {f"{kind}-{k:03d}.png": png(picture) for k, picture in enumerate(drawn.pictures)}
    if drawn.frames:
        files = {f"{kind}-{k:03d}.gif": animation(f) for k, f in enumerate(drawn.frames)}
    for name, data in files.items():
        write_bytes(out / name, data)
    return [out / name for name in files]


def _add(drawn: Drawn, result: Any, count: int) -> None:
    """Take pictures or videos from what a pipeline returned."""
    found = list(result[0])
    if len(found) != count or not all(isinstance(f, Picture | list) for f in found):
        raise InputError(
            f"the pipeline returned {type(result[0]).__name__}, neither pictures nor videos",
            "Guidefold folds its guidance, but cannot draw what it makes: use the adapter in "
            "diffusers.",
        )
    for item in found:
        if isinstance(item, list):
            drawn.frames.append(item)
            drawn.pictures.append(item[len(item) // 2])
        else:
            drawn.pictures.append(item)


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
