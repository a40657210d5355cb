"""Paths in settings: absolute in a run's own configuration, left out of what is published."""

from __future__ import annotations

from pathlib import Path

from guidefold.ground import PipelineError
from guidefold.run.settings import Settings

# Settings that may name a file or a folder of this machine, with the words that never do.
PATHS: dict[tuple[str, str], tuple[str, ...]] = {
    ("pipeline", "source"): ("bundled",),
    ("pipeline", "config"): (),
    ("prompts", "path"): ("general", "world"),
    ("evaluate", "features"): (),
    ("evaluate", "clip"): (),
}


def rooted(settings: Settings) -> Settings:
    """Settings that mean the same from every folder: what is here is named by its whole path.

    Links stay as they are named: where one leads, a file may bear a name that tells nothing.
    """
    values = settings.model_dump(mode="json")
    for table, name in PATHS:
        place = place_of(table, name, values[table][name])
        if place is not None and place.exists():
            values[table][name] = str(place.absolute())
    return Settings.model_validate(values)


def without_paths(settings: Settings) -> Settings:
    """Settings that may be published: of a path on this machine, its last part alone."""
    values = settings.model_dump(mode="json")
    values["run"] = Path(settings.run).resolve().name
    for table, name in PATHS:
        values[table][name] = public_name(values[table][name])
    return Settings.model_validate(values)


def public_name(source: str | None) -> str | None:
    """A hub id or a bundled name as it is; of a path on this machine, its last part."""
    if source is None:
        return None
    path = Path(source)
    local = path.is_absolute() or source.startswith((".", "~")) or path.exists()
    return path.resolve().name if local else source


def hub_id(source: str) -> str | None:
    """A base's name on the hub; None of a folder, a file or the bundled teacher."""
    return source if source != "bundled" and public_name(source) == source else None


def check_source(source: str, setting: str = "pipeline.source") -> None:
    """Refuse a pipeline that is not there, before anything that takes seconds is imported.

    Args:
        source: What is to be opened, or what describes it.
        setting: The setting's name, for the message.

    Raises:
        PipelineError: It is no folder, no file, and no name of a hub's repository.
    """
    owner, _, name = source.partition("/")
    remote = owner and name and "/" not in name and not source.startswith((".", "/", "~"))
    if source == "bundled" or remote or _is_here(source):
        return
    raise PipelineError(
        f"{source}: no such pipeline ({setting})",
        "Give a folder with a model_index.json, a .safetensors file, or a hub id owner/name.",
    )


def _is_here(name: str) -> bool:
    """Whether a file or a folder has this name; a pipe or a device is neither."""
    try:
        return Path(name).is_file() or Path(name).is_dir()
    except OSError:  # a name too long for the file system
        return False


def place_of(table: str, name: str, value: object) -> Path | None:
    """The path that a setting may be; None of what is never one."""
    names = PATHS[table, name]
    return Path(value) if isinstance(value, str) and value not in names else None
