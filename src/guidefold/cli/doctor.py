"""``guidefold doctor``: what this machine has; torch is imported when it runs."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from guidefold import __version__
from guidefold.cli.options import AsJson, loading
from guidefold.ground import FailedError, console, parse_json, read_text
from guidefold.run import readable_size

if TYPE_CHECKING:
    from packaging.requirements import Requirement

GIB = 2**30


def doctor(as_json: AsJson = False) -> None:
    """Show versions, devices, memory, extras and what would fit.

    Reports of faults ask for these lines. Exit code 1 where a library is missing or too old.
    """
    with loading():
        found = examine()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        for name, text in _lines(found):
            console.print(f"{name:16} {text}")
    if any(library["problem"] for library in found["libraries"].values()):
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Everything that the command shows, as plain values; sizes in bytes."""
    from huggingface_hub.constants import HF_HUB_CACHE

    needed, extras = _requirements()
    devices = _devices()
    room = next(device["free_bytes"] for device in devices if not device["reason"])
    return {
        "guidefold": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "libraries": {r.name: _state(r) for r in needed},
        "extras": {name: {r.name: _state(r) for r in rs} for name, rs in extras.items()},
        "devices": devices,
        "disk": [_disk(Path.cwd(), "working folder"), _disk(Path(HF_HUB_CACHE), "hub cache")],
        "presets": {name: _fit(preset["rows"], room) for name, preset in _cards().items()},
    }


def _requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """What the package needs, and what each extra for users adds."""
    from packaging.requirements import Requirement

    try:
        stated = [Requirement(text) for text in metadata.requires("guidefold") or []]
    except metadata.PackageNotFoundError:
        raise FailedError(
            "guidefold doctor: the package is not installed, so what it needs is not known",
            "Install it, with pip install -e . in the repository.",
        ) from None
    names = metadata.metadata("guidefold").get_all("Provides-Extra") or []
    always = [r for r in stated if r.marker is None or r.marker.evaluate({"extra": ""})]
    extras = {
        name: [
            r for r in stated if r not in always and r.marker and r.marker.evaluate({"extra": name})
        ]
        for name in names
    }
    for of_the_repository in ("dev", "docs"):
        extras.pop(of_the_repository, None)
    return always, extras


def _state(requirement: Requirement) -> dict[str, str | None]:
    """The version of a library, and what is wrong with it; no problem is the empty text."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return {"version": None, "problem": "missing"}
    fits = requirement.specifier.contains(version, prereleases=True)
    return {"version": version, "problem": "" if fits else f"needs {requirement.specifier}"}


def _devices() -> list[dict[str, Any]]:
    """Devices as plain values, with a remark where this torch cannot use a card that is here."""
    import torch

    from guidefold.pipeline import list_devices

    devices = [asdict(device) for device in list_devices()]
    if len(devices) == 1:
        card = shutil.which("nvidia-smi") or shutil.which("rocm-smi")
        hint = (
            f"; {Path(card).stem} is here: another build of torch may use its card" if card else ""
        )
        reason = f"torch {torch.__version__} is built for the CPU alone{hint}"
        nothing = {"title": "", "free_bytes": None, "total_bytes": None}
        devices.insert(0, {"name": "accelerator", **nothing, "reason": reason})
    return devices


def _disk(folder: Path, name: str) -> dict[str, Any]:
    """Free space where a folder is, or will be."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return {"name": name, "folder": str(folder), "free_bytes": shutil.disk_usage(there).free}


def _cards() -> dict[str, dict[str, Any]]:
    """Which presets fit which cards, as ``docs/cards.py`` has written it."""
    path = Path(str(files("guidefold.cli") / "cards.json"))
    found: dict[str, dict[str, Any]] = parse_json(read_text(path, FailedError), path, FailedError)
    return found


def _fit(rows: dict[str, dict[str, Any] | None], room: int | None) -> dict[str, Any]:
    """How a preset fits the largest card of the table that is no larger than what is free.

    Args:
        rows: The preset's row for each card, by its GiB; None: it does not fit.
        room: Free bytes; None: not known.
    """
    cards = [card for card in rows if room is not None and int(card) * GIB <= room]
    row = rows[cards[-1]] if cards else None
    smallest = next((int(card) for card, row in rows.items() if row), None)
    settings = row["overrides"] if row else None
    return {"fits": bool(row) if room is not None else None, "with": settings, "from": smallest}


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A name and a text for each thing."""
    yield "guidefold", f"{found['guidefold']} in {Path(sys.prefix)}"
    yield "python", f"{found['python']}, {found['system']}"
    for name, library in found["libraries"].items():
        problem = f"  PROBLEM: {library['problem']}" if library["problem"] else ""
        yield name, f"{library['version'] or ''}{problem}".strip()
    for device in found["devices"]:
        yield device["name"], _device_line(device)
    for disk in found["disk"]:
        yield (
            "disk",
            f"{readable_size(disk['free_bytes'])} free in {disk['folder']} ({disk['name']})",
        )
    for name, libraries in found["extras"].items():
        yield f"[{name}]", _extra_line(name, libraries)
    for name, fit in found["presets"].items():
        yield name, _preset_line(fit)


def _device_line(device: dict[str, Any]) -> str:
    if device["reason"]:
        return f"cannot be used: {device['reason']}"
    if device["total_bytes"] is None:
        return f"{device['title']}, memory not known"
    free, total = readable_size(device["free_bytes"]), readable_size(device["total_bytes"])
    return f"{device['title']}, {free} of {total} free"


def _extra_line(name: str, libraries: dict[str, dict[str, str | None]]) -> str:
    if all(not library["problem"] for library in libraries.values()):
        return ", ".join(f"{library} {state['version']}" for library, state in libraries.items())
    wrong = (f"{lib} {state['problem']}" for lib, state in libraries.items() if state["problem"])
    return f"{', '.join(wrong)}: pip install 'guidefold[{name}]'"


def _preset_line(fit: dict[str, Any]) -> str:
    if fit["fits"]:
        return f"fits{' with ' if fit['with'] else ''}{' '.join(fit['with'])}"
    needed = f"needs {fit['from']} GiB" if fit["from"] else "fits no card of the table"
    return needed if fit["fits"] is False else f"{needed}; free memory is not known"
