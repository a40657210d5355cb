"""The LoRA on the teacher's own weights: the only file that imports peft.

Attaching changes the teacher by not one bit. :meth:`Adapter.teacher_mode` is the only switch
between teacher and student; :meth:`Adapter.student_mode` sets each sample's strength.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from torch import nn

from guidefold import compat
from guidefold.denoisers import unwrap
from guidefold.errors import CorruptFileError, InputError, MismatchError, UnfoldableError
from guidefold.randomness import derive_seed
from guidefold.targets import find_targets

NAME = "guidefold"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"


@dataclass
class Adapter:
    """A LoRA attached to a denoiser. Make one with :func:`attach`.

    Attributes:
        denoiser: The teacher's module, its linear layers and convolutions wrapped in place.
        rank: The rank; alpha equals it.
        layers: The adapted layers by name.
        left_out: Layers that the preset names but that cannot be wrapped, with the reason.
    """

    denoiser: nn.Module
    rank: int
    layers: dict[str, LoraLayer]
    left_out: dict[str, str]
    _strength: torch.Tensor | float = 1.0
    _teacher_depth: int = 0
    _student_depth: int = 0

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable tensors by the names that the file gives them."""
        owned = (".lora_A.", ".lora_B.")
        return {
            name.replace(f".{NAME}.", "."): parameter
            for name, parameter in unwrap(self.denoiser).named_parameters()
            if any(part in name for part in owned) and f".{NAME}." in name
        }

    @contextmanager
    def teacher_mode(self) -> Iterator[None]:
        """The teacher answers: adapter off, no gradients. Re-entrant.

        Raises:
            InputError: The adapter is fused; un-fusing would move the base weights.
        """
        self._refuse_fused()
        if self._student_depth:
            raise AssertionError("teacher mode entered between the student's forward and backward")
        self._teacher_depth += 1
        self._enable(False)
        try:
            with torch.no_grad():
                yield
        finally:
            self._teacher_depth -= 1
            if not self._teacher_depth:
                self._enable(True)

    @contextmanager
    def student_mode(self, strength: torch.Tensor | float, *, train: bool = True) -> Iterator[None]:
        """The student answers: adapter on, each sample at its own strength.

        One context covers forward and backward: with gradient checkpointing the forward runs again
        within the backward, and it must meet the same strength.

        Args:
            strength: Shape (batch,), or one number for all.
            train: Record gradients.

        Raises:
            InputError: The adapter is fused.
        """
        self._refuse_fused()
        if self._teacher_depth or self._student_depth:
            raise AssertionError("student mode entered within another mode")
        self._student_depth, self._strength = 1, strength
        try:
            with nullcontext() if train else torch.no_grad():
                yield
        finally:
            self._student_depth, self._strength = 0, 1.0

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors in peft's names, such as ``mid_block.proj.lora_A.weight``."""
        tensors = get_peft_model_state_dict(unwrap(self.denoiser), adapter_name=NAME)
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over tensors; all of them, or none.

        Raises:
            MismatchError: A name or a shape differs; both sides are named.
            CorruptFileError: A value is not finite.
        """
        own = self.state_dict()
        for name in sorted(own.keys() ^ tensors.keys()):
            raise MismatchError(
                f"the adapter {'lacks' if name in own else 'has an unknown'} tensor '{name}'",
                "It was trained with other targets, or on another pipeline.",
            )
        for name, tensor in tensors.items():
            if tensor.shape != own[name].shape:
                raise MismatchError(
                    f"'{name}' has shape {tuple(tensor.shape)} in the file and "
                    f"{tuple(own[name].shape)} in this run",
                    "Rank or base differ.",
                )
            if not bool(tensor.isfinite().all()):
                raise CorruptFileError(f"'{name}' in the adapter's file is not finite")
        set_peft_model_state_dict(unwrap(self.denoiser), dict(tensors), adapter_name=NAME)

    def detach(self) -> None:
        """Take the adapter off; the denoiser is as it was."""
        unload_adapter(unwrap(self.denoiser))

    def _enable(self, enabled: bool) -> None:
        for layer in self.layers.values():
            layer.enable_adapters(enabled)

    def _refuse_fused(self) -> None:
        if any(layer.merged for layer in self.layers.values()):
            raise InputError(
                "the adapter is fused into the weights",
                "Open the pipeline afresh: un-fusing would not restore its weights bit for bit.",
            )

    def _scale(self, output: torch.Tensor) -> torch.Tensor:
        """Multiply a layer's update by each sample's strength."""
        if not isinstance(self._strength, torch.Tensor):
            return output * self._strength
        rows, batch = output.shape[0], self._strength.shape[0]
        if rows % batch:
            raise UnfoldableError(f"a layer sees {rows} rows for {batch} samples")
        strength = self._strength.repeat_interleave(rows // batch).to(output)
        return output * strength.view(-1, *[1] * (output.ndim - 1))


def attach(
    denoiser: nn.Module, preset: str, rank: int, seed: int, dry_run: Callable[[], object]
) -> Adapter:
    """Attach a LoRA to a denoiser in place.

    Args:
        denoiser: The module; its weights are frozen.
        preset: ``attention``, ``linear`` or ``all``.
        rank: The rank; alpha equals it.
        seed: Of the initial ``lora_A``; ``lora_B`` starts at zero.
        dry_run: Calls the denoiser once as training will.

    Returns:
        The adapter, in float32 whatever the denoiser's precision.

    Raises:
        InputError: A LoRA is on the denoiser already.
        UnfoldableError: No layer matches, or peft wrapped others than intended.
    """
    denoiser = unwrap(denoiser)
    if adapted_layers(denoiser):
        raise InputError(
            "a LoRA is on the denoiser already",
            "Fuse it into the base first: fuse_lora, unload_lora_weights, save_pretrained.",
        )
    denoiser.requires_grad_(False)
    intended, left_out = find_targets(denoiser, preset, dry_run)
    if not intended:
        raise UnfoldableError(
            f"adapter.targets: no layer of {type(denoiser).__name__} matches '{preset}'",
            "Try adapter.targets=all.",
        )
    # Anchored: as a list, peft would match suffixes and take other layers along.
    pattern = "|".join(re.escape(name) for name in intended)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=f"({pattern})")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "adapter"))
        inject_adapter_in_model(config, denoiser, adapter_name=NAME)
    layers = {n: m for n, m in denoiser.named_modules() if isinstance(m, LoraLayer)}
    if layers.keys() != set(intended):
        wrong = sorted(layers.keys() ^ set(intended))
        raise UnfoldableError(f"peft wrapped other layers than intended: {', '.join(wrong)}")
    adapter = Adapter(denoiser, rank, layers, left_out)
    for layer in layers.values():
        for part in (layer.lora_A[NAME], layer.lora_B[NAME]):
            part.float()
        layer.lora_B[NAME].register_forward_hook(lambda _m, _i, out: adapter._scale(out))
    return adapter


def adapter_config(rank: int, layers: Sequence[str]) -> dict[str, Any]:
    """What plain peft reads beside the tensors, as JSON: the ``adapter_config.json``."""
    pattern = "|".join(re.escape(name) for name in layers)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=f"({pattern})", inference_mode=True)
    values = config.to_dict()
    return {name: sorted(v) if isinstance(v, set) else v for name, v in values.items()}


def load_adapter(
    pipeline: DiffusionPipeline,
    denoisers: Sequence[str],
    loader: str,
    folder: Path,
    strength: float,
) -> None:
    """Load a written adapter as any client would: no code of ours stays in the pipeline.

    Args:
        pipeline: A stock pipeline without a LoRA.
        denoisers: The components that are adapted; those after the first have a folder of their
            own, of their name, within ``folder``.
        loader: ``diffusers`` (``load_lora_weights``) or ``peft`` (``PeftModel.from_pretrained``).
        folder: Where the adapter was written.
        strength: The multiplier on the adapter.
    """
    for name in denoisers:
        place = part_folder(folder, denoisers, name)
        load_part(pipeline, denoisers, name, loader, place / DIFFUSERS_FILE)
        set_strength(getattr(pipeline, name), strength)


def load_part(
    pipeline: DiffusionPipeline, denoisers: Sequence[str], name: str, loader: str, path: Path
) -> None:
    """Load one denoiser's file with the library's own loader.

    Args:
        pipeline: A stock pipeline.
        denoisers: The components that are adapted.
        name: The one that the file is for.
        loader: ``diffusers`` or ``peft``.
        path: The file; of peft its folder alone counts.
    """
    module = getattr(pipeline, name)
    if loader == "peft":
        PeftModel.from_pretrained(module, path.parent, adapter_name=NAME)  # wraps layers in place
    elif name == denoisers[0]:
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=NAME)
    else:
        module.load_lora_adapter(
            path.parent, weight_name=path.name, prefix=denoisers[0], adapter_name=NAME
        )


def part_folder(folder: Path, denoisers: Sequence[str], name: str) -> Path:
    """Where one denoiser's files lie: the first one's in the folder itself."""
    return folder if name == denoisers[0] else folder / name


def set_strength(denoiser: nn.Module, strength: float) -> None:
    """Turn the dial of a loaded adapter, as a client's strength slider does."""
    for layer in denoiser.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale(NAME, strength)


def check_turned_on(denoiser: nn.Module) -> None:
    """Refuse a loaded adapter that has no say, or no dial any more.

    Raises:
        InputError: It was fused, taken off, switched off, or another LoRA was loaded over it.
    """
    layers = [m for m in denoiser.modules() if isinstance(m, LoraLayer) and NAME in m.lora_A]
    if not layers or any(layer.merged for layer in layers):
        raise InputError(
            "the adapter was fused into the weights, or taken off",
            "Fused weights keep the strength that they were fused at: call the pipeline itself.",
        )
    if not all(NAME in m.active_adapters and not m.disable_adapters for m in layers):
        raise InputError(
            f"the adapter '{NAME}' is not active: another LoRA was loaded over it",
            f'Name all of them: pipeline.set_adapters(["{NAME}", ...], [strength, ...]).',
        )


def adapted_layers(denoiser: nn.Module) -> set[str]:
    """The names of the layers that hold a LoRA, whoever put it there."""
    return {name for name, layer in denoiser.named_modules() if isinstance(layer, LoraLayer)}


def layers_of(names: Collection[str]) -> list[str]:
    """The layers that peft's names of tensors speak of, in order."""
    return sorted({name.removesuffix(".lora_A.weight") for name in names if ".lora_A." in name})


def loaded_tensors(denoiser: nn.Module) -> dict[str, torch.Tensor]:
    """A loaded LoRA's tensors by peft's names, what its alpha does folded in, on the CPU."""
    found = {}
    for layer, module in denoiser.named_modules():
        if isinstance(module, LoraLayer):
            down, up = module.lora_A[NAME].weight, module.lora_B[NAME].weight
            found[f"{layer}.lora_A.weight"] = down.detach().cpu()
            found[f"{layer}.lora_B.weight"] = (up.detach() * module.scaling[NAME]).cpu()
    return found


def unload_adapter(denoiser: Any) -> None:
    """Take every LoRA off a denoiser, whoever put it there."""
    compat.remove_adapters(denoiser)


def fuse_adapter(denoiser: nn.Module) -> None:
    """Add a loaded LoRA to the weights and take its layers off; there is no way back."""
    for layer in denoiser.modules():
        if isinstance(layer, LoraLayer):
            layer.merge(safe_merge=True)
    unload_adapter(denoiser)


@contextmanager
def adapter_off(denoiser: nn.Module) -> Iterator[None]:
    """Switch a loaded LoRA off for a while."""
    layers = [m for m in denoiser.modules() if isinstance(m, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
