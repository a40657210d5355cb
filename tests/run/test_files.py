"""A file is finished or absent, also when the process is killed in the middle."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from inspect import getsource
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from guidefold.ground.errors import CorruptFileError, FailedError, NonFiniteError
from guidefold.run import files as runs
from guidefold.run.tensors import read_metadata, read_tensors, write_tensors

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


WRITES = {
    "text": lambda path: runs.write_text(path, "new 🐈"),
    "json": lambda path: runs.write_json(path, {"new": [1, 2.5]}),
    "bytes": lambda path: runs.write_bytes(path, b"\0new"),
    "tensors": lambda path: write_tensors(path, TENSORS, {"new": 1}),
}
every_write = pytest.mark.parametrize("kind", WRITES)


@every_write
@pytest.mark.usefixtures("umask")
def test_a_written_file_is_readable_for_others_and_alone(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    WRITES[kind](path)
    assert oct(path.stat().st_mode)[-3:] == "644"
    assert names(path.parent) == ["file"]


@every_write
def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_return(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    sync, rename = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        events.append(("flushed", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        sync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        events.append(("renamed", path.name))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    WRITES[kind](tmp_path / "x")
    assert events == [("flushed", ".x.part"), ("renamed", ".x.part"), ("flushed", tmp_path.name)]


def test_a_folder_is_flushed_file_by_file_before_it_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points: list[str] = []
    seen: list[bool] = []

    def reached(point: str) -> None:
        points.append(point)
        seen.append((tmp_path / "f").exists())

    monkeypatch.setattr(runs, "reached", reached)
    with runs.finished_folder(tmp_path / "f") as folder:
        runs.write_text(folder / "a", "a")
    file = ["file: before flush", "file: before rename", "file: after rename"]
    ends = ["folder: before rename", "folder: after rename"]
    assert points == [*file, "folder: before manifest", *file, *ends]
    assert seen == [False] * (len(points) - 1) + [True]


@every_write
def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FailedError, match=f"{path}: cannot be written .No space left on device"):
        WRITES[kind](path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_tensors_that_find_no_room_are_told_by_file_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "Error while serializing: I/O error: No space left on device (os error 28)"

    def full(*_: object) -> None:
        raise SafetensorError(said)

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(FailedError) as caught:
        write_tensors(tmp_path / "t.safetensors", TENSORS)
    told = f"{tmp_path}/t.safetensors: cannot be written (No space left on device)"
    assert caught.value.message == told
    assert names(tmp_path) == []


@every_write
def test_a_file_where_none_can_be_is_told_by_its_own_name(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedError, match=f"{tmp_path}/file/new: cannot be written .*exists"):
        WRITES[kind](tmp_path / "file" / "new")


def test_a_line_or_a_folder_that_finds_no_room_is_told_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FailedError, match=f"{tmp_path}/l: cannot be written .No space left"):
        runs.append_line(tmp_path / "l", {"step": 0})
    with (
        pytest.raises(FailedError, match=f"{tmp_path}/f/x: cannot be written .No space left"),
        runs.finished_folder(tmp_path / "f") as folder,
    ):
        runs.write_text(folder / "x", "x")
    with (
        pytest.raises(FailedError, match=f"{tmp_path}/l/f: cannot be written .Not a directory"),
        runs.finished_folder(tmp_path / "l" / "f"),
    ):
        pass


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    views = {**TENSORS, "view": TENSORS["a"].T, "half": torch.ones(2, dtype=torch.bfloat16)}
    digest = write_tensors(path, views, {"z": 1, "a": [None, "ü"]})
    assert digest == runs.sha256(path)
    back = read_tensors(path)
    assert back.keys() == views.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in views.items())
    assert read_metadata(path) == {"z": 1, "a": [None, "ü"]}


def test_equal_tensors_and_metadata_are_equal_files(tmp_path: Path) -> None:
    metadata = {str(k): k for k in range(20)}
    digests = {write_tensors(tmp_path / f"{k}", TENSORS, metadata) for k in range(8)}
    assert len(digests) == 1


def test_metadata_of_a_stranger_s_file_is_none(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(TENSORS, tmp_path / "t", {"other": "1"})
    assert read_metadata(tmp_path / "t") is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_that_are_not_finite_are_refused_by_name(
    bad: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    tensors = {**TENSORS, "wrong": torch.tensor([0.0, bad], dtype=dtype)}
    with pytest.raises(NonFiniteError, match="'wrong'"):
        write_tensors(tmp_path / "t", tensors)
    assert names(tmp_path) == []


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="without tensors"):
        write_tensors(tmp_path / "t", {})
    assert names(tmp_path) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_json_that_is_not_finite_is_refused(bad: float, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="j: a number"):
        runs.write_json(tmp_path / "j", {"deep": [1, {"x": bad}]})
    with pytest.raises(ValueError, match="JSON compliant"):
        runs.append_line(tmp_path / "lines", {"x": bad})
    assert names(tmp_path) == []


class TestLines:
    def test_finished_lines_come_back_and_a_torn_one_does_not(self, tmp_path: Path) -> None:
        path = tmp_path / "l"
        assert runs.read_lines(path) == []
        for step in range(3):
            runs.append_line(path, {"step": step, "text": "a\nü\u2028"})
        whole = path.read_bytes()
        rows = [{"step": step, "text": "a\nü\u2028"} for step in range(3)]
        for length in range(len(whole) + 1):
            path.write_bytes(whole[:length])
            assert runs.read_lines(path) == rows[: whole[:length].count(b"\n")]

    def test_a_torn_line_is_dropped_before_the_next_is_added(self, tmp_path: Path) -> None:
        path = tmp_path / "l"
        path.write_bytes(b'{"step": 0}\n{"step": 1, "lo\xc3')
        runs.append_line(path, {"step": 1})
        assert runs.read_lines(path) == [{"step": 0}, {"step": 1}]
        assert path.read_bytes().count(b"\n") == 2

    def test_a_damaged_finished_line_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "l"
        path.write_bytes(b'{"step": 0}\n{"step": 1\xff}\n{"step": 2}\n')
        with pytest.raises(CorruptFileError, match=r"l:2: not valid JSON"):
            runs.read_lines(path)

    def test_a_line_is_on_the_disk_before_the_return(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lengths = []
        path = tmp_path / "l"
        monkeypatch.setattr(os, "fsync", lambda _: lengths.append(path.stat().st_size))
        runs.append_line(path, {"step": 0})
        assert lengths == [path.stat().st_size] == [len(path.read_text())]
        assert runs.read_lines(path) == [{"step": 0}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with runs.finished_folder(tmp_path / "f") as temporary:
        write_tensors(temporary / "t.safetensors", TENSORS)
        runs.write_json(temporary / "state.json", {"step": 1})
    return tmp_path / "f"


class TestCheckFolder:
    def test_accepts_what_was_written(self, folder: Path) -> None:
        runs.check_folder(folder)
        assert names(folder.parent) == ["f"]

    @pytest.mark.parametrize("name", ["t.safetensors", "state.json"])
    def test_refuses_a_truncated_file_by_name(self, folder: Path, name: str) -> None:
        path = folder / name
        size = path.stat().st_size
        os.truncate(path, size - 1)
        with pytest.raises(CorruptFileError, match=f"{name}: {size - 1} bytes instead of {size}"):
            runs.check_folder(folder)

    @pytest.mark.parametrize("name", ["t.safetensors", "state.json"])
    def test_refuses_any_flipped_bit_by_name(self, folder: Path, name: str) -> None:
        path = folder / name
        whole = path.read_bytes()
        for byte in range(len(whole)):
            path.write_bytes(flipped(whole, byte, byte % 8))
            with pytest.raises(CorruptFileError, match=f"{name}: its bytes"):
                runs.check_folder(folder)

    def test_refuses_a_missing_file_by_name(self, folder: Path) -> None:
        (folder / "state.json").unlink()
        with pytest.raises(CorruptFileError, match=r"state\.json: missing"):
            runs.check_folder(folder)

    def test_refuses_a_folder_without_manifest(self, folder: Path) -> None:
        (folder / runs.MANIFEST).unlink()
        with pytest.raises(CorruptFileError, match="no MANIFEST"):
            runs.check_folder(folder)

    @pytest.mark.parametrize(
        "content", ["[]", "{}", "5", '"all"', "null", '{"state.json": []}', "{"]
    )
    def test_refuses_a_manifest_that_names_no_files_with_the_remedy(
        self, folder: Path, content: str
    ) -> None:
        (folder / runs.MANIFEST).write_text(content)
        with pytest.raises(CorruptFileError, match=r"MANIFEST\.json: ") as caught:
            runs.check_folder(folder)
        assert f"rm -r '{folder}'" in caught.value.remedy

    def test_refuses_a_file_that_the_manifest_does_not_name(self, folder: Path) -> None:
        manifest = runs.read_json(folder / runs.MANIFEST)
        del manifest["t.safetensors"]
        (folder / runs.MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(CorruptFileError, match=r"t\.safetensors: not named in"):
            runs.check_folder(folder)

    def test_does_not_mind_what_a_desktop_hides_in_it(self, folder: Path) -> None:
        (folder / ".DS_Store").touch()
        runs.check_folder(folder)

    def test_any_flipped_bit_of_the_manifest_is_refused_or_harmless(self, folder: Path) -> None:
        path = folder / runs.MANIFEST
        whole = path.read_bytes()
        refused = 0
        for position in range(8 * len(whole)):
            path.write_bytes(flipped(whole, position // 8, position % 8))
            try:
                runs.check_folder(folder)
            except CorruptFileError as error:
                assert str(folder) in error.message
                refused += 1
        assert refused > 0.9 * 8 * len(whole)  # spaces may turn into other white space


def flipped(whole: bytes, byte: int, bit: int) -> bytes:
    return whole[:byte] + bytes([whole[byte] ^ (1 << bit)]) + whole[byte + 1 :]


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\x08\0\0\0\0\0\0\0{}"])
def test_what_is_no_tensor_file_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(content)
    for read in (read_tensors, read_metadata):
        with pytest.raises(CorruptFileError, match=r"t\.safetensors: not a whole safetensors"):
            read(path)


@pytest.mark.parametrize("content", [b"", b"{", b'"\xff"'])
def test_what_is_no_json_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "j.json"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"j\.json:(1:)? not valid (JSON|UTF-8)"):
        runs.read_json(path)


KILLED = """
import json, os, signal, sys
from pathlib import Path
from guidefold.run import files as runs
from guidefold.run.tensors import read_metadata, read_tensors, write_tensors
root = Path(sys.argv[1])

def scenes():
    def lines(run):
        runs.append_line(run / "l", {"step": 0})
        return lambda: runs.append_line(run / "l", {"step": 1})
    def file(run):
        runs.write_text(run / "x", "old")
        return lambda: runs.write_text(run / "x", "new")
    def folder(run):
        def write(text):
            with runs.finished_folder(run / "f") as temporary:
                runs.write_text(temporary / "x", text)
        write("old")
        return lambda: write("new")
    return {"lines": lines, "file": file, "folder": folder}

for name, prepare in scenes().items():
    for count in range(1000):
        run = root / f"{name}-{count}"
        run.mkdir()
        action = prepare(run)
        child = os.fork()
        if not child:
            passed = []
            def reached(point):
                passed.append(point)
                if len(passed) > count:
                    (run / "point").write_text(point)
                    os.kill(os.getpid(), signal.SIGKILL)
            runs.reached = reached
            action()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break
"""


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, "-c", KILLED, str(root)], check=True)
    return root


@pytest.fixture
def killed(killed_once: Path, tmp_path: Path) -> dict[str, list[Path]]:
    """Folders of writes that were killed at every named point in turn, by what was written."""
    shutil.copytree(killed_once, tmp_path / "killed")
    found: dict[str, list[Path]] = {}
    order = sorted((tmp_path / "killed").iterdir(), key=lambda run: int(run.name.split("-")[1]))
    for run in order:
        if (run / "point").exists():
            found.setdefault(run.name.split("-")[0], []).append(run)
    return found


def test_every_named_point_was_a_place_of_death(killed: dict[str, list[Path]]) -> None:
    named = set(re.findall(r'reached\("(.*)"\)', getsource(runs)))
    died_at = {(run / "point").read_text() for scenes in killed.values() for run in scenes}
    assert died_at == named != set()


def test_a_file_killed_while_it_is_written_is_the_old_or_the_new(
    killed: dict[str, list[Path]],
) -> None:
    contents = {(run / "point").read_text(): (run / "x").read_text() for run in killed["file"]}
    assert contents == {
        "file: before flush": "old",
        "file: before rename": "old",
        "file: after rename": "new",
    }
    for run in killed["file"]:
        runs.write_text(run / "x", "newer")
        assert names(run) == ["point", "x"]


def test_lines_killed_while_one_is_added_are_whole(killed: dict[str, list[Path]]) -> None:
    assert [len(runs.read_lines(run / "l")) for run in killed["lines"]] == [1, 2]


def test_a_folder_killed_while_it_is_written_is_the_old_or_the_new(
    killed: dict[str, list[Path]],
) -> None:
    contents = []
    for run in killed["folder"]:
        runs.restore_folder(run / "f")
        runs.check_folder(run / "f")
        contents.append((run / "f" / "x").read_text())
    assert contents == ["old"] * (len(contents) - 1) + ["new"]


def test_a_folder_is_written_over_what_a_kill_left(killed: dict[str, list[Path]]) -> None:
    for run in killed["folder"]:
        with runs.finished_folder(run / "f") as temporary:
            runs.write_text(temporary / "x", "newer")
        runs.check_folder(run / "f")
        assert runs.read_json(run / "f" / runs.MANIFEST).keys() == {"x"}
        assert names(run) == ["f", "point"]
