"""What the zoo says about a pipeline, and how one is built the same every time."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline

Build = Callable[[], DiffusionPipeline]


@dataclass(frozen=True)
class Entry:
    """One tiny pipeline and what a listener should find in it."""

    build: Build
    call: Mapping[str, Any]
    denoisers: tuple[str, ...]
    guidance_argument: str
    prediction: str
    output_map: str


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
