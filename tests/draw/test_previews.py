"""Pictures while training: of what they say they are of, and without a trace in the training."""

import json
from collections.abc import Callable
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training import FOUR, Outcome, finish, interrupted
from zoo import WARNINGS

from guidefold.deliver.export import export
from guidefold.deliver.student_pipeline import open_adapter
from guidefold.draw import picture_cache, previews
from guidefold.draw.draw import draw, picture_requests, picture_seeds
from guidefold.draw.previews import Previews
from guidefold.ground.progress import task
from guidefold.pipeline.prompts import Prompt
from guidefold.record.rounds import record
from guidefold.run.files import read_json, write_record
from guidefold.run.records import PreviewIndex
from guidefold.run.settings import KINDS, Settings
from guidefold.session import Session, open_session

drawing_module = import_module("guidefold.draw.draw")  # its door has a function of that name

pytestmark = pytest.mark.filterwarnings(*WARNINGS)

Make = Callable[..., Settings]
DRAWN = {**FOUR, "preview_prompts": 2, "preview_every": 3}
STEPS = [0, 3, 4]
ONE_CALL = {"batch_size": 2}  # draws all pictures of a kind


def folder_of(settings: Settings) -> Path:
    return Path(settings.run) / "previews"


def files(settings: Settings) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder_of(settings).iterdir()}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=int)


@pytest.fixture(scope="module")
def run(recorded: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Outcome]:
    """A run with previews that never stopped."""
    settings = recorded("sd15", tmp_path_factory.mktemp("previews"), distill=DRAWN)
    return settings, finish(settings)


def test_every_picture_lies_in_its_place(run: tuple[Settings, Outcome]) -> None:
    expected = {"previews.json", *(f"step-{step:06d}.png" for step in STEPS)}
    expected |= {f"{kind}-{k}.png" for kind in ("teacher", "unguided") for k in (0, 1)}
    expected |= {f"student-{k}-step-{step:06d}.png" for step in STEPS for k in (0, 1)}
    assert files(run[0]).keys() == expected


def test_the_index_names_what_was_drawn(run: tuple[Settings, Outcome]) -> None:
    settings, _ = run
    found = files(settings)
    index = read_json(folder_of(settings) / "previews.json")
    pictures = {name: data for name, data in found.items() if name.count("-") in (1, 3)}
    pictures = {name: data for name, data in pictures.items() if not name.startswith("step-")}
    with open_session(settings) as session:
        assert index == {
            "sha256": {name: sha256(data).hexdigest() for name, data in sorted(pictures.items())},
            "prompts": [prompt.text for prompt in session.held_out[:2]],
            "seeds": picture_seeds(settings.seed, 2),
            "guidance": 5.0,
            "strength": 1.0,
            "denoising_steps": 2,
            "steps": STEPS,
        }


def test_before_its_first_step_the_student_draws_as_the_unguided_teacher(
    run: tuple[Settings, Outcome],
) -> None:
    folder = folder_of(run[0])
    for k in (0, 1):
        unguided = pixels(folder / f"unguided-{k}.png")
        assert (pixels(folder / f"student-{k}-step-000000.png") == unguided).all()
        assert (pixels(folder / f"student-{k}-step-000004.png") != unguided).any()


def drawn_anew(session: Session, guidance: float) -> list[np.ndarray]:
    index = json.loads(files(session.settings)["previews.json"])
    with task("Drawing", 4) as progress:
        asked = [Prompt.of(prompt) for prompt in index["prompts"]]
        requests = picture_requests(session, "teacher", asked, index["seeds"], guidance=guidance)
        found = draw(session, requests, progress.advance)
    return [np.asarray(picture, dtype=int) for picture in found.pictures]


def test_the_pictures_are_those_of_the_stock_pipeline_and_of_the_written_adapter(
    run: tuple[Settings, Outcome],
) -> None:
    settings, _ = run
    folder = folder_of(settings)
    export(settings)
    with open_session(settings) as session:
        for kind, guidance in (("teacher", 5.0), ("unguided", 1.0)):
            for k, picture in enumerate(drawn_anew(session, guidance)):
                assert (pixels(folder / f"{kind}-{k}.png") == picture).all()
        open_adapter(session, 1.0)
        for k, picture in enumerate(drawn_anew(session, 1.0)):
            found = pixels(folder / f"student-{k}-step-000004.png")
            assert np.abs(found - picture).max() <= 1


def test_the_sheet_shows_the_kinds_from_left_to_right(run: tuple[Settings, Outcome]) -> None:
    folder = folder_of(run[0])
    sheet = pixels(folder / "step-000004.png")
    names = ("teacher-1", "unguided-1", "student-1-step-000004")
    size = 128  # small pictures are enlarged to this
    for column, name in enumerate(names):
        x = 200 + column * (size + 6)
        shown = sheet[44 + size + 6 :][:size, x : x + size]
        small = pixels(folder / f"{name}.png")
        assert (shown[:: size // len(small), :: size // len(small)] == small).all()


def test_the_teacher_is_drawn_before_anything_is_recorded(
    run: tuple[Settings, Outcome],
    settings_for: Make,
    tmp_path: Path,
    guidances: list[float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = settings_for("sd15", tmp_path, distill=DRAWN, evaluate=ONE_CALL)
    record(settings)
    said = capsys.readouterr().out
    assert said.index("Pictures of the teacher") < said.index("Recording teacher states")
    assert str(folder_of(settings) / "teacher-0.png") in said
    assert files(settings).keys() == {"previews.json", "teacher-0.png", "teacher-1.png"}
    assert guidances == [5.0]
    finish(settings)
    assert guidances == [5.0, 1.0, 1.0, 1.0, 1.0], "nothing is drawn twice"
    drawn = files(run[0])
    assert files(settings).keys() == drawn.keys()
    without = settings_for("sd15", tmp_path / "none", distill={**DRAWN, "preview_prompts": 0})
    record(without)
    assert not folder_of(without).exists()


@pytest.mark.parametrize("rounds", [["teacher"], ["teacher", "student"]])
def test_training_with_previews_equals_training_without_bit_for_bit(
    run: tuple[Settings, Outcome], recorded: Make, tmp_path: Path, rounds: list[str]
) -> None:
    def train(name: str, prompts: int) -> Outcome:
        asked = {**DRAWN, "preview_prompts": prompts}
        tables: dict[str, Any] = {"distill": asked, "record": {"rounds": rounds}}
        return finish(recorded("sd15", tmp_path / name, **tables))

    without = train("without", 0)
    assert not (tmp_path / "without" / "run" / "previews").exists()
    assert without == (train("with", 2) if len(rounds) > 1 else run[1])


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_that_stopped_has_the_pictures_of_one_that_never_did(
    run: tuple[Settings, Outcome], recorded: Make, tmp_path: Path, step: int
) -> None:
    settings = recorded("sd15", tmp_path, distill=DRAWN)
    interrupted(settings, step)
    assert finish(settings) == run[1]
    assert files(settings) == files(run[0])


@pytest.fixture
def guidances(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The guidance scale of every drawing."""
    heard: list[float] = []

    def listening(session: Any, requests: Any, on_step: Any) -> Any:
        heard.append(requests[0].guidance)
        return draw(session, requests, on_step)

    monkeypatch.setattr(picture_cache, "draw", listening)
    return heard


def test_a_resumed_run_draws_its_teacher_no_second_time(
    recorded: Make, tmp_path: Path, guidances: list[float]
) -> None:
    settings = recorded("sd15", tmp_path, distill=DRAWN, evaluate=ONE_CALL)
    interrupted(settings, 1)
    assert guidances == [5.0, 1.0, 1.0]
    finish(settings)
    assert guidances == [5.0, 1.0, 1.0, 1.0, 1.0]
    finish(settings)
    assert len(guidances) == 5


def test_pictures_that_were_lost_are_drawn_again_before_training_goes_on(
    run: tuple[Settings, Outcome], recorded: Make, tmp_path: Path
) -> None:
    settings = recorded("sd15", tmp_path, distill=DRAWN)
    interrupted(settings, 3)
    index = folder_of(settings) / "previews.json"
    write_record(index, {**read_json(index), "steps": [0]})
    for path in [folder_of(settings) / "teacher-0.png", *folder_of(settings).glob("*3.png")]:
        path.unlink()
    finish(settings)
    assert files(settings) == files(run[0])


def test_at_another_guidance_scale_every_picture_is_drawn_anew(
    recorded: Make, tmp_path: Path, guidances: list[float]
) -> None:
    interrupted(recorded("sd15", tmp_path, distill=DRAWN, evaluate=ONE_CALL), 1)
    other = {"guidance": 4.0, **ONE_CALL}
    settings = recorded("sd15", tmp_path, distill=DRAWN, evaluate=other)
    finish(settings)
    assert guidances == [5.0, 1.0, 1.0, 4.0, 1.0, 1.0, 1.0]
    index = json.loads(files(settings)["previews.json"])
    assert (index["guidance"], index["strength"], index["steps"]) == (4.0, 0.75, [3, 4])


def test_a_pipeline_that_makes_no_pictures_is_trained_without(
    run: tuple[Settings, Outcome],
    recorded: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawing_module = import_module("guidefold.draw.draw")  # the door exports a function "draw"
    real = drawing_module.run

    def of_sounds(*arguments: Any, output_type: str) -> Any:
        return (torch.zeros(len(real(*arguments, output_type=output_type)[0]), 2, 100),)

    monkeypatch.setattr(drawing_module, "run", of_sounds)
    settings = recorded("sd15", tmp_path, distill=DRAWN)
    assert finish(settings) == run[1]
    said = [line for line in capsys.readouterr().out.splitlines() if "previews" in line]
    assert said[-1:] == ["No previews: the pipeline returned Tensor, neither pictures nor videos"]
    assert sum("No previews" in line for line in said) == 1
    assert not folder_of(settings).exists()


@pytest.mark.parametrize(
    ("prompts", "every", "expected"),
    [(2, 4, [0, 4, 8, 10]), (1, 5, [0, 5, 10]), (1, 100, [0, 10]), (0, 1, [])],
)
def test_the_first_and_the_last_step_are_always_due(
    recorded: Make, tmp_path: Path, prompts: int, every: int, expected: list[int]
) -> None:
    asked = {"steps": 10, "preview_prompts": prompts, "preview_every": every}
    settings = recorded("sd15", tmp_path, distill=asked)
    with open_session(settings) as session:
        drawing = Previews(session, None)
        assert [step for step in range(11) if drawing.due(step)] == expected
        assert drawing.work() == len(KINDS) * prompts * 2


@pytest.mark.parametrize("content", ["[]", "", '{"steps": 3}', "5", "{}", "lacks its steps"])
def test_a_damaged_index_counts_as_none_so_that_previews_are_drawn_again(
    run: tuple[Settings, Outcome], content: str
) -> None:
    settings, _ = run
    index = folder_of(settings) / "previews.json"
    whole = index.read_text()
    if content == "lacks its steps":
        content = json.dumps({k: v for k, v in json.loads(whole).items() if k != "steps"})
    try:
        index.write_text(content)
        with open_session(settings) as session:
            assert previews._matching(index, PreviewIndex.model_validate_json(whole)) is None
            assert Previews(session, None).lacks(4)
    finally:
        index.write_text(whole)
