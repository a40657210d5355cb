"""One training step of any case, by the same functions wherever it is measured.

The student is the project's own: adapter, teacher mode, squared error, updates, frozen weights in
few bits. Text encoders and autoencoder run where they are resident, but what they say is replaced
by noise of its shape, which spares this file every family's way of wiring them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from guidefold.adapter import Adapter, attach
from guidefold.arguments import tensors_of, tree_map
from guidefold.bench.architectures import make_inputs
from guidefold.bench.cases import Case, Load
from guidefold.bench.materials import occupy
from guidefold.bench.optimizers import eight_bit_adamw
from guidefold.bench.watch import TEMPORARY
from guidefold.frozen import shrink_weights
from guidefold.objective import squared_error
from guidefold.outputs import output_tensor
from guidefold.pipelines import DTYPES
from guidefold.settings import DistillSettings
from guidefold.updates import Updates

GUIDANCE = 7.5
STEPS = 2  # the second is the first with an optimizer's state
Mark = Callable[[str, Iterable[torch.Tensor] | None], None]


class Training:
    """A case, planned: its modules exist, their memory does not.

    Args:
        case: The way to train.
        load: What is trained.
    """

    def __init__(self, case: Case, load: Load) -> None:
        self.case, self.load = case, load
        self.sizes = load.architecture.sizes(load.batch, load.size)
        self.dtype = DTYPES[case.dtype or load.dtype]
        self.adapter: Adapter | None = None
        self._build()

    def start(self, device: torch.device | str, mark: Mark) -> None:
        """Take memory for the modules, and prepare to train them.

        Args:
            device: Where to.
            mark: Told which tensors are what, for those who count.
        """
        self.device, self.mark = device, mark
        occupy([self.denoiser, *self.teacher, *self.encoders, *self.autoencoder], device)
        self._say_what_is_what()
        self.updates = Updates(self.trained, DistillSettings(warmup=0), None)
        for group in self.updates.optimizer.param_groups:
            group["foreach"] = True  # torch's own choice on CUDA, and it costs memory: everywhere
        if self.case.optimizer == "adamw-8bit":
            self.updates.optimizer = eight_bit_adamw(self.trained)  # type: ignore[assignment]
        self.ema = EMAModel(self.trained) if self.case.ema else None
        if self.ema is not None:
            mark("moving average", self.ema.shadow_params)

    def run(self) -> None:
        """Train for as many steps as it takes to see the most memory."""
        for step in range(STEPS):
            self._step(step)
            state = self.updates.optimizer.state.values()
            self.mark("optimizer", [t for s in state for t in s.values() if torch.is_tensor(t)])

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that learn."""
        return [p for p in self.denoiser.parameters() if p.requires_grad]

    def _build(self) -> None:
        """The modules, without memory yet."""
        case, parts = self.case, self.load.architecture
        self.denoiser: Any = parts.denoiser.build(self.dtype)
        held = case.teacher == "held"
        self.teacher = [parts.denoiser.build(self.dtype)] if held else []
        resident = parts.encoders.values() if case.encoders else ()
        self.encoders: list[Any] = [part.build(self.dtype) for part in resident]
        self.autoencoder: list[Any] = [parts.autoencoder.build(self.dtype)] if case.encoders else []
        if case.trains == "all":
            self.denoiser.requires_grad_(True)
        else:
            self._attach()
        if case.bits is not None:
            shrink_weights(self.denoiser, linear_bits=case.bits[0])
        if case.checkpointing:
            self.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]

    def _attach(self) -> None:
        load, shapes = self.load, self.load.architecture.denoiser.inputs
        inputs = make_inputs(shapes, self.sizes, self.dtype, "meta")
        self.adapter = attach(
            self.denoiser, load.targets, load.rank, 0, lambda: self.denoiser(**inputs)
        )

    def _say_what_is_what(self) -> None:
        frozen = [p for p in self.denoiser.parameters() if not p.requires_grad]
        self.mark("weights", [*frozen, *self.denoiser.buffers()])
        self.mark("weights" if self.case.trains == "all" else "adapter", self.trained)
        self.mark("teacher", _tensors(self.teacher))
        self.mark("encoders", _tensors([*self.encoders, *self.autoencoder]))
        for parameter in self.trained:
            tell: Any = parameter.register_post_accumulate_grad_hook
            tell(lambda p: self.mark("gradients", [p.grad]))

    def _step(self, step: int) -> None:
        """Ask, answer, compare, learn."""
        self._encode()
        inputs = self._inputs(self.load.architecture.denoiser.inputs)
        target = self._target(inputs)
        self.mark("batch", [*tensors_of(inputs), target])
        with self._student_mode():
            self.mark("activations", None)
            loss = squared_error(output_tensor(self.denoiser(**inputs)), target).mean()
            self.mark(TEMPORARY, None)
            loss.backward()  # type: ignore[no-untyped-call]
        del inputs, target, loss
        self.updates.apply(step)
        if self.ema is not None:
            self.ema.step(self.trained)
        self.updates.optimizer.zero_grad()

    def _encode(self) -> None:
        """Prompts and pictures go through the encoders that are resident."""
        parts = self.load.architecture
        with torch.no_grad():
            for encoder, part in zip(self.encoders, parts.encoders.values(), strict=False):
                encoder(**self._inputs(part.inputs))
            for autoencoder in self.autoencoder:
                autoencoder.encode(**self._inputs(parts.autoencoder.inputs))

    def _target(self, inputs: dict[str, Any]) -> torch.Tensor:
        """The teacher's guided answer; else noise, which stands for a record or a picture's own."""
        if self.case.teacher == "none":
            return torch.rand_like(next(tensors_of(inputs)))
        with self._teacher_mode():
            teacher = self.teacher[0] if self.teacher else self.denoiser
            both = tree_map(lambda value: torch.cat((value, value)), inputs)
            unconditional, conditional = output_tensor(teacher(**both)).chunk(2)
            return unconditional + GUIDANCE * (conditional - unconditional)

    def _inputs(self, shapes: Any) -> dict[str, Any]:
        return make_inputs(shapes, self.sizes, self.dtype, self.device)

    def _teacher_mode(self) -> AbstractContextManager[None]:
        return torch.no_grad() if self.adapter is None else self.adapter.teacher_mode()

    def _student_mode(self) -> AbstractContextManager[None]:
        if self.adapter is None:
            return nullcontext()
        strengths = torch.ones(self.load.batch, device=self.device)
        return self.adapter.student_mode(strengths)


def _tensors(modules: Iterable[nn.Module]) -> list[torch.Tensor]:
    return [t for module in modules for t in (*module.parameters(), *module.buffers())]
