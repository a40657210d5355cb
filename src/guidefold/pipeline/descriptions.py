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
from copy import deepcopy
from functools import cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from guidefold.ground import ConfigError, parse_toml, read_text
from guidefold.run import write_text

DESCRIPTIONS = Path(str(files("guidefold.pipeline") / "descriptions"))
SHARED = "parts"  # the file of components that several have
TOKENIZER = "tokenizer_config.json"
MARKS = ("<|startoftext|>", "<|endoftext|>")
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
            table[name] = deepcopy(_shared()[table[name]])
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
            outer = tempfile.mkdtemp(prefix="guidefold-")
            atexit.register(shutil.rmtree, outer, ignore_errors=True)
            folder = Path(outer) / source  # messages name what it describes
            write_description(values, folder)
            return folder
    return None


def write_description(values: Mapping[str, Any], folder: Path) -> None:
    """Write a pipeline's configurations as diffusers saves them.

    Args:
        values: From :func:`read_description`.
        folder: The folder to make.
    """
    empty = dict.fromkeys(values.get("empty", ()), (None, None))
    index = {"_class_name": values["pipeline"], **values.get("settings", {}), **empty}
    for name, part in _components(values):
        kind, config = class_of(part["class"]), part.get("config", {})
        index[name] = tuple(part["class"].rsplit(".", 1))
        content = {**_kind(kind), **config}
        _write(folder / name / _file_name(kind), content)
        if "merges" in part:
            _write_vocabulary(folder / name, part["merges"])
    _write(folder / "model_index.json", index)


def has_vocabulary(tokenizer: Path) -> bool:
    """Whether a tokenizer's folder holds more than its settings."""
    return any(path.name != TOKENIZER for path in tokenizer.iterdir())


def is_complete(folder: Path) -> bool:
    """Whether a described pipeline lacks weights alone: each tokenizer has its vocabulary."""
    return all(has_vocabulary(path.parent) for path in folder.glob(f"*/{TOKENIZER}"))


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
    return "config.json" if hasattr(kind, "config_class") else TOKENIZER


def _kind(kind: Any) -> Values:
    """What a file says of the class that it configures."""
    if hasattr(kind, "load_config"):
        return {"_class_name": kind.__name__}
    if hasattr(kind, "config_class"):
        return {"model_type": kind.config_class.model_type, "architectures": [kind.__name__]}
    return {"tokenizer_class": kind.__name__}


def _write_vocabulary(folder: Path, merges: str) -> None:
    """Write a byte-pair tokenizer's files from its merges, which give its tokens in their order.

    Tokens are the bytes, the bytes that end a word, what each merge makes, and two marks.
    """
    lines = read_text(DESCRIPTIONS / merges, ConfigError)
    plain = [
        *range(33, 127),
        *range(161, 173),
        *range(174, 256),
    ]  # stand for themselves
    others = len(set(range(256)).difference(plain))
    letters = [*map(chr, plain), *map(chr, range(256, 256 + others))]
    made = ["".join(line.split()) for line in lines.splitlines()]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *made, *MARKS]
    _write(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    write_text(folder / "merges.txt", f"#version: 0.2\n{lines}")


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(values, indent=2))


@cache
def _shared() -> Values:
    path = DESCRIPTIONS / f"{SHARED}.toml"
    return parse_toml(read_text(path, ConfigError), path, ConfigError)
