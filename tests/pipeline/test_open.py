"""Opening a pipeline: no code runs, no pickle is read, and what is wrong is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from listening import plain_run
from original_layout import write_original_layout
from torch import nn
from zoo import ZOO

from guidefold.ground.errors import PipelineError
from guidefold.pipeline.index import check_folder
from guidefold.pipeline.open import fingerprint, modules, open_pipeline, pipeline_class

INPUTS = {"prompt": "a cat", "num_inference_steps": 2, "height": 16, "width": 16}


@pytest.fixture
def folder(saved: Callable[[str], Path], tmp_path: Path) -> Path:
    """A saved pipeline that a test may spoil."""
    return Path(shutil.copytree(saved("sd15"), tmp_path / "pipeline"))


@pytest.fixture(scope="module")
def single(built: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single file in the layout of the original Stable Diffusion."""
    return write_original_layout(built("sd15"), tmp_path_factory.mktemp("single") / "a.safetensors")


def rewrite_index(folder: Path, **changes: Any) -> Path:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def refusal(source: Path | str, **options: Any) -> PipelineError:
    with pytest.raises(PipelineError) as caught:
        open_pipeline(str(source), **options)
    return caught.value


# What opens


@pytest.mark.parametrize("name", ZOO)
def test_a_folder_opens_with_the_weights_it_holds_frozen_in_evaluation_mode(
    saved: Callable[[str], Path], built: Callable[[str], DiffusionPipeline], name: str
) -> None:
    opened, truth = open_pipeline(str(saved(name))), built(name)
    assert type(opened) is type(truth)
    assert modules(opened).keys() == modules(truth).keys()
    for component, module in modules(opened).items():
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())
        weights = getattr(truth, component).state_dict()
        assert all(torch.equal(t, weights[k]) for k, t in module.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_folder_opens_in_half_precision(folder: Path, dtype: torch.dtype) -> None:
    opened = open_pipeline(str(folder), dtype=dtype)
    exact = open_pipeline(str(folder)).unet.state_dict()
    for name, tensor in opened.unet.state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, exact[name].to(dtype))
    assert plain_run(opened, INPUTS | {"prompt": "a red cat"}, 0).isfinite().all()


def test_a_single_file_opens_offline_with_the_folder_that_describes_it(
    single: Path, saved: Callable[[str], Path]
) -> None:
    opened = open_pipeline(str(single), config=str(saved("sd15")))
    truth = open_pipeline(str(saved("sd15")))
    assert isinstance(opened, StableDiffusionPipeline)
    for component in ("unet", "vae", "text_encoder"):
        weights = getattr(truth, component).state_dict()
        found = getattr(opened, component).state_dict()
        assert found.keys() == weights.keys()
        assert all(torch.equal(t, weights[k]) for k, t in found.items())
    torch.testing.assert_close(
        plain_run(opened, INPUTS, 0), plain_run(truth, INPUTS, 0), rtol=1e-4, atol=1e-4
    )


def test_a_single_file_opens_in_half_precision(single: Path, saved: Callable[[str], Path]) -> None:
    opened = open_pipeline(str(single), config=str(saved("sd15")), dtype=torch.bfloat16)
    assert {p.dtype for p in opened.unet.parameters()} == {torch.bfloat16}


def test_a_folder_tells_its_class_without_being_opened(folder: Path, single: Path) -> None:
    shutil.rmtree(folder / "unet")
    assert pipeline_class(str(folder)) is StableDiffusionPipeline
    assert pipeline_class("bundled") is StableDiffusionPipeline
    assert pipeline_class(str(single)) is None
    assert pipeline_class("owner/name") is None


# What is refused


@pytest.mark.parametrize("name", ["pipeline.py", "unet/model.PY", "unet/deep/er.py"])
def test_a_folder_with_code_is_refused_with_a_remedy(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("raise SystemExit")
    error = refusal(folder)
    assert f"holds Python code ({name})" in error.message
    assert "Remove the file" in error.remedy


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".pth", ".pkl", ".BIN"])
def test_a_folder_with_pickled_weights_is_refused_with_a_remedy(folder: Path, suffix: str) -> None:
    (folder / "unet" / f"weights{suffix}").write_bytes(b"")
    error = refusal(folder)
    assert f"holds pickled weights (unet/weights{suffix})" in error.message
    assert "safe_serialization=True" in error.remedy


@pytest.mark.parametrize(
    "name", ["MyPipeline", ["my_module", "MyPipeline"], "UNet2DConditionModel", None]
)
def test_a_class_that_is_no_pipeline_of_diffusers_is_refused_by_name(
    folder: Path, single: Path, name: Any
) -> None:
    rewrite_index(folder, _class_name=name)
    for error in (refusal(folder), refusal(single, config=str(folder))):
        assert f"'{name}' is no pipeline class of diffusers" in error.message


@pytest.mark.parametrize("library", ["my_module", "os", "pipeline"])
def test_a_component_of_a_foreign_library_is_refused_by_name(
    folder: Path, single: Path, library: str
) -> None:
    rewrite_index(folder, unet=[library, "UNet2DConditionModel"])
    for error in (refusal(folder), refusal(single, config=str(folder))):
        assert f"component 'unet' comes from '{library}'" in error.message


def test_a_component_class_that_its_library_lacks_is_refused(folder: Path) -> None:
    rewrite_index(folder, unet=["diffusers", "NoSuchModel"])
    assert "NoSuchModel" in refusal(folder).message


def test_a_folder_without_an_index_is_refused(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    assert "no model_index.json" in refusal(folder).message


@pytest.mark.parametrize("text", ["{", "[]", '"text"', "null"])
def test_an_index_that_is_no_json_table_is_refused(folder: Path, single: Path, text: str) -> None:
    (folder / "model_index.json").write_text(text)
    for error in (refusal(folder), refusal(single, config=str(folder))):
        assert "model_index.json" in error.message


@pytest.mark.parametrize("content", [b"", b"PK" * 200])
def test_a_folder_with_damaged_weights_is_refused(folder: Path, content: bytes) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(content)
    assert "not a" in refusal(folder).message


def test_a_folder_that_lacks_a_component_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    assert "diffusers cannot open it" in refusal(folder).message


@pytest.mark.parametrize("described", [True, False])
def test_a_file_that_is_no_safetensors_is_refused(
    tmp_path: Path, saved: Callable[[str], Path], described: bool
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"PK" * 200)
    error = refusal(path, config=str(saved("sd15")) if described else None)
    assert str(path) in error.message
    assert error.remedy


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".zip"])
def test_a_single_file_that_may_be_a_pickle_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"")
    assert "may be a pickle" in refusal(path).message


def test_a_pipeline_that_has_no_single_file_form_is_refused(
    single: Path, saved: Callable[[str], Path]
) -> None:
    error = refusal(single, config=str(saved("pixart")))
    assert "PixArtSigmaPipeline cannot be opened from a single file" in error.message


@pytest.mark.parametrize(
    "source", ["no/such/place", "./nowhere", "nothing", "/dev/null", "a" * 5000]
)
def test_what_is_neither_file_nor_folder_nor_hub_id_is_refused(source: str) -> None:
    assert "no such pipeline" in refusal(source).message


def test_a_hub_id_that_cannot_be_reached_is_refused_without_a_traceback() -> None:
    message = refusal("nobody/nothing-of-the-sort").message
    assert "no folder here, and its model_index.json cannot be had: HF_HUB_OFFLINE" in message


class NoSuchRepositoryError(RepositoryNotFoundError):
    def __init__(self) -> None:
        Exception.__init__(self, "404")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NoSuchRepositoryError(), "the hub has no such repository"),
        (HfHubHTTPError.__bases__[0]("connection refused"), "no connection to http"),
        (ConnectionError("unreachable"), "no connection to http"),
    ],
)
def test_a_hub_that_does_not_answer_or_has_no_such_repository_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(HfApi, "model_info", fail)
    assert f"cannot be had: {reason}" in refusal("nobody/nothing-of-the-sort").message


def test_every_refusal_of_a_folder_comes_before_any_component_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "unet" / "weights.bin").write_bytes(b"")
    monkeypatch.setattr(
        DiffusionPipeline, "from_pretrained", lambda *_a, **_k: pytest.fail("was loaded")
    )
    refusal(folder)
    with pytest.raises(PipelineError):
        check_folder(folder)


# Names


def test_a_fingerprint_names_weights_and_nothing_else(built: Any) -> None:
    unet = built("sd15").unet
    before = fingerprint(unet)
    assert before == fingerprint(unet)
    assert len(before) == 16
    assert before != fingerprint(built("sd_v").vae)
    bias = unet.conv_in.bias
    with torch.no_grad():
        old = bias[0].clone()
        bias[0] += 1e-3
        assert fingerprint(unet) != before
        bias[0] = old
    assert fingerprint(unet) == before


def test_precision_changes_the_fingerprint() -> None:
    layer = nn.Linear(3, 3)
    assert fingerprint(layer) != fingerprint(nn.Linear(3, 3).to(torch.bfloat16))
    with torch.no_grad():
        half = nn.Linear(3, 3)
        half.load_state_dict(layer.state_dict())
    assert fingerprint(layer) == fingerprint(half)
    assert fingerprint(layer) != fingerprint(half.to(torch.bfloat16))
