"""Allocate modules from the meta device: random values, since they cost no memory or time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from guidefold.listen import tensors_of, tree_map


def materialise(modules: Iterable[nn.Module], device: torch.device | str) -> None:
    """Allocate modules that were built on the meta device, and write every byte.

    A tensor that two names share stays shared. Unlike ``to_empty`` this leaves no page untouched,
    which a system would not count, and it works within a fake tensor mode.

    Args:
        modules: Built under ``torch.device("meta")``.
        device: The device to allocate on.
    """
    made: dict[int, torch.Tensor] = {}

    def make(meta: torch.Tensor) -> torch.Tensor:
        if id(meta) not in made:
            made[id(meta)] = _filled(meta, device)
        return made[id(meta)]

    outermost = list(modules)
    # Python gives a freed tensor's id to the next one: keep all until every one is replaced.
    kept = [t for m in outermost for t in (*m.parameters(), *m.buffers())]
    for module in (inner for outer in outermost for inner in outer.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, make(parameter))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, make(buffer))
        for name, value in list(vars(module).items()):  # plain attributes, such as position tables
            if not name.startswith("_") and any(t.is_meta for t in tensors_of(value)):
                setattr(module, name, tree_map(make, value))
    del kept


def _filled(meta: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    values = torch.empty(meta.shape, dtype=meta.dtype, device=device)
    if meta.is_floating_point():
        values.uniform_(-0.02, 0.02)
    else:
        values.fill_(1)  # positions and the like must stay in range
    if isinstance(meta, nn.Parameter):
        return nn.Parameter(values, requires_grad=meta.requires_grad)
    return values
