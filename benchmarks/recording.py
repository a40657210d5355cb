"""Where does the time of recording go? On SD 1.5's true configs, with random weights.

    python benchmarks/recording.py --size 256 --steps 4

Prints one line of JSON: the share of recording that is spent in the teacher's own denoiser calls,
how many denoiser calls following made, and the bytes of the trajectory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from guidefold.bench.memory import load_architecture, materialise
from guidefold.listen import Step, drive, probe
from guidefold.lora import Dial
from guidefold.pipeline import Prompt
from guidefold.record import Plan, Recorder, recorder_for, write_trajectory
from guidefold.run import Settings

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from zoo.text import clip_tokenizer  # no tokenizer of the real size can be had offline


def build() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5 with random weights."""
    parts = load_architecture("sd15")
    encoder, autoencoder, denoiser = (
        part.build(torch.float32)
        for part in (parts.encoders["text_encoder"], parts.autoencoder, parts.denoiser)
    )
    materialise([encoder, autoencoder, denoiser], "cpu")
    pipeline = StableDiffusionPipeline(
        tokenizer=clip_tokenizer(),
        text_encoder=encoder,
        vae=autoencoder,
        unet=denoiser,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main() -> None:
    """Record two trajectories and print where their time went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="pixels along a side")
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    call = {"height": options.size, "width": options.size}
    settings = Settings.model_validate(
        {"run": "unused", "pipeline": {"source": "unused", "call": call}}
    )
    pipeline = build()
    findings = probe(pipeline, call, 7.5)
    dial = Dial(findings.origin, settings.adapter.g_ref, settings.record.guidance)
    recorder = recorder_for(pipeline, findings, dial, settings)
    inside, shares = listen_to(recorder), []
    for index in range(2):  # following asks the denoiser in the first alone, for its template
        plan = Plan(
            index, "training", Prompt.of("a photograph of a cat"), index, 7.5, options.steps
        )
        inside.clear()
        start = time.perf_counter()
        ((_, states),) = recorder.record("teacher", [plan])
        shares.append(round(sum(inside) / (time.perf_counter() - start), 4))
    with tempfile.TemporaryDirectory() as folder:
        size = write_trajectory(Path(folder) / "t.safetensors", states, None)["size"]
    print(
        json.dumps(
            {
                "share_in_the_teachers_denoiser": {"first": shares[0], "next": shares[1]},
                "denoiser_calls_of_following": recorder.stub.real_calls,
                "states": len(states),
                "bytes": size,
            }
        )
    )


def listen_to(recorder: Recorder) -> list[float]:
    """Seconds inside the denoiser while the recorder drives its teacher."""
    inside: list[float] = []

    def heard(*args: object, **kwargs: object) -> list[Step]:
        steps = drive(*args, **kwargs)  # type: ignore[arg-type]
        inside.extend(call.seconds for step in steps for call in step.calls)
        return steps

    sys.modules[type(recorder).__module__].drive = heard  # type: ignore[attr-defined]
    return inside


if __name__ == "__main__":
    main()
