"""What a call is given: the argument that guides, prompts, and what stands beside them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from diffusers.guiders import ClassifierFreeGuidance
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from toys import Plain, Steered
from zoo import ZOO

from guidefold.ground.errors import ConfigError, PromptError, UnfoldableError
from guidefold.listen.call import BLANK, call_inputs, check_rows, guidance_argument
from guidefold.listen.refusal import arguments_taken, parameters_of
from guidefold.pipeline.prompts import Prompt, load_prompts

PROMPTS = ["a cat", "a dog"]


class Labelled(Plain):
    """Is asked by numbers and pictures, not by words."""

    def __call__(
        self,
        class_labels=None,
        image=None,
        embeds=None,
        size=None,
        guidance_scale=5.0,
        generator=None,
    ):
        raise NotImplementedError


@pytest.fixture
def labelled() -> Labelled:
    return Labelled(nn.Linear(4, 4), DDIMScheduler())


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., list[Prompt]]:
    """Rows as an inputs file holds them; media of these names lie beside it."""
    for name, colour in (("cat", "red"), ("dog", "green")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{name}.png")
        save_file({"e": torch.full((1, 3), float(len(colour)))}, tmp_path / f"{name}.safetensors")

    def read(*values: dict[str, Any]) -> list[Prompt]:
        path = tmp_path / "rows.jsonl"
        lines = [*values, {**values[0], "last": 1}]  # a file holds two at least
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return load_prompts(path)[: len(values)]

    return read


# What guides


@pytest.mark.parametrize("name", ZOO)
def test_the_guidance_argument_is_the_one_that_the_pipeline_has(
    built: Callable[[str], DiffusionPipeline], name: str
) -> None:
    negative = "negative_prompt" in ZOO[name].call
    assert guidance_argument(built(name), negative=negative) == ZOO[name].guidance_argument


def test_true_cfg_that_is_off_by_default_counts_only_with_a_negative_prompt(built: Any) -> None:
    assert guidance_argument(built("flux")) == "guidance_scale"
    assert guidance_argument(built("flux"), negative=True) == "true_cfg_scale"
    assert guidance_argument(built("qwen_image")) == "true_cfg_scale"


def test_a_component_that_guides_is_found_where_the_call_has_no_scale() -> None:
    parts = nn.Linear(4, 4), DDIMScheduler(), ClassifierFreeGuidance(guidance_scale=3.0)
    assert guidance_argument(Steered(*parts)) == "guider.guidance_scale"


def test_a_pipeline_without_a_guidance_argument_is_refused_by_name() -> None:
    with pytest.raises(UnfoldableError, match="Plain: its call has no argument"):
        guidance_argument(Plain(nn.Linear(4, 4), DDIMScheduler()))


# The call


def test_unknown_call_arguments_are_refused_with_those_there_are(built: Any) -> None:
    with pytest.raises(ConfigError, match="takes no argument higth, widht") as caught:
        call_inputs(built("sd15"), PROMPTS, {"widht": 16, "higth": 16, "eta": 0.5})
    assert "height, width" in caught.value.remedy


@pytest.mark.parametrize("name", ["prompt", "num_inference_steps", "guidance_scale"])
def test_what_guidefold_sets_itself_cannot_be_set_in_the_call(built: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} cannot be set there"):
        call_inputs(built("sd15"), PROMPTS, {name: 3})


@pytest.mark.parametrize("name", ["sd15", "flux", "qwen_image"])
def test_a_remedy_names_no_argument_that_is_refused(built: Any, name: str) -> None:
    pipeline = built(name)
    said = arguments_taken(parameters_of(pipeline))
    taken = said.removeprefix("It takes: ").removesuffix(".").split(", ")
    assert {"height", "width", "latents"} <= set(taken)
    assert guidance_argument(pipeline) not in taken
    assert not [argument for argument in taken if argument.startswith("callback")]
    for argument in taken:
        assert argument in call_inputs(pipeline, PROMPTS, {argument: 1})
        assert argument in call_inputs(pipeline, [Prompt("a cat", "a:1", ((argument, 1),))], {})


def test_one_prompt_is_given_as_text_and_several_as_a_list(built: Any) -> None:
    assert call_inputs(built("sd15"), ["a cat"], {"eta": 0.5}) == {"prompt": "a cat", "eta": 0.5}
    assert call_inputs(built("sd15"), PROMPTS, {}) == {"prompt": PROMPTS}
    assert call_inputs(built("sd15"), ["a cat"], {}, "blurry")["negative_prompt"] == "blurry"


def test_a_negative_prompt_is_given_to_each_prompt_and_blank_where_true_cfg_needs_one(
    built: Any,
) -> None:
    assert "negative_prompt" not in call_inputs(built("sd15"), PROMPTS, {})
    given = call_inputs(built("sd15"), PROMPTS, {}, "blurry")
    assert given == {"prompt": PROMPTS, "negative_prompt": ["blurry"] * 2}
    assert call_inputs(built("qwen_image"), PROMPTS, {})["negative_prompt"] == [BLANK] * 2
    assert "negative_prompt" not in call_inputs(built("flux"), PROMPTS, {})
    own = call_inputs(built("flux"), PROMPTS, {"negative_prompt": ["x", "y"]}, "blurry")
    assert own["negative_prompt"] == ["x", "y"]


# Columns


def test_a_row_s_columns_are_given_as_they_stand_and_files_opened(
    labelled: Labelled, rows: Any
) -> None:
    (row,) = rows({"class_labels": [207], "image": "cat.png", "size": 8, "embeds": "x"})
    given = call_inputs(labelled, [row], {})
    assert given.pop("image").getpixel((0, 0)) == (255, 0, 0)
    assert given == {"class_labels": [207], "size": 8, "embeds": "x"}


def test_a_row_overrides_the_call(labelled: Labelled, rows: Any) -> None:
    (row,) = rows({"size": 8})
    assert call_inputs(labelled, [row], {"size": 4, "embeds": "x"}) == {"size": 8, "embeds": "x"}


def test_rows_are_joined_as_a_pipeline_takes_several(labelled: Labelled, rows: Any) -> None:
    one, two = (
        {
            "class_labels": [label],
            "image": f"{name}.png",
            "embeds": f"{name}.safetensors",
            "size": 8,
        }
        for label, name in ((1, "cat"), (2, "dog"))
    )
    given = call_inputs(labelled, rows(one, two), {})
    assert given["class_labels"] == [1, 2]
    assert [picture.getpixel((0, 0)) for picture in given["image"]] == [(255, 0, 0), (0, 128, 0)]
    assert given["embeds"].tolist() == [[3.0] * 3, [5.0] * 3]
    assert given["size"] == 8


def test_lists_of_pictures_stay_apart(labelled: Labelled, rows: Any) -> None:
    one, two = ({"image": [name, "cat.png"]} for name in ("cat.png", "dog.png"))
    given = call_inputs(labelled, rows(one, two), {})
    assert [[p.getpixel((0, 0))[0] for p in row] for row in given["image"]] == [
        [255, 255],
        [0, 255],
    ]


def test_an_unknown_column_is_refused_by_its_row_with_the_way_out(
    labelled: Labelled, rows: Any
) -> None:
    found = rows({"size": 8}, {"size": 8, "strength": 0.5})
    with pytest.raises(PromptError, match=r"rows\.jsonl:2: Labelled takes no 'strength'") as caught:
        call_inputs(labelled, found, {})
    assert "whose name begins with '_' is left out" in caught.value.remedy
    assert "class_labels, image, embeds, size" in caught.value.remedy
    with pytest.raises(PromptError, match="'strength'"):
        check_rows(Labelled, found)


@pytest.mark.parametrize("name", ["generator", "num_inference_steps", "output_type"])
def test_what_guidefold_sets_itself_cannot_stand_in_a_row(name: str, rows: Any) -> None:
    found = rows({"prompt": "a cat", name: 3})
    with pytest.raises(PromptError, match=f"takes no '{name}' from a row"):
        check_rows(StableDiffusionPipeline, found)


def test_a_row_cannot_guide_a_student_whose_guidance_is_folded(
    labelled: Labelled, rows: Any
) -> None:
    given = rows({"class_labels": 3, "guidance_scale": 7.5})
    with pytest.raises(PromptError, match=r"rows\.jsonl:1: 'guidance_scale' cannot be set") as told:
        call_inputs(labelled, given, {})
    assert "guidefold sample --guidance" in told.value.remedy


def test_a_field_that_begins_with_an_underscore_is_left_out(labelled: Labelled, rows: Any) -> None:
    (row,) = rows({"size": 8, "_note": "cat.png"})
    assert call_inputs(labelled, [row], {}) == {"size": 8}


def test_words_are_refused_by_their_row_where_a_call_has_no_prompt(
    labelled: Labelled, rows: Any
) -> None:
    found = rows({"size": 8}, {"size": 8, "prompt": "a cat"})
    with pytest.raises(PromptError, match=r"rows\.jsonl:2: Labelled takes no prompt") as caught:
        check_rows(Labelled, found)
    assert "class_labels" in caught.value.remedy
    assert call_inputs(labelled, found[:1], {}) == {"size": 8}


def test_a_call_s_parameters_are_those_of_its_class() -> None:
    by_class = parameters_of(Labelled)
    assert by_class == parameters_of(Labelled(nn.Linear(4, 4), DDIMScheduler()))
    assert "class_labels" in by_class
