"""Run a pipeline from its configs alone: modules return noise, and no weight is read.

The modules' parameters are fake tensors, which have shapes and no memory. The pipeline's own code
around them runs over real tensors of true size, so that the denoiser gets the inputs of a real
run, whatever the family.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
from torch import nn
from transformers import PreTrainedTokenizerBase

from guidefold.bench.memory.memory_watch import MemoryWatch, Placeholders, fused_attention
from guidefold.bench.memory.stand_in_tokenizer import stand_in
from guidefold.bench.memory.synthetic_inputs import materialise
from guidefold.ground import CallError, PipelineError, UnfoldableError, compat
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
    scale_arguments,
    steps_taken,
    tree_map,
)
from guidefold.pipeline import (
    bundled_teacher,
    check_folder,
    describe_single_file,
    describe_source,
    has_vocabulary,
    loading_errors,
    modules,
    open_scheduler,
)
from guidefold.run import PipelineSettings, check_source

DESCRIPTIONS = ["*.json", "*.txt", "*.model", "*.jinja"]  # configs and tokenizers, no weights


def find_folder(source: str, config: str | None = None) -> Path:
    """Find the folder of a pipeline's configs; download those of a hub id that is not bundled.

    Args:
        source: A folder, a hub id, a single file, or ``"bundled"``.
        config: For a single file: the folder or hub id that describes it; None lets diffusers
            infer one from the file.

    Raises:
        PipelineError: There is none, or it cannot be downloaded, or the file is damaged.
    """
    check_source(source)
    path = bundled_teacher() if source == "bundled" else Path(source)
    if path.is_file():
        source, index = describe_single_file(path, config)
        path = Path(source)
    if not path.is_dir():
        path = describe_source(source) or _download(source)
    index = check_folder(path)
    open_scheduler(path, index)
    return path


def _download(hub_id: str) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=DESCRIPTIONS))
    except (OSError, ValueError) as error:
        raise PipelineError(
            f"{hub_id}: its configs cannot be downloaded: {str(error).splitlines()[0]}",
            "Check the name and the connection, or give a local folder; for a single file, name "
            "one that describes it with pipeline.config=FOLDER.",
        ) from error


def open_meta_pipeline(folder: Path, dtype: torch.dtype) -> DiffusionPipeline:
    """Open a pipeline with its modules on the meta device.

    Args:
        folder: Configs and tokenizers.
        dtype: Precision of the weights.

    Raises:
        PipelineError: A component cannot be made of its config.
    """
    index = check_folder(folder)
    parts = {
        name: _component(folder / name, value, dtype)
        for name, value in index.items()
        if not name.startswith("_")
    }
    try:
        pipeline: DiffusionPipeline = getattr(diffusers, index["_class_name"])(**parts)
    except (TypeError, ValueError, AttributeError) as error:
        raise PipelineError(f"{folder}: its parts make no pipeline: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class FakeRuns:
    """Runs of a pipeline whose modules compute with fake tensors.

    Args:
        pipeline: From :func:`open_meta_pipeline`; its modules get fake tensors.
        settings: Arguments of its call.

    Attributes:
        peaks: The most bytes at once in a call of each component, its weights included.
    """

    def __init__(self, pipeline: DiffusionPipeline, settings: PipelineSettings) -> None:
        self.pipeline, self.settings = pipeline, settings
        self.mode, self.components = compat.fake_tensor_mode(), modules(pipeline)
        with self.mode:
            materialise(self.components.values(), "cpu")
        self.noise, self.peaks = RandomStub(SEED), dict[str, int]()

    def unguided_call(self, count: int) -> Call:
        """The denoiser's call with guidance off: of all values that may mean off, the fewest rows.

        Args:
            count: Prompts in the call; 1 where the pipeline takes one at a time.

        Raises:
            UnfoldableError: It has no single denoiser, or cannot run without real weights.
        """
        try:
            calls = [self._call(count, off) for off in OFF_VALUES]
        except (CallError, ValueError, RuntimeError, TypeError) as error:
            if count == 1:
                raise unplannable(type(self.pipeline).__name__, error) from error
            return self.unguided_call(1)
        return min(calls, key=lambda call: call.rows)

    def guided_call(self, count: int, guidance: float) -> Call:
        """The denoiser's call with guidance on; :attr:`peaks` are then those of recording.

        Args:
            count: Prompts in the call; 1 where the pipeline takes one at a time.
            guidance: A guidance scale.

        Raises:
            UnfoldableError: It has no single denoiser, or cannot run without real weights.
        """
        self.noise = RandomStub(SEED)  # a new one: the other's calls of equal shapes are not run
        self.peaks.clear()
        try:
            return self._call(count, guidance)
        except (CallError, ValueError, RuntimeError, TypeError) as error:
            if count == 1:
                raise unplannable(type(self.pipeline).__name__, error) from error
            return self.guided_call(1, guidance)

    def _call(self, count: int, guidance: float) -> Call:
        """The denoiser's last call in a run of a few steps."""
        pipeline, settings = self.pipeline, self.settings
        negative = settings.negative_prompt is not None or "negative_prompt" in settings.call
        argument = guidance_argument(pipeline, negative=negative)
        inputs = call_inputs(pipeline, [PROMPT] * count, settings.call, settings.negative_prompt)
        # For a guider, the off value is the scale itself or a smaller one.
        off = min(guidance, OFF_VALUES[0])
        count_steps = steps_taken(pipeline, inputs, STEPS)
        inputs |= {**scale_arguments(argument, guidance, off), "num_inference_steps": count_steps}
        seeds = range(SEED, SEED + count)
        steps = drive(
            pipeline, inputs, seeds, self.components, stub=self._random_output, keep_arguments=True
        )
        denoisers = denoisers_of(steps)
        if len(denoisers) != 1:
            raise UnfoldableError(f"{type(pipeline).__name__}: {len(denoisers)} denoisers")
        return steps[-1].calls[-1]

    def _random_output(self, name: str, forward: Any, args: Any, kwargs: Any) -> Any:
        """Random values of the shapes that a component returns; its memory is counted."""
        module = self.components[name]

        def fake_forward(*args: Any, **kwargs: Any) -> Any:
            # MemoryWatch also answers code that reads a number off a fake tensor.
            with (
                torch.no_grad(),
                self.mode,
                fused_attention(),
                MemoryWatch() as watch,
                Placeholders(),
            ):
                watch.mark("weights", [*module.parameters(), *module.buffers()])
                fake = tree_map(self.mode.from_tensor, (args, kwargs))
                out = forward(*fake[0], **fake[1])
            self.peaks[name] = max(self.peaks.get(name, 0), watch.peak_bytes)
            return tree_map(lambda t: torch.zeros(tuple(t.shape), dtype=t.dtype), out)

        return self.noise(name, fake_forward, args, kwargs)


@contextmanager
def only_plannable(denoiser: str) -> Iterator[None]:
    """Within the context, a training step without weights is estimated.

    Args:
        denoiser: The class of the denoiser.

    Raises:
        UnfoldableError: The denoiser's code depends on values.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError) as error:
        raise unplannable(denoiser, error) from error


def unplannable(name: str, error: object) -> UnfoldableError:
    """The error for a pipeline whose code depends on values, which fake tensors do not have."""
    error = error.message if isinstance(error, CallError) else error
    return UnfoldableError(
        f"{name}: its training step cannot be estimated without weights: {error}",
        "Nothing is wrong with it: 'guidefold distill' shows what it takes in its log.",
    )


def _component(folder: Path, value: Any, dtype: torch.dtype) -> Any:
    """Make an entry of model_index.json: a module, a tokenizer or scheduler, or a plain value."""
    if not isinstance(value, list):
        return value
    library, name = value
    if name is None:
        return None
    known = library in ("diffusers", "transformers")
    package = importlib.import_module(library if known else f"diffusers.pipelines.{library}")
    cls = getattr(package, name)
    try:
        if issubclass(cls, PreTrainedTokenizerBase) and not has_vocabulary(folder):
            return stand_in(folder)
        if not issubclass(cls, nn.Module):
            return cls.from_pretrained(folder)
        with torch.device("meta"):
            if hasattr(cls, "load_config"):
                module = cls.from_config(cls.load_config(folder))
            else:
                module = cls(cls.config_class.from_pretrained(folder))
        return nn.Module.to(module, dtype).eval().requires_grad_(False)
    except loading_errors() as error:
        raise PipelineError(
            f"{folder}: {name} cannot be made of its config: {error}",
            "Check that every component named in model_index.json has its config there.",
        ) from error
