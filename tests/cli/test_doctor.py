"""``guidefold doctor``: what is here, and what is wrong with it."""

import json
import runpy
from importlib import metadata
from pathlib import Path

import pytest
from terminal import run_here

import guidefold
from guidefold.bench.memory import GIB
from guidefold.cli import doctor as module
from guidefold.pipeline.device import Device

ROOT = Path(__file__).parents[2]
CARD = {"name": "cuda:0", "title": "a card", "free_bytes": 6 * GIB, "total_bytes": 8 * GIB}


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


def test_the_training_steps_are_held_against_the_device_that_auto_takes() -> None:
    row = {"gib": {"as_shipped": 5.5, "lean": 5.3}}
    broken = {**CARD, "name": "cuda:1", "reason": "no kernel for it"}
    found = module._fit(row, [broken, {**CARD, "reason": ""}])
    assert found["fits"] == {"as_shipped": False, "lean": True}  # a tenth of 6 GiB stays free
    assert "5.5 GiB (does not fit cuda:0), at its leanest 5.3 GiB (fits)" in module._training_line(
        found
    )
    unknown = module._fit(row, [{**CARD, "free_bytes": None, "reason": ""}])
    assert unknown["fits"] == {"as_shipped": None, "lean": None}


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


def test_the_table_has_the_settings_that_a_plan_advises() -> None:
    fits = runpy.run_path(str(ROOT / "benchmarks" / "fits.py"), run_name="fits")
    rows = module._training_steps()
    assert tuple(rows) == fits["PRESETS"]
    for preset, row in rows.items():
        assert row["lean_settings"] == fits["leanest"](preset)
        assert 0 < row["gib"]["lean"] < row["gib"]["as_shipped"]
