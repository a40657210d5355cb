"""Trackers hear every line once, in its place, whether a run ends, stops or fails."""

import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import FOUR, finish, interrupted
from zoo import WARNINGS

from guidefold.ground.errors import ConfigError, NonFiniteError
from guidefold.pipeline.device import resolve_device
from guidefold.record import record
from guidefold.run.files import read_lines
from guidefold.run.settings import Settings
from guidefold.train import launch
from guidefold.train import trackers as tracking

distill = import_module("guidefold.train.distill")  # its door has a function of that name

pytestmark = pytest.mark.filterwarnings(*WARNINGS)

Make = Callable[..., Settings]
TRACKED = {
    **FOUR,
    "trackers": ["tensorboard"],
    "validate_every": 2,
    "preview_every": 2,
    "preview_prompts": 1,
}
Points = list[tuple[int, float]]


def events(settings: Settings) -> EventAccumulator:
    folder = Path(settings.run) / "trackers" / "guidefold"
    read = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    return read.Reload()


def curves(settings: Settings) -> dict[str, Points]:
    """What tensorboard shows: of each curve, steps and values."""
    read = events(settings)
    return {n: [(e.step, e.value) for e in read.Scalars(n)] for n in read.Tags()["scalars"]}


def logged(settings: Settings) -> dict[str, Points]:
    lines = read_lines(Path(settings.run) / "log.jsonl")
    return {
        name: [(line["step"], line[name]) for line in lines if name in line]
        for name in ("loss", "gradient_norm", "learning_rate", "residual_guidance")
    }


def same(found: dict[str, Points], expected: dict[str, Points]) -> bool:
    """Equal in tensorboard's single precision."""
    return found.keys() == expected.keys() and all(
        [step for step, _ in found[name]] == [step for step, _ in points]
        and [v for _, v in found[name]] == pytest.approx([v for _, v in points], rel=1e-6)
        for name, points in expected.items()
    )


def next_second() -> None:
    """Let it come: tensorboard orders its files by the second, then by a count, 10 before 9."""
    time.sleep(1.1)


@pytest.fixture
def settings(settings_for: Make, tmp_path: Path) -> Settings:
    return settings_for("sd15", tmp_path, distill=TRACKED)


def test_tensorboard_shows_what_the_log_holds(settings: Settings) -> None:
    finish(settings)
    assert [step for step, _ in curves(settings)["residual_guidance"]] == [2, 4]
    assert [step for step, _ in curves(settings)["loss"]] == [1, 2, 3, 4]
    assert same(curves(settings), logged(settings))


def test_tensorboard_shows_the_previews(settings_for: Make, tmp_path: Path) -> None:
    settings = settings_for("sd15", tmp_path, distill={**TRACKED, "preview_prompts": 2})
    finish(settings)
    shown = events(settings).Images("previews")
    assert [event.step for event in shown] == [0, 2, 4]
    with Image.open(Path(settings.run) / "previews" / "step-000004.png") as sheet:
        assert (shown[-1].width, shown[-1].height) == sheet.size


def test_trackers_are_told_the_settings_by_dotted_name(settings: Settings) -> None:
    finish(settings)
    (told,) = (Path(settings.run) / "trackers").rglob("hparams.yml")
    lines = told.read_text(encoding="utf-8").splitlines()
    assert {"distill.steps: 4", "record.guidance: '[3.0, 6.0]'", "adapter.dial: true"} < {*lines}


def test_a_resumed_run_goes_on_with_its_curves(settings: Settings) -> None:
    interrupted(settings, 3)
    assert [step for step, _ in curves(settings)["loss"]] == [1, 2, 3]
    next_second()
    finish(settings)
    assert same(curves(settings), logged(settings))


def test_what_a_crashed_run_told_of_steps_that_were_lost_is_told_anew(
    settings_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for("sd15", tmp_path, distill={**TRACKED, "checkpoint_every": 2})
    write_down = distill.Training._write_down

    def crash(self: distill.Training, *arguments: Any, **last: Any) -> None:
        write_down(self, *arguments, **last)
        if self.step == 3:
            raise ZeroDivisionError

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(distill.Training, "_write_down", crash)
        distill.distill(settings)
    assert [step for step, _ in curves(settings)["loss"]] == [1, 2, 3]
    next_second()
    finish(settings)
    assert same(curves(settings), logged(settings))


def test_trackers_are_closed_when_training_fails(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    tracker = LOGGER_TYPE_TO_CLASS["tensorboard"]
    monkeypatch.setattr(tracker, "finish", lambda self: closed.append(self.name))

    def fail(_self: distill.Training, *_stretch: Any) -> None:
        raise NonFiniteError("a loss")

    monkeypatch.setattr(distill.Training, "train_step", fail)
    with pytest.raises(NonFiniteError):
        distill.distill(settings)
    assert closed == ["tensorboard"]


def test_without_trackers_nothing_is_written_for_them(settings_for: Make, tmp_path: Path) -> None:
    settings = settings_for("sd15", tmp_path)
    finish(settings)
    assert not (Path(settings.run) / "trackers").exists()


def test_a_finished_run_tells_its_trackers_nothing_more(settings: Settings) -> None:
    finish(settings)
    folder = Path(settings.run) / "trackers"
    before = sorted(folder.rglob("*"))
    finish(settings)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "said", "remedy"),
    [
        ("paper", "'paper' is no tracker that accelerate knows", "tensorboard, "),
        ("all", "'all' is no tracker that accelerate knows", "wandb"),
        ("tensorboard", "'tensorboard' is not installed", "pip install 'guidefold[tensorboard]'"),
        ("wandb", "'wandb' is not installed", "pip install wandb"),
    ],
)
def test_a_tracker_that_cannot_hear_is_refused_before_anything_is_loaded(
    settings_for: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    said: str,
    remedy: str,
) -> None:
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    monkeypatch.setattr(launch, "open_session", lambda *_, **__: pytest.fail("opened"))
    settings = settings_for("sd15", tmp_path, distill={"trackers": [name]})
    with pytest.raises(ConfigError) as caught:
        distill.distill(settings)
    assert caught.value.message == f"distill.trackers: {said}"
    assert remedy in caught.value.remedy
    assert not Path(settings.run).exists()


# The device


def test_a_numbered_device_is_the_one_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    monkeypatch.setattr(tracking, "resolve_device", lambda device: device)
    assert tracking._take_device("cuda:1") == torch.device("cuda:1")
    assert tracking._take_device("cuda") == torch.device("cuda")
    assert tracking._take_device("cpu") == torch.device("cpu")
    assert chosen == [1]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="'cuda:1' is one device, and several processes"):
        tracking._take_device("cuda:1")


def test_the_next_run_of_a_process_takes_a_device_of_its_own(
    settings_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for("sd15", tmp_path)
    with monkeypatch.context() as other:
        other.setenv("ACCELERATE_TORCH_DEVICE", "meta")  # stands for an accelerator
        with tracking.open_accelerator(settings) as accelerator:
            assert accelerator.device.type == "meta"
    with tracking.open_accelerator(settings) as accelerator:
        assert accelerator.device.type == "cpu"


def test_a_device_that_cannot_be_used_is_refused_before_anything_is_written(
    settings_for: Make, tmp_path: Path
) -> None:
    settings = settings_for("sd15", tmp_path, pipeline={"device": "foo"})
    for verb in (distill.distill, record):
        with pytest.raises(ConfigError, match=r"pipeline\.device: 'foo'"):
            verb(settings)
    assert not Path(settings.run).exists()


def test_a_build_for_an_accelerator_without_a_driver_trains_on_the_cpu(
    settings_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {False: torch.device("cuda"), True: None}
    monkeypatch.setattr(
        torch.accelerator,
        "current_accelerator",
        lambda check_available=False: named[check_available],
    )
    with tracking.open_accelerator(settings_for("sd15", tmp_path)) as accelerator:
        assert accelerator.device == torch.device("cpu")
    assert resolve_device("auto") == "cpu"
