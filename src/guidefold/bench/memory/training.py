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

from guidefold.bench.memory.cases import Case, Subject
from guidefold.bench.memory.memory_watch import TEMPORARY
from guidefold.bench.memory.optimizers import eight_bit_adamw
from guidefold.bench.memory.synthetic_inputs import occupy
from guidefold.listen import Tree, output_tensor, tensors_of, tree_map
from guidefold.lora import Adapter, attach, shrink_weights
from guidefold.pipeline import DTYPES
from guidefold.train import Updates, squared_error

GUIDANCE = 7.5
LEARNING_RATE, MAX_NORM = 5e-4, 1.0
STEPS = 2  # the second is the first with an optimizer's state
Mark = Callable[[str, Iterable[torch.Tensor] | None], None]


class Training:
    """A case, planned: its modules exist, their memory does not.

    Args:
        case: The way to train.
        load: What is trained.
    """

    def __init__(self, case: Case, load: Subject) -> None:
        self.case, self.load = case, load
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
        readers = [encoder.module for encoder in self.encoders]
        occupy([self.denoiser, *self.teacher, *readers], device)
        self._say_what_is_what()
        self.updates = Updates(self._optimizer(), lambda _step: LEARNING_RATE, MAX_NORM)
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

    def _optimizer(self) -> torch.optim.Optimizer:
        if self.case.optimizer == "adamw-8bit":
            return eight_bit_adamw(self.trained)
        # foreach: torch's own choice on CUDA, and it costs memory: everywhere
        return torch.optim.AdamW(self.trained, weight_decay=0.0, foreach=True)

    def _build(self) -> None:
        """The modules, without memory yet."""
        case, load = self.case, self.load
        self.denoiser: Any = load.denoiser(self.dtype)
        self.teacher: list[Any] = [load.denoiser(self.dtype)] if case.teacher == "held" else []
        self.encoders = load.encoders(self.dtype) if case.encoders else []
        if case.trains == "all":
            self.denoiser.requires_grad_(True)
        else:
            args, kwargs = load.question(self.dtype, "meta")
            self.adapter = attach(
                self.denoiser, load.targets, load.rank, 0, lambda: self.denoiser(*args, **kwargs)
            )
        if case.bits is not None:
            shrink_weights(self.denoiser, *case.bits)
        if case.checkpointing:
            self.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]

    def _say_what_is_what(self) -> None:
        frozen = [p for p in self.denoiser.parameters() if not p.requires_grad]
        self.mark("weights", [*frozen, *self.denoiser.buffers()])
        self.mark("weights" if self.case.trains == "all" else "adapter", self.trained)
        self.mark("teacher", _tensors(self.teacher))
        self.mark("encoders", _tensors(encoder.module for encoder in self.encoders))
        for parameter in self.trained:
            tell: Any = parameter.register_post_accumulate_grad_hook
            tell(lambda p: self.mark("gradients", [p.grad]))

    def _step(self, step: int) -> None:
        """Ask, answer, compare, learn."""
        for _ in range(min(self.load.pieces, 2)):  # the second finds the first's gradients there
            self._learn()
        self.updates.apply(step)
        if self.ema is not None:
            self.ema.step(self.trained)
        self.updates.optimizer.zero_grad()

    def _learn(self) -> None:
        """Forward and backward of one call."""
        with torch.no_grad():
            for encoder in self.encoders:
                encoder.read(self.dtype, self.device)
        question = self.load.question(self.dtype, self.device)
        target = self._target(question)
        self.mark("batch", [*tensors_of(question), target])
        args, kwargs = question
        with self._student_mode():
            self.mark("activations", None)
            with self._autocast():
                raw = self.denoiser(*args, **kwargs)
            loss = squared_error(output_tensor(raw), target).mean()
            del raw
            self.mark(TEMPORARY, None)
            loss.backward()  # type: ignore[no-untyped-call]

    def _target(self, question: Tree) -> torch.Tensor:
        """The teacher's guided answer; else noise, which stands for a record or a picture's own."""
        if self.case.teacher == "none":
            return self.load.answer(question)
        with self._teacher_mode():
            teacher = self.teacher[0] if self.teacher else self.denoiser
            args, kwargs = tree_map(lambda value: torch.cat((value, value)), question)
            unconditional, conditional = output_tensor(teacher(*args, **kwargs)).chunk(2)
            return unconditional + GUIDANCE * (conditional - unconditional)

    def _teacher_mode(self) -> AbstractContextManager[None]:
        return torch.no_grad() if self.adapter is None else self.adapter.teacher_mode()

    def _autocast(self) -> AbstractContextManager[Any]:
        wanted = self.load.autocast
        if wanted is None:
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=wanted)

    def _student_mode(self) -> AbstractContextManager[None]:
        if self.adapter is None:
            return nullcontext()
        strengths = torch.ones(self.load.batch, device=self.device)
        return self.adapter.student_mode(strengths)


def _tensors(modules: Iterable[nn.Module]) -> list[torch.Tensor]:
    return [t for module in modules for t in (*module.parameters(), *module.buffers())]
