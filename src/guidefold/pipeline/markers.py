"""What a checkpoint of one file states about its noise schedule: the table is ``markers.toml``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped] # what the hub's library reads with

from guidefold.ground import PipelineError
from guidefold.pipeline.weight_files import opened

ENDINGS = (".yaml", ".yml")
ZERO = 1e-6  # of a cumulative product of alphas; an ordinary schedule ends at 0.005


@dataclass(frozen=True)
class Marker:
    """A statement of a file about its noise schedule.

    Attributes:
        field: ``prediction_type``, ``zero_terminal_snr`` or ``preconditioned`` (EDM's scalings).
        value: What is stated.
        where: The file, and the place in it.
    """

    field: str
    value: str | bool
    where: str


def read_markers(path: Path) -> list[Marker]:
    """Everything that a checkpoint, its metadata and the YAML file beside it state.

    Args:
        path: A ``.safetensors`` file; only its header is read, and small schedules.

    Raises:
        PipelineError: It is no whole safetensors file, or the YAML file cannot be read.
    """
    return [*_from_tensors(path), *_from_metadata(path), *_from_yaml(path)]


def _from_tensors(path: Path) -> Iterator[Marker]:
    with opened(path) as file:
        names = set(file.keys())
        for entry in _table()["key"]:
            if entry["name"] in names:
                yield from _markers(entry["states"], f"{path}: its key '{entry['name']}'")
        for entry in _table()["schedule"]:
            if entry["name"] in names:
                values = file.get_tensor(entry["name"]).float().flatten()
                if values.numel() and float(values[-1]) < ZERO:
                    yield from _markers(entry["states"], f"{path}: the end of '{entry['name']}'")


def _from_metadata(path: Path) -> Iterator[Marker]:
    with opened(path) as file:
        yield from markers_of(file.metadata() or {}, path)


def markers_of(metadata: Mapping[str, str], path: Path) -> Iterator[Marker]:
    """What a safetensors file's metadata states, a LoRA's too."""
    for entry in _table()["metadata"]:
        name = entry["name"]
        yield from _read(metadata.get(name), entry["values"], f"{path}: its metadata {name}")


def _from_yaml(path: Path) -> Iterator[Marker]:
    for beside in (path.with_suffix(ending) for ending in ENDINGS):
        if not beside.is_file():
            continue
        try:
            values = yaml.safe_load(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise PipelineError(
                f"{beside}: the configuration beside {path.name} cannot be read: "
                f"{' '.join(str(error).split())}",
                "Mend it, or move it away if it does not belong to the file.",
            ) from error
        for entry in _table()["yaml"]:
            value: Any = values
            for key in entry["name"].split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            yield from _read(value, entry["values"], f"{beside}: {entry['name']}")


def _read(value: Any, kind: str, where: str) -> Iterator[Marker]:
    """What a value states; one that is not in the table states itself, if its kind has a field."""
    word = "" if value is None else re.sub(r"[\s-]+", "_", str(value).strip().lower())
    if word in ("", "none", "null"):
        return
    spellings = _table()["values"][kind]
    known = spellings.get(word.rsplit(".", 1)[-1])
    unknown = {spellings["field"]: str(value)} if "field" in spellings else {}
    yield from _markers(unknown if known is None else known, f"{where} = {value}")


def _markers(states: Mapping[str, str | bool], where: str) -> Iterator[Marker]:
    yield from (Marker(field, value, where) for field, value in states.items())


@cache
def _table() -> dict[str, Any]:
    text = (files("guidefold.pipeline") / "markers.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
