"""Pictures on request: the ones that ``sample`` makes, one wish at a time, ended when asked."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from painter import Painter, finish, make_session, working
from PIL import Image
from pydantic import ValidationError

from guidefold import api
from guidefold.deliver.metadata import read_dial
from guidefold.draw.pictures import Drawn
from guidefold.ground.errors import InputError, PromptError, RunError
from guidefold.lora.dial import SHOWN_DIGITS, Compared
from guidefold.run.config import dump_toml
from guidefold.run.settings import KINDS, Settings
from guidefold.show.live import (
    KEPT,
    LARGEST_SEED,
    LONGEST_PROMPT,
    Comparison,
    LivePictures,
    open_live,
)
from guidefold.show.sample import sample

COMPARISON = Comparison(prompt="a small blue dog", seed=7, strength=0.5)


@pytest.fixture(scope="module")
def trained(settings_for: Any, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings: Settings = settings_for("sd15", tmp_path_factory.mktemp("live"))
    api.distill(settings)
    api.export(settings)
    return settings


@pytest.fixture(scope="module")
def sampled(trained: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What ``sample`` writes; teacher and unguided without an adapter anywhere near them."""
    out = tmp_path_factory.mktemp("sampled")
    dial = read_dial(Path(trained.run) / "adapter")
    scale = round(dial.measured_guidance(COMPARISON.strength), SHOWN_DIGITS)
    served = trained.evaluate.model_copy(update={"guidance": scale})
    settings = trained.model_copy(update={"evaluate": served})
    prompts, seeds = [COMPARISON.prompt], [COMPARISON.seed]
    _, teacher, unguided = sample(settings, prompts, out, kinds=KINDS[:2], seeds=seeds)
    alone = {"seeds": seeds, "strength": COMPARISON.strength}
    _, student = sample(settings, prompts, out, kinds=KINDS[2:], **alone)
    files = dict(zip(KINDS, (teacher, unguided, student), strict=True))
    return {kind: file.read_bytes() for kind, file in files.items()}


@pytest.fixture(scope="module")
def live(trained: Settings, sampled: dict[str, bytes]) -> Iterator[LivePictures]:
    with open_live(trained) as opened:  # which holds the run: after whatever else does
        yield opened


@pytest.fixture
def painter() -> Painter:
    return Painter()


def files_of(live: LivePictures, comparison: Comparison) -> dict[str, bytes | None]:
    pictures = finish(live, live.begin(comparison))["pictures"]
    return {kind: live.picture(about["id"]) for kind, about in pictures.items()}


def facts_of(data: bytes | None) -> Any:
    return json.loads(Image.open(io.BytesIO(data or b"")).text["guidefold"])  # type: ignore[attr-defined]


# Pictures


def test_each_picture_is_the_one_that_sample_writes_bit_for_bit(
    live: LivePictures, sampled: dict[str, bytes]
) -> None:
    """The teacher's too: with the adapter loaded but off, as if there were none."""
    drawn = files_of(live, COMPARISON)
    for kind in KINDS:
        assert facts_of(drawn[kind]) == facts_of(sampled[kind])
    assert drawn == sampled
    assert len(set(sampled.values())) == 3


def test_passes_and_seconds_are_those_of_each_picture(live: LivePictures) -> None:
    pictures = finish(live, live.begin(COMPARISON))["pictures"]
    steps = live.session.settings.evaluate.steps
    passes = {kind: about["passes"] for kind, about in pictures.items()}
    assert passes == {"student": steps, "teacher": 2 * steps, "unguided": steps}
    assert all(about["seconds"] > 0 for about in pictures.values())
    assert {kind: about["guidance"] for kind, about in pictures.items()} == {
        "student": 1.0,
        "teacher": live.guidance_at(COMPARISON.strength),
        "unguided": 1.0,
    }


def test_a_picture_does_not_depend_on_what_was_drawn_before(live: LivePictures) -> None:
    first = files_of(live, COMPARISON)
    files_of(live, Comparison(prompt="an old red house", seed=1, strength=1.25))
    live.kept.clear()
    assert files_of(live, COMPARISON) == first


@pytest.mark.parametrize(
    "prompt", ["<script>alert(1)</script>", "{{ 7 * 7 }}", "../../etc/passwd", "🐈" * 900]
)
def test_whatever_is_written_is_a_prompt_and_nothing_else(live: LivePictures, prompt: str) -> None:
    drawn = files_of(live, Comparison(prompt=prompt, seed=LARGEST_SEED, strength=1))
    assert len(drawn) == 3


def test_what_no_tokenizer_takes_is_refused_before_it_is_drawn(live: LivePictures) -> None:
    with pytest.raises(PromptError, match="holds a NUL character"):
        live.begin(Comparison(prompt="a\x00b", seed=0, strength=1))


# The dial


def test_the_dial_goes_from_nothing_to_beyond_what_was_trained() -> None:
    dial = Painter().dial
    assert dial[0] == (0.0, 1.0)
    assert (0.5, 3.0) in dial
    assert (1.0, 5.0) in dial
    assert dial[-1][0] == pytest.approx(1.75)  # the strongest that was trained
    assert dial == sorted(dial)


def test_the_strength_that_was_measured_is_on_the_dial() -> None:
    session = make_session()
    session.compared = Compared(5.0, 0.777)
    assert (0.777, 4.11) in Painter(session).dial


def test_at_strength_0_the_teacher_is_the_unguided_one_and_drawn_once(painter: Painter) -> None:
    pictures = finish(painter, painter.begin(Comparison(prompt="a", seed=0, strength=0)))[
        "pictures"
    ]
    assert pictures["teacher"] == pictures["unguided"]
    assert len(painter.painted) == 2


def test_where_guidance_is_still_off_the_teacher_is_the_unguided_one() -> None:
    session = make_session()
    session.dial = replace(session.dial, origin=0.0)  # cond + s (cond - uncond), switched at 1
    painter = Painter(session)
    assert painter.guidance_at(0.1) == 1.0
    assert painter.guidance_at(0.5) == 2.5


# Comparisones


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": ""},
        {"prompt": "a" * (LONGEST_PROMPT + 1)},
        {"seed": -1},
        {"seed": LARGEST_SEED + 1},
        {"seed": True},
        {"seed": 1.5},
        {"strength": -0.1},
        {"strength": float("nan")},
        {"strength": float("inf")},
        {"strength": "1"},
        {"path": "x"},
    ],
)
def test_a_wish_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Comparison.model_validate({"prompt": "a", "seed": 0, "strength": 1.0, **wrong})


def test_an_empty_prompt_and_a_strength_beyond_the_dial_are_refused(painter: Painter) -> None:
    with pytest.raises(InputError, match="an empty one"):
        painter.begin(Comparison(prompt=" \n", seed=0, strength=1))
    with pytest.raises(InputError, match="NUL"):
        painter.begin(Comparison(prompt="a\x00b", seed=0, strength=1))
    with pytest.raises(InputError, match="beyond the dial"):
        painter.begin(Comparison(prompt="a", seed=0, strength=1.8))


def test_one_wish_is_drawn_at_a_time(painter: Painter) -> None:
    drawing = painter.begin(COMPARISON)
    assert painter.begin(COMPARISON) is None
    assert finish(painter, drawing)["state"] == "done"
    assert painter.begin(COMPARISON) is not None
    assert painter.status(drawing or "") is None, "another one is the last"


def test_steps_are_counted_and_what_stands_already_is_not_drawn_again(painter: Painter) -> None:
    stands = finish(painter, painter.begin(COMPARISON))
    assert (stands["done"], stands["total"]) == (12, 12)
    assert list(stands["pictures"]) == ["student", "teacher", "unguided"]
    again = finish(painter, painter.begin(Comparison(prompt=COMPARISON.prompt, seed=7, strength=1)))
    assert (again["done"], again["total"]) == (8, 8)
    assert again["pictures"]["unguided"] == stands["pictures"]["unguided"]


def test_the_oldest_pictures_go_and_those_of_the_last_drawing_stay(painter: Painter) -> None:
    first = finish(painter, painter.begin(COMPARISON))["pictures"]
    for seed in range(100, 100 + KEPT):
        last = finish(painter, painter.begin(Comparison(prompt="a", seed=seed, strength=1)))[
            "pictures"
        ]
    assert len(painter.kept) == KEPT
    assert all(painter.picture(about["id"]) is None for about in first.values())
    assert all(painter.picture(about["id"]) for about in last.values())


def test_a_drawing_that_nobody_wants_any_more_ends_at_its_next_step(painter: Painter) -> None:
    drawing = painter.begin(COMPARISON) or ""
    assert painter.stop(drawing)
    stands = finish(painter, drawing)
    assert (stands["state"], stands["done"], stands["pictures"]) == ("stopped", 1, {})
    assert not painter.stop("another")
    assert finish(painter, painter.begin(COMPARISON))["state"] == "done"


def test_a_fault_is_told_in_words_and_the_next_wish_is_drawn(
    painter: Painter, capsys: pytest.CaptureFixture[str]
) -> None:
    painter.fault = InputError("prompt: unheard of", "Say something else.")
    stands = finish(painter, painter.begin(COMPARISON))
    assert (stands["state"], stands["message"]) == (
        "failed",
        "prompt: unheard of\nSay something else.",
    )
    painter.fault = ValueError("secret.py line 3")
    stands = finish(painter, painter.begin(COMPARISON))
    assert stands["message"] == "The drawing failed; the terminal says why."
    assert "secret.py line 3" in capsys.readouterr().err
    painter.fault = None
    assert finish(painter, painter.begin(COMPARISON))["state"] == "done"


def test_work_ends_when_the_live_is_closed(painter: Painter) -> None:
    with working(painter):
        pass


def test_an_interrupt_ends_the_drawing_at_its_next_step_and_the_work_with_it(
    painter: Painter,
) -> None:
    painter.gate.clear()
    with working(painter):
        drawing = painter.begin(COMPARISON)
        painter.interrupt()
        painter.gate.set()
    stands = painter.status(drawing or "")
    assert stands is not None
    assert (stands["state"], stands["done"], painter.painted) == ("stopped", 1, [])
    assert painter.interrupted


# What it is not for


def test_a_pipeline_that_makes_videos_is_refused_at_the_start(
    painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [Image.new("RGB", (4, 4))] * 3
    video = Drawn(pictures=frames[:1], frames=[frames])
    monkeypatch.setattr(painter, "draw_anew", lambda *_: video)
    with pytest.raises(InputError, match="makes videos") as caught:
        painter.try_out()
    assert "guidefold sample" in caught.value.remedy


def test_a_run_whose_pipeline_is_given_more_than_a_prompt_is_refused_before_it_is_opened(
    trained: Settings, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "height": 16}\n{"prompt": "b"}\n', encoding="utf-8")
    asked = trained.prompts.model_copy(update={"path": str(rows)})
    with (
        pytest.raises(
            InputError, match=r"rows.jsonl:1: the run's pipeline is given more"
        ) as caught,
        open_live(trained.model_copy(update={"prompts": asked})),
    ):
        pass
    assert "guidefold sample" in caught.value.remedy


def test_a_run_without_an_adapter_is_refused(settings_for: Any, tmp_path: Path) -> None:
    settings = settings_for("sd15", tmp_path)
    with pytest.raises(RunError, match="no run has begun here"), open_live(settings):
        pass
    Path(settings.run).mkdir()
    (Path(settings.run) / "config.toml").write_text(dump_toml(settings))
    with pytest.raises(RunError, match="no adapter yet"), open_live(settings):
        pass
