"""Choose the states of a training step and join them into denoiser calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

import torch

from guidefold.ground import out_of_memory, permutation
from guidefold.listen import Layout, NotBatchableError, Shapes, Tree, flatten, join, tree_map
from guidefold.record import KeptState, StateRef

State = TypeVar("State")


@dataclass(frozen=True)
class Batch:
    """States that share one denoiser call.

    Attributes:
        arguments: ``(args, kwargs)`` of the call.
        target: The teacher's model output, shape (batch, ...).
        timesteps: One per sample.
        guidance: The teacher's guidance scale, one per sample.
        places: Each sample's index among the states given to :func:`collate`.
        shapes: The shapes of the target's packed parts; empty for a single scheduler.
    """

    arguments: Tree
    target: torch.Tensor
    timesteps: tuple[float, ...]
    guidance: tuple[float, ...]
    places: tuple[int, ...]
    shapes: Shapes = ()

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        arguments = tree_map(lambda t: t.to(device), self.arguments)
        return replace(self, arguments=arguments, target=self.target.to(device))


def chosen_indices(count: int, seed: int, name: str, first: int, size: int) -> list[int]:
    """Indices of a slice of an endless shuffled sequence; every epoch has its own order.

    A function of its arguments alone: there is no position or random state to save.

    Args:
        count: Number of states.
        seed: The run's seed.
        name: The sequence's name.
        first: Position of the slice's first index in the sequence.
        size: Length of the slice.
    """
    return [
        _epoch(count, seed, name, position // count)[position % count]
        for position in range(first, first + size)
    ]


def random_subset(refs: Sequence[State], count: int, seed: int, name: str) -> list[State]:
    """Choose states at random, in their order.

    Even distances would not do: they can coincide with the number of states kept of each
    trajectory, and then only the noisiest of each would be chosen.

    Args:
        refs: The states.
        count: Size of the subset; all states if there are no more.
        seed: The run's seed.
        name: The subset's name, so that subsets with other names are independent.
    """
    return [refs[k] for k in sorted(permutation(len(refs), seed, name)[:count])]


def collate(refs: Sequence[StateRef], layout: Layout, together: bool) -> list[Batch]:
    """Read states and join those with equal :func:`batch_key`; the others get a call each.

    Args:
        refs: The states.
        layout: How the denoiser's arguments are batched; None if they cannot be.
        together: Whether to join states at all, as :func:`mixing_is_exact` decides.
    """
    states = [ref.read() for ref in refs]
    if layout is None or not together:
        return [_single(states, refs, place) for place in range(len(refs))]
    groups: dict[Any, list[int]] = {}
    for place, state in enumerate(states):
        groups.setdefault(batch_key(state), []).append(place)
    return [batch for places in groups.values() for batch in _group(states, refs, places, layout)]


def batch_key(state: KeptState) -> Any:
    """What states must share to share a call: shapes, dtypes, and every value but a tensor."""
    skeleton, tensors = flatten(list(state.arguments))
    shapes = [(name, tuple(t.shape), t.dtype) for name, t in tensors.items()]
    return json.dumps(skeleton, sort_keys=True), tuple(shapes), state.target.shape, state.shapes


def mixing_is_exact(
    predict: Callable[[Batch, torch.Tensor], torch.Tensor],
    refs: Sequence[StateRef],
    layout: Layout,
    device: torch.device,
) -> bool:
    """Whether a batch of different timesteps and strengths gives the outputs of single calls.

    Args:
        predict: The student's output for a batch at given strengths.
        refs: Two or more states, at different timesteps.
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
    except Exception as error:  # a denoiser may fail in any way on a batch that it does not take
        if out_of_memory(error):
            raise
        return False
    close = torch.allclose(joint, alone, rtol=1e-2, atol=1e-3 * float(alone.abs().max()))
    return joint.shape == alone.shape and close


def _group(
    states: Sequence[KeptState], refs: Sequence[StateRef], places: Sequence[int], layout: Layout
) -> list[Batch]:
    """One call for all states if their arguments can be joined, else one call for each."""
    if len(places) > 1:
        try:
            arguments = join([states[place].arguments for place in places], layout)
        except NotBatchableError:
            pass  # they differ in an argument that a call has only once
        else:
            return [
                Batch(
                    arguments=arguments,
                    target=torch.cat([states[place].target for place in places]),
                    timesteps=tuple(refs[place].timestep for place in places),
                    guidance=tuple(refs[place].guidance for place in places),
                    places=tuple(places),
                    shapes=states[places[0]].shapes,
                )
            ]
    return [_single(states, refs, place) for place in places]


def _single(states: Sequence[KeptState], refs: Sequence[StateRef], place: int) -> Batch:
    state, ref = states[place], refs[place]
    own = (ref.timestep,), (ref.guidance,), (place,)
    return Batch(state.arguments, state.target, *own, state.shapes)


@lru_cache(maxsize=4)
def _epoch(count: int, seed: int, name: str, epoch: int) -> tuple[int, ...]:
    return tuple(permutation(count, seed, name, epoch))
