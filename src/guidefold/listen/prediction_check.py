"""Whether a denoiser predicts what its scheduler's configuration says, seen in its own outputs.

Put pure noise where a noisy picture would be: a blank picture ``x_0 = 0`` with noise ``n``, that is
``x_t = s n`` with ``a^2 + s^2 = 1``. There the three prediction types ask for different outputs:

    epsilon         n
    v_prediction    a n       (v = a n - s x_0)
    sample          0

A trained denoiser sees the noise, and its own guess ``x`` of the picture bends the answer only by
``-(a/s) x`` and ``-x/s``. ``x`` has the picture's low frequencies, white noise hardly any, so the
share of noise in the output, ``b = <output, n> / <n, n>``, stays near 1 or near ``a``. At two noise
levels with different ``a`` that tells the first two types apart. An untrained denoiser's output is
hardly the noise at all, and says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from torch import nn

from guidefold.ground import GuidefoldError, generator, out_of_memory
from guidefold.listen.capture import drive
from guidefold.listen.listener import Step
from guidefold.pipeline import prediction_type

LEVELS = 4  # steps of the run: two or three of them have a middling noise level
ENDED = (GuidefoldError, ValueError, TypeError, AttributeError, LookupError, RuntimeError)
SIGNAL = (0.15, 0.9)  # of ``a``: beyond, one type's answer is hardly there, or both are alike
NEAR = 0.2  # of ``b`` to its type's
ALIGNED = 0.6  # cosine of output and noise at the least noise: below, no trained denoiser


class Reading(NamedTuple):
    """What a denoiser answers to pure noise.

    Attributes:
        signal: ``a``, in (0, 1).
        share: ``b``.
        cosine: Of the output and the noise.
    """

    signal: float
    share: float
    cosine: float


def check_prediction(
    pipeline: DiffusionPipeline,
    inputs: Mapping[str, Any],
    listened: Mapping[str, nn.Module],
    seed: int,
) -> str:
    """Run a pipeline in one pass a step over pure noise, and compare what it predicts.

    Args:
        pipeline: The pipeline.
        inputs: Its call's arguments without guidance.
        listened: The denoisers.
        seed: The noise's.

    Returns:
        A warning, if the outputs clearly contradict the scheduler's configuration; else nothing,
        also where nothing can be seen: with flow matching, with a start from a picture.
    """
    configured = prediction_type(pipeline)
    if configured not in ("epsilon", "v_prediction", "sample"):
        return ""
    seen = judge(_read(pipeline, inputs, listened, seed))
    if seen in ("", configured):
        return ""
    return (
        f"Beware: by the scheduler's configuration the denoiser predicts '{configured}', but its "
        f"outputs on pure noise look like '{seen}'. If so, all pictures are noise, and so is "
        f"what is trained on them: look at a picture of the teacher, or set "
        f"pipeline.prediction_type={seen}."
    )


def judge(readings: Sequence[Reading]) -> str:
    """The prediction type that readings show; empty if they show none, or more than one."""
    usable = sorted(r for r in readings if SIGNAL[0] <= r.signal <= SIGNAL[1])
    if len(usable) < 2 or usable[-1].cosine < ALIGNED:
        return ""
    fits = {
        "epsilon": all(abs(r.share - 1) <= NEAR for r in usable),
        "v_prediction": all(abs(r.share - r.signal) <= NEAR for r in usable),
    }
    named = [name for name, fit in fits.items() if fit]
    return named[0] if len(named) == 1 else ""


def _read(
    pipeline: DiffusionPipeline,
    inputs: Mapping[str, Any],
    listened: Mapping[str, nn.Module],
    seed: int,
) -> list[Reading]:
    """The readings of one run; none where the pipeline cannot be led over pure noise."""
    states: dict[int, tuple[torch.Tensor, torch.Tensor, float]] = {}
    try:
        timesteps, scales = _noise_levels(pipeline.scheduler)

        def redirect(
            index: int, state: torch.Tensor, next_state: torch.Tensor, part: int = 0, /
        ) -> torch.Tensor:
            if part or index + 1 >= len(scales):
                return next_state
            noise = torch.randn(state.shape, generator=generator(seed, "prediction", index))
            signal, size = scales[index + 1]
            states[index + 1] = noise, (size * noise).to(next_state), signal
            return states[index + 1][1]

        steps = drive(
            pipeline,
            {**inputs, "num_inference_steps": LEVELS},
            [seed],
            listened,
            redirect=redirect,
        )
    except ENDED as error:
        if out_of_memory(error):
            raise
        return []  # such as a scheduler without add_noise; what matters here is only a clear answer
    return [
        _reading(steps[index], noise, signal)
        for index, (noise, state, signal) in states.items()
        if index < len(steps)
        and abs(steps[index].timestep - timesteps[index]) < 0.5
        and torch.equal(steps[index].state, state)
        and steps[index].model_output.shape == state.shape
    ]


def _noise_levels(scheduler: Any) -> tuple[list[float], list[tuple[float, float]]]:
    """The timesteps of a run, and for each the ``a`` there and the size of noise in its state."""
    fresh = type(scheduler).from_config(scheduler.config)
    fresh.set_timesteps(LEVELS)
    one, zero = torch.ones(1), torch.zeros(1)
    scales = []
    for timestep in fresh.timesteps:
        signal = float(fresh.add_noise(one, zero, timestep[None]))
        size = float(fresh.add_noise(zero, one, timestep[None]))
        # Some schedulers keep states of variance one, others add the noise to the whole picture.
        scales.append((signal / (signal**2 + size**2) ** 0.5, size))
    return [float(timestep) for timestep in fresh.timesteps], scales


def _reading(step: Step, noise: torch.Tensor, signal: float) -> Reading:
    output = step.model_output.double().cpu().flatten()
    direction = noise.double().flatten()
    dot, size = float(output @ direction), float(direction.norm())
    return Reading(signal, dot / size**2, dot / max(size * float(output.norm()), 1e-12))
