"""The paper's systems beside Guidefold's default, through the same road."""

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from guidefold.bench.choices import select
from guidefold.bench.fidelity.compare import MethodResult, bench_fidelity
from guidefold.bench.fidelity.methods import (
    GUIDEFOLD,
    METHODS,
    PAPER,
    PLAIN,
    SELECTIVE,
)
from guidefold.bench.fidelity.tables import (
    categories,
    cell,
    curve_svg,
    levels,
    markdown,
    overview,
    picture_grid,
)
from guidefold.bench.fidelity.trials import Trial, Trials
from guidefold.cli.bench import bench
from guidefold.ground.errors import ConfigError
from guidefold.run.config import dump_toml

TINY = (
    "threads=1",
    "record.trajectories=8",
    "record.validation_trajectories=4",
    "record.states_per_trajectory=2",
    "record.steps=[4, 4]",
    "record.batch_size=8",
    "adapter.rank=2",
    "distill.steps=4",
    "distill.batch_size=4",
    "distill.validate_every=2",
    "distill.checkpoint_every=4",
    "distill.preview_prompts=0",
    "evaluate.prompts=5",
    "evaluate.steps=4",
    "evaluate.state_prompts=2",
    "evaluate.grid_prompts=2",
    "evaluate.dial_prompts=0",
)


@pytest.fixture(scope="module")
def trials(tmp_path_factory: Any) -> Trials:
    return Trials(tmp_path_factory.mktemp("fidelity"), "demo", TINY)


@pytest.fixture(scope="module")
def found(trials: Trials) -> list[MethodResult]:
    return bench_fidelity(trials, METHODS, [0])


def settings_of(trials: Trials, method: Any) -> Any:
    return trials.settings(method.trial(trials.settings(Trial((), 0)), 0))


def test_the_paper_noises_pictures_at_one_scale_with_the_plain_loss(trials: Trials) -> None:
    paper, plain, own = (settings_of(trials, m) for m in (PAPER, PLAIN, GUIDEFOLD))
    for settings in (paper, plain):
        assert settings.record.rounds == ["noise"]
        assert settings.record.guidance == (4.0, 4.0)
        assert settings.record.states_per_trajectory == 4, "every state of 4 steps"
        assert settings.distill.loss == "plain"
        assert not settings.adapter.dial
    assert (paper.adapter.targets, paper.adapter.rank) == ("attention", 4)
    assert own == trials.settings(Trial((), 0))


def test_recordings_cost_the_same_passes(trials: Trials) -> None:
    """A noised picture costs two guided runs, a teacher's trajectory one."""
    paper, own = settings_of(trials, PAPER), settings_of(trials, GUIDEFOLD)
    assert 2 * paper.record.trajectories == own.record.trajectories


def test_passes_are_about_equal_between_trained_methods(found: list[MethodResult]) -> None:
    trained = {f.method: f.training_passes for f in found if f.training_passes}
    assert trained.keys() == {"plain-distillation", "paper-lora", "guidefold"}
    held_out = 4 * 8 + 3 * 4 * 2  # twice the passes to record, twice the states to validate on
    assert max(trained.values()) - min(trained.values()) <= held_out + 2


def test_passes_per_picture_are_those_of_the_method(found: list[MethodResult]) -> None:
    assert {f.method: f.passes for f in found} == {
        "teacher": 8,
        "unguided": 4,
        "selective-guidance": 6,
        "plain-distillation": 4,
        "paper-lora": 4,
        "guidefold": 4,
    }


def test_everything_is_measured_for_every_method(found: list[MethodResult]) -> None:
    for entry in found:
        assert entry.alignment is not None
        assert entry.categories
        if entry.method != "teacher":
            assert entry.distance > 0
            assert entry.frechet_distance is not None
            assert entry.recall is not None
        if entry.training_passes:
            assert entry.curve[-1][0] == entry.training_passes
            assert {"teacher_states", "student_states"} == entry.residual.keys()


def test_guidance_in_half_the_steps_is_nearer_to_the_teacher_than_in_none(
    found: list[MethodResult],
) -> None:
    (selective,) = (f for f in found if f.method == SELECTIVE.name)
    assert 0 < selective.distance < 1


def test_a_pipeline_without_a_judge_is_compared_by_the_model_that_was_asked_for(
    settings_for: Any, vision: Path, tmp_path: Path
) -> None:
    settings = settings_for("sd15", tmp_path, evaluate={"features": str(vision), "prompts": 2})
    preset = tmp_path / "preset.toml"
    preset.write_text(dump_toml(settings))
    (entry,) = bench_fidelity(Trials(tmp_path / "out", str(preset)), [SELECTIVE], [0])
    assert (entry.alignment, entry.categories) == (None, {})
    assert entry.frechet_distance is not None
    assert 0 < entry.distance < 1


def test_what_is_finished_is_not_run_again(
    trials: Trials, found: list[MethodResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guidefold.bench.fidelity.trials.train_with", None)
    monkeypatch.setattr("guidefold.bench.fidelity.compare.draw", None)
    assert bench_fidelity(trials, METHODS, [0]) == found


def entry(method: str, seed: int, alignment: float, residual: float | None = None) -> MethodResult:
    level = {"low": 1.0, "high": 9.0, "residual": residual, "states": 3}
    states = {"mean": residual, "levels": [level]}
    both = {} if residual is None else {"teacher_states": states, "student_states": states}
    return MethodResult(
        method=method,
        title=method.upper(),
        seed=seed,
        training_passes=1000,
        passes=20,
        alignment=alignment,
        categories={"x": alignment},
        distance=0.5,
        frechet_distance=1.0,
        recall=0.5,
        residual=both,
        curve=[],
    )


def test_means_and_deviations_are_over_seeds_and_ratios_within_them() -> None:
    made = [entry("teacher", 0, 0.8), entry("own", 0, 0.4, 0.3)]
    made += [entry("teacher", 1, 0.5), entry("own", 1, 0.5, 0.5)]
    headings, rows = overview(made)
    own = dict(zip(headings, rows[1], strict=True))
    ratios = [0.5, 1.0]
    assert own["alignment / CFG's"] == f"{mean(ratios):.3f} ± {stdev(ratios):.3f}"
    assert own["residual, teacher's states"] == f"0.400 ± {stdev([0.3, 0.5]):.3f}"
    assert dict(zip(headings, rows[0], strict=True))["distance"] == "0"
    assert levels(made, "student_states")[1] == [["OWN", f"0.400 ± {stdev([0.3, 0.5]):.3f}"]]
    assert categories(made)[1][0] == ["TEACHER", f"0.650 ± {stdev([0.8, 0.5]):.3f}"]


def test_one_seed_has_no_deviation_and_nothing_is_a_dash() -> None:
    assert (cell([0.25]), cell([None, 0.5]), cell([None]), cell([])) == ("0.250", "0.500", "-", "-")


def test_markdown_has_a_rule_under_its_headings() -> None:
    assert markdown((["a", "b"], [["1", "2"]])) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_the_grid_has_a_column_a_method_and_a_row_a_prompt(
    trials: Trials, found: list[MethodResult]
) -> None:
    assert found
    sheet = picture_grid(trials, METHODS, 0)
    assert sheet.size == (200 + 6 * 134, 44 + 2 * 134)
    shown = trials.pictures(GUIDEFOLD.trial(trials.settings(Trial((), 0)), 0))
    with Image.open(shown / "student-001.png") as picture:
        large = picture.convert("RGB").resize((128, 128), Image.Resampling.NEAREST)
    left, top = 200 + 5 * 134, 44 + 134
    assert sheet.crop((left, top, left + 128, top + 128)).tobytes() == large.tobytes()


def test_the_curve_is_a_picture_that_names_every_trained_method(found: list[MethodResult]) -> None:
    drawn = curve_svg(found)
    assert drawn is not None
    for method in (PLAIN, PAPER, GUIDEFOLD):
        assert method.title.replace("'", "&#x27;").encode() in drawn or (
            method.title.encode() in drawn
        )
    assert curve_svg([entry("teacher", 0, 1.0)]) is None


def test_an_unknown_method_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match="no such method") as caught:
        select(METHODS, ["dice"], "method")
    assert "paper-lora" in str(caught.value)
    assert select(METHODS, ["guidefold", "selective-guidance"], "method") == [
        SELECTIVE,
        GUIDEFOLD,
    ]


def test_the_command_prints_json_and_tables(trials: Trials, found: list[MethodResult]) -> None:
    common = ["fidelity", "demo", *TINY, "--out", str(trials.out), "--seeds", "1"]
    printed = CliRunner().invoke(bench, [*common, "--json"])
    assert printed.exit_code == 0, printed.output
    assert [line["method"] for line in json.loads(printed.stdout)] == [f.method for f in found]
    shown = CliRunner().invoke(bench, [*common, "--method", "guidefold"])
    assert shown.exit_code == 0
    assert "Alignment by category" in shown.stdout
    assert Path(trials.out).exists()
