"""The LoRA on the teacher's own weights, while it is trained.

Attaching changes the teacher by not one bit. :meth:`Adapter.teacher_mode` is the only switch
between teacher and student; :meth:`Adapter.student_mode` sets each sample's strength.

A student of fewer steps whose guidance has a dial needs two LoRAs: ``W + s * guidance + steps``.
One alone, scaled by its strength, would scale the correction of the longer steps as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from guidefold.ground import (
    CorruptFileError,
    InputError,
    MismatchError,
    UnfoldableError,
    derive_seed,
    plural,
)
from guidefold.lora.loaded import (
    MAIN_LORA,
    STEPS_LORA,
    adapted_layers,
    quiet_stacking,
    unload_adapter,
)
from guidefold.lora.targets import find_targets
from guidefold.lora.two_loras import is_of_steps, stored_name
from guidefold.pipeline import unwrap


@dataclass
class Adapter:
    """A LoRA attached to a denoiser; made by :func:`attach`.

    Attributes:
        denoiser: The teacher's module, its linear layers and convolutions wrapped in place.
        rank: The rank; alpha equals it.
        layers: The adapted layers by name.
        left_out: Layers of the preset that cannot be wrapped, with the reason.
        loras: The LoRAs on each layer, by their names in peft.
        trained: Those of them that are trained.
    """

    denoiser: nn.Module
    rank: int
    layers: dict[str, LoraLayer]
    left_out: dict[str, str]
    loras: tuple[str, ...] = (MAIN_LORA,)
    trained: tuple[str, ...] = (MAIN_LORA,)
    _strength: torch.Tensor | float = 1.0
    _steps: float = 1.0
    _teacher_depth: int = 0
    _student_depth: int = 0

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable tensors by their names in the adapter's file."""
        return dict(self._weights(self.trained))

    def keep_guidance(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take the guidance LoRA from elsewhere, and leave it as it is: steps alone are trained.

        Args:
            tensors: All of the guidance LoRA's tensors, by peft's names.

        Raises:
            MismatchError: A name or a shape differs.
            CorruptFileError: A value is not finite.
        """
        steps = {name: t for name, t in self.state_dict().items() if is_of_steps(name)}
        self.load_state_dict({**tensors, **steps})

    @contextmanager
    def teacher_mode(self) -> Iterator[None]:
        """Make the denoiser the teacher: adapter off, no gradients. Re-entrant.

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
    def student_mode(
        self, strength: torch.Tensor | float, *, steps: float = 1.0, train: bool = True
    ) -> Iterator[None]:
        """Make the denoiser the student: adapter on, each sample at its own strength.

        One context covers forward and backward: with gradient checkpointing the forward runs again
        within the backward, and a changed strength would give wrong gradients without an error.

        Args:
            strength: Shape (batch,), or one number for all.
            steps: The strength of a steps LoRA; any other than 1 only to look at its parts.
            train: Record gradients.

        Raises:
            InputError: The adapter is fused.
        """
        self._refuse_fused()
        if self._teacher_depth or self._student_depth:
            raise AssertionError("student mode entered within another mode")
        self._student_depth, self._strength, self._steps = 1, strength, steps
        try:
            with nullcontext() if train else torch.no_grad():
                yield
        finally:
            self._student_depth, self._strength, self._steps = 0, 1.0, 1.0

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors in peft's names, such as ``mid_block.proj.lora_A.weight``.

        Those of a steps LoRA are named ``mid_block.proj.lora_A.steps.weight``.
        """
        return {name: parameter.detach() for name, parameter in self._weights(self.loras)}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load tensors: all of them, or none.

        Raises:
            MismatchError: A name or a shape differs.
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
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def detach(self) -> None:
        """Take the adapter off; the denoiser is as before :func:`attach`."""
        unload_adapter(unwrap(self.denoiser))

    def _weights(self, loras: Collection[str]) -> Iterator[tuple[str, nn.Parameter]]:
        """Some LoRAs' parameters by name; peft's own way walks every module, several times."""
        for name, layer in self.layers.items():
            for side in ("lora_A", "lora_B"):
                for lora in loras:
                    weight = f"{name}.{side}.weight"
                    yield stored_name(weight, lora), getattr(layer, side)[lora].weight

    def _enable(self, enabled: bool) -> None:
        for layer in self.layers.values():
            layer.enable_adapters(enabled)
        if enabled and self.trained != self.loras:  # peft makes all that are active trainable
            self._freeze()

    def _freeze(self) -> None:
        for layer in self.layers.values():
            for lora in set(self.loras) - set(self.trained):
                layer.lora_A[lora].requires_grad_(False)
                layer.lora_B[lora].requires_grad_(False)

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
            raise UnfoldableError(
                f"a layer sees {plural(rows, 'row')} for {plural(batch, 'sample')}"
            )
        strength = self._strength.repeat_interleave(rows // batch).to(output)
        # Not by peft's `scaling`: it is one number for all samples, and diffusers multiplies it in
        # place.
        return output * strength.view(-1, *[1] * (output.ndim - 1))


def attach(
    denoiser: nn.Module,
    preset: str,
    rank: int,
    seed: int,
    dry_run: Callable[[], object],
    *,
    steps_rank: int | None = None,
    train_guidance: bool = True,
) -> Adapter:
    """Attach a LoRA to a denoiser in place.

    Args:
        denoiser: The module; its weights are frozen.
        preset: ``attention``, ``linear``, ``portable`` or ``all``.
        rank: The rank; alpha equals it.
        seed: The run's seed, for the initial ``lora_A``; ``lora_B`` starts at zero.
        dry_run: Calls the denoiser once as training will.
        steps_rank: The rank of a second LoRA on the same layers, for fewer steps; None: no such.
        train_guidance: Whether the first LoRA is trained beside the second one.

    Returns:
        The adapter, in float32 whatever the denoiser's precision.

    Raises:
        InputError: The denoiser has a LoRA already.
        UnfoldableError: No layer matches, or peft wrapped other layers than intended.
    """
    denoiser = unwrap(denoiser)
    if adapted_layers(denoiser):
        raise InputError(
            "a LoRA is on the denoiser already",
            "Fuse it into the base first: fuse_lora, unload_lora_weights, save_pretrained.",
        )
    denoiser.requires_grad_(False)
    # A few layers are called in a way that peft's wrappers do not take. They are found by watching
    # one call, and left out by name.
    intended, left_out = find_targets(denoiser, preset, dry_run)
    if not intended:
        raise UnfoldableError(
            f"adapter.targets: no layer of {type(denoiser).__name__} matches '{preset}'",
            "Try adapter.targets=all.",
        )
    ranks = {MAIN_LORA: rank} if steps_rank is None else {MAIN_LORA: rank, STEPS_LORA: steps_rank}
    layers = _inject(denoiser, intended, ranks, seed)
    trained = tuple(ranks) if train_guidance else (STEPS_LORA,)
    adapter = Adapter(denoiser, rank, layers, left_out, tuple(ranks), trained)
    for layer in layers.values():
        for lora in ranks:
            layer.lora_A[lora].float()
            layer.lora_B[lora].float()
        layer.lora_B[MAIN_LORA].register_forward_hook(lambda _m, _i, out: adapter._scale(out))
        if steps_rank is not None:
            layer.set_adapter(list(ranks))
            layer.lora_B[STEPS_LORA].register_forward_hook(lambda _m, _i, out: out * adapter._steps)
    adapter._freeze()
    return adapter


def _inject(
    denoiser: nn.Module, intended: Collection[str], ranks: Mapping[str, int], seed: int
) -> dict[str, LoraLayer]:
    """Let peft wrap the intended layers, for each LoRA; return the wrapped layers by name.

    Raises:
        UnfoldableError: peft wrapped other layers.
    """
    # Anchored: as a list, peft would match suffixes and take other layers along.
    pattern = "|".join(re.escape(name) for name in intended)
    for lora, own_rank in ranks.items():
        config = LoraConfig(r=own_rank, lora_alpha=own_rank, target_modules=f"({pattern})")
        with torch.random.fork_rng(devices=[]), quiet_stacking():
            torch.manual_seed(
                derive_seed(seed, "adapter" if lora == MAIN_LORA else "steps adapter")
            )
            inject_adapter_in_model(config, denoiser, adapter_name=lora)
    layers = {n: m for n, m in denoiser.named_modules() if isinstance(m, LoraLayer)}
    if layers.keys() != set(intended):
        wrong = sorted(layers.keys() ^ set(intended))
        raise UnfoldableError(f"peft wrapped other layers than intended: {', '.join(wrong)}")
    return layers
