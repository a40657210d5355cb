"""Settings that fit this machine's device, for ``distill --fit``."""

from __future__ import annotations

from guidefold.cli.options import loading
from guidefold.ground import ConfigError, console
from guidefold.run import Settings


def fitting(settings: Settings) -> list[str]:
    """The fastest settings that fit the device's free memory, as ``section.key=value``.

    Args:
        settings: The run's.

    Raises:
        ConfigError: None fit, or the free memory is not known.
    """
    with loading():
        from guidefold.bench.memory import GIB, Choices, describe_fit, free_memory
        from guidefold.pipeline import resolve_device

    device = resolve_device(settings.pipeline.device)
    free = free_memory(device)
    if free is None:
        raise ConfigError(
            f"--fit: the free memory of '{device}' cannot be asked for here",
            "Choose the settings with guidefold plan --memory GIB.",
        )
    fit = Choices(settings, here=True, offloads=device != "cpu").fastest(free)
    if fit is None:
        raise ConfigError(
            f"--fit: no settings fit the {free / GIB:.1f} GiB that are free on {device}",
            "Use a smaller size (pipeline.call), a smaller adapter.rank, or a larger device.",
        )
    console.print(f"{free / GIB:.1f} GiB are free on {device}.")
    console.print(describe_fit(fit, settings))
    return fit.overrides(settings)
