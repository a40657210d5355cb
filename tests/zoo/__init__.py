"""Tiny real diffusers pipelines with seeded random weights, for tests.

Each is the class that users run, with every width cut down: a call takes milliseconds, and what
it does around the denoiser (text, batching, guidance, output) is what the full one does.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from diffusers import DiffusionPipeline

from . import image, stable_diffusion, video
from .entry import Build, Entry, ready

__all__ = ["UNFOLDABLE", "WARNINGS", "ZOO", "Entry", "build"]

SMALL = {"height": 16, "width": 16}
SHORT = {"max_sequence_length": 16}
NEGATIVE = {"negative_prompt": "blurry, low quality"}
UNBINNED = {"use_resolution_binning": False}


def _entry(
    build: Build,
    prediction: str,
    call: Mapping[str, Any] = SMALL,
    *,
    denoiser: str = "transformer",
    guidance: str = "guidance_scale",
    output: str = "whole",
) -> Entry:
    return Entry(
        build=ready(build, seed=0),
        call=MappingProxyType(dict(call)),
        denoisers=(denoiser,),
        guidance_argument=guidance,
        prediction=prediction,
        output_map=output,
    )


ZOO: dict[str, Entry] = {
    "sd15": _entry(stable_diffusion.sd15, "epsilon", denoiser="unet"),
    "sdxl": _entry(stable_diffusion.sdxl, "epsilon", denoiser="unet"),
    "sd3": _entry(image.sd3, "flow", SMALL | SHORT),
    "pixart": _entry(
        image.pixart,
        "epsilon",
        SMALL | SHORT | UNBINNED | {"clean_caption": False},
        output="first_channels",
    ),
    "qwen_image": _entry(
        image.qwen_image, "flow", SMALL | SHORT | NEGATIVE, guidance="true_cfg_scale"
    ),
    "wan": _entry(video.wan, "flow", SHORT | {"height": 32, "width": 32, "num_frames": 5}),
    "sd_v": _entry(stable_diffusion.sd_v, "v_prediction", denoiser="unet"),
    "chroma": _entry(image.chroma, "flow", SMALL | SHORT),
    "animatediff": _entry(
        stable_diffusion.animatediff, "epsilon", SMALL | {"num_frames": 3}, denoiser="unet"
    ),
    "ltx": _entry(video.ltx, "flow", SHORT | {"height": 32, "width": 32, "num_frames": 9}),
    "lumina2": _entry(
        image.lumina2,
        "flow",
        {"height": 64, "width": 64, "max_sequence_length": 32, "system_prompt": "a photo of"},
        output="negated",
    ),
    "flux": _entry(image.flux, "flow", SMALL | SHORT | NEGATIVE, guidance="true_cfg_scale"),
    "sana": _entry(
        image.sana,
        "flow",
        SHORT | UNBINNED | {"height": 32, "width": 32, "complex_human_instruction": None},
    ),
    "sd15_pag": _entry(stable_diffusion.sd15_pag, "epsilon", denoiser="unet"),
    "cogvideox": _entry(
        video.cogvideox, "v_prediction", SHORT | {"height": 32, "width": 32, "num_frames": 9}
    ),
}

UNFOLDABLE: dict[str, Entry] = {
    "flux_guidance_embedded": _entry(image.flux_guidance_embedded, "flow", SMALL | SHORT),
    "lcm": _entry(stable_diffusion.lcm, "epsilon", denoiser="unet"),
}
"""Pipelines with a guidance argument but without a second pass: nothing to fold."""

WARNINGS = (
    # Schedulers call `numpy.array` on a tensor, whose `__array__` is older than numpy 2.
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning:diffusers.schedulers",
    # Chroma imports its rotary embedding from the old place.
    "ignore:`FluxPosEmbed` is deprecated:FutureWarning:diffusers.models.embeddings",
)
"""What diffusers itself warns of here, for `pytest.mark.filterwarnings(*WARNINGS)`."""


def build(name: str) -> DiffusionPipeline:
    """Build a pipeline of either dictionary afresh."""
    return (ZOO | UNFOLDABLE)[name].build()
