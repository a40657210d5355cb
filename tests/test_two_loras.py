"""A student of fewer steps whose guidance has a dial: two LoRAs, from settings to clients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training import finish, interrupted, outcome

from guidefold.run.settings import Settings

TWO: dict[str, Any] = {
    "student": {"steps": 2, "rank": 3},
    "adapter": {"g_ref": 5.0},
    "record": {
        "guidance": (1.0, 8.0),
        "steps": (4, 4),
        "rounds": ["teacher", "student"],
        "states_per_trajectory": 2,
    },
    "distill": {"steps": 4, "checkpoint_every": 1},
    "evaluate": {"steps": 4, "prompts": 2},
}


@pytest.fixture(scope="module")
def made(settings_for: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = settings_for("sd15", tmp_path_factory.mktemp("two"), **TWO)
    finish(settings)
    return settings


def test_a_stopped_run_ends_in_the_same_bits(
    made: Settings, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = settings_for("sd15", tmp_path, **TWO)
    interrupted(settings, 3)  # within the student's round
    assert finish(settings) == outcome(Path(made.run))
