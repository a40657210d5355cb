"""Pictures of the user's own prompts: the files that are written, and what is refused."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pictures import assert_same_pictures
from PIL import Image
from zoo import ZOO

from guidefold.ground.errors import InputError, RunError
from guidefold.pipeline.prompts import Prompt
from guidefold.run.config import dump_toml
from guidefold.run.settings import KINDS, Settings
from guidefold.show.sample import sample

PROMPTS = ["a red cat", "a big blue house near the old tree"]


@pytest.fixture
def begun(settings_for: Any, tmp_path: Path) -> Callable[[str], Settings]:
    """A run folder in which nothing but the settings stands."""

    def begin(name: str) -> Settings:
        settings = settings_for(name, tmp_path)
        Path(settings.run).mkdir()
        (Path(settings.run) / "config.toml").write_text(dump_toml(settings))
        return settings

    return begin


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.copy()


def test_samples_are_written_one_file_a_picture_and_the_grid_first(
    begun: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    kinds = ("unguided", "teacher")
    files = sample(begun("sd15"), PROMPTS[:2], out, kinds=kinds, seeds=(1, 2))
    grid, *names = [path.name for path in files]
    assert grid.startswith("grid-a-red-cat-")
    scales = ("unguided.png", "teacher-g5.png")
    prompts = ("a-red-cat", "a-big-blue-house-near-the-old-tree")
    expected = [(p, f"seed{s}", end) for end in scales for p in prompts for s in (1, 2)]
    for name, (prompt, seed, end) in zip(names, expected, strict=True):
        assert name.startswith(f"{prompt}-{seed}-")
        assert name.endswith(f"-{end}")
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
    assert video.name.endswith("-teacher-g5.gif")
    assert sheet.name.startswith("grid-")
    with Image.open(video) as opened:
        assert opened.n_frames == ZOO["wan"].call["num_frames"]
        assert opened.size == (32, 32)
        assert opened.info["duration"] in (120, 125, 130)
        assert json.loads(opened.info["comment"])["prompt"] == PROMPTS[0]


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
    assert [file.name.split("-")[2] for file in files[1:]] == ["seed3", "seed4"]


def test_other_prompts_and_settings_leave_every_earlier_file_as_it_was(
    begun: Any, tmp_path: Path
) -> None:
    settings, out, kinds = begun("sd15"), tmp_path / "out", ["teacher", "unguided"]
    first = sample(settings, ["a red cat"], out, kinds=kinds)
    before = {path: path.read_bytes() for path in first}
    second = sample(settings, ["a blue dog"], out, kinds=["unguided"])
    shorter = settings.evaluate.model_copy(update={"steps": 1})
    others = settings.model_copy(update={"evaluate": shorter})
    third = sample(others, ["a red cat"], out, kinds=["teacher"])
    assert sorted(out.iterdir()) == sorted({*first, *second, *third})
    assert len({*first, *second, *third}) == 3 + 2 + 2
    assert {path: path.read_bytes() for path in first} == before
    assert sorted(sample(settings, ["a red cat"], out, kinds=kinds)) == sorted(first)


def test_a_picture_holds_what_it_was_drawn_with(begun: Any, tmp_path: Path) -> None:
    sheet, picture = sample(begun("sd15"), ["a chat doré 猫"], tmp_path, kinds=["teacher"])
    facts = {"kind": "teacher", "prompt": "a chat doré 猫", "seed": 0, "guidance": 5.0}
    facts |= {"strength": None, "steps": 2}
    assert json.loads(opened(picture).info["guidefold"]) == facts
    assert json.loads(opened(sheet).info["guidefold"]) == {"pictures": [facts]}
