"""Leave a run as it was where a verb is refused after it has opened it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from guidefold.ground import InputError
from guidefold.run.files import write_bytes
from guidefold.run.folder import RunFolder

State = Mapping[Path, tuple[int, int] | None]


@contextmanager
def undone_if_refused(run: RunFolder) -> Iterator[None]:
    """Take back what opening a run wrote, where the verb that opened it is then refused.

    Opening writes settings and findings: before the verb's own work, so that they survive its
    death, but also before its last checks. Where the verb has written anything of its own by then,
    they stay.

    Args:
        run: The run, whose folder exists.
    """
    opened = (run.config, run.probe, run.probe_conditions)
    written = {path: path.read_bytes() if path.is_file() else None for path in opened}
    before = _state(run, opened)
    try:
        yield
    except InputError:
        after = _state(run, opened)
        if {p: s for p, s in after.items() if s} == {p: s for p, s in before.items() if s}:
            for path, data in written.items():
                _restore(path, data)
            for folder in sorted(after.keys() - before.keys(), reverse=True):
                with suppress(OSError):
                    folder.rmdir()
        raise


def _state(run: RunFolder, opened: tuple[Path, ...]) -> State:
    """Time and size of every file but those that opening writes; None of a folder."""
    found: dict[Path, tuple[int, int] | None] = {}
    for path in run.path.rglob("*"):
        if path not in opened and path.name != ".lock":
            facts = path.lstat()
            found[path] = None if path.is_dir() else (facts.st_mtime_ns, facts.st_size)
    return found


def _restore(path: Path, data: bytes | None) -> None:
    if data is None:
        path.unlink(missing_ok=True)
    elif path.read_bytes() != data:
        write_bytes(path, data)
