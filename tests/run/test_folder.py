"""A run's folder: where things lie in it, and that one process at a time writes to it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from guidefold.ground.errors import RunError
from guidefold.run import folder
from guidefold.run.folder import RunFolder, locked, require_run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_s_files_lie_where_every_version_has_put_them() -> None:
    run = RunFolder("runs/mine")
    assert {name: str(path) for name, path in vars(run).items()} == {
        "path": "runs/mine",
        "config": "runs/mine/config.toml",
        "probe": "runs/mine/probe.json",
        "probe_conditions": "runs/mine/probe-conditions.json",
        "trajectories": "runs/mine/trajectories",
        "log": "runs/mine/log.jsonl",
        "adapter": "runs/mine/adapter",
        "metadata": "runs/mine/adapter/guidefold.json",
        "export": "runs/mine/export",
        "evaluation": "runs/mine/evaluation",
        "pictures": "runs/mine/evaluation/pictures.jsonl",
        "index": "runs/mine/evaluation/index.json",
        "results": "runs/mine/results.json",
        "grid": "runs/mine/grid.png",
        "previews": "runs/mine/previews",
        "preview_index": "runs/mine/previews/previews.json",
        "page": "runs/mine/report.html",
        "samples": "runs/mine/samples",
        "hub": "runs/mine/hub",
        "trackers": "runs/mine/trackers",
    }
    assert str(run.round(2)) == "runs/mine/trajectories/round-2"
    assert str(run.checkpoint(40)) == "runs/mine/checkpoints/step-0000040"
    assert (str(run), run.name) == ("runs/mine", "mine")


def test_rounds_are_those_that_recording_has_begun(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.rounds() == []
    for number in (1, 0):
        run.round(number).mkdir(parents=True)
    assert run.rounds() == [run.round(0), run.round(1)]


def test_a_run_has_begun_once_its_settings_stand(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run has begun here"):
        require_run(tmp_path)
    (tmp_path / "config.toml").touch()
    assert require_run(str(tmp_path)).path == tmp_path


class TestLock:
    def test_refuses_a_second_run_on_one_folder_and_names_the_first(self, tmp_path: Path) -> None:
        with (
            locked(tmp_path / "run"),
            pytest.raises(RunError, match=f"in use by another Guidefold process.*{os.getpid()}"),
            locked(tmp_path / "run"),
        ):
            pass

    def test_falls_when_the_work_ends_or_fails(self, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError), locked(tmp_path):
            raise ZeroDivisionError
        with locked(tmp_path):
            pass

    def test_of_work_that_wrote_nothing_leaves_no_new_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError), locked(tmp_path / "new"):
            raise ZeroDivisionError
        assert names(tmp_path) == []
        with pytest.raises(ZeroDivisionError), locked(tmp_path / "new"):
            (tmp_path / "new" / "file").touch()
            raise ZeroDivisionError
        assert names(tmp_path / "new") == ["file"]

    def test_leaves_no_file_behind_whether_the_work_ends_or_fails(self, tmp_path: Path) -> None:
        with locked(tmp_path):
            assert names(tmp_path) == [".lock"]
        assert names(tmp_path) == []
        with pytest.raises(ZeroDivisionError), locked(tmp_path):
            raise ZeroDivisionError
        assert names(tmp_path) == []

    def test_is_taken_anew_where_the_holder_removed_the_file_since_it_was_opened(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lock, opened = folder.lock_descriptor, []

        def late(descriptor: int, **options: bool) -> bool:
            if not opened:
                (tmp_path / ".lock").unlink()
            opened.append(descriptor)
            return bool(lock(descriptor, **options))

        monkeypatch.setattr(folder, "lock_descriptor", late)
        with locked(tmp_path):
            assert names(tmp_path) == [".lock"]
            with pytest.raises(RunError, match="in use"), locked(tmp_path):
                pass
        assert len(opened) == 3

    def test_is_left_out_where_nobody_can_write_and_this_work_only_reads(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with locked(tmp_path, reading=True) as writable:
            assert writable
        monkeypatch.setattr(os, "access", lambda *_: False)  # a test may run as root
        with locked(tmp_path, reading=True) as writable:
            assert not writable
        with pytest.raises(RunError, match="cannot be written to"), locked(tmp_path):
            pass
        assert names(tmp_path) == []

    def test_of_another_process_is_refused_with_that_process_named(self, tmp_path: Path) -> None:
        holding = (
            "import sys; from pathlib import Path; from guidefold.run.folder import locked\n"
            "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, "-c", holding, str(tmp_path)], **pipes) as other:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(RunError, match=rf"\(pid {other.pid}\)"), locked(tmp_path):
                pass
            assert (tmp_path / ".lock").read_text() == f"pid {other.pid}"
        with locked(tmp_path):
            pass

    def test_of_a_process_that_came_first_stays_where_the_second_made_the_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with locked(tmp_path / "run"):
            with monkeypatch.context() as late:
                late.setattr(Path, "exists", lambda _: False)  # it looked before the first began
                with pytest.raises(RunError, match="in use"), locked(tmp_path / "run"):
                    pass
            assert names(tmp_path / "run") == [".lock"]

    def test_of_a_dead_process_does_not_block(self, tmp_path: Path) -> None:
        killed = (
            "import os, signal, sys; from pathlib import Path\n"
            "from guidefold.run.folder import locked\n"
            "with locked(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
        )
        done = subprocess.run([sys.executable, "-c", killed, str(tmp_path)], check=False)
        assert done.returncode == -9
        assert (tmp_path / ".lock").read_text().startswith("pid ")
        with locked(tmp_path):
            assert (tmp_path / ".lock").read_text() == f"pid {os.getpid()}"
