"""Join the trajectories that several machines have recorded of one run."""

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
    write_record,
    write_text,
)

PROBE_AGAIN = "Remove it, and 'guidefold record {run}' probes again."


def gather(run: Path, parts: Sequence[Path]) -> int:
    """Copy the trajectories that a run lacks from other runs.

    Args:
        run: The run's folder; created if it does not exist.
        parts: Runs that were recorded with the same settings and the same pipeline.

    Returns:
        The number of trajectories copied.

    Raises:
        InputError: No other run is named, or one does not exist.
        MismatchError: Settings, pipeline or a trajectory's plan differ.
        CorruptFileError: A part is damaged.
    """
    others = [part for part in parts if part.resolve() != run.resolve()]
    if not others:
        raise InputError(f"{run}: nothing to gather", "Name other runs than the one it goes to.")
    folders = [require_run(part) for part in others]
    with locked(run):
        return sum(_copy_missing(RunFolder(run), part) for part in folders)


def _copy_missing(run: RunFolder, part: RunFolder) -> int:
    """Copy the trajectories of one part that the run lacks."""
    _check_same_run(run, part)
    copied = 0
    for theirs in part.rounds():
        ours = run.trajectories / theirs.name
        existing = {line.index: line for line in read_round(ours, verify=False)}
        for line in read_round(theirs):  # each file is compared with its line
            known = existing.get(line.index)
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
    """Compare settings and pipeline of run and part; a new run takes over the part's."""
    settings = load_settings(part.config)
    if run.config.exists():
        check_same(load_settings(run.config), settings, run.path)
    else:
        write_text(run.config, dump_toml(settings.model_copy(update={"run": str(run)})))
    theirs = Findings.from_json(read_json(part.probe, PROBE_AGAIN.format(run=part)))
    if run.probe.exists():
        ours = Findings.from_json(read_json(run.probe, PROBE_AGAIN.format(run=run)))
        ours.check_same_base(theirs)
    else:
        write_record(run.probe, theirs.to_json())
