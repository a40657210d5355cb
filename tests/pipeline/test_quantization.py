"""Linear layers of large components are quantised as a pipeline is opened, or it is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quantised
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPVisionModel

from guidefold.ground.errors import ConfigError, PipelineError
from guidefold.pipeline import quantization
from guidefold.pipeline.open import fingerprint, open_pipeline
from guidefold.pipeline.quantization import (
    check_quantization,
    is_quantized,
    quantizable,
    stored_bytes,
)

pytestmark = pytest.mark.filterwarnings(*quantised.WARNINGS)
Saved = Callable[[str], Path]
BITSANDBYTES = ["bitsandbytes_4bit", "bitsandbytes_8bit"]
OTHERS = {"torchao_int8": "torchao", "quanto_int8": "optimum.quanto"}


@pytest.fixture(params=[*BITSANDBYTES, *OTHERS])
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A quantisation whose library is installed."""
    if request.param in OTHERS:
        pytest.importorskip(OTHERS[request.param])
    quantised.let_bitsandbytes_use_the_cpu(monkeypatch)
    return request.param


def test_denoiser_and_text_encoders_are_quantised_and_nothing_else(saved: Saved, name: Any) -> None:
    pipeline = open_pipeline(str(saved("sdxl")), quantization=name)
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2):
        assert is_quantized(part)
    assert not is_quantized(pipeline.vae)
    whole = open_pipeline(str(saved("sdxl")))
    assert stored_bytes(pipeline.unet) < stored_bytes(whole.unet)
    convolution = "down_blocks.0.resnets.0.conv1.weight"
    expected = whole.unet.get_parameter(convolution)
    assert torch.equal(pipeline.unet.get_parameter(convolution), expected)


def test_only_what_is_wanted_is_loaded_and_quantised(saved: Saved, name: Any) -> None:
    pipeline = open_pipeline(str(saved("sd3")), quantization=name, only=["transformer"])
    assert is_quantized(pipeline.transformer)
    assert pipeline.text_encoder is None
    assert pipeline.vae is None


def test_a_quantised_base_has_a_fingerprint_of_its_own(
    saved: Saved, name: Any, tmp_path: Path
) -> None:
    whole = open_pipeline(str(saved("sd3")))
    first, again = (open_pipeline(str(saved("sd3")), quantization=name) for _ in range(2))
    own = fingerprint(first.transformer)
    assert own == fingerprint(again.transformer) != fingerprint(whole.transformer)
    with torch.no_grad():
        for layer in whole.transformer.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(2)  # the same whole numbers, other scales
    whole.save_pretrained(tmp_path / "other")
    other = open_pipeline(str(tmp_path / "other"), quantization=name)
    assert fingerprint(other.transformer) != own


def test_computing_does_not_change_a_quantised_fingerprint(saved: Saved, name: Any) -> None:
    pipeline = open_pipeline(str(saved("sdxl")), quantization=name)
    before = [fingerprint(part) for part in (pipeline.unet, pipeline.text_encoder)]
    pipeline("a cat", height=16, width=16, num_inference_steps=1, output_type="latent")
    assert [fingerprint(part) for part in (pipeline.unet, pipeline.text_encoder)] == before


def test_what_is_quantised_follows_from_a_components_class() -> None:
    kinds = (UNet2DConditionModel, AutoencoderKL, CLIPTextModel, CLIPVisionModel, nn.Linear)
    assert [quantizable(kind) for kind in kinds] == [True, False, True, False, False]


@pytest.mark.parametrize(
    ("name", "extra"), [("torchao_int8", "torchao"), ("bitsandbytes_4bit", "lean")]
)
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, saved: Saved, name: Any, extra: str
) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=f"pipeline.quantization: '{name}' needs a package") as it:
        open_pipeline(str(saved("sd15")), quantization=name)
    assert f"'guidefold[{extra}]'" in it.value.remedy


@pytest.mark.skipif(torch.cuda.is_available(), reason="it can be used here")
@pytest.mark.parametrize("name", BITSANDBYTES)
def test_a_library_that_needs_a_gpu_is_refused_without_one(saved: Saved, name: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be used here: No GPU found") as caught:
        open_pipeline(str(saved("sd15")), quantization=name)
    assert "torchao_int8" in caught.value.remedy


def test_without_quantisation_no_library_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda _name: None)
    check_quantization("none")


def test_a_component_that_kept_its_weights_is_named(
    monkeypatch: pytest.MonkeyPatch, saved: Saved
) -> None:
    quantised.let_bitsandbytes_use_the_cpu(monkeypatch)
    monkeypatch.setattr(quantization, "is_quantized", lambda _module: False)
    with pytest.raises(PipelineError, match="has quantised no layer of text_encoder "):
        open_pipeline(str(saved("sd15")), quantization="bitsandbytes_4bit")


def test_a_single_file_is_refused_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quantised.let_bitsandbytes_use_the_cpu(monkeypatch)
    path = tmp_path / "one.safetensors"
    path.write_bytes(b"")
    with pytest.raises(PipelineError, match="is a single file") as caught:
        open_pipeline(str(path), quantization="bitsandbytes_8bit")
    assert "save_pretrained(FOLDER)" in caught.value.remedy
