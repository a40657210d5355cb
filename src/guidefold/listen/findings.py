"""The findings of a probe; stored with a run, compared when its pipeline is opened again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from guidefold.ground import CorruptFileError, MismatchError, UnfoldableError
from guidefold.listen.arguments import Layout
from guidefold.listen.guidance import scale_arguments
from guidefold.listen.output_map import OutputMap
from guidefold.listen.step_grid import StepGrid

BASE = (
    "pipeline",
    "denoisers",
    "denoiser_class",
    "prediction_type",
    "zero_terminal_snr",
    "output_map",
    "guidance_argument",
    "off",
    "also_off",
    "origin",
    "fingerprint",
)

# Fields whose key in files is another: version 0.1.0 named them.
FILE_KEYS = {"mixed_lengths": "company"}

LOADERS = {
    "diffusers": "diffusers (load_lora_weights), or fused",
    "peft": "plain peft (PeftModel.from_pretrained on the denoiser), or fused",
}


@dataclass(frozen=True)
class Findings:
    """The facts about a pipeline that folding depends on.

    Attributes:
        pipeline: The pipeline's class.
        scheduler: The scheduler's class.
        prediction_type: ``epsilon``, ``v_prediction``, ``sample`` or ``flow_prediction``.
        denoisers: The components that are called at each step; several split the timesteps.
        denoiser_class: Their class.
        fingerprint: The fingerprint of their weights.
        guidance_argument: The call argument that scales guidance; ``guider.guidance_scale`` if a
            component does.
        off: The value that switches guidance off.
        also_off: Further call arguments of the student, needed to leave a single pass.
        origin: The guidance scale at which guidance is zero: the scale of strength 0. It equals
            ``off`` except in pipelines that write ``cond + s * (cond - uncond)`` and switch at 1.
        linear: Whether the target is linear in the guidance scale; else the dial is approximate.
        passes_on: Passes per step and picture with guidance on.
        passes_off: Passes per step and picture with guidance off.
        output_map: The map from the denoiser's raw output to the model output.
        layout: The layout of batched denoiser arguments; None if they cannot be batched.
        mixed_lengths: Whether prompts of different lengths can be batched in one call.
        loader: The library that loads the adapter: ``diffusers``, or plain ``peft``.
        targets: The number of layers of each preset that a LoRA can adapt.
        left_out: The number of linear layers and convolutions that it cannot adapt.
        zero_terminal_snr: Whether the noise schedule ends in noise alone; None in files of versions
            that did not record it.
        fixed: The denoisers whose guidance does not follow the guidance argument.
        steps: The steps of a student that takes fewer than the teacher; None if it takes as many.
    """

    pipeline: str
    scheduler: str
    prediction_type: str
    denoisers: tuple[str, ...]
    denoiser_class: str
    fingerprint: str
    guidance_argument: str
    off: float
    also_off: dict[str, float]
    origin: float
    linear: bool
    passes_on: float
    passes_off: float
    output_map: OutputMap
    layout: Layout
    mixed_lengths: bool
    loader: str
    targets: dict[str, int]
    left_out: int
    zero_terminal_snr: bool | None = None
    fixed: tuple[str, ...] = ()
    steps: StepGrid | None = None

    @property
    def denoiser(self) -> str:
        """The only denoiser's name.

        Raises:
            UnfoldableError: There are several denoisers.
        """
        if len(self.denoisers) > 1:
            raise UnfoldableError(
                f"{self.pipeline}: several denoisers ({', '.join(self.denoisers)}), where only one "
                "can be measured alone",
                "Folding and drawing work; measure it with 'guidefold evaluate'.",
            )
        return self.denoisers[0]

    @property
    def fixed_scale(self) -> str:
        """Which denoisers' guidance does not follow the dial, in words; empty where all do."""
        if not self.fixed:
            return ""
        return (
            f"the guidance of {' and '.join(self.fixed)} does not follow {self.guidance_argument}, "
            "since another argument of the call sets it"
        )

    def scale_arguments(self, guidance: float) -> dict[str, Any]:
        """Call arguments that set a guidance scale; for ``off``, all that the student needs."""
        also = self.also_off if guidance == self.off else {}
        return scale_arguments(self.guidance_argument, guidance, self.off) | also

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        values = {**asdict(self), "denoisers": list(self.denoisers)}
        values["output_map"] = self.output_map.to_json()
        fixed = values.pop("fixed")  # written only where there are any, for older readers
        values |= {"fixed": list(fixed)} if fixed else {}
        values.pop("steps")
        if self.steps is not None:
            values["steps"] = self.steps.to_json()
        return {FILE_KEYS.get(name, name): value for name, value in values.items()}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Findings:
        """From JSON.

        Raises:
            CorruptFileError: A field is missing or unknown.
        """
        try:
            parts = {
                "output_map": OutputMap.from_json(values["output_map"]),
                "denoisers": tuple(values["denoisers"]),
                "fixed": tuple(values.get("fixed", ())),
                "steps": StepGrid.from_json(values["steps"]) if "steps" in values else None,
            }
            names = {key: name for name, key in FILE_KEYS.items()}
            return Findings(**{names.get(n, n): v for n, v in values.items()} | parts)
        except (TypeError, KeyError) as error:
            raise CorruptFileError(
                f"stored findings of the probe are not those of this version ({error})",
                "Remove probe.json to probe again, or choose another run=FOLDER.",
            ) from error

    def check_same_base(self, other: Findings) -> None:
        """Refuse findings of another base model.

        Raises:
            MismatchError: A field differs; the error names the first one with both values.
        """
        for name in BASE:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs and None not in (mine, theirs):
                raise MismatchError(
                    f"another base: {name} is '{mine}' in the run and '{theirs}' in the pipeline",
                    "Open the pipeline that the run was recorded with, in the same precision.",
                )


def _steps(grid: StepGrid) -> str:
    return f"student: {grid.usage}; teacher: {grid.teacher}, the student's timesteps among them"


def describe_findings(findings: Findings) -> list[str]:
    """Findings for people: one line per fact, and the share of passes that folding saves."""
    also = "".join(f", {name}={value:g}" for name, value in findings.also_off.items())
    exact = "exact" if findings.linear else "approximate: the target is not linear in the scale"
    if findings.fixed:
        exact = f"approximate: {findings.fixed_scale}"
    layers = ", ".join(f"{preset} {count}" for preset, count in findings.targets.items())
    out = f"; {findings.left_out} others cannot be wrapped" if findings.left_out else ""
    batches = "yes" if findings.mixed_lengths else "in training; recorded one prompt at a time"
    if findings.layout is None:
        batches = "no: recorded and trained one prompt at a time"
    rows = {
        "pipeline": f"{findings.pipeline}, {findings.scheduler}, {findings.prediction_type}",
        "denoiser": f"{' and '.join(findings.denoisers)} ({findings.denoiser_class}), "
        f"weights {findings.fingerprint}",
        "guidance": f"{findings.guidance_argument}, off at {findings.off:g}{also}",
        "passes per step": f"{findings.passes_on:g} with guidance, {findings.passes_off:g} without",
        "dial": f"strength 0 = guidance {findings.origin:g}, {exact}",
        "output map": str(findings.output_map),
        "batches": batches,
        "LoRA layers": f"{layers}{out}",
        **({"steps": _steps(findings.steps)} if findings.steps else {}),
        "adapter loads with": LOADERS[findings.loader],
    }
    saved = 1 - findings.passes_off / findings.passes_on
    return [
        *(f"{name:20}{value}" for name, value in rows.items()),
        "",
        f"Its guidance can be folded: {saved:.0%} of the passes saved.",
    ]
