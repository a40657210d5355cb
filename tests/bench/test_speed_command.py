"""``guidefold bench speed`` at the command line: tables, JSON, and a word for every mistake."""

import json
from pathlib import Path
from typing import Any

import pytest
from bench.conftest import Run
from bench.small import as_toml, small_values

from guidefold.bench.speed.denoisers import WholePipeline

QUICK = ("--batch", 1, "--steps", 2, "--rounds", 1, "--device", "cpu", "--rank", 2)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(as_toml(small_values(32, 64)), encoding="utf-8")
    return path


def test_the_bundled_teacher_is_measured_without_a_word(run: Run) -> None:
    code, out, err = run("bench", "speed", *QUICK)
    assert (code, err) == (0, "")
    for words in (
        "denoiser alone, and from prompt to picture",
        "2 steps",
        "threads: 1",
        "batch 1, eager, denoiser alone",
        "batch 1, eager, denoiser alone, processor time",
        "batch 1, eager, from prompt to picture",
        "CFG teacher",
        "student, fused",
    ):
        assert words in out


def test_json_is_all_that_standard_output_holds(run: Run, small: Path) -> None:
    code, out, err = run("bench", "speed", "--arch", small, "--size", 64, "--json", *QUICK)
    values: dict[str, Any] = json.loads(out)
    assert code == 0
    assert "Measuring speed" in err
    passes = {row["way"]: row["passes_per_picture"] for row in values["rows"]}
    assert passes == {"cfg": 4, "unguided": 2, "loaded": 2, "fused": 2, "selective": 3}
    assert {row["clock"] for row in values["rows"]} == {"denoiser", "processor"}
    told = values["machine"]
    assert (told["steps"], told["rounds"], told["size"], told["dtype"]) == (2, 1, 64, "fp32")
    assert "random weights: denoiser alone" in told["measured"]
    assert told["adapter"]["from"] == "random"


def besides_progress(out: str) -> list[str]:
    """The lines of a result: all but those of the probe's progress."""
    return [line for line in out.splitlines() if not line.startswith("Probing the pipeline ")]


@pytest.mark.parametrize(
    ("arguments", "complaint", "remedy"),
    [
        (("--arch", "sd16"), "--arch sd16", "Use sd15"),
        (("bundled", "--arch", "sd15"), "two things", "Name one"),
        (("--batch", 0), "--batch 0", "Use 1 or more"),
        (("--rounds", 0), "--rounds 0", "Use 1 or more"),
        (("--device", "nowhere"), "--device nowhere", "Use --device auto"),
        (("--arch", "sd15", "--size", 500), "--size 500", "has 512"),
        (("no/such/place",), "no/such/place", "model_index.json"),
        (("--adapter", "nowhere"), "--adapter nowhere", "guidefold distill"),
    ],
)
def test_a_wrong_argument_ends_with_its_name_and_a_remedy(
    run: Run, arguments: tuple[object, ...], complaint: str, remedy: str
) -> None:
    code, out, err = run("bench", "speed", *arguments)
    assert code == 2
    assert complaint in err
    assert remedy in err
    assert not besides_progress(out)


def test_ctrl_c_prints_no_half_of_a_result(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(WholePipeline, "run", stopped)
    code, out, err = run("bench", "speed", *QUICK)
    assert code == 130
    assert not besides_progress(out)
    assert "Traceback" not in err
