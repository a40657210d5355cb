"""``guidefold compare`` as a process: it says where its page is, and Ctrl-C ends it at once."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from painter import Painter
from terminal import ENVIRONMENT
from typer.testing import CliRunner

from guidefold import api
from guidefold.cli import main as cli
from guidefold.cli.compare import compare
from guidefold.draw.draw import PictureRequest
from guidefold.draw.pictures import Drawn
from guidefold.ground.errors import InputError
from guidefold.run.config import dump_toml
from guidefold.run.settings import Settings
from guidefold.show.live import Comparison


@pytest.fixture(scope="module")
def trained(settings_for: Any, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("compare")
    settings: Settings = settings_for("sd15", folder)
    api.distill(settings)
    api.export(settings)
    slow = settings.evaluate.model_copy(update={"steps": 900})  # time to stop a drawing
    settings = settings.model_copy(update={"evaluate": slow})
    (folder / "run" / "config.toml").write_text(dump_toml(settings), encoding="utf-8")
    return settings


@pytest.fixture
def process(trained: Settings) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "guidefold", "compare", trained.run]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=ENVIRONMENT, **pipes) as started:
        yield started
        started.kill()


def address_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Open "):
            return line.removeprefix("Open ").strip()
    raise AssertionError(process.communicate())


@pytest.mark.parametrize("drawing", [False, True])
def test_ctrl_c_ends_it_at_once_also_while_it_draws(
    process: subprocess.Popen[str], drawing: bool
) -> None:
    page, _, token = address_of(process).partition("?token=")
    if drawing:
        wish = json.dumps({"prompt": "a red cat", "seed": 0, "strength": 1}).encode()
        headers = {"X-Guidefold-Token": token, "Content-Type": "application/json"}
        headers |= {"Origin": page.rstrip("/")}
        asked = urllib.request.Request(f"{page}drawings", wish, headers)
        with urllib.request.urlopen(asked) as answer:
            begun = f"{page}drawings/{json.load(answer)['id']}"
        done = 0
        while not done:
            with urllib.request.urlopen(urllib.request.Request(begun, headers=headers)) as answer:
                done = json.load(answer)["done"]
    process.send_signal(signal.SIGINT)
    told, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert told.endswith("Closed.\n")
    assert not said
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(page)


class Swallowing(Painter):
    """Gets Ctrl-C at its first step, in code of a library that goes on all the same."""

    def draw_anew(
        self, requests: Sequence[PictureRequest], on_step: Callable[[int], None]
    ) -> Drawn:
        def step(count: int) -> None:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            on_step(count)

        super().draw_anew(requests, step)
        raise SystemExit("it drew on after Ctrl-C")


def test_ctrl_c_ends_a_drawing_at_its_next_step_also_where_a_library_swallows_it(
    trained: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Swallowing()
    live.begin(Comparison(prompt="a red cat", seed=0, strength=1))
    monkeypatch.setattr("guidefold.show.open_live", lambda _settings: nullcontext(live))
    before = signal.getsignal(signal.SIGINT)
    try:
        compare(Path(trained.run))
    finally:
        signal.signal(signal.SIGINT, before)
    assert live.painted == []


@pytest.mark.parametrize("name", ["starlette", "uvicorn"])
def test_without_the_extra_it_says_how_to_have_it(
    trained: Settings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(
        "guidefold.cli.compare.find_spec", lambda asked: None if asked == name else "there"
    )
    with pytest.raises(InputError, match=f"{name} is not installed") as caught:
        compare(Path(trained.run))
    assert "pip install 'guidefold[compare]'" in caught.value.remedy


def test_a_run_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run"):
        compare(tmp_path / "nosuch")


@pytest.mark.parametrize("port", ["80", "65536", "x"])
def test_a_port_that_is_none_of_a_users_is_refused(tmp_path: Path, port: str) -> None:
    answer = CliRunner().invoke(cli.app, ["compare", str(tmp_path), "--port", port])
    assert answer.exit_code == 2
    assert "--port" in answer.output
