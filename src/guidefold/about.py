"""What a written adapter says of itself: base, dial, and how it is called."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from guidefold import __version__
from guidefold.calibration import Dial, Mark
from guidefold.config import public_name
from guidefold.errors import RunError
from guidefold.findings import Findings
from guidefold.objective import guidance_at
from guidefold.run.folder import METADATA, RunFolder
from guidefold.runs import check_folder, read_json
from guidefold.session import Session

APART = 0.2  # of the guidance; a measured dial that is nearer than this says what was trained for


def read_dial(folder: Path) -> Dial:
    """A written adapter's dial as it was measured; without marks where it was not.

    Args:
        folder: The adapter's.
    """
    path = folder / METADATA
    return dial_of(read_json(path)) if path.exists() else Dial(0.0, ())


def dial_of(about: Mapping[str, Any]) -> Dial:
    """The dial within what an adapter says of itself."""
    marks = tuple(Mark(**mark) for mark in about.get("dial_table", []))
    return Dial(about["findings"]["origin"], marks)


def measured_otherwise(g_ref: float, dial: Dial) -> float | None:
    """The scale that strength 1 measures as, where it is not about the one it was trained for.

    Args:
        g_ref: It was trained for.
        dial: As it was measured.

    Returns:
        The scale, infinite beyond the marks; None where it is near enough, or nothing was measured.
    """
    measured = dial.guidance_for(1.0, math.inf) if dial.marks else g_ref
    return None if abs(measured - g_ref) <= APART * (g_ref - dial.origin) else measured


def stands_for(g_ref: float, dial: Dial) -> str:
    """The guidance scale that strength 1 stands for, in words; two where it measures as another."""
    measured = measured_otherwise(g_ref, dial)
    if measured is None:
        return f"guidance {g_ref:g}"
    found = f"over {dial.marks[-1].guidance:.3g}" if math.isinf(measured) else f"{measured:.3g}"
    return f"guidance {g_ref:g} as trained, {found} as measured"


def describe_adapter(
    session: Session, step: int, marks: Sequence[Mark], strength: float = 1.0
) -> dict[str, Any]:
    """What an adapter says of itself, as JSON.

    Args:
        session: The run's.
        step: The optimizer steps that it took.
        marks: Its dial, measured.
        strength: Of the run's adapter, that is strength 1 of what is described.
    """
    settings, findings = session.settings, session.findings
    origin, g_ref = findings.origin, settings.adapter.g_ref
    if strength != 1:
        # six digits: a scale that was asked for comes back as it was given
        nominal = guidance_at(strength, origin, g_ref)
        served = Dial(origin, tuple(marks)).guidance_for(strength, nominal)
        g_ref = float(f"{served:.6g}")
    table = [replace(mark, strength=mark.strength / strength) for mark in marks]
    dial = Dial(origin, tuple(table))
    proportional = (
        # another strength's file stands for one scale; its dial is the table
        settings.adapter.dial and strength == 1 and measured_otherwise(g_ref, dial) is None
    )
    return {
        "guidefold": __version__,
        "base": public_name(settings.pipeline.source),
        "findings": findings.to_json(),
        "negative_prompt": settings.pipeline.negative_prompt,
        "g_ref": g_ref,
        "dial": settings.adapter.dial,
        "dial_table": [asdict(mark) for mark in table],
        "guidance_range": list(settings.record.guidance),
        "rank": settings.adapter.rank,
        "targets": settings.adapter.targets,
        "step": step,
        "strength": strength,
        "usage_hint": f"{_unguided_call(findings)}; strength 1 = {stands_for(g_ref, dial)}"
        + (f", strength s = guidance {origin:g} + {g_ref - origin:g} s" if proportional else ""),
    }


def _unguided_call(findings: Findings) -> str:
    """What the pipeline is called with beside the adapter, in words."""
    return ", ".join(
        f"{name}={value:g}"
        for name, value in {findings.guidance_argument: findings.off, **findings.also_off}.items()
    )


def read_adapter(folder: Path) -> dict[str, Any]:
    """What a written adapter says of itself, its files being those that were written.

    Raises:
        RunError: It is no adapter of Guidefold's.
        CorruptFileError: A file is missing or altered.
    """
    if not (folder / METADATA).exists():
        run = RunFolder(folder)
        raise RunError(
            f"{folder}: no adapter of Guidefold's ({METADATA} is missing)",
            f"Name {run.adapter}."
            if run.metadata.exists()
            else "Name the folder that 'guidefold distill' wrote: RUN/adapter.",
        )
    check_folder(folder, "Write it again with 'guidefold export RUN'.")
    about: dict[str, Any] = read_json(folder / METADATA)
    return about
