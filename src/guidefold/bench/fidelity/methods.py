"""The compared methods: the paper's, its rivals, Guidefold's.

A method is data. All are recorded, trained and evaluated by the same code, at about equal numbers
of denoiser passes; a method without training has none to record or train.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from guidefold.bench.fidelity.copy import copy_weights
from guidefold.bench.fidelity.trials import Attach, Trial
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
        "distill.learning_rate=2e-3",  # fixed here: the preset's may change
        "distill.loss=plain",
    )


def _paper_lora(settings: Settings) -> tuple[str, ...]:
    return (*_forward_noise(settings), "adapter.targets=attention", "adapter.rank=4")


def _plain(settings: Settings) -> tuple[str, ...]:
    # Half the LoRA's rate: better than 2e-4 with one seed, on the teacher's states.
    return (*_forward_noise(settings), "distill.learning_rate=1e-3")


@dataclass(frozen=True)
class Method:
    """A compared method.

    Attributes:
        name: Its name on the command line and in results.
        title: Its name in tables.
        overrides: Makes its overrides from a preset's settings; None where nothing is trained.
        attach: Puts on what is trained: a LoRA, or a full copy of the weights.
        guided_share: Share of the teacher's steps with guidance, where nothing is trained.
    """

    name: str
    title: str
    overrides: Callable[[Settings], tuple[str, ...]] | None
    attach: Attach = attach
    guided_share: float = 1.0

    @property
    def trained(self) -> bool:
        """Whether anything is trained."""
        return self.overrides is not None

    def trial(self, settings: Settings, seed: int) -> Trial:
        """The method's trial, on top of a preset's settings."""
        if self.overrides is None:
            return Trial((f"pipeline.guided_share={self.guided_share}",), seed)
        return Trial(self.overrides(settings), seed, self.attach)


SELECTIVE = Method("selective-guidance", "Selective Guidance, 1/2", None, guided_share=0.5)
PLAIN = Method("plain-distillation", "plain distillation, full copy", _plain, copy_weights)
PAPER = Method("paper-lora", "LoRA distillation as in the paper", _paper_lora)
GUIDEFOLD = Method("guidefold", "Guidefold's default", _as_recorded)
METHODS = (SELECTIVE, PLAIN, PAPER, GUIDEFOLD)
