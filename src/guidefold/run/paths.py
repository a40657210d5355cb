"""Paths in settings and in a run's files.

Those in settings are absolute in a run's own configuration and left out of what is published. What
a file of a run names lies within that file's folder, and no link is followed there.
"""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

from guidefold.ground import CorruptFileError, PipelineError
from guidefold.run.settings import Settings

NO_LINK = "Put what it leads to in its place. A run on another disk: run=FOLDER there."

# Settings that may name a file or a folder of this machine, with the words that never do.
PATHS: dict[tuple[str, str], tuple[str, ...]] = {
    ("pipeline", "source"): ("bundled",),
    ("pipeline", "config"): (),
    ("prompts", "path"): ("general", "world", "world-balanced"),
    ("student", "guidance_run"): (),
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


def within(folder: Path, name: str, place: object, remedy: str = "") -> Path:
    """The path of a file that another file names, by its name within a folder.

    Args:
        folder: The folder.
        name: The file's name there.
        place: The file that names it, for messages.
        remedy: What to do where the name is damaged.

    Raises:
        CorruptFileError: The name leads out of the folder, or through a link.
    """
    parts = PureWindowsPath(name)  # which knows both kinds of slashes
    if not parts.parts or parts.anchor or ".." in parts.parts or "\0" in name:
        raise CorruptFileError(f"{place}: names '{name}', which lies outside of {folder}", remedy)
    path = folder
    for part in Path(name).parts:
        path /= part
        refuse_link(path)
    return path


def lies_within(folder: Path, *paths: Path) -> bool:
    """Whether paths that people wrote lead into a folder, all links followed."""
    home = folder.resolve()
    return all(path.resolve().is_relative_to(home) for path in paths)


def refuse_link(path: Path) -> None:
    """Refuse a symbolic link in the place of a file or folder of a run.

    Raises:
        CorruptFileError: It is one.
    """
    if path.is_symlink():
        raise CorruptFileError(f"{path}: a symbolic link, which is not followed here", NO_LINK)
