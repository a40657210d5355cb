"""What a run's files hold: kept as it was written, and named where it is damaged."""

import json
from pathlib import Path
from typing import Any

import pytest
from pages import begun, measured, recorded, results, trained

from guidefold.ground.errors import CorruptFileError
from guidefold.run.files import append_line, read_json, read_lines
from guidefold.run.folder import LINES, RunFolder
from guidefold.run.lines import PictureLine, TrajectoryLine, read_log, read_trajectories
from guidefold.run.records import PictureIndex, PreviewIndex, Record, Results

MADE = RunFolder(Path(__file__).parents[1] / "fixtures" / "run-0.1.0")


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize(
    ("record", "path"),
    [
        (Results, MADE.results),
        (PictureIndex, MADE.index),
        (PreviewIndex, MADE.preview_index),
        (Record, MADE.probe),
        (Record, MADE.metadata),
    ],
)
def test_a_file_of_the_first_version_is_kept_key_by_key(record: type[Record], path: Path) -> None:
    found = record.read(path)
    assert found is not None
    assert json.dumps(found.to_json()) == json.dumps(read_json(path))


@pytest.mark.parametrize(
    ("record", "path"),
    [(PictureLine, MADE.pictures), (TrajectoryLine, MADE.round(0) / LINES)],
)
def test_a_line_of_the_first_version_is_kept_key_by_key(record: type[Record], path: Path) -> None:
    found = [json.dumps(line.to_json()) for line in record.read_lines(path)]
    assert found == [json.dumps(line) for line in read_lines(path)]


def test_the_log_of_the_first_version_is_kept_key_by_key() -> None:
    log = read_log(MADE.log)
    kept = [json.dumps(line.to_json()) for line in (*log.training, *log.validations)]
    assert sorted(kept) == sorted(json.dumps(line) for line in read_lines(MADE.log))
    assert log.step == 6
    assert log.peak_memory is not None
    assert log.peak_memory.bytes == 593420288


def test_a_key_that_nobody_knows_is_kept_and_one_that_nobody_gave_is_left_out() -> None:
    given = results(["a"], judged=False) | {"later": {"than": "this version"}}
    found = Results.model_validate(given)
    assert found.categories == {}
    assert found.of("student").recall is None
    assert found.to_json() == given


def test_what_is_not_there_yet_is_none_or_empty(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert Results.read(run.results) is None
    assert read_trajectories(run) == []
    log = read_log(run.log)
    assert (log.training, log.validations, log.step, log.peak_memory) == ([], [], 0, None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"machine": None}, "'machine' is damaged: "),
        ({"student": {}}, "'student.passes_per_image' is not in it"),
        ({"teacher": 5}, "'teacher' is damaged: "),
    ],
)
def test_the_first_damage_is_named_with_the_file_and_the_remedy(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    run = RunFolder(measured(begun(tmp_path / "run")))
    write(run.results, read_json(run.results) | change)
    with pytest.raises(CorruptFileError) as caught:
        Results.read(run.results, "Measure again.")
    assert caught.value.message.startswith(f"{run.results}: {said}")
    assert caught.value.remedy == "Measure again."


def test_a_damaged_line_is_named_by_its_number(tmp_path: Path) -> None:
    run = RunFolder(trained(recorded(begun(tmp_path / "run"))))
    append_line(run.round(0) / LINES, {"index": 3})
    with pytest.raises(CorruptFileError, match=r"manifest\.jsonl:4: 'split' is not in it"):
        read_trajectories(run)
    append_line(run.log, {"step": "late", "loss": 1.0})
    with pytest.raises(CorruptFileError, match=r"log\.jsonl:7: 'step' is damaged: "):
        read_log(run.log)
