"""Where a verb is told to write: refused before any work, nothing lost, no link followed."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from terminal import Answer, run_here
from zoo import WARNINGS

from guidefold import api
from guidefold.run.config import dump_toml
from guidefold.run.settings import Settings

pytestmark = pytest.mark.filterwarnings(*WARNINGS)

VERBS = {
    "export": "export {run} --format kohya --out {out}",
    "sample": "sample {run} -p cat -k teacher --out {out}",
    "pack": "pack {run} --out {out}",
    "convert to a file": "convert {lora} --to diffusers --pipeline {source} --out {file}",
    "convert to a folder": "convert {lora} --to peft --pipeline {source} --out {out}",
    "gather": "gather {out} {run}",
    "distill": "distill {run} run={out}",
    "reproduce": "reproduce --part memory-sd15 --out {out}",
    "bench fidelity": "bench fidelity {run}/config.toml --out {out}",
}
FOLDERS = [verb for verb in VERBS if verb != "convert to a file"]


@pytest.fixture(scope="module")
def trained(
    settings_for: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    """A trained run with its adapter and a file for clients."""
    settings = settings_for("sd15", tmp_path_factory.mktemp("trained"))
    api.distill(settings)
    api.export(settings)
    api.deliver(settings, "kohya")
    (Path(settings.run) / "config.toml").write_text(dump_toml(settings), encoding="utf-8")
    return settings


@pytest.fixture
def nothing_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pipeline.offloading", "deliver.base_model", "bench.fidelity.trials"):
        place = f"guidefold.{module}.open_pipeline"
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("was opened"))
    monkeypatch.setattr("guidefold.bench.reproduce._run", lambda _: pytest.fail("was run"))


def lora_of(trained: Settings) -> Path:
    return next(Path(trained.run).glob("export/kohya/*.safetensors"))


def told(trained: Settings, verb: str, out: Path) -> Answer:
    facts = {"run": trained.run, "source": trained.pipeline.source, "lora": lora_of(trained)}
    return run_here(*VERBS[verb].format(**facts, out=out, file=f"{out}.safetensors").split())


def tree(folder: Path) -> dict[str, bytes | None]:
    paths = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


def a_file(out: Path) -> None:
    out.write_bytes(b"mine")


def below_a_file(out: Path) -> None:
    out.parent.rmdir()
    out.parent.write_bytes(b"mine")


def a_link_that_leads_nowhere(out: Path) -> None:
    out.symlink_to(out.parent / "nowhere")


@pytest.mark.usefixtures("nothing_opened")
@pytest.mark.parametrize("wrong", [a_file, below_a_file, a_link_that_leads_nowhere])
@pytest.mark.parametrize("verb", FOLDERS)
def test_what_is_no_place_for_a_folder_is_refused_before_any_work(
    trained: Settings, tmp_path: Path, verb: str, wrong: Callable[[Path], None]
) -> None:
    out = tmp_path / "within" / "out"
    out.parent.mkdir()
    wrong(out)
    before = tree(tmp_path)
    answer = told(trained, verb, out)
    assert answer.code == 2, answer.err
    assert str(out.parent) in answer.err
    assert tree(tmp_path) == before


@pytest.mark.usefixtures("nothing_opened")
@pytest.mark.parametrize("verb", VERBS)
def test_a_place_without_permission_is_refused_before_any_work(
    trained: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    real = os.access

    def access(path: Path, mode: int) -> bool:  # a test may run as root
        within = str(path).startswith(str(tmp_path))
        return not (within and mode == os.W_OK) and real(path, mode)

    monkeypatch.setattr(os, "access", access)
    (tmp_path / "out").mkdir()
    place = tmp_path / "out" / "one"
    answer = told(trained, verb, place)
    assert answer.code == 2, answer.err
    assert "cannot be" in answer.err
    assert tree(tmp_path) == {"out": None}


@pytest.mark.usefixtures("nothing_opened")
@pytest.mark.parametrize("kind", ["a file", "a folder", "a link to a file", "a link to nowhere"])
def test_a_file_is_not_converted_onto_what_is_there(
    trained: Settings, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out.safetensors"
    (tmp_path / "theirs").write_bytes(b"theirs")
    if kind == "a file":
        out.write_bytes(b"mine")
    elif kind == "a folder":
        out.mkdir()
    else:
        out.symlink_to(tmp_path / ("theirs" if kind == "a link to a file" else "nowhere"))
    before = tree(tmp_path)
    answer = told(trained, "convert to a file", tmp_path / "out")
    assert answer.code == 2, answer.err
    assert tree(tmp_path) == before


@pytest.mark.usefixtures("nothing_opened")
@pytest.mark.parametrize(("verb", "name"), [("export", "kohya"), ("pack", "")])
def test_a_folder_of_other_things_is_not_replaced(
    trained: Settings, tmp_path: Path, verb: str, name: str
) -> None:
    mine = tmp_path / "out" / name
    mine.mkdir(parents=True)
    (mine / "mine.safetensors").write_bytes(b"mine")
    answer = told(trained, verb, tmp_path / "out")
    assert answer.code == 2, answer.err
    assert "holds something else, which would be lost" in answer.err
    assert (mine / "mine.safetensors").read_bytes() == b"mine"


# Links within the place


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder outside of the place; no verb may change it."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "theirs").write_bytes(b"theirs")
    (folder / "MANIFEST.json").write_text("{}")
    before = tree(folder)
    yield folder
    assert tree(folder) == before


@pytest.mark.parametrize(("verb", "name"), [("export", "kohya"), ("pack", "")])
def test_a_link_in_the_place_of_a_folder_is_refused(
    trained: Settings, tmp_path: Path, elsewhere: Path, verb: str, name: str
) -> None:
    link = tmp_path / "out" / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(elsewhere)
    answer = told(trained, verb, tmp_path / "out")
    assert answer.code == 2, answer.err
    assert "a link, which is not followed here" in answer.err


@pytest.mark.parametrize(
    ("verb", "left"),
    [
        ("export", "out/.kohya.part"),
        ("export", "out/.kohya.old"),
        ("pack", ".out.part"),
        ("pack", ".out.old"),
        ("convert to a file", ".out.safetensors.part"),
        ("convert to a folder", "out/.adapter_model.safetensors.part"),
    ],
)
def test_a_link_under_a_temporary_name_is_not_written_through(
    trained: Settings, tmp_path: Path, elsewhere: Path, verb: str, left: str
) -> None:
    link = tmp_path / left
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(elsewhere / "theirs" if "safetensors" in left else elsewhere)
    answer = told(trained, verb, tmp_path / "out")
    assert answer.code == 0, answer.err
    assert not os.path.lexists(link)


def test_a_picture_replaces_a_link_and_leaves_what_it_leads_to(
    trained: Settings, tmp_path: Path, elsewhere: Path
) -> None:
    out = tmp_path / "out"
    assert told(trained, "sample", out).code == 0
    names = [path.name for path in out.iterdir()]
    for name in names:
        (out / name).unlink()
        (out / name).symlink_to(elsewhere / "theirs")
    assert told(trained, "sample", out).code == 0
    assert not any((out / name).is_symlink() for name in names)


@pytest.mark.parametrize(
    "name", ["trajectories", "trajectories/round-0", "trajectories/round-0/manifest.jsonl"]
)
def test_gathering_follows_no_link_of_the_run_that_receives(
    trained: Settings, tmp_path: Path, elsewhere: Path, name: str
) -> None:
    link = tmp_path / "out" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere / "theirs" if name.endswith("jsonl") else elsewhere)
    answer = told(trained, "gather", tmp_path / "out")
    assert answer.code == 1
    assert f"{link}: a symbolic link, which is not followed here" in answer.err


@pytest.mark.parametrize("name", ["adapter/guidefold.json", "grid.png", "evaluation"])
def test_packing_copies_nothing_through_a_link_of_the_run(
    trained: Settings, tmp_path: Path, elsewhere: Path, name: str
) -> None:
    run = Path(shutil.copytree(trained.run, tmp_path / "run"))
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(elsewhere if name == "evaluation" else elsewhere / "theirs")
    answer = run_here("pack", run, "--out", tmp_path / "out")
    assert answer.code == 1
    assert "a symbolic link, which is not followed here" in answer.err
    assert not (tmp_path / "out").exists()


# A damaged file that the user names


DAMAGED = {
    "verify by the run": "verify {lora} --run {run}",
    "verify by the pipeline": "verify {lora} --pipeline {source}",
    "convert": "convert {lora} --to diffusers --pipeline {source} --out {here}/a.safetensors",
    "sample": "sample {run} -p cat -k student --adapter {adapter} --out {here}/pictures",
}


@pytest.mark.usefixtures("nothing_opened")
@pytest.mark.parametrize("verb", DAMAGED)
def test_a_damaged_file_that_is_named_is_wrong_input(
    trained: Settings, tmp_path: Path, verb: str
) -> None:
    adapter = Path(shutil.copytree(Path(trained.run) / "adapter", tmp_path / "adapter"))
    lora = Path(shutil.copy(lora_of(trained), tmp_path / "lora.safetensors"))
    for path in (lora, adapter / "pytorch_lora_weights.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    facts = {"run": trained.run, "source": trained.pipeline.source, "here": tmp_path}
    words = DAMAGED[verb].format(**facts, lora=lora, adapter=adapter).split()
    answer = run_here(*words)
    assert answer.code == 2, answer.err
    assert str(tmp_path) in answer.err
    assert not (tmp_path / "pictures").exists()


@pytest.mark.usefixtures("nothing_opened")
def test_damage_in_the_run_s_own_adapter_stays_a_failure(trained: Settings, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained.run, tmp_path / "run"))
    path = run / "adapter" / "pytorch_lora_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    answer = run_here("sample", run, "-p", "cat", "-k", "student")
    assert answer.code == 1
    assert str(path) in answer.err
