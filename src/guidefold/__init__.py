"""Guidefold folds classifier-free guidance into a LoRA. The Python API is ``guidefold.api``."""

from importlib.metadata import version

from guidefold.ground import quiet_libraries

quiet_libraries()  # before diffusers and transformers are imported, from Python too

__version__ = version("guidefold")
