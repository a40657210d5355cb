"""What settings are called now, and what earlier versions called them."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from guidefold.run.changes import changed_settings
from guidefold.run.config import dump_toml, flatten, load_settings
from guidefold.run.settings import PipelineSettings, Settings


def offloaded(value: Any) -> Settings:
    return Settings.model_validate({"run": "r", "pipeline": {"source": "p", "offload": value}})


@pytest.mark.parametrize(("before", "now"), [(True, "component"), (False, "none")])
def test_earlier_files_say_whether_components_are_offloaded(
    tmp_path: Path, before: bool, now: str
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(f'run = "r"\n\n[pipeline]\nsource = "p"\noffload = {str(before).lower()}\n')
    assert load_settings(path).pipeline.offload == now
    assert load_settings(path, ["pipeline.offload=group"]).pipeline.offload == "group"
    assert f'offload = "{now}"' in dump_toml(load_settings(path))


@pytest.mark.parametrize("value", ["true", "model", 1, None])
def test_no_other_name_is_taken(value: Any) -> None:
    with pytest.raises(ValidationError, match="offload"):
        PipelineSettings(source="p", offload=value)


def test_an_earlier_name_in_a_checkpoint_is_the_same_setting() -> None:
    stored = flatten(offloaded("component").model_dump(mode="json"))
    for earlier, given in ((True, "component"), (False, "none")):
        before = {**stored, "pipeline.offload": earlier}
        assert not changed_settings(before, offloaded(given))
        assert "pipeline.offload" in changed_settings(before, offloaded("group"))
