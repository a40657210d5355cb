"""Every file of a run, damaged in every way: refused by a sentence, or it changes nothing.

A file is damaged by a flipped bit, half of it cut away, its loss, another file of its kind in its
place, and a changed digit where it is text. The commands that read it then end with exit code 1 or
2 and a sentence, never with a traceback, or they come to the undamaged run's result.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from terminal import Answer, run_here
from zoo import WARNINGS

from guidefold import api
from guidefold.demo.judge import judge_of
from guidefold.ground.errors import CorruptFileError, GuidefoldError
from guidefold.run.folder import RunFolder
from guidefold.run.settings import Settings
from guidefold.run.tensors import read_tensors
from guidefold.show.hub.pack import check_packed

pytestmark = pytest.mark.filterwarnings(*WARNINGS)

STEP = "checkpoints/step-0000002"
FIRST, SECOND = (f"trajectories/round-0/training-{k:06d}.safetensors" for k in range(2))
# The files of a run, each with another of its kind: in its place where it is swapped.
KINDS = {
    "config.toml": None,
    "probe.json": "probe-conditions.json",
    "probe-conditions.json": "probe.json",
    "trajectories/round-0/manifest.jsonl": "log.jsonl",
    FIRST: SECOND,
    f"{STEP}/adapter.safetensors": "checkpoints/step-0000001/adapter.safetensors",
    f"{STEP}/optimizer.safetensors": "checkpoints/step-0000001/optimizer.safetensors",
    f"{STEP}/state.json": "checkpoints/step-0000001/state.json",
    f"{STEP}/MANIFEST.json": "checkpoints/step-0000001/MANIFEST.json",
    STEP: "checkpoints/step-0000001",
    "log.jsonl": "trajectories/round-0/manifest.jsonl",
    "adapter/pytorch_lora_weights.safetensors": f"{STEP}/adapter.safetensors",
    "adapter/guidefold.json": "results.json",
    "adapter/MANIFEST.json": f"{STEP}/MANIFEST.json",
    "export/kohya/run.safetensors": "adapter/pytorch_lora_weights.safetensors",
    "export/kohya/MANIFEST.json": "adapter/MANIFEST.json",
    "evaluation/index.json": "results.json",
    "evaluation/pictures.jsonl": "log.jsonl",
    "evaluation/student-s1-0000.png": "evaluation/teacher-g5-0000.png",
    "results.json": "evaluation/index.json",
    "previews/previews.json": "results.json",
    "previews/teacher-0.png": "previews/unguided-0.png",
    "hub/pytorch_lora_weights.safetensors": f"{STEP}/adapter.safetensors",
    "hub/guidefold.json": "adapter/guidefold.json",
    "hub/kohya/run.safetensors": "adapter/pytorch_lora_weights.safetensors",
    "hub/MANIFEST.json": "adapter/MANIFEST.json",
}
NOT_READ = {"grid.png", "report.html", ".lock", "previews/step-000000.png"}


@pytest.fixture(scope="module")
def made(settings_for: Any, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A run with a file of every kind."""
    folder = tmp_path_factory.mktemp("corrupted")
    settings: Settings = settings_for(
        "sd15",
        folder,
        record={"trajectories": 2},
        distill={"checkpoint_every": 1, "preview_prompts": 1},
        evaluate={"prompts": 1, "dial_prompts": 0},
    )
    with api.open_run(settings) as run:
        run.distill()
        run.export()
        run.evaluate(judge_of("other"))
    api.deliver(settings, "kohya")
    api.pack(settings)
    api.report(settings)
    return settings


@pytest.fixture(scope="module")
def whole(made: Settings) -> Path:
    """The undamaged run, kept aside."""
    kept = Path(made.run).with_name("kept")
    shutil.copytree(made.run, kept)
    return kept


@pytest.fixture
def run(made: Settings, whole: Path) -> Iterator[Path]:
    """The run, put back as it was after each test."""
    yield Path(made.run)
    shutil.rmtree(made.run)
    shutil.copytree(whole, made.run)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete(path: Path) -> None:
    path.unlink()


def change_digit(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    digits = [found.start() for found in re.finditer(r"\d", text)]
    place = digits[len(digits) // 2]
    path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])


def swap(path: Path) -> None:
    raise NotImplementedError


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flip": flip,
    "truncate": truncate,
    "delete": delete,
    "digit": change_digit,
}


def damage(run: Path, name: str, way: str) -> None:
    path, other = run / name, KINDS[name]
    if way != "swap":
        DAMAGES[way](path)
        return
    assert other is not None
    spare = run / "spare"
    path.rename(spare)
    (run / other).rename(path)
    spare.rename(run / other)


def ways(name: str) -> list[str]:
    """The kinds of damage that a file can take."""
    path = Path(name)
    if not path.suffix:
        return ["swap"]
    text = path.suffix in (".json", ".jsonl", ".toml")
    swapped = ["swap"] if KINDS[name] else []
    return ["flip", "truncate", "delete", *swapped, *(["digit"] if text else [])]


def cases(*beginnings: str) -> pytest.MarkDecorator:
    """Every damage of the files whose names begin so."""
    found = [(n, way) for n in KINDS if n.startswith(beginnings) for way in ways(n)]
    return pytest.mark.parametrize(("name", "way"), found)


def test_every_file_of_a_run_is_of_a_kind_that_is_damaged_here(whole: Path) -> None:
    def kind(name: str) -> str:
        path = Path(name)
        plain = "" if path.suffix in (".png", ".safetensors") else path.name
        return f"{re.sub(r'[0-9]+', '#', str(path.parent))} {plain} {path.suffix}"

    known = {kind(name) for name in (*KINDS, *NOT_READ)}
    for path in whole.rglob("*"):
        name = path.relative_to(whole).as_posix()
        if path.is_file() and name not in NOT_READ and not name.startswith("hub/"):
            assert kind(name) in known, name


def refused(answer: Answer) -> bool:
    """Whether a command ended with a sentence."""
    assert answer.code in (0, 1, 2), answer.err
    assert "Traceback" not in answer.err
    said = answer.err.startswith("Error: ") or "FAILED: " in answer.out
    assert (answer.code == 0) != said, answer.err
    return answer.code != 0


# What training reads


@pytest.fixture(scope="module")
def gone_on(made: Settings, whole: Path) -> dict[str, torch.Tensor]:
    """The undamaged run's adapter, a step further."""
    trained = further(Path(made.run))
    shutil.rmtree(made.run)
    shutil.copytree(whole, made.run)
    return trained


def further(run: Path) -> dict[str, torch.Tensor]:
    """Train a step further, without previews: only the denoiser is opened."""
    settings = api.load_settings(run, ["distill.steps=3", "distill.preview_prompts=0"])
    return read_tensors(api.distill(settings) / "adapter.safetensors")


@cases("config", "probe", "trajectories", "checkpoints", "log")
def test_training_goes_on_to_the_same_adapter_or_not_at_all(
    run: Path,
    gone_on: dict[str, torch.Tensor],
    capsys: pytest.CaptureFixture[str],
    name: str,
    way: str,
) -> None:
    damage(run, name, way)
    try:
        found = further(run)
    except GuidefoldError as error:
        assert error.exit_code in (1, 2)
        assert error.message
        return
    told = capsys.readouterr().out
    if name == "log.jsonl":
        assert "lacks" in told
    if name == "config.toml":  # its users change it; what they change is told
        assert "From step 2 on" in told or all(torch.equal(found[k], t) for k, t in gone_on.items())
        return
    assert found.keys() == gone_on.keys()
    assert all(torch.equal(found[k], tensor) for k, tensor in gone_on.items())


# What the page shows

CHANGING = {"config.toml"}  # what people change shows on the page
SHOWN = (
    "config",
    "probe.",
    f"{STEP}/state",
    "log",
    "adapter/g",
    "evaluation",
    "results",
    "preview",
)


@cases(*SHOWN, "trajectories/round-0/m")
def test_a_page_shows_the_same_or_is_not_written(
    run: Path, whole: Path, name: str, way: str
) -> None:
    damage(run, name, way)
    answer = run_here("report", run)
    if refused(answer) or name in CHANGING:
        return
    page, before = ((f / "report.html").read_text(encoding="utf-8") for f in (run, whole))
    if name == "log.jsonl":
        assert "of its log missing" in page
    elif way == "delete" and name != "evaluation/pictures.jsonl":
        assert page  # as before the file was written
    elif "manifest" not in name:  # a trajectory that is not listed is recorded again
        assert page == before


# What is handed out


@cases("adapter")
def test_an_adapter_that_is_not_as_written_is_not_packed(run: Path, name: str, way: str) -> None:
    damage(run, name, way)
    assert refused(run_here("pack", run))


@cases("export")
def test_an_export_that_is_not_as_written_is_not_verified(run: Path, name: str, way: str) -> None:
    damage(run, name, way)
    answer = run_here("verify", run / "export" / "kohya", "--run", run)
    if not refused(answer):  # the file itself is as written: it holds a hash of its own
        assert name == "export/kohya/MANIFEST.json"


@cases("hub")
def test_a_packed_folder_that_is_not_as_written_is_not_pushed(
    run: Path, name: str, way: str
) -> None:
    damage(run, name, way)
    with pytest.raises(CorruptFileError):
        check_packed(RunFolder(run).hub)


@pytest.mark.parametrize("way", ["flip", "truncate"])
def test_a_measurement_is_made_again_as_it_was_or_refused(run: Path, whole: Path, way: str) -> None:
    damage(run, "evaluation/pictures.jsonl", way)
    answer = run_here("evaluate", run)
    if not refused(answer):
        for path in (whole / "evaluation").glob("*.png"):
            assert (run / "evaluation" / path.name).read_bytes() == path.read_bytes()
