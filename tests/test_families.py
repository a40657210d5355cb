"""End to end, a family at a time: record, train, export, and load it as any client would."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from peft import PeftModel
from zoo import ZOO

from guidefold.deliver.export import export
from guidefold.ground.randomness import generator
from guidefold.lora.adapter import attach
from guidefold.run.files import read_json, read_lines
from guidefold.run.settings import Settings
from guidefold.run.tensors import read_tensors
from guidefold.train.distill import distill

FAMILIES = ("sd15", "sdxl", "sd3", "pixart", "qwen_image", "wan")
OTHERS = ("sd_v", "chroma", "animatediff", "ltx", "lumina2", "flux", "sana", "cogvideox")
BY_PEFT = ("pixart",)
SOURCES = {
    "teacher": ["teacher"],
    "noise": ["noise"],
    "student": ["teacher", "student"],
    "all": ["teacher", "noise", "student"],
}
FOLDED = [(FAMILIES[0], source) for source in SOURCES] + [(name, "all") for name in FAMILIES[1:]]


@pytest.fixture
def stock(saved: Callable[[str], Path]) -> Callable[[str], DiffusionPipeline]:
    """A pipeline opened as its users open it."""

    def open_plainly(name: str) -> DiffusionPipeline:
        pipeline = DiffusionPipeline.from_pretrained(saved(name), local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return open_plainly


def draw(name: str, pipeline: DiffusionPipeline, **call: Any) -> np.ndarray:
    """A picture or video with guidance off, as numbers in [0, 1]."""
    entry = ZOO[name]
    inputs = {**entry.call, entry.guidance_argument: 1.0, "num_inference_steps": 3, **call}
    seeded = {"generator": generator(7), "output_type": "np"}
    return np.asarray(pipeline(prompt=["a red cat"], **seeded, **inputs)[0])


def load_plainly(name: str, pipeline: DiffusionPipeline, folder: Path) -> None:
    """With the libraries' own loaders and nothing of ours."""
    if name in BY_PEFT:
        PeftModel.from_pretrained(pipeline.transformer, folder)
    else:
        pipeline.load_lora_weights(folder)


def draw_with_our_student(name: str, pipeline: DiffusionPipeline, settings: Settings) -> np.ndarray:
    """The checkpoint's tensors in our own adapter."""
    denoiser = getattr(pipeline, ZOO[name].denoisers[0])
    adapter = attach(denoiser, "all", settings.adapter.rank, 0, lambda: draw(name, pipeline))
    (last,) = sorted(Path(settings.run).glob("checkpoints/step-*"))[-1:]
    adapter.load_state_dict(read_tensors(last / "adapter.safetensors"))
    with adapter.student_mode(1.0, train=False):
        return draw(name, pipeline)


def fold(settings: Settings) -> Path:
    """Record, train, export; the adapter's folder."""
    distill(settings)
    folder = export(settings)
    losses = [
        line["loss"] for line in read_lines(Path(settings.run) / "log.jsonl") if "loss" in line
    ]
    assert len(losses) == settings.distill.steps
    assert all(np.isfinite(losses))
    return folder


@pytest.mark.parametrize(("name", "source"), FOLDED)
def test_the_exported_adapter_in_a_stock_pipeline_draws_what_our_student_draws(
    settings_for: Any, stock: Any, tmp_path: Path, name: str, source: str
) -> None:
    settings = settings_for(name, tmp_path, record={"rounds": SOURCES[source]})
    folder = fold(settings)
    pipeline = stock(name)
    bare = draw(name, pipeline)
    load_plainly(name, pipeline, folder)
    loaded = draw(name, pipeline)
    ours = draw_with_our_student(name, stock(name), settings)
    np.testing.assert_allclose(loaded, ours, atol=1e-4)
    assert np.abs(loaded - bare).max() > 20 * np.abs(loaded - ours).max()
    assert np.abs(loaded - bare).max() > 1e-3


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_family_of_the_zoo_is_folded_too(
    settings_for: Any, stock: Any, tmp_path: Path, name: str
) -> None:
    settings = settings_for(name, tmp_path)
    folder = fold(settings)
    pipeline = stock(name)
    call = dict(settings.pipeline.call)
    bare = draw(name, pipeline, **call)
    load_plainly(name, pipeline, folder)
    assert np.abs(draw(name, pipeline, **call) - bare).max() > 1e-3
    about = read_json(folder / "guidefold.json")
    assert about["step"] == 2
    assert about["findings"]["denoisers"] == list(ZOO[name].denoisers)


def test_perturbed_attention_guidance_is_folded_with_its_own_scale_off(
    settings_for: Any, tmp_path: Path
) -> None:
    call = {**ZOO["sd15_pag"].call, "pag_scale": 0.0}
    settings = settings_for("sd15_pag", tmp_path, pipeline={"call": call})
    fold(settings)
    findings = read_json(Path(settings.run) / "probe.json")
    assert (findings["passes_on"], findings["passes_off"]) == (2, 1)


def test_training_leaves_no_thread_setting_and_no_gradient_mode_behind(
    settings_for: Any, tmp_path: Path
) -> None:
    fold(settings_for("sd15", tmp_path))
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == 1
