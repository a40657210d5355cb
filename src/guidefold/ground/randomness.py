"""All randomness is a function of names: (seed, purpose, step, sample index).

There is no generator that lives on between two draws, so there is no state to save, and a draw
depends neither on batching, nor on the number of processes, nor on where a run was stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from guidefold.ground.errors import InputError

if TYPE_CHECKING:
    import torch

LARGEST_SEED = 2**63 - 1
"""torch takes more, but numpy and JSON readers do not."""


def check_seeds(seeds: Iterable[int]) -> None:
    """Check seeds that a user gave.

    Raises:
        InputError: One is outside 0 to :data:`LARGEST_SEED`.
    """
    for seed in seeds:
        if not 0 <= seed <= LARGEST_SEED:
            shown = (
                str(seed) if seed.bit_length() < 200 else f"a number of {seed.bit_length()} bits"
            )
            raise InputError(f"seed: {shown}", f"Use a seed from 0 to 2**63 - 1 ({LARGEST_SEED}).")


def derive_seed(seed: int, *names: str | int) -> int:
    """Hash a seed and any number of names into a new seed.

    Args:
        seed: The run's seed.
        *names: What the draw is for, e.g. ``"state", step, index``.

    Returns:
        An integer in [0, 2**63), the same on every machine.
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def unit(seed: int, *names: str | int) -> float:
    """A number in [0, 1), uniform over the names."""
    return (derive_seed(seed, *names) >> 10) / 2**53


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A fresh CPU generator; latents drawn from it are the same on every device.

    Without names it is seeded by the seed itself, so that a picture's seed means what it means in
    diffusers.
    """
    import torch

    return torch.Generator("cpu").manual_seed(derive_seed(seed, *names) if names else seed)


def permutation(count: int, seed: int, *names: str | int) -> list[int]:
    """The integers below ``count`` in an order that the names decide."""
    import torch

    order: list[int] = torch.randperm(count, generator=generator(seed, *names)).tolist()
    return order
