"""Real training on a tiny pipeline: repeatable, resumable, and stopped where it must be."""

import json
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from training import FOUR, Outcome, finish, interrupted, outcome
from zoo import WARNINGS

from guidefold.deliver.export import export
from guidefold.ground.errors import NonFiniteError, UnfoldableError
from guidefold.ground.progress import Stopped
from guidefold.record import recorder as trajectories
from guidefold.record.rounds import record
from guidefold.run.files import read_lines
from guidefold.run.lines import TrainingLine
from guidefold.run.settings import Settings
from guidefold.train import checkpoints
from guidefold.train.batches import Batch
from guidefold.train.distill import Training

distill = import_module("guidefold.train.distill")  # its door has a function of that name

pytestmark = pytest.mark.filterwarnings(*WARNINGS)

Make = Callable[..., Settings]
ROUNDS = {"rounds": ["teacher", "student"]}


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"distill": FOUR},
    "accumulated": {"distill": {**FOUR, "accumulation": 2, "batch_size": 4}},
    "rounds": {"distill": FOUR, "record": ROUNDS},
}


@pytest.fixture(scope="module")
def straight(recorded: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Each variant's outcome of a run that never stopped."""
    return {
        name: finish(recorded("sd15", tmp_path_factory.mktemp(name), **tables))
        for name, tables in VARIANTS.items()
    }


def test_training_learns(straight: dict[str, Outcome]) -> None:
    losses = straight["plain"].losses
    assert len(losses) == 4
    assert losses[-1] < losses[0]


def test_the_same_settings_give_the_same_run_bit_for_bit(
    straight: dict[str, Outcome], recorded: Make, tmp_path: Path
) -> None:
    assert finish(recorded("sd15", tmp_path, **VARIANTS["plain"])) == straight["plain"]


def test_another_seed_gives_another_run(
    straight: dict[str, Outcome], recorded: Make, tmp_path: Path
) -> None:
    other = finish(recorded("sd15", tmp_path, seed=1, **VARIANTS["plain"]))
    assert other.losses[0] != straight["plain"].losses[0]


@pytest.mark.parametrize(
    ("variant", "step"), [("plain", 2), ("accumulated", 2), *(("rounds", k) for k in (1, 2, 3))]
)
def test_a_run_that_stopped_ends_as_one_that_never_did_bit_for_bit(
    straight: dict[str, Outcome], recorded: Make, tmp_path: Path, variant: str, step: int
) -> None:
    settings = recorded("sd15", tmp_path, **VARIANTS[variant])
    interrupted(settings, step)
    assert finish(settings) == straight[variant]


def test_a_run_stopped_while_its_student_is_recorded_ends_the_same(
    straight: dict[str, Outcome],
    recorded: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = recorded("sd15", tmp_path, **VARIANTS["rounds"])
    append = trajectories.append_line

    def stop_at_the_first_student_line(path: Path, line: dict[str, Any]) -> None:
        append(path, line)
        if line["source"] == "student":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(trajectories, "append_line", stop_at_the_first_student_line)
    with pytest.raises(Stopped, match="Stopped: 1 of 3 trajectories recorded") as caught:
        distill.distill(settings)
    assert caught.value.exit_code == 130
    monkeypatch.undo()
    assert finish(settings) == straight["rounds"]


def test_without_the_optimizer_a_resumed_run_shows_it(
    straight: dict[str, Outcome],
    recorded: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control: the first resumed loss is equal all the same, the later ones are not."""
    settings = recorded("sd15", tmp_path, **VARIANTS["plain"])
    interrupted(settings, 2)
    monkeypatch.setattr(checkpoints, "restore_optimizer", lambda *_: None)
    forgetful = finish(settings)
    assert forgetful.losses[:3] == straight["plain"].losses[:3]
    assert forgetful.losses[3] != straight["plain"].losses[3]
    assert forgetful != straight["plain"]


def test_a_finished_run_is_left_as_it_is(
    straight: dict[str, Outcome], recorded: Make, tmp_path: Path
) -> None:
    settings = recorded("sd15", tmp_path, **VARIANTS["plain"])
    finish(settings)
    assert finish(settings) == straight["plain"]


def test_accumulation_changes_sums_only_in_their_last_bits(
    straight: dict[str, Outcome], recorded: Make, tmp_path: Path
) -> None:
    whole = finish(recorded("sd15", tmp_path, distill={**FOUR, "batch_size": 4}))
    assert whole.losses == pytest.approx(straight["accumulated"].losses, rel=1e-4)


def test_gradient_checkpointing_gives_the_same_losses(
    straight: dict[str, Outcome], recorded: Make, tmp_path: Path
) -> None:
    distilling = {**FOUR, "gradient_checkpointing": True}
    checkpointed = finish(recorded("sd15", tmp_path, distill=distilling))
    assert checkpointed.losses == pytest.approx(straight["plain"].losses, rel=1e-4)


def test_checkpointing_that_changes_the_output_is_refused_by_name(
    recorded: Make, tmp_path: Path
) -> None:
    settings = recorded("chroma", tmp_path, distill={"gradient_checkpointing": True})
    with pytest.raises(UnfoldableError, match="ChromaTransformer2DModel: gradient checkpointing"):
        distill.distill(settings)


@pytest.mark.parametrize(("dtype", "rounding"), [("fp16", 0.02), ("bf16", 0.15)])
def test_half_precision_weights_train_an_adapter_in_float32_that_can_be_exported(
    straight: dict[str, Outcome], recorded: Make, tmp_path: Path, dtype: str, rounding: float
) -> None:
    settings = recorded("sd15", tmp_path, pipeline={"dtype": dtype}, distill=FOUR)
    half = finish(settings)
    assert half.losses[0] == pytest.approx(straight["plain"].losses[0], rel=rounding)
    assert half.losses[-1] < half.losses[0]
    assert {t.dtype for t in half.tensors.values()} == {torch.float32}
    assert export(settings).is_dir()


def test_mixed_precision_trains_in_bfloat16(
    straight: dict[str, Outcome], recorded: Make, tmp_path: Path
) -> None:
    mixed = finish(recorded("sd15", tmp_path, distill={**FOUR, "mixed_precision": "bf16"}))
    assert mixed.losses == pytest.approx(straight["plain"].losses, rel=0.1)
    assert mixed.losses != straight["plain"].losses


def test_noise_rounds_are_recorded_of_the_teacher_without_the_adapter(
    settings_for: Make, tmp_path: Path
) -> None:
    tables: dict[str, Any] = {"record": {"rounds": ["teacher", "noise"]}, "distill": FOUR}
    apart = settings_for("sd15", tmp_path / "apart", **tables)
    record(apart)
    at_once = settings_for("sd15", tmp_path / "at-once", **tables)
    assert finish(apart) == finish(at_once)
    sums = [
        [line["sha256"] for line in read_lines(Path(s.run) / "trajectories/round-1/manifest.jsonl")]
        for s in (apart, at_once)
    ]
    assert sums[0] == sums[1] != []


def test_the_plain_loss_is_the_mean_squared_error(
    recorded: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, expected = Training.train_step, []

    def train_step(self: Training, *stretch: Any) -> TrainingLine:
        with (
            self.student.adapter.teacher_mode()
        ):  # before its first step the student is the teacher
            answers = [(self.student.predict(b), b.target) for b in self._pieces(*stretch)]
        expected.append(float(torch.cat([a - t for a, t in answers]).square().mean()))
        return real(self, *stretch)

    monkeypatch.setattr(Training, "train_step", train_step)
    found = finish(recorded("sd15", tmp_path, distill={"loss": "plain", "steps": 1}))
    assert found.losses == pytest.approx(expected, rel=1e-5)


# Law 6.


def poison(patch: pytest.MonkeyPatch, step: int, value: float) -> dict[str, torch.Tensor]:
    """Put a value into the targets of a step; returns the parameters from before it, once there."""
    real, before = Training._pieces, {}

    def pieces(self: Training, *stretch: Any) -> list[Batch]:
        batches = real(self, *stretch)
        if self.step == step:
            before.update({n: t.clone() for n, t in self.student.adapter.state_dict().items()})
            batches[-1].target.view(-1)[0] = value
        before["trained"] = self.student.adapter.state_dict()  # not copies
        return batches

    patch.setattr(Training, "_pieces", pieces)
    return before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_nothing_is_applied(
    recorded: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    settings = recorded("sd15", tmp_path, distill={**FOUR, "checkpoint_every": 1})
    before = poison(monkeypatch, 2, value)
    with pytest.raises(NonFiniteError, match=r"step 2: loss (nan|inf)"):
        distill.distill(settings)
    for name, tensor in before.pop("trained").items():
        assert torch.equal(tensor, before[name])
    saved = outcome(Path(settings.run))
    assert len(saved.losses) == 2
    assert all(torch.equal(saved.tensors[name], tensor) for name, tensor in before.items())
    assert all(bool(t.isfinite().all()) for t in saved.tensors.values())
    assert "NaN" not in json.dumps(saved.log)


def test_a_run_goes_on_from_before_the_loss_that_was_not_finite(
    straight: dict[str, Outcome], recorded: Make, tmp_path: Path
) -> None:
    settings = recorded("sd15", tmp_path, **VARIANTS["plain"])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(NonFiniteError):
        poison(patch, 3, float("nan"))
        distill.distill(settings)
    assert finish(settings) == straight["plain"]


# Measured along the way.


def test_a_validation_tells_seconds_of_training_so_far_also_after_a_stop(
    recorded: Make, tmp_path: Path
) -> None:
    settings = recorded("sd15", tmp_path, distill={**FOUR, "validate_every": 1})
    interrupted(settings, 2)
    finish(settings)
    lines = read_lines(Path(settings.run) / "log.jsonl")
    spent = 0.0
    for step, told in zip(lines[::2], lines[1::2], strict=True):
        spent += step["seconds"]
        assert told["training_seconds"] == pytest.approx(spent, abs=1e-3)
        assert told["peak_memory"]["kind"] == "resident"
        assert told["peak_memory"]["bytes"] > 2**27


@pytest.mark.parametrize(("previews", "rounds"), [(0, ["teacher"]), (1, ROUNDS["rounds"])])
def test_while_training_encoders_are_gone_or_parked(
    settings_for: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    previews: int,
    rounds: list[str],
) -> None:
    found: list[tuple[bool, bool]] = []
    real = Training.train_step

    def train_step(self: Training, *stretch: Any) -> TrainingLine:
        found.append((self.launch.session.others_on_cpu, self.launch.session.pipeline.vae is None))
        return real(self, *stretch)

    monkeypatch.setattr(Training, "train_step", train_step)
    tables: dict[str, Any] = {
        "distill": {"preview_prompts": previews},
        "record": {"rounds": rounds},
    }
    finish(settings_for("sd15", tmp_path, **tables))
    assert found == [(bool(previews), not previews)] * 2
