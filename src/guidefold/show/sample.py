"""The verb ``sample``: draw the user's own prompts by each kind, into a folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from guidefold.deliver import find_adapter, open_adapter, read_dial
from guidefold.draw import Drawn, animation, draw, grid, heading, picture_requests, png
from guidefold.ground import InputError, console, task
from guidefold.pipeline import Prompt
from guidefold.run import KINDS, Kind, Settings, ensure_folder, require_run, write_bytes
from guidefold.session import open_session


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

    Args:
        settings: The run's settings.
        prompts: Texts, or rows of an inputs file.
        out: The folder for ``grid.png`` and a file per picture.
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
    run = require_run(settings.run)
    ensure_folder(out)
    if guidance is not None and strength is None and "student" in kinds:
        dial = read_dial(find_adapter(run, adapter))
        strength = dial.measured_strength(guidance)
        console.print(f"Guidance {guidance:g} is strength {strength:.3g}, as measured.")
    if "student" in kinds and any("negative_prompt" in row.values for row in rows):
        console.print(
            "Beware: the student makes one pass and ignores a row's negative_prompt; what it obeys "
            "is folded in training (pipeline.negative_prompt)."
        )
    pairs = list({(row.key, seed): (row, seed) for row in rows for seed in seeds}.values())
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


def _draw_kinds(
    settings: Settings,
    pairs: Sequence[tuple[Prompt, int]],
    kinds: Sequence[Kind],
    strength: float | None,
    guidance: float | None,
    adapter: Path | None,
) -> dict[Kind, Drawn]:
    """Draw every pair of prompt and seed by every kind."""
    rows, seeds = [row for row, _ in pairs], [seed for _, seed in pairs]
    drawn: dict[Kind, Drawn] = {}
    with open_session(settings) as session:
        _check_scale(guidance, session.findings.off)
        total = len(kinds) * len(pairs) * settings.evaluate.steps
        with task("Drawing, denoising steps", total) as progress:
            for kind in sorted(kinds, key=KINDS.index):  # student last: it loads the adapter
                if kind == "student":
                    strength = session.compared.strength if strength is None else strength
                    if warning := session.dial.warning(strength):
                        console.print(warning, markup=False)
                    open_adapter(session, strength, adapter)
                scale = guidance if kind == "teacher" else None
                requests = picture_requests(session, kind, rows, seeds, guidance=scale)
                drawn[kind] = draw(session, requests, progress.advance)
    return drawn


def _check_scale(guidance: float | None, off: float) -> None:
    if guidance is not None and not off <= guidance < math.inf:
        raise InputError(
            f"guidance {guidance:g}: {off:g} switches this pipeline's guidance off",
            f"Use a guidance scale of {off:g} or more.",
        )


def _write(out: Path, kind: Kind, drawn: Drawn) -> list[Path]:
    """A PNG per picture, a GIF per video."""
    files = {f"{kind}-{k:03d}.png": png(picture) for k, picture in enumerate(drawn.pictures)}
    if drawn.frames:
        files = {f"{kind}-{k:03d}.gif": animation(f) for k, f in enumerate(drawn.frames)}
    for name, data in files.items():
        write_bytes(out / name, data)
    return [out / name for name in files]
