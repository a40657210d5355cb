"""Guidefold folds classifier-free guidance into a LoRA. The Python API is ``guidefold.api``.

Nothing that takes time is imported here, so that ``__main__`` soon catches Ctrl-C.
"""

import logging
import os

__version__ = "0.2.0"  # the one place: packaging and program read it here

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


quiet_libraries()  # before diffusers and transformers are imported, from Python too
