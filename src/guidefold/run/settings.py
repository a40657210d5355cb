"""Every setting of a run: frozen, with its range and its default."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from guidefold.ground import LARGEST_SEED
from guidefold.run.distill_settings import DistillSettings
from guidefold.run.values import (
    Number,
    Offload,
    Place,
    Positive,
    Quantization,
    Section,
    Switch,
    Text,
    Whole,
    encodable,
    leaves,
    wrong_size,
)

Kind = Literal["teacher", "unguided", "student"]
KINDS: tuple[Kind, ...] = ("teacher", "unguided", "student")
StateSource = Literal["teacher", "student", "noise"]
Preset = Literal["attention", "linear", "portable", "all"]
Layers = Literal["all", "portable"]
LoraRole = Literal["guidance", "steps", "both"]
Precision = Literal["fp32", "fp16", "bf16"]
LoraFormat = Literal["diffusers", "kohya", "transformer", "original", "peft"]
Format = Literal[LoraFormat, "fused"]
Prediction = Literal["epsilon", "v_prediction", "sample"]


class PipelineSettings(Section):
    """The pipeline, and the arguments of its call.

    Attributes:
        source: The pipeline: a folder, a hub id, a single checkpoint file, or ``"bundled"``.
        config: A diffusers folder that describes a single checkpoint file.
        dtype: Precision of the weights while the teacher is recorded, and of the frozen weights
            while the student is trained, unless ``distill.frozen_weights`` stores them smaller.
        device: The device of the pipeline; ``"auto"`` takes the first accelerator, else the CPU.
        offload: What stays on the CPU until it is called, of a pipeline that is too large for the
            accelerator: ``none``, each ``component``, each ``group`` of layers (the next one comes
            while one computes) or each layer by itself (``sequential``). Training holds the whole
            denoiser there, and nothing else, in any case.
        quantization: The library and the bits in which linear layers of the denoiser and of text
            encoders are opened: ``none``, ``bitsandbytes_4bit``, ``bitsandbytes_8bit``,
            ``torchao_int8`` or ``quanto_int8``, each an extra of the package. The teacher is then
            the quantised one: it is recorded, folded and measured with these weights.
        negative_prompt: Negative prompt of the teacher, which is folded into the adapter.
        guided_share: Share of the teacher's steps that are guided, counted from the first step;
            below 1 is Selective Guidance.
        call: Further arguments of the pipeline's call, such as ``height`` and ``width``.
        prediction_type: What the denoiser predicts: ``epsilon``, ``v_prediction`` or ``sample``;
            None takes the scheduler's configuration. A single checkpoint file that states something
            else than the configuration that describes it is refused until this is set.
        zero_terminal_snr: Whether the noise schedule ends in noise alone; if true, timesteps are
            spaced ``trailing`` too, so that denoising begins there. None as for
            ``prediction_type``.
        scheduler: The class of diffusers' scheduler that steps the pipeline, teacher and student,
            such as ``DDIMScheduler``, made from the configuration of its own; None leaves its own.
            A class that would change the noise schedule is refused.
    """

    source: Place = Field(min_length=1)
    config: Place | None = None
    dtype: Precision = "fp32"
    device: Text = "auto"
    offload: Offload = "none"
    quantization: Quantization = "none"
    negative_prompt: Text | None = None
    guided_share: Number = Field(default=1.0, gt=0, le=1)
    call: dict[str, Any] = Field(default_factory=dict)
    prediction_type: Prediction | None = None
    zero_terminal_snr: Switch | None = None
    scheduler: Text | None = None

    def described(self) -> dict[str, Any]:
        """The arguments of ``open_pipeline`` that say what the weights are and how they step."""
        return {
            "config": self.config,
            "quantization": self.quantization,
            "prediction_type": self.prediction_type,
            "zero_terminal_snr": self.zero_terminal_snr,
            "scheduler": self.scheduler,
        }

    @field_validator("call")
    @classmethod
    def _writable(cls, call: dict[str, Any]) -> dict[str, Any]:
        for name, value in call.items():
            for leaf in leaves(value):
                infinite = isinstance(leaf, float) and not math.isfinite(leaf)
                if infinite or not isinstance(leaf, bool | int | float | str):
                    raise ValueError(
                        f"{name} is {leaf}, which a run's file cannot hold; leave it out"
                    )
                if isinstance(leaf, str):
                    encodable(leaf)
            if wrong := wrong_size(name, value):
                raise ValueError(wrong)
        return call


class PromptSettings(Section):
    """The prompts.

    Attributes:
        path: The prompts: a file, a folder of captioned pictures, or a bundled list (``general``;
            ``world`` and ``world-balanced`` of the bundled teacher).
        held_out_share: Share of the prompts that is not trained on, but measured with.
    """

    path: Place = "general"
    held_out_share: Number = Field(default=0.1, gt=0, lt=1)


MOST_TRAJECTORIES = 10**6  # all of a round's are planned in memory before the first is recorded


class RecordSettings(Section):
    """Recording the teacher.

    Attributes:
        rounds: The state source of each round; ``student`` rounds are recorded while training.
        trajectories: Trajectories per round.
        validation_trajectories: Trajectories on held-out prompts, recorded in the first round.
        states_per_trajectory: Number of states that are kept of each trajectory.
        guidance: The range (low, high) that guidance scales are drawn from.
        steps: The range (low, high) that step counts are drawn from.
        batch_size: Prompts per pipeline call.
        dtype: Precision of stored floating-point tensors; None keeps the pipeline's.
    """

    rounds: list[StateSource] = Field(default=["teacher"], min_length=1)
    trajectories: Positive = Field(default=500, le=MOST_TRAJECTORIES)
    validation_trajectories: Positive = 16
    states_per_trajectory: Positive = 25
    guidance: tuple[Number, Number] = (2.0, 8.0)
    steps: tuple[Positive, Positive] = (20, 50)
    batch_size: Positive = 1
    dtype: Precision | None = None

    @model_validator(mode="after")
    def _ordered(self) -> RecordSettings:
        for name in ("guidance", "steps"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(
                    f"{name}: {low} to {high} is no range; write the lower bound first"
                )
        if self.rounds[0] == "student":
            raise ValueError("rounds: the first round cannot be 'student': nothing is trained yet")
        return self


class AdapterSettings(Section):
    """The LoRA.

    Attributes:
        targets: Layers with an adapter: ``attention``, ``linear``, ``all`` (convolutions and the
            outer layers too) or ``portable`` (all but those that some LoRA readers do not take).
        rank: Rank of every layer's update; alpha equals it.
        g_ref: The guidance scale that strength 1 stands for.
        dial: Whether strength is trained in proportion to guidance; otherwise strength is 1 at
            every guidance scale.
    """

    targets: Preset = "all"
    rank: Whole = Field(default=32, ge=1, le=1024)
    g_ref: Number = 7.5
    dial: Switch = True


class StudentSettings(Section):
    """A student that takes fewer steps than the teacher.

    Attributes:
        steps: Denoising steps of the student, fewer than the teacher's; unset, as many. The
            teacher then takes the least number of steps, from the lower bound of ``record.steps``
            on, whose timesteps include the student's; ``evaluate.steps`` counts the teacher's.
        rank: Rank of the steps LoRA, which is loaded at strength 1 beside the guidance LoRA; unset,
            ``adapter.rank``. Without a dial one LoRA folds both.
        guidance_run: Finished run whose guidance LoRA is taken unchanged, so that only the steps
            LoRA is trained; unset, both are trained.
    """

    steps: Whole | None = Field(default=None, ge=1, le=1000)
    rank: Whole | None = Field(default=None, ge=1, le=1024)
    guidance_run: Place | None = None


class EvaluateSettings(Section):
    """Measuring.

    Attributes:
        prompts: Number of held-out prompts that pictures are drawn for.
        steps: Denoising steps per picture.
        guidance: The teacher's guidance scale; None takes ``adapter.g_ref``.
        strength: The adapter's strength; None takes 1 (``adapter.g_ref``), or the strength that was
            measured for ``guidance``.
        batch_size: Prompts per pipeline call.
        state_prompts: Number of held-out prompts whose trajectories measure residual guidance.
        grid_prompts: Number of rows of the picture grid.
        dial_prompts: Number of held-out prompts that are drawn at each strength of the dial.
        diversity_seeds: Seeds that teacher and student draw each of the ``state_prompts`` with, to
            measure how far the pictures of one prompt are apart, in the features of ``features`` or
            the judge's; None measures no diversity.
        features: A vision model (folder or hub id, such as ``facebook/dinov2-small``) in whose
            features the sets of pictures are compared: Fréchet distance and recall.
        clip: A CLIP model (folder or hub id) that scores pictures against their prompts.
    """

    prompts: Positive = 64
    steps: Positive = 25
    guidance: Number | None = None
    strength: Number | None = None
    batch_size: Positive = 1
    state_prompts: Positive = 16
    grid_prompts: Positive = 8
    dial_prompts: Whole = Field(default=4, ge=0)
    diversity_seeds: Whole | None = Field(default=None, ge=2)
    features: Place | None = None
    clip: Place | None = None


class Settings(Section):
    """Everything a run depends on.

    Attributes:
        run: The run's folder.
        seed: All randomness follows from it; 0 to 2**63 - 1.
        threads: CPU threads, 1024 at most; None leaves torch's choice.
    """

    run: Place = Field(min_length=1)
    seed: Whole = Field(default=0, ge=0, le=LARGEST_SEED)
    threads: Positive | None = Field(default=None, le=1024)
    pipeline: PipelineSettings
    prompts: PromptSettings = PromptSettings()
    record: RecordSettings = RecordSettings()
    adapter: AdapterSettings = AdapterSettings()
    student: StudentSettings = StudentSettings()
    distill: DistillSettings = DistillSettings()
    evaluate: EvaluateSettings = EvaluateSettings()

    @property
    def steps_rank(self) -> int | None:
        """The rank of the steps LoRA; None of a run that trains a single LoRA."""
        if self.student.steps is None or not self.adapter.dial:
            return None
        return self.student.rank or self.adapter.rank

    @property
    def lora_roles(self) -> tuple[LoraRole, ...]:
        """What each of the run's LoRAs folds."""
        if self.steps_rank is not None:
            return ("guidance", "steps")
        return ("guidance",) if self.student.steps is None else ("both",)

    def steps_of(self, kind: Kind) -> int:
        """Denoising steps per picture of a kind."""
        few = self.student.steps
        return self.evaluate.steps if few is None or kind == "teacher" else few

    @model_validator(mode="after")
    def _few_steps_fit(self) -> Settings:
        for name in ("rank", "guidance_run"):
            if self.steps_rank is None and getattr(self.student, name) is not None:
                raise ValueError(
                    f"student.{name}: only a run with student.steps and adapter.dial=true has a "
                    "LoRA for steps of its own; leave it out"
                )
        if self.student.steps is None:
            return self
        g, (low, high) = self.adapter.g_ref, self.record.guidance
        if not self.adapter.dial and not low == high == g:
            raise ValueError(
                f"student.steps: {self.student.steps}, but without a dial one LoRA folds steps at "
                f"one guidance scale only; set record.guidance=[{g:g}, {g:g}] (adapter.g_ref is "
                f"{g:g}), or adapter.dial=true"
            )
        if "noise" in self.record.rounds:
            raise ValueError(
                f"student.steps: {self.student.steps}, but record.rounds is {self.record.rounds}: "
                "states of forward noise lie on no trajectory whose steps could be folded; use "
                "'teacher' and 'student'"
            )
        return self

    @model_validator(mode="after")
    def _teacher_keeps_its_weights(self) -> Settings:
        stored, library = self.distill.frozen_weights, self.pipeline.quantization
        if stored != "same" and library != "none":
            raise ValueError(
                f"distill.frozen_weights: '{stored}' would shrink weights that pipeline."
                f"quantization={library} has shrunk; set distill.frozen_weights=same to fold the "
                "quantised teacher, or pipeline.quantization=none to record it whole"
            )
        if stored != "same" and "student" in self.record.rounds:
            raise ValueError(
                f"distill.frozen_weights: '{stored}' changes the teacher's weights when training "
                f"begins, and record.rounds is {self.record.rounds}, which records the teacher "
                "after that; leave the 'student' rounds out, or set distill.frozen_weights=same"
            )
        return self
