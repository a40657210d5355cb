"""Training on smaller frozen weights and with smaller moments, without what nobody needs."""

import weakref
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from training import FOUR, Outcome, finish, interrupted
from zoo import WARNINGS

from guidefold import session as sessions
from guidefold.deliver.export import export
from guidefold.ground.errors import ConfigError, UnfoldableError
from guidefold.lora.frozen_weights import Frozen
from guidefold.pipeline.open import fingerprint, open_pipeline
from guidefold.record.rounds import record
from guidefold.run.files import read_json, read_lines
from guidefold.run.folder import RunFolder
from guidefold.run.settings import Settings
from guidefold.session import open_session
from guidefold.train import optimizer as optimizers
from guidefold.train import student
from guidefold.train.distill import Training
from guidefold.train.teacher_measures import TeacherMeasures

distill = import_module("guidefold.train.distill")  # its door has a function of that name

pytestmark = pytest.mark.filterwarnings(*WARNINGS)

Make = Callable[..., Settings]
STORAGES = ["bf16", "int8", "int4"]
ALONE = {**FOUR, "preview_prompts": 0}
DRAWN = {**FOUR, "preview_prompts": 1}


def watch(patch: pytest.MonkeyPatch, look: Callable[[Training], None]) -> None:
    """Look at every training step before it is made."""
    real = Training.train_step

    def train_step(self: Training, *stretch: Any) -> dict[str, Any]:
        look(self)
        return real(self, *stretch)

    patch.setattr(Training, "train_step", train_step)


def run_watched(settings: Settings) -> tuple[Outcome, Training]:
    """A run brought to its end, and its training."""
    seen: list[Training] = []
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, seen.append)
        return finish(settings), seen[-1]


@pytest.fixture(scope="module")
def whole(
    settings_for: Make, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Settings, Outcome, TeacherMeasures]:
    """A run on whole weights."""
    rounds = {"rounds": ["teacher", "noise"]}
    settings = settings_for("sd15", tmp_path_factory.mktemp("whole"), distill=DRAWN, record=rounds)
    found, training = run_watched(settings)
    return settings, found, training.measures


@pytest.fixture(scope="module", params=STORAGES)
def small(
    settings_for: Make, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Settings, Outcome, Training]:
    """The same run on smaller weights."""
    settings = settings_for(
        "sd15",
        tmp_path_factory.mktemp(request.param),
        distill={**DRAWN, "frozen_weights": request.param},
        record={"rounds": ["teacher", "noise"]},
    )
    return settings, *run_watched(settings)


def sums(settings: Settings) -> list[str]:
    folders = sorted((Path(settings.run) / "trajectories").iterdir())
    return [line["sha256"] for f in folders for line in read_lines(f / "manifest.jsonl")]


def test_a_student_on_smaller_weights_learns_as_one_on_whole_weights_does(
    whole: tuple[Settings, Outcome, TeacherMeasures], small: tuple[Settings, Outcome, Training]
) -> None:
    _, expected, _ = whole
    settings, found, training = small
    far = {"bf16": 0.05, "int8": 0.05, "int4": 0.15}[settings.distill.frozen_weights]
    assert found.losses == pytest.approx(expected.losses, rel=far)
    assert found.losses != expected.losses
    frozen = [m for m in training.student.denoiser.modules() if isinstance(m, Frozen)]
    assert len(frozen) >= len(training.student.adapter.layers)


def test_what_is_asked_of_the_teacher_is_asked_of_its_whole_weights(
    whole: tuple[Settings, Outcome, TeacherMeasures], small: tuple[Settings, Outcome, Training]
) -> None:
    """Targets, the size of guidance in every round, the unguided errors, the teacher's pictures."""
    settings, _, measures = whole
    mine, _, training = small
    assert sums(mine) == sums(settings) != []
    assert training.measures.sizes == measures.sizes
    assert measures.sizes.keys() == {0, 1}
    assert training.measures.unguided == measures.unguided != []
    for name in ("teacher-0.png", "unguided-0.png"):
        pictures = [Path(s.run) / "previews" / name for s in (mine, settings)]
        assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_after_its_weights_are_gone_the_teacher_is_not_asked(
    small: tuple[Settings, Outcome, Training],
) -> None:
    _, _, training = small
    with pytest.raises(AssertionError, match="weights are gone"):
        training.student.errors(training.launch.states(1, "training"), 1, adapted=False)


def test_the_written_adapter_is_measured_on_whole_weights(
    small: tuple[Settings, Outcome, Training],
) -> None:
    settings, found, _ = small
    folder = export(settings)
    with open_session(settings) as session:
        stored = fingerprint(open_pipeline(settings.pipeline.source).unet)
        assert fingerprint(session.denoiser) == stored == session.findings.fingerprint
    assert {t.dtype for n, t in found.tensors.items() if "lora" in n} == {torch.float32}
    assert read_json(folder / "guidefold.json")["findings"]["fingerprint"] == stored


def test_a_run_on_smaller_weights_that_stopped_ends_as_one_that_never_did_bit_for_bit(
    small: tuple[Settings, Outcome, Training], recorded: Make, tmp_path: Path
) -> None:
    settings, expected, _ = small
    tables = {name: getattr(settings, name).model_dump() for name in ("distill", "record")}
    again = recorded("sd15", tmp_path, **tables)
    interrupted(again, 3)
    assert finish(again) == expected
    for path in (Path(settings.run) / "previews").glob("*.png"):
        assert (Path(again.run) / "previews" / path.name).read_bytes() == path.read_bytes()


def test_previews_that_begin_after_a_stop_show_the_whole_teacher(
    whole: tuple[Settings, Outcome, TeacherMeasures], recorded: Make, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {**ALONE, "frozen_weights": "int4"}
    interrupted(recorded("sd15", tmp_path, distill=asked), 2)
    settings = recorded("sd15", tmp_path, distill={**asked, "preview_prompts": 1})
    finish(settings)
    folders = [RunFolder(s.run).previews for s in (settings, whole[0])]
    for name in ("teacher-0.png", "unguided-0.png"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert read_json(RunFolder(settings.run).preview_index)["steps"] == [4]


def test_checkpointing_and_autocast_go_with_smaller_weights(
    whole: tuple[Settings, Outcome, TeacherMeasures], recorded: Make, tmp_path: Path
) -> None:
    asked = {**ALONE, "gradient_checkpointing": True, "mixed_precision": "bf16"}
    settings = recorded(
        "sd15",
        tmp_path,
        distill={**asked, "frozen_weights": "int8"},
        record={"rounds": ["teacher", "noise"]},
    )
    assert finish(settings).losses == pytest.approx(whole[1].losses, rel=0.15)


@pytest.mark.parametrize("name", ["wan", "sd3", "pixart"])
def test_other_families_train_on_four_bits(settings_for: Make, tmp_path: Path, name: str) -> None:
    """Wan casts its timesteps to the type of a layer's first parameter."""
    asked = {"steps": 1, "preview_prompts": 0, "frozen_weights": "int4"}
    assert len(finish(settings_for(name, tmp_path, distill=asked)).losses) == 1


def test_weights_that_come_too_far_are_refused_by_name(
    recorded: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(student, "LARGEST_CHANGE", 0.0)
    settings = recorded("sd15", tmp_path, distill={**ALONE, "frozen_weights": "int4"})
    said = r"distill\.frozen_weights: 'int4' changes the output of UNet2DConditionModel by"
    with pytest.raises(UnfoldableError, match=said) as caught:
        distill.distill(settings)
    assert "frozen_weights=same" in caught.value.remedy


# What is in memory.


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, weakref.ref[torch.nn.Module]]]:
    """The modules of every pipeline that a session opens."""
    found: list[dict[str, weakref.ref[torch.nn.Module]]] = []
    real = sessions.open_placed

    def remember(*args: Any, **options: Any) -> Any:
        pipeline = real(*args, **options)
        parts = pipeline.components.items()
        found.append({n: weakref.ref(p) for n, p in parts if isinstance(p, torch.nn.Module)})
        return pipeline

    monkeypatch.setattr(sessions, "open_placed", remember)
    return found


@pytest.mark.parametrize(
    ("previews", "rounds", "before", "after"),
    [
        (0, ["teacher"], {"unet"}, {"unet"}),
        (0, ["teacher", "student"], {"unet", "vae", "text_encoder"}, {"unet"}),
        (1, ["teacher"], {"unet", "vae", "text_encoder"}, {"unet", "vae", "text_encoder"}),
    ],
)
def test_encoders_are_in_memory_while_somebody_will_record_or_draw(
    opened: list[dict[str, weakref.ref[torch.nn.Module]]],
    settings_for: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    previews: int,
    rounds: list[str],
    before: set[str],
    after: set[str],
) -> None:
    alive: list[set[str]] = []
    watch(monkeypatch, lambda _: alive.append({n for n, part in opened[-1].items() if part()}))
    asked = {**FOUR, "preview_prompts": previews}
    finish(settings_for("sd15", tmp_path, distill=asked, record={"rounds": rounds}))
    assert opened[-1].keys() == {"unet", "vae", "text_encoder"}
    assert alive == [before, before, after, after]


def test_a_run_that_was_recorded_before_loads_its_denoiser_alone_and_trains_the_same(
    opened: list[dict[str, weakref.ref[torch.nn.Module]]], settings_for: Make, tmp_path: Path
) -> None:
    straight = finish(settings_for("sd15", tmp_path / "straight", distill=ALONE))
    settings = settings_for("sd15", tmp_path / "apart", distill=ALONE)
    record(settings)
    interrupted(settings, 2)
    assert finish(settings) == straight
    assert [set(parts) for parts in opened[1:]] == [
        {"unet", "vae", "text_encoder"},
        {"unet"},
        {"unet"},
    ]
    export(settings)
    assert opened[-1].keys() > {"unet"}


def test_what_is_missing_of_a_recording_opens_the_whole_pipeline_again(
    opened: list[dict[str, weakref.ref[torch.nn.Module]]], settings_for: Make, tmp_path: Path
) -> None:
    settings = settings_for("sd15", tmp_path, distill=ALONE)
    interrupted(settings, 2)
    manifest = Path(settings.run) / "trajectories" / "round-0" / "manifest.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:-1]))
    finish(settings)
    assert opened[-1].keys() > {"unet"}
    assert len(manifest.read_text().splitlines()) == len(lines)


# The 8-bit optimizer.


def test_an_optimizer_that_is_not_installed_is_refused_before_anything_begins(
    settings_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda _: None)
    settings = settings_for("sd15", tmp_path, distill={"optimizer": "adamw8bit"})
    with pytest.raises(ConfigError, match="'adamw8bit' needs bitsandbytes"):
        distill.distill(settings)
    assert not Path(settings.run).exists()


@pytest.mark.skipif(find_spec(optimizers.LIBRARY) is None, reason="bitsandbytes is not installed")
def test_a_run_with_eight_bit_moments_learns_and_goes_on_bit_for_bit(
    recorded: Make, tmp_path: Path
) -> None:
    wide: dict[str, Any] = {"adapter": {"rank": 256, "targets": "attention"}}
    few = {**ALONE, "optimizer": "adamw8bit"}
    straight = finish(recorded("sd15", tmp_path / "straight", distill=few, **wide))
    stopped = recorded("sd15", tmp_path / "stopped", distill=few, **wide)
    interrupted(stopped, 2)
    assert finish(stopped) == straight
    assert any(t.dtype == torch.uint8 for t in straight.tensors.values())
    plain = finish(recorded("sd15", tmp_path / "plain", distill=ALONE, **wide))
    assert straight.losses == pytest.approx(plain.losses, rel=0.1)
    assert straight.losses != plain.losses
