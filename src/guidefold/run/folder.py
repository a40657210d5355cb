"""A run's folder: where everything lies in it, and which process may write to it."""

from __future__ import annotations

from pathlib import Path

from guidefold.errors import RunError
from guidefold.runs import restore_folder

METADATA = "guidefold.json"


class RunFolder:
    """The files and folders of a run, by name; they need not exist yet.

    Args:
        path: The run's folder.

    Attributes:
        path: The run's folder.
        config: The resolved settings.
        probe: What the probe found.
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

    def checkpoints(self) -> list[Path]:
        """Finished checkpoints, the newest last."""
        folder = self.path / "checkpoints"
        for old in folder.glob(".step-*.old"):
            restore_folder(old.with_name(old.name.removeprefix(".").removesuffix(".old")))
        return sorted(folder.glob("step-*"))


def require_run(path: str | Path) -> RunFolder:
    """A folder to read from, in which a run has begun.

    Raises:
        RunError: It has no config.toml.
    """
    run = RunFolder(path)
    if not run.config.exists():
        raise RunError(f"{run}: no run has begun here", "Begin one with 'guidefold distill'.")
    return run
