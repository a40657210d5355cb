"""What others call a denoiser's layers, against the layout that the original code writes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from original_layout import _unet_name
from zoo import WARNINGS

from guidefold.deliver.layer_names import layer_names, original_names
from guidefold.lora.portable import counted

pytestmark = pytest.mark.filterwarnings(*WARNINGS)

Built = Callable[[str], DiffusionPipeline]


def full_size(**config: Any) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_every_layer_of_a_unet_has_its_original_name(built: Built, name: str) -> None:
    """Another path: :mod:`original_layout` names whole checkpoints, by rules of its own."""
    unet = built(name).unet
    found = layer_names(unet)
    assert found.original.keys() == found.layers
    for layer, original in found.original.items():
        if not layer.startswith("add_embedding."):  # which that module does not know
            written = _unet_name(f"{layer}.weight", unet.config.layers_per_block)
            assert written == f"{original}.weight"


def test_the_names_of_the_first_released_unet() -> None:
    """Its numbers, as in every checkpoint of it: four blocks, the outermost without attention."""
    names = layer_names(full_size(cross_attention_dim=768)).original
    assert names["down_blocks.0.downsamplers.0.conv"] == "input_blocks.3.0.op"
    assert names["down_blocks.3.resnets.1.conv2"] == "input_blocks.11.0.out_layers.3"
    assert names["mid_block.resnets.1.time_emb_proj"] == "middle_block.2.emb_layers.1"
    assert names["up_blocks.0.upsamplers.0.conv"] == "output_blocks.2.1.conv"
    assert names["up_blocks.1.upsamplers.0.conv"] == "output_blocks.5.2.conv"
    last = "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0"
    assert names[last] == "output_blocks.11.1.transformer_blocks.0.attn2.to_out.0"


def test_the_kind_of_names_follows_the_configuration(built: Built) -> None:
    plain, sized = layer_names(built("sd15").unet), layer_names(built("sdxl").unet)
    assert all(layer == name for layer, name in plain.kohya.items())
    assert not plain.added
    assert sized.kohya == sized.original
    assert sized.kohya["add_embedding.linear_2"] == "label_emb.0.2"


def test_motion_layers_have_no_original_name(built: Built) -> None:
    found = layer_names(built("animatediff").unet)
    assert any("motion_modules" in layer for layer in found.layers - found.kohya.keys())


@pytest.mark.parametrize("name", ["flux", "sd3", "pixart", "chroma", "qwen_image", "wan"])
def test_a_transformer_that_clients_know_is_told_by_its_layers(built: Built, name: str) -> None:
    found = layer_names(built(name).transformer)
    assert found.layout is not None
    assert {counted(layer) for layer in found.layers} <= found.layout.layers
    assert not found.kohya


@pytest.mark.parametrize("name", ["sana", "ltx"])
def test_one_that_they_do_not_know_has_no_layout(built: Built, name: str) -> None:
    assert layer_names(built(name).transformer).layout is None


def test_layers_of_no_unet_have_no_original_names() -> None:
    assert original_names(["conv_in", "blocks.0.proj"]) == {}
