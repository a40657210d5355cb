"""A stock pipeline with a written adapter, called as its student is: one pass per step."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from guidefold.deliver.metadata import read_adapter
from guidefold.ground import InputError, MismatchError, RunError, given_by_user, plural
from guidefold.listen import GUIDER, Findings, StepGrid, guiders
from guidefold.lora import Dial, adapted_layers, check_turned_on, load_adapter, set_strength
from guidefold.pipeline import (
    as_one_module,
    denoisers,
    fingerprint,
    install_scheduler,
    prediction_type,
    zero_terminal_snr,
)
from guidefold.run import RunFolder, restore_folder
from guidefold.session import Session

STEPS_ARGUMENT = "num_inference_steps"


class IgnoredNegativePromptWarning(UserWarning):
    """A negative prompt was given, but the student has no second pass that could follow it."""


class OtherBaseWarning(UserWarning):
    """The pipeline's weights differ from those that the adapter was trained on."""


@dataclass(eq=False, repr=False)
class StockStudent:
    """A pipeline that is called like its teacher, and guided by its adapter alone.

    Attributes:
        pipeline: The stock pipeline, the adapter loaded.
        findings: The probe's findings when the adapter was trained.
        dial: The adapter's measured dial.
        negative_prompt: The negative prompt that is folded into the adapter.
    """

    pipeline: DiffusionPipeline
    findings: Findings
    dial: Dial
    negative_prompt: str | None

    def turn(self, guidance: float) -> float:
        """Turn the dial to a guidance scale.

        Returns:
            The adapter's strength.

        Raises:
            InputError: The scale is outside the measured dial, or the adapter is off or fused.
        """
        strength = self.dial.measured_strength(guidance)
        for part in denoisers(self.pipeline, self.findings.denoisers).values():
            check_turned_on(part)
            set_strength(part, strength)
        return strength

    def __call__(self, *args: Any, force: bool = False, **kwargs: Any) -> Any:
        """Call the pipeline with its guidance off.

        Args:
            *args: The pipeline's arguments.
            force: Allow the pipeline's own guidance on top of the folded guidance.
            **kwargs: The pipeline's keyword arguments.

        Raises:
            InputError: The arguments switch guidance on without ``force``, or the adapter is off.
        """
        for part in denoisers(self.pipeline, self.findings.denoisers).values():
            check_turned_on(part)
        given = inspect.signature(self.pipeline.__call__).bind_partial(*args, **kwargs).arguments
        off = self.findings.scale_arguments(self.findings.off)
        for name, value in off.items():
            if name.startswith(f"{GUIDER}."):
                continue  # a component's value, switched off when the student was opened
            if given.get(name, value) != value and not force:
                raise InputError(
                    f"{name}={given[name]!r}: this pipeline's guidance is folded into its adapter "
                    "already, and would count twice",
                    f"Leave {name} out and turn the dial: .turn({given[name]!r}); or pass "
                    "force=True.",
                )
            if name not in given:
                kwargs[name] = value
        self._check_steps(given, kwargs, force=force)
        negative = given.get("negative_prompt")
        if negative and negative != self.negative_prompt and not force:
            folded = f"'{self.negative_prompt}'" if self.negative_prompt else "none"
            warnings.warn(
                "negative_prompt is ignored: one pass obeys what is folded into the adapter "
                f"({folded}). Train with pipeline.negative_prompt to fold another.",
                IgnoredNegativePromptWarning,
                stacklevel=2,
            )
        return self.pipeline(*args, **kwargs)

    def _check_steps(
        self, given: Mapping[str, Any], kwargs: dict[str, Any], *, force: bool
    ) -> None:
        """Give a call the adapter's number of steps, and refuse another one."""
        grid = self.findings.steps
        if grid is None:
            return
        wanted = given.get(STEPS_ARGUMENT, grid.student)
        if wanted != grid.student and not force:
            raise InputError(
                f"{STEPS_ARGUMENT}={wanted!r}: this adapter is trained for "
                f"{plural(grid.student, 'step')}",
                f"Leave {STEPS_ARGUMENT} out; or pass force=True.",
            )
        if STEPS_ARGUMENT not in given:
            kwargs[STEPS_ARGUMENT] = grid.student


def open_student(
    pipeline: DiffusionPipeline, folder: str | Path, guidance: float | None = None
) -> StockStudent:
    """Load a written adapter into a stock pipeline, guarded against guidance that counts twice.

    The file also works without this function: call ``load_lora_weights`` and switch the guidance
    argument off. This function sets that argument, turns the dial by guidance scale and reports
    mistakes.

    Args:
        pipeline: The pipeline that the adapter was trained on, without a LoRA.
        folder: The adapter's folder.
        guidance: The guidance scale to turn the dial to; None leaves strength 1.

    Raises:
        RunError: The folder holds no adapter of Guidefold's.
        CorruptFileError: A file of the adapter is missing or altered.
        MismatchError: The pipeline lacks the denoiser, or predicts another type.
        InputError: ``pipeline`` is no pipeline or has a LoRA already, or the scale is outside the
            measured dial.
    """
    if isinstance(pipeline, str | Path):
        raise InputError(
            f"open_student({pipeline!r}, ...): that is no pipeline",
            "Open it first, as DiffusionPipeline.from_pretrained(...) or api.open_pipeline(...).",
        )
    folder = Path(folder)
    metadata = read_adapter(folder)
    findings = Findings.from_json(metadata["findings"])
    _check_base(pipeline, findings, folder)
    student = StockStudent(
        pipeline, findings, Dial.from_json(metadata), metadata["negative_prompt"]
    )
    if guidance is not None:
        student.dial.measured_strength(guidance)  # raises before anything is loaded
    if findings.steps is not None:
        _set_timesteps(pipeline, findings.steps)
    load_adapter(pipeline, findings.denoisers, findings.loader, folder, 1.0)
    if findings.guidance_argument.startswith(f"{GUIDER}."):
        for name, guider in guiders(pipeline).items():
            setattr(pipeline, name, guider.new(enabled=False))
    if guidance is not None:
        student.turn(guidance)
    return student


def _check_base(pipeline: DiffusionPipeline, findings: Findings, folder: Path) -> None:
    """Refuse a pipeline that the adapter does not fit; warn where only the weights differ."""
    names = findings.denoisers
    missing = [name for name in names if getattr(pipeline, name, None) is None]
    if missing:
        raise MismatchError(
            f"{folder}: the adapter is for '{missing[0]}', which {type(pipeline).__name__} lacks",
            "Open the pipeline that the run was recorded with.",
        )
    if prediction_type(pipeline) != findings.prediction_type:
        raise MismatchError(
            f"{folder}: trained for '{findings.prediction_type}' predictions; this pipeline's "
            f"scheduler says '{prediction_type(pipeline)}'",
            "Make its scheduler from the config of the one that the run was recorded with.",
        )
    zero = zero_terminal_snr(pipeline)
    if findings.zero_terminal_snr not in (None, zero):
        raise MismatchError(
            f"{folder}: trained on a noise schedule with rescale_betas_zero_snr="
            f"{findings.zero_terminal_snr}; this pipeline's scheduler has {zero}",
            "Make its scheduler from the config of the one that the run was recorded with.",
        )
    if findings.steps is not None and type(pipeline.scheduler).__name__ != findings.steps.solver:
        solver = findings.steps.solver
        raise MismatchError(
            f"{folder}: trained for steps of {solver}; this pipeline's solver is "
            f"{type(pipeline.scheduler).__name__}",
            f"Open it with api.open_pipeline(..., scheduler='{solver}').",
        )
    denoiser = as_one_module(denoisers(pipeline, names))
    if adapted_layers(denoiser):
        raise InputError(
            "a LoRA is on the pipeline already",
            "Open the student first, then load the others and name all of them in set_adapters.",
        )
    if (here := fingerprint(denoiser)) != findings.fingerprint:
        warnings.warn(
            f"{folder}: trained on weights {findings.fingerprint}; the pipeline has "
            f"{here}: another precision, or another base",
            OtherBaseWarning,
            stacklevel=3,
        )


def _set_timesteps(pipeline: DiffusionPipeline, grid: StepGrid) -> None:
    """Give the pipeline's scheduler the timesteps that the adapter was trained at."""
    config, wanted = pipeline.scheduler.config, grid.scheduler_settings
    if any(config.get(name) != value for name, value in wanted.items()):
        install_scheduler(pipeline, type(pipeline.scheduler).from_config(config, **wanted))


def find_adapter(run: RunFolder, folder: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """The given folder, or by default that of the run's own adapter; its files are checked.

    Returns:
        The folder, and the adapter's metadata.

    Raises:
        RunError: The run has no adapter yet, or the folder holds none of Guidefold's.
        InputError: A file of the given adapter is missing or altered.
        CorruptFileError: One of the run's own is.
    """
    if folder is None:
        folder = run.adapter
        restore_folder(folder)
        if not folder.exists():
            raise RunError(f"{folder}: no adapter yet", "Run 'guidefold distill' first.")
        return folder, read_adapter(folder)
    with given_by_user():
        return folder, read_adapter(folder)


def check_adapter(session: Session, folder: Path | None = None) -> Path:
    """Check that a written adapter fits a session's pipeline and settings, without loading it.

    Returns:
        Its folder.

    Raises:
        RunError: There is no adapter yet.
        CorruptFileError: A file of the adapter is missing or altered.
        MismatchError: The adapter was trained on another base model, or for another scale.
    """
    folder, metadata = find_adapter(session.run, folder)
    findings, found = session.findings, Findings.from_json(metadata["findings"])
    g_ref = session.settings.adapter.g_ref
    found.check_same_base(findings)
    if (theirs := found.steps) != findings.steps:
        raise MismatchError(
            f"{folder}: trained for {theirs.usage if theirs else 'as many steps as the teacher'}; "
            f"this run is for {findings.steps.usage if findings.steps else 'as many'}",
            "Use the run's own settings (student.steps, record.steps).",
        )
    if metadata["g_ref"] != g_ref:
        raise MismatchError(
            f"{folder}: strength 1 stands for guidance {metadata['g_ref']:g} in the adapter and "
            f"{g_ref:g} in the settings",
            "Use the run's own settings.",
        )
    return folder


def open_adapter(session: Session, strength: float, folder: Path | None = None) -> None:
    """Load a written adapter into a session's stock pipeline, after :func:`check_adapter`."""
    folder, findings = check_adapter(session, folder), session.findings
    with session.no_offloading():  # what comes and goes is settled by the layers that there are
        load_adapter(session.pipeline, findings.denoisers, findings.loader, folder, strength)
