"""What must be true of a pipeline before anything is recorded of it."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDIMScheduler
from toys import Net, Plain
from zoo import ZOO

from guidefold.ground.errors import CaptureError, PipelineError, UnfoldableError
from guidefold.listen.capture import drive
from guidefold.listen.dry_run import DryRun
from guidefold.listen.output_map import OutputMap
from guidefold.listen.probe import first_run
from guidefold.listen.probe_checks import OTHER, PROMPT, check_output, check_tokenizers
from guidefold.pipeline.open import open_pipeline


def test_the_prompts_to_be_told_apart_have_as_many_words_and_letters() -> None:
    one, other = PROMPT.split(), OTHER.split()
    assert [len(word) for word in one] == [len(word) for word in other]
    assert sum(map(str.__eq__, one, other)) < len(one) - 1


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [
        ("sd15", "tokenizer"),
        ("sd3", "tokenizer_3"),
        ("qwen_image", "tokenizer"),
        ("lumina2", "tokenizer"),
    ],
)
def test_a_folder_that_lost_a_tokenizer_s_vocabulary_is_refused_by_the_tokenizer_s_name(
    saved: Any, tmp_path: Path, name: str, tokenizer: str
) -> None:
    folder = shutil.copytree(saved(name), tmp_path / name)
    (folder / tokenizer / "tokenizer.json").unlink()
    with pytest.raises(PipelineError, match=f"its {tokenizer} does not tell prompts") as caught:
        check_tokenizers(open_pipeline(str(folder)))
    assert f"{tokenizer}/tokenizer.json" in caught.value.remedy


def test_arguments_that_do_not_reproduce_the_model_output_are_refused_at_their_step(
    built: Any,
) -> None:
    pipeline = built("sd15")
    inputs = {"prompt": ["a cat"], "num_inference_steps": 2, "guidance_scale": 1.0}
    listened = {"unet": pipeline.unet}
    inputs |= dict(ZOO["sd15"].call)
    steps = drive(pipeline, inputs, [0], listened, keep_arguments=True)
    arguments = [step.calls[0].arguments for step in steps]
    timesteps, whole = [step.timestep for step in steps], OutputMap("whole")
    asked = DryRun(arguments, timesteps, whole, [None] * 2, [1] * 2)
    check_output(pipeline.unet, asked, steps)
    wrong = [steps[0], replace(steps[1], model_output=steps[1].model_output + 0.01)]
    with pytest.raises(CaptureError, match=r"step 1: .* is 0.01 off"):
        check_output(pipeline.unet, asked, wrong)


class Failing(Plain):
    """Fails in code of its own, in a way that no library foresees."""

    def __call__(self, prompt, num_inference_steps=2, generator=None, output_type="pil"):
        if prompt == "the seam":
            raise UnfoldableError("no guidance")
        raise Exception("this type latent is not supported")


def test_a_pipeline_that_fails_in_its_own_code_is_refused_in_its_words() -> None:
    pipeline = Failing(Net(), DDIMScheduler())
    words = "Failing fails in its own call: Exception: this type latent is not supported"
    with pytest.raises(PipelineError, match=words):
        first_run(pipeline, {"prompt": "a cat"}, {})
    with pytest.raises(UnfoldableError, match="no guidance"):
        first_run(pipeline, {"prompt": "the seam"}, {})
