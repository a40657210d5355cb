"""The package runs where a system has only what Windows has too."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from guidefold.run import files as runs
from guidefold.run.config import dump_toml
from guidefold.run.settings import Settings

WITHOUT_POSIX = """
import importlib, os, pkgutil, sys
import filelock, diffusers, peft, psutil, transformers, torch._dynamo  # theirs to run everywhere
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"):
    sys.modules[name] = None
for name in ("sysconf", "O_DIRECTORY", "getuid", "geteuid", "fork", "fchmod", "killpg", "mkfifo"):
    delattr(os, name)

import guidefold
modules = [m.name for m in pkgutil.walk_packages(guidefold.__path__, "guidefold.")]
for name in modules:
    if not name.endswith("__main__"):
        importlib.import_module(name)

from pathlib import Path
from guidefold import api
from guidefold.bench.memory.plan import memory_of
memory = importlib.import_module("guidefold.pipeline.memory")
memory.STATUS = Path("no such file")
assert memory_of("cpu") > 2**28
settings = api.load_settings(sys.argv[1])
api.record(settings)
api.distill(settings)
print(len(modules), api.export(settings))
"""


def test_a_run_needs_nothing_that_only_posix_systems_have(
    settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = settings_for("sd15", tmp_path)
    config = tmp_path / "run.toml"
    config.write_text(dump_toml(settings), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_POSIX, str(config)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    count, folder = done.stdout.splitlines()[-1].split(" ", 1)
    assert int(count) > 100
    assert (Path(folder) / "pytorch_lora_weights.safetensors").exists()


def test_a_name_that_windows_does_not_let_go_of_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").write_text("new")
    (tmp_path / "name").write_text("old")
    refusals, pauses, replace = [PermissionError(), PermissionError()], [], Path.replace

    def refused(path: Path, target: Path) -> Path:
        if refusals:
            raise refusals.pop()
        return replace(path, target)

    with monkeypatch.context() as windows:
        windows.setattr(Path, "replace", refused)
        windows.setattr(runs.time, "sleep", pauses.append)
        with pytest.raises(PermissionError):  # elsewhere a refusal is final
            runs._rename(tmp_path / "old", tmp_path / "name")
        refusals.append(PermissionError())
        old, name = tmp_path / "old", tmp_path / "name"
        windows.setattr(os, "name", "nt")
        runs._rename(old, name)
    assert pauses == [0.1, 0.5]
    assert (tmp_path / "name").read_text() == "new"


def test_text_has_the_same_bytes_on_every_system(tmp_path: Path) -> None:
    runs.write_text(tmp_path / "a.txt", "one\ntwo ü\n")
    assert (tmp_path / "a.txt").read_bytes() == b"one\ntwo \xc3\xbc\n"


RESERVED = set('<>:"|?*')


def test_no_file_of_the_package_has_a_name_that_windows_refuses() -> None:
    names = [path.name for path in Path(runs.__file__).parent.rglob("*")]
    assert not [name for name in names if RESERVED & set(name) or name.endswith((".", " "))]
    assert len({name.lower() for name in names}) == len(set(names))
