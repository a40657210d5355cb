"""What the zoo says about a pipeline, and how one is built the same every time."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from diffusers import DiffusionPipeline

Build = Callable[[], DiffusionPipeline]

SOURCES = ("teacher", "noise", "student")
SMALL = MappingProxyType({"height": 16, "width": 16})
SHORT = MappingProxyType({"max_sequence_length": 16})
NEGATIVE = MappingProxyType({"negative_prompt": "blurry, low quality"})
UNBINNED = MappingProxyType({"use_resolution_binning": False})


@dataclass(frozen=True)
class Entry:
    """One tiny pipeline and what a listener should find in it.

    Attributes:
        build: Makes it, the same every time.
        call: Arguments of its call that every run of it needs: sizes, and what keeps it quick.
        inputs: What it is asked for beside a prompt, by call argument: numbers, text, and names of
            files of :mod:`zoo.media`.
        takes_prompt: Whether its call has a prompt at all.
        denoisers: Components that are called at each step.
        guidance_argument: What scales guidance.
        prediction: ``epsilon``, ``v_prediction``, ``sample`` or ``flow``.
        output_map: What becomes of the denoiser's raw output before the scheduler sees it.
        off: What else switches passes off, beside ``guidance_argument``.
        passes: A step with guidance on, without anything of ``off``.
        sources: Of states that can be recorded; some schedulers cannot add noise.
        memory: Whether the denoiser reads at later steps what it wrote at an earlier one.
    """

    build: Build
    call: Mapping[str, Any]
    inputs: Mapping[str, Any]
    takes_prompt: bool
    denoisers: tuple[str, ...]
    guidance_argument: str
    prediction: str
    output_map: str
    off: Mapping[str, float]
    passes: int
    sources: tuple[str, ...]
    memory: bool = False


def entry(
    build: Build,
    prediction: str,
    call: Mapping[str, Any] = SMALL,
    *,
    inputs: Mapping[str, Any] = MappingProxyType({}),
    takes_prompt: bool = True,
    denoiser: str | tuple[str, ...] = "transformer",
    guidance: str = "guidance_scale",
    output: str = "whole",
    off: Mapping[str, float] = MappingProxyType({}),
    passes: int = 2,
    sources: tuple[str, ...] = SOURCES,
    memory: bool = False,
) -> Entry:
    """An entry from what differs between pipelines; fields as in :class:`Entry`."""
    return Entry(
        build=ready(build, seed=0),
        call=MappingProxyType(dict(call)),
        inputs=MappingProxyType(dict(inputs)),
        takes_prompt=takes_prompt,
        denoisers=(denoiser,) if isinstance(denoiser, str) else denoiser,
        guidance_argument=guidance,
        prediction=prediction,
        output_map=output,
        off=MappingProxyType(dict(off)),
        passes=passes,
        sources=sources,
        memory=memory,
    )


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seed the CPU's random state inside the block and put the caller's back after it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def waken(module: torch.nn.Module, std: float = 0.05) -> None:
    """Give every all-zero weight small normals: a zero output layer makes tests vacuous."""
    for parameter in module.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=std)


def ready(build: Build, seed: int) -> Build:
    """Wrap a builder: seeded weights, no zero weights, eval mode, no progress bar."""

    def built() -> DiffusionPipeline:
        with own_randomness(seed):
            pipeline = build()
            for component in pipeline.components.values():
                if isinstance(component, torch.nn.Module):
                    waken(component)
                    component.eval()
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return built
