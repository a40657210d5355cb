"""A run's folder: where everything lies in it, and which process may write to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from filelock import lock_descriptor

from guidefold.ground import RunError, is_there
from guidefold.run.files import MANIFEST, explained, restore_folder
from guidefold.run.paths import refuse_link

METADATA = "guidefold.json"
LINES = "manifest.jsonl"  # of a round: a line for each finished trajectory


class RunFolder:
    """The files and folders of a run, by name; they need not exist yet.

    Args:
        path: The run's folder.

    Attributes:
        path: The run's folder.
        config: The resolved settings.
        probe: What the probe found.
        probe_conditions: Of which pipeline, with which call and libraries.
        trajectories: What was recorded, a folder for each round.
        log: A line for each logged step and each validation.
        adapter: The adapter that users keep.
        metadata: What the adapter's file says of itself.
        export: The adapter in other formats, a folder each.
        evaluation: The pictures of a measurement.
        pictures: A line for each of these pictures.
        index: Which of them shows which prompt, at which strength.
        results: What was measured.
        grid: The first prompts' pictures, side by side.
        previews: Pictures drawn while training.
        preview_index: Of which prompts and steps they are.
        page: The report.
        samples: Pictures of the user's own prompts.
        hub: The packed adapter, as a repository.
        trackers: What experiment trackers write.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.toml"
        self.probe = self.path / "probe.json"
        self.probe_conditions = self.path / "probe-conditions.json"
        self.trajectories = self.path / "trajectories"
        self.log = self.path / "log.jsonl"
        self.adapter = self.path / "adapter"
        self.metadata = self.adapter / METADATA
        self.export = self.path / "export"
        self.evaluation = self.path / "evaluation"
        self.pictures = self.evaluation / "pictures.jsonl"
        self.index = self.evaluation / "index.json"
        self.results = self.path / "results.json"
        self.grid = self.path / "grid.png"
        self.previews = self.path / "previews"
        self.preview_index = self.previews / "previews.json"
        self.page = self.path / "report.html"
        self.samples = self.path / "samples"
        self.hub = self.path / "hub"
        self.trackers = self.path / "trackers"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The folder's own name, which is the run's title."""
        return self.path.resolve().name

    def round(self, number: int) -> Path:
        """The folder of a recorded round."""
        return self.trajectories / f"round-{number}"

    def rounds(self) -> list[Path]:
        """The rounds that recording has begun."""
        return sorted(self.trajectories.glob("round-*"))

    def checkpoint(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.path / "checkpoints" / f"step-{step:07d}"

    def refuse_links(self) -> None:
        """Refuse symbolic links among the run's own files: they may lead anywhere.

        Trackers lay links of their own.

        Raises:
            CorruptFileError: Names the first one.
        """
        places = [*vars(self).values(), self.path / "checkpoints", self.path / ".lock"]
        for place in sorted({*places} - {self.path, self.trackers}):
            refuse_link(place)
            for folder, folders, files in os.walk(place):
                for name in (*folders, *files):
                    refuse_link(Path(folder, name))

    def checkpoints(self) -> list[Path]:
        """Finished checkpoints, the newest last; for the process that holds the folder."""
        for old in (self.path / "checkpoints").glob(".step-*.old"):
            restore_folder(old.with_name(old.name.removeprefix(".").removesuffix(".old")))
        return self._checkpoints()

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint as it stands, also while another process holds the folder."""
        return next(reversed(self._checkpoints()), None)

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("step-*"))


def require_run(path: str | Path) -> RunFolder:
    """A folder to read from, in which a run has begun.

    Raises:
        RunError: It has no config.toml.
        CorruptFileError: A file in it is a symbolic link.
    """
    run = RunFolder(path)
    if not run.config.exists():
        raise RunError(f"{run}: no run has begun here", "Begin one with 'guidefold distill'.")
    run.refuse_links()
    return run


@contextmanager
def locked(run: Path, *, reading: bool = False) -> Iterator[bool]:
    """Hold a run folder for this process; the lock falls with the process, however it ends.

    Work that fails before it has written anything leaves no new folder.

    Args:
        run: The folder; made where there is none.
        reading: Whether a folder that cannot be written to will do, without a lock.

    Yields:
        Whether the folder is held, and may be written to.

    Raises:
        RunError: Another process holds the folder, or it cannot be written to.
        CorruptFileError: A file in it is a symbolic link.
    """
    RunFolder(run).refuse_links()
    if reading and not os.access(run, os.W_OK):
        yield False
        return
    new = [place for place in (run, *run.parents) if not is_there(place)]
    ensure_folder(run)
    held = _hold(run)
    try:
        yield True
    except BaseException:
        _let_go(run, held)
        for place in new:
            with suppress(OSError):  # it is not empty, or another process has come in between
                place.rmdir()
        raise
    _let_go(run, held)


def _let_go(run: Path, held: TextIO) -> None:
    """Remove the lock file and unlock it; Windows removes no open file, so there it stays."""
    if os.name != "nt":
        with suppress(OSError):
            (run / ".lock").unlink()
    held.close()


def _hold(run: Path) -> TextIO:
    """Lock a folder; closing the file unlocks it."""
    while True:
        file = _lock(run)
        try:
            named = (run / ".lock").stat()
        except FileNotFoundError:
            named = None
        if named is not None and os.path.samestat(named, os.fstat(file.fileno())):
            return file
        file.close()  # its holder has removed it since it was opened here: it locks nothing


def _lock(run: Path) -> TextIO:
    """Lock the lock file and write this process's id into it."""
    with explained(run / ".lock"), ExitStack() as opened:
        file = opened.enter_context((run / ".lock").open("a+", encoding="utf-8"))
        if not lock_descriptor(file.fileno(), blocking=False):
            file.seek(len("pid "))  # Windows lets nobody read the first byte, which is locked
            raise RunError(
                f"{run}: in use by another Guidefold process (pid {file.read() or 'unknown'})",
                "Wait for it, stop it, or choose another folder with run=FOLDER.",
            )
        file.truncate(0)
        file.write(f"pid {os.getpid()}")
        file.flush()
        opened.pop_all()
        return file


def check_place(folder: Path) -> None:
    """Check that a folder can be written to, or be made, without making it.

    Raises:
        RunError: It can be neither.
    """
    whole = folder.absolute()
    places = (p for p in (whole, *whole.parents) if is_there(p) or p.is_symlink())
    near = next(places, Path(whole.anchor))
    if not near.is_dir():
        what = "a file" if is_there(near) else "a link that leads nowhere"
        raise RunError(f"{folder}: cannot be made ({near} is {what})", "Choose another folder.")
    if not os.access(near, os.W_OK):
        what = "written to" if near == whole else "made (Permission denied)"
        raise RunError(f"{folder}: cannot be {what}", "Choose another folder.")


def check_replaceable(folder: Path) -> None:
    """Check that a folder can be made, or is one of Guidefold's, which may be replaced.

    Raises:
        RunError: It cannot be made, holds something else, or is a link.
    """
    if folder.is_symlink():
        raise RunError(f"{folder}: a link, which is not followed here", "Choose another folder.")
    check_place(folder)
    check_place(folder.parent)  # the new folder stands beside the old one before it replaces it
    restore_folder(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise RunError(
            f"{folder}: holds something else, which would be lost", "Choose another folder."
        )


def ensure_folder(folder: Path) -> None:
    """Make a folder to write into.

    Raises:
        RunError: It cannot be made, or not be written to.
    """
    check_place(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be made ({error.strerror})", "Choose another folder."
        ) from error
