"""Recording a run's rounds: what is said at its start, and what is done about damage."""

from pathlib import Path
from typing import Any

import pytest
from tiny import PROMPTS, write_prompts

from guidefold.ground.errors import ConfigError
from guidefold.record.rounds import record
from guidefold.run.files import sha256
from guidefold.run.folder import RunFolder
from guidefold.run.settings import Settings


@pytest.fixture(scope="module")
def recorded(
    settings_for: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Settings, Path, list[str]]:
    """A recorded run with repeated prompts and a strength 1 that lies beyond its range."""
    folder = tmp_path_factory.mktemp("recording")
    settings: Settings = settings_for("sd15", folder, adapter={"g_ref": 20.0})
    write_prompts(folder / "prompts.txt", (*PROMPTS, *PROMPTS[:2]))
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("guidefold.record.rounds.console.print", lambda text, **_: lines.append(text))
        record(settings)
        record(settings)
    return settings, RunFolder(settings.run).round(0), lines


def test_its_start_says_once_where_the_prompts_go(recorded: Any) -> None:
    (said,) = (line for line in recorded[2] if line.startswith("Prompts"))
    trained, held_out, _ = (int(word) for word in said.split() if word.isdigit())
    assert trained + held_out == len(PROMPTS)
    assert said.endswith("; 2 duplicates left out.")


def test_a_strength_1_that_is_never_trained_is_warned_of_once(recorded: Any) -> None:
    assert [line for line in recorded[2] if line.startswith("Beware")] == [
        "Beware: adapter.g_ref=20 lies outside record.guidance=[3, 6]: the student is never "
        "trained at strength 1."
    ]


def test_what_is_damaged_is_recorded_again_as_it_was(recorded: Any) -> None:
    settings, folder, _ = recorded
    files = sorted(folder.glob("*.safetensors"))
    before = [sha256(file) for file in files]
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-8])
    record(settings)
    assert [sha256(file) for file in files] == before


def test_one_guidance_scale_at_which_guidance_is_off_is_refused_before_recording(
    settings_for: Any, tmp_path: Path
) -> None:
    settings: Settings = settings_for("sd15", tmp_path, record={"guidance": (1.0, 1.0)})
    with pytest.raises(ConfigError, match=r"record\.guidance: \[1, 1\] is where guidance is off"):
        record(settings)
    assert not list(RunFolder(settings.run).path.rglob("*.safetensors"))
