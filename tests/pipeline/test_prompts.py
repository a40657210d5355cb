"""Prompts from every kind of file; every complaint names file and line."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from guidefold.ground.errors import PromptError
from guidefold.pipeline.prompts import (
    BUNDLED,
    Prompt,
    count_duplicates,
    load_prompts,
    split_prompts,
)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def texts(path: Path) -> list[str]:
    return [prompt.text for prompt in load_prompts(path)]


GOOD = {
    "lines.txt": "a cat\na dog\n",
    "no-newline-at-end.txt": "a cat\na dog",
    "blank-lines.txt": "\na cat\n\n  \na dog\n\n",
    "byte-order-mark.txt": b"\xef\xbb\xbfa cat\na dog\n",
    "windows.txt": "a cat\r\na dog\r\n",
    "spaces-around.txt": "  a cat\t\n\ta dog \n",
    "twice.txt": "a cat\na dog\na cat\n",
    "UPPER.TXT": "a cat\na dog\n",
    "prompt.csv": "id,prompt\n1,a cat\n2,a dog\n",
    "text.csv": "text\na cat\na dog\n",
    "caption.csv": "caption,id\na cat,1\na dog,2\n",
    "prompt-before-text.csv": "text,prompt\nx,a cat\ny,a dog\n",
    "quoted.csv": '"prompt"\n"a cat"\n"a dog"\n',
    "mark-and-windows.csv": b"\xef\xbb\xbfprompt\r\na cat\r\na dog\r\n",
    "objects.jsonl": '{"prompt": "a cat"}\n\n{"text": "a dog"}\n',
    "strings.jsonl": '"a cat"\n"a dog"',
}


@pytest.mark.parametrize("name", GOOD)
def test_reads(name: str, tmp_path: Path) -> None:
    assert texts(write(tmp_path / name, GOOD[name])) == ["a cat", "a dog"]


def test_a_quoted_csv_field_may_hold_commas_quotes_and_newlines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'prompt,id\n"a ""cat"",\nasleep",1\na dog,2\n')
    assert texts(path) == ['a "cat",\nasleep', "a dog"]


def test_reads_beyond_the_basic_plane(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.txt", "a 🐈\nein Hündchen\n")) == ["a 🐈", "ein Hündchen"]


def test_reads_a_folder_of_captioned_pictures(tmp_path: Path) -> None:
    for name, caption in {"b.PNG": "a\n dog\n", "a.jpeg": "a cat"}.items():
        write(tmp_path / name, b"")
        write((tmp_path / name).with_suffix(".txt"), caption)
    write(tmp_path / "notes.md", "not a picture")
    assert texts(tmp_path) == ["a cat", "a dog"]
    assert load_prompts(tmp_path)[1].source == str(tmp_path / "b.txt")


def test_a_prompt_knows_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a cat\n\na dog\n")
    assert [prompt.source for prompt in load_prompts(path)] == [f"{path}:1", f"{path}:3"]


BAD: dict[str, tuple[str | bytes, str]] = {
    "a.txt": (b"a cat\na d\xffg\n", "a.txt:2: not valid UTF-8 at byte 3"),
    "first-byte.txt": (b"\xff\xfea\0", "first-byte.txt:1: not valid UTF-8 at byte 0"),
    "nul.txt": ("a cat\na d\0g\n", "nul.txt:2: the prompt holds a NUL character"),
    "one.txt": ("a cat\n\n", "one.txt: too few prompts (1)"),
    "same.txt": ("a cat\na cat \n", "same.txt: too few prompts (1)"),
    "none.txt": ("", "none.txt: too few prompts (0)"),
    "bytes.csv": (b"prompt\na cat\n\xc3\n", "bytes.csv:3: not valid UTF-8 at byte 0"),
    "empty-column.csv": ("id,prompt\n1,a cat\n2,\n", "empty-column.csv:3: empty prompt"),
    "short-row.csv": ("id,prompt\n1\n", "short-row.csv:2: empty prompt"),
    "no-column.csv": ("id,title\n1,a cat\n", "no-column.csv:1: no column named prompt, text or"),
    "empty.csv": ("", "empty.csv:1: no column named"),
    "twice.csv": ("prompt,id,prompt\na cat,1,a dog\n", "twice.csv:1: 'prompt' stands twice"),
    "twice.jsonl": (
        '{"prompt": "a cat"}\n{"prompt": "a dog", "height": 16, "height": 32}\n',
        "twice.jsonl:2: 'height' stands twice in one object",
    ),
    "quotes.csv": ('prompt\n"a" cat\n', "quotes.csv:2: not a CSV line"),
    "open-quote.csv": ('prompt\n"a cat\na dog\n', "open-quote.csv:3: not a CSV line"),
    "bytes.jsonl": (b'"a cat"\n"\x80"\n', "bytes.jsonl:2: not valid UTF-8 at byte 1"),
    "broken.jsonl": (
        '{"prompt": "a cat"}\n{"prompt": \n',
        "broken.jsonl:2: not valid JSON (Expecting value at column 12)",
    ),
    "no-field.jsonl": ('"a cat"\n{"_title": "x"}\n', "no-field.jsonl:2: no field named prompt"),
    "list.jsonl": ('["a cat"]\n', "list.jsonl:1: a list, where text or an object is expected"),
    "absent.jsonl": ('"a cat"\n{"image": "a.png"}\n', "absent.jsonl:2: no such file"),
    "same-row.jsonl": ('{"seed": 1, "size": 2}\n{"size": 2, "seed": 1}', "too few prompts (1)"),
    "number.jsonl": (
        '{"prompt": 7}\n',
        "number.jsonl:1: the prompt is a number, not text",
    ),
    "null.jsonl": (
        '{"prompt": null}\n',
        "null.jsonl:1: the prompt is nothing, not text",
    ),
    "blank.jsonl": ('"a cat"\n" "\n', "blank.jsonl:2: empty prompt"),
    "surrogate.jsonl": (
        '"a cat"\n"\\ud800"\n',
        "surrogate.jsonl:2: the prompt holds half of a surrogate pair",
    ),
    "damaged.parquet": (b"PAR1" * 9, "damaged.parquet: not a Parquet file"),
    "empty.parquet": (b"", "empty.parquet: not a Parquet file"),
    "prompts.json": ("[]", "prompts.json: prompts cannot be read from a '.json' file"),
    "bare": ("a cat\na dog\n", "bare: prompts cannot be read from a file without an ending"),
    "folder/a.png": (b"", "a.png: no caption"),
    "other/a.md": ("a cat", "other: no pictures in this folder"),
}
"""Each with what must be said of it; conditions that no file can have are tested by themselves."""


def bad_source(name: str, tmp_path: Path) -> Path:
    path = write(tmp_path / name, BAD[name][0])
    return path.parent if "/" in name else path


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_reported_by_place(name: str, tmp_path: Path) -> None:
    with pytest.raises(PromptError) as caught:
        load_prompts(bad_source(name, tmp_path))
    assert BAD[name][1] in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"absent\.txt: no such file or folder"):
        load_prompts(tmp_path / "absent.txt")


def table(path: Path, **columns: list[Any]) -> Path:
    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


@pytest.mark.parametrize("column", ["prompt", "text", "caption"])
def test_a_parquet_file_gives_back_what_was_written(tmp_path: Path, column: str) -> None:
    written = [f"prompt {k}, ein Hündchen" for k in range(5)]
    path = table(tmp_path / "a.parquet", id=list(range(5)), **{column: written})
    assert texts(path) == written
    assert load_prompts(path)[3].source == f"{path}, row 4"


def test_a_parquet_file_s_complaints_name_the_row_or_the_column(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", prompt=["a cat", "a dog", None])
    with pytest.raises(PromptError, match=r"a\.parquet, row 3: the prompt is nothing, not text"):
        load_prompts(path)
    with pytest.raises(PromptError, match="no column named prompt, text or caption"):
        load_prompts(table(tmp_path / "b.parquet", title=["a cat", "a dog"]))


def test_without_pyarrow_a_parquet_file_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path / "a.parquet", prompt=["a cat", "a dog"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PromptError, match="reading it needs pyarrow") as caught:
        load_prompts(path)
    assert "guidefold[parquet]" in caught.value.remedy
    path = write(tmp_path / "a.txt", "a cat\na dog\n")
    assert texts(path) == ["a cat", "a dog"]


def test_a_caption_that_is_no_file_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "a.png", b"")
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(PromptError, match=r"a\.txt: not a file, but a folder"):
        load_prompts(tmp_path)


@pytest.mark.parametrize("name", [name for name in BAD if name != "bare"])
def test_a_bad_file_is_reported_before_a_pipeline_is_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from guidefold import session
    from guidefold.run.settings import Settings

    def opened(*_args: object, **_options: object) -> None:
        pytest.fail("a pipeline was opened")

    monkeypatch.setattr(session, "open_placed", opened)
    source = bad_source(name, tmp_path)
    values = {"run": f"{tmp_path}/run", "pipeline": {"source": "x"}, "prompts": {"path": source}}
    settings = Settings.model_validate(json.loads(json.dumps(values, default=str)))
    with pytest.raises(PromptError), session.open_session(settings):
        pass
    assert not (tmp_path / "run").exists()


# Rows with further fields


def rows(folder: Path, *values: dict[str, Any]) -> list[Prompt]:
    """Read rows, with a red picture ``a.png`` and a green ``b.png`` beside them."""
    folder.mkdir(exist_ok=True)
    for name, colour in (("a.png", "red"), ("b.png", "green")):
        Image.new("RGB", (2, 2), colour).save(folder / name)
    lines = [json.dumps(value) for value in values]
    return load_prompts(write(folder / "rows.jsonl", "\n".join(lines)))


def test_a_row_s_further_fields_are_columns_in_the_order_of_their_names(tmp_path: Path) -> None:
    one, two = rows(
        tmp_path,
        {"text": "a cat", "strength": 0.5, "image": ["a.png", "b.png"], "_note": "c.png"},
        {"prompt": "a dog", "text": "is an argument then"},
    )
    assert one.text == "a cat"
    assert list(one.values) == ["image", "strength"]
    assert [media.path.name for media in one.values["image"]] == ["a.png", "b.png"]
    assert two.values == {"text": "is an argument then"}
    assert two.source.endswith("rows.jsonl:2")


def test_rows_need_no_prompt_and_are_shown_by_what_they_hold(tmp_path: Path) -> None:
    one, two = rows(
        tmp_path, {"class_labels": [1, 2], "image": "a.png"}, {"class_labels": [3], "prompt": "x"}
    )
    assert one.text == ""
    assert one.label == "class_labels 1, 2, image a.png"
    assert two.label == "x"


@pytest.mark.parametrize(
    "other",
    [{"image": "b.png"}, {"image": "a.png", "eta": 0}, {"mask": "a.png"}, {"image": ["a.png"]}, {}],
)
def test_the_same_text_with_other_columns_is_another_prompt(tmp_path: Path, other: Any) -> None:
    one, two = rows(tmp_path, {"prompt": "a cat", "image": "a.png"}, {"prompt": "a cat", **other})
    assert one.key != two.key
    assert one.digest != two.digest


def test_a_prompt_is_named_by_what_its_files_hold_wherever_they_lie(tmp_path: Path) -> None:
    asked = [{"prompt": "a cat", "image": name} for name in ("a.png", "b.png")]
    here, there = rows(tmp_path / "here", *asked), rows(tmp_path / "there", *asked)
    assert [p.key for p in here] == [p.key for p in there]
    assert [p.digest for p in here] == [p.digest for p in there]
    assert split_prompts(here, 0.5) == (
        [p for p in here if p.key in {t.key for t in split_prompts(there, 0.5)[0]}],
        [p for p in here if p.key in {t.key for t in split_prompts(there, 0.5)[1]}],
    )


def test_the_key_of_a_prompt_without_columns_is_its_text() -> None:
    prompt = Prompt.of("a cat")
    assert prompt.key == prompt.label == prompt.text == "a cat"
    assert prompt.digest == hashlib.sha256(b"a cat").hexdigest()
    assert Prompt.of(prompt) is prompt


def test_rows_that_hold_the_same_are_kept_once_and_counted(tmp_path: Path) -> None:
    row = {"prompt": "a cat", "image": "a.png"}
    assert len(rows(tmp_path, row, {**row, "image": "b.png"}, dict(reversed(row.items())))) == 2
    assert count_duplicates(tmp_path / "rows.jsonl") == 1


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"prompt {k}", f"a.txt:{k}") for k in range(count)]


def test_a_split_keeps_the_asked_share_and_loses_nothing() -> None:
    training, held_out = split_prompts(prompts(2000), 0.2)
    assert sorted(p.text for p in training + held_out) == sorted(p.text for p in prompts(2000))
    assert abs(len(held_out) - 400) < 60  # three standard deviations


def test_a_prompt_stays_on_its_side_when_the_list_grows_or_turns() -> None:
    _, few = split_prompts(prompts(500), 0.1)
    _, many = split_prompts(prompts(1000)[::-1], 0.1)
    assert {p.text for p in few} == {p.text for p in many} & {p.text for p in prompts(500)}


@pytest.mark.parametrize("share", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("count", [2, 3])
def test_no_side_of_a_split_is_empty(share: float, count: int) -> None:
    assert all(split_prompts(prompts(count), share))


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_list_is_read_by_its_name(name: str) -> None:
    assert all(split_prompts(load_prompts(name), 0.1))


def test_duplicates_are_counted_as_they_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "a cat\na dog\na cat\na cat\n")
    assert len(load_prompts(path)) == 2
    assert count_duplicates(path) == 2
    assert count_duplicates("world") == 0


def test_a_caption_that_leads_out_of_its_folder_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (2, 2)).save(folder / "a.png")
    (folder / "a.txt").symlink_to(write(tmp_path / "secret.txt", "a secret"))
    with pytest.raises(PromptError, match=r"a\.txt: leads out of the folder"):
        load_prompts(folder)
