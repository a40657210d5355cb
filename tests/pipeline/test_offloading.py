"""What an offloaded pipeline draws, and what stays of it when offloading ends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import DiffusionPipeline
from listening import plain_run
from zoo import WARNINGS, ZOO

from guidefold.ground import compat
from guidefold.ground.errors import ConfigError
from guidefold.pipeline.offloading import OFFLOADERS, offload, open_placed, stop_offloading
from guidefold.pipeline.open import modules, open_pipeline
from guidefold.run.settings import PipelineSettings

pytestmark = pytest.mark.filterwarnings(*WARNINGS)
Saved = Callable[[str], Path]
CPU = torch.device("cpu")


@pytest.mark.parametrize("how", ["component", "group", "sequential"])
def test_offloading_without_an_accelerator_is_refused(built: Any, how: Any) -> None:
    with pytest.raises(ConfigError, match="no accelerator to bring parts of the pipeline to"):
        offload(built("sd15"), how, "cpu")


def test_every_way_but_none_can_be_asked_for() -> None:
    for how in ("none", *OFFLOADERS):
        PipelineSettings.model_validate({"source": "p", "offload": how})


@pytest.mark.parametrize(
    ("quantization", "how"),
    [
        ("bitsandbytes_4bit", "sequential"),
        ("bitsandbytes_8bit", "group"),
        ("bitsandbytes_8bit", "sequential"),
        ("quanto_int8", "group"),
        ("quanto_int8", "sequential"),
    ],
)
def test_layers_that_cannot_be_moved_one_by_one_are_refused_before_anything_is_opened(
    quantization: str, how: str
) -> None:
    wanted = PipelineSettings(source="nowhere", quantization=quantization, offload=how)
    with pytest.raises(ConfigError, match=f"'{how}' cannot move the layers of .*{quantization}"):
        open_placed(wanted, "cuda")


@pytest.mark.parametrize("name", ["sdxl", "flux", "qwen_image", "wan"])
def test_layers_that_come_and_go_draw_the_same_and_are_left_as_they_were(
    saved: Saved, name: str
) -> None:
    pipeline = open_pipeline(str(saved(name)))
    inputs = {"prompt": "a cat", "num_inference_steps": 2, **ZOO[name].call}
    truth, before = plain_run(pipeline, inputs, seed=3), forwards(pipeline)
    OFFLOADERS["group"](pipeline, CPU)
    assert torch.equal(plain_run(pipeline, inputs, seed=3), truth)
    assert forwards(pipeline) != before
    stop_offloading(pipeline)
    assert forwards(pipeline) == before
    assert torch.equal(plain_run(pipeline, inputs, seed=3), truth)


def forwards(pipeline: DiffusionPipeline) -> list[str]:
    """The modules whose ``forward`` something has replaced, by the name of their component."""
    return [
        f"{name}.{inner}"
        for name, part in modules(pipeline).items()
        for inner, module in part.named_modules()
        if getattr(vars(module).get("forward"), "func", None) is not None
    ]


def test_a_pipeline_whose_parts_wait_elsewhere_names_the_device_that_computes(
    saved: Saved,
) -> None:
    pipeline = open_pipeline(str(saved("sd15")))
    for part in modules(pipeline).values():
        cpu_offload(part, CPU)
    assert pipeline.device == torch.device("meta")
    assert compat.execution_device(pipeline) == CPU
