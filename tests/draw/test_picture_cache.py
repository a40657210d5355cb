"""A measurement's pictures are drawn once, and drawn anew when anything they depend on changes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from zoo import WARNINGS

from guidefold.draw.draw import picture_requests
from guidefold.draw.picture_cache import EvaluationPictures
from guidefold.ground.progress import task
from guidefold.pipeline.prompts import Prompt
from guidefold.run.settings import Kind, Settings
from guidefold.session import Session, open_session

pytestmark = pytest.mark.filterwarnings(*WARNINGS)
PROMPTS = [Prompt.of(text) for text in ("a red cat", "a blue dog", "an old house")]
SEEDS = [1, 2, 3]


@pytest.fixture
def session(settings_for: Callable[..., Settings], tmp_path: Path) -> Any:
    with open_session(settings_for("sd15", tmp_path, evaluate={"batch_size": 2})) as opened:
        yield opened


def drawn(
    session: Session, prompts: list[Prompt] = PROMPTS, kind: Kind = "unguided", **options: float
) -> tuple[np.ndarray, int]:
    """The pictures of a fresh cache, and how many denoiser calls they cost."""
    calls = 0
    hook = session.denoiser.register_forward_pre_hook(lambda *_: count())

    def count() -> None:
        nonlocal calls
        calls += 1

    try:
        with task("Drawing", 1) as progress:
            seeds = SEEDS[: len(prompts)]
            requests = picture_requests(session, kind, prompts, seeds, **options)
            found = EvaluationPictures(session).draw(requests, progress)
    finally:
        hook.remove()
    return np.stack([np.asarray(picture) for picture in found.pictures]), calls


def test_pictures_that_stand_cost_nothing_and_are_the_same(session: Session):
    first, calls = drawn(session)
    again, repeated = drawn(session)
    assert calls > 0
    assert repeated == 0
    assert np.array_equal(first, again)


def test_a_measurement_that_was_stopped_draws_only_what_is_missing(session: Session):
    drawn(session, PROMPTS[:2])
    _, calls = drawn(session)
    assert calls == session.settings.evaluate.steps  # the last prompt's, one row a call


def test_a_damaged_picture_is_drawn_anew(session: Session):
    first, _ = drawn(session)
    (session.run.evaluation / "unguided-0001.png").write_bytes(b"not a picture")
    again, calls = drawn(session)
    assert calls > 0
    assert np.array_equal(first, again)


def test_a_changed_autoencoder_makes_every_picture_anew(session: Session):
    first, _ = drawn(session)
    with torch.no_grad():
        for parameter in session.pipeline.vae.decoder.parameters():
            parameter.mul_(1.5)
    again, calls = drawn(session)
    assert calls > 0
    assert not np.array_equal(first, again)


def test_guidance_scales_lie_side_by_side_under_names_that_tell_them_apart(session: Session):
    low, _ = drawn(session, PROMPTS[:1], "teacher", guidance=2.5)
    high, _ = drawn(session, PROMPTS[:1], "teacher")  # at the session's own, 5
    again, calls = drawn(session, PROMPTS[:1], "teacher", guidance=2.5)
    assert calls == 0
    assert np.array_equal(low, again)
    assert not np.array_equal(low, high)
    names = {path.name for path in session.run.evaluation.glob("*.png")}
    assert names == {"teacher-g2.5-0000.png", "teacher-g5-0000.png"}


def test_what_pictures_cost_is_remembered_with_them(session: Session):
    with task("Drawing", 1) as progress:
        requests = picture_requests(session, "teacher", PROMPTS, SEEDS)
        first, again = (EvaluationPictures(session).draw(requests, progress) for _ in range(2))
    assert first.passes_per_image == again.passes_per_image == 2 * session.settings.evaluate.steps
    assert first.denoiser_seconds_per_image == again.denoiser_seconds_per_image > 0
    assert first.files == again.files == [f"teacher-g5-{k:04d}.png" for k in range(3)]


def test_another_number_of_steps_makes_pictures_anew(session: Session):
    drawn(session)
    asked = session.settings.evaluate.model_copy(update={"steps": 3})
    session.settings = session.settings.model_copy(update={"evaluate": asked})
    _, calls = drawn(session)
    assert calls == 2 * 3  # two batches


def test_only_requests_that_were_never_drawn_are_missing(session: Session):
    drawn(session, PROMPTS[:2])
    requests = picture_requests(session, "unguided", PROMPTS, SEEDS)
    pictures = EvaluationPictures(session)
    assert pictures.missing(requests) == requests[2:]
    assert pictures.missing([replace(request, steps=3) for request in requests]) != []
    assert pictures.missing(picture_requests(session, "unguided", PROMPTS)) != []  # other seeds
