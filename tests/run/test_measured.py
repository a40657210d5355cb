"""What a measurement left: whole, within its folder, and as it was drawn; else refused by file."""

from pathlib import Path

import pytest
from pages import begun, measured, previewed, recorded, trained

from guidefold.ground.errors import CorruptFileError
from guidefold.record.trajectory_files import read_round
from guidefold.run.files import append_line, read_json, read_lines, sha256, write_record
from guidefold.run.folder import LINES, RunFolder
from guidefold.run.measured import find_picture, picture_digests, read_measured
from guidefold.show.report import gather

OUTSIDE = "../../../../../../../../etc/hostname"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(previewed(measured(trained(recorded(begun(tmp_path / "run"))))))


def drawn(run: RunFolder, name: str) -> None:
    """A picture's line, as drawing it writes one."""
    digest = sha256(run.evaluation / name)
    line = {"file": name, "sha256": digest, "passes": 2.0, "seconds": 0.1, "of": {}}
    append_line(run.pictures, line)


def test_before_a_measurement_there_is_nothing_and_an_index_alone_is_not_one(
    tmp_path: Path, run: RunFolder
) -> None:
    assert read_measured(RunFolder(tmp_path)) == (None, None)
    assert None not in read_measured(run)
    run.results.unlink()
    assert read_measured(run) == (None, None)


def test_results_whose_index_is_lost_are_refused(run: RunFolder) -> None:
    run.index.unlink()
    with pytest.raises(CorruptFileError, match=r"index\.json: missing, though .*results\.json"):
        read_measured(run)


def test_a_picture_that_is_not_the_drawn_one_is_refused(run: RunFolder) -> None:
    name, other = "student-0.png", "teacher-0.png"
    drawn(run, name)
    digests = picture_digests(run)
    assert find_picture(run.index, name, digests, "") == run.evaluation / name
    (run.evaluation / name).write_bytes((run.evaluation / other).read_bytes())
    with pytest.raises(CorruptFileError, match=r"student-0\.png: the picture is not the one that"):
        find_picture(run.index, name, digests, "")
    with pytest.raises(CorruptFileError, match=r"student-0\.png: the picture is not the one that"):
        gather(run)
    assert find_picture(run.index, other, digests, "")  # of an old run, which told no digest


def test_no_index_shows_a_file_from_elsewhere(run: RunFolder) -> None:
    index = read_json(run.index)
    index["pictures"][0]["files"]["student"] = OUTSIDE
    write_record(run.index, index)
    with pytest.raises(CorruptFileError, match=r"index\.json: names '\.\./.*hostname'"):
        gather(run)


def test_no_dial_shows_a_file_from_elsewhere(run: RunFolder) -> None:
    index = read_json(run.index)
    index["dial"][0]["teacher"][0] = OUTSIDE
    write_record(run.index, index)
    with pytest.raises(CorruptFileError, match=r"index\.json: names '\.\./.*hostname'"):
        gather(run)


def test_a_preview_that_is_not_the_drawn_one_is_refused(run: RunFolder) -> None:
    name = "teacher-0.png"
    index = read_json(run.preview_index)
    write_record(run.preview_index, {**index, "sha256": {name: sha256(run.previews / name)}})
    gather(run)
    (run.previews / name).write_bytes((run.previews / "unguided-0.png").read_bytes())
    with pytest.raises(CorruptFileError, match=r"teacher-0\.png: the picture is not the one that"):
        gather(run)


def test_a_manifest_names_no_file_from_elsewhere(run: RunFolder) -> None:
    folder = run.round(0)
    line = {**read_lines(folder / LINES)[0], "index": 9, "file": "../../../secret.safetensors"}
    append_line(folder / LINES, line)
    for verify in (True, False):
        with pytest.raises(CorruptFileError, match=r"manifest\.jsonl: names '\.\./"):
            read_round(folder, verify=verify)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"guidance": 5.0', '"guidance": 6.0'),
        ('"split": "training"', '"split": "held-out"'),
        ('"seed": 0', '"seed": 1'),
        ('"timesteps": []', '"timesteps": [1.0]'),
        ('"guidance": 5.0', '"guidance": "much"'),
        ('"index": 1', '"index": 2'),
        (', "digest": ', ', "digist": '),
    ],
)
def test_a_manifest_line_that_was_altered_is_refused_by_file_and_line(
    run: RunFolder, before: str, after: str
) -> None:
    path = run.round(0) / LINES
    lines = path.read_text().splitlines(keepends=True)
    assert before in lines[1]
    lines[1] = lines[1].replace(before, after)
    path.write_text("".join(lines))
    with pytest.raises(CorruptFileError, match=r"manifest\.jsonl:2: ") as caught:
        read_round(path.parent, verify=False)
    assert caught.value.remedy == "Remove the damaged line."
