"""``guidefold doctor``: what is here, and what is wrong with it."""

import json
from importlib import metadata
from pathlib import Path

import pytest
from terminal import run_here

import guidefold
from guidefold.bench.memory import GIB
from guidefold.cli import doctor as module
from guidefold.pipeline.device import Device


def test_every_line_has_a_name_and_json_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_state", lambda r: {"version": "1.0", "problem": ""})
    answer, as_json = run_here("doctor"), run_here("doctor", "--json")
    assert (answer.code, as_json.code) == (0, 0), answer.err
    lines = dict(line.split(maxsplit=1) for line in answer.out.splitlines())
    found = json.loads(as_json.out)
    assert lines["guidefold"].startswith(guidefold.__version__)
    assert lines["torch"] == "1.0"
    assert set(found["libraries"]) | {"cpu", "disk", "sd15", "[compare]"} <= set(lines)
    assert "[dev]" not in lines
    assert "free" in lines["cpu"]
    assert found["disk"][0]["folder"] == str(Path.cwd())


@pytest.mark.parametrize("version", ["0.1", None])
def test_a_library_that_is_missing_or_too_old_is_named(
    monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    right = metadata.version

    def stated(name: str) -> str:
        if name == "peft":
            if version is None:
                raise metadata.PackageNotFoundError(name)
            return version
        return right(name)

    monkeypatch.setattr(metadata, "version", stated)
    answer = run_here("doctor")
    assert answer.code == 1
    (line,) = [line for line in answer.out.splitlines() if line.startswith("peft ")]
    assert "PROBLEM: missing" in line if version is None else "0.1  PROBLEM: needs >=" in line


def test_an_extra_that_is_not_there_is_named_with_the_command_that_brings_it() -> None:
    there = {"version": "2.0", "problem": ""}
    line = module._extra_line("compare", {"starlette": there, "uvicorn": {"problem": "missing"}})
    assert line == "uvicorn missing: pip install 'guidefold[compare]'"
    assert module._extra_line("compare", {"starlette": there}) == "starlette 2.0"


def test_a_preset_is_held_against_what_is_free() -> None:
    rows = {"8": None, "12": {"overrides": ["a.b=c"]}, "24": {"overrides": []}}
    said = {
        6: "needs 12 GiB",
        11.9: "needs 12 GiB",
        12: "fits with a.b=c",
        23: "fits with a.b=c",
        30: "fits",
    }
    for room, line in said.items():
        assert module._preset_line(module._fit(rows, int(room * GIB))) == line
    unknown = module._preset_line(module._fit(rows, None))
    assert unknown == "needs 12 GiB; free memory is not known"
    assert module._preset_line(module._fit({"8": None}, GIB)) == "fits no card of the table"


def test_a_torch_without_accelerators_says_so_beside_a_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only = Device("cpu", "4 cores", GIB, GIB, "")
    monkeypatch.setattr("guidefold.pipeline.list_devices", lambda: [only])
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/usr/bin/{name}")
    first, second = module._devices()
    assert "is built for the CPU alone; nvidia-smi is here" in first["reason"]
    assert module._device_line(first).startswith("cannot be used: torch ")
    assert module._device_line(second) == "4 cores, 1.0 GiB of 1.0 GiB free"
