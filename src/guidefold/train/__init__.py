"""Train the student on recorded states.

Batches, loss, optimizer, measurements of the teacher, checkpoints, the loop, and the
calibration of the dial. Takes tensors and numbers, settings only at its door.
"""

from guidefold.train.batches import random_subset
from guidefold.train.calibrate import calibrate
from guidefold.train.checkpoints import load_checkpoint
from guidefold.train.distill import Training, distill, distill_launch
from guidefold.train.launch import Launch, open_launch, open_to_train
from guidefold.train.loss import mean_residual, residual_by_level, squared_error
from guidefold.train.optimizer import LIBRARY, Updates, make_optimizer
from guidefold.train.resume import check_settings
from guidefold.train.student import Student, lora_student

__all__ = [
    "LIBRARY",
    "Launch",
    "Student",
    "Training",
    "Updates",
    "calibrate",
    "check_settings",
    "distill",
    "distill_launch",
    "load_checkpoint",
    "lora_student",
    "make_optimizer",
    "mean_residual",
    "open_launch",
    "open_to_train",
    "random_subset",
    "residual_by_level",
    "squared_error",
]
