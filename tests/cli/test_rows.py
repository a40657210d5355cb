"""A row of an inputs file that a pipeline refuses is named by its line, whichever verb meets it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from terminal import run_here
from zoo import WARNINGS

from guidefold.run.config import dump_toml
from guidefold.run.settings import Settings

pytestmark = pytest.mark.filterwarnings(*WARNINGS)

REFUSED = 3


@pytest.fixture
def config(settings_for: Callable[..., Settings], tmp_path: Path) -> Path:
    """Settings of a run whose prompts have one row that the pipeline refuses."""
    things = ("cat", "dog", "bird", "house", "red cat", "red dog")
    rows = [{"prompt": f"a {thing}", "height": 16} for thing in things]
    rows[REFUSED - 1]["height"] = 17
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    settings = settings_for(
        "sd15", tmp_path, record={"trajectories": 6, "validation_trajectories": 3}
    )
    toml = tmp_path / "run.toml"
    written = settings.model_copy(
        update={"prompts": settings.prompts.model_copy(update={"path": str(path)})}
    )
    toml.write_text(dump_toml(written), encoding="utf-8")
    return toml


def test_a_row_that_is_refused_in_recording_is_named(config: Path) -> None:
    answer = run_here("record", config)
    assert answer.code == 2, answer.err
    rows = config.parent / "rows.jsonl"
    assert answer.err.startswith(f"Error: {rows}:{REFUSED}: StableDiffusionPipeline refuses the")


def test_a_row_that_is_refused_in_drawing_is_named(config: Path) -> None:
    rows = config.parent / "rows.jsonl"
    run = config.parent / "run"
    plain = [f"prompts.path={config.parent / 'prompts.txt'}"]
    assert run_here("record", config, *plain).code == 0
    answer = run_here("sample", run, "-k", "teacher", "--inputs", rows)
    assert answer.code == 2, answer.err
    assert answer.err.startswith(f"Error: {rows}:{REFUSED}: StableDiffusionPipeline refuses the")
