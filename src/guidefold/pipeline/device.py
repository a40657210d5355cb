"""The device that a pipeline runs on: one function decides for every verb."""

from __future__ import annotations

from functools import cache

import torch

from guidefold.ground import ConfigError, console, shown


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
    try:
        if not (reason := _unusable_by_name(device)):
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return reason


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
    console.print(sentence, markup=False)
