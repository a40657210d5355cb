"""Published pipelines by their configurations: their true sizes, and folders made of them."""

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from guidefold.bench.memory.meta_pipeline import open_meta_pipeline
from guidefold.ground.errors import ConfigError
from guidefold.pipeline.descriptions import (
    DESCRIPTIONS,
    class_of,
    describe_source,
    described_names,
    is_complete,
    read_description,
)
from guidefold.pipeline.index import check_folder
from guidefold.pipeline.noise_schedule import open_scheduler
from guidefold.pipeline.open import modules

# Parameters of denoisers as their authors give them.
PUBLISHED = {
    "sd15": 859_520_964,  # bench/memory/test_architectures.py
    "sd21": 865_910_724,
    "sdxl": 2_567_463_684,
    "sd3": 2_028_328_000,
    # lodestones/Chroma, transformer/diffusion_pytorch_model.safetensors.index.json: 17,799,966,848
    # bytes of bfloat16.
    "chroma": 17_799_966_848 // 2,
}
IN_BILLIONS = {
    "sd35-medium": 2.5,  # its model card: with the position table, which is a buffer here
    "sd35-large": 8.1,  # its model card, likewise
    "qwen-image": 20,  # README of QwenLM/Qwen-Image
    "z-image": 6,  # README of Tongyi-MAI/Z-Image
    "lumina2": 2.6,  # README of Alpha-VLLM/Lumina-Image-2.0
    "sana": 1.6,  # the name of its repository
    "wan22-5b": 5,  # the name of its repository
    "hunyuanvideo15": 8.3,  # README of Tencent-Hunyuan/HunyuanVideo-1.5
    "ltx-video": 2,  # README of Lightricks/LTX-Video
}


def values_of(name: str) -> dict:
    return read_description(DESCRIPTIONS / f"{name}.toml")


@pytest.mark.parametrize("name", described_names())
def test_every_component_has_the_parameters_that_are_stated_and_published(name: str) -> None:
    values = values_of(name)
    folder = describe_source(values["sources"][0])
    assert folder is not None
    index = check_folder(folder)
    parts = modules(open_meta_pipeline(folder, torch.bfloat16))
    counts = {n: sum(p.numel() for p in part.parameters()) for n, part in parts.items()}
    denoiser, autoencoder = values["denoiser"], values["autoencoder"]
    stated = {
        denoiser["name"]: denoiser["parameters"],
        autoencoder["name"]: autoencoder["parameters"],
        **{n: part["parameters"] for n, part in values["encoders"].items()},
    }
    assert counts == stated
    if name in PUBLISHED:
        assert counts[denoiser["name"]] == PUBLISHED[name]
    else:
        tables = sum(t.numel() for t in parts[denoiser["name"]].buffers())
        wanted = IN_BILLIONS[name] * 1e9
        assert counts[denoiser["name"]] + tables == pytest.approx(wanted, rel=0.05)
    scheduler = open_scheduler(folder, index)
    assert type(scheduler) is class_of(values["scheduler"]["class"])
    for setting, value in values["scheduler"]["config"].items():
        assert scheduler.config[setting] == value


def test_a_hub_id_that_is_not_described_has_no_folder() -> None:
    assert describe_source("nobody/nothing") is None


def test_a_shared_component_is_written_in_full() -> None:
    folder = describe_source("lodestones/Chroma1-HD")
    assert folder is not None
    config = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["d_model"]) == ("t5", 4096)


def test_a_prompt_has_the_tokens_that_clip_was_trained_with() -> None:
    folder = describe_source("stabilityai/stable-diffusion-xl-base-1.0")
    assert folder is not None
    assert is_complete(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
    # CLIP's own tokenizer, and what stands after the end in the second encoder of SDXL.
    tokens = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("a photo of a cat")["input_ids"] == tokens
    padded = tokenizer("a photo of a cat", padding="max_length")["input_ids"]
    assert padded == [*tokens, *[0] * 70]


def test_a_pipeline_whose_vocabulary_is_not_here_is_not_complete() -> None:
    folder = describe_source("stabilityai/stable-diffusion-3.5-medium")
    assert folder is not None
    assert not is_complete(folder)


def test_a_component_that_is_shared_by_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('autoencoder = "nothing"', encoding="utf-8")
    with pytest.raises(LookupError, match="nothing"):
        read_description(path)
    with pytest.raises(ConfigError):
        read_description(tmp_path / "none.toml")
