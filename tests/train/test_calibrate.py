"""The dial, measured: against closed forms, and against trying every strength."""

from pathlib import Path
from typing import Any

import pytest
import torch

from guidefold.deliver.export import deliver, export
from guidefold.deliver.metadata import read_dial
from guidefold.ground.errors import InputError
from guidefold.lora.dial import Dial
from guidefold.lora.loaded import DIFFUSERS_FILE
from guidefold.record.rounds import recorded_states
from guidefold.run.files import read_json
from guidefold.run.settings import Settings
from guidefold.run.tensors import read_metadata
from guidefold.session import open_session
from guidefold.show.sample import sample
from guidefold.train.calibrate import (
    StateResponse,
    find_marks,
    measure_responses,
    strength_grid,
)
from guidefold.train.checkpoints import load_checkpoint
from guidefold.train.distill import distill
from guidefold.train.student import lora_student

STRENGTHS = strength_grid(2.0)
SCALES = [1 + 4 * s for s in STRENGTHS[1:]]  # what they stand for: origin 1, g_ref 5


def response(moves: Any, span: float = 4.0, timestep: float = 500.0) -> StateResponse:
    """What a student says that moves by ``moves(s)``, where the teacher moves by ``span * (1, 0)``.

    Args:
        moves: The student's move at a strength, two numbers.
        span: The state's guidance scale above the origin.
        timestep: Of the state.
    """
    target = torch.tensor([span, 0.0])
    said = [torch.tensor(moves(s)) for s in STRENGTHS]
    return StateResponse(
        timestep,
        1 + span,
        float(target.square().mean()),
        tuple(float(d.square().mean()) for d in said),
        tuple(float((d * target).mean()) for d in said),
    )


@pytest.mark.parametrize("too_weak", [1.0, 0.8])
def test_a_student_that_moves_in_proportion_is_turned_up_by_what_it_lacks(too_weak: float) -> None:
    states = [response(lambda s: (too_weak * 4 * s, 0.0), span) for span in (2.0, 4.0, 7.0)]

    marks = find_marks(states, STRENGTHS, 1.0, SCALES, linear=True)

    assert len(marks) > 8
    for mark in marks:
        assert mark.strength == pytest.approx((mark.guidance - 1) / 4 / too_weak)
        assert mark.residual == pytest.approx(0, abs=1e-6)


def test_what_a_student_has_not_learnt_does_not_pull_the_dial() -> None:
    """The best guess from half of what is to be known: ``<d, t> = <d, d>``, half explained."""
    states = [response(lambda s: (2 * s, 2 * s))]

    marks = find_marks(states, STRENGTHS, 1.0, SCALES, linear=True)

    for mark in marks:
        assert mark.strength == pytest.approx((mark.guidance - 1) / 4)
        assert mark.residual == pytest.approx(0.5)


def test_noise_levels_count_alike_however_large_guidance_is_there() -> None:
    """Half the states at a level where everything is a thousand times larger."""
    weak = [response(lambda s: (3 * s, 0.0), timestep=900.0) for _ in range(4)]
    large = [
        StateResponse(
            100.0, x.guidance, 1e6 * x.target, *[tuple(1e6 * v for v in values) for values in both]
        )
        for x in weak
        for both in [(x.student, x.agreement)]
    ]

    alone = find_marks(weak, STRENGTHS, 1.0, SCALES, linear=True)
    together = find_marks(weak + large, STRENGTHS, 1.0, SCALES, linear=True)

    assert [m.strength for m in together] == pytest.approx([m.strength for m in alone])
    assert [m.residual for m in together] == pytest.approx([m.residual for m in alone])


def test_guidance_that_is_not_linear_is_read_off_states_of_about_that_scale() -> None:
    """A teacher that saturates: at g = 3 the student must go to 0.5, at g = 5 no further."""
    states = [response(lambda s: (4 * s, 0.0), span=2.0)] * 3
    saturated = [StateResponse(500.0, 5.0, x.target, x.student, x.agreement) for x in states]

    marks = find_marks(states + saturated, STRENGTHS, 1.0, [2.9, 3.0, 3.1, 5.0, 5.5], linear=False)

    assert [m.guidance for m in marks] == [3.0]
    assert marks[0].strength == pytest.approx(0.5)


def test_a_scale_that_no_strength_tried_reaches_has_no_mark() -> None:
    marks = find_marks([response(lambda s: (0.4 * s, 0.0))], STRENGTHS, 1.0, SCALES, linear=True)

    assert max(m.guidance for m in marks) < 1 + 0.4 * STRENGTHS[-1] + 0.2
    assert find_marks([], STRENGTHS, 1.0, SCALES, linear=True) == []


def test_the_dial_never_turns_back() -> None:
    """A student that collapses at high strength: its marks end where it begins to."""
    states = [response(lambda s: (4 * s if s < 1 else 4 / s, 0.0))]

    marks = find_marks(states, STRENGTHS, 1.0, SCALES, linear=True)

    strengths = [m.strength for m in marks]
    assert strengths == sorted(set(strengths))
    assert 4 < marks[-1].guidance < 6


# On a real pipeline


@pytest.fixture(scope="module")
def run(settings_for: Any, tmp_path_factory: Any) -> Settings:
    """Trained until its dial turns, exported."""
    asked: dict[str, Any] = {
        "record": {"trajectories": 8, "validation_trajectories": 4, "states_per_trajectory": 3},
        "adapter": {"rank": 4},
        "distill": {"steps": 40, "batch_size": 4, "learning_rate": 0.02, "validate_every": 40},
    }
    settings: Settings = settings_for("sd15", tmp_path_factory.mktemp("dial"), **asked)
    distill(settings)
    export(settings)
    return settings


def test_what_is_heard_is_the_error_that_training_measures(run: Settings) -> None:
    with open_session(run) as session:
        refs = recorded_states(session, 0, "held-out")[:5]
        student = lora_student(session, refs)
        load_checkpoint(session.run.checkpoints()[-1], student.adapter, None)
        errors = student.errors(refs, 2)
        unguided = student.errors(refs, 2, adapted=False)
        for ref, error, size in zip(refs, errors, unguided, strict=True):
            own = session.dial.nominal_strength(ref.guidance)
            (state,) = measure_responses(student, [ref], [0.0, own])
            assert state.errors(1.0) == pytest.approx([size, error], rel=1e-4)
            assert state.target == pytest.approx(size, rel=1e-4)
        together = measure_responses(student, refs, [0.5])
        assert [x.timestep for x in together] == [ref.timestep for ref in refs]
        for ref, state in zip(refs, together, strict=True):
            (alone,) = measure_responses(student, [ref], [0.5])
            assert state.agreement == pytest.approx(alone.agreement, rel=1e-3)
        student.adapter.detach()


def test_an_adapter_carries_its_dial(run: Settings) -> None:
    folder = Path(run.run) / "adapter"
    marks = read_dial(folder).marks

    assert marks
    assert [m.guidance for m in marks] == sorted(m.guidance for m in marks)
    assert [m.strength for m in marks] == sorted(m.strength for m in marks)
    within = read_metadata(folder / DIFFUSERS_FILE)
    assert within is not None
    assert within["dial_table"] == read_json(folder / "guidefold.json")["dial_table"]


def test_sample_sets_the_strength_that_a_guidance_scale_takes(
    run: Settings, tmp_path: Path
) -> None:
    dial = read_dial(Path(run.run) / "adapter")
    marks = dial.marks
    guidance = (marks[0].guidance + marks[-1].guidance) / 2

    by_guidance = sample(run, ["a big red cat"], tmp_path / "one", guidance=guidance)
    by_strength = sample(
        run,
        ["a big red cat"],
        tmp_path / "two",
        strength=dial.measured_strength(guidance),
        kinds=["student"],
    )
    at_g_ref = sample(run, ["a big red cat"], tmp_path / "three", kinds=["teacher", "student"])

    _, teacher, _, student = (path.read_bytes() for path in by_guidance)
    assert student == by_strength[1].read_bytes()
    _, other_teacher, other_student = (path.read_bytes() for path in at_g_ref)
    assert (teacher != other_teacher, student != other_student) == (True, True)


def test_a_scale_beyond_the_dial_is_refused_before_anything_is_drawn(
    run: Settings, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="guidance 40: the adapter's dial is measured from"):
        sample(run, ["a big red cat"], tmp_path / "out", guidance=40.0)


@pytest.mark.parametrize("kind", ["diffusers", "kohya", "peft", "fused"])
def test_a_file_for_one_scale_stands_there_at_strength_1(
    run: Settings, kind: str, tmp_path: Path
) -> None:
    dial = read_dial(Path(run.run) / "adapter")
    marks = dial.marks
    guidance = round((marks[0].guidance + marks[-1].guidance) / 2, 2)

    (verdict,) = deliver(run, kind, tmp_path, guidance=guidance).verdicts

    assert not verdict.problems
    assert verdict.difference is not None and verdict.difference < 1e-3
    assert verdict.path.is_relative_to(tmp_path / f"{kind}-g{guidance:g}")
    about = read_metadata(verdict.path)
    assert about is not None
    assert about["g_ref"] == guidance
    assert f"strength 1 = guidance {guidance:g}" in about["usage_hint"]
    assert Dial.from_json(about).measured_strength(guidance) == pytest.approx(1)
