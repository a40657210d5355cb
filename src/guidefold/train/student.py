"""The student: the teacher's denoiser with an adapter, asked for its output at recorded states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from guidefold.ground import RunError, UnfoldableError, compat
from guidefold.listen import Findings, output_tensor, tree_map
from guidefold.lora import BITS, Adapter, Dial, attach, shrink_weights
from guidefold.pipeline import COMPONENT
from guidefold.record import StateRef
from guidefold.run import Storage
from guidefold.session import Session
from guidefold.train.batches import Batch, collate, kind_of, mixes
from guidefold.train.loss import GuidanceSize, squared_error

FARTHEST = 0.5  # part of what it says that a denoiser may lose with its weights' precision

LOOKED_AT = 64  # states, to find two of one kind

Attach = Callable[[Callable[[], object]], Adapter]
"""Puts an adapter on a denoiser, given a function that calls the denoiser as training will."""


class Student:
    """A denoiser with an adapter attached, fresh: it says what the unguided teacher says.

    Args:
        denoiser: The teacher's module; wrapped in place.
        findings: What the probe found.
        dial: Which strength a guidance scale is trained at.
        refs: Recorded states; one of each denoiser is used to see how the layers are called, two to
            see whether states of several timesteps and strengths may share a call.
        attach: Puts on what is trained.

    Attributes:
        adapter: What is trained.
        model: What is called: the denoiser, or a wrapper of it that a launcher made.
        together: Whether mixed states may share a call.
        whole: Whether the frozen weights are the teacher's own.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        findings: Findings,
        dial: Dial,
        refs: Sequence[StateRef],
        attach: Attach,
    ) -> None:
        self.denoiser, self.model = denoiser, denoiser
        self.findings, self.dial = findings, dial
        self.device = next(denoiser.parameters()).device
        self.autocast: Any = nullcontext
        self.whole = True
        firsts = collate(_one_of_each(refs, findings.denoisers), None, together=False)
        self.firsts = [first.to(self.device) for first in firsts]
        self.first = self.firsts[0]
        self.adapter = attach(lambda: list(map(self._raw, self.firsts)))
        with self._stirred():
            few = _two_of_one_kind(refs)
            self.together = len(refs) > 1 and mixes(
                self._predict_at, few, findings.layout, self.device
            )

    def calls(self, refs: Sequence[StateRef]) -> list[Batch]:
        """Read states and make as few denoiser calls of them as gives the same result."""
        batches = collate(refs, self.findings.layout, self.together)
        return [batch.to(self.device) for batch in batches]

    def predict(self, batch: Batch, model: nn.Module | None = None) -> torch.Tensor:
        """The model output at a batch of states, through the pipeline's output map.

        Args:
            batch: On the denoiser's device.
            model: What to call; :attr:`model` if None.

        Returns:
            Shape of ``batch.target``.
        """
        # containers of their own: some denoisers empty the lists that they are given
        args, kwargs = tree_map(lambda tensor: tensor, batch.arguments)
        with self.autocast():
            raw = output_tensor((model or self.model)(*args, **kwargs))
        return self.findings.output_map(raw, batch.target.shape)

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
            adapted: Of the student; else of the unguided teacher.
        """
        assert adapted or self.whole, "the teacher's weights are gone"
        found = [0.0] * len(refs)
        for first in range(0, len(refs), batch_size):
            for batch in self.calls(refs[first : first + batch_size]):
                strengths = self.strengths(batch.guidance)
                student = self.adapter.student_mode(strengths, train=False)
                with student if adapted else self.adapter.teacher_mode():
                    output = self.predict(batch, self.denoiser)
                errors = sample_errors(output, batch).tolist()
                for place, error in zip(batch.places, errors, strict=True):
                    found[first + place] = error
        return found

    def measure_guidance(self, refs: Sequence[StateRef], batch_size: int) -> GuidanceSize:
        """Measure how large guidance is at each noise level.

        Args:
            refs: The states to measure at.
            batch_size: States per call.

        Raises:
            UnfoldableError: Every state was recorded with guidance off.
        """
        off = self.findings.off
        nothing = (off, self.findings.origin)
        guided = [ref for ref in refs if ref.guidance not in nothing]
        if not guided:
            raise UnfoldableError(
                f"record.guidance: every state was recorded at {off:g}, where guidance is off",
                "Record a range that holds the guidance scales you use, such as [2.0, 8.0].",
            )
        errors = self.errors(guided, batch_size, adapted=False)
        pairs = zip(errors, guided, strict=True)
        sizes = [error / (ref.guidance - self.findings.origin) ** 2 for error, ref in pairs]
        return GuidanceSize.measure([ref.timestep for ref in guided], sizes)

    def enable_checkpointing(self) -> None:
        """Turn gradient checkpointing on.

        Raises:
            UnfoldableError: The denoiser has none, or it changes what the denoiser says.
        """
        name, remedy = type(self.denoiser).__name__, "Set distill.gradient_checkpointing=false."
        if not compat.supports_checkpointing(self.denoiser):
            raise UnfoldableError(f"{name} has no gradient checkpointing", remedy)
        plain = self._raw(self.first).detach()
        self.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        if not torch.allclose(self._raw(self.first).detach(), plain, rtol=1e-3, atol=1e-4):
            raise UnfoldableError(
                f"{name}: gradient checkpointing changes its output, a fault of this diffusers",
                remedy,
            )

    def shrink(self, storage: Storage) -> float:
        """Store the frozen weights small; from then on there is no teacher to ask.

        Args:
            storage: ``bf16``, ``int8`` or ``int4``.

        Returns:
            How far that moves what the denoiser says, as part of it (root mean square).

        Raises:
            UnfoldableError: It moves it too far, or the denoiser cannot be called any more.
        """
        name = type(self.denoiser).__name__
        remedy = "Set distill.frozen_weights=same, or bf16."
        before = self._unguided()
        shrink_weights(self.denoiser, *BITS[storage])  # in teacher mode the adapter is frozen too
        self.whole = False
        try:
            after = self._unguided()
        except (AttributeError, TypeError, RuntimeError) as error:
            said = str(error).splitlines()[0]
            raise UnfoldableError(
                f"distill.frozen_weights: {name} cannot be called in '{storage}' ({said})", remedy
            ) from error
        moved = float((after - before).norm() / before.norm().clamp_min(1e-12))
        if not moved <= FARTHEST:
            raise UnfoldableError(
                f"distill.frozen_weights: '{storage}' moves what {name} says by {moved:.0%}", remedy
            )
        return moved

    def _unguided(self) -> torch.Tensor:
        with self.adapter.teacher_mode():
            return self.predict(self.first, self.denoiser).float()

    def _raw(self, batch: Batch) -> torch.Tensor:
        args, kwargs = batch.arguments
        return output_tensor(self.denoiser(*args, **kwargs))

    def _predict_at(self, batch: Batch, strengths: torch.Tensor) -> torch.Tensor:
        with self.adapter.student_mode(strengths, train=False):
            return self.predict(batch)

    @contextmanager
    def _stirred(self) -> Iterator[None]:
        """Give ``lora_B`` random values for a while: while it is zero, strength changes nothing."""
        ups = [p for n, p in self.adapter.named_parameters().items() if ".lora_B." in n]
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for up in ups:
                up.copy_(0.05 * torch.randn(up.shape, generator=noise))
            yield
            for up in ups:
                up.zero_()


def lora_student(session: Session, refs: Sequence[StateRef]) -> Student:
    """A run's student: a fresh LoRA on the denoiser of its pipeline.

    Args:
        session: The run's.
        refs: Recorded states.
    """
    asked, denoiser = session.settings.adapter, session.denoiser
    lora = partial(attach, denoiser, asked.targets, asked.rank, session.settings.seed)
    return Student(denoiser, session.findings, session.dial, refs, lora)


def sample_errors(output: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean squared error of each sample, in float32; frames may be rows of their own.

    Args:
        output: Of ``batch.target``'s shape.
        batch: Whose samples.

    Returns:
        Shape (batch,).
    """
    return squared_error(output, batch.target).view(len(batch.timesteps), -1).mean(1)


def _one_of_each(refs: Sequence[StateRef], names: Sequence[str]) -> list[StateRef]:
    """A recorded state for each denoiser, in the order of the recording.

    Raises:
        RunError: A denoiser was never called at a recorded state.
    """
    found: dict[str, StateRef] = {}
    for ref in refs:
        _, kwargs = ref.read().arguments
        found.setdefault(kwargs.get(COMPONENT, names[0]), ref)
        if len(found) == len(names):
            return list(found.values())
    missing = ", ".join(name for name in names if name not in found)
    raise RunError(
        f"no recorded state asks {missing}",
        "Record more states of each trajectory (record.states_per_trajectory), or more steps "
        "(record.steps).",
    )


def _two_of_one_kind(refs: Sequence[StateRef]) -> list[StateRef]:
    """Two recorded states that could share a call, far apart; any two where none are found."""
    kind = kind_of(refs[0].read())
    step = max(1, len(refs) // LOOKED_AT)
    others = (ref for ref in reversed(refs[1::step]) if kind_of(ref.read()) == kind)
    return [refs[0], next(others, refs[-1])]
