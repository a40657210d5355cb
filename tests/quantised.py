"""Teachers that a library quantises, opened on a CPU: bitsandbytes computes there, but diffusers'
loader asks for a GPU first.
"""

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.quantizers.bitsandbytes import bnb_quantizer

from guidefold.pipeline.offloading import OFFLOADERS
from guidefold.run.settings import Settings

# Of diffusers' own loader for quanto.
WARNINGS = ("ignore:`Quanto.*` is deprecated:FutureWarning",)


def let_bitsandbytes_use_the_cpu(patch: pytest.MonkeyPatch) -> None:
    """Its plain code on every CPU: that for AVX512-BF16 takes 32, 64 ... outputs alone."""
    patch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    for kind in (bnb_quantizer.BnB4BitDiffusersQuantizer, bnb_quantizer.BnB8BitDiffusersQuantizer):
        patch.setattr(kind, "validate_environment", lambda *_args, **_options: None)
        patch.setattr(kind, "update_device_map", lambda _self, given: given or {"": "cpu"})


def let_offloading_use_the_cpu(patch: pytest.MonkeyPatch) -> None:
    """The CPU as the accelerator that layers come to: their hooks run, and move nothing."""

    def offload(pipeline: DiffusionPipeline, how: str, _device: str) -> None:
        OFFLOADERS[how](pipeline, torch.device("cpu"))

    for user in ("guidefold.pipeline.offloading.offload", "guidefold.session.offload"):
        patch.setattr(user, offload)


def with_pipeline(settings: Settings, **changes: object) -> Settings:
    """The same settings but for some of ``pipeline``, checked again."""
    values = settings.model_dump()
    return Settings.model_validate({**values, "pipeline": {**values["pipeline"], **changes}})
