"""Parts recorded elsewhere come together as what one machine would have recorded."""

from pathlib import Path
from typing import Any

import pytest

from guidefold.ground.errors import CorruptFileError, MismatchError
from guidefold.record.gather import gather
from guidefold.record.rounds import record
from guidefold.run.files import read_lines
from guidefold.run.folder import RunFolder
from guidefold.run.settings import Settings


def recorded(settings_for: Any, folder: Path, shard: tuple[int, int], **changes: Any) -> Path:
    changes.setdefault("seed", 0)
    settings: Settings = settings_for("sd15", folder, **changes)
    prompts = folder.parent / "prompts.txt"
    if not prompts.exists():
        prompts.write_text(Path(settings.prompts.path).read_text(encoding="utf-8"))
    asked = settings.model_copy(
        update={"prompts": settings.prompts.model_copy(update={"path": str(prompts)})}
    )
    return record(asked, shard)


def contents(run: Path) -> dict[int, tuple[str, str]]:
    lines = read_lines(RunFolder(run).round(0) / "manifest.jsonl")
    return {line["index"]: (line["file"], line["sha256"]) for line in lines}


def test_shards_hold_everything_once_and_come_together_as_the_whole(
    settings_for: Any, tmp_path: Path
) -> None:
    whole = recorded(settings_for, tmp_path / "whole", (1, 1))
    parts = [recorded(settings_for, tmp_path / f"part-{i}", (i, 2)) for i in (1, 2)]
    one, two = map(contents, parts)
    assert not one.keys() & two.keys()
    assert {**one, **two} == contents(whole)
    run = tmp_path / "together"
    assert gather(run, parts) == len(contents(whole))
    assert contents(run) == contents(whole)
    assert gather(run, parts) == 0
    assert gather(parts[0], [parts[0], parts[1]]) == len(two)
    assert contents(parts[0]) == contents(whole)


def test_parts_of_other_settings_are_refused(settings_for: Any, tmp_path: Path) -> None:
    one = recorded(settings_for, tmp_path / "one", (1, 2))
    two = recorded(settings_for, tmp_path / "two", (2, 2), seed=1)
    with pytest.raises(MismatchError, match="begun with other settings\n  seed"):
        gather(tmp_path / "run", [one, two])


def test_a_damaged_part_is_refused_by_its_file(settings_for: Any, tmp_path: Path) -> None:
    part = recorded(settings_for, tmp_path / "part", (1, 2))
    file = sorted(RunFolder(part).round(0).glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CorruptFileError, match=file.name):
        gather(tmp_path / "run", [part])
