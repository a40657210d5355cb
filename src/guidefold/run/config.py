"""Read settings from TOML and ``key=value`` overrides; write them; compare them with a run's."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from guidefold.ground import (
    LARGEST_SEED,
    ConfigError,
    in_words,
    is_there,
    parse_toml,
    read_text,
    shown,
    too_deep,
    unencodable,
)
from guidefold.run.folder import RunFolder
from guidefold.run.settings import Settings

# What is wrong with a setting, by pydantic's type of the error and with what it tells of it.
WORDS = {
    "missing": "not set",
    "extra_forbidden": "no such setting",
    "model_type": "a table of settings: write [{key}] in a file, or {key}.NAME=value",
    "dict_type": "a table: write [{key}] in a file, or {key}.NAME=value",
    "tuple_type": "must be a pair, the lower and the upper bound, such as [20, 50]",
    "list_type": 'must be a list, such as ["one", "two"]',
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "string_unicode": "holds half of a surrogate pair, which is not valid Unicode",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "too_long": "must be a pair, the lower and the upper bound, such as [20, 50]",
    "literal_error": "must be {expected}",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "value_error": "{error}",
}
NEEDED = {
    "run": "run=runs/NAME",
    "pipeline": "pipeline.source=FOLDER",
    "pipeline.source": "pipeline.source=FOLDER",
}
HINT = (
    "'guidefold config demo' prints a preset with comments; docs/configuration.md of the "
    "repository lists every setting."
)


def load_settings(source: str | Path, overrides: list[str] | None = None) -> Settings:
    """Read settings and apply overrides.

    Args:
        source: A TOML file, a run folder, or the name of a preset.
        overrides: ``section.key=value`` pairs; values as in TOML, bare words are text.

    Returns:
        The settings, checked.

    Raises:
        ConfigError: No such file, not TOML, or a field that is unknown or out of range.
    """
    path = find_config(source)
    text = read_text(path, ConfigError)
    values = parse_toml(text, path, ConfigError)
    if Path(source).is_dir():  # the folder that is named is the run, also after it was moved
        values["run"] = str(source)
    return make_settings(values, overrides or [], str(path), text)


def make_settings(
    values: dict[str, Any], overrides: list[str], where: str = "settings", text: str = ""
) -> Settings:
    """Check values and overrides.

    Args:
        values: Tables as TOML gives them.
        overrides: ``section.key=value`` pairs.
        where: The file's name, for messages.
        text: The file's text, to name lines by.

    Raises:
        ConfigError: A field is unknown or out of range.
    """
    origins = {_apply(values, override): _named(override) for override in overrides}
    if too_deep(values):  # by dots in the name of an override
        raise ConfigError(f"{where}: settings are nested too deeply", HINT)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(*_complaint(error, where, text, origins)) from error


def find_config(source: str | Path) -> Path:
    """The TOML file behind a path, a run folder or a preset's name.

    Raises:
        ConfigError: There is none.
    """
    path, name = Path(source), str(source)
    if name in presets() and not RunFolder(path).config.is_file() and not path.is_file():
        return Path(str(files("guidefold.run") / "presets" / f"{name}.toml"))
    there = is_there(path)
    if path.suffix == ".safetensors" or (there and (path / "model_index.json").is_file()):
        raise ConfigError(
            f"{source}: a pipeline, not a run's settings",
            "Name a preset, and the pipeline as a setting: "
            f"guidefold distill sd15 pipeline.source={source} run=runs/NAME",
        )
    if there and path.is_dir():
        path = RunFolder(path).config
        if not path.is_file():
            raise ConfigError(f"{source}: no config.toml in this folder", "Name a run's folder.")
        return path
    if there:
        return path
    raise ConfigError(
        f"{shown(source)}: no such file, run folder or preset", f"Presets: {', '.join(presets())}."
    )


def presets() -> list[str]:
    """Names of the presets that come with Guidefold."""
    folder = Path(str(files("guidefold.run") / "presets"))
    return sorted(path.stem for path in folder.glob("*.toml"))


def dump_toml(settings: Settings) -> str:
    """Settings as TOML that :func:`load_settings` reads back to equal settings."""
    values = settings.model_dump(mode="json", exclude_none=True)
    head = {k: v for k, v in values.items() if not isinstance(v, dict)}
    lines = [f"{key} = {_toml(value)}" for key, value in head.items()]
    for name, table in values.items():
        if isinstance(table, dict) and table:
            lines += ["", f"[{name}]", *(f"{key} = {_toml(v)}" for key, v in table.items())]
    return "\n".join(lines) + "\n"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _apply(values: dict[str, Any], override: str) -> str:
    """Set one override in nested tables; return its dotted key."""
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"{_named(override)}: not key=value", "Example: distill.steps=500")
    value = _override_value(override, text)
    table = values
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{_named(override)}: '{shown(part)}' is not a table")
    table[parts[-1]] = value
    return ".".join(parts)


def _override_value(override: str, text: str) -> Any:
    """A value as TOML reads it; a bare word is text."""
    if unencodable(text):  # bytes on the command line that are not UTF-8
        raise ConfigError(f"{_named(override)}: {unencodable(text)}")
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except ValueError as error:
        raise ConfigError(
            f"{_named(override)}: a whole number of {len(text):,} characters",
            f"The largest that a setting takes, seed, is 2**63 - 1 ({LARGEST_SEED}).",
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{_named(override)}: brackets nested too deep") from error


def _named(override: str) -> str:
    return f"override '{shown(override)}'"


def _complaint(
    error: ValidationError, file: str, text: str, origins: dict[str, str]
) -> tuple[str, str]:
    """Turn pydantic's errors into messages with place, field and value, misspelt names first."""
    lines = []
    details = error.errors()
    for detail in sorted(details, key=lambda detail: detail["type"] != "extra_forbidden"):
        kind, location = detail["type"], [str(part) for part in detail["loc"]]
        if kind == "missing" and isinstance(detail["loc"][-1], int):  # the second of a pair
            kind, location = "tuple_type", location[:-1]
        key = ".".join(location)
        named = _override_at_fault(key, detail, origins)
        line = None if named else _line_of(text, location)
        where = origins[named] if named else f"{file}:{line}" if line else file
        message = WORDS.get(kind, detail["msg"]).format(key=key, **detail.get("ctx", {}))
        message += {"missing": _needed, "extra_forbidden": _meant}.get(kind, _given)(key, detail)
        place = f"{where}: {key}" if key else where  # two tables at odds name themselves
        lines.append(f"{place}: {message}")
    return "\n".join(dict.fromkeys(lines)), HINT


def _override_at_fault(key: str, detail: Mapping[str, Any], origins: Iterable[str]) -> str | None:
    """The override that gave a setting; of a whole table, the one whose name the complaint has."""
    words = re.findall(r"\w+", detail["msg"])
    for origin in origins:
        if f"{key}.".startswith(f"{origin}."):
            return origin
        misspelt = detail["type"] == "extra_forbidden"  # the table itself
        if origin.startswith(f"{key}.") and (misspelt or origin.rpartition(".")[2] in words):
            return origin
    return None


def _needed(key: str, _detail: Mapping[str, Any]) -> str:
    return f", but needed: {NEEDED[key]}" if key in NEEDED else ""


def _meant(key: str, _detail: Mapping[str, Any]) -> str:
    """The settings that a misspelt name comes near; of a name without its table, those it ends."""
    known = list(_keys(Settings))
    near = [name for name in known if name.endswith(f".{key}")]
    near = near or get_close_matches(key, known, n=1, cutoff=0.75)
    return f". Did you mean {' or '.join(near)}?" if near else ""


def _given(_key: str, detail: Mapping[str, Any]) -> str:
    return _value(detail["input"])


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every setting and table by its dotted name."""
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")


def _value(value: object) -> str:
    return "" if isinstance(value, dict) else f" (got {shown(_digits(value))})"


def _digits(value: object) -> str:
    """A value as it is written in TOML; of a number too long for that, its size."""
    try:
        return in_words(value)
    except ValueError:
        return "a number of thousands of digits"


def _line_of(text: str, location: list[str]) -> int | None:
    """Line of a dotted key in a TOML file, else of its table, as near as its plain layout tells."""
    wanted, table, best, found = ".".join(location), "", "", None
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if line.startswith("["):
            table = named = line.lstrip("[").partition("]")[0].strip()
        else:
            key = line.partition("=")[0].strip()
            named = f"{table}.{key}" if table else key
        if f"{wanted}.".startswith(f"{named}.") and len(named) > len(best):
            best, found = named, number
    return found


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
