"""Bring together what several machines have recorded of one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from guidefold.ground import InputError, MismatchError
from guidefold.listen import Findings
from guidefold.record.trajectory_files import read_round
from guidefold.run import (
    LINES,
    RunFolder,
    append_line,
    check_same,
    dump_toml,
    load_settings,
    locked,
    read_json,
    require_run,
    write_bytes,
    write_json,
    write_text,
)


def gather(run: Path, parts: Sequence[Path]) -> int:
    """Copy the trajectories of other runs that this one lacks.

    Args:
        run: The run's folder; made where there is none.
        parts: Runs that were recorded with the same settings and the same pipeline.

    Returns:
        How many trajectories were copied.

    Raises:
        InputError: There are no other runs, or no such runs.
        MismatchError: Settings, pipeline or a trajectory's plan differ.
        CorruptFileError: A part is damaged.
    """
    others = [part for part in parts if part.resolve() != run.resolve()]
    if not others:
        raise InputError(f"{run}: nothing to gather", "Name other runs than the one it goes to.")
    found = [require_run(part) for part in others]
    with locked(run):
        return sum(_take(RunFolder(run), part) for part in found)


def _take(run: RunFolder, part: RunFolder) -> int:
    """Copy what one part has and the run lacks."""
    _check_same_run(run, part)
    copied = 0
    for theirs in part.rounds():
        ours = run.trajectories / theirs.name
        have = {line.index: line for line in read_round(ours, verify=False)}
        for line in read_round(theirs):  # each file is compared with its line
            known = have.get(line.index)
            if known is None:
                write_bytes(ours / line.file, (theirs / line.file).read_bytes())
                append_line(ours / LINES, line.to_json())
                copied += 1
            elif (known.seed, known.prompt_sha256) != (line.seed, line.prompt_sha256):
                raise MismatchError(
                    f"{theirs / line.file}: trajectory {line.index} is of another prompt or "
                    f"seed than the one in {ours}",
                    "Record all parts with the same prompts and the same seed.",
                )
    return copied


def _check_same_run(run: RunFolder, part: RunFolder) -> None:
    """One run's parts have its settings and its pipeline; the first part gives both."""
    settings = load_settings(part.config)
    if run.config.exists():
        check_same(load_settings(run.config), settings, run.path)
    else:
        write_text(run.config, dump_toml(settings.model_copy(update={"run": str(run)})))
    theirs = Findings.from_json(read_json(part.probe))
    if run.probe.exists():
        Findings.from_json(read_json(run.probe)).check_same_base(theirs)
    else:
        write_json(run.probe, theirs.to_json())
