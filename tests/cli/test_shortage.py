"""Memory that runs out ends in a sentence with cheaper settings; the run goes on later."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from terminal import ENVIRONMENT, run_here
from zoo import WARNINGS

from guidefold import api
from guidefold.ground import task
from guidefold.run.config import dump_toml
from guidefold.run.settings import Settings

pytestmark = pytest.mark.filterwarnings(*WARNINGS)

CUDA = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 7.79 GiB."
CPU = "[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you tried "
CPU += "to allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)"


@pytest.fixture
def config(settings_for: Callable[..., Settings], tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    settings = settings_for("sd15", tmp_path, record={"batch_size": 2})
    path.write_text(dump_toml(settings), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("work", "error", "said"),
    [
        ("Training", torch.OutOfMemoryError(CUDA), "20.00 MiB more were asked for"),
        ("Training", RuntimeError(CPU), "4.00 GiB more were asked for"),
        ("Training", MemoryError(), "distill.gradient_checkpointing=true"),
        ("Recording", MemoryError(), "record.batch_size=1"),
        ("Recording", RuntimeError(CPU), "a smaller height and width in pipeline.call"),
    ],
)
def test_it_is_said_what_was_running_how_much_was_missing_and_what_is_cheaper(
    config: Path, monkeypatch: pytest.MonkeyPatch, work: str, error: Exception, said: str
) -> None:
    def fail(_settings: Settings) -> None:
        with task(work, 3):
            raise error

    monkeypatch.setattr(api, "open_run", fail)
    answer = run_here("distill", config)
    assert answer.code == 1
    assert answer.err.startswith(f"Error: out of memory while this was running: {work}")
    assert said in answer.err
    assert "Try pipeline.dtype=bf16, " in answer.err
    assert "the same command goes on from there" in answer.err
    assert len(answer.err.splitlines()) == 2


LIMITED = """
import resource, sys
from guidefold import api
from guidefold.cli import main as cli
from guidefold.train.distill import Training

real = Training.train_step

def limited(*arguments):
    pages = int(open("/proc/self/statm").read().split()[0])
    held = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 2**24, resource.RLIM_INFINITY))
    return real(*arguments)

Training.train_step = limited
cli.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit and its measure are Linux's")
def test_a_real_limit_ends_in_a_sentence_and_the_run_goes_on_without_it(config: Path) -> None:
    words = ["distill", str(config), "distill.batch_size=512"]
    stopped = subprocess.run(
        [sys.executable, "-c", LIMITED, *words],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert stopped.returncode == 1, stopped.stderr
    assert "Error: out of memory while this was running: Training" in stopped.stderr
    assert "Try pipeline.dtype=bf16, " in stopped.stderr
    assert "Traceback" not in stopped.stderr
    gone_on = run_here(*words)
    assert gone_on.code == 0, gone_on.err
    assert "Recording" not in gone_on.out
