"""Training states on disk: one safetensors file and one JSON file, finished or absent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_TENSORS, _FACTS = "state.safetensors", "state.json"


class Averaged:
    """An exponential moving average of parameters, in float32.

    The decay starts low and rises to `decay`, so that the first steps are soon forgotten.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: dict[str, nn.Parameter], step: int) -> None:
        """Move towards the parameters after training step `step`, counted from 0."""
        keep = min(self.decay, (1 + step) / (10 + step))
        values = list(self.values.values())
        torch._foreach_lerp_(values, [parameters[name] for name in self.values], 1 - keep)

    @torch.no_grad()
    def copy_to(self, parameters: dict[str, nn.Parameter]) -> None:
        """Write the averages into the parameters."""
        for name, value in self.values.items():
            parameters[name].copy_(value)


def write_state(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a state: into a folder beside it first, which then takes its name.

    Args:
        folder: Folder of the state; an older state is replaced.
        tensors: Tensors by name, on any device.
        facts: Anything that JSON can hold.
    """
    fresh, stale = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (fresh, stale):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(held, fresh / _TENSORS)
    (fresh / _FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    if folder.exists():
        folder.rename(stale)
    fresh.rename(folder)
    shutil.rmtree(stale, ignore_errors=True)


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read what `write_state` wrote, or what it was replacing when it was cut off.

    Args:
        folder: The folder given to `write_state`.

    Returns:
        Tensors on the CPU and facts, or None where there is no finished state.
    """
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if candidate.exists():
            facts = json.loads((candidate / _FACTS).read_text(encoding="utf-8"))
            return load_file(candidate / _TENSORS), facts
    return None


def training_tensors(
    parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, averaged: Averaged
) -> dict[str, Tensor]:
    """Everything that one more training step depends on, by name."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter.{name}"] = parameter
        tensors[f"averaged.{name}"] = averaged.values[name]
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}.{name}"] = value
    return tensors


@torch.no_grad()
def restore_training(
    tensors: dict[str, Tensor],
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    averaged: Averaged,
) -> None:
    """Undo `training_tensors`: fill parameters, averages and optimizer moments.

    Args:
        tensors: Tensors from `training_tensors`.
        parameters: Parameters by the same names, in the optimizer's order.
        optimizer: A fresh optimizer over them.
        averaged: A fresh average of them.
    """
    moments: dict[int, dict[str, Tensor]] = {}
    for place, (name, parameter) in enumerate(parameters.items()):
        parameter.copy_(tensors[f"parameter.{name}"])
        averaged.values[name].copy_(tensors[f"averaged.{name}"])
        moments[place] = {
            moment: tensors[f"{moment}.{name}"]
            for moment in ("step", "exp_avg", "exp_avg_sq")
            if f"{moment}.{name}" in tensors
        }
    state = optimizer.state_dict()
    optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
