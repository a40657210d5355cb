"""The command line in this process, for tests of benchmarks."""

import sys
from collections.abc import Callable

import pytest

from guidefold.cli import main as cli

Answer = tuple[int, str, str]


Run = Callable[..., Answer]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("bench", "memory")``: the command line in this process."""
    monkeypatch.setattr(cli, "_quiet", lambda: None)

    def command(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["guidefold", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        code = ended.value.code
        return code if isinstance(code, int) else 0, captured.out, captured.err

    return command
