"""Modules without memory, and the memory they are given: random, since values cost nothing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from guidefold.listen import tensors_of, tree_map


def occupy(modules: Iterable[nn.Module], device: torch.device | str) -> None:
    """Give modules that were built on the meta device memory of their own, every byte written.

    A tensor that two names share stays shared. Unlike ``to_empty`` this leaves no page untouched,
    which a system would not count, and it works within a fake tensor mode.

    Args:
        modules: Built under ``torch.device("meta")``.
        device: Where to.
    """
    made: dict[int, torch.Tensor] = {}

    def make(plan: torch.Tensor) -> torch.Tensor:
        if id(plan) not in made:
            made[id(plan)] = _filled(plan, device)
        return made[id(plan)]

    kept = list(modules)  # no plan may die before its double: an id would come up twice
    plans = [t for m in kept for t in (*m.parameters(), *m.buffers())]
    for module in (inner for outer in kept for inner in outer.modules()):
        for name, plan in module.named_parameters(recurse=False):
            setattr(module, name, make(plan))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, make(buffer))
        for name, value in list(vars(module).items()):  # tables that are no buffers
            if not name.startswith("_") and any(t.is_meta for t in tensors_of(value)):
                setattr(module, name, tree_map(make, value))
    del plans


def _filled(plan: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    values = torch.empty(plan.shape, dtype=plan.dtype, device=device)
    if plan.is_floating_point():
        values.uniform_(-0.02, 0.02)
    else:
        values.fill_(1)  # positions and the like must stay in range
    if isinstance(plan, nn.Parameter):
        return nn.Parameter(values, requires_grad=plan.requires_grad)
    return values
