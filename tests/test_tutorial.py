"""The tutorial's blocks, run in order in an empty folder; what commands print is compared."""

import doctest
import os
import re
import shlex
import subprocess
import sys
import warnings
from contextlib import chdir
from pathlib import Path

import pytest
from PIL import Image
from terminal import run_here

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.md"
IN_THIS_PROCESS = ("guidefold distill", "guidefold evaluate")
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall(TUTORIAL.read_text(encoding="utf-8"))


def shell(command: str, folder: Path) -> str:
    """Run one command line as a user would, with this environment's programs."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    quiet = {"PATH": programs, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def in_this_process(command: str, folder: Path) -> str:
    """Run one command line here, where the imports are made already."""
    with chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = run_here(*shlex.split(command)[1:])
    assert answer.code == 0, answer.out + answer.err
    return answer.out


def run_python(block: str, folder: Path) -> None:
    """Run Python in this process, where the imports are made already."""
    with chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(block, str(TUTORIAL), "exec"), {"__name__": "tutorial"})


def expectations(block: str) -> list[tuple[str, str]]:
    """Each command of a console block with what it should print."""
    parts = re.split(r"^\$ (.*)$", block, flags=re.MULTILINE)[1:]
    return [
        (command, text.lstrip("\n")) for command, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def agrees(expected: str, printed: str) -> bool:
    """Whether a text is as expected: ``...`` is anything, progress on the way is left out."""
    printed = re.sub(r"^.* \d+:\d+ left.*\n", "", printed, flags=re.MULTILINE)  # on the way
    checker = doctest.OutputChecker()
    return checker.check_output(expected, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which every block has been run, the first commands in a shell."""
    folder = tmp_path_factory.mktemp("tutorial")
    for language, block in blocks():
        if language == "python":
            run_python(block, folder)
            continue
        for command, expected in expectations(block):
            run = in_this_process if command.startswith(IN_THIS_PROCESS) else shell
            printed = run(command, folder)
            assert agrees(expected, printed), f"$ {command}\n{printed}\nexpected:\n{expected}"
    return folder


def test_the_tutorial_leaves_what_it_promises(walked: Path):
    run = walked / "runs" / "mine"
    assert (run / "adapter" / "pytorch_lora_weights.safetensors").exists()
    assert (run / "report.html").stat().st_size > 10_000
    assert (run / "previews" / "step-000030.png").exists()


def test_the_dial_changes_the_picture(walked: Path):
    half, whole = (Image.open(walked / f"strength-{s}.png") for s in (0.5, 1.0))
    assert half.size == whole.size == (64, 64)
    assert half.tobytes() != whole.tobytes()


def test_the_comparison_notices_what_is_printed_wrong():
    assert agrees("took ..., loss ...\n", "took 0:10, loss 0.5\n")
    assert not agrees("output map          whole\n", "output map          negate\n")
    assert not agrees("passes 2\n", "")


def test_every_command_of_the_tutorial_is_run():
    text = TUTORIAL.read_text(encoding="utf-8")
    fenced = [line for _, block in blocks() for line in block.splitlines()]
    assert text.count("\n```") == 2 * len(blocks())
    assert sum(line.startswith("$ guidefold") for line in fenced) == 5
