"""A teacher's number of steps is found by comparing grids, of stock schedulers and by hand."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import numpy as np
import pytest

from guidefold.ground.errors import UnfoldableError
from guidefold.listen.step_grid import StepGrid, find_fine_steps, indices_within

Grid = Callable[[int], Sequence[float]]


def stock(kind: str, **config: Any) -> Grid:
    def grid(steps: int) -> list[float]:
        scheduler = getattr(diffusers, kind)(**config)
        scheduler.set_timesteps(steps)
        return [float(t) for t in scheduler.timesteps]

    return grid


def flow(**config: Any) -> Grid:
    """As the flow pipelines do it: with sigmas of their own."""

    def grid(steps: int) -> list[float]:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**config)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
        return [float(t) for t in scheduler.timesteps]

    return grid


@pytest.mark.parametrize(
    ("grid", "coarse", "least", "fine"),
    [
        (stock("DDIMScheduler", timestep_spacing="trailing"), 5, 20, 20),
        (stock("DDIMScheduler", timestep_spacing="trailing"), 8, 20, 24),
        (stock("EulerDiscreteScheduler", timestep_spacing="trailing"), 4, 30, 32),
        (stock("EulerDiscreteScheduler", timestep_spacing="linspace"), 5, 20, 21),
        (stock("DDIMScheduler", timestep_spacing="linspace"), 4, 20, 22),
        (stock("EulerDiscreteScheduler", use_karras_sigmas=True), 5, 20, 21),
        (flow(shift=3.0), 8, 28, 32),
    ],
)
def test_the_fine_grid_holds_every_coarse_timestep(
    grid: Grid, coarse: int, least: int, fine: int
) -> None:
    count, indices = find_fine_steps(grid, coarse, least, "Some")
    assert count == fine
    assert len(indices) == coarse
    assert indices[0] == 0
    assert np.allclose(np.array(grid(count))[list(indices)], grid(coarse), rtol=1e-4, atol=0.01)


def test_leading_spacing_is_refused_with_both_first_timesteps() -> None:
    with pytest.raises(
        UnfoldableError, match=r"5 steps begin at timestep 801, 21 at 941"
    ) as caught:
        find_fine_steps(
            stock("DDIMScheduler", timestep_spacing="leading", steps_offset=1),
            5,
            20,
            "DDIMScheduler",
        )
    assert "trailing" in caught.value.remedy


def test_the_least_number_counts_and_is_more_than_the_student_s() -> None:
    grid = stock("DDIMScheduler", timestep_spacing="trailing")
    assert find_fine_steps(grid, 10, 1, "Some")[0] == 20
    assert find_fine_steps(grid, 1, 7, "Some") == (7, (0,))


def test_indices_rise_from_the_first_and_none_is_missing() -> None:
    assert indices_within([4.0, 2.0], [4.0, 3.0, 2.0, 1.0]) == (0, 2)
    assert indices_within([3.0, 2.0], [4.0, 3.0, 2.0]) is None
    assert indices_within([4.0, 2.5], [4.0, 3.0, 2.0]) is None
    assert indices_within([4.0, 4.0], [4.0, 4.0, 3.0, 3.0]) == (0, 1)
    assert indices_within([], [1.0]) is None


def test_a_grid_comes_back_from_json() -> None:
    grid = StepGrid(2, 4, (0, 2), "Some", "trailing", 3.0, False, "karras", (999.0, 499.0))
    again = StepGrid.from_json(json.loads(json.dumps(grid.to_json())))
    assert (again, again.timesteps) == (grid, grid.timesteps)
