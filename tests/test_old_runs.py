"""A run made by the first version, before its code moved into wings, still does what it did.

``tests/fixtures/run-0.1.0`` was made at commit 93eef55, with ``run-0.1.0.toml`` beside it:
``guidefold distill run-0.1.0.toml``, ``evaluate``, ``export --format all``; the fused weights, the
page and the grid were left out for their size.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from guidefold import api
from guidefold.demo.judge import judge_of
from guidefold.run.settings import Settings

MADE = Path(__file__).parent / "fixtures" / "run-0.1.0"
MEASURED = {"seconds", "training_seconds", "peak_memory"}  # not the same twice
# Up to 0.1.0 states of one timestep could fall into several levels, sorted by their errors.
LEVELS = {"levels", "residual_guidance"}
OF_THE_MACHINE = {"versions", "machine", "denoiser_seconds_per_image"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MADE, tmp_path / "run"))


def settings(run: Path, *overrides: str) -> Settings:
    return api.load_settings(run, [f"run={run}", *overrides])


def log(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED | LEVELS} for line in lines]


def close(found: Any, told: Any) -> bool:
    """Equal within what floating-point sums differ by from one machine to another.

    Later versions may write more keys.
    """
    if isinstance(told, dict):
        keys = told.keys() - OF_THE_MACHINE - {"guidefold", "denoiser_seconds_per_image_fused"}
        return found.keys() >= keys and all(close(found[k], told[k]) for k in keys)
    if isinstance(told, list):
        return len(found) == len(told) and all(map(close, found, told))
    if isinstance(told, float):
        return bool(found == pytest.approx(told, rel=1e-3, abs=1e-5))
    return bool(found == told)


def test_a_stopped_run_goes_on_to_the_same_adapter(run: Path) -> None:
    last = run / "checkpoints" / "step-0000006"
    shutil.rmtree(last)
    assert api.distill(settings(run)) == last
    for name in ("adapter.safetensors", "optimizer.safetensors"):
        found, told = load_file(last / name), load_file(MADE / "checkpoints" / last.name / name)
        assert found.keys() == told.keys()
        for key, tensor in told.items():
            assert torch.allclose(found[key], tensor, rtol=1e-3, atol=1e-6), (name, key)
    assert close(log(run), log(MADE))


def test_a_finished_run_writes_the_same_adapter(run: Path) -> None:
    shutil.rmtree(run / "adapter")
    folder = api.export(settings(run))
    name = "pytorch_lora_weights.safetensors"
    assert {p.name for p in folder.iterdir()} == {p.name for p in (MADE / "adapter").iterdir()}
    found, told = load_file(folder / name), load_file(MADE / "adapter" / name)
    assert found.keys() == told.keys()
    assert all(torch.equal(found[key], told[key]) for key in told)
    about = [json.loads((f / "guidefold.json").read_text()) for f in (folder, MADE / "adapter")]
    findings = about[0]["findings"]  # the first version knew neither of these
    assert findings.pop("zero_terminal_snr") is True
    assert 0 < findings["targets"].pop("portable") < findings["targets"]["all"]
    assert close(*about)
    assert [key for key in about[0] if key in about[1]] == list(about[1])


@pytest.mark.parametrize("kind", ["diffusers", "kohya", "peft"])
def test_exports_are_verified(run: Path, kind: str) -> None:
    (verdict,) = api.verify(run / "export" / kind, run)
    assert verdict.problems == ()
    assert verdict.kind == kind
    assert verdict.difference is not None
    assert verdict.difference < 1e-5


def test_what_was_drawn_is_not_drawn_again(run: Path) -> None:
    before = (run / "evaluation" / "pictures.jsonl").read_text()
    results = api.evaluate(settings(run), judge_of("bundled"))
    assert (run / "evaluation" / "pictures.jsonl").read_text() == before
    told = json.loads((MADE / "results.json").read_text())
    assert close(results, told)


def test_its_page_is_written(run: Path) -> None:
    page = api.report(settings(run)).read_text(encoding="utf-8")
    assert "measured" in page
    assert page.count("<img") >= 12
