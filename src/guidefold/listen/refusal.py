"""A pipeline that refuses its call, or fails in it: its own words in one sentence."""

from __future__ import annotations

import inspect
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import dropwhile
from typing import Any

from diffusers import DiffusionPipeline

from guidefold.ground import CallError, GuidefoldError, PipelineError, kind_of, out_of_memory
from guidefold.pipeline import Prompt

# Call arguments that Guidefold sets itself.
RESERVED = {
    "prompt",
    "generator",
    "num_inference_steps",
    "num_images_per_prompt",
    "num_videos_per_prompt",
    "output_type",
    "return_dict",
}
SET_BY_SETTINGS = {"negative_prompt", "guidance_scale", "true_cfg_scale"}
REFUSALS = (ValueError, TypeError, OverflowError, NotImplementedError)
"""What pipelines raise on purpose; any other error is a fault of theirs, or of the arguments."""
SHOWN = 200  # characters of a pipeline's words
LIBRARIES = ("diffusers", "transformers")


@contextmanager
def explained_call(pipeline: DiffusionPipeline, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Turn what a pipeline raises within its call into a sentence about that call.

    Faults of Guidefold's own code, which listens within the call, stay as they are; so does a
    shortage of memory, and an error that no argument of the user's can have caused.

    Args:
        pipeline: The pipeline.
        arguments: Its call's arguments.

    Raises:
        CallError: The pipeline refuses the arguments, or fails with them.
        PipelineError: It needs a library that is not installed.
    """
    try:
        yield
    except (GuidefoldError, OSError):
        raise
    except Exception as error:
        if out_of_memory(error) or raised_by_guidefold(error):
            raise
        name, given = type(pipeline).__name__, _given(arguments)
        words = " ".join(str(error).split())[:SHOWN] or type(error).__name__
        if isinstance(error, NameError | ImportError) and not isinstance(error, UnboundLocalError):
            raise PipelineError(
                f"{name} needs a library that is not here: {words}",
                "Install it: pip install the library of that name, such as ftfy or beautifulsoup4.",
            ) from error
        with_these = f" (pipeline.call and rows: {given})" if given else ""
        if isinstance(error, REFUSALS):
            raise CallError(
                f"{name} refuses the call{with_these}: {words}", _remedy(pipeline)
            ) from (error)
        if not given:
            raise
        raise CallError(
            f"{name} fails in its call{with_these}: {type(error).__name__}: {words}",
            "Change these arguments, or leave them out one by one. " + _remedy(pipeline),
        ) from error


@contextmanager
def explained_failure(pipeline: DiffusionPipeline, remedy: str) -> Iterator[None]:
    """Turn whatever a pipeline's own code raises into a sentence, also with no argument to blame.

    Args:
        pipeline: The pipeline.
        remedy: What to do instead.

    Raises:
        PipelineError: The pipeline fails in its own code.
    """
    try:
        yield
    except GuidefoldError:
        raise
    except Exception as error:
        if out_of_memory(error) or raised_by_guidefold(error):
            raise
        reason = str(error).strip().splitlines() or [""]
        raise PipelineError(
            f"{type(pipeline).__name__} fails in its own call: {type(error).__name__}: {reason[0]}",
            remedy,
        ) from error


def parameters_of(
    pipeline: DiffusionPipeline | type[DiffusionPipeline],
) -> Mapping[str, inspect.Parameter]:
    """The parameters of a pipeline's or a pipeline class's call, by name."""
    its_class = pipeline if isinstance(pipeline, type) else type(pipeline)
    return inspect.signature(its_class.__call__).parameters


def _remedy(pipeline: DiffusionPipeline) -> str:
    return (
        "Set its arguments under [pipeline.call], or in the fields of an inputs file (a .jsonl "
        f"file, see docs/inputs.md). {arguments_taken(parameters_of(pipeline))}"
    )


def scale_argument(
    parameters: Mapping[str, inspect.Parameter], *, negative: bool = False
) -> str | None:
    """The argument that scales guidance among those of a call; None where there is none.

    Args:
        parameters: The call's parameters.
        negative: Whether the user gives a negative prompt.
    """
    true_cfg = parameters.get("true_cfg_scale")
    embedded = "guidance_scale" in parameters
    if true_cfg is not None and (negative or true_cfg.default != 1.0 or not embedded):
        return "true_cfg_scale"
    return "guidance_scale" if embedded else None


def settable(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """The names of the call's arguments that users can set: no other setting decides them."""
    others = {"self", "kwargs", "true_cfg_scale", scale_argument(parameters), *RESERVED}
    return [n for n in parameters if n not in others and not n.startswith("callback")]


def arguments_taken(parameters: Mapping[str, inspect.Parameter]) -> str:
    """A sentence with the names of the call's arguments that users can set."""
    return f"It takes: {', '.join(settable(parameters))}."


@contextmanager
def naming_rows(prompts: Iterable[Prompt]) -> Iterator[None]:
    """Name the rows of an inputs file whose call is refused within the context.

    Raises:
        CallError: With the rows' places, if they have fields beside the prompt.
    """
    try:
        yield
    except CallError as error:
        rows = dict.fromkeys(prompt.source for prompt in prompts if prompt.columns)
        if not rows:
            raise
        raise CallError(f"{', '.join(rows)}: {error.message}", error.remedy) from error


def _given(arguments: Mapping[str, Any]) -> str:
    """The user's own arguments of a call, in words."""
    own = {
        name: value
        for name, value in arguments.items()
        if name not in RESERVED | SET_BY_SETTINGS and not name.startswith("callback")
    }
    return ", ".join(f"{name}={_shown(value)}" for name, value in own.items())


def _shown(value: object) -> str:
    plain = isinstance(value, bool | int | float | str)
    return repr(value)[:40] if plain else kind_of(value)


def raised_by_guidefold(error: BaseException) -> bool:
    """Whether an error within a pipeline's call is of Guidefold's code, which listens there.

    The innermost frame of a pipeline's library or of Guidefold decides, below the call itself.
    """
    frames = [_package(frame) for frame, _ in traceback.walk_tb(error.__traceback__)]
    within = list(dropwhile(lambda name: name in ("guidefold", "contextlib"), frames))
    known = [name for name in within if name in ("guidefold", *LIBRARIES)]
    return bool(known) and known[-1] == "guidefold"


def _package(frame: types.FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
