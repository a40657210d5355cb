"""The balance of an output's parts: each counts by its own guidance, whatever its size."""

import torch

from guidefold.listen.parts import pack
from guidefold.train.balance import Balance
from guidefold.train.batches import Batch
from guidefold.train.loss import squared_error

SHAPES = ((3, 4), (5,))


def batch(seed: int, guidance: float, sizes: tuple[float, float]) -> tuple[Batch, torch.Tensor]:
    """Two samples whose parts are so far from the unguided output, per unit of guidance."""
    noise = torch.Generator().manual_seed(seed)
    unguided = pack([torch.randn((2, *shape), generator=noise) for shape in SHAPES])
    change = pack(
        [
            torch.full((2, *shape), size * (guidance - 1))
            for shape, size in zip(SHAPES, sizes, strict=True)
        ]
    )
    made = Batch(((), {}), unguided + change, (900.0, 100.0), (guidance,) * 2, (0, 1), SHAPES)
    return made, unguided


def test_every_part_counts_by_its_own_guidance_and_the_parts_are_averaged() -> None:
    measured = [batch(seed, 2.0 + seed, (10.0, 0.1)) for seed in range(6)]
    balance = Balance.measure(measured, origin=1.0)
    made, unguided = batch(7, 5.0, (10.0, 0.1))
    errors = squared_error(balance.weigh(unguided, made), balance.weigh(made.target, made))
    size = (10.0**2 + 0.1**2) / 2 * (5.0 - 1) ** 2
    torch.testing.assert_close(errors, torch.full((2,), size))
    # Half of one part's guidance is missing: a quarter of its error, whichever part it is.
    half = made.target.clone()
    half[:, :12] -= 0.5 * 10.0 * 4
    left = squared_error(balance.weigh(half, made), balance.weigh(made.target, made))
    torch.testing.assert_close(left / size, torch.full((2,), 0.25 / 2))
    half = made.target.clone()
    half[:, 12:] -= 0.5 * 0.1 * 4
    left = squared_error(balance.weigh(half, made), balance.weigh(made.target, made))
    torch.testing.assert_close(left / size, torch.full((2,), 0.25 / 2))
