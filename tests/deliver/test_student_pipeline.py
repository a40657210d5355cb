"""A stock pipeline with a written adapter: one pass, and no guidance on top of guidance."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from guidefold.deliver.export import export
from guidefold.deliver.student_pipeline import (
    IgnoredNegativePromptWarning,
    OtherBaseWarning,
    StockStudent,
    open_student,
)
from guidefold.ground.errors import InputError, MismatchError, RunError
from guidefold.lora.dial import Dial, Mark
from guidefold.pipeline.open import open_pipeline
from guidefold.run.settings import Settings
from guidefold.train.distill import distill

PROMPT = "a big red cat"
MARKS = (Mark(2.0, 0.2, 0.5), Mark(5.0, 1.1, 0.5), Mark(8.0, 2.0, 0.6))
DIAL = Dial(1.0, 5.0, (2.0, 8.0), MARKS)


@pytest.fixture(scope="module")
def trained(settings_for: Any, tmp_path_factory: Any) -> Settings:
    asked = {"distill": {"steps": 4, "learning_rate": 0.05}}
    settings: Settings = settings_for("sd15", tmp_path_factory.mktemp("run"), **asked)
    distill(settings)
    export(settings)
    return settings


@pytest.fixture
def pipeline(trained: Settings) -> DiffusionPipeline:
    return open_pipeline(trained.pipeline.source)


@pytest.fixture
def folder(trained: Settings) -> Path:
    return Path(trained.run) / "adapter"


@pytest.fixture
def student(pipeline: DiffusionPipeline, folder: Path) -> Iterator[StockStudent]:
    opened = open_student(pipeline, folder)
    opened.dial = DIAL
    yield opened


class Rows:
    """Counts the rows that a denoiser is called with."""

    def __init__(self, denoiser: torch.nn.Module) -> None:
        self.rows, self.denoiser = 0, denoiser

    def __enter__(self) -> "Rows":
        self.hook = self.denoiser.register_forward_pre_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _count(self, _module: object, args: tuple[torch.Tensor, ...]) -> None:
        self.rows += len(args[0])


def draw(caller: Any, trained: Settings, prompt: str = PROMPT, **given: Any) -> Any:
    call = {**trained.pipeline.call, "num_inference_steps": 3, "output_type": "np", **given}
    return caller(prompt, generator=torch.Generator().manual_seed(1), **call).images


def test_it_draws_what_plain_diffusers_draws_with_the_file(
    student: StockStudent, trained: Settings, folder: Path
) -> None:
    plain = DiffusionPipeline.from_pretrained(trained.pipeline.source, safety_checker=None)
    plain.set_progress_bar_config(disable=True)
    plain.load_lora_weights(folder)
    expected = draw(plain, trained, guidance_scale=1.0)
    assert np.array_equal(draw(student, trained), expected)
    assert np.array_equal(draw(student, trained, guidance_scale=1.0), expected)


def test_it_takes_one_pass_a_step(student: StockStudent, trained: Settings) -> None:
    with Rows(student.pipeline.unet) as heard:
        draw(student, trained)
    assert heard.rows == 3


def test_guidance_on_top_is_refused_unless_forced(student: StockStudent, trained: Settings) -> None:
    with pytest.raises(InputError, match=r"guidance_scale=7\.5: .* would count twice") as refused:
        draw(student, trained, guidance_scale=7.5)
    assert ".turn(7.5)" in refused.value.remedy
    with Rows(student.pipeline.unet) as heard:
        draw(student, trained, guidance_scale=7.5, force=True)
    assert heard.rows == 6


def test_a_negative_prompt_that_nothing_obeys_is_complained_of(
    student: StockStudent, trained: Settings
) -> None:
    with pytest.warns(IgnoredNegativePromptWarning, match="negative_prompt is ignored"):
        with_it = draw(student, trained, negative_prompt="blurry")
    assert np.array_equal(with_it, draw(student, trained))


def test_the_folded_negative_prompt_is_no_mistake(student: StockStudent, trained: Settings) -> None:
    student.negative_prompt = "blurry"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(student, trained, negative_prompt="blurry")


def test_the_dial_turns_by_guidance_scale(student: StockStudent, trained: Settings) -> None:
    at_one = draw(student, trained)
    assert student.turn(5.0) == pytest.approx(1.1)
    assert not np.array_equal(draw(student, trained), at_one)
    layers = [m for m in student.pipeline.unet.modules() if hasattr(m, "scaling")]
    assert [s for m in layers for s in m.scaling.values()] == pytest.approx([1.1] * len(layers))
    with pytest.raises(InputError, match="measured from 1 to 8"):
        student.turn(9.0)


def test_a_folder_in_the_pipeline_s_place_is_refused_in_words(folder: Path) -> None:
    with pytest.raises(InputError, match=r"'bundled'.*no pipeline"):
        open_student("bundled", folder)


def test_a_scale_beyond_the_dial_is_refused_before_anything_is_loaded(
    pipeline: DiffusionPipeline, folder: Path
) -> None:
    with pytest.raises(InputError, match="guidance 40"):
        open_student(pipeline, folder, guidance=40.0)
    assert not any(hasattr(m, "lora_A") for m in pipeline.unet.modules())


def test_a_second_lora_is_refused(student: StockStudent, folder: Path) -> None:
    with pytest.raises(InputError, match="a LoRA is on the pipeline already"):
        open_student(student.pipeline, folder)


def test_other_weights_are_complained_of(pipeline: DiffusionPipeline, folder: Path) -> None:
    pipeline.unet.half()
    with pytest.warns(OtherBaseWarning, match="another precision, or another base"):
        open_student(pipeline, folder)


def test_a_pipeline_without_the_denoiser_is_refused(
    pipeline: DiffusionPipeline, folder: Path
) -> None:
    pipeline.unet = None
    with pytest.raises(MismatchError, match="the adapter is for 'unet', which"):
        open_student(pipeline, folder)


def test_another_prediction_type_is_refused(pipeline: DiffusionPipeline, folder: Path) -> None:
    pipeline.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(MismatchError, match="scheduler says 'sample'"):
        open_student(pipeline, folder)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning:peft")
def test_a_lora_loaded_over_the_guidance_is_noticed(
    student: StockStudent, trained: Settings, folder: Path
) -> None:
    drawn = draw(student, trained)
    student.pipeline.load_lora_weights(folder, adapter_name="style")
    with pytest.raises(InputError, match="'guidefold' is not active") as refused:
        draw(student, trained)
    assert "set_adapters" in refused.value.remedy
    student.pipeline.set_adapters(["guidefold", "style"], [1.0, 0.0])
    assert np.allclose(draw(student, trained), drawn, atol=1e-5)


def test_a_fused_adapter_has_no_dial(student: StockStudent) -> None:
    student.pipeline.fuse_lora()
    with pytest.raises(InputError, match="fused into the weights"):
        student.turn(5.0)


def test_a_run_s_folder_is_answered_with_its_adapter_s(
    pipeline: DiffusionPipeline, folder: Path
) -> None:
    with pytest.raises(RunError) as refused:
        open_student(pipeline, folder.parent)
    assert refused.value.remedy == f"Name {folder}."


def test_what_is_no_adapter_of_guidefolds_is_refused(
    pipeline: DiffusionPipeline, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"guidefold\.json is missing"):
        open_student(pipeline, tmp_path)
    copy = shutil.copytree(folder, tmp_path / "adapter")
    (copy / "guidefold.json").write_text("{}")
    with pytest.raises(Exception, match=r"guidefold\.json"):
        open_student(pipeline, copy)
