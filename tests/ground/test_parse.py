"""Every parser of Guidefold against every hostile input: one sentence, with place, and no hang."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guidefold.bench.memory import load_architecture
from guidefold.deliver.lora_file import read_lora
from guidefold.ground import parse
from guidefold.ground.errors import ConfigError, CorruptFileError, GuidefoldError
from guidefold.pipeline.open import pipeline_class
from guidefold.pipeline.prompts import read_prompts
from guidefold.run.config import load_settings
from guidefold.run.files import read_json, read_lines
from guidefold.run.tensors import read_metadata, read_tensors

LEVELS = 100_000
DIGITS = "9" * 5000
NESTED = "[" * LEVELS + "]" * LEVELS


def with_metadata(value: str) -> bytes:
    """A safetensors file of one tensor, with a text under Guidefold's key."""
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"__metadata__": {"guidefold": value}, "a": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


def settings_of(path: Path) -> object:
    return load_settings(path)


def index_of(path: Path) -> object:
    return pipeline_class(str(path.parent))


def architecture_of(path: Path) -> object:
    return load_architecture(str(path))


JSON = {
    "nesting": NESTED,
    "nested tables": '{"a": ' * 2000 + "1" + "}" * 2000,
    "as deep as the parser takes": "[" * 500 + "]" * 500,
    "digits": f'{{"a": {DIGITS}}}',
    "no number": '{"a": NaN}',
    "no JSON": "{",
    "a name twice": '{"a": 1, "b": {"c": 1, "c": 2}}',
}
TOML = {
    "nesting": f"a = {NESTED}",
    "dotted names": f"{'a.' * 5000}a = 1",
    "digits": f"seed = {DIGITS}",
    "no TOML": "a =",
    "a name twice": "seed = 1\nseed = 2",
}
TEXT = {"not UTF-8": b"\xff\xfe\x00", "NUL": b"\0", "half a pair": b"\xed\xa0\x80"}

PARSERS: dict[str, tuple[str, Callable[[Path], object], dict[str, Any]]] = {
    "settings": ("run.toml", settings_of, {**TOML, **TEXT}),
    "an architecture": ("arch.toml", architecture_of, {**TOML, **TEXT}),
    "JSON-lines prompts": (
        "p.jsonl",
        read_prompts,
        {
            **{name: f'{{"prompt": "a cat"}}\n{text}' for name, text in JSON.items()},
            "NUL in a prompt": '{"prompt": "a\\u0000b"}',
            "NUL in a field": '{"prompt": "a", "negative_prompt": "a\\u0000b"}',
            "half a pair in a field": '{"prompt": "a", "negative_prompt": ["\\ud800"]}',
            "no size": '{"prompt": "a", "height": 0}',
            "a switch for a size": '{"prompt": "a", "width": true}',
            "a file of a long name": f'{{"prompt": "a", "image": "{"a" * 5000}.png"}}',
            **TEXT,
        },
    ),
    "text prompts": ("p.txt", read_prompts, {**TEXT, "NUL": "a cat\na\0dog"}),
    "tables of prompts": ("p.csv", read_prompts, {**TEXT, "NUL": "prompt\na\0dog"}),
    "Parquet prompts": ("p.parquet", read_prompts, {"no Parquet": "PAR1"}),
    "model_index.json": ("model_index.json", index_of, {**JSON, **TEXT}),
    "JSON of a run": ("probe.json", read_json, {**JSON, **TEXT}),
    "lines of a run": (
        "log.jsonl",
        read_lines,
        {name: f"{text}\n" for name, text in JSON.items()},
    ),
    "tensors": ("a.safetensors", read_tensors, {"empty": b"", "short": b"\1", **TEXT}),
    "metadata": (
        "a.safetensors",
        read_metadata,
        {name: with_metadata(text) for name, text in JSON.items()} | {"empty": b""},
    ),
    "a LoRA": (
        "a.safetensors",
        read_lora,
        {name: with_metadata(text) for name, text in JSON.items()}
        | {
            "empty": b"",
            "no tensors": struct.pack("<Q", 2) + b"{}",
            "a header that is nested": struct.pack("<Q", len(NESTED)) + NESTED.encode(),
            "a strength of text": with_metadata('{"strength": "much"}'),
            "findings of no table": with_metadata('{"findings": 3}'),
            "findings without denoisers": with_metadata('{"findings": {}}'),
            "an unknown format": with_metadata('{"format": "gguf"}'),
        },
    ),
}


@pytest.mark.parametrize(
    ("parser", "input_name"),
    [(parser, name) for parser, (_, _, inputs) in PARSERS.items() for name in inputs],
)
def test_what_breaks_a_parser_is_one_sentence_with_the_file(
    tmp_path: Path, parser: str, input_name: str
) -> None:
    name, read, inputs = PARSERS[parser]
    path, content = tmp_path / name, inputs[input_name]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GuidefoldError) as caught:
        read(path)
    message = caught.value.message
    assert str(path) in message
    assert len(message) < 700
    assert message.count("\n") == 0


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, parser: str, kind: str) -> None:
    name, read, _ = PARSERS[parser]
    path = tmp_path / name
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(GuidefoldError) as caught:
        read(path)
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize("read", [settings_of, read_prompts, architecture_of])
def test_a_name_that_no_file_system_holds_is_no_file(tmp_path: Path, read: Any) -> None:
    with pytest.raises(GuidefoldError) as caught:
        read(tmp_path / f"{'a' * 5000}.toml")
    assert caught.value.exit_code == 2
    assert len(caught.value.message) < 700


def test_the_line_of_a_long_number_or_of_the_deepest_nesting_is_named() -> None:
    for text, line in ((f'{{"a": 1,\n"b": {DIGITS}}}', 2), (f'{{"a": [1],\n\n"b": {NESTED}}}', 3)):
        with pytest.raises(CorruptFileError, match=rf"^f\.json: not valid .*, in line {line}\)$"):
            parse.parse_json(text, "f.json", CorruptFileError)
        with pytest.raises(CorruptFileError, match=r"^f\.json:7: not valid JSON \("):
            parse.parse_json(text, "f.json", CorruptFileError, line=7)
    with pytest.raises(ConfigError, match=r"^f\.toml: .* whole number of 5,000 .*, in line 2$"):
        parse.parse_toml(f"a = 1\nb = {DIGITS}", "f.toml", ConfigError)


def test_the_place_of_a_text_that_does_not_end_is_named_in_words() -> None:
    with pytest.raises(CorruptFileError, match=r"Unterminated string starting at column 7\)$"):
        parse.parse_json('{"a": "b', "f.json", CorruptFileError, line=1)


def test_the_name_that_stands_twice_is_named_with_its_line() -> None:
    twice = JSON["a name twice"]
    with pytest.raises(ConfigError, match=r"^f\.jsonl:7: 'c' stands twice in one object$"):
        parse.parse_json(twice, "f.jsonl", ConfigError, line=7)
    with pytest.raises(
        ConfigError, match=r"^f\.toml:2: not a TOML file: a name that stands twice$"
    ):
        parse.parse_toml(TOML["a name twice"], "f.toml", ConfigError)


def test_values_and_their_kinds_are_told_in_plain_words() -> None:
    for value, kind in ((None, "nothing"), ({}, "a table"), ([], "a list"), ("a", "text")):
        assert parse.kind_of(value) == kind
    assert [parse.in_words(value) for value in (None, True, [1.5, "a"], "a")] == [
        *("not set", "true", "[1.5, 'a']", "'a'")
    ]
    assert parse.kind_of_file(Path("a.bin")) == "a '.bin' file"
    assert parse.kind_of_file(Path("a")) == "a file without an ending"


def test_what_is_nested_up_to_the_limit_is_read() -> None:
    text = "[" * parse.DEEPEST + "]" * parse.DEEPEST
    assert parse.parse_json(text, "f", CorruptFileError) == json.loads(text)
    with pytest.raises(CorruptFileError, match="nested more than 100 levels deep"):
        parse.parse_json(f"[{text}]", "f", CorruptFileError)


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert parse.read_json(tmp_path / "a.json", CorruptFileError) == [1]


def test_messages_show_long_paths_shortened_and_control_characters_escaped() -> None:
    assert parse.shown("a\0b\n") == "a\\x00b\\n"
    assert len(parse.shown("a" * 5000)) == parse.LONGEST_NAME
