"""The user's inputs: prompts, media, and a diffusers pipeline.

A pipeline is opened safely, without remote code, and searched for signs that it is already
distilled; several denoisers become one module.
"""

from guidefold.pipeline.already_distilled import refuse_folded, signs_of_distillation
from guidefold.pipeline.denoisers import COMPONENT, Denoisers, as_one_module, denoisers, unwrap
from guidefold.pipeline.descriptions import (
    DESCRIPTIONS,
    class_of,
    describe_source,
    described_names,
    has_vocabulary,
    read_description,
)
from guidefold.pipeline.device import Device, list_devices, resolve_device
from guidefold.pipeline.index import check_folder
from guidefold.pipeline.loading import loading_errors
from guidefold.pipeline.media import Media, open_media
from guidefold.pipeline.memory import device_memory, peak_memory
from guidefold.pipeline.noise_schedule import (
    open_scheduler,
    prediction_type,
    stated_schedule,
    zero_terminal_snr,
)
from guidefold.pipeline.offloading import offload, open_placed, stop_offloading
from guidefold.pipeline.open import (
    DTYPES,
    bundled_teacher,
    fingerprint,
    modules,
    open_pipeline,
    pipeline_class,
    pipeline_identity,
)
from guidefold.pipeline.prompts import (
    Prompt,
    count_duplicates,
    load_prompts,
    read_prompts,
    split_prompts,
)
from guidefold.pipeline.quantization import (
    can_quantize,
    check_quantization,
    is_movable,
    is_quantized,
    quantizable,
    stored_bytes,
)
from guidefold.pipeline.single_file import describe_single_file
from guidefold.pipeline.solver import (
    change_solver,
    install_scheduler,
    single_step_solvers,
)
from guidefold.pipeline.vision_model import (
    CLIP,
    VISION,
    check_vision_models,
    open_vision_model,
)

__all__ = [
    "CLIP",
    "COMPONENT",
    "DESCRIPTIONS",
    "DTYPES",
    "VISION",
    "Denoisers",
    "Device",
    "Media",
    "Prompt",
    "as_one_module",
    "bundled_teacher",
    "can_quantize",
    "change_solver",
    "check_folder",
    "check_quantization",
    "check_vision_models",
    "class_of",
    "count_duplicates",
    "denoisers",
    "describe_single_file",
    "describe_source",
    "described_names",
    "device_memory",
    "fingerprint",
    "has_vocabulary",
    "install_scheduler",
    "is_movable",
    "is_quantized",
    "list_devices",
    "load_prompts",
    "loading_errors",
    "modules",
    "offload",
    "open_media",
    "open_pipeline",
    "open_placed",
    "open_scheduler",
    "open_vision_model",
    "peak_memory",
    "pipeline_class",
    "pipeline_identity",
    "prediction_type",
    "quantizable",
    "read_description",
    "read_prompts",
    "refuse_folded",
    "resolve_device",
    "signs_of_distillation",
    "single_step_solvers",
    "split_prompts",
    "stated_schedule",
    "stop_offloading",
    "stored_bytes",
    "unwrap",
    "zero_terminal_snr",
]
