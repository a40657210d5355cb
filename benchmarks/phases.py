"""Peak memory of a run's three phases, measured on a CPU beside the plan's estimate.

    python benchmarks/phases.py

Stable Diffusion 1.5 by its own configuration, random weights, float32, 256 x 256, one sample, one
thread, a process a phase: text encoding and recording hold the whole pipeline, training the
denoiser alone. Measured is the process's high-water mark less what it was before weights took
memory, as in ``guidefold bench memory --how cpu``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline

from guidefold.bench.memory import (
    GIB,
    ArchitectureWorkload,
    case_of,
    load_architecture,
    make_plan,
    materialise,
)
from guidefold.bench.memory.measure import ALLOCATOR, measured_run, warm_up
from guidefold.bench.memory.meta_pipeline import find_folder, open_meta_pipeline
from guidefold.bench.memory.training import Training
from guidefold.listen import call_inputs, drive
from guidefold.pipeline import DTYPES, modules, peak_memory
from guidefold.run import Settings, load_settings

OVERRIDES = [
    *("pipeline.dtype=fp32", "pipeline.call.height=256", "pipeline.call.width=256"),
    *("distill.batch_size=1", "distill.mixed_precision=no", "distill.gradient_checkpointing=false"),
]
PROMPT = "a red cat"


def encode(pipeline: DiffusionPipeline, _settings: Settings) -> None:
    """Encode a prompt and the empty one."""
    with torch.no_grad():
        pipeline.encode_prompt(PROMPT, torch.device("cpu"), 1, True)


def record(pipeline: DiffusionPipeline, settings: Settings) -> None:
    """Take one guided step."""
    inputs = call_inputs(pipeline, [PROMPT], settings.pipeline.call)
    inputs |= {"guidance_scale": 7.5, "num_inference_steps": 1}
    drive(pipeline, inputs, [0], {"unet": pipeline.unet})


PHASES: dict[str, Callable[[DiffusionPipeline, Settings], None]] = {
    "encoding": encode,
    "recording": record,
}


def measured(phase: str, settings: Settings) -> int:
    """Bytes that a phase takes, in this process."""
    torch.set_num_threads(1)
    if phase == "training":
        architecture, adapter = load_architecture("sd15"), settings.adapter
        size, dtype = settings.pipeline.call["height"], settings.pipeline.dtype
        step = ArchitectureWorkload(architecture, 1, size, dtype, adapter.rank, adapter.targets)
        return measured_run(Training(case_of(settings), step), torch.device("cpu")).peak_bytes
    folder = find_folder(settings.pipeline.source)
    pipeline = open_meta_pipeline(folder, DTYPES[settings.pipeline.dtype])
    warm_up(torch.device("cpu"))
    before = peak_memory(torch.device("cpu"))["bytes"]
    materialise(modules(pipeline).values(), "cpu")
    PHASES[phase](pipeline, settings)
    return int(peak_memory(torch.device("cpu"))["bytes"]) - int(before)


def in_a_process(phase: str) -> int:
    """The same, in a process of its own: a high-water mark never falls."""
    done = subprocess.run(
        [sys.executable, __file__, phase],
        env={**os.environ, **ALLOCATOR},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print each phase's measured and estimated peak."""
    plan: Any = make_plan(load_settings("sd15", OVERRIDES))
    estimates = {
        "encoding": plan.encoding_bytes,
        "recording": plan.recording_bytes,
        "training": plan.peak_bytes,
    }
    print("| phase | measured GiB | estimated GiB | estimate is off by |\n|---|---|---|---|")
    for phase, estimated in estimates.items():
        found = in_a_process(phase)
        off = estimated / found - 1
        print(f"| {phase} | {found / GIB:.3f} | {estimated / GIB:.3f} | {off:+.1%} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measured(sys.argv[1], load_settings("sd15", OVERRIDES))))
    else:
        main()
