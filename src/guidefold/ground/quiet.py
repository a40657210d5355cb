"""Notes of other libraries that tell a user of Guidefold nothing: kept away in one place."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

VERBOSITIES = ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY")
"""Environment variables that decide how much a library says; one that is set keeps its value."""


def quiet_libraries() -> None:
    """Let libraries that are imported from now on report errors alone.

    Diffusers and transformers note on import that torchvision is missing, and on opening which
    layers they do not shard; peft imports bitsandbytes where it is installed, which notes that it
    has no kernels for the CPU.
    """
    for name in VERBOSITIES:
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep diffusers' notes away within the context, also if it was imported before Guidefold."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    if level <= logging.WARNING and os.environ.get(VERBOSITIES[0], "error") == "error":
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
