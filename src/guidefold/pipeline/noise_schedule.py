"""What a pipeline's denoiser predicts, and on which noise schedule: read, checked, and set.

A scheduler's configuration says both. A checkpoint of one file has no scheduler: the configuration
that describes it is another's, often that of the model that it was tuned from. Where the file
states something else than that configuration, neither is believed. All of this is done before a
weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from guidefold.ground import ConfigError, PipelineError
from guidefold.pipeline.loading import loading_errors
from guidefold.pipeline.markers import Marker, markers_of, read_markers
from guidefold.pipeline.solver import SCHEDULER, change_solver, predicts, step_once

PREDICTION, ZERO_SNR = "pipeline.prediction_type", "pipeline.zero_terminal_snr"
CHOICES = ("epsilon", "v_prediction", "sample")
RESCALE = "rescale_betas_zero_snr"


def prediction_type(pipeline: DiffusionPipeline) -> str:
    """The denoiser's prediction type by its scheduler's configuration; ``"None"`` without one."""
    return predicts(getattr(pipeline, "scheduler", None))


def zero_terminal_snr(pipeline: DiffusionPipeline) -> bool:
    """Whether the scheduler's last timestep is noise alone, by its configuration."""
    return bool(pipeline.scheduler.config.get(RESCALE, False))


def open_scheduler(source: str | Path, index: Mapping[str, Any]) -> Any:
    """Make a pipeline's scheduler from its configuration, without the pipeline.

    Args:
        source: The folder or hub id.
        index: Its ``model_index.json``.

    Returns:
        The scheduler; None of a pipeline without one, with one that is not diffusers' own, or of a
        folder without its configuration: some classes make their own (LongCat-AudioDiT), and
        loading the others names what is missing.

    Raises:
        PipelineError: Its configuration cannot be read, or has no timesteps.
    """
    library, name = index.get("scheduler") or (None, None)
    if library != "diffusers" or not hasattr(diffusers, str(name)):
        return None
    kind, folder = getattr(diffusers, str(name)), Path(source)
    if folder.is_dir() and not (folder / "scheduler" / kind.config_name).exists():
        return None
    place = {"subfolder": "scheduler", "local_files_only": folder.is_dir()}
    try:
        config = kind.load_config(source, **place)
        count = config.get("num_train_timesteps", 1)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise PipelineError(
                f"{source}: its scheduler has num_train_timesteps={count!r}",
                "Mend it in scheduler/scheduler_config.json; 1000 is usual.",
            )
        return kind.from_config(config)
    except loading_errors() as error:
        raise PipelineError(
            f"{source}: its scheduler ({name}) cannot be made of its configuration: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}",
            "Look into scheduler/scheduler_config.json, or save the pipeline once more.",
        ) from error


def check_markers(
    scheduler: Any,
    markers: Sequence[Marker],
    config: str,
    prediction: str | None,
    zero_snr: bool | None,
) -> None:
    """Refuse a checkpoint that states another noise schedule than its configuration.

    Args:
        scheduler: The scheduler that the configuration makes.
        markers: What the file states.
        config: The name of the configuration.
        prediction: The user's prediction type, which decides; None without one.
        zero_snr: Whether the last timestep is noise alone, if the user decides that.

    Raises:
        PipelineError: They disagree, and no setting decides; the error names both, and the setting.
    """
    if scheduler is None or _matches_flow(scheduler):
        return
    configured = {
        "prediction_type": predicts(scheduler),
        "zero_terminal_snr": bool(scheduler.config.get(RESCALE, False)),
        "preconditioned": "sigma_data" in scheduler.config,
    }
    decided = {"prediction_type": prediction is not None, "zero_terminal_snr": zero_snr is not None}
    wrong = [m for m in markers if m.value != configured[m.field] and not decided.get(m.field)]
    if not wrong:
        return
    fields = dict.fromkeys(marker.field for marker in wrong)
    stated = "; ".join(f"{m.where} states {WORDS[m.field](m.value)}" for m in wrong)
    has = " and ".join(WORDS[field](configured[field]) for field in fields)
    raise PipelineError(
        f"{stated}; the scheduler of {config} ({type(scheduler).__name__}) has {has}",
        _remedy({m.field: m.value for m in reversed(wrong)}, configured),
    )


def stated_schedule(
    path: Path, lora: Mapping[str, str], made_for: Mapping[str, Any]
) -> dict[str, Any]:
    """The noise schedule of a checkpoint of one file, as a LoRA for it states it, else itself.

    Args:
        path: The checkpoint.
        lora: The metadata of the LoRA's file.
        made_for: What Guidefold's own metadata in it says of the base; may be empty.

    Returns:
        Arguments of :func:`~guidefold.pipeline.open.open_pipeline`.

    Raises:
        PipelineError: The checkpoint cannot be read.
    """
    stated = {m.field: m.value for m in [*read_markers(path), *markers_of(lora, path)]}
    fields = ("prediction_type", "zero_terminal_snr")
    schedule = {name: made_for.get(name, stated.get(name)) for name in fields}
    # Flow matching has one prediction type, and no choice of it.
    return schedule if schedule["prediction_type"] in (None, *CHOICES) else {}


def set_schedule(
    scheduler: Any, prediction: str | None, zero_snr: bool | None, solver: str | None = None
) -> Any:
    """Make a scheduler anew of the user's class, with their prediction type and noise schedule.

    Zero terminal SNR needs the rescaled schedule and a first step at its last timestep (Lin et al.
    2023, arXiv 2305.08891, sections 3.1 and 3.3): 'trailing' spacing, where 'leading' stays short.

    Args:
        scheduler: The scheduler; None of a pipeline without one.
        prediction: ``epsilon``, ``v_prediction`` or ``sample``; None leaves it.
        zero_snr: Whether the last timestep is noise alone; None leaves it.
        solver: The scheduler's class; None leaves it.

    Returns:
        A new scheduler; the given one if there is nothing to set.

    Raises:
        ConfigError: The scheduler has no such choice; the error names the setting and it.
    """
    if solver is not None:
        scheduler = change_solver(scheduler, solver)
    if prediction is None and zero_snr is None:
        return scheduler
    _check_choice(scheduler, prediction, zero_snr)
    config, changes = scheduler.config, dict[str, Any]()
    if prediction is not None:
        changes["prediction_type"] = prediction
    if zero_snr is not None and RESCALE in config:
        changes[RESCALE] = zero_snr
    if zero_snr and "timestep_spacing" in config:
        changes["timestep_spacing"] = "trailing"
    changed = type(scheduler).from_config(config, **changes)
    if prediction is not None:
        _check_prediction(changed, prediction)
    return changed


def _matches_flow(scheduler: Any) -> bool:
    return predicts(scheduler) in ("flow_prediction", "None")


def _check_choice(scheduler: Any, prediction: str | None, zero_snr: bool | None) -> None:
    """Refuse settings that this scheduler does not have."""
    setting = ZERO_SNR if prediction is None else PREDICTION
    name = type(scheduler).__name__
    if scheduler is None:
        raise ConfigError(f"{setting}: the pipeline has no scheduler of diffusers", "Leave it out.")
    if _matches_flow(scheduler):
        raise ConfigError(
            f"{setting}: the pipeline steps {name}, which has no choice of it: flow matching "
            "predicts one thing, on one schedule",
            "Leave it out.",
        )
    if zero_snr and RESCALE not in scheduler.config:
        raise ConfigError(
            f"{ZERO_SNR}: {name} has no schedule of zero terminal SNR",
            f"Set {SCHEDULER} to one that has, such as DDIMScheduler or EulerDiscreteScheduler.",
        )
    if zero_snr and (prediction or predicts(scheduler)) == "epsilon":
        raise ConfigError(
            f"{ZERO_SNR}: not with the prediction type epsilon: where there is only noise, a "
            "predicted noise says nothing of the picture",
            f"Set {PREDICTION}=v_prediction if the denoiser predicts that, or leave it out.",
        )


def _check_prediction(scheduler: Any, prediction: str) -> None:
    try:
        step_once(scheduler)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"{PREDICTION}: {type(scheduler).__name__} does not step with '{prediction}' "
            f"predictions: {str(error).splitlines()[0]}",
            f"Choose another, or set {SCHEDULER} to one that does, such as DDIMScheduler.",
        ) from error


def _remedy(stated: Mapping[str, Any], configured: Mapping[str, Any]) -> str:
    """The settings that decide for the file, and those that decide for the configuration."""
    if "preconditioned" in stated:
        return (
            "No setting turns one kind of scheduler into the other: name with pipeline.config a "
            "folder whose scheduler fits (for EDM's scalings, EDMEulerScheduler)."
        )
    if stated.get("prediction_type", CHOICES[0]) not in CHOICES:
        return (
            f"Set {PREDICTION} to what the denoiser predicts ({', '.join(CHOICES)}), or name with "
            "pipeline.config a folder whose scheduler fits."
        )
    file = " ".join(f"pipeline.{field}={_plain(value)}" for field, value in stated.items())
    config = " ".join(f"pipeline.{field}={_plain(configured[field])}" for field in stated)
    return f"Set {file} if the file is right, {config} if the configuration is."


def _plain(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else value


WORDS: dict[str, Callable[[Any], str]] = {
    "prediction_type": str,
    "zero_terminal_snr": {True: "zero terminal SNR", False: "no zero terminal SNR"}.__getitem__,
    "preconditioned": {True: "EDM's scalings", False: "no scalings of EDM"}.__getitem__,
}
