"""A full copy of the denoiser as the student: ordinary distillation, to measure a LoRA against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from guidefold.deliver import describe_adapter
from guidefold.lora import Adapter
from guidefold.run import (
    METADATA,
    check_folder,
    finished_folder,
    read_tensors,
    write_record,
    write_tensors,
)
from guidefold.session import Session
from guidefold.train import load_checkpoint

FILE = "diffusion_pytorch_model.safetensors"


class FullCopy(Adapter):
    """A full copy of the weights with an adapter's methods; it folds one guidance scale only.

    The denoiser holds the student's weights; in teacher mode they trade places with the teacher's.

    Args:
        denoiser: The teacher's; it becomes the student's.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__(denoiser, rank=0, layers={}, left_out={})
        self.set_aside = {n: p.detach().clone() for n, p in denoiser.named_parameters()}
        denoiser.requires_grad_(True)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters of the denoiser."""
        return dict(self.denoiser.named_parameters())

    @contextmanager
    def teacher_mode(self) -> Iterator[None]:
        """Use the teacher's weights within the context."""
        self._swap()
        try:
            with torch.no_grad():
                yield
        finally:
            self._swap()

    @contextmanager
    def student_mode(
        self, strength: torch.Tensor | float, *, steps: float = 1.0, train: bool = True
    ) -> Iterator[None]:
        """Set gradients: the student's weights are in place already."""
        with torch.set_grad_enabled(train):
            yield

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The student's weights."""
        return {name: parameter.detach() for name, parameter in self.named_parameters().items()}

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load a student's weights."""
        for name, parameter in self.named_parameters().items():
            parameter.copy_(tensors[name])

    def detach(self) -> None:
        """Put the teacher's weights back for good."""
        self.load_state_dict(self.set_aside)
        self.denoiser.requires_grad_(False)

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.named_parameters().items():
            idle = self.set_aside[name]
            self.set_aside[name] = parameter.detach().clone()
            parameter.copy_(idle)


def copy_weights(
    denoiser: nn.Module, _preset: str, _rank: int, _seed: int, _dry_run: Callable[[], object]
) -> FullCopy:
    """Make a full copy, with the arguments of ``attach``."""
    return FullCopy(denoiser)


def write_copy(session: Session) -> None:
    """Write a run's last checkpoint as a full denoiser, in the place of an adapter."""
    copy = FullCopy(session.denoiser)
    state = load_checkpoint(session.run.checkpoints()[-1], copy, None)
    with finished_folder(session.run.adapter) as temporary:
        write_record(temporary / METADATA, describe_adapter(session, state.step, []))
        write_tensors(temporary / FILE, copy.state_dict())
    copy.detach()


class CopiedWeights:
    """Student weights for ``measure``: a written full copy."""

    def __init__(self) -> None:
        self.copy: FullCopy | None = None

    def load(self, session: Session, strength: float) -> None:
        """Put the copy's weights in the place of the teacher's."""
        assert strength == 1, "a full copy has one strength"
        folder = session.run.adapter
        check_folder(folder)
        self.copy = FullCopy(session.denoiser)
        self.copy.load_state_dict(read_tensors(folder / FILE))

    @contextmanager
    def off(self, denoiser: nn.Module) -> Iterator[None]:
        """Use the teacher's weights within the context."""
        assert self.copy is not None
        assert self.copy.denoiser is denoiser
        with self.copy.teacher_mode():
            yield

    def fuse(self, denoiser: nn.Module) -> None:
        """Freeze the weights: there is no adapter to fuse."""
        denoiser.requires_grad_(False)
