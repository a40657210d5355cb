"""``guidefold bench``: a table for people, JSON for programs, a word for every mistake."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench.conftest import Run
from bench.small import as_toml, small_values

from guidefold.bench.memory import table as report
from guidefold.bench.memory.cases import CASES, LORA, REFERENCE


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(as_toml(small_values(32, 64)), encoding="utf-8")
    return path


def test_json_is_a_list_of_cases_that_say_all_they_depend_on(run: Run, small: Path) -> None:
    cases = ["--case", REFERENCE.name, "--case", LORA.name]
    code, out, err = run("bench", "memory", "--arch", small, "--json", *cases)
    rows = json.loads(out)
    assert code == 0
    assert "lora-distillation" in err  # progress is shown, aside
    assert [row["case"] for row in rows] == [REFERENCE.name, LORA.name]
    assert rows[0]["saving"] == 0
    assert rows[1]["saving"] == 1 - rows[1]["peak_bytes"] / rows[0]["peak_bytes"]
    assert rows[1]["how"] == "estimate"
    assert rows[1]["settings"]["batch"] == 4
    assert rows[1]["settings"]["dtype"] == "fp32"
    assert rows[1]["trained_parameters"] < rows[0]["trained_parameters"]
    assert {"guidefold", "torch", "diffusers"} <= rows[1]["versions"].keys()


def test_the_table_names_every_case_and_its_saving(run: Run, small: Path) -> None:
    cases = ["--case", REFERENCE.name, "--case", LORA.name]
    code, out, _ = run("bench", "memory", "--arch", small, "--batch", 1, *cases)
    assert code == 0
    assert "batch 1, 128 x 128" in out
    assert REFERENCE.title in out
    assert LORA.title in out
    assert "+0.0%" in out


def test_without_the_reference_no_saving_is_claimed(run: Run, small: Path) -> None:
    _, out, _ = run("bench", "memory", "--arch", small, "--json", "--case", LORA.name)
    assert json.loads(out)[0]["saving"] is None


def test_a_rung_that_a_cpu_cannot_run_says_so_in_place_of_a_number(
    run: Run, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can be run stands on the rung that cannot, without it."""
    asked = []

    def measured(case: Any, load: Any, how: str) -> report.Peak:
        asked.append((case.name, case.optimizer, how))
        return report.Peak(2**30, {}, None, 7)

    monkeypatch.setattr(report, "measure", measured)
    cases = ["--case", "8-bit-optimizer", "--case", "8-bit-weights"]
    code, out, _ = run("bench", "memory", "--arch", small, "--how", "cpu", "--json", *cases)
    optimizer, weights = json.loads(out)
    assert code == 0
    assert (optimizer["peak_bytes"], optimizer["saving"]) == (None, None)
    assert "CUDA" in optimizer["not_run"]
    assert weights["peak_bytes"] == 2**30
    assert weights["settings"]["optimizer"] == "adamw"
    assert asked == [("8-bit-weights", "adamw", "cpu")]
    assert "not run: bitsandbytes" in run("bench", "memory", "--how", "cpu", *cases)[1]


@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [
        ("--arch", "sd16", "Use sd15"),
        ("--how", "cuda", "Use --how estimate"),
        ("--batch", "0", "Use 1 or more"),
        ("--rank", "0", "Use 1 or more"),
        ("--size", "500", "has 512"),
        ("--case", "full", "Use full-fine-tuning"),
    ],
)
def test_a_wrong_argument_ends_with_its_name_and_a_remedy(
    run: Run, monkeypatch: pytest.MonkeyPatch, option: str, value: str, remedy: str
) -> None:
    monkeypatch.setattr(report.torch.cuda, "is_available", lambda: False)
    code, out, err = run("bench", "memory", option, value)
    assert code == 2
    assert f"{option} {value}" in err
    assert remedy in err
    assert out == ""


@pytest.mark.parametrize(
    ("command", "option", "value", "choices"),
    [
        ("memory", "--how", "guess", "estimate, cpu, cuda"),
        ("memory", "--dtype", "fp8", "fp32, fp16, bf16"),
        ("memory", "--targets", "most", "attention, linear, portable, all"),
        ("speed", "--dtype", "fp8", "fp32, fp16, bf16"),
        ("speed", "--targets", "most", "attention, linear, portable, all"),
    ],
)
def test_a_wrong_choice_ends_with_its_option_and_all_choices(
    run: Run, command: str, option: str, value: str, choices: str
) -> None:
    code, out, err = run("bench", command, option, value)
    assert code == 2
    assert f"Invalid value for '{option}'" in err
    assert f"'{value}' is not one of " in err
    assert choices in err.replace("'", "")
    assert out == ""


def test_ctrl_c_ends_with_its_code_and_no_traceback(
    run: Run, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "estimate", stopped)
    code, _, err = run("bench", "memory", "--arch", small)
    assert code == 130
    assert "Traceback" not in err


def test_help_answers_without_importing_torch() -> None:
    lines = "import sys; from guidefold.cli import main; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", lines], check=True)


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len({case.title for case in CASES}) == len(CASES)
