"""Published pipelines as their configurations say, without weights: one TOML file each.

Written out, one is a folder in diffusers' format whose weights are missing: a run can be planned by
it where no network is.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from guidefold.ground import ConfigError, parse_toml, read_text
from guidefold.run import write_text

DESCRIPTIONS = Path(str(files("guidefold.pipeline") / "descriptions"))
SHARED = "parts"  # the file of components that several have
Values = dict[str, Any]


def described_names() -> list[str]:
    """The names of the pipelines that are described here."""
    return sorted(path.stem for path in DESCRIPTIONS.glob("*.toml") if path.stem != SHARED)


def read_description(path: Path, remedy: str = "") -> Values:
    """A description's values; a component that is named alone is one of the shared ones.

    Args:
        path: A file of this form.
        remedy: What to do where it is no such file.

    Raises:
        ConfigError: It cannot be read, or is not TOML.
        LookupError: It names a component that there is not.
    """
    values = parse_toml(read_text(path, ConfigError, remedy), path, ConfigError, remedy)
    for table, name in (
        *((values, "autoencoder"), (values, "denoiser")),
        *((values.get("encoders", {}), name) for name in values.get("encoders", {})),
    ):
        if isinstance(table.get(name), str):
            table[name] = _shared()[table[name]]
    return values


@cache
def describe_source(source: str) -> Path | None:
    """The folder of a hub id's configurations, without weights; None of one not described here.

    It lasts as long as this process.

    Args:
        source: The hub id.
    """
    for name in described_names():
        values = read_description(DESCRIPTIONS / f"{name}.toml")
        if source in values["sources"]:
            folder = Path(tempfile.mkdtemp(prefix=f"guidefold-{name}-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            write_description(values, folder)
            return folder
    return None


def write_description(values: Mapping[str, Any], folder: Path) -> None:
    """Write a pipeline's configurations as diffusers saves them.

    Args:
        values: From :func:`read_description`.
        folder: An empty folder.
    """
    empty = dict.fromkeys(values.get("empty", ()), (None, None))
    index = {"_class_name": values["pipeline"], **values.get("settings", {}), **empty}
    for name, part in _components(values):
        kind, config = class_of(part["class"]), part.get("config", {})
        index[name] = tuple(part["class"].rsplit(".", 1))
        content = {**_kind(kind), **config}
        _write(folder / name / _file_name(kind), content)
    _write(folder / "model_index.json", index)


def class_of(path: str) -> Any:
    """The class of a name such as ``diffusers.AutoencoderKL``."""
    library, _, name = path.rpartition(".")
    return getattr(import_module(library), name)


def _components(values: Mapping[str, Any]) -> Iterator[tuple[str, Values]]:
    for table in ("encoders", "tokenizers", "others"):
        yield from values.get(table, {}).items()
    for part in (values["denoiser"], values["autoencoder"]):
        yield part["name"], part
    yield "scheduler", values["scheduler"]


def _file_name(kind: Any) -> str:
    """The file that a class reads its configuration from."""
    if hasattr(kind, "load_config"):
        return str(kind.config_name)
    return "config.json" if hasattr(kind, "config_class") else "tokenizer_config.json"


def _kind(kind: Any) -> Values:
    """What a file says of the class that it configures."""
    if hasattr(kind, "load_config"):
        return {"_class_name": kind.__name__}
    if hasattr(kind, "config_class"):
        return {"model_type": kind.config_class.model_type, "architectures": [kind.__name__]}
    return {"tokenizer_class": kind.__name__}


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(values, indent=2))


@cache
def _shared() -> Values:
    path = DESCRIPTIONS / f"{SHARED}.toml"
    return parse_toml(read_text(path, ConfigError), path, ConfigError)
