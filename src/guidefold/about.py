"""What a written adapter says of itself: base, dial, and how it is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from guidefold import __version__
from guidefold.config import public_name
from guidefold.errors import RunError
from guidefold.findings import Findings
from guidefold.lora.dial import UNKNOWN, Dial, Mark
from guidefold.run.folder import METADATA, RunFolder
from guidefold.runs import check_folder, read_json
from guidefold.session import Session


def read_dial(folder: Path) -> Dial:
    """A written adapter's dial as it was measured; without marks where it was not.

    Args:
        folder: The adapter's.
    """
    path = folder / METADATA
    return Dial.from_json(read_json(path)) if path.exists() else UNKNOWN


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
    dial = replace(session.dial, marks=tuple(marks)).baked_at(strength)
    hint = f"{_unguided_call(findings)}; strength 1 = {dial.stands_for}"
    # another strength's file stands for one scale; its dial is the table
    if dial.proportional and strength == 1 and dial.measured_otherwise is None:
        hint += f", strength s = guidance {dial.origin:g} + {dial.span:g} s"
    return {
        "guidefold": __version__,
        "base": public_name(settings.pipeline.source),
        "findings": findings.to_json(),
        "negative_prompt": settings.pipeline.negative_prompt,
        **dial.to_json(),
        "rank": settings.adapter.rank,
        "targets": settings.adapter.targets,
        "step": step,
        "strength": strength,
        "usage_hint": hint,
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
