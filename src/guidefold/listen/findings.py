"""What a probe finds out about a pipeline; stored with a run, compared when it is opened again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from guidefold.ground import CorruptFileError, MismatchError, UnfoldableError
from guidefold.listen.arguments import Layout
from guidefold.listen.guidance import scale_arguments
from guidefold.listen.output_map import OutputMap

BASE = (
    "pipeline",
    "denoisers",
    "denoiser_class",
    "prediction_type",
    "output_map",
    "guidance_argument",
    "off",
    "also_off",
    "origin",
    "fingerprint",
)

# Fields that a file names otherwise: 0.1.0 wrote this one so.
KEYS = {"mixed_lengths": "company"}

LOADERS = {
    "diffusers": "diffusers (load_lora_weights), or fused",
    "peft": "plain peft (PeftModel.from_pretrained on the denoiser), or fused",
}


@dataclass(frozen=True)
class Findings:
    """What a probe found.

    Attributes:
        pipeline: The pipeline's class.
        scheduler: The scheduler's class.
        prediction_type: ``epsilon``, ``v_prediction``, ``sample`` or ``flow_prediction``.
        denoisers: The components that are called at each step; several split the timesteps.
        denoiser_class: Their class.
        fingerprint: Of their weights.
        guidance_argument: The call argument that scales guidance; ``guider.guidance_scale`` where a
            component of that kind does.
        off: The value that switches guidance off.
        also_off: What else the student is called with, so that one pass is left.
        origin: Where guidance, as it is scaled, comes to nothing: the scale of strength 0. It is
            ``off`` but in pipelines that write ``cond + s * (cond - uncond)`` and switch at 1.
        linear: Whether the target is linear in the guidance scale; else the dial is approximate.
        passes_on: Passes per step and picture with guidance on.
        passes_off: Passes per step and picture with guidance off.
        output_map: What happens to the denoiser's raw output.
        layout: How the denoiser's arguments are batched; None where only one prompt at a time goes.
        mixed_lengths: Whether prompts of different lengths can be batched in one call.
        loader: Who loads the adapter: ``diffusers``, or plain ``peft``.
        targets: How many layers of each preset a LoRA can be put on.
        left_out: How many linear layers and convolutions it cannot be put on.
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

    @property
    def denoiser(self) -> str:
        """The only denoiser.

        Raises:
            UnfoldableError: There are several.
        """
        if len(self.denoisers) > 1:
            raise UnfoldableError(
                f"{self.pipeline}: several denoisers ({', '.join(self.denoisers)}), where only one "
                "can be measured alone",
                "Folding and drawing work; measure it with 'guidefold evaluate'.",
            )
        return self.denoisers[0]

    def scale_arguments(self, guidance: float) -> dict[str, Any]:
        """Call arguments that set a guidance scale; with ``off``, the student's."""
        also = self.also_off if guidance == self.off else {}
        return scale_arguments(self.guidance_argument, guidance, self.off) | also

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        values = {**asdict(self), "denoisers": list(self.denoisers)}
        return {KEYS.get(name, name): value for name, value in values.items()}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Findings:
        """Back from plain values.

        Raises:
            CorruptFileError: A field is missing or unknown.
        """
        try:
            parts = {
                "output_map": OutputMap(
                    **{**values["output_map"], "order": tuple(values["output_map"]["order"])}
                ),
                "denoisers": tuple(values["denoisers"]),
            }
            names = {key: name for name, key in KEYS.items()}
            return Findings(**{names.get(n, n): v for n, v in values.items()} | parts)
        except (TypeError, KeyError) as error:
            raise CorruptFileError(
                f"stored findings of the probe are not those of this version ({error})",
                "Remove probe.json to probe again, or choose another run=FOLDER.",
            ) from error

    def check_same_base(self, other: Findings) -> None:
        """Refuse another base.

        Raises:
            MismatchError: Names the first field that differs, with both values.
        """
        for name in BASE:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise MismatchError(
                    f"another base: {name} is '{mine}' in the run and '{theirs}' in the pipeline",
                    "Open the pipeline that the run was recorded with, in the same precision.",
                )


def describe(found: Findings) -> list[str]:
    """What was found and what follows from it, in words, a line each."""
    also = "".join(f", {name}={value:g}" for name, value in found.also_off.items())
    exact = "exact" if found.linear else "approximate: the target is not linear in the scale"
    layers = ", ".join(f"{preset} {count}" for preset, count in found.targets.items())
    out = f"; {found.left_out} others cannot be wrapped" if found.left_out else ""
    rows = {
        "pipeline": f"{found.pipeline}, {found.scheduler}, {found.prediction_type}",
        "denoiser": f"{' and '.join(found.denoisers)} ({found.denoiser_class}), "
        f"weights {found.fingerprint}",
        "guidance": f"{found.guidance_argument}, off at {found.off:g}{also}",
        "passes a step": f"{found.passes_on:g} with guidance, {found.passes_off:g} without",
        "dial": f"strength 0 = guidance {found.origin:g}, {exact}",
        "output map": str(found.output_map),
        "batches": _batches(found),
        "LoRA layers": f"{layers}{out}",
        "adapter loads with": LOADERS[found.loader],
    }
    saved = 1 - found.passes_off / found.passes_on
    return [
        *(f"{name:20}{value}" for name, value in rows.items()),
        "",
        f"Its guidance can be folded: {saved:.0%} of the passes saved.",
    ]


def _batches(found: Findings) -> str:
    if found.layout is None:
        return "no: recorded and trained one prompt at a time"
    return "yes" if found.mixed_lengths else "in training; recorded one prompt at a time"
