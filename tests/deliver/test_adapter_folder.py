"""Export: what is written gives back what was trained, or nothing is kept."""

import json
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from guidefold.deliver.export import export
from guidefold.deliver.lora_file import LoraFile, read_lora
from guidefold.deliver.student_pipeline import open_adapter
from guidefold.ground.errors import (
    CorruptFileError,
    GuidefoldError,
    MismatchError,
    NonFiniteError,
    RunError,
    VerifyError,
)
from guidefold.lora.dial import Dial
from guidefold.lora.loaded import DIFFUSERS_FILE, PEFT_FILE, adapter_off, unload_adapter
from guidefold.record.trajectory_files import read_round, state_refs
from guidefold.run.files import check_folder, read_json
from guidefold.run.settings import Format, Settings
from guidefold.run.tensors import read_metadata, read_tensors
from guidefold.session import Session, open_session
from guidefold.train import student as students
from guidefold.train.distill import distill

verifying = import_module("guidefold.deliver.verify")  # its door has a function of that name

exporting = import_module("guidefold.deliver.export")  # its door has a function of that name

LOADERS = {"sd15": DIFFUSERS_FILE, "pixart": PEFT_FILE}
both = pytest.mark.parametrize("trained", LOADERS, indirect=True)


@pytest.fixture(scope="module")
def trained_once(settings_for: Any, tmp_path_factory: Any) -> Callable[[str], Settings]:
    made: dict[str, Settings] = {}

    def train(name: str) -> Settings:
        if name not in made:
            made[name] = settings_for(name, tmp_path_factory.mktemp(name))
            distill(made[name])
        return made[name]

    return train


@pytest.fixture
def trained(
    trained_once: Callable[[str], Settings], tmp_path: Path, request: pytest.FixtureRequest
) -> Settings:
    """A trained run of its own, not yet exported; of Stable Diffusion unless asked otherwise."""
    settings = trained_once(getattr(request, "param", "sd15"))
    run = shutil.copytree(settings.run, tmp_path / "run")
    return settings.model_copy(update={"run": str(run)})


@pytest.fixture
def session(trained: Settings) -> Iterator[Session]:
    """An open session on an exported run."""
    export(trained)
    with open_session(trained) as opened:
        yield opened


def damage(path: Path) -> None:
    """Change one value of a safetensors file by little, the file staying whole."""
    tensors = load_file(path)
    name = next(n for n in sorted(tensors) if "lora_B" in n)
    tensors[name] = tensors[name] + 0.5
    save_file(tensors, path, {"format": "pt"})


# What is written


@both
def test_an_adapter_is_safetensors_and_json_under_a_manifest(trained: Settings) -> None:
    folder = export(trained)
    name = read_json(Path(trained.run) / "probe.json")["denoisers"][0]
    weights = DIFFUSERS_FILE if name == "unet" else PEFT_FILE
    extra = set() if name == "unet" else {"adapter_config.json"}
    names = {path.name for path in folder.iterdir()}
    assert names - {"README.md"} == {weights, "guidefold.json", "MANIFEST.json", *extra}
    check_folder(folder)
    about = read_json(folder / "guidefold.json")
    assert read_metadata(folder / weights) == about
    assert about["g_ref"] == 5.0
    assert about["guidance_range"] == [3.0, 6.0]
    assert about["rank"] == 2
    assert about["step"] == 2
    meant = Dial.from_json(about).stands_for
    assert about["usage_hint"].startswith(f"guidance_scale=1; strength 1 = {meant}")


def test_the_tensors_are_the_checkpoint_s_bit_for_bit(trained: Settings) -> None:
    written = read_tensors(export(trained) / DIFFUSERS_FILE)
    checkpoint = read_tensors(
        Path(trained.run) / "checkpoints" / "step-0000002" / "adapter.safetensors"
    )
    assert {name.removeprefix("unet.") for name in written} == checkpoint.keys()
    assert all(torch.equal(written[f"unet.{name}"], t) for name, t in checkpoint.items())


def test_exporting_again_replaces_the_folder_and_leaves_nothing_beside_it(
    trained: Settings,
) -> None:
    one = read_tensors(export(trained) / DIFFUSERS_FILE)
    two = read_tensors(export(trained) / DIFFUSERS_FILE)
    assert all(torch.equal(t, two[name]) for name, t in one.items())
    assert not list(Path(trained.run).glob(".adapter*"))


def test_before_training_there_is_nothing_to_export(settings_for: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run has begun here"):
        export(settings_for("sd15", tmp_path))


def test_a_run_without_a_checkpoint_is_refused(trained: Settings) -> None:
    shutil.rmtree(Path(trained.run) / "checkpoints")
    with pytest.raises(RunError, match="nothing is trained yet"):
        export(trained)


# Verification bites


@both
def test_a_file_altered_between_writing_and_verifying_is_not_kept(
    trained: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tampered(path: Path, kind: Format) -> LoraFile:
        damage(path)
        return read_lora(path, kind)

    monkeypatch.setattr(exporting, "read_lora", tampered)
    with pytest.raises(VerifyError, match="off the trained student"):
        export(trained)
    assert not (Path(trained.run) / "adapter").exists()


def test_a_loader_that_loads_nothing_is_noticed(
    trained: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "load_part", lambda *_: None)
    with pytest.raises(VerifyError):
        export(trained)


def test_a_failed_export_leaves_the_adapter_that_stood(
    trained: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export(trained)
    before = read_tensors(folder / DIFFUSERS_FILE)
    monkeypatch.setattr(verifying, "load_part", lambda *_: None)
    with pytest.raises(VerifyError):
        export(trained)
    check_folder(folder)
    assert all(torch.equal(t, before[n]) for n, t in read_tensors(folder / DIFFUSERS_FILE).items())


def test_an_adapter_that_is_not_finite_is_not_written(
    trained: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = students.Student

    class Overflown(stock):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            state_dict = self.adapter.state_dict
            self.adapter.state_dict = lambda: {n: t / 0 for n, t in state_dict().items()}
            self.adapter.load_state_dict = lambda _tensors: None

    monkeypatch.setattr(students, "Student", Overflown)
    with pytest.raises(NonFiniteError, match="not finite"):
        export(trained)
    assert not (Path(trained.run) / "adapter").exists()


# Opening


@both
def test_an_opened_adapter_is_on_at_the_strength_asked_for_and_off_is_the_teacher(
    session: Session,
) -> None:
    recorded = session.run.round(0)
    state = state_refs(recorded, read_round(recorded), "training")[0].read()
    args, kwargs = state.arguments
    answers = {}
    with torch.no_grad():
        answers["bare"] = session.denoiser(*args, **kwargs)[0]
        for strength in (0.0, 1.0):
            open_adapter(session, strength)
            answers[strength] = session.denoiser(*args, **kwargs)[0]
            with adapter_off(session.denoiser):
                assert torch.equal(session.denoiser(*args, **kwargs)[0], answers["bare"])
            unload_adapter(session.denoiser)
    torch.testing.assert_close(answers[0.0], answers["bare"])
    assert not torch.allclose(answers[1.0], answers["bare"], atol=1e-4)


@both
def test_a_tampered_adapter_is_refused_by_the_file_s_name(session: Session) -> None:
    (path,) = session.run.adapter.glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match=path.name):
        open_adapter(session, 1.0)


def test_a_missing_adapter_is_refused(session: Session) -> None:
    shutil.rmtree(session.run.adapter)
    with pytest.raises(RunError, match="no adapter yet"):
        open_adapter(session, 1.0)


def about_itself(session: Session, **changes: Any) -> Path:
    """An adapter folder that says something else of itself, whole by its manifest."""
    folder = session.run.adapter
    about = read_json(folder / "guidefold.json")
    about["findings"] |= changes.pop("findings", {})
    data = json.dumps(about | changes)
    (folder / "guidefold.json").write_text(data)
    manifest = read_json(folder / "MANIFEST.json")
    manifest["guidefold.json"] = exporting_entry(folder / "guidefold.json")
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    return folder


def exporting_entry(path: Path) -> dict[str, Any]:
    from guidefold.run.files import sha256

    return {"sha256": sha256(path), "size": path.stat().st_size}


def test_an_adapter_of_another_base_is_refused_by_the_field(session: Session) -> None:
    about_itself(session, findings={"fingerprint": "0" * 16})
    with pytest.raises(MismatchError, match="another base: fingerprint is '0000000000000000'"):
        open_adapter(session, 1.0)


def test_an_adapter_of_another_reference_is_refused_with_both(session: Session) -> None:
    about_itself(session, g_ref=7.5)
    with pytest.raises(MismatchError, match=r"guidance 7\.5 in the adapter and 5 in the settings"):
        open_adapter(session, 1.0)


def test_the_settings_of_another_pipeline_do_not_open_the_run(
    trained: Settings, saved: Any
) -> None:
    other = trained.pipeline.model_copy(update={"source": str(saved("sd_v"))})
    with pytest.raises(GuidefoldError, match=r"pipeline\.source"):
        export(trained.model_copy(update={"pipeline": other}))


def test_weights_that_changed_in_the_pipeline_s_own_folder_are_refused(
    trained: Settings, saved: Any, tmp_path: Path
) -> None:
    """The same path, another base: the fingerprint tells."""
    moved = Path(shutil.copytree(saved("sd15"), tmp_path / "pipeline"))
    pipeline = trained.pipeline.model_copy(update={"source": str(moved)})
    config = Path(trained.run) / "config.toml"
    config.write_text(config.read_text().replace(trained.pipeline.source, str(moved)))
    settings = trained.model_copy(update={"pipeline": pipeline})
    export(settings)
    weights = moved / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({n: t * 1.01 for n, t in tensors.items()}, weights, {"format": "pt"})
    with pytest.raises(MismatchError, match="another base: fingerprint"):
        export(settings)


def test_layers_that_stay_in_float32_do_not_tighten_a_half_precision_check(
    settings_for: Any, tmp_path: Path
) -> None:
    settings = settings_for(
        "wan", tmp_path, pipeline={"dtype": "bf16"}, distill={"preview_prompts": 0}
    )
    distill(settings)
    assert (export(settings) / "guidefold.json").exists()
