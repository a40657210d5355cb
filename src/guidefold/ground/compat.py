"""What other libraries keep to themselves, and Guidefold needs: one small function for each.

These names are private, experimental or read from sources, and a new version may change them. Each
is looked up when it is needed, so that a change breaks one function, with a sentence, and not the
import of the package. No other module reads such names (``tests/test_architecture.py``).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import Any, cast

import torch
from torch import nn

from guidefold.ground.errors import LibraryError


def guidance_class() -> type:
    """The class of the components that guide, of diffusers' modular kind."""
    return cast("type", _lookup("diffusers.guiders.guider_utils", "BaseGuidance"))


def single_file_error() -> type[Exception]:
    """What diffusers raises where a checkpoint of one file lacks a component."""
    error = _lookup("diffusers.loaders.single_file_utils", "SingleFileComponentError")
    return cast("type[Exception]", error)


def missing_component(error: BaseException | None) -> str | None:
    """The component that a checkpoint lacks, by diffusers' own error; None for any other error."""
    if not isinstance(error, single_file_error()):
        return None
    found = re.search(r"^(\w+) = \w+\.from_pretrained", str(error), re.MULTILINE)
    return found and found[1]


def single_file_config(path: str) -> str:
    """The hub id whose configuration fits a checkpoint, as diffusers infers it from its keys."""
    load = _lookup("diffusers.loaders.single_file_utils", "load_single_file_checkpoint")
    infer = _lookup("diffusers.loaders.single_file_utils", "fetch_diffusers_config")
    return str(infer(load(path))["pretrained_model_name_or_path"])


def pipelines_for(task: str) -> set[str]:
    """The classes of pipelines that diffusers lists for a task, such as ``TEXT2IMAGE``."""
    listed = _lookup("diffusers.pipelines.auto_pipeline", f"AUTO_{task}_PIPELINES_MAPPING")
    return {kind.__name__ for kind in listed.values()}


def network_errors() -> tuple[type[Exception], ...]:
    """What the hub's HTTP client raises, whichever that is: the hub's own error derives from it."""
    error = _lookup("huggingface_hub.errors", "HfHubHTTPError")
    return cast("tuple[type[Exception], ...]", error.__bases__)


def check_repository_name(name: str) -> None:
    """Raise the hub's HFValidationError for what is no name of a repository."""
    _lookup("huggingface_hub.utils", "validate_repo_id")(name)


def tracker_names() -> list[str]:
    """The trackers that accelerate knows, installed or not."""
    return sorted(map(str, _lookup("accelerate.tracking", "LOGGER_TYPE_TO_CLASS")))


def reset_accelerator() -> None:
    """Let the next accelerator have settings of its own, its device too; a process group stays."""
    state = _lookup("accelerate.state", "AcceleratorState")
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    _attribute(state, "_reset_state")(reset_partial_state=not grouped)


def supports_checkpointing(module: nn.Module | type[nn.Module]) -> bool:
    """Whether a model, or its class, has gradient checkpointing."""
    name = "_supports_gradient_checkpointing"
    _attribute(_lookup("diffusers", "ModelMixin"), name)
    return bool(getattr(module, name, False))


def lora_components(pipeline: object) -> Collection[str]:
    """The components that a pipeline's ``load_lora_weights`` loads onto."""
    name = "_lora_loadable_modules"
    _attribute(_lookup("diffusers.loaders.lora_base", "LoraBaseMixin"), name)
    return cast("Collection[str]", getattr(pipeline, name, ()))


def remove_adapters(module: nn.Module) -> None:
    """Take peft's layers out of a denoiser, and diffusers' notes that there are some."""
    # Not every class of denoisers has diffusers' unload_lora.
    _lookup("diffusers.utils", "recurse_remove_peft_layers")(module)
    name = "_hf_peft_config_loaded"
    _attribute(_lookup("diffusers.loaders.peft", "PeftAdapterMixin"), name)
    for part in (module, *module.children()):  # several denoisers are a module of modules
        if hasattr(part, "peft_config"):
            del part.peft_config
        if hasattr(part, name):  # else diffusers believes that one is loaded
            setattr(part, name, False)


def execution_device(pipeline: object) -> torch.device:
    """The device that a pipeline computes on, wherever its weights wait; the CPU for a stand-in."""
    name = "_execution_device"
    _attribute(_lookup("diffusers", "DiffusionPipeline"), name)
    return cast("torch.device", getattr(pipeline, name, torch.device("cpu")))


def check_quantizer(config: Any) -> None:
    """Raise diffusers' ImportError or RuntimeError where it cannot quantise as configured here."""
    find = _lookup("diffusers.quantizers.auto", "DiffusersAutoQuantizer").from_config
    find(config).validate_environment()


def inner_tensors(tensor: torch.Tensor) -> list[str]:
    """The attributes in which a tensor of a library's own class holds others; empty for most."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    return [] if flatten is None else list(flatten()[0])


def remove_group_offloading(module: nn.Module) -> None:
    """Take diffusers' group offloading off a module, as diffusers does before it changes layers."""
    where = "diffusers.hooks.group_offloading"
    if not _lookup(where, "_is_group_offload_enabled")(module):
        return
    registry = _lookup("diffusers.hooks", "HookRegistry").check_if_exists_or_initialize(module)
    for name in ("GROUP_OFFLOADING", "LAYER_EXECUTION_TRACKER", "LAZY_PREFETCH_GROUP_OFFLOADING"):
        registry.remove_hook(_lookup(where, f"_{name}"), recurse=True)


def callback_tensors(pipeline: object) -> list[str]:
    """The tensors that a pipeline gives to a callback at the end of a step, where it names any."""
    return list(getattr(pipeline, "_callback_tensor_inputs", ()))


def set_guidance(pipeline: object, argument: str, value: float) -> None:
    """Change, in the midst of a run, the guidance that its call was given."""
    setattr(pipeline, f"_{argument}", value)


def names_latents(pipeline: object) -> bool:
    """Whether a pipeline's source names the output type ``"latent"``: nothing else tells."""
    return '"latent"' in _source(cast("Any", type(pipeline)))


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` wrapped, or the module itself."""
    return cast("nn.Module", getattr(module, "_orig_mod", module))


def is_named_tuple(kind: type) -> bool:
    """Whether a class is one of named tuples: they have no class of their own."""
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


def fake_tensor_mode() -> Any:
    """A context in which tensors have shapes, types and storages, but no memory."""
    return _lookup("torch._subclasses.fake_tensor", "FakeTensorMode")()


def is_fake(tensor: object) -> bool:
    """Whether a tensor was made in :func:`fake_tensor_mode`."""
    return isinstance(tensor, _lookup("torch._subclasses.fake_tensor", "FakeTensor"))


def storage_key(storage: Any) -> int:
    """What tells a living storage from the others, also one without memory."""
    return int(_attribute(storage, "_cdata", "torch"))


def reads_number(operation: object) -> bool:
    """Whether an operation of torch is that of ``tensor.item()``."""
    return operation is _operation("aten", "_local_scalar_dense")


def reads_device(operation: object) -> bool:
    """Whether an operation of torch is that of ``tensor.device``, asked of a fake tensor."""
    return operation is _operation("prim", "device")


@cache  # asked at every operation
def _operation(group: str, name: str) -> object:
    return _attribute(getattr(_lookup("torch", "ops"), group), name, "torch").default


@cache
def _source(kind: type) -> str:
    return inspect.getsource(kind)  # slow: it compiles the file


def _lookup(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise _missing(module.split(".", maxsplit=1)[0], f"{module}.{name}") from error


def _attribute(owner: Any, name: str, library: str = "") -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        where = getattr(owner, "__qualname__", type(owner).__qualname__)
        library = library or owner.__module__.split(".")[0]
        raise _missing(library, f"{where}.{name}") from error


def _missing(library: str, what: str) -> LibraryError:
    return LibraryError(
        f"{library} {version(library)} has no {what}, which Guidefold needs",
        f"Install a version of {library} that Guidefold was tested with.",
    )
