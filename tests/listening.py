"""Runs of a pipeline by hand: a second, simpler way beside ``guidefold.listen.capture``."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline

from guidefold.ground.randomness import generator


@dataclass
class Heard:
    """What a run's scheduler was given at each step, and what it gave back at the last."""

    timesteps: list[float] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)
    model_outputs: list[torch.Tensor] = field(default_factory=list)
    last: Any = None


def plain_run(pipeline: DiffusionPipeline, inputs: Mapping[str, Any], seed: int) -> torch.Tensor:
    """The last latents of an ordinary run."""
    return pipeline(**inputs, generator=generator(seed), output_type="latent", return_dict=False)[0]


def run_by_hand(
    pipeline: DiffusionPipeline,
    inputs: Mapping[str, Any],
    seed: int,
    states: Sequence[torch.Tensor] = (),
) -> Heard:
    """Run a pipeline and write down what its scheduler is given.

    Args:
        pipeline: Its scheduler's class is replaced for the length of the run.
        inputs: Of its call.
        seed: Of its generator.
        states: If any: what the scheduler answers, from the second state on.
    """
    heard, scheduler = Heard(), pipeline.scheduler
    stock = type(scheduler)

    class Ear(stock):
        def step(self, model_output, timestep, sample, **kwargs):
            heard.timesteps.append(float(timestep))
            heard.states.append(sample.clone())
            heard.model_outputs.append(model_output.clone())
            result = stock.step(self, model_output, timestep, sample, **kwargs)
            index, heard.last = len(heard.states), result[0]
            if index >= len(states):
                return result
            if isinstance(result, tuple):
                return (states[index], *result[1:])
            return type(result)(**{**result, "prev_sample": states[index]})

    Ear.step.__signature__ = inspect.signature(stock.step)  # else no generator is passed
    scheduler.__class__ = Ear
    try:
        plain_run(pipeline, inputs, seed)
    finally:
        scheduler.__class__ = stock
    return heard
