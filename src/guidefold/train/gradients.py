"""Gradients of several processes, averaged as those of one batch.

DistributedDataParallel expects every parameter to be used in every step. A pipeline with two
denoisers calls one of them at a state, and the last block of some transformers computes values that
nothing reads: there it ends in "Expected to have finished reduction".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters


def average_gradients(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Set every gradient to its mean over all processes.

    A gradient that a process lacks counts as zeros; one that all processes lack stays None, so that
    the optimizer leaves the parameter as it is.

    Args:
        parameters: The trained parameters, in the same order in every process.
        accelerator: The launch's processes.
    """
    if accelerator.num_processes == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    has_gradient = gradients[0].new_tensor([p.grad is not None for p in parameters])
    counts = accelerator.reduce(has_gradient, "sum")
    vector_to_parameters(accelerator.reduce(parameters_to_vector(gradients), "mean"), gradients)
    for parameter, gradient, count in zip(parameters, gradients, counts.tolist(), strict=True):
        parameter.grad = gradient if count else None
