"""One training step of any case, by the same functions wherever it is measured.

Adapter, teacher mode, squared error, updates and quantised frozen weights are those of a real run.
Text encoders and autoencoder run where they are resident, but the denoiser gets random values of
their outputs' shapes: every family connects them in another way, and memory does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from guidefold.bench.memory.cases import Case, Workload
from guidefold.bench.memory.memory_watch import TEMPORARY, Placeholders
from guidefold.bench.memory.optimizers import eight_bit_adamw
from guidefold.bench.memory.synthetic_inputs import materialise
from guidefold.listen import Tree, output_tensor, tensors_of, tree_map
from guidefold.lora import Adapter, attach, shrink_weights
from guidefold.pipeline import DTYPES
from guidefold.train import Updates, make_optimizer, squared_error

GUIDANCE = 7.5
LEARNING_RATE, MAX_NORM = 5e-4, 1.0
Mark = Callable[[str, Iterable[torch.Tensor] | None], None]


class Training:
    """The training step of a case; its modules lie on the meta device until it starts.

    Args:
        case: The case.
        workload: The denoiser to train, and its inputs.
    """

    def __init__(self, case: Case, workload: Workload) -> None:
        self.case, self.workload = case, workload
        self.dtype = DTYPES[case.dtype or workload.dtype]
        self.adapter: Adapter | None = None
        with Placeholders():
            self._build()

    def start(self, device: torch.device | str, mark: Mark) -> None:
        """Allocate the modules' memory and make the optimizer.

        Args:
            device: The device to train on.
            mark: Called with a part's name and its tensors, as :meth:`MemoryWatch.mark`.
        """
        self.device, self.mark = device, mark
        encoders = [encoder.module for encoder in self.encoders]
        materialise([self.denoiser, *self.teacher, *encoders], device)
        self._mark_modules()
        self.updates = Updates(self._optimizer(), lambda _step: LEARNING_RATE, MAX_NORM)
        self.ema = EMAModel(self.trained) if self.case.ema else None
        if self.ema is not None:
            mark("moving average", self.ema.shadow_params)

    def run(self) -> None:
        """Train for a step with an optimizer that has its state: memory is at its peak."""
        self.prepare()
        self.step()

    def checkpoint(self, on: bool) -> None:
        """Begin or end gradient checkpointing, of a denoiser that has it."""
        if on:
            self.denoiser.enable_gradient_checkpointing()
        else:
            self.denoiser.disable_gradient_checkpointing()

    @property
    def trained(self) -> list[nn.Parameter]:
        """The trained parameters."""
        return [p for p in self.denoiser.parameters() if p.requires_grad]

    def _optimizer(self) -> torch.optim.Optimizer:
        if self.case.optimizer == "adamw-8bit":
            return eight_bit_adamw(self.trained)
        if self.case.optimizer == "muon":
            return make_optimizer("muon", self.trained, 0.0)
        # foreach, torch's default on CUDA, takes a further copy in memory: use it on every device
        return torch.optim.AdamW(self.trained, weight_decay=0.0, foreach=True)

    def _build(self) -> None:
        """Make the modules without memory."""
        case, workload = self.case, self.workload
        self.denoiser: Any = workload.denoiser(self.dtype)
        args, kwargs = workload.inputs(self.dtype, "meta")
        self.teacher: list[Any] = [workload.denoiser(self.dtype)] if case.teacher == "held" else []
        self.encoders = workload.encoders(self.dtype) if case.encoders else []
        if case.trains == "all":
            self.denoiser.requires_grad_(True)
        else:
            self.adapter = attach(
                self.denoiser,
                workload.targets,
                workload.rank,
                0,
                lambda: self.denoiser(*args, **kwargs),
                steps_rank=workload.steps_rank,
            )
        self._find_reached(args, kwargs)
        if case.bits is not None:
            shrink_weights(self.denoiser, *case.bits)
        if case.checkpointing:
            self.checkpoint(True)

    def _find_reached(self, args: Any, kwargs: Any) -> None:
        """Name the parameters that get a gradient: the optimizer has a state of no others."""
        with self._student_mode("meta"):
            raw = self.denoiser(*args, **kwargs)
            output_tensor(raw).sum().backward()  # type: ignore[no-untyped-call]
        named = self.denoiser.named_parameters()
        self.reached = [name for name, parameter in named if parameter.grad is not None]

    def _mark_modules(self) -> None:
        frozen = [p for p in self.denoiser.parameters() if not p.requires_grad]
        self.mark("weights", [*frozen, *self.denoiser.buffers()])
        self.mark("weights" if self.case.trains == "all" else "adapter", self.trained)
        self.mark("teacher", _tensors(self.teacher))
        self.mark("encoders", _tensors(encoder.module for encoder in self.encoders))
        for parameter in self.trained:
            add_hook: Any = parameter.register_post_accumulate_grad_hook
            add_hook(lambda p: self.mark("gradients", [p.grad]))

    def prepare(self) -> None:
        """Apply gradients of zero: the state of a step before, without its passes.

        Of a batch that is cut into pieces, the gradients stay: all but the first add to them.
        """
        for parameter in map(self.denoiser.get_parameter, self.reached):
            parameter.grad = torch.zeros_like(parameter)
            self.mark("gradients", [parameter.grad])
        self.updates.apply(0)
        if self.workload.pieces == 1:
            self.updates.optimizer.zero_grad()
        state = self.updates.optimizer.state.values()
        self.mark("optimizer", [t for s in state for t in s.values() if torch.is_tensor(t)])

    def step(self) -> None:
        """One optimizer step."""
        self._forward_backward()
        self.updates.apply(1)
        if self.ema is not None:
            self.ema.step(self.trained)

    def _forward_backward(self) -> None:
        """Forward and backward pass of one call."""
        with torch.no_grad():
            for encoder in self.encoders:
                encoder.encode_noise(self.dtype, self.device)
        inputs = self.workload.inputs(self.dtype, self.device)
        target = self._target(inputs)
        self.mark("batch", [*tensors_of(inputs), target])
        args, kwargs = inputs
        with self._student_mode(self.device):
            self.mark("activations", None)
            with self._autocast():
                raw = self.denoiser(*args, **kwargs)
            loss = squared_error(output_tensor(raw), target).mean()
            del raw
            self.mark(TEMPORARY, None)
            loss.backward()  # type: ignore[no-untyped-call]

    def _target(self, inputs: Tree) -> torch.Tensor:
        """The teacher's guided output; without a teacher, noise in place of a recorded target."""
        if self.case.teacher == "none":
            return self.workload.target(inputs)
        with self._teacher_mode():
            teacher = self.teacher[0] if self.teacher else self.denoiser
            args, kwargs = tree_map(lambda value: torch.cat((value, value)), inputs)
            unconditional, conditional = output_tensor(teacher(*args, **kwargs)).chunk(2)
            return unconditional + GUIDANCE * (conditional - unconditional)

    def _teacher_mode(self) -> AbstractContextManager[None]:
        return torch.no_grad() if self.adapter is None else self.adapter.teacher_mode()

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = self.workload.autocast
        if dtype is None:
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=dtype)

    def _student_mode(self, device: torch.device | str) -> AbstractContextManager[None]:
        if self.adapter is None:
            return nullcontext()
        strengths = torch.ones(self.workload.batch, device=device)
        return self.adapter.student_mode(strengths)


def _tensors(modules: Iterable[nn.Module]) -> list[torch.Tensor]:
    return [t for module in modules for t in (*module.parameters(), *module.buffers())]
