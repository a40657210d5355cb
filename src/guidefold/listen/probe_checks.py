"""The probe's checks on the real pipeline; each refuses a pipeline that fails it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from transformers import PreTrainedTokenizerBase

from guidefold.ground import (
    CallError,
    CaptureError,
    PipelineError,
    UnfoldableError,
    out_of_memory,
)
from guidefold.listen.arguments import Tree, trees_close
from guidefold.listen.capture import drive, follow
from guidefold.listen.dry_run import DryRun
from guidefold.listen.guidance import CALLBACK
from guidefold.listen.listener import Step
from guidefold.listen.memory import call_recorded
from guidefold.listen.stored import stored

STEPS = 2
SEED = 0
PROMPT = "a photograph of a cat"
# As many words and letters: without a vocabulary both are the same row of unknown tokens.
OTHER = "a watercolor of a dog"


def check_tokenizers(pipeline: DiffusionPipeline) -> None:
    """Check that tokenizers have a vocabulary: without their files they are built empty, silently.

    Raises:
        PipelineError: A tokenizer has none; the error names it and the files to look for.
    """
    for name, part in pipeline.components.items():
        if not isinstance(part, PreTrainedTokenizerBase):
            continue
        one, other = (part.convert_tokens_to_ids(part.tokenize(t)) for t in (PROMPT, OTHER))
        if one == other:
            raise PipelineError(
                f"{type(pipeline).__name__}: its {name} does not tell prompts apart: "
                f"'{PROMPT}' and '{OTHER}' become the same tokens",
                f"Its vocabulary is missing: look for {name}/tokenizer.json (or vocab.json and "
                "merges.txt, or a .model file) where the pipeline came from.",
            )


def check_prompts_differ(
    pipeline: DiffusionPipeline, denoiser: str, one: Tree, other: Tree
) -> None:
    """From the same noise, another prompt must change the denoiser's arguments.

    Args:
        pipeline: For the error message.
        denoiser: The component's name, for the error message.
        one: The denoiser's arguments for one prompt.
        other: Its arguments for another prompt.

    Raises:
        UnfoldableError: Both are the same.
    """
    if trees_close(one, other):
        raise UnfoldableError(
            f"{type(pipeline).__name__} does not tell prompts apart: '{PROMPT}' and '{OTHER}' "
            f"reach its {denoiser} as the same arguments",
            "A file of a tokenizer or of a text encoder is likely missing or damaged: compare the "
            "pipeline's folder with where it came from.",
        )


def check_output(denoiser: nn.Module, dry: DryRun, unguided: list[Step]) -> None:
    """Recorded arguments and output map must give the pipeline's own unguided model output.

    The arguments are those that come back from a file.

    Args:
        denoiser: The module; several denoisers as one.
        dry: The run with a stubbed denoiser, through the states of ``unguided``.
        unguided: The run without guidance.

    Raises:
        UnfoldableError: The arguments cannot be recorded; the error names the first that cannot.
        CaptureError: They do not; the error gives the difference.
    """
    for index, (arguments, truth) in enumerate(zip(dry.arguments, unguided, strict=True)):
        with torch.no_grad():
            output = call_recorded(denoiser, stored(arguments))
        expected = truth.model_output
        mine = dry.model_output(index, output, expected.shape).to(expected)
        if not torch.allclose(mine, expected, rtol=1e-3, atol=1e-4):
            worst = float((mine - expected).abs().max())
            raise CaptureError(
                f"step {index}: the denoiser, called with the recorded arguments, is {worst:.2g} "
                "off the pipeline's own unguided model output"
            )


def check_guidance_ends(
    pipeline: DiffusionPipeline,
    selective: dict[str, Any],
    argument: str,
    off: float,
    listened: Mapping[str, nn.Module],
) -> None:
    """Once guidance has ended halfway, the steps must equal the pipeline's unguided steps.

    Args:
        pipeline: The pipeline.
        selective: Arguments of a guided run of :data:`STEPS` steps that ends guidance halfway.
        argument: The call argument that scales guidance.
        off: The value that switches guidance off.
        listened: The denoisers, by name.

    Raises:
        UnfoldableError: The steps differ, or the pipeline fails.
    """
    plain = {n: v for n, v in selective.items() if not n.startswith(CALLBACK)} | {argument: off}
    try:
        ended = drive(pipeline, selective, [SEED], listened)
        unguided = follow(pipeline, plain, [SEED], listened, ended)
    except (CallError, ValueError, TypeError, KeyError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        fails = str(error).splitlines()[0]
    else:
        last, truth = ended[-1], unguided[-1].model_output
        close = torch.allclose(last.model_output, truth, rtol=1e-3, atol=1e-4)
        fails = "" if close and last.rows == 1 else f"{last.rows} passes in the last step"
    if fails:
        raise UnfoldableError(
            f"{type(pipeline).__name__}: guidance does not end when its {CALLBACK} switches it "
            f"off ({fails})",
            "Set pipeline.guided_share=1.",
        )
