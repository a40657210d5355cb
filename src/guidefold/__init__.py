"""Guidefold folds classifier-free guidance into a LoRA. The Python API is ``guidefold.api``."""

from importlib.metadata import version

__version__ = version("guidefold")
