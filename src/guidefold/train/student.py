"""The student: the teacher's denoiser with an adapter, called at recorded states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from guidefold.ground import RunError, UnfoldableError, compat, out_of_memory
from guidefold.listen import Findings, call_recorded, output_tensor
from guidefold.lora import BITS, Adapter, Dial, attach, shrink_weights
from guidefold.pipeline import COMPONENT
from guidefold.record import StateRef
from guidefold.run import Storage
from guidefold.session import Session
from guidefold.train.balance import Balance
from guidefold.train.batches import (
    Batch,
    batch_key,
    collate,
    mixing_is_exact,
    random_subset,
)
from guidefold.train.loss import GuidanceSize, StepSize, squared_error

LARGEST_CHANGE = 0.5  # of the denoiser's output (relative) by weights in fewer bits
BALANCED_STATES = 32  # at most so many show how large guidance is in each part of an output
SEARCHED_STATES = 64  # at most so many are read to find two that can share a call

Attach = Callable[[Callable[[], object]], Adapter]
"""Attaches an adapter to a denoiser, given a function that calls the denoiser as training will."""


class Student:
    """A denoiser with a fresh adapter, whose output is still the unguided teacher's.

    Args:
        denoiser: The teacher's module; wrapped in place.
        findings: What the probe found.
        dial: Gives the strength that a guidance scale is trained at.
        refs: Recorded states. One for each denoiser shows how the layers are called, two show
            whether states of different timesteps and strengths can share a call.
        attach: Attaches what is trained.

    Attributes:
        adapter: What is trained.
        mixable: Whether states of different timesteps and strengths can share a call.
        teacher_intact: Whether the frozen weights are the teacher's own.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        findings: Findings,
        dial: Dial,
        refs: Sequence[StateRef],
        attach: Attach,
    ) -> None:
        self.denoiser = denoiser
        self.findings, self.dial = findings, dial
        self.device = next(denoiser.parameters()).device
        self.autocast: Any = nullcontext
        self.teacher_intact = True
        self.balance: Balance | None = None
        examples = collate(_one_per_denoiser(refs, findings.denoisers), None, together=False)
        self.examples = [example.to(self.device) for example in examples]
        self.adapter = attach(lambda: list(map(self._raw, self.examples)))
        with self._random_lora_b():
            self.mixable = len(refs) > 1 and mixing_is_exact(
                self._predict_at, _two_alike(refs), findings.layout, self.device
            )
        if findings.output_map.parts:
            # Of the first round alone: rounds that come later must not change what is trained.
            first = [ref for ref in refs if ref.path.parent == refs[0].path.parent]
            self.balance = self._measure_balance(first)

    def _measure_balance(self, refs: Sequence[StateRef]) -> Balance:
        """Measure the size of guidance in each part of the output, for several schedulers."""
        chosen = random_subset(refs, BALANCED_STATES, 0, "balance")
        measured = []
        for batch in self.calls(chosen):
            with self.adapter.teacher_mode():
                measured.append((batch, self.predict(batch)))
        return Balance.measure(measured, self.findings.origin)

    def calls(self, refs: Sequence[StateRef]) -> list[Batch]:
        """Read states and group them into as few denoiser calls as give the same outputs."""
        batches = collate(refs, self.findings.layout, self.mixable)
        moved = [batch.to(self.device) for batch in batches]
        if self.balance is None:
            return moved
        return [replace(b, target=self.balance.weigh(b.target, b)) for b in moved]

    def predict(self, batch: Batch) -> torch.Tensor:
        """The model output at a batch of states, through the pipeline's output map.

        Where several schedulers step, each one's part is weighed, here and in the targets of
        :meth:`calls`, so that all parts count alike in an error (:class:`Balance`).

        Args:
            batch: On the denoiser's device.

        Returns:
            Shape of ``batch.target``.
        """
        with self.autocast():
            output = call_recorded(self.denoiser, batch.arguments)
        selected = self.findings.output_map.read(output, batch.target.shape, batch.shapes)
        return selected if self.balance is None else self.balance.weigh(selected, batch)

    def strengths(self, guidance: Sequence[float]) -> torch.Tensor:
        """Each sample's strength, shape (batch,): the dial's, or 1 without one."""
        return torch.tensor([self.dial.trained_strength(g) for g in guidance], device=self.device)

    def errors(
        self, refs: Sequence[StateRef], batch_size: int, *, adapted: bool = True
    ) -> list[float]:
        """Squared error to the target at each state, without gradients.

        Args:
            refs: The states.
            batch_size: States per call.
            adapted: Measure the student; otherwise the unguided teacher.
        """
        assert adapted or self.teacher_intact, "the teacher's weights are gone"
        all_errors = [0.0] * len(refs)
        for first in range(0, len(refs), batch_size):
            for batch in self.calls(refs[first : first + batch_size]):
                strengths = self.strengths(batch.guidance)
                student = self.adapter.student_mode(strengths, train=False)
                with student if adapted else self.adapter.teacher_mode():
                    output = self.predict(batch)
                errors = sample_errors(output, batch).tolist()
                for place, error in zip(batch.places, errors, strict=True):
                    all_errors[first + place] = error
        return all_errors

    def measure_guidance(self, refs: Sequence[StateRef], batch_size: int) -> GuidanceSize:
        """Measure how large guidance is at each noise level.

        Args:
            refs: The states to measure at.
            batch_size: States per call.

        Raises:
            UnfoldableError: Every state was recorded with guidance off.
        """
        off, origin = self.findings.off, self.findings.origin
        guided = [ref for ref in refs if ref.guidance not in (off, origin)]
        if not guided:
            raise UnfoldableError(
                f"record.guidance: every state was recorded at {off:g}, where guidance is off",
                "Record a range that holds the guidance scales you use, such as [2.0, 8.0].",
            )
        errors = self.errors(guided, batch_size, adapted=False)
        pairs = zip(errors, guided, strict=True)
        sizes = [error / (ref.guidance - origin) ** 2 for error, ref in pairs]
        return GuidanceSize.measure([ref.timestep for ref in guided], sizes)

    def measure_steps(self, refs: Sequence[StateRef], batch_size: int) -> StepSize:
        """Measure what a few-step student has to learn at each of its steps.

        Args:
            refs: The states to measure at.
            batch_size: States per call.
        """
        errors = self.errors(refs, batch_size, adapted=False)
        strengths = [self.dial.trained_strength(ref.guidance) for ref in refs]
        return StepSize.measure([ref.timestep for ref in refs], strengths, errors)

    def enable_checkpointing(self) -> None:
        """Turn gradient checkpointing on.

        Raises:
            UnfoldableError: The denoiser has none, or it changes the denoiser's output.
        """
        name, remedy = type(self.denoiser).__name__, "Set distill.gradient_checkpointing=false."
        if not compat.supports_checkpointing(self.denoiser):
            raise UnfoldableError(f"{name} has no gradient checkpointing", remedy)
        plain = self._raw(self.examples[0]).detach()
        self.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        if not torch.allclose(self._raw(self.examples[0]).detach(), plain, rtol=1e-3, atol=1e-4):
            raise UnfoldableError(
                f"{name}: gradient checkpointing changes its output, a fault of this diffusers",
                remedy,
            )

    def shrink(self, storage: Storage) -> float:
        """Store the frozen weights in fewer bits; the teacher cannot be called afterwards.

        Args:
            storage: ``bf16``, ``int8`` or ``int4``.

        Returns:
            The relative change of the denoiser's output (root mean square).

        Raises:
            UnfoldableError: The change is too large, or the denoiser cannot be called any more.
        """
        name = type(self.denoiser).__name__
        remedy = "Set distill.frozen_weights=same, or bf16."
        before = self._unguided()
        shrink_weights(
            self.denoiser, *BITS[storage]
        )  # not in teacher mode, which freezes the adapter too
        self.teacher_intact = False
        try:
            after = self._unguided()
        except (AttributeError, TypeError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
            raise UnfoldableError(
                f"distill.frozen_weights: {name} cannot be called in '{storage}' ({reason})", remedy
            ) from error
        change = float((after - before).norm() / before.norm().clamp_min(1e-12))
        if not change <= LARGEST_CHANGE:  # also when it is not a number
            raise UnfoldableError(
                f"distill.frozen_weights: '{storage}' changes the output of {name} by {change:.0%}",
                remedy,
            )
        return change

    def _unguided(self) -> torch.Tensor:
        with self.adapter.teacher_mode():
            return self.predict(self.examples[0]).float()

    def _raw(self, batch: Batch) -> torch.Tensor:
        return output_tensor(call_recorded(self.denoiser, batch.arguments))

    def _predict_at(self, batch: Batch, strengths: torch.Tensor) -> torch.Tensor:
        with self.adapter.student_mode(strengths, train=False):
            return self.predict(batch)

    @contextmanager
    def _random_lora_b(self) -> Iterator[None]:
        """Set ``lora_B`` to random values within the context: at zero, strength has no effect."""
        # Also of a guidance LoRA that is not trained, whose strength is each sample's own as well.
        ups = [tensor for n, tensor in self.adapter.state_dict().items() if ".lora_B." in n]
        noise = torch.Generator().manual_seed(0)
        for up in ups:
            up.copy_(0.05 * torch.randn(up.shape, generator=noise))
        yield
        for up in ups:
            up.zero_()


def lora_student(session: Session, refs: Sequence[StateRef]) -> Student:
    """A student with a fresh LoRA, or two, on the denoiser of a run's pipeline.

    Args:
        session: The run and its pipeline.
        refs: Recorded states.
    """
    settings, denoiser = session.settings, session.denoiser
    lora = partial(
        attach,
        denoiser,
        settings.adapter.targets,
        settings.adapter.rank,
        settings.seed,
        steps_rank=settings.steps_rank,
        train_guidance=settings.student.guidance_run is None,
    )
    return Student(denoiser, session.findings, session.dial, refs, lora)


def sample_errors(output: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean squared error of each sample, in float32, over all rows (such as frames) that it has.

    Args:
        output: The model output, shape of ``batch.target``.
        batch: The samples and their targets.

    Returns:
        Shape (batch,).
    """
    return squared_error(output, batch.target).view(len(batch.timesteps), -1).mean(1)


def _one_per_denoiser(refs: Sequence[StateRef], names: Sequence[str]) -> list[StateRef]:
    """One recorded state for each denoiser, in the order of recording.

    Raises:
        RunError: A denoiser was never called at a recorded state.
    """
    chosen: dict[str, StateRef] = {}
    for ref in refs:
        _, kwargs = ref.read().arguments
        chosen.setdefault(kwargs.get(COMPONENT, names[0]), ref)
        if len(chosen) == len(names):
            return list(chosen.values())
    missing = ", ".join(name for name in names if name not in chosen)
    raise RunError(
        f"no recorded state calls {missing}",
        "Record more states of each trajectory (record.states_per_trajectory), or more steps "
        "(record.steps).",
    )


def _two_alike(refs: Sequence[StateRef]) -> list[StateRef]:
    """The first recorded state and a late one that can share a call; any late one if none can."""
    key = batch_key(refs[0].read())
    step = max(1, len(refs) // SEARCHED_STATES)
    alike = (ref for ref in reversed(refs[1::step]) if batch_key(ref.read()) == key)
    return [refs[0], next(alike, refs[-1])]
