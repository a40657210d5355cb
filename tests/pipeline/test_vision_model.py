"""Vision models are found, or refused at once, before anything is recorded."""

import shutil
from pathlib import Path

import pytest
import transformers
from huggingface_hub import HfApi, constants

from guidefold.ground.errors import ConfigError
from guidefold.pipeline.vision_model import check_vision_models


@pytest.fixture
def cached(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of ``owner/clip``, as a download left it."""
    repository = tmp_path / "hub" / "models--owner--clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("f00d")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return shutil.copytree(clip, repository / "snapshots" / "f00d")


@pytest.fixture
def no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise ConnectionError("unreachable")

    monkeypatch.setattr(HfApi, "model_info", fail)


def refusal(features: object = None, clip: object = None) -> str:
    models = [None if model is None else str(model) for model in (features, clip)]
    with pytest.raises(ConfigError) as caught:
        check_vision_models(*models)
    return str(caught.value)


def test_folders_of_vision_models_pass(vision: Path, clip: Path) -> None:
    check_vision_models(str(vision), str(clip))
    check_vision_models(str(clip), None)


@pytest.mark.usefixtures("no_connection")
def test_what_was_downloaded_before_passes_without_a_connection(cached: Path) -> None:
    check_vision_models(None, "owner/clip")
    (cached / "model.safetensors").unlink()
    assert "no connection to http" in refusal(clip="owner/clip")


@pytest.mark.usefixtures("no_connection")
@pytest.mark.parametrize("name", ["nope", "owner/name"])
@pytest.mark.parametrize("setting", ["features", "clip"])
def test_without_a_connection_the_answer_comes_at_once(
    monkeypatch: pytest.MonkeyPatch, name: str, setting: str
) -> None:
    loader = transformers.AutoConfig
    monkeypatch.setattr(loader, "from_pretrained", lambda *_, **__: pytest.fail("it was tried"))
    said = refusal(**{setting: name})
    assert said.startswith(f"evaluate.{setting}: {name}: cannot be opened as a vision model: ")
    assert "no connection to http" in said
    assert "Give a folder or hub id of one, such as" in said


def test_what_no_repository_can_be_called_is_refused() -> None:
    assert "no repository of the hub can have this name" in refusal("no/such/place")


def test_a_folder_that_lacks_a_part_is_refused(clip: Path, tmp_path: Path) -> None:
    for k, name in enumerate(("model.safetensors", "preprocessor_config.json", "config.json")):
        folder = shutil.copytree(clip, tmp_path / str(k))
        (folder / name).unlink()
        assert f"evaluate.clip: {folder}: cannot be opened" in refusal(clip=folder)


def test_a_model_without_text_scores_nothing_and_says_so(vision: Path) -> None:
    said = refusal(clip=vision)
    assert "reads no text" in said
    assert "openai/clip-vit-base-patch32" in said
