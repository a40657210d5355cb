"""The paper's claims beside ours: what is run, what is not, and what the page says."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from guidefold.bench.choices import select
from guidefold.bench.fidelity.compare import MethodResult
from guidefold.bench.fidelity.tables import to_json
from guidefold.bench.reproduce import PARTS, Part, fidelity_part, reproduce
from guidefold.ground.errors import ConfigError, FailedError

SPREAD = {"median": 0.52, "low": 0.5, "high": 0.55}


def memory(scale: int) -> list[dict[str, Any]]:
    peaks = {
        "full-fine-tuning-ema": (20, 0.0),
        "plain-distillation": (23, -0.155),
        "lora-distillation": (10, 0.51),
        "8-bit-optimizer": (3, 0.876),
        "8-bit-weights": (2, 0.924),
    }
    return [
        {"case": case, "peak_bytes": gib * scale * 2**30, "saving": saving}
        for case, (gib, saving) in peaks.items()
    ]


def speed() -> dict[str, Any]:
    common = {"form": "eager", "seconds_per_picture": SPREAD, "ratio_to_unguided": SPREAD}
    rows = [
        {
            **common,
            "way": way,
            "title": way,
            "batch": batch,
            "clock": clock,
            "passes_per_picture": 20.0,
            "ratio_to_cfg": SPREAD | {"median": 0.5 + batch / 100},
        }
        for way in ("cfg", "fused")
        for batch in (1, 4)
        for clock in ("denoiser", "end to end")
    ]
    facts = dict.fromkeys(("device", "threads", "dtype", "size", "steps", "rounds"), "x")
    return {"rows": rows, "machine": facts, "notes": ["It did not compile."]}


def fidelity() -> list[dict[str, Any]]:
    level = {"low": 1.0, "high": 9.0, "residual": 0.4, "states": 3}
    states = {"mean": 0.4, "levels": [level]}
    both = {"teacher_states": states, "student_states": states}
    shares = {"teacher": 0.8, "unguided": 0.4, "guidefold": 0.76, "paper-lora": 0.6}
    found = [
        MethodResult(
            method=name,
            title=name,
            seed=seed,
            training_passes=9,
            passes=20.0,
            alignment=share,
            categories={"a": share},
            distance=0.5,
            frechet_distance=1.0,
            recall=0.5,
            residual=both,
            curve=[(9, 0.4)],
        )
        for name, share in shares.items()
        for seed in (0, 1)
    ]
    return to_json(found)


RESULTS = {"memory": memory(1), "speed": speed(), "fidelity": fidelity()}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that were run; each prints its part's result."""
    commands: list[list[str]] = []

    def run(command: list[str], **_options: Any) -> Any:
        commands.append(command)  # python -m guidefold bench WHICH ...
        return subprocess.CompletedProcess(command, 0, json.dumps(RESULTS[command[4]]))

    monkeypatch.setattr("guidefold.bench.reproduce.subprocess.run", run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return commands


def parts(out: Path) -> list[Part]:
    named = [p for p in PARTS if p.name in ("memory-sd15", "speed-bundled", "memory-sdxl-cuda")]
    return [*named, fidelity_part(out, 2, ["seed=1"])]


def test_every_part_is_a_command_that_the_command_line_knows() -> None:
    from typer.main import get_command

    from guidefold.cli.main import app

    for part in (*PARTS, fidelity_part(Path("out"), 3, ["evaluate.prompts=2"])):
        command: Any = get_command(app)
        arguments = list(part.arguments)
        while hasattr(command, "commands"):
            command = command.commands[arguments.pop(0)]
        command.make_context(part.name, [*arguments, "--json"], resilient_parsing=False)


def test_what_needs_a_device_that_is_not_here_is_left_out_and_said(
    tmp_path: Path, ran: list[list[str]]
) -> None:
    page = reproduce(tmp_path, parts(tmp_path)).read_text()
    assert [command[3:6] for command in ran] == [
        ["bench", "memory", "--arch"],
        ["bench", "speed", "bundled"],
        ["bench", "fidelity", "demo"],
    ]
    (line,) = (line for line in page.splitlines() if "SDXL, measured on CUDA" in line)
    assert "Not measured yet: it needs a CUDA device." in line
    assert "`guidefold bench memory --arch sdxl --how cuda`" in line


def test_the_page_sets_our_figure_beside_the_papers(tmp_path: Path, ran: list[list[str]]) -> None:
    page = reproduce(tmp_path, parts(tmp_path)).read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    claims = {row[0].removeprefix("| "): row[1:3] for row in rows if len(row) > 2}
    assert claims["ordinary distillation takes more memory"] == ["+16 %", "+15.5%"]
    assert claims["LoRA distillation takes less"] == ["-51 %", "-51.0%"]
    assert claims["inference takes less time"] == ["-40 %", "-46.0%"], "fused, largest batch"
    own = claims["alignment over the CFG teacher's: Guidefold's default"]
    assert own == ["no loss", "0.950 ± 0.000"]
    assert "It did not compile." in page


def test_what_is_finished_is_not_run_again(tmp_path: Path, ran: list[list[str]]) -> None:
    first = reproduce(tmp_path, parts(tmp_path)).read_text()
    count = len(ran)
    assert reproduce(tmp_path, parts(tmp_path)).read_text() == first
    assert len(ran) == count


def test_a_part_that_fails_is_named_and_leaves_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_options: Any) -> Any:
        return subprocess.CompletedProcess(command, 1, "")

    monkeypatch.setattr("guidefold.bench.reproduce.subprocess.run", run)
    with pytest.raises(FailedError, match="guidefold bench memory --arch sd15"):
        reproduce(tmp_path, parts(tmp_path))
    assert not list((tmp_path / "paper").iterdir())


def test_pictures_of_the_fidelity_runs_come_along(tmp_path: Path, ran: list[list[str]]) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "grid.png").write_bytes(b"a picture")
    page = reproduce(tmp_path, parts(tmp_path)).read_text()
    assert (tmp_path / "paper" / "grid.png").read_bytes() == b"a picture"
    assert "(paper/grid.png)" in page


def test_an_unknown_part_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match="no such part") as caught:
        select(PARTS, ["fid"], "part")
    assert "speed-sd15" in str(caught.value)
