"""A run folder and its pipeline are checked against each other, cheapest things first."""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import cpu_offload_with_hook
from safetensors.torch import load_file, save_file
from zoo import WARNINGS

from guidefold import api
from guidefold import session as sessions
from guidefold.ground.errors import (
    ConfigError,
    CorruptFileError,
    MismatchError,
    PipelineError,
    PromptError,
    RunError,
)
from guidefold.pipeline.open import modules
from guidefold.run import files
from guidefold.run.config import load_settings
from guidefold.run.files import read_json, sha256
from guidefold.run.folder import RunFolder, require_run
from guidefold.run.settings import PipelineSettings, Settings
from guidefold.session import Session, open_session

pytestmark = pytest.mark.filterwarnings(*WARNINGS)

Make = Callable[..., Settings]


@pytest.fixture
def settings(settings_for: Make, tmp_path: Path) -> Settings:
    """Of a run whose pipeline may be altered."""
    made = settings_for("sd15", tmp_path)
    folder = shutil.copytree(made.pipeline.source, tmp_path / "pipeline")
    return with_(made, pipeline={"source": str(folder)})


def with_(settings: Settings, **tables: dict[str, object]) -> Settings:
    values = settings.model_dump()
    for name, table in tables.items():
        values[name] |= table
    return Settings.model_validate(values)


@pytest.fixture
def begun(settings: Settings) -> Settings:
    with open_session(settings):
        pass
    return settings


@pytest.fixture
def never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "open_placed", lambda *_, **__: pytest.fail("opened"))


def test_a_session_writes_its_settings_and_findings(settings: Settings) -> None:
    with open_session(settings) as session:
        assert session.denoiser is session.pipeline.unet
        assert {p.text for p in session.prompts}.isdisjoint(p.text for p in session.held_out)
    assert load_settings(settings.run) == settings
    assert json.loads((Path(settings.run) / "probe.json").read_text())["denoisers"] == ["unet"]


def test_a_process_that_only_reads_takes_no_lock_and_writes_nothing(settings: Settings) -> None:
    with open_session(settings, main=False) as session:
        assert session.findings.denoiser == "unet"
    assert not Path(settings.run).exists()


@pytest.mark.usefixtures("never_opened")
def test_a_second_session_on_one_folder_is_refused_before_a_pipeline_is_opened(
    settings: Settings,
) -> None:
    from guidefold.run.folder import locked

    with (
        locked(Path(settings.run)),
        pytest.raises(RunError, match="in use by another"),
        open_session(settings),
    ):
        pass


def test_wrong_prompts_are_found_before_a_pipeline_is_opened(
    settings: Settings, never_opened: None
) -> None:
    Path(str(settings.prompts.path)).write_bytes(b"a cat\n\xff\n")
    with (
        pytest.raises(PromptError, match=r"prompts\.txt:2: not valid UTF-8"),
        open_session(settings),
    ):
        pass


@pytest.mark.usefixtures("never_opened")
def test_a_field_that_the_call_does_not_take_is_found_before_a_pipeline_is_opened(
    settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a cat", "eta": 0.5}\n{"prompt": "a dog", "frames": 3}\n')
    rows = with_(settings, prompts={"path": str(path)})
    with (
        pytest.raises(PromptError, match=r"rows\.jsonl:2: .*takes no 'frames'"),
        open_session(rows),
    ):
        pass


@pytest.mark.parametrize("model", ["features", "clip"])
def test_a_vision_model_that_cannot_be_had_is_refused_before_anything_is_recorded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    wrong = with_(settings, evaluate={model: "nope"})
    with monkeypatch.context() as patch:
        patch.setattr(sessions, "open_placed", lambda *_, **__: pytest.fail("opened"))
        for verb in (api.record, api.distill):
            with pytest.raises(ConfigError, match=rf"evaluate\.{model}: nope: "):
                verb(wrong)
    assert not Path(wrong.run).exists()
    with open_session(wrong):  # a verb that does not measure needs none
        pass


def test_other_settings_are_found_before_a_pipeline_is_opened(
    begun: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "open_placed", lambda *_, **__: pytest.fail("opened"))
    other = with_(begun, adapter={"rank": 3}, distill={"batch_size": 1, "steps": 9})
    with pytest.raises(MismatchError) as caught, open_session(other):
        pass
    assert [line.split(":")[0].strip() for line in caught.value.message.splitlines()[1:]] == [
        "adapter.rank",
        "distill.batch_size",
    ]


def test_free_settings_may_change_and_are_kept(begun: Settings) -> None:
    other = with_(begun, distill={"steps": 9, "log_every": 3}, evaluate={"steps": 3})
    with open_session(other, keep_settings=True):
        pass
    assert load_settings(begun.run) == other


def test_measuring_and_drawing_with_other_settings_do_not_change_the_run(begun: Settings) -> None:
    with open_session(with_(begun, evaluate={"guidance": 3.0})) as session:
        assert session.compared.guidance == 3.0
    assert load_settings(begun.run) == begun


def test_a_run_that_was_begun_with_relative_paths_is_opened_from_anywhere(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base named like a hub's, and prompts beside it."""
    (tmp_path / "owner").mkdir()
    Path(settings.pipeline.source).rename(tmp_path / "owner" / "base")
    relative = with_(settings, pipeline={"source": "owner/base"}, prompts={"path": "prompts.txt"})
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # begun, and gone on with
        with open_session(relative, keep_settings=True):
            pass
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with open_session(load_settings(settings.run)) as session:
        assert session.settings.pipeline.source == f"{tmp_path}/owner/base"


def test_a_run_whose_base_was_moved_goes_on_with_the_same_base_and_no_other(
    begun: Settings, tmp_path: Path
) -> None:
    moved = Path(begun.pipeline.source).rename(tmp_path / "moved")
    with open_session(with_(begun, pipeline={"source": str(moved)}), keep_settings=True):
        pass
    assert load_settings(begun.run).pipeline.source == str(moved)
    other = moved.rename(tmp_path / "other")
    path = next(other.glob("unet/*.safetensors"))
    save_file({n: t + 1 for n, t in load_file(path).items()}, path)
    with (
        pytest.raises(MismatchError, match="fingerprint"),
        open_session(with_(begun, pipeline={"source": str(other)}), keep_settings=True),
    ):
        pass


def test_a_run_that_cannot_be_written_to_can_be_read_but_not_gone_on_with(
    begun: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(begun.run)
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    monkeypatch.setattr(os, "access", lambda *_: False)
    with open_session(begun) as session:
        assert session.findings.denoiser == "unet"
    with (
        pytest.raises(RunError, match="cannot be written"),
        open_session(begun, keep_settings=True),
    ):
        pass
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before


def test_a_base_that_cannot_be_opened_leaves_no_folder(settings: Settings) -> None:
    next(Path(settings.pipeline.source).glob("unet/*.safetensors")).write_bytes(b"")
    with pytest.raises(PipelineError), open_session(settings, keep_settings=True):
        pass
    assert not Path(settings.run).exists()


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every probe of a pipeline."""
    real, counted = sessions.probe, list[int]()

    def probe(*args: Any, **options: Any) -> Any:
        counted.append(1)
        return real(*args, **options)

    monkeypatch.setattr(sessions, "probe", probe)
    return counted


def test_a_run_is_probed_once_as_long_as_nothing_changes(
    settings: Settings, probes: list[int]
) -> None:
    found = []
    for _ in range(3):
        with open_session(settings) as session:
            found.append(session.findings)
    assert len(probes) == 1
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    "tables",
    [{"pipeline": {"call": {"height": 32, "width": 32}}}, {"pipeline": {"negative_prompt": "x"}}],
)
def test_another_call_is_probed_anew(
    begun: Settings, probes: list[int], tables: dict[str, Any], tmp_path: Path
) -> None:
    other = with_(begun, **tables)
    shutil.copytree(begun.run, tmp_path / "other")
    (tmp_path / "other" / "config.toml").unlink()
    with open_session(other.model_copy(update={"run": str(tmp_path / "other")})):
        pass
    assert len(probes) == 1


def test_findings_that_were_altered_are_refused_with_the_remedy(begun: Settings) -> None:
    path = RunFolder(begun.run).probe
    told = read_json(path)
    path.write_text(path.read_text().replace('"axis": 0', '"axis": 1'))
    with (
        pytest.raises(CorruptFileError, match=r"probe\.json: altered since") as caught,
        open_session(begun),
    ):
        pass
    assert caught.value.remedy == "Remove it to probe again."
    path.unlink()
    with open_session(begun):
        assert read_json(path) == told


@pytest.mark.parametrize("changed", ["probe.json", "library", "scheduler", "absent"])
def test_findings_are_not_trusted_where_anything_disagrees(
    begun: Settings, probes: list[int], changed: str
) -> None:
    run = RunFolder(begun.run)
    told = read_json(run.probe)
    if changed == "probe.json":
        run.probe.write_text(json.dumps(told | {"left_out": told["left_out"] + 1}))
    elif changed == "scheduler":
        path = Path(begun.pipeline.source) / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_end": 0.011}))
    elif changed == "library":
        kept = read_json(run.probe_conditions)
        kept["libraries"]["diffusers"] = "0.1"
        run.probe_conditions.write_text(json.dumps(kept))
    else:
        run.probe_conditions.unlink()
    for _ in range(2):
        with open_session(begun) as session:
            assert json.loads(json.dumps(session.findings.to_json())) == told
    assert len(probes) == 1
    assert read_json(run.probe) == told


def test_a_session_is_made_ready_again_whatever_a_verb_did_to_its_pipeline(
    settings: Settings,
) -> None:
    with open_session(settings) as session:
        first = session.pipeline
        session.require()
        session.move_others_to_cpu()
        session.require()
        assert session.pipeline is first
        assert not session.others_on_cpu
        session.keep_denoiser_only()
        session.require(all_components=False)
        assert session.pipeline is first
        session.require()
        assert loaded(session) == {"unet", "vae", "text_encoder"}
        denoiser = session.denoiser
        session.pristine = False
        session.require(all_components=False)
        assert session.denoiser is not denoiser
        assert session.denoiser is session.pipeline.unet


def nothing(*_: object) -> bool:
    return False


def loaded(session: Session) -> set[str]:
    parts = session.pipeline.components.items()
    return {name for name, part in parts if isinstance(part, torch.nn.Module)}


def test_a_probed_run_that_needs_no_more_loads_its_denoiser_alone(begun: Settings) -> None:
    with open_session(begun, needs_all=nothing) as session:
        assert loaded(session) == {"unet"}
        with open_session(begun, main=False) as other:
            assert loaded(other) > {"unet"}
            assert other.findings == session.findings


@pytest.mark.parametrize("need", [None, lambda *_: True])
def test_a_run_that_needs_more_or_was_never_probed_is_opened_whole(
    settings: Settings, need: sessions.NeedsAll | None
) -> None:
    with open_session(settings, needs_all=nothing) as session:
        assert loaded(session) == {"unet", "vae", "text_encoder"}
    with open_session(settings, needs_all=need) as session:
        assert loaded(session) == {"unet", "vae", "text_encoder"}


def test_a_pipeline_that_is_never_without_its_encoders_is_opened_whole(
    begun: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = sessions.open_placed, []

    def refuse(*args: object, only: tuple[str, ...] = (), **options: object) -> object:
        asked.append(only)
        if only:
            raise PipelineError("an encoder is missing")
        return real(*args, **options)

    monkeypatch.setattr(sessions, "open_placed", refuse)
    with open_session(begun, needs_all=nothing) as session:
        assert loaded(session) == {"unet", "vae", "text_encoder"}
    assert asked == [("unet",), ()]


def test_other_weights_are_refused_also_where_the_denoiser_alone_would_do(begun: Settings) -> None:
    path = next(Path(begun.pipeline.source).glob("unet/*.safetensors"))
    save_file({n: t + 1 for n, t in load_file(path).items()}, path)
    with pytest.raises(MismatchError, match="fingerprint"), open_session(begun, needs_all=nothing):
        pass


def test_other_weights_are_refused_with_both_sides(begun: Settings) -> None:
    path = next(Path(begun.pipeline.source).glob("unet/*.safetensors"))
    save_file({n: t + 1 for n, t in load_file(path).items()}, path)
    said = r"fingerprint is '\w{16}' in the run and '\w{16}'"
    with pytest.raises(MismatchError, match=said), open_session(begun):
        pass


def test_another_precision_is_another_base(begun: Settings) -> None:
    path = Path(begun.run) / "config.toml"
    path.write_text(path.read_text().replace('"fp32"', '"bf16"'))
    with pytest.raises(MismatchError, match="fingerprint"), open_session(load_settings(begun.run)):
        pass


def test_another_prediction_type_is_refused_with_both_sides(begun: Settings) -> None:
    path = Path(begun.pipeline.source) / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace('"epsilon"', '"v_prediction"'))
    said = "prediction_type is 'epsilon' in the run and 'v_prediction' in the pipeline"
    with pytest.raises(MismatchError, match=said), open_session(begun):
        pass


def test_a_refused_session_leaves_the_run_as_it_was(begun: Settings) -> None:
    before = {p.name: p.read_bytes() for p in Path(begun.run).iterdir()}
    with pytest.raises(MismatchError), open_session(with_(begun, adapter={"rank": 3})):
        pass
    assert {p.name: p.read_bytes() for p in Path(begun.run).iterdir()} == before


def test_only_the_denoiser_stays_for_training(settings: Settings) -> None:
    with open_session(settings) as session:
        session.keep_denoiser_only()
        parts = {
            n for n, c in session.pipeline.components.items() if isinstance(c, torch.nn.Module)
        }
    assert parts == {"unet"}


class Part(torch.nn.Module):
    """Knows where it is, and where it was."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, device=device))
        self.visited: list[str] = []

    def to(self, device: torch.device | str) -> "Part":
        self.visited.append(str(device))
        return self


@pytest.fixture
def elsewhere() -> Session:
    """A session whose denoiser is on an accelerator; ``meta`` stands for one."""
    parts = {name: Part("meta") for name in ("unet", "vae", "text_encoder")}
    pipeline = SimpleNamespace(components={**parts, "tokenizer": None}, **parts)
    settings = SimpleNamespace(pipeline=SimpleNamespace(offload="none"))
    return Session(
        RunFolder(""), settings, [], [], pipeline, SimpleNamespace(denoisers=("unet",)), "meta"
    )


def test_offloaded_components_come_and_go_no_more_once_training_begins(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def to_the_cpu(pipeline: Any, _how: str, _device: str) -> None:
        for module in modules(pipeline).values():
            cpu_offload_with_hook(module, torch.device("cpu"))

    monkeypatch.setattr("guidefold.pipeline.offloading.offload", to_the_cpu)
    asked = settings.model_copy(
        update={"pipeline": settings.pipeline.model_copy(update={"offload": "component"})}
    )
    with open_session(asked) as session:
        assert hasattr(session.denoiser, "_hf_hook")
        session.move_others_to_cpu()
        assert not hasattr(session.denoiser, "_hf_hook")


def test_while_training_all_but_the_denoiser_wait_on_the_cpu(elsewhere: Session) -> None:
    elsewhere.move_others_to_cpu()
    assert elsewhere.denoiser.visited == []
    assert elsewhere.pipeline.vae.visited == elsewhere.pipeline.text_encoder.visited == ["cpu"]


def test_a_parked_pipeline_is_whole_for_a_while_and_goes_back_after_an_exception(
    elsewhere: Session,
) -> None:
    elsewhere.move_others_to_cpu()
    with pytest.raises(ZeroDivisionError), elsewhere.all_on_device():
        assert elsewhere.pipeline.vae.visited == ["cpu", "meta"]
        raise ZeroDivisionError
    assert elsewhere.pipeline.vae.visited == ["cpu", "meta", "cpu"]
    assert elsewhere.denoiser.visited == []


def test_a_pipeline_that_was_never_parked_is_not_moved(elsewhere: Session) -> None:
    with elsewhere.all_on_device():
        pass
    assert elsewhere.pipeline.vae.visited == []


@pytest.mark.parametrize(
    ("evaluate", "adapter", "guidance", "strength"),
    [
        ({}, {}, 5.0, 1.0),
        ({"guidance": 3.0}, {}, 3.0, 0.5),
        ({"guidance": 1.0}, {}, 1.0, 0.0),
        ({"guidance": 3.0}, {"dial": False}, 3.0, 1.0),
    ],
)
def test_strength_stands_for_the_guidance_that_is_measured_at(
    settings: Settings,
    evaluate: dict[str, object],
    adapter: dict[str, object],
    guidance: float,
    strength: float,
) -> None:
    findings = SimpleNamespace(off=0.0, origin=1.0)
    asked = with_(settings, evaluate=evaluate, adapter=adapter)
    session = Session(RunFolder(""), asked, [], [], None, findings, "cpu")
    assert session.compared == (guidance, strength)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run has begun here"):
        require_run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"adapter": {"g_ref": 1.0}}, "adapter.g_ref: 1,"),
        ({"record": {"guidance": (0.5, 6.0)}}, "record.guidance: 0.5,"),
    ],
)
def test_a_guidance_scale_where_guidance_is_off_is_refused_by_name(
    settings_for, tmp_path, changes, named
):
    with (
        pytest.raises(ConfigError, match=re.escape(named)),
        open_session(settings_for("sd15", tmp_path, **changes)),
    ):
        pass


def test_a_measured_guidance_scale_where_guidance_is_off_is_refused(settings_for, tmp_path):
    asked = settings_for("sd15", tmp_path, evaluate={"guidance": 1.0})
    with pytest.raises(ConfigError, match=r"evaluate\.guidance: 1,"), open_session(asked):
        pass


def test_one_open_run_serves_every_verb_and_is_probed_once(
    settings_for: Make, tmp_path: Path, probes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipeline is opened once, and what was recorded is compared with its checksums once; what
    each verb writes is what it writes in a run of its own.
    """
    opened, real = list[str](), sessions.open_placed
    hashed = Counter[str]()
    monkeypatch.setattr(files, "sha256", lambda path: hashed.update([path.name]) or sha256(path))

    def count(wanted: PipelineSettings, device: str, **options: Any) -> Any:
        opened.append(wanted.source)
        return real(wanted, device, **options)

    monkeypatch.setattr(sessions, "open_placed", count)
    pictures = {"preview_prompts": 1}  # so that training keeps what draws
    together = settings_for("sd15", tmp_path / "together", distill=pictures)
    with api.open_run(together) as run:
        run.record()
        run.distill()
        adapter = run.export()
        results = run.evaluate()
    assert (len(opened), len(probes)) == (1, 1)
    recorded = {path.name for path in RunFolder(together.run).round(0).glob("*.safetensors")}
    assert recorded and {hashed[name] for name in recorded} == {1}
    assert hashed["pytorch_lora_weights.safetensors"] == 3  # written, looked for, loaded
    apart = settings_for("sd15", tmp_path / "apart", distill=pictures)
    api.record(apart)
    api.distill(apart)
    other, others = api.export(apart), api.evaluate(apart)
    (name,) = (path.name for path in adapter.glob("*.safetensors"))
    mine, theirs = load_file(adapter / name), load_file(other / name)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    for name in ("residual_guidance", "relative_distance", "strength", "guidance"):
        assert results[name] == others[name]


@pytest.mark.parametrize("tables", [{"frozen_weights": "bf16"}, {"preview_prompts": 0}])
def test_a_verb_finds_the_teacher_whole_again_after_lean_training(
    settings_for: Make, tmp_path: Path, tables: dict[str, Any]
) -> None:
    settings = settings_for("sd15", tmp_path, distill=tables)
    with api.open_run(settings) as run:
        run.distill()
        run.export()
        results = run.evaluate()
        again = run.evaluate()  # after one that has fused the adapter into the weights
    assert (
        results["residual_guidance"]
        == again["residual_guidance"]
        == api.evaluate(settings)["residual_guidance"]
    )
