"""A stock pipeline with a written adapter, called as its student is: in one pass a step."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from guidefold.deliver.metadata import read_adapter
from guidefold.ground import InputError, MismatchError, RunError
from guidefold.listen import GUIDER, Findings, guiders, prediction_type
from guidefold.lora import Dial, adapted_layers, check_turned_on, load_adapter, set_strength
from guidefold.pipeline import as_one_module, denoisers, fingerprint
from guidefold.run import RunFolder, restore_folder
from guidefold.session import Session


class IgnoredNegativePromptWarning(UserWarning):
    """A negative prompt was given where no second pass could obey it."""


class OtherBaseWarning(UserWarning):
    """The pipeline's weights are not those that the adapter was trained on."""


class StockStudent:
    """A pipeline that is called like its teacher, and guided by its adapter alone.

    Args:
        pipeline: With the adapter loaded.
        findings: What the probe found when the adapter was trained.
        dial: The adapter's, measured.
        negative_prompt: What was folded.

    Attributes:
        pipeline: The stock pipeline itself.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        findings: Findings,
        dial: Dial,
        negative_prompt: str | None,
    ) -> None:
        self.pipeline, self.findings = pipeline, findings
        self.dial, self.negative_prompt = dial, negative_prompt

    def turn(self, guidance: float) -> float:
        """Turn the dial to a guidance scale.

        Returns:
            The adapter's strength.

        Raises:
            InputError: The dial was not measured there, or the adapter is off or fused.
        """
        strength = self.dial.measured_strength(guidance)
        for part in denoisers(self.pipeline, self.findings.denoisers).values():
            check_turned_on(part)
            set_strength(part, strength)
        return strength

    def __call__(self, *args: Any, force: bool = False, **kwargs: Any) -> Any:
        """Call the pipeline with its guidance off.

        Args:
            *args: As the pipeline takes them.
            force: Let guidance that is asked for come on top of what is folded.
            **kwargs: As the pipeline takes them.

        Raises:
            InputError: Guidance is asked for, without ``force``; or the adapter is off.
        """
        for part in denoisers(self.pipeline, self.findings.denoisers).values():
            check_turned_on(part)
        given = inspect.signature(self.pipeline.__call__).bind_partial(*args, **kwargs).arguments
        off = self.findings.scale_arguments(self.findings.off)
        for name, value in off.items():
            if name.startswith(f"{GUIDER}."):
                continue  # a component's, switched off as it was opened
            if given.get(name, value) != value and not force:
                raise InputError(
                    f"{name}={given[name]!r}: this pipeline's guidance is folded into its adapter "
                    "already, and would count twice",
                    f"Leave {name} out and turn the dial: .turn({given[name]!r}); or pass "
                    "force=True.",
                )
            if name not in given:
                kwargs[name] = value
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


def open_student(
    pipeline: DiffusionPipeline, folder: str | Path, guidance: float | None = None
) -> StockStudent:
    """Load a written adapter into a stock pipeline and guard it against guidance that counts twice.

    The file needs none of this: ``load_lora_weights`` and the guidance argument switched off do the
    same. This sets that argument, turns the dial by guidance scale and complains of mistakes.

    Args:
        pipeline: The one that the adapter was trained on, without a LoRA.
        folder: The adapter's.
        guidance: Where to turn the dial; None leaves strength 1.

    Raises:
        RunError: There is no adapter of Guidefold's.
        CorruptFileError: Its files are not those that were written.
        MismatchError: The pipeline lacks the denoiser.
        InputError: It is no pipeline, a LoRA is on it already, or the dial does not reach the
            scale.
    """
    if isinstance(pipeline, str | Path):
        raise InputError(
            f"open_student({pipeline!r}, ...): that is no pipeline",
            "Open it first, as DiffusionPipeline.from_pretrained(...) or api.open_pipeline(...).",
        )
    folder = Path(folder)
    about = read_adapter(folder)
    findings = Findings.from_json(about["findings"])
    _check_base(pipeline, findings, folder)
    student = StockStudent(pipeline, findings, Dial.from_json(about), about["negative_prompt"])
    if guidance is not None:
        student.dial.measured_strength(guidance)  # before anything is loaded
    load_adapter(pipeline, findings.denoisers, findings.loader, folder, 1.0)
    if findings.guidance_argument.startswith(f"{GUIDER}."):
        for name, guider in guiders(pipeline).items():
            setattr(pipeline, name, guider.new(enabled=False))
    if guidance is not None:
        student.turn(guidance)
    return student


def _check_base(pipeline: DiffusionPipeline, findings: Findings, folder: Path) -> None:
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
    whole = as_one_module(denoisers(pipeline, names))
    if adapted_layers(whole):
        raise InputError(
            "a LoRA is on the pipeline already",
            "Open the student first, then load the others and name all of them in set_adapters.",
        )
    if fingerprint(whole) != findings.fingerprint:
        warnings.warn(
            f"{folder}: trained on weights {findings.fingerprint}; the pipeline has "
            f"{fingerprint(whole)}: another precision, or another base",
            OtherBaseWarning,
            stacklevel=3,
        )


def find_adapter(run: RunFolder, folder: Path | None = None) -> Path:
    """The folder of a run's adapter, or another one that was named.

    Raises:
        RunError: The run has none yet.
    """
    if folder is None:
        folder = run.adapter
        restore_folder(folder)
        if not folder.exists():
            raise RunError(f"{folder}: no adapter yet", "Run 'guidefold distill' first.")
    return folder


def open_adapter(session: Session, strength: float, folder: Path | None = None) -> None:
    """Load a written adapter into a session's stock pipeline, after making sure it belongs there.

    Raises:
        RunError: There is none yet.
        CorruptFileError: Its files are not the ones that were written.
        MismatchError: It was trained on another base.
    """
    folder = find_adapter(session.run, folder)
    about = read_adapter(folder)
    trained_on = Findings.from_json(about["findings"])
    trained_on.check_same_base(session.findings)
    if about["g_ref"] != session.settings.adapter.g_ref:
        raise MismatchError(
            f"{folder}: strength 1 stands for guidance {about['g_ref']:g} in the adapter and "
            f"{session.settings.adapter.g_ref:g} in the settings",
            "Use the run's own settings.",
        )
    findings = session.findings
    load_adapter(session.pipeline, findings.denoisers, findings.loader, folder, strength)
