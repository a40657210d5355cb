"""A pipeline from its configs alone: it runs, its modules answer in noise, and no weight is read.

The modules' parameters are fake tensors, which have shapes and no memory. What surrounds them is
the pipeline's own code over real tensors of true size, so that the denoiser is asked what it will
be asked in earnest, whatever the family.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
from torch import nn

from guidefold.bench.memory.memory_watch import Watch
from guidefold.bench.memory.synthetic_inputs import occupy
from guidefold.ground import PipelineError, UnfoldableError, compat
from guidefold.listen import (
    OFF_VALUES,
    PROMPT,
    SEED,
    STEPS,
    Call,
    RandomStub,
    call_inputs,
    denoisers_of,
    drive,
    guidance_argument,
    map_output_tensors,
    scale_arguments,
    tree_map,
)
from guidefold.pipeline import bundled_teacher, check_folder, loading_errors, modules
from guidefold.run import PipelineSettings

DESCRIPTIONS = ["*.json", "*.txt", "*.model", "*.jinja"]  # configs and tokenizers, no weights


def find_folder(source: str) -> Path:
    """The folder that describes a pipeline; of a hub id, its small files alone.

    Raises:
        PipelineError: There is none, or it cannot be had.
    """
    path = bundled_teacher() if source == "bundled" else Path(source)
    if not path.is_dir() and source.count("/") == 1 and not path.exists():
        try:
            path = Path(snapshot_download(source, allow_patterns=DESCRIPTIONS))
        except (OSError, ValueError) as error:
            raise PipelineError(
                f"{source}: its configs cannot be had: {str(error).splitlines()[0]}",
                "Check the name and the connection, or give a local folder.",
            ) from error
    if not path.is_dir():
        raise PipelineError(
            f"{source}: no folder that describes a pipeline",
            "A plan needs a diffusers folder (weights may be missing) or a hub id; for a single "
            "file, name the folder of configs that describes it as pipeline.source.",
        )
    check_folder(path)
    return path


def open_hollow(folder: Path, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline with its modules on the meta device.

    Args:
        folder: Its configs and tokenizers.
        dtype: Precision of its weights.

    Raises:
        PipelineError: A component cannot be made of its config.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts: dict[str, Any] = {}
    for name, value in index.items():
        if not name.startswith("_"):
            parts[name] = _component(folder / name, value, dtype)
    try:
        pipeline: DiffusionPipeline = getattr(diffusers, index["_class_name"])(**parts)
    except (TypeError, ValueError, AttributeError) as error:
        raise PipelineError(f"{folder}: its parts make no pipeline: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def first_call(pipeline: DiffusionPipeline, asked: PipelineSettings, batch: int) -> Call:
    """What the student's denoiser is asked, and the shape of its answer.

    Args:
        pipeline: From :func:`open_hollow`; its modules come to hold fake tensors.
        asked: How it is called.
        batch: Prompts; fewer where it takes one at a time.

    Raises:
        UnfoldableError: It has no single denoiser, or cannot run without real weights.
    """
    mode, listened = compat.fake_tensor_mode(), modules(pipeline)
    with mode:
        occupy(listened.values(), "cpu")
    noise = RandomStub(SEED)

    def answer(name: str, forward: Any, args: Any, kwargs: Any) -> Any:
        def hollow(*args: Any, **kwargs: Any) -> Any:
            with torch.no_grad(), mode, Watch():
                fake = tree_map(mode.from_tensor, (args, kwargs))
                out = forward(*fake[0], **fake[1])
            return map_output_tensors(lambda t: torch.zeros(tuple(t.shape), dtype=t.dtype), out)

        return noise(name, hollow, args, kwargs)

    def ask(count: int) -> Call:
        return _quietest_call(pipeline, asked, count, listened, answer)

    try:
        return ask(batch)
    except (ValueError, RuntimeError, TypeError) as error:
        if batch == 1:
            raise unplannable(type(pipeline).__name__, error) from error
        return ask(1)


def unplannable(name: str, error: Exception) -> UnfoldableError:
    """What looks at values cannot be run where there are none."""
    return UnfoldableError(
        f"{name}: its training step cannot be estimated without weights: {error}",
        "Nothing is wrong with it: 'guidefold distill' shows what it takes in its log.",
    )


def _quietest_call(
    pipeline: DiffusionPipeline,
    asked: PipelineSettings,
    count: int,
    listened: Mapping[str, nn.Module],
    answer: Any,
) -> Call:
    """The denoiser's call with guidance off: the value that gives the fewest rows."""
    negative = asked.negative_prompt is not None or "negative_prompt" in asked.call
    argument = guidance_argument(pipeline, negative=negative)
    inputs = call_inputs(pipeline, [PROMPT] * count, asked.call, asked.negative_prompt)
    calls = []
    for off in OFF_VALUES:
        given = {**inputs, **scale_arguments(argument, off, off), "num_inference_steps": STEPS}
        seeds = range(SEED, SEED + count)
        steps = drive(pipeline, given, seeds, listened, stub=answer, keep_arguments=True)
        found = denoisers_of(steps)
        if len(found) != 1:
            raise UnfoldableError(f"{type(pipeline).__name__}: {len(found)} denoisers")
        calls.append(steps[-1].calls[-1])
    return min(calls, key=lambda call: call.rows)


def _component(folder: Path, value: Any, dtype: torch.dtype) -> Any:
    """One entry of a model_index.json: a module, something small that is read, or a plain value."""
    if not isinstance(value, list):
        return value
    library, name = value
    if name is None:
        return None
    known = library in ("diffusers", "transformers")
    home = importlib.import_module(library if known else f"diffusers.pipelines.{library}")
    kind = getattr(home, name)
    try:
        if not issubclass(kind, nn.Module):
            return kind.from_pretrained(folder)
        with torch.device("meta"):
            if hasattr(kind, "load_config"):
                module = kind.from_config(kind.load_config(folder))
            else:
                module = kind(kind.config_class.from_pretrained(folder))
        return nn.Module.to(module, dtype).eval().requires_grad_(False)
    except loading_errors() as error:
        raise PipelineError(
            f"{folder}: {name} cannot be made of its config: {error}",
            "Check that every component named in model_index.json has its config there.",
        ) from error
