"""What Guidefold does not offer, put in place of its LoRA, to be measured against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from guidefold.adapter import NAME, attach
from guidefold.checkpoints import find_checkpoints
from guidefold.runs import read_tensors


class WholeCopy:
    """Every weight of the denoiser is the student's; the teacher's are kept beside them.

    It answers to the same calls as an adapter. It has no strength, so it can fold one guidance
    scale only.

    Args:
        denoiser: The teacher's, becomes the student's.
    """

    rank = 0

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.others = {n: p.detach().clone() for n, p in denoiser.named_parameters()}
        denoiser.requires_grad_(True)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """All of them."""
        return dict(self.denoiser.named_parameters())

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.denoiser.named_parameters():
            held = self.others[name]
            self.others[name] = parameter.detach().clone()
            parameter.copy_(held)

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
    def student_mode(self, strength: Any, *, train: bool = True) -> Iterator[None]:
        """The student's weights stand anyway."""
        with torch.set_grad_enabled(train):
            yield

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The student's weights."""
        return {name: parameter.detach() for name, parameter in self.named_parameters().items()}

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over a student's weights."""
        for name, parameter in self.denoiser.named_parameters():
            parameter.copy_(tensors[name])


@contextmanager
def whole_copy() -> Iterator[None]:
    """Train and measure a full copy of the weights where a LoRA would be trained and measured."""
    opened: list[WholeCopy] = []

    def put_on(denoiser: nn.Module, *_: Any) -> WholeCopy:
        return WholeCopy(denoiser)

    def load(session: Any, _strength: float) -> None:
        copy = WholeCopy(session.denoiser)
        copy.load_state_dict(
            read_tensors(find_checkpoints(session.run)[-1] / "adapter.safetensors")
        )
        opened[:] = [copy]

    @contextmanager
    def teacher(_denoiser: nn.Module) -> Iterator[None]:
        with opened[0].teacher_mode():
            yield

    with (
        patch("guidefold.student.attach", put_on),
        patch("guidefold.evaluate.open_adapter", load),
        patch("guidefold.evaluate.adapter_off", teacher),
        patch("guidefold.evaluate.fuse_adapter", lambda _denoiser: None),
        patch("guidefold.gallery.read_json", _manifest),
        patch("guidefold.evaluate.read_json", _metadata),
    ):
        yield


def _manifest(path: Path) -> dict[str, Any]:
    """There is no adapter's manifest; the checkpoint's says which weights draw."""
    from guidefold.runs import read_json

    found: dict[str, Any] = read_json(find_checkpoints(path.parents[1])[-1] / path.name)
    return found


def _metadata(path: Path) -> dict[str, Any]:
    """Nor are there an adapter's metadata; the checkpoint says how long it was trained."""
    from guidefold.runs import read_json

    found: dict[str, Any] = read_json(find_checkpoints(path.parents[1])[-1] / "state.json")
    return found


@contextmanager
def output_bias() -> Iterator[None]:
    """A LoRA whose last layer also learns a constant per channel, scaled by strength like the rest.

    diffusers and plain peft could load it, ComfyUI and kohya's loaders would drop it in silence.
    """

    def put_on(denoiser: nn.Module, *arguments: Any) -> Any:
        adapter = attach(denoiser, *arguments)
        up = adapter.layers["conv_out"].lora_B[NAME]
        up.bias = nn.Parameter(torch.zeros(up.out_channels))
        return adapter

    with patch("guidefold.student.attach", put_on):
        yield
