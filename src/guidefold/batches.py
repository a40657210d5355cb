"""Which states a training step sees, and how they become denoiser calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from guidefold.arguments import Layout, NotBatchableError, Tree, join, tree_map
from guidefold.randomness import permutation
from guidefold.shards import KeptState, StateRef


@dataclass(frozen=True)
class Batch:
    """States that share one denoiser call.

    Attributes:
        arguments: ``(args, kwargs)`` of the call.
        target: The teacher's model output, shape (batch, ...).
        timesteps: One per sample.
        guidance: The teacher's guidance scale, one per sample.
    """

    arguments: Tree
    target: torch.Tensor
    timesteps: tuple[float, ...]
    guidance: tuple[float, ...]

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        arguments = tree_map(lambda t: t.to(device), self.arguments)
        return Batch(arguments, self.target.to(device), self.timesteps, self.guidance)


def chosen_indices(count: int, seed: int, name: str, first: int, size: int) -> list[int]:
    """The states of a stretch of an endless shuffled sequence; every epoch has its own order.

    Args:
        count: How many states there are.
        seed: The run's.
        name: Of the sequence.
        first: Position of the first one wanted.
        size: How many are wanted.
    """
    return [
        _epoch(count, seed, name, position // count)[position % count]
        for position in range(first, first + size)
    ]


def collate(refs: Sequence[StateRef], layout: Layout, together: bool) -> list[Batch]:
    """Read states and join what can be joined; what cannot goes one by one.

    Args:
        refs: The states.
        layout: How the denoiser's arguments are batched; None: one by one.
        together: Whether a mixed batch equals one by one, as :func:`mixes` found.
    """
    states = [ref.read() for ref in refs]
    if layout is not None and together and len(states) > 1:
        try:
            return [_batch(states, refs, layout)]
        except NotBatchableError:
            pass  # other shapes: the result is the same, only slower
    return [
        Batch(state.arguments, state.target, (ref.timestep,), (ref.guidance,))
        for state, ref in zip(states, refs, strict=True)
    ]


def mixes(
    predict: Callable[[Batch, torch.Tensor], torch.Tensor],
    refs: Sequence[StateRef],
    layout: Layout,
    device: torch.device,
) -> bool:
    """Whether a batch of mixed timesteps and strengths gives what its samples give one by one.

    Args:
        predict: The student's output for a batch at given strengths.
        refs: Two or more states at different timesteps.
        layout: How the denoiser's arguments are batched.
        device: Where the denoiser is.
    """
    singles = [batch.to(device) for batch in collate(refs, layout, together=False)]
    mixed = collate(refs, layout, together=True)
    if len(mixed) > 1:
        return False
    strengths = torch.linspace(0.3, 1.3, len(refs), device=device)
    alone = torch.cat([predict(s, strengths[i : i + 1]) for i, s in enumerate(singles)])
    try:
        joint = predict(mixed[0].to(device), strengths)
    except Exception:
        return False
    close = torch.allclose(joint, alone, rtol=1e-2, atol=1e-3 * float(alone.abs().max()))
    return joint.shape == alone.shape and close


def _batch(states: Sequence[KeptState], refs: Sequence[StateRef], layout: Layout) -> Batch:
    targets = [state.target for state in states]
    if len({target.shape for target in targets}) > 1:
        raise NotBatchableError
    return Batch(
        arguments=join([state.arguments for state in states], layout),
        target=torch.cat(targets),
        timesteps=tuple(ref.timestep for ref in refs),
        guidance=tuple(ref.guidance for ref in refs),
    )


@lru_cache(maxsize=4)
def _epoch(count: int, seed: int, name: str, epoch: int) -> tuple[int, ...]:
    return tuple(permutation(count, seed, name, epoch))
