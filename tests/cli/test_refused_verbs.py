"""A verb that is refused leaves the folder as it was: every verb, every file."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from terminal import run_here
from zoo import WARNINGS

from guidefold.cli import main as cli
from guidefold.run.config import dump_toml
from guidefold.run.settings import Settings

pytestmark = pytest.mark.filterwarnings(*WARNINGS)

REFUSED = {
    "demo": "demo run={here}/new distill.steps=true",
    "doctor": "doctor {here}",
    "probe": "probe {source} pipeline.call.clip_skip=99 pipeline.call.height=16",
    "plan": "plan {run} distill.steps=true",
    "config": "config nosuch",
    "record": "record {run} pipeline.call.height=17",
    "record, a new run": "record {run} run={here}/new pipeline.call.clip_skip=99",
    "gather": "gather {run} {here}/nosuch",
    "distill": "distill {run} pipeline.call.height=17",
    "distill, a new run": "distill {run} run={here}/new pipeline.call.clip_skip=99",
    "sample": "sample {run} -p cat",
    "sample, elsewhere": "sample {run} -p cat --out {here}/pictures",
    "sample, a seed": "sample {run} -p cat -k teacher --seed 9223372036854775808",
    "evaluate": "evaluate {run}",
    "compare": "compare {run}",
    "export": "export {run}",
    "export, a format": "export {run} --format kohya",
    "verify": "verify {run}/config.toml --run {run}",
    "convert": "convert {here}/nosuch --to kohya --pipeline {source} --out {here}/a.safetensors",
    "pack": "pack {run}",
    "push": "push {run} owner/name --yes",
    "report": "report {here}/nosuch",
    "reproduce": "reproduce --part nosuch --out {here}/paper",
}


@pytest.fixture(scope="module")
def begun(
    settings_for: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    """A run that has settings and nothing else."""
    settings = settings_for("sd15", tmp_path_factory.mktemp("begun"))
    Path(settings.run).mkdir()
    (Path(settings.run) / "config.toml").write_text(dump_toml(settings), encoding="utf-8")
    return settings


def tree(folder: Path) -> dict[str, bytes | None]:
    paths = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


def test_every_verb_is_here() -> None:
    names = {c.name or c.callback.__name__ for c in cli.app.registered_commands if c.callback}
    assert {name.partition(",")[0] for name in REFUSED} == names


@pytest.mark.parametrize("verb", REFUSED)
def test_a_refused_verb_leaves_nothing(begun: Settings, verb: str) -> None:
    run = Path(begun.run)
    here = run.parent
    before = tree(here)
    words = REFUSED[verb].format(run=run, here=here, source=begun.pipeline.source).split()
    answer = run_here(*words)
    assert answer.code == 2, answer.err
    assert "Traceback" not in answer.err
    assert tree(here) == before


def test_what_a_refused_verb_had_written_itself_stays_with_its_settings(
    begun: Settings, tmp_path: Path
) -> None:
    from guidefold.ground.errors import InputError
    from guidefold.run.folder import RunFolder
    from guidefold.run.undo import undone_if_refused

    shutil.copytree(begun.run, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    with pytest.raises(InputError), undone_if_refused(run):
        run.probe.write_text("{}", encoding="utf-8")
        run.evaluation.mkdir()
        raise InputError("refused")
    assert set(tree(run.path)) == {"config.toml"}
    with pytest.raises(InputError), undone_if_refused(run):
        run.probe.write_text("{}", encoding="utf-8")
        run.log.write_text("{}\n", encoding="utf-8")
        raise InputError("refused")
    assert set(tree(run.path)) == {"config.toml", "probe.json", "log.jsonl"}
