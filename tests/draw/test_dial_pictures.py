"""The dial's pictures: what they are equal to, what they cost, and what they leave behind."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from zoo import WARNINGS

from guidefold.deliver.export import export
from guidefold.deliver.student_pipeline import open_adapter
from guidefold.draw import dial_pictures
from guidefold.draw.draw import draw, picture_requests
from guidefold.draw.picture_cache import EvaluationPictures
from guidefold.ground.progress import Task, task
from guidefold.lora.dial import STRENGTHS
from guidefold.pipeline.prompts import Prompt
from guidefold.run.files import read_json, write_record
from guidefold.run.settings import Kind, Settings
from guidefold.session import Session, open_session
from guidefold.train.distill import distill

pytestmark = pytest.mark.filterwarnings(*WARNINGS)

PROMPTS = [Prompt.of("a red cat"), Prompt.of("a blue dog")]
SCALES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)  # off is 1, g_ref is 5


@pytest.fixture(scope="module")
def exported(
    settings_for: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    settings = settings_for("sd15", tmp_path_factory.mktemp("dial"))
    distill(settings)
    export(settings)
    return settings


@pytest.fixture(scope="module")
def session(exported: Settings) -> Iterator[Session]:
    with open_session(exported) as opened:
        yield opened


def by_hand(session: Session, guidance: float, progress: Task) -> list[Image.Image]:
    """Pictures of the pipeline as it stands, beside what is kept."""
    requests = picture_requests(session, "teacher", PROMPTS, guidance=guidance)
    return draw(session, requests, progress.advance).pictures


class Columns:
    """Both sides of the dial, and what was drawn of each."""

    def __init__(self, session: Session) -> None:
        self.session, self.calls = session, 0
        with task("Drawing", 1) as progress:
            pictures = EvaluationPictures(session)
            self.unguided = self._kept("unguided", pictures, progress)
            self.guided = self._kept("teacher", pictures, progress)
            self.teacher = dial_pictures.draw_dial(pictures, "teacher", PROMPTS, progress)
            self.by_hand = {scale: by_hand(session, scale, progress) for scale in SCALES}
            open_adapter(session, session.compared.strength)
            self.main = self._kept("student", pictures, progress)
            count = session.denoiser.register_forward_pre_hook(self._count)
            self.student = dial_pictures.draw_dial(pictures, "student", PROMPTS, progress)
            count.remove()
            self.after = by_hand(session, 1.0, progress)

    def _kept(self, kind: Kind, pictures: EvaluationPictures, progress: Task) -> list[str]:
        return pictures.draw(picture_requests(self.session, kind, PROMPTS), progress).files

    def _count(self, *_: object) -> None:
        self.calls += 1

    def about(self, file: str) -> dict[str, object]:
        lines = self.session.run.pictures.read_text().splitlines()
        return next(line["of"] for line in map(json.loads, lines) if line["file"] == file)

    def pixels(self, files: list[str]) -> np.ndarray:
        return stacked([Image.open(self.session.run.evaluation / file) for file in files])


def stacked(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture, dtype=int) for picture in pictures])


@pytest.fixture(scope="module")
def columns(session: Session) -> Columns:
    return Columns(session)


def test_at_strength_0_the_student_draws_the_unguided_pictures(columns: Columns) -> None:
    untouched = columns.pixels(columns.student[0])
    assert np.array_equal(untouched, columns.pixels(columns.unguided))
    assert not np.array_equal(untouched, columns.pixels(columns.student[1]))


def test_at_strength_1_both_sides_are_the_measured_pictures_and_cost_nothing(
    columns: Columns,
) -> None:
    assert columns.student[4] == columns.main
    assert columns.teacher[4] == columns.guided
    others = len(STRENGTHS) - 1
    steps = columns.session.settings.evaluate.steps
    assert columns.calls == others * len(PROMPTS) * steps


def test_the_teachers_side_is_the_teacher_at_the_guidance_of_each_strength(
    columns: Columns,
) -> None:
    assert columns.teacher[0] == columns.unguided
    for files, scale in zip(columns.teacher, SCALES, strict=True):
        assert np.array_equal(columns.pixels(files), stacked(columns.by_hand[scale]))


def test_every_strength_draws_other_pictures_kept_under_it(columns: Columns) -> None:
    drawn = [columns.pixels(files).tobytes() for files in columns.student]
    assert len(set(drawn)) == len(STRENGTHS)
    for strength, files in zip(STRENGTHS, columns.student, strict=True):
        assert [columns.about(file)["strength"] for file in files] == [strength] * 2
        assert [columns.about(file)["prompt"] for file in files] == [p.key for p in PROMPTS]


def test_the_adapter_is_left_at_the_strength_it_had(columns: Columns) -> None:
    assert np.array_equal(stacked(columns.after), columns.pixels(columns.main))


def test_without_prompts_nothing_is_drawn(session: Session) -> None:
    with task("Drawing", 1) as progress:
        pictures = EvaluationPictures(session)
        assert dial_pictures.draw_dial(pictures, "teacher", [], progress) == []
        assert dial_pictures.draw_dial(pictures, "student", [], progress) == []


def test_another_adapter_draws_the_students_side_anew(exported: Settings, tmp_path: Path) -> None:
    run = shutil.copytree(exported.run, tmp_path / "run")
    settings = exported.model_copy(update={"run": str(run)})
    with open_session(settings) as session, task("Drawing", 1) as progress:
        pictures, requests = (
            EvaluationPictures(session),
            picture_requests(session, "student", PROMPTS),
        )
        open_adapter(session, session.compared.strength)
        first = pictures.draw(requests, progress)
        manifest = session.run.adapter / "MANIFEST.json"
        entries = read_json(manifest)
        for name in entries:
            entries[name]["sha256"] = "0" * 64
        write_record(manifest, entries)
        with torch.no_grad():
            for name, weight in session.denoiser.named_parameters():
                if "lora_B" in name:
                    weight.mul_(20)
        again = EvaluationPictures(session).draw(requests, progress)
    assert not np.array_equal(stacked(first.pictures), stacked(again.pictures))
