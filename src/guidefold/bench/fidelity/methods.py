"""The ways to make a picture true to its prompt that are compared: the paper's, its rivals, ours.

A method is data. All go through the same recording, loss, training and evaluation, at about equal
numbers of denoiser passes; where a method trains nothing, it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from guidefold.bench.fidelity.copy import copy_weights
from guidefold.bench.fidelity.trials import Attach, Trial
from guidefold.ground import ConfigError
from guidefold.lora import attach
from guidefold.run import Settings


def _as_recorded(_settings: Settings) -> tuple[str, ...]:
    return ()


def _forward_noise(settings: Settings) -> tuple[str, ...]:
    """The paper's recipe: noised pictures, one guidance scale, plain squared error.

    A trajectory costs twice the teacher's, since its picture is made first, so there are half as
    many; all its states are kept, so that each is seen about once, as when targets are made in the
    training step itself.
    """
    g, (fewest, _) = settings.adapter.g_ref, settings.record.steps
    return (
        'record.rounds=["noise"]',
        f"record.trajectories={max(1, settings.record.trajectories // 2)}",
        f"record.states_per_trajectory={fewest}",
        f"record.guidance=[{g}, {g}]",
        "adapter.dial=false",
        "adapter.rank=8",
        "distill.learning_rate=2e-3",  # rank and rate of their own: the preset may move
        "distill.loss=plain",
    )


def _paper_lora(settings: Settings) -> tuple[str, ...]:
    return (*_forward_noise(settings), "adapter.targets=attention", "adapter.rank=4")


def _plain(settings: Settings) -> tuple[str, ...]:
    # Half the LoRA's. Of 2e-4 and this the better one, with one seed, on the teacher's states.
    return (*_forward_noise(settings), "distill.learning_rate=1e-3")


@dataclass(frozen=True)
class Method:
    """One way.

    Attributes:
        name: What a result calls it.
        title: What it is, in words.
        overrides: What it changes in the preset's settings; None where nothing is trained.
        attach: What is trained.
        guided_share: Of the teacher's steps, where nothing is trained.
    """

    name: str
    title: str
    overrides: Callable[[Settings], tuple[str, ...]] | None
    attach: Attach = attach
    guided_share: float = 1.0

    def trial(self, settings: Settings, seed: int) -> Trial:
        """Its run, on top of a preset's settings."""
        assert self.overrides is not None
        return Trial(self.overrides(settings), seed, self.attach)


SELECTIVE = Method("selective-guidance", "Selective Guidance, 1/2", None, guided_share=0.5)
PLAIN = Method("plain-distillation", "plain distillation, full copy", _plain, copy_weights)
PAPER = Method("paper-lora", "LoRA distillation as in the paper", _paper_lora)
GUIDEFOLD = Method("guidefold", "Guidefold's default", _as_recorded)
METHODS = (SELECTIVE, PLAIN, PAPER, GUIDEFOLD)
TRAINED = (PLAIN, PAPER, GUIDEFOLD)


def find_methods(names: Sequence[str]) -> tuple[Method, ...]:
    """Methods by name, in the table's order; all where none is named.

    Raises:
        ConfigError: An unknown name.
    """
    known = {method.name: method for method in METHODS}
    for name in names:
        if name not in known:
            raise ConfigError(f"--method {name}: no such method", f"Methods: {', '.join(known)}.")
    return tuple(method for method in METHODS if not names or method.name in names)
