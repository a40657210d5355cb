"""A plan from configs alone: against the real training step of the same run."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from original_layout import write_original_layout
from torch import nn
from zoo import WARNINGS

from guidefold.bench.memory import plan as planning
from guidefold.bench.memory.memory_watch import MemoryWatch, fused_attention
from guidefold.bench.memory.meta_pipeline import find_folder
from guidefold.bench.memory.plan import GIB, make_plan
from guidefold.bench.memory.plan_text import describe
from guidefold.ground.errors import PipelineError, UnfoldableError
from guidefold.pipeline.open import modules, open_pipeline
from guidefold.run.settings import Settings

distill = import_module("guidefold.train.distill")  # its door has a function of that name

pytestmark = pytest.mark.filterwarnings(*WARNINGS)
Make = Callable[..., Settings]
FEW_LAYERS = {"targets": "attention"}  # quicker, where the adapter is not the subject
FAMILIES = ["sd15", "sdxl", "sd3", "pixart", "qwen_image", "wan", "animatediff", "flux", "lumina2"]


def without_weights(settings: Settings, folder: Path) -> Settings:
    """The same run on a copy of its pipeline that has configs and tokenizers only."""
    source = folder / "hollow"
    shutil.copytree(
        settings.pipeline.source, source, ignore=shutil.ignore_patterns("*.safetensors")
    )
    pipeline = settings.pipeline.model_copy(update={"source": str(source)})
    return settings.model_copy(update={"pipeline": pipeline})


def real_peak(settings: Settings, patch: pytest.MonkeyPatch) -> int:
    """The most bytes of tensors that lived in a training step of a run that trains."""
    peaks, train_step = [], distill.Training.train_step

    def watched(self: distill.Training, *stretch: Any) -> dict[str, Any]:
        denoiser: nn.Module = self.student.denoiser
        states = self.updates.optimizer.state.values()
        with MemoryWatch() as watch:
            watch.mark("before", [*denoiser.parameters(), *denoiser.buffers()])
            watch.mark("before", [t for state in states for t in state.values()])
            line = train_step(self, *stretch)
        peaks.append(watch.peak_bytes)
        return line

    patch.setattr(distill.Training, "train_step", watched)
    distill.distill(settings)
    return max(peaks)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulation": 2},
        {"gradient_checkpointing": True},
        {"mixed_precision": "bf16"},
        {"frozen_weights": "bf16", "mixed_precision": "bf16"},
        {"frozen_weights": "int8"},
        {"frozen_weights": "int4", "gradient_checkpointing": True},
    ],
    ids=str,
)
def test_a_plan_is_what_the_run_takes(
    recorded: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    asked = {"steps": 2, "warmup": 0, "batch_size": 4, "preview_prompts": 0, **changes}
    settings = recorded("sd15", tmp_path, distill=asked)
    planned = make_plan(without_weights(settings, tmp_path))
    assert planned.peak_bytes == pytest.approx(real_peak(settings, monkeypatch), rel=0.02)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pipeline_of_any_family_is_planned_from_its_configs(
    settings_for: Make, saved: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    settings = settings_for(name, tmp_path)
    planned = make_plan(without_weights(settings, tmp_path))
    weights = sum(
        path.stat().st_size
        for kind in ("unet", "transformer")
        for path in saved(name).glob(f"{kind}/*.safetensors")
    )
    assert planned.parts["weights"] == pytest.approx(weights, rel=0.2)  # a file has names too
    assert planned.recording_bytes > planned.parts["weights"]
    assert planned.encoding_bytes > planned.parts["weights"]
    assert planned.rows == settings.distill.batch_size // settings.distill.accumulation
    assert sum(planned.parts.values()) == planned.peak_bytes


def test_smaller_weights_and_moments_take_their_part_less(
    settings_for: Make, tmp_path: Path
) -> None:
    def parts(**distill: Any) -> dict[str, int]:
        wide = {"rank": 256, "targets": "attention"}
        return make_plan(settings_for("sd15", tmp_path, adapter=wide, distill=distill)).parts

    whole = parts()
    sixteen, eight, four = (
        parts(frozen_weights=storage)["weights"] / whole["weights"]
        for storage in ("bf16", "int8", "int4")
    )
    # Norms keep theirs and scales are added: these layers are a few dozen wide.
    assert sixteen == pytest.approx(0.5, abs=0.1)
    assert eight == pytest.approx(0.25, abs=0.15)
    assert four < eight
    assert parts(optimizer="adamw8bit")["optimizer"] < 0.5 * whole["optimizer"]
    # One moment in place of two.
    assert parts(optimizer="muon")["optimizer"] == pytest.approx(0.5 * whole["optimizer"], rel=0.01)


def test_two_denoisers_are_refused_by_name(settings_for: Make, tmp_path: Path) -> None:
    with pytest.raises(UnfoldableError, match="2 denoisers"):
        make_plan(settings_for("wan22", tmp_path))


@pytest.mark.parametrize(("memory", "fits"), [(10 * GIB, True), (1000, False)])
def test_the_verdict_compares_with_the_memory_there(
    settings_for: Make, tmp_path: Path, memory: int, fits: bool
) -> None:
    settings = settings_for("sd15", tmp_path, adapter=FEW_LAYERS)
    planned = make_plan(settings, memory)
    said = describe(planned, settings)
    assert planned.fits is fits
    assert planned.to_json()["fits"] is fits
    assert ("Does not fit" not in said) is fits
    assert ("distill.gradient_checkpointing=true" in said) is not fits
    json.dumps(planned.to_json())


def test_a_plan_fits_only_with_a_tenth_to_spare(settings_for: Make, tmp_path: Path) -> None:
    settings = settings_for("sd15", tmp_path, adapter=FEW_LAYERS)
    plan = make_plan(settings, 10 * GIB)
    for memory, words in (
        (plan.needed_bytes / 0.89, "Fits into"),
        (plan.needed_bytes / 0.91, "Just fits into"),
        (plan.needed_bytes * 1.001, "Just fits into"),
        (plan.needed_bytes * 0.999, "Does not fit into"),
    ):
        planned = replace(plan, available_bytes=int(memory))
        said = describe(planned, settings)
        assert words in said
        assert planned.fits is (words == "Fits into")
        assert planned.just_fits is (words == "Just fits into")
    for phase in ("text encoding", "recording", "training step"):
        assert f"{phase:20}" in said


def test_recording_is_planned_as_its_calls_take_memory(settings_for: Make, tmp_path: Path) -> None:
    """Against the real modules' calls in a guided run, watched while they compute."""
    settings = settings_for("sd15", tmp_path, record={"batch_size": 3}, adapter=FEW_LAYERS)
    peaks = dict[str, int]()
    pipeline = open_pipeline(settings.pipeline.source)
    parts = modules(pipeline)
    total = sum(t.nbytes for m in parts.values() for t in (*m.parameters(), *m.buffers()))
    for name in ("text_encoder", "unet"):
        with watched_calls(parts[name], name, peaks):
            pipeline(
                ["a red cat"] * 3,
                guidance_scale=5.0,
                num_inference_steps=1,
                output_type="latent",
                **settings.pipeline.call,
            )
    planned = make_plan(settings)
    assert planned.recording_bytes == pytest.approx(total + peaks["unet"], rel=0.02)
    assert planned.encoding_bytes == pytest.approx(total + peaks["text_encoder"], rel=0.02)


def with_pipeline(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update={"pipeline": settings.pipeline.model_copy(update=changes)})


def test_what_waits_on_the_cpu_is_not_planned_on_the_accelerator(
    settings_for: Make, tmp_path: Path
) -> None:
    settings = settings_for("sd15", tmp_path, adapter=FEW_LAYERS)
    whole, component, group = (
        make_plan(with_pipeline(settings, offload=how)) for how in ("none", "component", "group")
    )
    assert component.encoding_bytes < component.recording_bytes < whole.recording_bytes
    assert group.recording_bytes < 0.75 * component.recording_bytes
    assert whole.peak_bytes == component.peak_bytes == group.peak_bytes  # training holds it whole


def test_linear_layers_that_a_library_quantises_take_their_part_less(
    settings_for: Make, tmp_path: Path
) -> None:
    settings = settings_for("sd3", tmp_path, adapter=FEW_LAYERS)
    whole, eight, four = (
        make_plan(with_pipeline(settings, quantization=name))
        for name in ("none", "torchao_int8", "bitsandbytes_4bit")
    )
    assert four.parts["weights"] <= eight.parts["weights"] < 0.5 * whole.parts["weights"]
    assert eight.recording_bytes < whole.recording_bytes
    assert "linear layers in torchao_int8" in describe(
        eight, with_pipeline(settings, quantization="torchao_int8")
    )


@contextmanager
def watched_calls(module: nn.Module, name: str, peaks: dict[str, int]) -> Iterator[None]:
    """Watch a module's calls: the most bytes that they hold beside its weights."""
    forward = module.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        weights = [*module.parameters(), *module.buffers()]
        with fused_attention(), MemoryWatch() as watch:
            watch.mark("weights", weights)
            out = forward(*args, **kwargs)
        peaks[name] = max(peaks.get(name, 0), watch.peak_bytes - sum(t.nbytes for t in weights))
        return out

    module.forward = watched
    try:
        yield
    finally:
        module.forward = forward


def test_a_device_of_unknown_memory_gives_no_verdict(
    settings_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "memory_of", lambda _: None)
    settings = settings_for("sd15", tmp_path, adapter=FEW_LAYERS)
    planned = make_plan(settings)
    assert planned.fits is None
    assert "compare with --memory" in describe(planned, settings)


def test_a_component_without_its_config_is_refused_by_name(
    settings_for: Make, tmp_path: Path
) -> None:
    settings = without_weights(settings_for("sd15", tmp_path), tmp_path)
    (tmp_path / "hollow" / "vae" / "config.json").unlink()
    with pytest.raises(PipelineError, match="vae: AutoencoderKL cannot be made"):
        make_plan(settings)


def test_a_single_file_is_planned_by_the_folder_that_describes_it(
    settings_for: Make, built: Callable[[str], Any], tmp_path: Path
) -> None:
    settings = settings_for("sd15", tmp_path, adapter=FEW_LAYERS)
    hollow = without_weights(settings, tmp_path)
    file = write_original_layout(built("sd15"), tmp_path / "base.safetensors")
    single = {"source": str(file), "config": hollow.pipeline.source}
    pipeline = settings.pipeline.model_copy(update=single)
    assert make_plan(settings.model_copy(update={"pipeline": pipeline})) == make_plan(hollow)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(PipelineError, match="truncated"):
        make_plan(settings.model_copy(update={"pipeline": pipeline}))


def test_a_single_file_whose_configuration_cannot_be_had_offline_is_refused(
    settings_for: Make, built: Callable[[str], Any], tmp_path: Path
) -> None:
    settings = settings_for("sd15", tmp_path)
    file = write_original_layout(built("sd15"), tmp_path / "base.safetensors")
    for config in ("nobody/nothing", "nobody/else"):
        single = {"source": str(file), "config": config}
        pipeline = settings.pipeline.model_copy(update=single)
        with pytest.raises(PipelineError, match="HF_HUB_OFFLINE"):
            make_plan(settings.model_copy(update={"pipeline": pipeline}))


def test_a_scheduler_without_timesteps_is_refused(settings_for: Make, tmp_path: Path) -> None:
    hollow = without_weights(settings_for("sd15", tmp_path), tmp_path)
    path = Path(hollow.pipeline.source) / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_train_timesteps": 0}))
    with pytest.raises(PipelineError, match="num_train_timesteps=0"):
        make_plan(hollow)


@pytest.mark.parametrize("source", ["no/such/place", "nobody/nothing", "./nowhere"])
def test_a_source_without_a_description_is_refused_by_name(source: str) -> None:
    with pytest.raises(PipelineError, match=source):
        find_folder(source)


def test_planning_leaves_torch_as_it_was(settings_for: Make, tmp_path: Path) -> None:
    make_plan(settings_for("sd15", tmp_path, adapter=FEW_LAYERS))
    assert type(torch.rand(1)) is torch.Tensor
