"""Pictures: seed by seed, and counted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import PNDMScheduler
from pictures import assert_same_pictures, pixels
from zoo import ZOO

from guidefold.draw.draw import _add_result, draw, picture_requests, picture_seeds
from guidefold.draw.pictures import Drawn
from guidefold.ground.errors import InputError
from guidefold.ground.progress import task
from guidefold.ground.randomness import generator
from guidefold.pipeline.prompts import Prompt
from guidefold.run.folder import RunFolder
from guidefold.run.settings import Settings
from guidefold.session import Session, open_session

PROMPTS = ["a red cat", "a big blue house near the old tree", "a dog", "a small bird"]
ASKED = [Prompt.of(prompt) for prompt in PROMPTS]
SEEDS = [11, 12, 13, 14]


@pytest.fixture
def drawer(built: Any, found: Any) -> Callable[..., Drawn]:
    def make(
        name: str,
        prompts: list[str],
        seeds: list[int],
        guidance: float = 5.0,
        on_step: Callable[[int], None] = lambda count: None,
        findings: Any = None,
        **options: int,
    ) -> Drawn:
        call = dict(ZOO[name].call)
        negative = call.pop("negative_prompt", None)
        asked = {"source": name, "call": call, "negative_prompt": negative}
        settings = Settings.model_validate(
            {"run": name, "pipeline": asked, "evaluate": {"steps": 2, "batch_size": 1} | options}
        )
        findings = findings or found(name)
        session = Session(RunFolder(name), settings, [], [], built(name), findings, "cpu")
        rows = [Prompt.of(prompt) for prompt in prompts]
        return draw(
            session, picture_requests(session, "teacher", rows, seeds, guidance=guidance), on_step
        )

    return make


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "pixart", "qwen_image", "lumina2"])
def test_a_picture_depends_on_its_own_seed_and_prompt_only(drawer: Any, name: str) -> None:
    alone = [drawer(name, [p], [s]).pictures[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    for size in (2, 3):
        assert_same_pictures(drawer(name, PROMPTS, SEEDS, batch_size=size).pictures, alone)
    turned = drawer(name, PROMPTS[::-1], SEEDS[::-1], batch_size=2).pictures
    assert_same_pictures(turned[::-1], alone)
    other = drawer(name, PROMPTS[:1], [99]).pictures
    assert np.abs(pixels(other) - pixels(alone[:1])).max() > 10


def test_a_picture_is_the_one_that_a_user_gets_with_the_same_generator(
    built: Any, drawer: Any
) -> None:
    (ours,) = drawer("sd15", PROMPTS[:1], [11]).pictures
    call = {"guidance_scale": 5.0, "num_inference_steps": 2, **ZOO["sd15"].call}
    theirs = built("sd15")(PROMPTS[0], generator=generator(11), **call).images[0]
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_passes_are_counted_for_each_picture(drawer: Any, batch_size: int) -> None:
    for guidance, passes in ((5.0, 2 * 2), (1.0, 2)):
        drawn = drawer("sd15", PROMPTS, SEEDS, guidance=guidance, batch_size=batch_size)
        assert drawn.passes_per_image == passes
        assert drawn.denoiser_seconds_per_image > 0
        assert len(drawn.pictures) == 4


def test_a_pipeline_that_takes_one_prompt_at_a_time_is_given_one(drawer: Any, found: Any) -> None:
    told: list[int] = []
    single = replace(found("sd15"), layout=None)
    drawn = drawer("sd15", PROMPTS, SEEDS, findings=single, batch_size=4, on_step=told.append)
    assert told == [1] * (4 * 2)
    assert_same_pictures(drawn.pictures, drawer("sd15", PROMPTS, SEEDS).pictures)


def test_the_seeds_of_a_run_are_the_same_for_every_kind_and_differ_from_each_other() -> None:
    assert picture_seeds(0, 3) == picture_seeds(0, 5)[:3]
    assert len({*picture_seeds(0, 50), *picture_seeds(1, 50)}) == 100


def test_what_is_neither_picture_nor_video_is_refused() -> None:
    with pytest.raises(InputError, match="returned ndarray, neither pictures nor videos"):
        _add_result(Drawn(), (np.zeros((1, 4)),), 1)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_progress_counts_every_step_of_every_picture(
    settings_for: Any, tmp_path: Path, batch_size: int
) -> None:
    settings = settings_for("sd15", tmp_path)
    asked = settings.evaluate.model_copy(update={"batch_size": batch_size})
    with (
        open_session(settings.model_copy(update={"evaluate": asked})) as session,
        task("Drawing", 100) as progress,
    ):
        draw(session, picture_requests(session, "teacher", ASKED[:3], SEEDS[:3]), progress.advance)
        assert progress._done == 3 * session.settings.evaluate.steps


def test_a_solver_that_steps_once_more_counts_as_it_was_asked(built: Any, drawer: Any) -> None:
    pipeline, counts = built("sd15"), list[int]()
    before = pipeline.scheduler
    pipeline.scheduler = PNDMScheduler.from_config(before.config, skip_prk_steps=True)
    try:
        drawn = drawer("sd15", PROMPTS[:1], SEEDS[:1], guidance=1.0, steps=4, on_step=counts.append)
    finally:
        pipeline.scheduler = before
    assert drawn.passes_per_image == 5
    assert sum(counts) == 4


def test_the_teacher_draws_at_the_guidance_that_is_measured(
    settings_for: Any, tmp_path: Path, drawer: Any
) -> None:
    settings = settings_for("sd15", tmp_path)
    asked = settings.evaluate.model_copy(update={"guidance": 3.0})
    with (
        open_session(settings.model_copy(update={"evaluate": asked})) as session,
        task("Drawing", 4) as progress,
    ):
        for kind, guidance in (("teacher", 3.0), ("unguided", 1.0), ("student", 1.0)):
            assert session.guidance_of(kind) == guidance
            requests = picture_requests(session, kind, ASKED[:1], SEEDS[:1])
            assert requests[0].guidance == guidance
            drawn = draw(session, requests, progress.advance)
            expected = drawer("sd15", PROMPTS[:1], SEEDS[:1], guidance=guidance)
            assert_same_pictures(drawn.pictures, expected.pictures)


def test_a_request_takes_from_the_session_what_is_not_given(
    settings_for: Any, tmp_path: Path
) -> None:
    with open_session(settings_for("sd15", tmp_path)) as session:
        seeds = picture_seeds(session.settings.seed, 2)
        teacher, student = (
            picture_requests(session, kind, ASKED[:2]) for kind in ("teacher", "student")
        )
        assert [request.seed for request in teacher] == seeds == [r.seed for r in student]
        assert {(r.guidance, r.strength) for r in teacher} == {(5.0, None)}
        assert {(r.guidance, r.strength) for r in student} == {(1.0, 1.0)}
        (chosen,) = picture_requests(session, "student", ASKED[:1], [3], strength=0.5)
        assert (chosen.seed, chosen.strength, chosen.guidance) == (3, 0.5, 1.0)
