"""The arguments of a pipeline's call: prompts, further columns, and the guidance scale."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from diffusers import DiffusionPipeline

from guidefold.ground import ConfigError, PromptError, UnfoldableError
from guidefold.listen.capture import GUIDER, guiders
from guidefold.listen.findings import Findings
from guidefold.listen.guidance import stop_guiding
from guidefold.listen.refusal import (
    RESERVED,
    arguments_taken,
    parameters_of,
    scale_argument,
    settable,
)
from guidefold.pipeline import Media, Prompt, open_media
from guidefold.run import PipelineSettings

COUNTS = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
# The negative prompt where the user has none: without one, true CFG stays off.
BLANK = " "


def guidance_argument(pipeline: DiffusionPipeline, *, negative: bool = False) -> str:
    """The call argument that scales guidance.

    True CFG that is off by default (Flux) counts only with a negative prompt: without one, guidance
    is embedded in the denoiser, and there is no second pass.

    Args:
        pipeline: The pipeline.
        negative: Whether the user gives a negative prompt.

    Returns:
        An argument of the call, or ``guider.guidance_scale`` if a component guides.

    Raises:
        UnfoldableError: The pipeline has no such argument.
    """
    named = scale_argument(parameters_of(pipeline), negative=negative)
    if named is not None:
        return named
    if any("guidance_scale" in guider.config for guider in guiders(pipeline).values()):
        return f"{GUIDER}.guidance_scale"
    raise UnfoldableError(
        f"{type(pipeline).__name__}: its call has no argument that scales guidance "
        "(true_cfg_scale or guidance_scale), and no component that guides",
        "Guidefold folds pipelines that guide; this one does not, or not through its call.",
    )


def call_inputs(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str | Prompt],
    call: Mapping[str, Any],
    negative_prompt: str | None = None,
) -> dict[str, Any]:
    """The arguments of a pipeline's call that teacher and student share.

    Args:
        pipeline: The pipeline.
        prompts: One per picture.
        call: The user's further arguments.
        negative_prompt: The negative prompt of all pictures, if any.

    Raises:
        ConfigError: The call does not take an argument, or Guidefold sets it.
        PromptError: The same for a field of an inputs file.
    """
    rows = [Prompt.of(prompt) for prompt in prompts]
    parameters = parameters_of(pipeline)
    scale = guidance_argument(pipeline)
    reserved = sorted({*RESERVED, scale} & call.keys())
    if reserved:
        raise ConfigError(
            f"pipeline.call: {', '.join(reserved)} cannot be set there",
            "Guidefold sets it: see record.guidance, record.steps, evaluate and prompts.",
        )
    for row in rows:
        if scale in row.values:
            raise PromptError(
                f"{row.source}: '{scale}' cannot be set by a row: the student's is folded, and "
                "would count twice",
                "Leave the field out. record.guidance holds the scales that are trained; "
                "'guidefold sample --guidance' draws at one of them.",
            )
    inputs = dict(call)
    if any(row.text for row in rows):
        inputs["prompt"] = _text_or_list([row.text for row in rows])
    if negative_prompt is None and scale == "true_cfg_scale":
        negative_prompt = BLANK
    if negative_prompt is not None and "negative_prompt" not in call:
        inputs["negative_prompt"] = _text_or_list([negative_prompt] * len(rows))
    check_rows(type(pipeline), rows)
    unknown = sorted(inputs.keys() - parameters.keys())
    if unknown:
        raise ConfigError(
            f"pipeline.call: {type(pipeline).__name__} takes no argument {', '.join(unknown)}",
            "A preset may set it: write that to a file (guidefold config PRESET > mine.toml), "
            "take it out of [pipeline.call] there, and name that file. "
            + arguments_taken(parameters),
        )
    return inputs | _columns(rows)


def _text_or_list(texts: list[str]) -> str | list[str]:
    """A single text goes without a list, as from users: some pipelines take no list."""
    return texts[0] if len(texts) == 1 else texts


def _columns(rows: Sequence[Prompt]) -> dict[str, Any]:
    """The rows' further fields, with one value per call: a single row's, or all rows' joined."""
    names = dict.fromkeys(name for row in rows for name in row.values)
    return {name: _join([row.values[name] for row in rows]) for name in names}


def _join(values: Sequence[Any]) -> Any:
    opened = [open_media(value) for value in values]
    first = opened[0]
    if len(opened) == 1:
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat(opened)
    if isinstance(values[0], Media):
        return opened
    if isinstance(first, list) and not any(isinstance(v, Media) for v in values[0]):
        return [item for value in opened for item in value]  # one entry per picture: class labels
    return opened if isinstance(first, list) else first


def check_rows(pipeline_class: type[DiffusionPipeline], rows: Sequence[Prompt]) -> None:
    """Check that the fields of an inputs file are arguments of the pipeline's call.

    Args:
        pipeline_class: The pipeline's class.
        rows: The prompts with their further fields.

    Raises:
        PromptError: A field is no argument; the error names the first one and its row.
    """
    parameters, name = parameters_of(pipeline_class), pipeline_class.__name__
    for row in rows:
        if row.text and "prompt" not in parameters:
            raise PromptError(
                f"{row.source}: {name} takes no prompt",
                "Give it a .jsonl file whose fields are its call's arguments. "
                + arguments_taken(parameters),
            )
        for column in row.values:
            if column not in parameters or column in RESERVED:
                raise PromptError(
                    f"{row.source}: {name} takes no '{column}' from a row"
                    + _suggestion(column, parameters),
                    "Fields beside the prompt are arguments of its call; one whose name begins "
                    f"with '_' is left out. {arguments_taken(parameters)}",
                )


def steps_taken(pipeline: DiffusionPipeline, inputs: Mapping[str, Any], count: int) -> int:
    """The fewest steps, from ``count`` on, of which a run makes at least one.

    A pipeline that starts from a picture leaves out all but the share ``strength`` of its steps.
    """
    parameter = parameters_of(pipeline).get("strength")
    strength = inputs.get("strength", parameter.default if parameter else 1.0)
    if isinstance(strength, int | float) and 0 < strength < 1:
        while int(count * strength) < 1:
            count += 1
    return count


def _suggestion(name: str, parameters: Mapping[str, inspect.Parameter]) -> str:
    close = get_close_matches(name, settable(parameters), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def run_inputs(
    pipeline: DiffusionPipeline,
    findings: Findings,
    settings: PipelineSettings,
    prompts: Sequence[str | Prompt],
    guidance: float,
    steps: int,
) -> dict[str, Any]:
    """The arguments of one run: the teacher's if guidance is on, else the student's.

    Args:
        pipeline: The pipeline.
        findings: The probe's findings.
        settings: The pipeline's settings, with the user's further arguments.
        prompts: One per picture.
        guidance: The value of the pipeline's guidance argument.
        steps: The number of denoising steps.

    Returns:
        All arguments but generator and output type.
    """
    share = 1.0 if guidance == findings.off else settings.guided_share
    return {
        **call_inputs(pipeline, prompts, settings.call, settings.negative_prompt),
        **findings.scale_arguments(guidance),
        "num_inference_steps": steps,
        **stop_guiding(pipeline, findings.guidance_argument, findings.off, share),
    }
