"""The device that a pipeline runs on: one function decides for every verb."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

import torch

from guidefold.ground import ConfigError, console, shown
from guidefold.pipeline.memory import device_memory


@dataclass(frozen=True)
class Device:
    """A device of this machine.

    Attributes:
        name: As ``pipeline.device`` takes it.
        title: Its maker's name for it; of the CPU, its number of cores.
        free_bytes: Memory that is free now; None where it is not known.
        total_bytes: All of its memory; None where it is not known.
        reason: Why it cannot be used; empty where it can.
    """

    name: str
    title: str
    free_bytes: int | None
    total_bytes: int | None
    reason: str


def list_devices() -> list[Device]:
    """Every accelerator that torch is built for, usable or not, and the CPU."""
    kind = torch.accelerator.current_accelerator()
    names = []
    if kind is not None:
        count = torch.accelerator.device_count()
        names = [f"{kind.type}:{number}" for number in range(count)] or [kind.type]
    return [_describe(torch.device(name)) for name in (*names, "cpu")]


def _describe(device: torch.device) -> Device:
    reason = _fails(device)
    title = f"{os.cpu_count()} cores" if device.type == "cpu" else device.type
    title_of = getattr(torch.get_device_module(device), "get_device_name", None)
    if title_of is not None and device.type != "cpu" and not reason:
        title = title_of(device)
    free, total = (None, None) if reason else device_memory(device) or (None, None)
    return Device(str(device), title, free, total, reason)


def resolve_device(device: str) -> str:
    """``"auto"`` becomes the accelerator if it can be used, else the CPU.

    Raises:
        ConfigError: The device does not exist here.
    """
    if device == "auto":
        found = _accelerator()
        return "cpu" if found is None else found.type
    if reason := _unusable(device):
        raise ConfigError(
            f"pipeline.device: '{shown(device)}' cannot be used here ({reason})",
            f"Use pipeline.device={_usable()}.",
        )
    return device


def _accelerator() -> torch.device | None:
    """The accelerator that torch can use now; None without one, after a sentence that says why."""
    # A build for an accelerator names it without a driver too: only this says if it can be used.
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator()
    built_for = torch.accelerator.current_accelerator()
    if built_for is not None:
        _say_once(
            f"This torch is built for {built_for.type}, but finds no such device or driver here: "
            "the CPU is used."
        )
    return None


def _usable() -> str:
    """The values of ``pipeline.device`` that can be used here, in words."""
    found = _accelerator()
    if found is None:
        return "auto or cpu"
    last = torch.accelerator.device_count() - 1
    numbered = f"{found.type}:0" + (f" to {found.type}:{last}" if last else "")
    return f"auto, {found.type}, {numbered} or cpu"


def _unusable(name: str) -> str:
    """Why a device cannot be used; empty if it can."""
    try:
        device = torch.device(name)
    except RuntimeError:  # torch's message lists everything that it was ever built for
        return "torch knows no such device"
    return _unusable_by_name(device) or _fails(device)


def _fails(device: torch.device) -> str:
    """What torch says when it computes on a device; empty if it can."""
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return ""


def _unusable_by_name(device: torch.device) -> str:
    """Why a device cannot be used, as far as its name tells."""
    if device.type == "cpu":
        return "there is one CPU, without a number" if device.index else ""
    found = _accelerator()
    if found is None:
        return "torch finds no accelerator"
    if device.type != found.type:
        return f"torch finds {found.type} alone"
    count = torch.accelerator.device_count()
    return f"there are {count} of them" if (device.index or 0) >= count else ""


@cache
def _say_once(sentence: str) -> None:
    console.print(sentence)
