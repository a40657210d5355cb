"""The accelerator of a run, and the experiment trackers that its curves are sent to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs
from PIL.Image import Image

from guidefold.ground import ConfigError, compat
from guidefold.pipeline import resolve_device
from guidefold.run import RunFolder, Settings, flatten

PROJECT = "guidefold"
CURVES = ("loss", "gradient_norm", "learning_rate", "residual_guidance")
# Trackers that take pictures as rows of an array, with the arguments that they need for it.
PICTURES: dict[str, dict[str, str]] = {
    "tensorboard": {"dataformats": "NHWC"},
    "wandb": {},
    "swanlab": {},
}


@contextmanager
def open_accelerator(settings: Settings) -> Iterator[Accelerator]:
    """Make an accelerator, and reset accelerate's global state afterwards.

    Raises:
        ConfigError: A tracker is unknown, or not installed; the device does not exist here.
    """
    names = settings.distill.trackers
    check_trackers(names)
    place = _take_device(settings.pipeline.device)
    waits = InitProcessGroupKwargs(timeout=timedelta(days=1))  # recording may take hours
    try:
        yield Accelerator(
            mixed_precision=settings.distill.mixed_precision,
            cpu=place.type == "cpu",
            log_with=names or None,
            project_dir=RunFolder(settings.run).trackers,
            kwargs_handlers=[waits],
        )
    finally:
        compat.reset_accelerator()


def _take_device(device: str) -> torch.device:
    """Make the device of a setting the one that accelerate will take.

    Raises:
        ConfigError: It does not exist here, or several processes shall share it.
    """
    place = torch.device(resolve_device(device))
    if place.type == "cpu" or place.index is None:
        return place
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"pipeline.device: '{device}' is one device, and several processes were launched",
            f"Use pipeline.device={place.type}: each process then takes a device of its own.",
        )
    torch.accelerator.set_device_index(place.index)
    return place


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that cannot be used.

    Args:
        names: Tracker names, as in accelerate.

    Raises:
        ConfigError: One is unknown, or its package is not installed.
    """
    for name in names:
        if name not in compat.tracker_names():
            raise ConfigError(
                f"distill.trackers: '{name}' is no tracker that accelerate knows",
                f"It knows: {', '.join(compat.tracker_names())}.",
            )
        if name not in list(map(str, get_available_trackers())):
            extra = "'guidefold[tensorboard]'" if name == "tensorboard" else name
            raise ConfigError(
                f"distill.trackers: '{name}' is not installed",
                f"Install it with pip install {extra}, or leave it out.",
            )


@contextmanager
def tracking(accelerator: Accelerator, settings: Settings, step: int) -> Iterator[None]:
    """Open the run's trackers, and close them when training ends, stops or fails.

    Args:
        accelerator: From :func:`open_accelerator`.
        settings: The run's configuration, which the trackers show.
        step: Steps done before; the curves continue from there.
    """
    # Steps that a crashed process sent after its last checkpoint will be sent again.
    later = {"tensorboard": {"purge_step": step + 1}}
    accelerator.init_trackers(PROJECT, _plain(settings), later)
    try:
        yield
    finally:
        # Not end_training: it also ends the process group, which a later run needs.
        for tracker in accelerator.trackers:
            tracker.finish()


def track(accelerator: Accelerator, line: Mapping[str, Any]) -> None:
    """Send the figures of a log line to the trackers, without those that are None."""
    figures = {name: line[name] for name in CURVES if line.get(name) is not None}
    accelerator.log(figures, step=line["step"])


def track_picture(accelerator: Accelerator, picture: Image, step: int) -> None:
    """Send a picture to the trackers that can show one."""
    pixels = np.asarray(picture.convert("RGB"))[None]  # (1, height, width, 3)
    for tracker in accelerator.trackers:
        if tracker.name in PICTURES:
            tracker.log_images({"previews": pixels}, step=step, **PICTURES[tracker.name])


def _plain(settings: Settings) -> dict[str, bool | int | float | str]:
    """Settings by dotted name, lists as text: trackers take plain values only."""
    values = flatten(settings.model_dump(mode="json", exclude_none=True))
    return {n: json.dumps(v) if isinstance(v, list) else v for n, v in values.items()}
