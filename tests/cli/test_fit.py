"""Settings that fit: printed by ``plan``, used by ``distill --fit``."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from terminal import run_here
from zoo import WARNINGS

from guidefold.bench import memory
from guidefold.cli.fit import fitting
from guidefold.ground.errors import ConfigError
from guidefold.run.config import dump_toml, load_settings
from guidefold.run.settings import Settings

pytestmark = pytest.mark.filterwarnings(*WARNINGS)
Make = Callable[..., Settings]


@pytest.fixture
def settings(settings_for: Make, tmp_path: Path) -> Settings:
    return settings_for(
        "sd15",
        tmp_path,
        adapter={"targets": "attention"},
        distill={"batch_size": 4, "accumulation": 1},
    )


def test_fit_sets_what_the_free_memory_asks_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ample = memory.Choices(settings).fastest(memory.GIB)
    assert ample is not None
    monkeypatch.setattr(memory, "free_memory", lambda _: ample.peak_bytes)  # a tenth too little
    overrides = fitting(settings)
    assert overrides
    assert all(override in capsys.readouterr().out for override in overrides[:1])
    monkeypatch.setattr(memory, "free_memory", lambda _: memory.GIB)
    assert fitting(settings) == []


@pytest.mark.parametrize(("free", "word"), [(1000, "no settings fit"), (None, "cannot be asked")])
def test_fit_without_settings_that_fit_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, free: int | None, word: str
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: free)
    with pytest.raises(ConfigError, match=word):
        fitting(settings)


def test_plan_prints_settings_that_load(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(dump_toml(settings), encoding="utf-8")
    ended = run_here("plan", str(config), "--memory", "0.0001", "--json")
    assert json.loads(ended.out)["fastest"] is None
    ended = run_here("plan", str(config), "--cards", "--json")
    rows = json.loads(ended.out)
    assert list(rows) == [str(card) for card in memory.CARDS]
    for row in rows.values():
        load_settings(config, row["overrides"])
    assert "quantization none" in run_here("plan", str(config), "--cards").out
