"""The kinds of values that settings take, and the table that holds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict

from guidefold.ground import in_words, unencodable

LONGEST_NAME, LONGEST_PATH = 255, 4096
"""Bytes of a file's name and of a path, on the usual file systems."""
SIZES = ("height", "width", "num_frames")
"""Arguments of pipelines' calls that count pixels and frames."""


def encodable(text: str) -> str:
    """Refuse what no tokenizer and no file system takes."""
    if reason := unencodable(text):
        raise ValueError(reason)
    return text


def _holdable(place: str) -> str:
    """Refuse a path with a name that no file system holds."""
    longest = max(len(name.encode()) for name in place.split("/"))
    if longest > LONGEST_NAME or len(place.encode()) > LONGEST_PATH:
        raise ValueError(
            f"too long for a file system: names have at most {LONGEST_NAME} bytes, and paths "
            f"{LONGEST_PATH}"
        )
    return place


# Strict: ``true`` is no number, ``2.0`` no whole one, and ``"yes"`` no switch.
Whole = Annotated[int, Strict()]
Positive = Annotated[int, Strict(), Field(ge=1)]
Number = Annotated[float, Strict()]
Switch = Annotated[bool, Strict()]
Text = Annotated[str, AfterValidator(encodable)]
Place = Annotated[Text, AfterValidator(_holdable)]


def named_offload(value: Any) -> Any:
    """The name of a kind of offloading: earlier versions wrote true and false."""
    return {True: "component", False: "none"}[value] if isinstance(value, bool) else value


Offload = Annotated[
    Literal["none", "component", "group", "sequential"], BeforeValidator(named_offload)
]
Quantization = Literal[
    "none", "bitsandbytes_4bit", "bitsandbytes_8bit", "torchao_int8", "quanto_int8"
]


def wrong_size(name: str, value: object) -> str | None:
    """Why a pipeline's call cannot take a size; None where it can, or where it is no size.

    Many pipelines put a size of their own in the place of 0, without a word.
    """
    if name not in SIZES or value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return None
    return f"{name} must be a whole number of at least 1 (got {in_words(value)})"


def leaves(value: object) -> Iterator[object]:
    """Every plain value within lists and tables."""
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value


class Section(BaseModel):
    """A table of the TOML file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
