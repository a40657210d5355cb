"""Write docs/configuration.md from the settings' docstrings: ``python docs/configuration.py``."""

import inspect
import re
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from guidefold.run import Settings

HEAD = """# Settings

A run is decided by a TOML file and `section.key=value` overrides on the command line, which win.
Start from a preset: `guidefold config sd15 > mine.toml`. A path starts at the folder that the
command is run in, also in a file; the run keeps it whole, and so works from any other folder. This
page is written by `python docs/configuration.py`.
"""


def meanings(section: type[BaseModel]) -> dict[str, str]:
    """The Attributes part of a docstring: field -> text."""
    text = re.sub(
        r"\n {8,}", " ", (inspect.getdoc(section) or "").split("Attributes:")[-1]
    ).replace("``", "`")
    return dict(re.findall(r"^\s*(\w+): (.+?)\s*$", text, re.M))


def default(field: FieldInfo) -> str:
    """A field's default as TOML would hold it."""
    if field.default_factory is not None:
        return "`{}`"
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return "-"
    value = field.default
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value)}`" if isinstance(value, tuple | list) else f"`{value}`"


def table(section: type[BaseModel]) -> list[str]:
    """The rows of a section."""
    meaning = meanings(section)
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in section.model_fields.items():
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            rows.append(f"| `{name}` | {default(field)} | {meaning[name]} |")
    return rows


def page() -> str:
    """The whole page."""
    lines = [HEAD, "## Top level", "", *table(Settings)]
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            lines += ["", f"## `[{name}]`", "", *table(field.annotation)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), encoding="utf-8")
