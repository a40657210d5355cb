"""Another scheduler for a pipeline, on the noise schedule that its denoiser was trained on.

A scheduler's class decides how a pipeline steps; its configuration, on which noise schedule and
what the denoiser predicts. Another class made of that configuration leaves out what it does not
know, so that the two schedules are compared, never assumed to be one.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin

from guidefold.ground import ConfigError
from guidefold.pipeline.loading import quiet_loading

SCHEDULER = "pipeline.scheduler"
SINGLE_STEP = (
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "CogVideoXDDIMScheduler",
    "EDMEulerScheduler",
)
"""Solvers without a memory and without noise of their own."""
SPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
"""Fields that space noise levels otherwise than the timesteps."""
KEPT = (*SPACED, "use_dynamic_shifting", "clip_sample", "thresholding")
"""Fields that a scheduler cannot lose, where they are true, without stepping elsewhere."""
STEPS = 10  # of the runs whose noise levels are compared
RELATIVE, ABSOLUTE = 1e-4, 1e-6  # differences of noise levels, which are kept in float32


def predicts(scheduler: Any) -> str:
    """What a denoiser predicts by its scheduler's configuration; ``"None"`` where it is silent."""
    named = None if scheduler is None else scheduler.config.get("prediction_type")
    if named is None and "Flow" in type(scheduler).__name__:
        return "flow_prediction"
    return str(named)


def change_solver(scheduler: Any, name: str) -> Any:
    """Make a scheduler of another class from a scheduler's configuration.

    What the other class would take otherwise than the configuration means it is set: no clipped
    samples, the shift of flow matching, which has two names, and trailing timesteps for 'linspace'.

    Args:
        scheduler: The scheduler; None of a pipeline without one.
        name: The class, of diffusers.

    Returns:
        A new scheduler; the given one if it is of that class.

    Raises:
        ConfigError: There is no such class, or its noise schedule or its predictions would be
            others than the given scheduler's.
    """
    if scheduler is None:
        raise ConfigError(
            f"{SCHEDULER}: the pipeline has no scheduler of diffusers", "Leave it out."
        )
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ConfigError(
            f"{SCHEDULER}: {name} is no scheduler of diffusers {diffusers.__version__}",
            _choices(scheduler),
        )
    if type(scheduler) is kind:
        return scheduler
    made, wrong = _make(scheduler, kind)
    if wrong:
        raise ConfigError(
            f"{SCHEDULER}: {name} does not fit {type(scheduler).__name__}: {wrong}",
            _choices(scheduler),
        )
    return made


def single_step_solvers(scheduler: Any) -> list[str]:
    """The single-step solvers that fit a scheduler's noise schedule, the likest first.

    Some pipelines scale the first noise or the denoiser's input only as their own scheduler asks
    for; so those come first that begin at noise of the same size.
    """
    fitting = []
    for name in SINGLE_STEP:
        made, wrong = _make(scheduler, getattr(diffusers, name))
        if not wrong and type(made) is not type(scheduler):
            fitting.append((not _close(_first_noise(made), _first_noise(scheduler)), name))
    return [name for _, name in sorted(fitting, key=lambda pair: pair[0])]


def install_scheduler(pipeline: DiffusionPipeline, scheduler: Any) -> None:
    """Give a pipeline another scheduler, and the pipelines within it that share its own."""
    before = pipeline.scheduler
    for part in (pipeline, *vars(pipeline).values()):
        if isinstance(part, DiffusionPipeline) and getattr(part, "scheduler", None) is before:
            part.scheduler = scheduler


def step_once(scheduler: Any) -> None:
    """Step a copy once: schedulers complain of a prediction type only then.

    Raises:
        ValueError: The scheduler does not step such predictions; also NotImplementedError.
    """
    trial = type(scheduler).from_config(scheduler.config)
    _start(trial, num_inference_steps=STEPS)
    state = torch.zeros(1, 1, 1, 1)
    trial.step(state, trial.timesteps[0], state)


def _make(scheduler: Any, kind: type[Any]) -> tuple[Any, str]:
    """``(the scheduler of another class, why it does not fit)``; the reason is empty if it does."""
    config, known = scheduler.config, inspect.signature(kind.__init__).parameters
    lost = [name for name in KEPT if config.get(name) and name not in known]
    if lost:
        return None, f"it has no {lost[0]}, which the pipeline's own has switched on"
    # What the other class does not know is left out, since pipelines read such fields as well;
    # what is a default of the one class is stated, since the other's is another.
    kept = {name: value for name, value in config.items() if name in known}
    with quiet_loading():
        try:
            made = kind.from_config(kept, **_meant(config, known))
            step_once(made)
        except (ValueError, TypeError, NotImplementedError, ImportError, AttributeError) as error:
            return None, str(error).strip().splitlines()[0]
        same = _same_noise(scheduler, made)
    if predicts(made) != predicts(scheduler):
        return None, f"it steps {predicts(made)} predictions, the pipeline's {predicts(scheduler)}"
    return (made, "") if same else (None, "its noise levels would be others")


def _meant(config: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Values for fields that a configuration lacks, or means otherwise in another class."""
    changes: dict[str, Any] = {}
    if "clip_sample" in known and "clip_sample" not in config:
        changes["clip_sample"] = False
    if "shift" in known and "shift" not in config and "flow_shift" in config:
        changes["shift"] = config["flow_shift"]
    spaced = any(config.get(name) for name in SPACED)
    if config.get("timestep_spacing") == "linspace" and "timestep_spacing" in known and not spaced:
        # Solvers with a memory leave the last of these timesteps out, which makes them almost
        # 'trailing'; DDIM's steps land elsewhere.
        changes["timestep_spacing"] = "trailing"
    return changes


def _same_noise(one: Any, other: Any) -> bool:
    """Whether two schedulers have the same noise levels: those of training, or those of a run."""
    fresh = [type(scheduler).from_config(scheduler.config) for scheduler in (one, other)]
    if predicts(one) != "flow_prediction":
        if any(hasattr(scheduler, "alphas_cumprod") for scheduler in fresh):
            return _close_in(fresh, "alphas_cumprod")
    elif _has_flow_shift(one) and not _has_flow_shift(other):
        return _same_shift(*fresh)
    if _close_in(fresh, "sigmas"):
        return True
    for scheduler in fresh:
        with suppress(Exception):  # one that cannot simply run has no levels to compare
            _start(scheduler, num_inference_steps=STEPS)
    return _close_in(fresh, "sigmas") and _close_in(fresh, "timesteps")


def _has_flow_shift(scheduler: Any) -> bool:
    return "flow_shift" in inspect.signature(type(scheduler).__init__).parameters


def _same_shift(one: Any, other: Any) -> bool:
    """Whether another scheduler shifts the same noise levels to the same places."""
    plain = type(one).from_config(one.config, flow_shift=1.0, use_dynamic_shifting=False)
    try:
        for scheduler in (one, plain):
            _start(scheduler, num_inference_steps=STEPS)
        _start(other, sigmas=plain.sigmas[:-1].tolist())
    except (ValueError, TypeError):
        return False
    return _close(one.sigmas, other.sigmas)


def _start(scheduler: Any, **steps: Any) -> None:
    """Set a scheduler's timesteps; dynamic shifting is told a picture's size, here any."""
    dynamic = scheduler.config.get("use_dynamic_shifting")
    scheduler.set_timesteps(**steps, **({"mu": 1.0} if dynamic else {}))


def _close_in(schedulers: Sequence[Any], name: str) -> bool:
    values = [getattr(scheduler, name, None) for scheduler in schedulers]
    return None not in values and _close(*values)


def _close(one: Any, other: Any) -> bool:
    one, other = torch.as_tensor(one), torch.as_tensor(other)
    return one.shape == other.shape and torch.allclose(
        one.float().cpu(), other.float().cpu(), rtol=RELATIVE, atol=ABSOLUTE
    )


def _first_noise(scheduler: Any) -> float:
    return float(getattr(scheduler, "init_noise_sigma", 1.0))


def _choices(scheduler: Any) -> str:
    others = [kind.__name__ for kind in scheduler.compatibles if kind is not type(scheduler)]
    fitting = [
        name
        for name in sorted({*others, *single_step_solvers(scheduler)})
        if not _make(scheduler, getattr(diffusers, name))[1]
    ]
    if not fitting:
        return f"Leave it out: no other scheduler fits {type(scheduler).__name__}."
    return f"Choose one that fits ({', '.join(fitting)}), or leave it out."
