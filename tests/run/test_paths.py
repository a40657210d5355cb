"""What a run's files name lies within the run; no link is read or written through."""

from pathlib import Path

import pytest

from guidefold.ground.errors import CorruptFileError, FailedError
from guidefold.run import files as runs
from guidefold.run.folder import RunFolder, locked, require_run
from guidefold.run.paths import within

OUTSIDE = ("../a", "x/../../a", "/etc/hostname", "..", "", ".", "a\0b", "..\\a", "C:\\a", "\\a")


def test_a_name_within_its_folder_is_a_path_there(tmp_path: Path) -> None:
    assert within(tmp_path, "a b.png", "index.json") == tmp_path / "a b.png"
    assert within(tmp_path, "x/y.safetensors", "index.json") == tmp_path / "x" / "y.safetensors"


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_of_its_folder_is_refused_with_the_file_that_has_it(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(CorruptFileError) as caught:
        within(tmp_path, name, "index.json", "Mend it.")
    assert caught.value.message.startswith(f"index.json: names '{name}', which lies outside")
    assert caught.value.remedy == "Mend it."


@pytest.mark.parametrize("name", ["link/a", "here"])
def test_a_name_that_leads_through_a_link_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a").touch()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "there")
    (folder / "here").symlink_to(tmp_path / "there" / "a")
    with pytest.raises(CorruptFileError, match="a symbolic link"):
        within(folder, name, "index.json")


def linked(run: Path, name: str, target: Path) -> Path:
    """A begun run with a link in the place of one of its files."""
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / "config.toml").touch()
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(target)
    return run


OWN = (
    "config.toml",
    ".lock",
    "log.jsonl",
    "probe.json",
    "probe-conditions.json",
    "results.json",
    "grid.png",
    "report.html",
    "trajectories",
    "trajectories/round-0/manifest.jsonl",
    "trajectories/round-0/.x.safetensors.part",
    "checkpoints/step-0000002",
    "checkpoints/step-0000002/state.json",
    "adapter/guidefold.json",
    "export/kohya",
    "evaluation/index.json",
    "evaluation/teacher-0.png",
    "previews/previews.json",
    "hub/README.md",
    "samples/a.png",
)


@pytest.mark.parametrize("name", OWN)
def test_a_link_among_a_run_s_files_is_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    target = tmp_path / "precious"
    target.write_text("kept\nand torn")
    run = linked(tmp_path / "run", name, target)
    before = sorted(run.rglob("*"))
    with pytest.raises(CorruptFileError, match=f"{name}: a symbolic link"), locked(run):
        pass
    with pytest.raises(CorruptFileError, match=f"{name}: a symbolic link"):
        require_run(run)
    assert sorted(run.rglob("*")) == before
    assert target.read_text() == "kept\nand torn"


def test_every_file_and_folder_of_a_run_is_looked_at_for_links_but_what_trackers_write(
    tmp_path: Path,
) -> None:
    for name, place in vars(RunFolder("run")).items():
        if name in ("path", "trackers"):
            continue
        run = linked(tmp_path / name, str(place.relative_to("run")), tmp_path)
        with pytest.raises(CorruptFileError, match="a symbolic link"):
            RunFolder(run).refuse_links()
    RunFolder(linked(tmp_path / "tracked", "trackers/latest", tmp_path)).refuse_links()
    (tmp_path / "whole").mkdir()
    (tmp_path / "by link").symlink_to(tmp_path / "whole")
    RunFolder(tmp_path / "by link").refuse_links()  # the run itself may lie elsewhere


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    target, there = tmp_path / "precious", tmp_path / "there"
    target.write_text("kept\nand torn")
    there.mkdir()
    (there / "a").touch()
    for name, place in (("lines", target), (".file.part", target), ("folder", there)):
        (tmp_path / name).symlink_to(place)
    (tmp_path / ".new.part").symlink_to(there)
    with pytest.raises(CorruptFileError, match="lines: a symbolic link"):
        runs.append_line(tmp_path / "lines", {"step": 1})
    runs.write_text(tmp_path / "file", "text")
    with (
        pytest.raises(CorruptFileError, match="folder: a symbolic link"),
        runs.finished_folder(tmp_path / "folder"),
    ):
        pass
    with runs.finished_folder(tmp_path / "new") as folder:
        runs.write_text(folder / "b", "b")
    assert target.read_text() == "kept\nand torn"
    assert [path.name for path in there.iterdir()] == ["a"]
    runs.check_folder(tmp_path / "new")


def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with runs.finished_folder(tmp_path / "f") as folder:
        runs.write_text(folder / "a", "x")
    entry = runs.read_json(tmp_path / "f" / runs.MANIFEST)["a"]
    runs.write_record(tmp_path / "f" / runs.MANIFEST, {"../precious": entry})
    with pytest.raises(FailedError, match=r"names '\.\./precious', which lies outside"):
        runs.check_folder(tmp_path / "f")
