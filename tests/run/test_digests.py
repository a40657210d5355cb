"""Tables carry their own digest: an altered one is refused by file and line, an old one is read."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guidefold.ground.errors import CorruptFileError
from guidefold.run import files as runs
from guidefold.run.digests import DIGEST, checked, with_digest

TABLE = {"index": 3, "guidance": 4.75, "split": "held-out", "timesteps": [961, 1.5e-7], "é": None}


def test_a_digest_is_the_sha_256_of_the_other_keys_sorted_and_without_spaces() -> None:
    plain = json.dumps(TABLE, sort_keys=True, separators=(",", ":"))
    written = with_digest(TABLE)
    assert list(written) == [*TABLE, DIGEST]
    assert written[DIGEST] == hashlib.sha256(plain.encode()).hexdigest()[:16]
    assert checked(written, "here", "") == TABLE
    assert with_digest(written) == written


def test_a_digest_is_that_of_what_is_read_back() -> None:
    table = {"pair": (1, 2), "by number": {10: "a", 9: "b"}, "small": 1e-300, "zero": -0.0}
    read = json.loads(json.dumps(with_digest(table)))
    assert checked(read, "here", "")["by number"] == {"10": "a", "9": "b"}


def written_as_file(path: Path) -> Callable[[], Any]:
    runs.write_record(path, TABLE)
    return lambda: runs.read_json(path, "Mend it.")


def written_as_line(path: Path) -> Callable[[], Any]:
    runs.append_line(path, {"index": 2})
    runs.append_line(path, TABLE)
    return lambda: runs.read_lines(path)


@pytest.mark.parametrize("write", [written_as_file, written_as_line])
def test_any_flipped_bit_is_refused_by_place_or_changes_nothing(
    tmp_path: Path, write: Callable[[Path], Callable[[], Any]]
) -> None:
    path = tmp_path / "run.json"
    read = write(path)
    whole, before, refused = path.read_bytes(), read(), 0
    for position in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            found = read()
        except CorruptFileError as error:
            assert str(path) in error.message
            assert error.remedy
            refused += 1
        else:
            # The key itself: a table alone without a digest is one of version 0.1.0, with its
            # content whole. The last line break: a torn line.
            if isinstance(found, dict):
                assert TABLE.items() <= found.items()
            else:
                assert found in (before, before[:-1])
    assert refused > 0.9 * 8 * len(whole)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_line_that_lost_its_digest_is_found_among_others_that_have_theirs(
    tmp_path: Path, lost: int
) -> None:
    path = tmp_path / "lines.jsonl"
    for step in range(3):
        runs.append_line(path, {"step": step})
    lines = path.read_text().splitlines()
    lines[lost - 1] = json.dumps({"step": 7})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(CorruptFileError, match=rf"jsonl:{lost}: its digest is missing"):
        runs.read_lines(path)


def test_an_old_file_is_read_as_it_is_and_gets_all_its_digests_with_its_next_line(
    tmp_path: Path,
) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"st')
    assert runs.read_lines(path) == [{"step": 0}, {"step": 1}]
    runs.append_line(path, {"step": 2})
    assert runs.read_lines(path) == [{"step": k} for k in range(3)]
    assert all(DIGEST in json.loads(line) for line in path.read_text().splitlines())
    table = tmp_path / "table.json"
    table.write_text('{"step": 0}')
    assert runs.read_json(table) == {"step": 0}


DEEP = "[" * 100_000 + "]" * 100_000
BROKEN = {
    "nested": '{"a": ' + DEEP + "}",
    "long": '{"a": ' + "9" * 5000 + "}",
    "not finite": '{"a": NaN}',
    "half": '{"a": ',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_what_no_parser_takes_is_refused_by_place(tmp_path: Path, text: str) -> None:
    path = tmp_path / "j"
    path.write_text(text + "\n")
    with pytest.raises(CorruptFileError, match=r"j: not valid JSON"):
        runs.read_json(path)
    with pytest.raises(CorruptFileError, match=r"j:1: not valid JSON"):
        runs.read_lines(path)
    with pytest.raises(CorruptFileError, match=r"j:1: not valid JSON"):
        runs.append_line(path, {"step": 1})


def test_a_line_that_is_no_table_and_a_file_that_is_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "l").write_text('{"a": 1}\n[5]\n')
    with pytest.raises(CorruptFileError, match="l:2: holds no table"):
        runs.read_lines(tmp_path / "l")
    (tmp_path / "folder").mkdir()
    for name, said in (("folder", "not a file, but a folder"), ("absent", "cannot be read")):
        with pytest.raises(CorruptFileError, match=f"{name}: {said}"):
            runs.read_json(tmp_path / name)
