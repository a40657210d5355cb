"""A full copy of the denoiser as the student: ordinary distillation, to measure a LoRA against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from guidefold.deliver import describe_adapter
from guidefold.lora import Adapter
from guidefold.run import (
    METADATA,
    check_folder,
    finished_folder,
    read_tensors,
    write_json,
    write_tensors,
)
from guidefold.session import Session
from guidefold.train import load_checkpoint

FILE = "diffusion_pytorch_model.safetensors"


class WholeCopy(Adapter):
    """Every weight of the denoiser is the student's; the teacher's are kept beside them.

    It answers to the same calls as an adapter. It has no strength: it can fold one guidance scale
    only.

    Args:
        denoiser: The teacher's, becomes the student's.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__(denoiser, rank=0, layers={}, left_out={})
        self.others = {n: p.detach().clone() for n, p in denoiser.named_parameters()}
        denoiser.requires_grad_(True)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """All of them."""
        return dict(self.denoiser.named_parameters())

    @contextmanager
    def teacher_mode(self) -> Iterator[None]:
        """The teacher's weights for a while."""
        self._swap()
        try:
            with torch.no_grad():
                yield
        finally:
            self._swap()

    @contextmanager
    def student_mode(self, strength: torch.Tensor | float, *, train: bool = True) -> Iterator[None]:
        """The student's weights stand anyway."""
        with torch.set_grad_enabled(train):
            yield

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The student's weights."""
        return {name: parameter.detach() for name, parameter in self.named_parameters().items()}

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over a student's weights."""
        for name, parameter in self.named_parameters().items():
            parameter.copy_(tensors[name])

    def detach(self) -> None:
        """Only the teacher's weights stay."""
        self.load_state_dict(self.others)
        self.denoiser.requires_grad_(False)

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.named_parameters().items():
            held = self.others[name]
            self.others[name] = parameter.detach().clone()
            parameter.copy_(held)


def copy_weights(
    denoiser: nn.Module, _preset: str, _rank: int, _seed: int, _dry_run: Callable[[], object]
) -> WholeCopy:
    """Put a full copy on, where a LoRA would be attached."""
    return WholeCopy(denoiser)


def write_copy(session: Session) -> Path:
    """Write a run's last checkpoint as a whole denoiser, where an adapter would be written."""
    copy = WholeCopy(session.denoiser)
    state = load_checkpoint(session.run.checkpoints()[-1], copy, None)
    folder = session.run.adapter
    with finished_folder(folder) as temporary:
        write_json(temporary / METADATA, describe_adapter(session, state["step"], []))
        write_tensors(temporary / FILE, copy.state_dict())
    copy.detach()
    return folder


class CopiedWeights:
    """A written copy, to be measured."""

    def __init__(self) -> None:
        self.copy: WholeCopy | None = None

    def load(self, session: Session, strength: float) -> None:
        """Put the copy's weights in the place of the teacher's."""
        assert strength == 1, "a full copy has one strength"
        folder = session.run.adapter
        check_folder(folder)
        self.copy = WholeCopy(session.denoiser)
        self.copy.load_state_dict(read_tensors(folder / FILE))

    @contextmanager
    def off(self, denoiser: nn.Module) -> Iterator[None]:
        """The teacher's weights for a while."""
        assert self.copy is not None
        assert self.copy.denoiser is denoiser
        with self.copy.teacher_mode():
            yield

    def fuse(self, denoiser: nn.Module) -> None:
        """They are plain weights already."""
        denoiser.requires_grad_(False)
