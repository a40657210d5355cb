"""The arguments of one call of the pipeline, the same for recording, drawing and measuring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import DiffusionPipeline

from guidefold.findings import Findings
from guidefold.inputs import call_inputs
from guidefold.prompts import Prompt
from guidefold.selective import stop_guiding
from guidefold.settings import PipelineSettings


def run_inputs(
    pipeline: DiffusionPipeline,
    findings: Findings,
    asked: PipelineSettings,
    prompts: Sequence[str | Prompt],
    guidance: float,
    steps: int,
) -> dict[str, Any]:
    """Arguments for one run: the teacher's where guidance is on, else the student's.

    Args:
        pipeline: Whose call.
        findings: What the probe found.
        asked: The user's further arguments.
        prompts: One per picture.
        guidance: The value of the pipeline's guidance argument.
        steps: Denoising steps.

    Returns:
        All but generator and output type.
    """
    share = 1.0 if guidance == findings.off else asked.guided_share
    return {
        **call_inputs(pipeline, prompts, asked.call, asked.negative_prompt),
        **findings.scaled(guidance),
        "num_inference_steps": steps,
        **stop_guiding(pipeline, findings.guidance_argument, findings.off, share),
    }
