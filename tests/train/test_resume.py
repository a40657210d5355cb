"""Going on: settings that changed are told or refused, and so are lines that the log has lost."""

from pathlib import Path
from typing import Any

import pytest
from training import interrupted

from guidefold import api
from guidefold.ground.errors import CorruptFileError, MismatchError
from guidefold.run.config import dump_toml, flatten
from guidefold.run.files import append_line, read_lines, write_record
from guidefold.run.folder import RunFolder
from guidefold.run.lines import missing_lines, read_log
from guidefold.run.records import CheckpointState
from guidefold.run.settings import Settings
from guidefold.train.checkpoints import read_state
from guidefold.train.resume import (
    CHANGEABLE,
    check_settings,
    refuse_other_run,
    resume_log,
    saved_with,
)

REFUSED = {
    "seed",
    "pipeline.dtype",
    "pipeline.quantization",
    "pipeline.negative_prompt",
    "pipeline.guided_share",
    "pipeline.call.height",
    "prompts.held_out_share",
    "record.rounds",
    "record.trajectories",
    "record.validation_trajectories",
    "record.states_per_trajectory",
    "record.guidance",
    "record.steps",
    "record.dtype",
    "adapter.targets",
    "adapter.rank",
    "adapter.g_ref",
    "adapter.dial",
    "distill.batch_size",
    "distill.loss",
    "distill.strength_floor",
    "distill.normaliser_states",
    "distill.optimizer",
}
TOLD = {
    "threads",
    "pipeline.source",
    "pipeline.config",
    "pipeline.device",
    "pipeline.offload",
    "prompts.path",
    "record.batch_size",
    "distill.steps",
    "distill.accumulation",
    "distill.learning_rate",
    "distill.warmup",
    "distill.schedule",
    "distill.weight_decay",
    "distill.max_grad_norm",
    "distill.frozen_weights",
    "distill.mixed_precision",
    "distill.gradient_checkpointing",
    "distill.log_every",
    "distill.validate_every",
    "distill.checkpoint_every",
    "distill.keep_checkpoints",
    "distill.preview_prompts",
    "distill.preview_every",
    "distill.trackers",
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    pipeline = {"source": "bundled", "call": {"height": 16}}
    return Settings.model_validate({"run": str(tmp_path / "run"), "pipeline": pipeline})


def state_of(now: Settings, **changes: Any) -> CheckpointState:
    saved = saved_with(RunFolder(now.run), now)
    return CheckpointState(step=4, rank=2, **(saved | changes))


def known(settings: Settings) -> set[str]:
    """Every setting that a run is trained with."""
    names = flatten(settings.model_dump(mode="json"))
    return {name for name in names if name != "run" and not name.startswith("evaluate.")}


def test_every_setting_is_told_or_refused(settings: Settings) -> None:
    missing = known(settings) - REFUSED - TOLD
    # Settings that were added since are refused until somebody puts them among the changeable.
    for name in missing | REFUSED:
        state = state_of(settings)
        state.settings[name] = "another"
        with pytest.raises(MismatchError, match=rf"\n  {name}: 'another' in step, .* given"):
            refuse_other_run(Path("step"), state, settings)
    for name in TOLD:
        state = state_of(settings)
        state.settings[name] = "another"
        refuse_other_run(Path("step"), state, settings)


def test_with_several_rounds_the_number_of_steps_is_part_of_the_run(settings: Settings) -> None:
    record = settings.record.model_copy(update={"rounds": ["teacher", "student"]})
    several = settings.model_copy(update={"record": record})
    state = state_of(several)
    state.settings["distill.steps"] = 7
    with pytest.raises(MismatchError, match=r"distill\.steps: 7 in step, 2000 given"):
        refuse_other_run(Path("step"), state, several)


def test_where_no_step_is_left_nothing_that_training_depends_on_may_change(
    settings: Settings,
) -> None:
    distill = settings.distill.model_copy(update={"steps": 4})
    done = settings.model_copy(update={"distill": distill})
    for name in sorted(name for name in TOLD if name.startswith("distill.")):
        state = state_of(done)
        state.settings[name] = "another"
        if name in CHANGEABLE:
            with pytest.raises(MismatchError, match=rf"\n  {name}: 'another' in step"):
                refuse_other_run(Path("step"), state, done)
        else:
            refuse_other_run(Path("step"), state, done)


def test_the_same_settings_and_those_of_an_old_checkpoint_fit(settings: Settings) -> None:
    refuse_other_run(Path("step"), state_of(settings), settings)
    refuse_other_run(Path("step"), state_of(settings, settings={}), settings)
    state = state_of(settings)
    del state.settings["distill.loss"]  # not known yet when it was written
    state.settings["distill.forgotten"] = 1  # not known any more
    refuse_other_run(Path("step"), state, settings)


def log_of(settings: Settings, steps: int) -> RunFolder:
    run = RunFolder(settings.run)
    run.path.mkdir(exist_ok=True)
    for step in range(1, steps + 1):
        append_line(run.log, {"step": step, "loss": 1.0})
    return run


def test_what_is_the_same_leaves_the_log_as_it_was(settings: Settings) -> None:
    run = log_of(settings, 4)
    state = state_of(settings)
    before = run.log.read_bytes()
    log_of(settings, 2)  # written since, and again after going on
    resume_log(run, state, settings)
    assert run.log.read_bytes() == before


def test_each_difference_is_printed_with_both_values_and_kept(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    run = log_of(settings, 4)
    state = state_of(settings)
    changed = {"learning_rate": 0.002, "max_grad_norm": 5.0, "steps": 3000}
    other = settings.model_copy(update={"distill": settings.distill.model_copy(update=changed)})
    for _ in range(2):  # stopped and gone on once more before the next checkpoint
        resume_log(run, state, other)
        assert read_lines(run.log)[4:] == [
            {
                "step": 4,
                "changed": {
                    "distill.learning_rate": [0.0005, 0.002],
                    "distill.max_grad_norm": [1.0, 5.0],
                    "distill.steps": [2000, 3000],
                },
                "missing_lines": 0,
            }
        ]
    said = capsys.readouterr().out
    assert "From step 4 on: distill.learning_rate 0.002, until here 0.0005" in said
    assert "From step 4 on: distill.max_grad_norm 5.0, until here 1.0" in said
    assert missing_lines(run, read_log(run.log)) == 0


@pytest.mark.parametrize(("damage", "lost"), [("cut", 2), ("deleted", 4), ("middle", 1)])
def test_lines_that_the_log_has_lost_are_counted_aloud(
    settings: Settings, capsys: pytest.CaptureFixture[str], damage: str, lost: int
) -> None:
    run = log_of(settings, 4)
    state = state_of(settings)
    write_record(run.checkpoint(4) / "state.json", state.to_json())
    append_line(run.log, {"step": 5, "loss": 1.0})
    lines = run.log.read_text().splitlines(keepends=True)
    kept = {"cut": lines[:2], "deleted": [], "middle": [*lines[:2], *lines[3:]]}[damage]
    run.log.write_text("".join(kept))
    if not kept:
        run.log.unlink()
    if damage != "middle":  # there the line of step 5 hides it until training goes on
        assert missing_lines(run, read_log(run.log)) == lost
    resume_log(run, state, settings)
    noun = "line" if lost == 1 else "lines"
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"lacks {lost} {noun} up to step 4." in said
    assert missing_lines(run, read_log(run.log)) == lost


def test_an_old_checkpoint_tells_whether_there_was_a_log_at_all(settings: Settings) -> None:
    run = log_of(settings, 0)
    old = {"step": 4, "rank": 2}
    write_record(run.checkpoint(4) / "state.json", old)
    assert missing_lines(run, read_log(run.log)) == 1
    log_of(settings, 2)
    assert missing_lines(run, read_log(run.log)) == 0


def test_a_checkpoint_under_another_step_s_name_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).checkpoint(4)
    write_record(folder / "state.json", {"step": 2, "rank": 2})
    with pytest.raises(CorruptFileError, match=r"state\.json: is of step 2") as caught:
        read_state(folder)
    assert "rm -r" in caught.value.remedy


# A real run


def edited(settings: Settings, **tables: dict[str, Any]) -> Settings:
    """Edit the run's own configuration, as people do in an editor."""
    values = settings.model_dump()
    for name, table in tables.items():
        values[name] |= table
    run = RunFolder(settings.run)
    run.config.write_text(dump_toml(Settings.model_validate(values)), encoding="utf-8")
    return api.load_settings(run.path)


def test_a_stopped_run_whose_settings_were_edited_goes_on_aloud_or_not_at_all(
    settings_for: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_for("sd15", tmp_path, distill={"steps": 2})
    interrupted(settings, 1)
    run = RunFolder(settings.run)
    lines = read_lines(run.log)
    for tables in ({"adapter": {"dial": False}}, {"adapter": {"g_ref": 4.0}}):
        with pytest.raises(MismatchError, match=r"trained with other settings\n  adapter\."):
            api.distill(edited(settings, **tables))
        with pytest.raises(MismatchError, match=r"trained with other settings\n  adapter\."):
            api.export(api.load_settings(run.path))
    assert read_lines(run.log) == lines
    capsys.readouterr()
    api.distill(edited(settings, distill={"learning_rate": 0.02, "checkpoint_every": 1}))
    assert "From step 1 on: distill.learning_rate 0.02, until here 0.01" in capsys.readouterr().out
    told = read_log(run.log).resumed
    assert [line.changed for line in told] == [
        {"distill.checkpoint_every": (2, 1), "distill.learning_rate": (0.01, 0.02)}
    ]
    state = read_state(run.checkpoints()[-1])
    assert state.settings["distill.learning_rate"] == 0.02
    check_settings(api.load_settings(run.path))
