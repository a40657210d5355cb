"""When continuous integration walks the whole zoo: whenever it may matter."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "seam-is-unchanged"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A branch that has just left origin/main."""
    git(tmp_path, "init", "-q", "-b", "main")
    commit(tmp_path, "README.md", "src/guidefold/listen/capture.py", "tests/zoo/road.py")
    git(tmp_path, "update-ref", "refs/remotes/origin/main", "HEAD")
    commit(tmp_path, "docs/log.md")
    return tmp_path


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def commit(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        with (folder / file).open("a", encoding="utf-8") as stream:
            stream.write("more\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "a commit")


def unchanged(folder: Path) -> bool:
    done = subprocess.run([str(SCRIPT)], cwd=folder, capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("README.md", True),
        ("src/guidefold/show/report.py", True),
        ("src/guidefold/listen/capture.py", False),
        ("src/guidefold/pipeline/open.py", False),
        ("tests/zoo/road.py", False),
        ("constraints.txt", False),
    ],
)
def test_the_files_that_a_branch_changes_decide(clone: Path, file: str, expected: bool) -> None:
    commit(clone, file)
    commit(clone, "README.md")
    assert unchanged(clone) == expected


def test_what_is_not_committed_counts(clone: Path) -> None:
    assert unchanged(clone)
    (clone / "src/guidefold/lora").mkdir()
    (clone / "src/guidefold/lora/adapter.py").write_text("")
    assert not unchanged(clone)


def test_a_merge_on_main_is_compared_with_its_first_parent(clone: Path) -> None:
    git(clone, "checkout", "-qb", "topic", "refs/remotes/origin/main")
    commit(clone, "README.md")
    git(clone, "checkout", "-q", "main")
    git(clone, "merge", "-q", "--no-ff", "topic")
    git(clone, "update-ref", "refs/remotes/origin/main", "HEAD")
    assert unchanged(clone)


def test_where_nothing_can_be_compared_it_counts_as_changed(clone: Path, tmp_path: Path) -> None:
    git(clone, "update-ref", "refs/remotes/origin/main", "HEAD")  # a landing without a merge
    assert not unchanged(clone)
    git(clone, "update-ref", "-d", "refs/remotes/origin/main")
    assert not unchanged(clone)
    shutil.rmtree(clone / ".git")
    assert not unchanged(clone)
