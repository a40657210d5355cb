"""Pictures: seed by seed, counted, and laid out in a labelled grid."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import PNDMScheduler
from PIL import Image
from zoo import ZOO

from guidefold.config import dump_toml
from guidefold.errors import InputError, RunError
from guidefold.progress import task
from guidefold.prompts import Prompt
from guidefold.randomness import generator
from guidefold.sample import Drawn, _add, draw, draw_session, grid, heading, picture_seeds, sample
from guidefold.session import open_session
from guidefold.settings import KINDS, PipelineSettings, Settings

PROMPTS = ["a red cat", "a big blue house near the old tree", "a dog", "a small bird"]
ASKED = [Prompt.of(prompt) for prompt in PROMPTS]
SEEDS = [11, 12, 13, 14]


@pytest.fixture
def drawer(built: Any, found: Any) -> Callable[..., Drawn]:
    def make(name: str, prompts: list[str], seeds: list[int], **options: Any) -> Drawn:
        call = dict(ZOO[name].call)
        options = {"guidance": 5.0, "steps": 2, "findings": found(name)} | options
        negative = call.pop("negative_prompt", None)
        findings = options.pop("findings")
        return draw(
            built(name),
            findings,
            PipelineSettings(source=name, call=call, negative_prompt=negative),
            [Prompt.of(prompt) for prompt in prompts],
            seeds,
            **options,
        )

    return make


@pytest.fixture
def begun(settings_for: Any, tmp_path: Path) -> Callable[[str], Settings]:
    """A run folder in which nothing but the settings stands."""

    def begin(name: str) -> Settings:
        settings = settings_for(name, tmp_path)
        Path(settings.run).mkdir()
        (Path(settings.run) / "config.toml").write_text(dump_toml(settings))
        return settings

    return begin


def pixels(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture, dtype=int) for picture in pictures])


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.copy()


def assert_same_pictures(one: list[Image.Image], two: list[Image.Image]) -> None:
    """Equal but for the last bit, which the order of sums in a batch may turn."""
    assert np.abs(pixels(one) - pixels(two)).max() <= 1


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
        _add(Drawn(), (np.zeros((1, 4)),), 1)


# The grid


@pytest.mark.parametrize(("side", "shown"), [(16, 128), (100, 200), (128, 128), (300, 300)])
def test_the_grid_has_room_for_every_picture_its_heading_and_its_caption(
    side: int, shown: int
) -> None:
    colours = [["red", "green", "blue"], ["white", "black", "gray"]]
    rows = [[Image.new("RGB", (side, side), c) for c in row] for row in colours]
    sheet = grid(rows, ["one", "two", "three"], ["a caption", "a much longer caption " * 5])
    assert sheet.size == (200 + 3 * (shown + 6), 44 + 2 * (shown + 6))
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            left, top = 200 + c * (shown + 6), 44 + r * (shown + 6)
            box = sheet.crop((left, top, left + shown, top + shown))
            assert box.getcolors() == [(shown * shown, picture.getpixel((0, 0)))]


def test_headings_say_who_drew_in_how_many_passes() -> None:
    assert heading("teacher", Drawn(passes_per_image=50)) == "CFG teacher\n50 passes"
    assert heading("student", Drawn(passes_per_image=25)) == "student\n25 passes"


# Files


def test_samples_are_written_one_file_a_picture_and_the_grid_first(
    begun: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    kinds = ("unguided", "teacher")
    files = sample(begun("sd15"), PROMPTS[:2], out, kinds=kinds, seeds=(1, 2))
    names = [f"{kind}-{k:03d}.png" for kind in kinds for k in range(4)]
    assert [path.name for path in files] == ["grid.png", *names]
    assert sorted(files) == sorted(out.iterdir())
    sizes = [opened(path).size for path in files]
    assert sizes == [(200 + 2 * 134, 44 + 4 * 134)] + [(16, 16)] * 8
    assert len({path.read_bytes() for path in files[1:]}) == 8


def test_a_sample_is_the_same_whatever_is_drawn_beside_it(begun: Any, tmp_path: Path) -> None:
    settings = begun("sd15")
    kinds = ("teacher",)
    many = sample(settings, PROMPTS[:2], tmp_path / "many", kinds=kinds, seeds=(1, 2))
    one = sample(settings, PROMPTS[1:2], tmp_path / "one", kinds=kinds, seeds=(2,))
    assert many[4].read_bytes() == one[1].read_bytes()


def test_a_video_is_written_as_a_gif_of_its_frames(begun: Any, tmp_path: Path) -> None:
    sheet, video = sample(begun("wan"), PROMPTS[:1], tmp_path / "out", kinds=("teacher",))
    assert video.name == "teacher-000.gif"
    with Image.open(video) as opened:
        assert opened.n_frames == ZOO["wan"].call["num_frames"]
        assert opened.size == (32, 32)
        assert opened.info["duration"] in (120, 125, 130)
    assert sheet.name == "grid.png"


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_progress_counts_every_step_of_every_picture(begun: Any, batch_size: int) -> None:
    settings = begun("sd15")
    asked = settings.evaluate.model_copy(update={"batch_size": batch_size})
    with (
        open_session(settings.model_copy(update={"evaluate": asked})) as session,
        task("Drawing", 100) as progress,
    ):
        draw_session(session, ASKED[:3], SEEDS[:3], 5.0, progress)
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


def test_a_teacher_asked_for_where_guidance_is_off_is_unguided(begun: Any, tmp_path: Path) -> None:
    settings = begun("sd15")
    files = sample(settings, PROMPTS[:1], tmp_path / "out", kinds=KINDS[:2], guidance=1.0)
    assert_same_pictures([Image.open(files[1])], [Image.open(files[2])])


@pytest.mark.parametrize("guidance", [0.5, -3.0, float("nan"), float("inf")])
def test_a_scale_below_off_is_refused_by_what_was_asked(
    begun: Any, tmp_path: Path, guidance: float
) -> None:
    with pytest.raises(InputError, match=f"guidance {guidance:g}: 1 switches"):
        sample(begun("sd15"), PROMPTS[:1], tmp_path, kinds=["teacher"], guidance=guidance)


def test_the_teacher_draws_at_the_guidance_that_is_measured(begun: Any, drawer: Any) -> None:
    settings = begun("sd15")
    asked = settings.evaluate.model_copy(update={"guidance": 3.0})
    with (
        open_session(settings.model_copy(update={"evaluate": asked})) as session,
        task("Drawing", 4) as progress,
    ):
        for kind, guidance in (("teacher", 3.0), ("unguided", 1.0), ("student", 1.0)):
            assert session.guidance_of(kind) == guidance
            drawn = draw_session(session, ASKED[:1], SEEDS[:1], guidance, progress)
            expected = drawer("sd15", PROMPTS[:1], SEEDS[:1], guidance=guidance)
            assert_same_pictures(drawn.pictures, expected.pictures)


def test_a_folder_without_a_run_and_a_run_without_an_adapter_are_refused(
    begun: Any, settings_for: Any, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="no adapter yet"):
        sample(begun("sd15"), PROMPTS[:1], tmp_path / "out", kinds=("student",))
    with pytest.raises(RunError, match="no run has begun here"):
        sample(settings_for("sd15", tmp_path / "other"), PROMPTS[:1], tmp_path / "out")


def test_a_strength_that_is_no_number_is_refused_before_anything_is_drawn(begun, tmp_path):
    with pytest.raises(InputError, match="strength: nan"):
        sample(begun("sd15"), ["a red cat"], tmp_path / "out", strength=float("nan"))


def test_a_folder_that_holds_no_adapter_is_refused_by_name(begun, tmp_path):
    with pytest.raises(RunError, match=r"no adapter of Guidefold's"):
        sample(begun("sd15"), ["a red cat"], tmp_path / "out", kinds=["student"], adapter=tmp_path)


@pytest.mark.parametrize("prompt", ["", "  "])
def test_an_empty_prompt_is_refused(begun: Any, tmp_path: Path, prompt: str) -> None:
    with pytest.raises(InputError, match="prompt: an empty one"):
        sample(begun("sd15"), ["a cat", prompt], tmp_path / "out", kinds=["teacher"])


@pytest.mark.parametrize(("kinds", "warned"), [(["teacher"], False), (["student"], True)])
def test_a_negative_prompt_that_the_student_ignores_is_told(
    begun: Any, tmp_path: Path, kinds: Any, warned: bool, capsys: Any
) -> None:
    row = Prompt("a cat", "rows:1", (("negative_prompt", "blurry"),))
    with contextlib.suppress(RunError):  # no adapter yet
        sample(begun("sd15"), [row], tmp_path / "out", kinds=kinds)
    assert ("ignores a row's negative_prompt" in capsys.readouterr().out) == warned


def test_the_same_prompt_with_the_same_seed_is_drawn_once(begun: Any, tmp_path: Path) -> None:
    files = sample(begun("sd15"), ["a cat"], tmp_path, kinds=["unguided"], seeds=[3, 4, 3])
    assert [file.name for file in files] == ["grid.png", "unguided-000.png", "unguided-001.png"]
