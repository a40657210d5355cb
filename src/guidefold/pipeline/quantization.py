"""Open a pipeline with the linear layers of its large components quantised by a library.

Which components these are follows from their classes: the denoiser, networks that steer it, and
text encoders. Autoencoders and vision encoders keep their weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, ModelMixin, PipelineQuantizationConfig
from torch import nn
from transformers import PreTrainedModel

from guidefold.ground import ConfigError, PipelineError, compat
from guidefold.pipeline.index import component_class, components
from guidefold.run import Offload, Quantization

INSTALLED_AS = {
    "bitsandbytes_4bit": ("bitsandbytes", "lean"),
    "bitsandbytes_8bit": ("bitsandbytes", "lean"),
    "torchao_int8": ("torchao", "torchao"),
    "quanto_int8": ("optimum", "quanto"),
}
"""By quantisation: the library's package, and the extra of this package that installs it."""

MOVED_WHOLE: dict[str, tuple[Offload, ...]] = {
    "bitsandbytes_4bit": ("sequential",),
    "bitsandbytes_8bit": ("group", "sequential"),
    "quanto_int8": ("group", "sequential"),
}
"""By quantisation, the ways of offloading that cannot move its layers by themselves: the library
keeps their weights where they were, or cannot move them (docs/log.md)."""


def check_movable(name: Quantization, how: Offload) -> None:
    """Refuse to offload layers that cannot be moved by themselves.

    Raises:
        ConfigError: Names both settings.
    """
    if not is_movable(name, how):
        raise ConfigError(
            f"pipeline.offload: '{how}' cannot move the layers of pipeline.quantization={name}",
            "Set pipeline.offload=component, or pipeline.quantization=torchao_int8.",
        )


def is_movable(name: Quantization, how: Offload) -> bool:
    """Whether layers of a quantisation can be offloaded in a way."""
    return how not in MOVED_WHOLE.get(name, ())


def can_quantize(name: Quantization) -> bool:
    """Whether a quantisation can be done here."""
    try:
        check_quantization(name)
    except ConfigError:
        return False
    return True


def check_quantization(name: Quantization) -> None:
    """Refuse a quantisation that cannot be done here.

    Raises:
        ConfigError: Its library is not installed, too old, or needs another device.
    """
    if name == "none":
        return
    package, extra = INSTALLED_AS[name]
    if find_spec(package) is None:
        raise ConfigError(
            f"pipeline.quantization: '{name}' needs a package that is not installed",
            f"Install it with pip install 'guidefold[{extra}]', or set pipeline.quantization=none.",
        )
    try:
        compat.check_quantizer(_config(name, diffusers, torch.float32))
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"pipeline.quantization: '{name}' cannot be used here: {str(error).splitlines()[0]}",
            "Use another one that fits this machine (torchao_int8 also runs on a CPU), or none.",
        ) from error


def quantization_config(
    name: Quantization, index: Mapping[str, Any], dtype: torch.dtype
) -> PipelineQuantizationConfig:
    """What diffusers' loader takes to quantise a pipeline.

    Args:
        name: Any but ``none``.
        index: The pipeline's ``model_index.json``.
        dtype: The precision that the layers compute in.
    """
    libraries = {n: _library(kind) for n, kind in _large(index)}
    return PipelineQuantizationConfig(
        quant_mapping={n: _config(name, library, dtype) for n, library in libraries.items()}
    )


def check_quantized(
    pipeline: DiffusionPipeline, name: Quantization, index: Mapping[str, Any]
) -> None:
    """Refuse a pipeline of which a large component kept its weights: the libraries say nothing.

    Raises:
        PipelineError: Names the component.
    """
    for part, _ in _large(index):
        module = getattr(pipeline, part)
        linear = isinstance(module, nn.Module) and any(
            isinstance(layer, nn.Linear) for layer in module.modules()
        )
        if linear and not is_quantized(module):
            raise PipelineError(
                f"pipeline.quantization: '{name}' has quantised no layer of {part} "
                f"({type(module).__name__})",
                "Its layers may be too small for that: use another quantisation, or none.",
            )


def is_quantized(module: nn.Module, *, recurse: bool = True) -> bool:
    """Whether a library stores some of a module's weights in a way of its own.

    Args:
        module: The module.
        recurse: Whether its children count too.
    """
    return any(type(weight) is not nn.Parameter for weight in module.parameters(recurse))


def stored_tensors(layer: nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a module itself, without its children's, as they lie in memory.

    Of a quantised layer these are the numbers of few bits and their scales, several to a name.

    Args:
        layer: The module.
        prefix: The module's name, which the tensors' names begin with.
    """
    if is_quantized(layer, recurse=False):
        for name, tensor in layer.state_dict(prefix=prefix and f"{prefix}.").items():
            yield from ((name, part) for part in _plain_parts(tensor))
        return
    yield from layer.named_parameters(prefix, recurse=False, remove_duplicate=False)
    yield from layer.named_buffers(prefix, recurse=False, remove_duplicate=False)


def stored_bytes(module: nn.Module) -> int:
    """The memory that a module's weights and buffers take."""
    return sum(t.nbytes for layer in module.modules() for _, t in stored_tensors(layer))


def _plain_parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that a tensor of a library's own class consists of; or itself."""
    names = compat.inner_tensors(tensor)
    for name in names:
        yield from _plain_parts(getattr(tensor, name))
    if not names:
        yield tensor


def _large(index: Mapping[str, Any]) -> Iterator[tuple[str, type[nn.Module]]]:
    """The components whose linear layers are quantised, with their classes."""
    for name, entry in components(index).items():
        kind = component_class(*entry)
        if kind is not None and quantizable(kind):
            yield name, kind


def quantizable(kind: type[nn.Module]) -> bool:
    """Whether a class is that of a denoiser, a network that steers it, or a text encoder."""
    if issubclass(kind, ModelMixin):
        return compat.supports_checkpointing(kind) and not hasattr(kind, "decode")
    takes_tokens = "input_ids" in inspect.signature(kind.forward).parameters
    return issubclass(kind, PreTrainedModel) and takes_tokens


def _library(kind: type[nn.Module]) -> Any:
    return diffusers if issubclass(kind, ModelMixin) else transformers


def _config(name: Quantization, library: Any, dtype: torch.dtype) -> Any:
    """The library's configuration of a quantisation; diffusers and transformers have their own."""
    if name == "quanto_int8":
        weights = "weights_dtype" if library is diffusers else "weights"
        return library.QuantoConfig(**{weights: "int8"})
    if name == "torchao_int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return library.TorchAoConfig(Int8WeightOnlyConfig())
    if name == "bitsandbytes_8bit":
        return library.BitsAndBytesConfig(load_in_8bit=True)
    return library.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
