"""The settings of training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from guidefold.run.values import Number, Positive, Section, Switch, Text, Whole

Storage = Literal["same", "bf16", "int8", "int4"]
OptimizerName = Literal["adamw", "adamw8bit", "muon"]


class DistillSettings(Section):
    """Training.

    Attributes:
        steps: Total number of optimizer steps.
        batch_size: States per optimizer step and process.
        accumulation: Pieces that a batch is cut into, to save memory.
        learning_rate: Highest learning rate of the schedule.
        warmup: Steps of linear warm-up.
        schedule: Course of the learning rate after the warm-up.
        weight_decay: Decoupled weight decay.
        max_grad_norm: Norm to which gradients are clipped.
        loss: Loss of a sample: ``normalised`` (it is residual guidance) or ``plain`` squared error.
        strength_floor: Lowest strength that the normalised loss divides by.
        normaliser_states: Number of states at which the size of the guidance is measured before
            training.
        frozen_weights: Storage of the frozen weights of linear layers and convolutions during
            training: ``same`` as recorded, ``bf16``, ``int8``, or ``int4`` (linear layers in 4
            bits, convolutions in 8). A layer restores its weights to the pipeline's precision while
            it computes. Recording before training and measuring after it use the weights in
            ``pipeline.dtype``.
        optimizer: Optimizer: ``adamw``, ``adamw8bit`` with moments of one byte (the extra
            ``guidefold[lean]``), or ``muon``, which keeps one moment in place of two.
        mixed_precision: Autocast precision of the student's passes.
        gradient_checkpointing: Whether activations are computed twice to save memory.
        log_every: Steps between log lines.
        validate_every: Steps between validations on held-out prompts.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: Number of checkpoints that stay on the disk.
        preview_prompts: Number of held-out prompts that are drawn: by the teacher before recording,
            by the student during training, with the settings of ``evaluate``. 0 draws none.
        preview_every: Steps between previews; the first and the last step are always drawn.
        trackers: Experiment trackers that accelerate knows, such as ``tensorboard`` or ``wandb``.
    """

    steps: Positive = 2000
    batch_size: Positive = 8
    accumulation: Positive = 1
    learning_rate: Number = Field(default=5e-4, gt=0)
    warmup: Whole = Field(default=50, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: Number = Field(default=0.0, ge=0)
    max_grad_norm: Number = Field(default=1.0, gt=0)
    loss: Literal["normalised", "plain"] = "normalised"
    strength_floor: Number = Field(default=0.2, gt=0)
    normaliser_states: Positive = 256
    frozen_weights: Storage = "same"
    optimizer: OptimizerName = "adamw"
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    gradient_checkpointing: Switch = False
    log_every: Positive = 10
    validate_every: Positive = 250
    checkpoint_every: Positive = 250
    keep_checkpoints: Positive = 2
    preview_prompts: Whole = Field(default=2, ge=0)
    preview_every: Positive = 500
    trackers: list[Text] = Field(default=[])

    @model_validator(mode="after")
    def _divisible(self) -> DistillSettings:
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation: {self.accumulation} does not divide batch_size {self.batch_size}"
            )
        return self
